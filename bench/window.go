package main

import (
	"errors"
	"time"

	"github.com/holdfast-net/holdfast/internal/hist"
)

// window tells when the measured time begins and ends.
type window struct {
	task
	*result
	hist        hist.Histogram
	begin, end  time.Time
	in, started bool
	stop        bool // nothing more is sent
	units       float64
}

func newWindow(t task, r *result) *window {
	begin := time.Now().Add(t.Warm)
	return &window{task: t, result: r, begin: begin, end: begin.Add(t.For)}
}

// over is asked in every turn.
func (w *window) over(now time.Time) bool {
	if !w.started && now.After(w.begin) {
		w.started, w.in, w.begin = true, true, now
		w.CPU = -cpuOfAll(w.Pids)
	}
	if w.in && now.After(w.end) {
		w.in = false
		w.CPU += cpuOfAll(w.Pids)
		w.Wall, w.Units = now.Sub(w.begin), w.units
		w.take(&w.hist)
	}
	return w.started && !w.in
}

func (w *window) left(now time.Time) time.Duration {
	if !w.started {
		return w.begin.Sub(now)
	}
	return w.end.Sub(now)
}

func (w *window) count(units float64, took time.Duration) {
	if w.in {
		w.units += units
		if took > 0 {
			w.hist.Record(took)
		}
	}
}

// run reads what is ready until the window is over, and what is outstanding for 2 s more.
// With a Rate it calls send whenever a message is due.
func (w *window) run(now time.Time, p *poller, read func(i int), send func(nth int, due time.Time), outstanding func() int) {
	next, nth, interval := now, 0, time.Duration(0)
	if w.Rate > 0 {
		interval = time.Duration(1e9 / w.Rate)
	}
	for !w.over(now) {
		wait := w.left(now)
		if interval > 0 {
			for ; !now.Before(next); next = next.Add(interval) {
				send(nth, next)
				nth++
			}
			wait = min(wait, next.Sub(now))
		}
		for _, ev := range p.wait(wait) {
			read(int(ev.Fd))
		}
		now = time.Now()
	}
	w.stop = true
	for limit := now.Add(2 * time.Second); outstanding() > 0 && now.Before(limit); now = time.Now() {
		for _, ev := range p.wait(100 * time.Millisecond) {
			read(int(ev.Fd))
		}
	}
	for range outstanding() {
		w.fail(errors.New("an answer did not come within 2 s"))
	}
}
