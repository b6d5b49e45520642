package backoff

import (
	"fmt"
	"math"
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

func TestFixedInterval(t *testing.T) {
	p := Policy{Base: 500 * time.Millisecond, Max: 500 * time.Millisecond, Multiplier: 1}
	for n := range 20 {
		if got := p.Delay(n); got != 500*time.Millisecond {
			t.Fatalf("delay %d = %v", n, got)
		}
	}
}

func TestFullJitter(t *testing.T) {
	const b = 100 * time.Millisecond
	p := Policy{Base: b / 2, Max: time.Second, Multiplier: 2, Jitter: 1}
	for n := range 8 {
		top := min(b<<n, 2*time.Second)
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
	for _, p := range []Policy{{Base: time.Hour, Multiplier: 10, Jitter: 1}, {Base: -1}, {}, {Base: 1, Multiplier: -3}} {
		for _, n := range []int{-5, 0, 1, 64, 1 << 40, math.MaxInt} {
			if d := p.Delay(n); d < 0 {
				t.Errorf("%+v.Delay(%d) = %v", p, n, d)
			}
		}
	}
}

func ExamplePolicy_Delay() {
	p := Policy{Base: 100 * time.Millisecond, Max: time.Second, Multiplier: 2}
	for n := range 5 {
		fmt.Print(p.Delay(n), " ")
	}
	// Output: 100ms 200ms 400ms 800ms 1s
}
