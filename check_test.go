package holdfast_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// ping is a probe: a request and the reply that is expected.
func ping(_ context.Context, conn net.Conn) error { return exchange(conn, "ping") }

// answers replies to one line in its own way and to all others with the line.
func answers(to string, way func(net.Conn, string) bool) func(net.Conn, string) bool {
	return func(conn net.Conn, line string) bool {
		if strings.TrimSpace(line) == to {
			return way(conn, line)
		}
		return reply(conn, line)
	}
}

func silence(net.Conn, string) bool { return true }
func hangUp(net.Conn, string) bool  { return false }

func nonsense(conn net.Conn, line string) bool {
	_, err := io.WriteString(conn, strings.Repeat("!", len(line)))
	return err == nil
}

// of returns the events of the node at addr.
func of(addr string, events []holdfast.Event) []holdfast.Event {
	return slices.DeleteFunc(events, func(e holdfast.Event) bool { return e.Node == nil || e.Node.Addr() != addr })
}

// turned returns the first event in which a node went to a state, after some time.
func turned(t *testing.T, events []holdfast.Event, to holdfast.State, after time.Time) holdfast.Event {
	t.Helper()
	for _, e := range events {
		if e.Kind == holdfast.EventState && e.To == to && !e.Time.Before(after) {
			return e
		}
	}
	t.Fatalf("no event tells of %v: %v", to, events)
	return holdfast.Event{}
}

func TestProbeDecidesHealth(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.servers[1].does(answers("ping", nonsense))
		w.servers[2].does(answers("ping", silence))
		w.net.SetLink(clientIP, w.servers[0].ip(), simnet.Link{Latency: 5 * time.Millisecond})
		w.net.SetLink(w.servers[0].ip(), clientIP, simnet.Link{Latency: 5 * time.Millisecond})
		hello := func(_ context.Context, conn *holdfast.Conn) error { return exchange(conn, "hello") }

		// By connecting alone they are all well.
		c := w.cluster(holdfast.Config{Check: holdfast.Check{Interval: 2 * time.Second}, Handshake: hello})
		w.resolved(c)
		time.Sleep(10 * time.Second)
		if got, want := nodesOf(c), []string{"10.0.0.1 idle", "10.0.0.2 idle", "10.0.0.3 idle"}; !slices.Equal(got, want) {
			t.Errorf("by connecting: %q, want %q", got, want)
		}
		c.Close()

		// By a request and its reply they are not: nonsense is found at once, silence
		// after the second that a check may last.
		w.events = nil
		start := time.Now()
		c = w.cluster(holdfast.Config{Probe: ping, Handshake: hello})
		w.resolved(c)
		time.Sleep(100 * time.Millisecond)
		if got, want := nodesOf(c), []string{"10.0.0.1 idle", "10.0.0.2 ejected", "10.0.0.3 idle"}; !slices.Equal(got, want) {
			t.Errorf("by a reply: %q, want %q", got, want)
		}
		time.Sleep(time.Second)
		gone := turned(t, of(w.servers[2].addr, w.seen(holdfast.EventState)), holdfast.StateEjected, start)
		within(t, gone.Time.Sub(start), time.Second, time.Second)
		if gone.Err == nil || gone.Cause != "check failed" {
			t.Errorf("the event says %q because of %v", gone.Cause, gone.Err)
		}
		for range 20 {
			if n := choose(t, c); n.Addr() == w.servers[1].addr && !c.Stats().Panic {
				t.Fatalf("a node whose checks fail was chosen")
			}
		}

		checks := of(w.servers[0].addr, w.seen(holdfast.EventCheck))
		if len(checks) == 0 || checks[0].Err != nil || checks[0].Duration != 30*time.Millisecond {
			t.Errorf("the check of a node 10 ms away, a dial and two exchanges: %+v", checks)
		}
		if got := w.servers[0].got(); !slices.Contains(got, "ping") || got[0] != "hello" || got[len(got)-2] != "hello" {
			t.Errorf("the server got %q, want the handshake before each probe", got)
		}
	})

	// It runs in a goroutine of ours, where a panic would end the process.
	t.Run("a probe that panics is a probe that fails", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Probe: func(context.Context, net.Conn) error { panic("oh") }})
			w.resolved(c)
			time.Sleep(time.Second)
			if s := c.Stats().Nodes[0]; s.State != holdfast.StateEjected || !strings.Contains(s.Err, "oh") || s.Conns != 0 {
				t.Errorf("%v because of %q, with %d connections open", s.State, s.Err, s.Conns)
			}
		})
	})

	t.Run("nothing is checked unless asked for", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			w.resolved(c)
			time.Sleep(time.Hour)
			if n := w.servers[0].dials(); n != 0 {
				t.Errorf("%d dials that nobody asked for", n)
			}
		})
	})
}

