package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// movable is a proxy that can be restarted.
type movable struct {
	name    string
	addr    string
	root    int // the process that stays
	again   func() error
	patient time.Duration // how long old processes are waited for
	stop    func()
}

// startMovable starts ours under restart.Run, and the peers as they are restarted.
func startMovable(s setting, h hosting) (m *movable, err error) {
	if s.of != "ours" {
		p, err := s.start(h)
		if err != nil {
			return nil, err
		}
		sig := syscall.SIGUSR2
		if s.of == "nginx" {
			sig = syscall.SIGHUP
		}
		return &movable{name: s.of, addr: p.addr, root: p.cmd.Process.Pid, stop: p.stop, patient: 2 * time.Second,
			again: func() error { return p.cmd.Process.Signal(sig) }}, nil
	}
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	admin, addr := filepath.Join(dir, "admin.sock"), freeAddr()
	service, err := startServiceAs("proxy-restart", h.front, admin, addr, "BACKEND="+h.backend, fmt.Sprintf("GOMAXPROCS=%d", max(h.workers, 1)), "PACKETS="+map[bool]string{true: "1"}[h.packets])
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &movable{name: "ours", addr: addr, root: service.cmd.Process.Pid, patient: 5 * time.Second,
		stop: func() { service.stop(); os.RemoveAll(dir) },
		again: func() error {
			r, err := restart.Restart(context.Background(), admin)
			if err == nil && !r.OK {
				err = errors.New(r.Err)
			}
			return err
		}}, nil
}

// succession is one restart: how long the call took, and how long after it the old
// processes were gone; −1 is not yet.
type succession struct {
	Took time.Duration `json:"took"`
	Gone time.Duration `json:"gone"`
}

func (m *movable) restart() (s succession, err error) {
	old := descendants(m.root)[1:]
	begin := time.Now()
	if err := m.again(); err != nil {
		return s, err
	}
	s.Took, s.Gone = time.Since(begin), -1
	for committed := time.Now(); time.Since(committed) < m.patient; time.Sleep(2 * time.Millisecond) {
		now := descendants(m.root)[1:]
		if !slices.ContainsFunc(old, func(pid int) bool { return slices.Contains(now, pid) }) {
			s.Gone = time.Since(committed)
			return s, nil
		}
	}
	return s, nil
}

// moved is what clients saw of restarts.
type moved struct {
	Name     string          `json:"name"`
	Restarts []succession    `json:"restarts"`
	Held     result          `json:"held"`
	Fresh    result          `json:"fresh"`
	Pauses   []time.Duration `json:"pauses,omitempty"`
}

func (m moved) gone() string {
	worst := time.Duration(0)
	for _, s := range m.Restarts {
		if s.Gone < 0 {
			return "the old process stays while connections are held"
		}
		worst = max(worst, s.Gone)
	}
	return "old process gone after " + worst.Round(time.Millisecond).String()
}

func (m moved) leaves(within time.Duration) bool {
	return !slices.ContainsFunc(m.Restarts, func(s succession) bool { return s.Gone < 0 || s.Gone > within })
}

// proxyPause is how long a busy connection stands still while it moves to the next
// generation: the longest that each of 100 waited for an answer in a second with one
// restart, over several of them.
func proxyPause(quick bool) ([]figure, any, error) {
	rounds := 9
	if quick {
		rounds = 3
	}
	var all []moved
	for _, s := range []setting{oursPlain, haproxyPlain, nginx16} {
		got, err := pausesOf(s, rounds)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, got)
	}
	text := func(m moved) string {
		return fmt.Sprintf("p99 %v, %d errors, %s", percentile(m.Pauses, 0.99).Round(100*time.Microsecond), m.Held.Errors, m.gone())
	}
	ours := all[0]
	f := figure{name: "proxy: longest pause of a busy connection in a restart, p99", ours: text(ours),
		peer: "HAProxy " + text(all[1]) + "; nginx " + text(all[2]), bar: "≤ 50 ms, 0 errors, gone ≤ 1 s",
		verdict: verdict(ours.Held.Errors == 0 && percentile(ours.Pauses, 0.99) <= 50*time.Millisecond && ours.leaves(time.Second))}
	if ours.Held.Errors > 0 {
		f.verdict += ": " + ours.Held.First
	}
	return []figure{f}, all, nil
}

func pausesOf(s setting, rounds int) (got moved, err error) {
	err = withMovable(s, hosting{placing: unpinned}, func(b *bench, m *movable) error {
		got.Name = m.name
		for range rounds {
			done := make(chan error, 1)
			go func() {
				r, err := b.load.do(task{Kind: "echo", Addr: m.addr, Conns: 100, Size: 100, Rate: 5000, Warm: 100 * time.Millisecond, For: time.Second})
				got.Pauses = append(got.Pauses, r.Each...)
				got.Held.Errors += r.Errors
				got.Held.First = cmp.Or(got.Held.First, r.First)
				done <- err
			}()
			time.Sleep(300 * time.Millisecond)
			one, err := m.restart()
			if err = errors.Join(err, <-done); err != nil {
				return err
			}
			got.Restarts = append(got.Restarts, one)
		}
		return nil
	})
	return got, err
}

