package hist

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"
)

func TestBucketsMeetWithoutGap(t *testing.T) {
	for i := range numBuckets - 1 {
		low, next := bounds(i)
		if index(low) != i || index(next-1) != i || index(next) != i+1 {
			t.Fatalf("bucket %d [%d, %d) does not hold its bounds: %d %d %d", i, low, next, index(low), index(next-1), index(next))
		}
	}
}

func TestHistogramIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Histogram{}); size > 10<<10 {
		t.Errorf("a Histogram has %d bytes, want at most 10 KiB", size)
	}
}

// Shapes from nanoseconds to an hour: every quantile is within 1.6 % of the one a
// sorted list gives.
func TestQuantileErrorIsBounded(t *testing.T) {
	shapes := map[string]func(r *rand.Rand) float64{
		"exponential":   func(r *rand.Rand) float64 { return r.ExpFloat64() * 1e6 },
		"uniform":       func(r *rand.Rand) float64 { return r.Float64() * 1e9 },
		"log-uniform":   func(r *rand.Rand) float64 { return math.Pow(2, r.Float64()*41.9) },
		"bimodal":       func(r *rand.Rand) float64 { return 1e5 * (1 + 1e4*float64(r.IntN(2))) },
		"small numbers": func(r *rand.Rand) float64 { return float64(r.IntN(200)) },
	}
	for name, draw := range shapes {
		for seed := range uint64(5) {
			r := rand.New(rand.NewPCG(seed, 0))
			h, all := new(Histogram), make([]time.Duration, 1+r.IntN(4000))
			for i := range all {
				all[i] = time.Duration(draw(r))
				h.Record(all[i])
			}
			slices.Sort(all)
			checkQuantiles(t, fmt.Sprint(name, " seed ", seed), h.Snapshot(), all)
		}
	}
}

func checkQuantiles(t *testing.T, name string, s Snapshot, sorted []time.Duration) {
	t.Helper()
	for _, q := range []float64{0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1} {
		want := sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
		got := s.Quantile(q)
		if diff := math.Abs(float64(got - want)); diff > float64(want)/64 {
			t.Errorf("%s: quantile %v = %d, want %d ±1.6 %%", name, q, got, want)
		}
	}
	last := len(sorted) - 1
	if s.Min != sorted[0] || s.Max != sorted[last] || s.Quantile(0) != s.Min || s.Quantile(1) != s.Max {
		t.Errorf("%s: from %d to %d, want %d to %d", name, s.Min, s.Max, sorted[0], sorted[last])
	}
}

func TestMergeIsRecordingTogether(t *testing.T) {
	var a, b, both Histogram
	for i := range 1000 {
		d := time.Duration(i*i) * time.Microsecond
		both.Record(d)
		if i%3 == 0 {
			a.Record(d)
		} else {
			b.Record(d)
		}
	}
	got, want := a.Snapshot().Merge(b.Snapshot()), both.Snapshot()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("merged %+v, together %+v", got, want)
	}
	if got := (Snapshot{}).Merge(want); !reflect.DeepEqual(got, want) {
		t.Errorf("merging into an empty one gave %+v", got)
	}
	if got := want.Merge(Snapshot{}); !reflect.DeepEqual(got, want) {
		t.Errorf("merging an empty one gave %+v", got)
	}
}

func TestMergeLeavesItsPartsAlone(t *testing.T) {
	var a, b Histogram
	a.Record(time.Second)
	b.Record(time.Second)
	one, two := a.Snapshot(), b.Snapshot()
	one.Merge(two)
	if one.Count != 1 || one.counts[index(uint64(time.Second))] != 1 {
		t.Errorf("a part changed: %+v", one)
	}
}

func TestEmptyHistogram(t *testing.T) {
	var h Histogram
	s := h.Snapshot()
	if !reflect.DeepEqual(s, Snapshot{}) || s.Quantile(0.5) != 0 || s.Mean() != 0 {
		t.Errorf("empty: %+v, median %v, mean %v", s, s.Quantile(0.5), s.Mean())
	}
	if n := testing.AllocsPerRun(100, func() { h.Snapshot() }); n != 0 {
		t.Errorf("an empty snapshot costs %v allocations", n)
	}
}