// Every 2 s ±10 %; a quarter of that while a verdict is changing; three failures in
// a row take a node out and two successes bring it back.
func TestActiveCheckReadmits(t *testing.T) {
	const slack = 110 * time.Second / 100 // +10 %, per second
	inWorld(t, 2, func(t *testing.T, w *world) {
		s := w.servers[0]
		c := w.cluster(holdfast.Config{Probe: ping})
		start := time.Now()
		w.resolved(c)
		time.Sleep(time.Minute)
		checks := func(since time.Time) (all []holdfast.Event) {
			for _, e := range of(s.addr, w.seen(holdfast.EventCheck)) {
				if !e.Time.Before(since) {
					all = append(all, e)
				}
			}
			return all
		}
		var times []time.Time
		for _, e := range checks(start) {
			times = append(times, e.Time)
		}
		if !times[0].Equal(start) {
			t.Errorf("the first check came after %v", times[0].Sub(start))
		}
		for _, d := range gaps(times) {
			within(t, d, 1800*time.Millisecond, 2200*time.Millisecond)
		}

		s.does(answers("ping", hangUp))
		failing := time.Now()
		time.Sleep(10 * time.Second)
		bad := checks(failing)
		gone := turned(t, of(s.addr, w.seen(holdfast.EventState)), holdfast.StateEjected, failing)
		within(t, bad[0].Time.Sub(failing), 0, 2*slack)
		within(t, bad[1].Time.Sub(bad[0].Time), 450*time.Millisecond, 550*time.Millisecond)
		within(t, bad[2].Time.Sub(bad[1].Time), 450*time.Millisecond, 550*time.Millisecond)
		within(t, bad[3].Time.Sub(bad[2].Time), 1800*time.Millisecond, 2200*time.Millisecond)
		if !gone.Time.Equal(bad[2].Time) {
			t.Errorf("ejected %v after the third failure in a row", gone.Time.Sub(bad[2].Time))
		}
		for range 20 {
			if n := choose(t, c); n.Addr() == s.addr {
				t.Fatal("a node whose checks fail was chosen")
			}
		}

		s.does(reply)
		mended := time.Now()
		time.Sleep(10 * time.Second)
		good := checks(mended)
		back := turned(t, of(s.addr, w.seen(holdfast.EventState)), holdfast.StateIdle, mended)
		within(t, good[0].Time.Sub(mended), 0, 2*slack)
		within(t, good[1].Time.Sub(good[0].Time), 450*time.Millisecond, 550*time.Millisecond)
		within(t, good[2].Time.Sub(good[1].Time), 1800*time.Millisecond, 2200*time.Millisecond)
		if !back.Time.Equal(good[1].Time) || back.Cause != "check passed" {
			t.Errorf("readmitted %v after the second success in a row because of %q", back.Time.Sub(good[1].Time), back.Cause)
		}
	})

	t.Run("one or two failures are none", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			pings := 0
			w.servers[0].does(answers("ping", func(conn net.Conn, line string) bool {
				pings++
				return pings%3 == 1 && reply(conn, line) // well, ill, ill, well, ill …
			}))
			c := w.cluster(holdfast.Config{Probe: ping})
			w.resolved(c)
			time.Sleep(time.Minute)
			for _, e := range w.seen(holdfast.EventState) {
				if e.To == holdfast.StateEjected {
					t.Fatalf("ejected with two failures in a row at most: %v", e.Err)
				}
			}
		})
	})

	t.Run("the first check decides at once", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Check: holdfast.Check{Interval: time.Second}})
			w.resolved(c)
			if got, want := nodesOf(c), []string{"10.0.0.1 ejected", "10.0.0.2 idle"}; !slices.Equal(got, want) {
				t.Errorf("nodes %q, want %q", got, want)
			}
		})
	})

	t.Run("by numbers of one's own", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Check: holdfast.Check{Interval: 10 * time.Second, Fast: time.Second, Rise: 4, Fall: 1}})
			w.resolved(c)
			w.servers[0].crash()
			start := time.Now()
			time.Sleep(11 * time.Second)
			gone := turned(t, of(w.servers[0].addr, w.seen(holdfast.EventState)), holdfast.StateEjected, start)
			within(t, gone.Time.Sub(start), 9*time.Second, 11*time.Second)

			w.servers[0].listen()
			start = time.Now()
			time.Sleep(20 * time.Second)
			back := turned(t, of(w.servers[0].addr, w.seen(holdfast.EventState)), holdfast.StateIdle, start)
			// One within an interval of the failure, three more a second apart.
			within(t, back.Time.Sub(gone.Time), 9*time.Second+3*900*time.Millisecond, 11*time.Second+3*1100*time.Millisecond)
		})
	})
}

