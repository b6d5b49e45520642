package hist

import (
	"encoding/json"
	"math"
	"math/bits"
	"time"
)

// A Snapshot is a distribution at one moment, a plain value: copies are independent
// and may be read concurrently. The zero Snapshot is empty.
type Snapshot struct {
	Count    uint64
	Sum      time.Duration // of all, 292 years at most
	Min, Max time.Duration // 0 when empty

	carry, low uint64   // Sum in 128 bits
	counts     []uint64 // per bucket; nil when empty; not written once made
}

// Mean returns the average, 0 when empty.
func (s Snapshot) Mean() time.Duration {
	if s.carry >= s.Count { // empty: no sum of Count durations carries that often
		return 0
	}
	mean, _ := bits.Div64(s.carry, s.low, s.Count)
	return min(time.Duration(mean), s.Max) // Sum may be ahead of Count
}

// Quantile returns the duration that a share q of all records does not pass: 0.5 is
// the median, 0 the shortest, 1 the longest. It is within 1.6 % of the truth and
// between Min and Max, which 0 and 1 give exactly; 0 when empty.
func (s Snapshot) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(s.Count)))
	switch {
	case !(q > 0):
		return s.Min
	case q >= 1 || rank >= s.Count:
		return s.Max
	}
	seen := uint64(0)
	for i, n := range s.counts {
		if seen += n; seen >= rank {
			return s.middle(i)
		}
	}
	return s.Max
}

// middle is what a bucket is reported as. The last one has no end of its own.
func (s Snapshot) middle(i int) time.Duration {
	if i == numBuckets-1 {
		return s.Max
	}
	low, next := bounds(i)
	return min(max(time.Duration(low+(next-low)/2), s.Min), s.Max)
}

// Merge returns the distribution of both together.
func (s Snapshot) Merge(other Snapshot) Snapshot {
	if other.Count == 0 {
		return s
	}
	if s.Count == 0 {
		return other
	}
	merged := Snapshot{
		Count:  s.Count + other.Count,
		Min:    min(s.Min, other.Min),
		Max:    max(s.Max, other.Max),
		counts: make([]uint64, numBuckets),
	}
	var over uint64
	merged.low, over = bits.Add64(s.low, other.low, 0)
	merged.carry = s.carry + other.carry + over
	merged.Sum = clamp(merged.carry, merged.low)
	for i := range merged.counts {
		merged.counts[i] = s.counts[i] + other.counts[i]
	}
	return merged
}

// MarshalJSON gives count and, in seconds, sum, p50, p90, p99, p999 and max.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Count uint64  `json:"count"`
		Sum   float64 `json:"sum"`
		P50   float64 `json:"p50"`
		P90   float64 `json:"p90"`
		P99   float64 `json:"p99"`
		P999  float64 `json:"p999"`
		Max   float64 `json:"max"`
	}{
		s.Count, (float64(s.carry)*(1<<64) + float64(s.low)) / 1e9, s.Quantile(0.5).Seconds(), s.Quantile(0.9).Seconds(),
		s.Quantile(0.99).Seconds(), s.Quantile(0.999).Seconds(), s.Max.Seconds(),
	})
}
