// Package backoff computes how long to wait between attempts.
//
// A [Policy] is a plain value with one method and no state: the caller counts its
// failures, and the count is all that a delay depends on, besides chance.
//
//	policy := backoff.Policy{Base: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 1.6, Jitter: 0.2}
//	for n := 0; ; n++ {
//		if err := connect(ctx); err == nil {
//			return nil
//		}
//		select {
//		case <-time.After(policy.Delay(n)):
//		case <-ctx.Done():
//			return context.Cause(ctx)
//		}
//	}
//
// # Known schedules
//
// gRPC's (doc/connection-backoff.md) is
//
//	Policy{Base: time.Second, Max: 2 * time.Minute, Multiplier: 1.6, Jitter: 0.2}
//
// but for its first delay, which grpc-go does not spread; here it is, for it is the
// first delay that all clients of a server that went away share.
//
// Full jitter, uniform between 0 and min(cap, b·2ⁿ), the schedule with the least work
// in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), is a spread of
// everything around half of it:
//
//	Policy{Base: b / 2, Max: cap / 2, Multiplier: 2, Jitter: 1}
//
// Equal jitter, between half of it and all, is
//
//	Policy{Base: b * 3 / 4, Max: cap * 3 / 4, Multiplier: 2, Jitter: 1.0 / 3}
//
// A fixed interval is Policy{Base: d}.
//
// # Limits
//
// Jitter is applied after the cap, as gRPC does, or clients that have reached it
// would all wait the same: a delay can be Max·(1+Jitter). Delays know nothing of
// contexts and budgets, which may well end the attempts sooner.
package backoff

import (
	"math"
	"math/rand/v2"
	"time"
)

// A Policy is a schedule of delays: Base·Multiplierⁿ, at most Max, each multiplied by
// a random number between 1−Jitter and 1+Jitter. The zero Policy never waits. A
// Policy is not changed by use, so any number of goroutines may share one.
type Policy struct {
	Base, Max  time.Duration // Max is the cap before jitter; 0 and less mean none
	Multiplier float64       // below 1 counts as 1: delays do not shrink
	Jitter     float64       // share of the delay, from 0 to 1; what is outside counts as its end
}

// Delay returns the delay that follows failure n, counted from 0. It is never
// negative, and however large n is it stays within the cap, or without one within
// what a Duration can hold.
func (p Policy) Delay(n int) time.Duration {
	d := p.uncapped(n)
	if p.Max > 0 {
		d = min(d, float64(p.Max))
	}
	d *= 1 + share(p.Jitter)*(2*rand.Float64()-1)
	if d >= math.MaxInt64 { // a float64 of that size does not convert
		return math.MaxInt64
	}
	return time.Duration(d)
}

// uncapped is +Inf where the power overflows, never NaN: 0·Inf is ruled out first.
func (p Policy) uncapped(n int) float64 {
	if p.Base <= 0 {
		return 0
	}
	if n <= 0 || !(p.Multiplier > 1) {
		return float64(p.Base)
	}
	return float64(p.Base) * math.Pow(p.Multiplier, float64(n))
}

// share clamps to [0, 1]. NaN, which min and max would let through, is no jitter.
func share(f float64) float64 {
	if !(f > 0) {
		return 0
	}
	return min(f, 1)
}