// The probe is answered and the traffic is not: the checks may plead for the node
// once, after that its failures count.
func TestTrafficFailuresOutweighAPassingCheck(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		s := w.servers[0]
		s.does(answers("x", hangUp))
		c := w.cluster(holdfast.Config{Probe: ping, Picker: holdfast.RoundRobin()})
		stop := w.load(c, 4)
		time.Sleep(2 * time.Minute)
		stop()

		lines := s.got()
		suffered := 0
		for _, l := range lines {
			if l == "x" {
				suffered++
			}
		}
		if pings := len(lines) - suffered; pings < 50 {
			t.Errorf("in two minutes the node was probed %d times", pings)
		}
		if suffered < 5 || suffered > 25 {
			t.Errorf("in two minutes %d operations were lost to a node that fails them all", suffered)
		}
		if got := nodesOf(c)[0]; got != "10.0.0.1 ejected" {
			t.Errorf("at the end: %s", got)
		}
	})
}

// This process stood still, not the nodes: what comes in late is no verdict. Where
// a bubble's clock cannot stop with us, hooks that are held up do it.
func TestStarvedProberEjectsNobody(t *testing.T) {
	cfg := holdfast.Config{Probe: ping, Check: holdfast.Check{Fall: 1}}
	standstill := func(ctx context.Context) error {
		time.Sleep(4 * time.Second)
		return ctx.Err()
	}
	for name, held := range map[string]func(*holdfast.Config){
		"in the middle of a handshake": func(cfg *holdfast.Config) {
			cfg.Handshake = func(ctx context.Context, _ *holdfast.Conn) error { return standstill(ctx) }
		},
		"in the middle of a probe": func(cfg *holdfast.Config) {
			cfg.Probe = func(ctx context.Context, _ net.Conn) error { return standstill(ctx) }
		},
		"out of files": func(cfg *holdfast.Config) {
			cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				cfg := cfg
				held(&cfg)
				c := w.cluster(cfg)
				w.resolved(c)
				time.Sleep(time.Minute)
				if n := len(w.seen(holdfast.EventCheck)); n < 15 {
					t.Errorf("%d checks in a minute", n)
				}
				for _, e := range w.seen(holdfast.EventCheck) {
					if e.Err == nil {
						t.Error("a check was not late: the story proves nothing")
					}
					if class := holdfast.Classify(e.Err); class != holdfast.ClassResource {
						t.Errorf("%v is %v, want it to be known as no verdict", e.Err, class)
					}
				}
				for _, e := range w.seen(holdfast.EventState) {
					t.Errorf("%v went %v: %v", e.Node, e.To, e.Err)
				}
			})
		})
	}
	t.Run("when an ejection is over", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			start := time.Now()
			c := w.cluster(holdfast.Config{
				Check: holdfast.Check{Interval: -1},
				Probe: func(ctx context.Context, _ net.Conn) error {
					if time.Since(start) < 40*time.Second {
						return standstill(ctx)
					}
					return nil
				}})
			eject(t, c, w.servers[0].addr)
			within(t, w.readmitted(w.servers[0].addr).Sub(start), 40*time.Second, 45*time.Second)
		})
	})
	t.Run("a server that stands still is ejected", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(cfg)
			w.resolved(c)
			w.net.Host(w.servers[1].ip()).Freeze()
			time.Sleep(5 * time.Second)
			if got, want := nodesOf(c), []string{"10.0.0.1 idle", "10.0.0.2 ejected", "10.0.0.3 idle"}; !slices.Equal(got, want) {
				t.Errorf("nodes %q, want %q", got, want)
			}
			w.net.Host(w.servers[1].ip()).Thaw()
		})
	})
}

var errBroken = errors.New("the peer says no")