func TestExtremesAreClamped(t *testing.T) {
	var h Histogram
	h.Record(-time.Second)
	h.Record(1000 * time.Hour)
	if s := h.Snapshot(); s.Count != 2 || s.Min != 0 || s.Max != 1000*time.Hour || s.Quantile(0.5) != 0 || s.Quantile(0.99) != s.Max {
		t.Errorf("%+v: median %v, p99 %v", s, s.Quantile(0.5), s.Quantile(0.99))
	}
	h.Record(math.MaxInt64)
	if s := h.Snapshot(); s.Count != 3 || s.Max < math.MaxInt64-1 {
		t.Errorf("the longest Duration: %+v", s)
	}
	var zero Histogram
	zero.Record(0)
	if s := zero.Snapshot(); s.Count != 1 || s.Quantile(0.5) != 0 {
		t.Errorf("one zero: %+v", s)
	}
}

func TestQuantileOfNonsenseIsAnEnd(t *testing.T) {
	var h Histogram
	h.Record(time.Second)
	h.Record(time.Minute)
	s := h.Snapshot()
	for q, want := range map[float64]time.Duration{-1: time.Second, 2: time.Minute, math.Inf(1): time.Minute} {
		if got := s.Quantile(q); got != want {
			t.Errorf("Quantile(%v) = %v, want %v", q, got, want)
		}
	}
	if got := s.Quantile(math.NaN()); got != time.Second {
		t.Errorf("Quantile(NaN) = %v", got)
	}
}

// A process that always has 1,000 operations in flight fills a Duration in 107 days.
func TestMeanOutlivesTheSum(t *testing.T) {
	var h Histogram
	const year = 365 * 24 * time.Hour
	for range 1000 {
		h.Record(100 * year)
	}
	s := h.Snapshot().Merge(h.Snapshot())
	if s.Sum != math.MaxInt64 || s.Mean() != 100*year {
		t.Errorf("sum %v, mean %v", s.Sum, s.Mean())
	}
	var got struct{ Sum float64 }
	text, _ := json.Marshal(s)
	json.Unmarshal(text, &got)
	if want := 2000 * 100 * year.Seconds(); math.Abs(got.Sum-want) > want*1e-9 {
		t.Errorf("sum in JSON %v, want %v", got.Sum, want)
	}
}

func TestConcurrentRecordsAreAllCounted(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 1000 {
				h.Record(time.Duration(i*1000 + j))
			}
		})
	}
	for range 100 { // snapshots meanwhile hold together
		if s := h.Snapshot(); s.Count > 0 && (s.Quantile(0.5) > s.Max || s.Quantile(0.5) < s.Min || s.Mean() > s.Max) {
			t.Errorf("%+v: median %v, mean %v", s, s.Quantile(0.5), s.Mean())
		}
	}
	wg.Wait()
	if s := h.Snapshot(); s.Count != 8000 || s.Min != 0 || s.Max != 7999 || s.Sum != 7999*8000/2 {
		t.Errorf("%d records from %d to %d, sum %d", s.Count, s.Min, s.Max, s.Sum)
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	var h Histogram
	if n := testing.AllocsPerRun(100, func() { h.Record(time.Millisecond) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	b.ReportAllocs()
	for b.Loop() {
		h.Record(12345 * time.Nanosecond)
	}
}

func BenchmarkRecordParallel(b *testing.B) {
	var h Histogram
	b.RunParallel(func(pb *testing.PB) {
		for d := time.Duration(1000); pb.Next(); d = (d * 7) & (1<<24 - 1) {
			h.Record(d)
		}
	})
}

func BenchmarkSnapshot(b *testing.B) {
	var h Histogram
	h.Record(time.Millisecond)
	b.ReportAllocs()
	for b.Loop() {
		h.Snapshot()
	}
}

func BenchmarkQuantile(b *testing.B) {
	var h Histogram
	for d := time.Microsecond; d < time.Second; d += 37 * time.Microsecond {
		h.Record(d)
	}
	s := h.Snapshot()
	for b.Loop() {
		s.Quantile(0.99)
	}
}

func Example() {
	var latency Histogram
	for i := range 100 {
		latency.Record(time.Duration(i+1) * time.Millisecond)
	}
	s := latency.Snapshot()
	fmt.Println(s.Count, s.Mean(), s.Max)
	fmt.Println(s.Quantile(0.5).Round(time.Millisecond))
	text, _ := json.Marshal(s)
	fmt.Println(string(text))
	// Output:
	// 100 50.5ms 100ms
	// 50ms
	// {"count":100,"sum":5.05,"p50":0.04980736,"p90":0.08912896,"p99":0.09961472,"p999":0.1,"max":0.1}
}
