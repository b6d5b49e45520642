package hist

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBucketsMeetWithoutGap(t *testing.T) {
	for i := range numBucket - 1 {
		low, next := bounds(i)
		if index(low) != i || index(next-1) != i || index(next) != i+1 {
			t.Fatalf("bucket %d [%d, %d) does not hold its bounds: %d %d %d", i, low, next, index(low), index(next-1), index(next))
		}
	}
}

func TestQuantileErrorIsBounded(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		var h Histogram
		var all []time.Duration
		for range 2000 {
			d := time.Duration(r.ExpFloat64() * float64(time.Millisecond) * float64(1+seed*seed))
			h.Record(d)
			all = append(all, d)
		}
		slices.Sort(all)
		s := h.Snapshot()
		for _, q := range []float64{0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1} {
			want := all[max(0, int(q*float64(len(all))+0.9999)-1)]
			got := s.Quantile(q)
			if got < want || float64(got) > float64(want)*1.032+1 {
				t.Errorf("seed %d: quantile %v = %v, want %v to 3.2 %% above", seed, q, got, want)
			}
		}
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
	if got.Count != want.Count || got.Sum != want.Sum || got.Max != want.Max || !slices.Equal(got.counts, want.counts) {
		t.Errorf("merged %+v, together %+v", got, want)
	}
}

func TestEmptyAndExtremes(t *testing.T) {
	var h Histogram
	if s := h.Snapshot(); s.Quantile(0.5) != 0 || s.Mean() != 0 || s.counts != nil {
		t.Errorf("empty: %+v", s)
	}
	h.Record(-time.Second)
	h.Record(1000 * time.Hour)
	if s := h.Snapshot(); s.Count != 2 || s.Quantile(0) != 0 || s.Quantile(1) != 1000*time.Hour {
		t.Errorf("extremes: %v %v", s.Quantile(0), s.Quantile(1))
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
	wg.Wait()
	if s := h.Snapshot(); s.Count != 8000 || s.Max != 7999 {
		t.Errorf("%d records, max %v", s.Count, s.Max)
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
	for b.Loop() {
		h.Record(12345 * time.Nanosecond)
	}
}

func Example() {
	var h Histogram
	for i := range 100 {
		h.Record(time.Duration(i+1) * time.Second)
	}
	s := h.Snapshot()
	text, _ := json.Marshal(s)
	fmt.Println(s.Count, s.Mean(), s.Quantile(1))
	fmt.Println(string(text[:12]))
	// Output:
	// 100 50.5s 1m40s
	// {"count":100
}
