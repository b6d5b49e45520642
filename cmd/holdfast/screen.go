package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/hist"
)

const (
	redraw = 200 * time.Millisecond
	second = int(time.Second / redraw) // in redraws
	sparks = 30                        // redraws that a sparkline shows
)

// screen redraws the demo's state in place while the demo runs. Without a
// terminal it does nothing.
type screen struct {
	d        *demo
	canvas   canvas
	rows     []row
	stopping chan struct{}
	wg       sync.WaitGroup
}

// row is the recent past of one server, a sample each redraw.
type row struct {
	addr    string
	g       *gauge
	before  uint64 // replies at the last sample
	replies [sparks]int
	latency [second]holdfast.Histogram
}

func (d *demo) startScreen() *screen {
	s := &screen{d: d, canvas: canvas{out: d.err}, stopping: make(chan struct{})}
	if !canMove(d.err) {
		return s
	}
	for _, m := range d.fleet.servers {
		s.rows = append(s.rows, row{addr: m.via(), g: d.load.servers[m.via()]})
	}
	s.wg.Go(s.run)
	return s
}

// stop draws the last state and leaves it on the terminal.
func (s *screen) stop() {
	close(s.stopping)
	s.wg.Wait()
}

func (s *screen) run() {
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		for i := range s.rows {
			s.rows[i].sample()
		}
		s.draw()
		select {
		case <-tick.C:
		case <-s.stopping:
			s.draw()
			return
		}
	}
}

// sample moves the past by one and takes the present in.
func (r *row) sample() {
	copy(r.replies[:], r.replies[1:])
	copy(r.latency[:], r.latency[1:])
	now := r.g.replies.Load()
	r.replies[sparks-1] = int(now - r.before)
	r.latency[second-1] = r.g.latency.Swap(&hist.Histogram{}).Snapshot()
	r.before = now
}

func (s *screen) draw() { s.canvas.draw(s.lines) }

// lines is the screen's content, at most height lines of it.
func (s *screen) lines(width, height int) []string {
	d, stats := s.d, s.d.load.cluster.Stats()
	ph := d.story[d.current.Load()]
	errs, wrong := d.load.bad()
	lines := []string{s.title(ph), "", d.paint.text(dim, "  "+pad("server", 20)+pad("state", 18)+padLeft("req/s", 7)+padLeft("p99", 11))}
	for i := range s.rows {
		lines = append(lines, s.server(i, ph, stats)+"  "+s.rows[i].sparkline(width-62))
	}
	lines = append(lines, "", totals(d.paint, stats.Operations, stats.Hidden, errs, wrong),
		heldTotals(d.paint, heldName(d.udp), d.middle.restarts.Load(), d.middle.exchanges.Load(), d.middle.lost.Load()), "")
	lines = append(lines, d.journal.tail(min(8, max(0, height-len(lines))))...)
	return lines[:min(len(lines), height)]
}

func (s *screen) title(ph phase) string {
	d := s.d
	at, end := time.Since(d.begun), d.story[len(d.story)-1].end
	return d.paint.text(bold, "Holdfast demo") + fmt.Sprintf("  %d callers, a proxy, three servers   %.1fs of %v  ", workers, min(at, end).Seconds(), end) +
		d.paint.text(faultColor(ph.fault), ph.name())
}

func (s *screen) server(i int, ph phase, stats holdfast.Stats) string {
	r, on := &s.rows[i], s.d.paint
	state, color := holdfast.StateIdle, green
	for _, n := range stats.Nodes {
		if n.Node == r.addr {
			state = n.State
		}
	}
	if state == holdfast.StateBackoff || state == holdfast.StateEjected {
		color = red
	}
	suffering := ""
	if ph.server == i && ph.fault != healthy {
		suffering = string(ph.fault)
	}
	rate, slowest := r.lastSecond()
	return "  " + pad(serverNames[i]+"  "+r.addr, 20) + on.text(color, pad(state.String(), 9)) + on.text(yellow, pad(suffering, 9)) +
		padLeft(count(rate), 7) + padLeft(millis(slowest), 11)
}

// lastSecond returns how many replies there were and their 99th percentile.
func (r *row) lastSecond() (replies int, p99 time.Duration) {
	var all holdfast.Histogram
	for i, h := range r.latency {
		all = all.Merge(h)
		replies += r.replies[sparks-second+i]
	}
	return replies, all.Quantile(.99)
}

// sparkline draws the last samples, at most width of them, so that half of all
// requests fill its height: what a server gets while another one is out.
func (r *row) sparkline(width int) string {
	const bars = "▁▂▃▄▅▆▇█"
	full := rate / second / 2
	var b strings.Builder
	for _, n := range r.replies[sparks-min(max(width, 0), sparks):] {
		b.WriteRune([]rune(bars)[min(7, n*8/full)])
	}
	return b.String()
}
