package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// footprint is what a connection costs its proxy.
type footprint struct {
	Name  string  `json:"name"`
	Conns int     `json:"conns"`
	Bytes int     `json:"bytes"` // exchanged on each before
	Each  float64 `json:"user_bytes_per_conn"`
	Files float64 `json:"files_per_conn"`
	Errs  int     `json:"errors"`
	First string  `json:"first_error,omitempty"`
}

func (f footprint) String() string {
	text := fmt.Sprintf("%.2f KB, %.1f fds", f.Each/1000, f.Files)
	if f.Errs > 0 {
		text += fmt.Sprintf(", %d errors (%s)", f.Errs, f.First)
	}
	return text
}

// proxyIdle is the memory and the files of connections that were used once, a little
// and a lot, and are idle since.
func proxyIdle(quick bool) (figures []figure, raw any, err error) {
	var all []footprint
	sizes := []int{5000, 9000}
	if quick {
		sizes = sizes[:1]
	}
	for _, conns := range sizes {
		var beside [2][]string
		var ours [2]footprint
		for _, s := range []setting{oursPlain, haproxyPlain, nginx16} {
			got, err := idleOf(s, conns)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", s.name, err)
			}
			all = append(all, got[:]...)
			for i, f := range got {
				if s.of == "ours" {
					ours[i] = f
				} else {
					beside[i] = append(beside[i], s.of+" "+f.String())
				}
			}
		}
		for i, f := range ours {
			figures = append(figures, figure{
				name: fmt.Sprintf("proxy: user memory of an idle connection (of %d) after %s", conns, sizeName(f.Bytes)), ours: f.String(),
				peer: strings.Join(beside[i], "; "), bar: "≤ 1 KB, 2 fds", verdict: verdict(f.Each <= 1000 && f.Files <= 2.05 && f.Errs == 0)})
		}
	}
	return figures, all, nil
}

func sizeName(n int) string {
	if n >= 1024 {
		return fmt.Sprintf("%d KB", n/1024)
	}
	return fmt.Sprintf("%d B", n)
}

func idleOf(s setting, conns int) (got [2]footprint, err error) {
	b, err := setUp(hosting{placing: pinned, maxConns: 9400}, "", s)
	if err != nil {
		return got, err
	}
	defer b.end()
	p := b.proxies[0]
	// What the first connections bring with them is not theirs.
	if _, err := b.load.do(task{Kind: "echo", Addr: p.addr, Conns: 64, Size: 100, For: 100 * time.Millisecond}); err != nil {
		return got, err
	}
	time.Sleep(200 * time.Millisecond)
	pids := p.pids()
	memory, files := anonymous(pids), openFiles(pids)
	for i, t := range []task{{Kind: "hold", Addr: p.addr, Conns: conns, Bytes: 1}, {Kind: "use", Bytes: 64 << 10}} {
		r, err := b.load.do(t)
		if err != nil {
			return got, err
		}
		time.Sleep(500 * time.Millisecond)
		got[i] = footprint{s.name, conns, t.Bytes, float64(anonymous(pids)-memory) / float64(conns), float64(openFiles(pids)-files) / float64(conns), r.Errors, r.First}
	}
	return got, nil
}

// stalled is a proxy with many clients that have stopped reading a flood.
type stalled struct {
	footprint
	Quiet result `json:"quiet"` // good clients without them
	Busy  result `json:"busy"`  // and beside them
}

const (
	stalledConns = 9000
	goodConns    = 100
	goodRate     = 5000
)

func proxyStalled(quick bool) ([]figure, any, error) {
	defer narrowBuffers()()
	var all []stalled
	for _, s := range []setting{oursPlain, haproxyPlain, nginx16} {
		got, err := stalledOf(s, quick)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, got)
	}
	ours := all[0]
	text := func(s stalled) string {
		return fmt.Sprintf("%s, %.0f answers/s, p99 %v, quiet %v", s.footprint, s.Busy.rate(), s.Busy.P99.Round(time.Microsecond), s.Quiet.P99.Round(time.Microsecond))
	}
	return []figure{{
		name: fmt.Sprintf("proxy: %d stalled readers, beside %d good clients", stalledConns, goodConns), ours: text(ours),
		peer: "HAProxy " + text(all[1]) + "; nginx " + text(all[2]), bar: "≤ 48 KB each, p99 ≤ 2× quiet, 0 errors",
		verdict: verdict(ours.Each <= 48_000 && ours.Busy.P99 <= 2*ours.Quiet.P99 && ours.Errs+ours.Busy.Errors == 0 && ours.Busy.Units > 0),
	}}, all, nil
}

// narrowBuffers bounds what the kernel takes for so many floods: its memory is everybody's.
func narrowBuffers() (undo func()) {
	undo = func() {}
	for _, name := range []string{"/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_wmem"} {
		before, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		os.WriteFile(name, []byte("4096 16384 16384"), 0)
		next := undo
		undo = func() { os.WriteFile(name, before, 0); next() }
	}
	return undo
}

// settled returns when processes do next to nothing: all buffers are full.
func settled(pids []int) error {
	const look = 250 * time.Millisecond
	quiet := 0
	for range 120 {
		before := cpuOfAll(pids)
		time.Sleep(look)
		if cpuOfAll(pids)-before >= look/50 {
			quiet = 0
		} else if quiet++; quiet == 4 {
			return nil
		}
	}
	return errors.New("it is busy, though nobody reads")
}

func stalledOf(s setting, quick bool) (got stalled, err error) {
	b, err := setUp(hosting{placing: pinned, maxConns: 9400}, "", s)
	if err != nil {
		return got, err
	}
	defer b.end()
	p := b.proxies[0]
	holder, _, err := startAsker("proxy-load", b.back)
	if err != nil {
		return got, err
	}
	defer holder.stop()
	good := task{Kind: "echo", Addr: p.addr, Conns: goodConns, Size: 100, Rate: goodRate, Warm: 200 * time.Millisecond, For: 2 * time.Second}
	if quick {
		good.For /= 4
	}
	if got.Quiet, err = b.load.do(good); err != nil {
		return got, err
	}
	pids := p.pids()
	memory, files := anonymous(pids), openFiles(pids)
	r, err := holder.do(task{Kind: "stall", Addr: p.addr, Conns: stalledConns})
	if err != nil {
		return got, err
	}
	if err := settled(pids); err != nil {
		return got, err
	}
	if got.Busy, err = b.load.do(good); err != nil {
		return got, err
	}
	got.footprint = footprint{s.name, stalledConns, 0, float64(anonymous(pids)-memory) / stalledConns, float64(openFiles(pids)-files) / stalledConns, r.Errors, r.First}
	return got, nil
}
