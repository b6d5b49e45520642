// Package backoff computes the delays between attempts.
//
// gRPC's schedule is Policy{Base: time.Second, Multiplier: 1.6, Jitter: 0.2, Max:
// 2 * time.Minute}. Full jitter over b, uniform between 0 and b·2ⁿ, is Policy{Base:
// b / 2, Multiplier: 2, Jitter: 1}. A fixed interval is Policy{Base: d, Max: d,
// Multiplier: 1}.
package backoff

import (
	"math"
	"math/rand/v2"
	"time"
)

// Policy is a schedule of delays: Base·Multiplierⁿ up to Max, each spread evenly by
// ±Jitter of itself, the first one too. It is a plain value.
type Policy struct {
	Base, Max  time.Duration // Max bounds the delay before jitter; 0 means no bound
	Multiplier float64       // below 1 counts as 1
	Jitter     float64       // share of the delay, 0 to 1
}

// Delay returns the delay before attempt n, where 0 is the first that waits. It is
// never negative, however large n is.
func (p Policy) Delay(n int) time.Duration {
	d := float64(p.Base) * math.Pow(max(1, p.Multiplier), float64(max(0, n)))
	if p.Max > 0 {
		d = min(d, float64(p.Max))
	}
	d *= 1 + p.Jitter*(2*rand.Float64()-1)
	return time.Duration(min(max(d, 0), math.MaxInt64/2))
}