// withMovable runs a backend, clients and a proxy that can be restarted.
func withMovable(s setting, h hosting, do func(*bench, *movable) error) error {
	b, err := setUp(h, "")
	if err != nil {
		return err
	}
	defer b.end()
	m, err := startMovable(s, b.hosting)
	if err != nil {
		return err
	}
	defer m.stop()
	return do(b, m)
}

// Restarts are this far apart, or as far as the old process needs.
const apart = 600 * time.Millisecond

// howLong is how long clients are busy while it is restarted so many times.
func howLong(restarts int) time.Duration { return time.Duration(restarts)*apart + 500*time.Millisecond }

// restartOften begins when the clients have.
func (m *movable) restartOften(restarts int) (all []succession, err error) {
	time.Sleep(300 * time.Millisecond)
	m.patient = 500 * time.Millisecond
	for range restarts {
		begin := time.Now()
		one, err := m.restart()
		if err != nil {
			return all, err
		}
		all = append(all, one)
		time.Sleep(max(apart-time.Since(begin), 0))
	}
	return all, nil
}

const heldConns = 500

// proxyRestarts restarts ten times under held connections, in use, and new ones.
func proxyRestarts(quick bool) ([]figure, any, error) {
	restarts := 10
	if quick {
		restarts = 3
	}
	var all []moved
	for _, s := range []setting{oursPlain, haproxyPlain, nginx16} {
		got, err := restartsOf(s, restarts)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, got)
	}
	text := func(m moved) string {
		return fmt.Sprintf("%d errors in %.0f connections, %d in %d held, p99.9 %v, %s", m.Fresh.Errors, m.Fresh.Units, m.Held.Errors, heldConns,
			max(m.Fresh.P999, m.Held.P999).Round(100*time.Microsecond), m.gone())
	}
	ours := all[0]
	f := figure{name: fmt.Sprintf("proxy: %d restarts under load, %d connections held", restarts, heldConns), ours: text(ours),
		peer: "HAProxy " + text(all[1]) + "; nginx " + text(all[2]), bar: "0 errors, gone ≤ 1 s",
		verdict: verdict(ours.Held.Errors+ours.Fresh.Errors == 0 && ours.leaves(time.Second))}
	if first := cmp.Or(ours.Held.First, ours.Fresh.First); first != "" {
		f.verdict = strings.TrimSpace(f.verdict + ": " + first)
	}
	return []figure{f}, all, nil
}

func restartsOf(s setting, restarts int) (got moved, err error) {
	err = withMovable(s, hosting{placing: unpinned}, func(b *bench, m *movable) error {
		fresh, _, err := startAsker("proxy-load", -1)
		if err != nil {
			return err
		}
		defer fresh.stop()
		got.Name = m.name
		done := make(chan error, 2)
		go func() {
			var err error
			got.Held, err = b.load.do(task{Kind: "echo", Addr: m.addr, Conns: heldConns, Size: 100, Rate: 5000, Warm: 100 * time.Millisecond, For: howLong(restarts)})
			done <- err
		}()
		go func() {
			var err error
			got.Fresh, err = fresh.do(task{Kind: "churn", Addr: m.addr, Conns: 8, Size: 100, Rate: 2000, Warm: 100 * time.Millisecond, For: howLong(restarts)})
			done <- err
		}()
		if got.Restarts, err = m.restartOften(restarts); err != nil {
			return err
		}
		return errors.Join(<-done, <-done)
	})
	return got, err
}

const udpSessions = 1000

// proxyUDPRestarts restarts ten times while sessions of datagrams are in use. One that
// goes on from another port is another one to its backend.
func proxyUDPRestarts(quick bool) ([]figure, any, error) {
	restarts := 10
	if quick {
		restarts = 3
	}
	var all []moved
	for _, s := range []setting{oursPlain, nginx16} {
		got, err := udpRestartsOf(s, restarts)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, got)
	}
	text := func(m moved) string {
		return fmt.Sprintf("%d of %.0f datagrams lost, sessions began anew %d times, longest wait %v, %s", m.Held.Errors, m.Held.Units, m.Held.Anew,
			m.Held.Max.Round(100*time.Microsecond), m.gone())
	}
	ours := all[0]
	f := figure{name: fmt.Sprintf("proxy: %d restarts, %s UDP sessions in use", restarts, thousands(udpSessions)), ours: text(ours),
		peer: "nginx " + text(all[1]), bar: "0 lost, none anew, gone ≤ 1 s",
		verdict: verdict(ours.Held.Errors == 0 && ours.Held.Anew == 0 && ours.leaves(time.Second))}
	return []figure{f}, all, nil
}

func udpRestartsOf(s setting, restarts int) (got moved, err error) {
	err = withMovable(s, hosting{placing: unpinned, packets: true}, func(b *bench, m *movable) error {
		got.Name = m.name
		done := make(chan error, 1)
		go func() {
			var err error
			got.Held, err = b.load.do(task{Kind: "udp", Addr: m.addr, Conns: udpSessions, Size: 100, Rate: 20_000, Warm: 100 * time.Millisecond, For: howLong(restarts)})
			done <- err
		}()
		if got.Restarts, err = m.restartOften(restarts); err != nil {
			return err
		}
		return <-done
	})
	return got, err
}
