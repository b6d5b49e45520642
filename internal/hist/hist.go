// Package hist keeps distributions of durations: lock-free to record, plain values
// to read, mergeable across connections, nodes and processes.
//
//	var latency hist.Histogram // the zero value is ready
//
//	start := time.Now()
//	err := exchange(conn, req)
//	latency.Record(time.Since(start))
//
//	s := latency.Snapshot()
//	log.Printf("%d requests, mean %v, p99 %v, longest %v", s.Count, s.Mean(), s.Quantile(0.99), s.Max)
//
// # What is kept
//
// Buckets are log-linear, as in HdrHistogram: each power of two of nanoseconds is cut
// into 32 equal parts, and a quantile is reported as the middle of its bucket. So it
// is at most 1/64 (1.6 %) off, below 32 ns not at all. That takes 1,216 counters, 9.5
// KiB, for durations up to 73 minutes; Count, Sum, Min, Max and the mean are exact.
//
// # Limits
//
// Longer durations are all in the last bucket, of which a quantile knows only that
// Max is its end. Negative ones count as 0. Sum stops at what a Duration holds, 292
// years, which 1,000 operations in flight at all times reach in 107 days; Mean and the
// sum in JSON go on.
//
// Concurrent calls of Record share cache lines when their durations are alike, which
// costs tens of nanoseconds with many cores. A histogram per node or per worker, merged
// when read, avoids it.
package hist

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	partBits   = 5
	parts      = 1 << partBits                   // of each power of two
	maxExp     = 42                              // 2⁴² ns are 73 minutes
	numBuckets = (maxExp - partBits + 1) * parts // values below 32 have a bucket each
)

// A Histogram is a distribution that is being recorded. The zero Histogram is empty
// and ready. All methods may be called concurrently; it must not be copied.
type Histogram struct {
	buckets [numBuckets]atomic.Uint64
	sum     atomic.Uint64 // the low half
	carry   atomic.Uint64 // the high half
	max     atomic.Int64
	low     atomic.Int64 // how far the shortest is below the longest Duration; 0 when empty
}

// Record adds a duration. The bucket comes last: who sees it there sees it in the
// sum, in Min and in Max.
func (h *Histogram) Record(d time.Duration) {
	d = min(max(d, 0), math.MaxInt64-1)
	raise(&h.max, int64(d))
	raise(&h.low, math.MaxInt64-int64(d))
	if h.sum.Add(uint64(d)) < uint64(d) {
		h.carry.Add(1)
	}
	h.buckets[index(uint64(d))].Add(1)
}

// raise sets a to v if that is more.
func raise(a *atomic.Int64, v int64) {
	for {
		old := a.Load()
		if v <= old || a.CompareAndSwap(old, v) {
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
		return numBuckets - 1
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

// Snapshot returns the distribution as it is now. Calls of Record meanwhile are in
// none, some or all of its fields.
func (h *Histogram) Snapshot() Snapshot {
	if h.low.Load() == 0 {
		return Snapshot{}
	}
	s := Snapshot{counts: make([]uint64, numBuckets)}
	for i := range h.buckets {
		s.counts[i] = h.buckets[i].Load()
		s.Count += s.counts[i]
	}
	if s.Count == 0 {
		return Snapshot{}
	}
	s.carry, s.low = h.carry.Load(), h.sum.Load()
	s.Sum = clamp(s.carry, s.low)
	s.Min = time.Duration(math.MaxInt64 - h.low.Load())
	s.Max = time.Duration(h.max.Load())
	return s
}

// clamp is a sum of 128 bits as far as a Duration goes.
func clamp(carry, low uint64) time.Duration {
	if carry > 0 || low > math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(low)
}
