// Package hist keeps distributions of durations: lock-free to record, plain values
// to read, mergeable across connections, nodes and processes.
//
// Buckets are log-linear, as in HdrHistogram: each power of two of nanoseconds is
// cut into 32 equal parts, so a quantile is at most 1/32 (3.1 %) above the truth
// within one bucket and its midpoint half of that. From 1 ns to 73 minutes that is
// 1,216 counters, 9.5 KiB.
package hist

import (
	"encoding/json"
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	parts     = 32 // of a power of two
	partBits  = 5
	maxExp    = 42                              // 2⁴² ns are 73 minutes: longer is counted there
	numBucket = (maxExp - partBits + 1) * parts // the first 32 values have a bucket each
)

// Histogram is a distribution that is being recorded. The zero Histogram is empty
// and ready; all methods are safe for concurrent use. It must not be copied.
type Histogram struct {
	buckets [numBucket]atomic.Uint64
	sum     atomic.Int64
	max     atomic.Int64
}

// Record adds a duration. Negative ones count as 0.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.buckets[index(uint64(d))].Add(1)
	h.sum.Add(int64(d))
	for {
		top := h.max.Load()
		if int64(d) <= top || h.max.CompareAndSwap(top, int64(d)) {
			return
		}
	}
}

// index is the bucket of v: the exponent chooses the row, the five bits below the
// leading one the part.
func index(v uint64) int {
	if v < parts {
		return int(v)
	}
	exp := bits.Len64(v) - 1
	if exp >= maxExp {
		return numBucket - 1
	}
	row := exp - partBits
	return row*parts + int(v>>row)
}

// bounds returns the least value of a bucket and of the next.
func bounds(i int) (low, next uint64) {
	if i < parts {
		return uint64(i), uint64(i) + 1
	}
	row := i/parts - 1
	part := uint64(i%parts + parts)
	return part << row, (part + 1) << row
}

// Snapshot returns the distribution as it is now. Records that happen meanwhile
// may be in it or not.
func (h *Histogram) Snapshot() Snapshot {
	s := Snapshot{Sum: time.Duration(h.sum.Load()), Max: time.Duration(h.max.Load())}
	for i := range h.buckets {
		n := h.buckets[i].Load()
		if n == 0 {
			continue
		}
		if s.counts == nil {
			s.counts = make([]uint64, numBucket)
		}
		s.counts[i] = n
		s.Count += n
	}
	return s
}

// Snapshot is a distribution at one moment. The zero Snapshot is empty.
type Snapshot struct {
	Count  uint64
	Sum    time.Duration
	Max    time.Duration // exact
	counts []uint64      // nil when empty; never written once made
}

// Mean returns the average, 0 when empty.
func (s Snapshot) Mean() time.Duration {
	if s.Count == 0 {
		return 0
	}
	return s.Sum / time.Duration(s.Count)
}

// Quantile returns the duration that a share q of all records does not pass, q
// from 0 to 1, at most 3.1 % above the truth and never above Max; 0 when empty.
func (s Snapshot) Quantile(q float64) time.Duration {
	if s.Count == 0 {
		return 0
	}
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(s.Count)))
	rank = max(rank, 1)
	seen := uint64(0)
	for i, n := range s.counts {
		if seen += n; seen >= rank {
			if i == numBucket-1 {
				return s.Max
			}
			_, next := bounds(i)
			return min(time.Duration(next-1), s.Max)
		}
	}
	return s.Max
}

// Merge returns the distribution of both together.
func (s Snapshot) Merge(o Snapshot) Snapshot {
	merged := Snapshot{Count: s.Count + o.Count, Sum: s.Sum + o.Sum, Max: max(s.Max, o.Max)}
	if merged.Count == 0 {
		return merged
	}
	merged.counts = make([]uint64, numBucket)
	for _, part := range [][]uint64{s.counts, o.counts} {
		for i, n := range part {
			merged.counts[i] += n
		}
	}
	return merged
}

// MarshalJSON gives the count and, in seconds, the mean, the usual quantiles and
// the maximum.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Count uint64  `json:"count"`
		Mean  float64 `json:"mean"`
		P50   float64 `json:"p50"`
		P90   float64 `json:"p90"`
		P99   float64 `json:"p99"`
		P999  float64 `json:"p999"`
		Max   float64 `json:"max"`
	}{s.Count, s.Mean().Seconds(), s.Quantile(.5).Seconds(), s.Quantile(.9).Seconds(),
		s.Quantile(.99).Seconds(), s.Quantile(.999).Seconds(), s.Max.Seconds()})
}
