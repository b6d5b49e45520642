package backoff

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestDelayGrowsToItsCap(t *testing.T) {
	p := Policy{Base: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 1.6, Jitter: 0.2}
	for n := range 100 {
		want := min(200*math.Pow(1.6, float64(n)), 30_000)
		for range 50 {
			got := float64(p.Delay(n)) / 1e6
			if got < want*0.8-1e-3 || got > want*1.2+1e-3 {
				t.Fatalf("delay %d = %.3f ms, want %.3f ms ±20 %%", n, got, want)
			}
		}
	}
}

func TestFirstDelayIsSpread(t *testing.T) {
	p := Policy{Base: time.Second, Jitter: 0.2}
	seen := map[time.Duration]bool{}
	for range 20 {
		seen[p.Delay(0)] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 first delays had only %d values", len(seen))
	}
}

func TestSpreadIsUniform(t *testing.T) {
	p := Policy{Base: time.Second, Jitter: 0.5}
	const draws, bins = 20_000, 10
	var hits [bins]int
	for range draws {
		hits[int((p.Delay(0)-500*time.Millisecond)*bins/time.Second)]++
	}
	for i, n := range hits { // 2,000 expected; 8 standard deviations are 340
		if n < draws/bins-340 || n > draws/bins+340 {
			t.Errorf("tenth %d of the range was drawn %d times of %d", i, n, draws)
		}
	}
}

func TestFixedInterval(t *testing.T) {
	for _, p := range []Policy{
		{Base: 500 * time.Millisecond},
		{Base: 500 * time.Millisecond, Max: 500 * time.Millisecond, Multiplier: 1},
		{Base: 500 * time.Millisecond, Multiplier: 0.5},
		{Base: time.Second, Max: 500 * time.Millisecond, Multiplier: 2},
	} {
		for n := range 20 {
			if got := p.Delay(n); got != 500*time.Millisecond {
				t.Fatalf("%+v: delay %d = %v", p, n, got)
			}
		}
	}
}

func TestFullJitter(t *testing.T) {
	const b, limit = 100 * time.Millisecond, time.Second
	p := Policy{Base: b / 2, Max: limit / 2, Multiplier: 2, Jitter: 1}
	for n := range 8 {
		top := min(b<<n, limit)
		var low, high bool
		for range 2000 {
			d := p.Delay(n)
			if d < 0 || d > top {
				t.Fatalf("delay %d = %v, want 0 to %v", n, d, top)
			}
			low = low || d < top/10
			high = high || d > top*9/10
		}
		if !low || !high {
			t.Errorf("delay %d does not reach both ends of 0 to %v", n, top)
		}
	}
}

func TestDelayNeverOverflows(t *testing.T) {
	huge := Policy{Base: time.Hour, Multiplier: 10, Jitter: 1}
	for _, p := range []Policy{huge, {}, {Base: -1}, {Base: -1, Multiplier: 2}, {Multiplier: 2}, {Base: 1, Multiplier: -3}} {
		for _, n := range []int{math.MinInt, -5, 0, 1, 64, 1 << 30, math.MaxInt} {
			if d := p.Delay(n); d < 0 {
				t.Errorf("%+v.Delay(%d) = %v", p, n, d)
			}
		}
	}
	if d := (Policy{Base: time.Hour, Multiplier: 10}).Delay(1000); d != math.MaxInt64 {
		t.Errorf("a delay without a cap ends at %v, want what a Duration holds", d)
	}
}

// Whatever a Policy holds, nonsense included, a delay is within its documented
// bounds.
func TestDelayStaysInBoundsForAnyPolicy(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	odd := []float64{math.NaN(), math.Inf(1), math.Inf(-1), 0, -1, 1e300}
	anyFloat := func(scale float64) float64 {
		if r.IntN(4) == 0 {
			return odd[r.IntN(len(odd))]
		}
		return r.Float64() * scale
	}
	for range 100_000 {
		p := Policy{
			Base: time.Duration(r.Int64()-math.MaxInt64/8) >> r.IntN(64), Max: time.Duration(r.Int64()) >> r.IntN(64),
			Multiplier: anyFloat(4), Jitter: anyFloat(1.5),
		}
		n := int(r.Int64() >> r.IntN(64))
		low, high := bounds(p, n)
		if d := float64(p.Delay(n)); d < low || d > high {
			t.Fatalf("%+v.Delay(%d) = %v, want %v to %v", p, n, d, low, high)
		}
	}
}

// bounds allows for the nanosecond that converting to a Duration cuts off.
func bounds(p Policy, n int) (low, high float64) {
	base, jitter := max(0, float64(p.Base)), 0.0
	if p.Jitter > 0 {
		jitter = min(1, p.Jitter)
	}
	if p.Multiplier > 1 && base > 0 {
		base *= math.Pow(p.Multiplier, float64(n))
	}
	if p.Max > 0 {
		base = min(base, float64(p.Max))
	}
	return min(base*(1-jitter)*(1-1e-12)-1, math.MaxInt64), min(base*(1+jitter)*(1+1e-12), math.MaxInt64)
}

func TestDelayAllocatesNothing(t *testing.T) {
	p := Policy{Base: time.Second, Max: time.Minute, Multiplier: 1.6, Jitter: 0.2}
	if n := testing.AllocsPerRun(100, func() { p.Delay(5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDelay(b *testing.B) {
	p := Policy{Base: time.Second, Max: time.Minute, Multiplier: 1.6, Jitter: 0.2}
	for b.Loop() {
		p.Delay(5)
	}
}

func ExamplePolicy_Delay() {
	p := Policy{Base: 100 * time.Millisecond, Max: time.Second, Multiplier: 2}
	for n := range 5 {
		fmt.Print(p.Delay(n), " ")
	}
	// Output: 100ms 200ms 400ms 800ms 1s
}
