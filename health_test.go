package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

// leaseOf takes a lease of the node at addr.
func leaseOf(t *testing.T, c *holdfast.Cluster, addr string) holdfast.Lease {
	t.Helper()
	var tried []*holdfast.Node
	for {
		lease, err := c.Pick(0, tried)
		if err != nil {
			t.Fatalf("%s is not to be had: %v", addr, err)
		}
		if lease.Node().Addr() == addr {
			return lease
		}
		lease.Done()
		tried = append(tried, lease.Node())
	}
}

// eject makes the node at addr fail until it is ejected.
func eject(t *testing.T, c *holdfast.Cluster, addr string) {
	t.Helper()
	lease := leaseOf(t, c, addr)
	defer lease.Done()
	fail(lease, 5)
	if s := lease.Node().State(); s != holdfast.StateEjected {
		t.Fatalf("after five failures %s is %v", addr, s)
	}
}

// fail reports n failures in a row.
func fail(lease holdfast.Lease, n int) {
	for range n {
		lease.Report(-1, syscall.ECONNRESET)
	}
}

// readmitted waits until the node at addr, which is ejected, is back, and returns
// when that was.
func (w *world) readmitted(addr string) time.Time {
	w.t.Helper()
	for start := time.Now(); time.Since(start) < time.Hour; {
		all := of(addr, w.seen(holdfast.EventState))
		for i := len(all) - 1; i >= 0 && all[i].To != holdfast.StateEjected; i-- {
			if all[i].From == holdfast.StateEjected {
				return all[i].Time
			}
		}
		select { // at once: a sweep in between would forgive the node something
		case <-w.news:
		case <-time.After(50 * time.Millisecond): // a test that observes for itself
		}
	}
	w.t.Fatalf("%s did not come back within an hour", addr)
	return time.Time{}
}

// load runs unsafe operations for n callers, each ten a second. stop ends that and
// returns how many failed.
func (w *world) load(c *holdfast.Cluster, n int) (stop func() int) {
	var failed atomic.Int64
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				if c.Do(w.t.Context(), holdfast.Unsafe, say("x")) != nil {
					failed.Add(1)
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	return func() int {
		cancel()
		wg.Wait()
		return int(failed.Load())
	}
}

func TestConsecutiveFailuresEject(t *testing.T) {
	reset := &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}

	for _, kind := range []struct {
		name string
		err  error
	}{
		{"reset", reset},
		{"closed by the peer", io.ErrUnexpectedEOF},
		{"timeout", os.ErrDeadlineExceeded},
		{"refused", syscall.ECONNREFUSED},
		{"told by the peer", errBroken},
		{"unprocessed", holdfast.Unprocessed(errBroken)},
	} {
		t.Run(kind.name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{})
				lease := leaseOf(t, c, w.servers[0].addr)
				defer lease.Done()
				for range 4 {
					lease.Report(-1, kind.err)
				}
				lease.Report(-1, nil) // a success in between
				for range 4 {
					lease.Report(-1, kind.err)
				}
				if s := lease.Node().State(); s != holdfast.StateIdle {
					t.Fatalf("after four failures in a row: %v", s)
				}
				lease.Report(-1, kind.err)
				gone := turned(t, w.seen(holdfast.EventState), holdfast.StateEjected, time.Time{})
				if gone.Node != lease.Node() || !strings.Contains(gone.Cause, "5 failures in a row") || !errors.Is(gone.Err, errors.Unwrap(kind.err)) && !errors.Is(gone.Err, kind.err) {
					t.Errorf("after five: %v is out because of %q, %v", gone.Node, gone.Cause, gone.Err)
				}
				for range 20 {
					if choose(t, c) == lease.Node() {
						t.Fatal("an ejected node was chosen")
					}
				}
			})
		})
	}

	t.Run("seen here and told by the peer are counted apart", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			lease := leaseOf(t, c, w.servers[0].addr)
			defer lease.Done()
			for range 4 {
				lease.Report(-1, reset)
				lease.Report(-1, errBroken)
			}
			if s := lease.Node().State(); s != holdfast.StateIdle {
				t.Fatalf("after four failures of each kind: %v", s)
			}
			lease.Report(-1, errBroken)
			if s := lease.Node().State(); s != holdfast.StateEjected {
				t.Errorf("after five of one kind: %v", s)
			}
		})
	})

	t.Run("what is not the node's fault is not counted", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			lease := leaseOf(t, c, w.servers[0].addr)
			defer lease.Done()
			for range 4 {
				lease.Report(-1, reset)
			}
			for _, err := range []error{
				context.Canceled, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
				holdfast.ErrPoolExhausted, holdfast.ErrClosed, holdfast.ErrNoEndpoint, net.ErrClosed,
				holdfast.Reusable(errBroken),
			} {
				for range 100 {
					lease.Report(-1, fmt.Errorf("operation: %w", err))
				}
				if s := lease.Node().State(); s != holdfast.StateIdle {
					t.Fatalf("%v ejected the node", err)
				}
			}
			if n := c.Stats().Nodes[0].Failures; n != 4 {
				t.Errorf("%d failures are held against the node, want the 4 resets", n)
			}
		})
	})

	t.Run("the count begins anew with the node's readmission", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			eject(t, c, w.servers[0].addr)
			w.readmitted(w.servers[0].addr)
			lease := leaseOf(t, c, w.servers[0].addr)
			defer lease.Done()
			fail(lease, 4)
			if s := lease.Node().State(); s != holdfast.StateIdle {
				t.Errorf("after four failures since its readmission: %v", s)
			}
		})
	})

	t.Run("by operations", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			w.servers[0].does(hangUp)
			c := w.cluster(holdfast.Config{Picker: holdfast.RoundRobin()})
			for range 60 {
				if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(300 * time.Millisecond) // and a failed connect is forgiven
			}
			if n := len(w.servers[0].got()); n < 5 || n > 8 {
				t.Errorf("the node that fails every operation got %d of 60, want five and no second five", n)
			}
			if got := nodesOf(c)[0]; got != "10.0.0.1 ejected" {
				t.Errorf("at the end: %s", got)
			}
		})
	})

	t.Run("by a number of one's own", func(t *testing.T) {
		for n, want := range map[int]int{2: 2, -1: 0} {
			inWorld(t, 3, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Outlier: holdfast.Outlier{Consecutive: n}})
				lease := leaseOf(t, c, w.servers[0].addr)
				defer lease.Done()
				out := 0
				for i := 1; i <= 100 && out == 0; i++ {
					if fail(lease, 1); lease.Node().State() == holdfast.StateEjected {
						out = i
					}
				}
				if out != want {
					t.Errorf("with Consecutive %d it took %d failures, want %d", n, out, want)
				}
			})
		}
	})
}

// calls reports successes and failures of each node in turn, never enough failures
// in a row for the other rule.
func calls(t *testing.T, c *holdfast.Cluster, w *world, node, ok, failed int) {
	t.Helper()
	lease := leaseOf(t, c, w.servers[node].addr)
	defer lease.Done()
	for ok > 0 || failed > 0 {
		for range min(4, failed) {
			lease.Report(-1, errBroken)
			failed--
		}
		for range min(max(1, ok/(failed/4+1)), ok) {
			lease.Report(-1, nil)
			ok--
		}
	}
}

// The statistical rules compare the nodes of a set, every ten seconds, where there
// are enough of them and of their calls to say something.
func TestSuccessRateEjects(t *testing.T) {
	for _, story := range []struct {
		name       string
		nodes      int
		ok, failed int // of the first node; the others have 200 successes
		outlier    holdfast.Outlier
		ejected    bool
	}{
		{"far below the others", 5, 160, 40, holdfast.Outlier{}, true},
		{"not below the others", 5, 200, 0, holdfast.Outlier{}, false},
		{"too few nodes", 4, 160, 40, holdfast.Outlier{}, false},
		{"too few calls", 5, 79, 20, holdfast.Outlier{}, false},
		{"just enough calls", 5, 80, 20, holdfast.Outlier{}, true},
		{"within three standard deviations", 5, 160, 40, holdfast.Outlier{SuccessRate: 3000}, false},
		{"switched off", 5, 160, 40, holdfast.Outlier{SuccessRate: -1}, false},
	} {
		t.Run(story.name, func(t *testing.T) {
			inWorld(t, story.nodes, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Outlier: story.outlier})
				w.resolved(c)
				start := time.Now()
				calls(t, c, w, 0, story.ok, story.failed)
				for i := 1; i < story.nodes; i++ {
					calls(t, c, w, i, 200, 0)
				}
				time.Sleep(10*time.Second - time.Millisecond)
				if n := len(w.seen(holdfast.EventState)); n != 0 {
					t.Fatal("judged before the interval was over")
				}
				time.Sleep(time.Minute)
				if !story.ejected {
					if n := len(w.seen(holdfast.EventState)); n != 0 {
						t.Errorf("states changed: %v", w.seen(holdfast.EventState))
					}
					return
				}
				gone := turned(t, w.seen(holdfast.EventState), holdfast.StateEjected, start)
				if gone.Node.Addr() != w.servers[0].addr || !strings.Contains(gone.Cause, "success rate 80 %") {
					t.Errorf("%v is out because of %q", gone.Node, gone.Cause)
				}
				within(t, gone.Time.Sub(start), 10*time.Second, 10*time.Second)
			})
		})
	}

	t.Run("calls of one interval do not count in the next", func(t *testing.T) {
		inWorld(t, 5, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			w.resolved(c)
			time.Sleep(time.Second) // away from the sweeps
			for range 3 {
				calls(t, c, w, 0, 40, 20)
				for i := 1; i < 5; i++ {
					calls(t, c, w, i, 200, 0)
				}
				time.Sleep(10 * time.Second)
			}
			if n := len(w.seen(holdfast.EventState)); n != 0 {
				t.Errorf("60 calls in each of three intervals were judged: %v", w.seen(holdfast.EventState))
			}
		})
	})
}

func TestFailurePercentEjects(t *testing.T) {
	for _, story := range []struct {
		name       string
		nodes      int
		ok, failed int
		percent    int
		ejected    bool
	}{
		{"as many as allowed", 5, 30, 30, 50, true},
		{"fewer", 5, 31, 29, 50, false},
		{"too few calls", 5, 24, 25, 50, false},
		{"just enough calls", 5, 25, 25, 50, true},
		{"too few nodes", 4, 30, 30, 50, false},
		{"off by default", 5, 30, 30, 0, false},
	} {
		t.Run(story.name, func(t *testing.T) {
			inWorld(t, story.nodes, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Outlier: holdfast.Outlier{FailurePercent: story.percent, SuccessRate: -1}})
				w.resolved(c)
				calls(t, c, w, 0, story.ok, story.failed)
				for i := 1; i < story.nodes; i++ {
					calls(t, c, w, i, 60, 0)
				}
				time.Sleep(11 * time.Second)
				out := w.seen(holdfast.EventState)
				if len(out) > 0 != story.ejected {
					t.Errorf("%d of %d calls failed: %v", story.failed, story.ok+story.failed, out)
				}
				if len(out) > 0 && !strings.Contains(out[0].Cause, "50 % of calls failed") {
					t.Errorf("out because of %q", out[0].Cause)
				}
			})
		})
	}
}

// However many nodes fail, the rules leave most of them in: no more than the share
// configured, counted with the one that goes, at least one, and never the last.
func TestEjectionIsCapped(t *testing.T) {
	for _, set := range []struct{ nodes, percent, out int }{
		{1, 0, 0}, {1, 100, 0}, {2, 0, 1}, {3, 0, 1}, {9, 0, 1}, {20, 0, 2}, {10, 30, 3}, {10, 39, 3}, {3, 100, 2},
	} {
		t.Run(fmt.Sprintf("%d nodes, %d percent", set.nodes, set.percent), func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				var addrs []string
				for i := range set.nodes {
					addrs = append(addrs, fmt.Sprintf("10.0.0.%d:7000", i+1))
				}
				c := w.clusterOf(holdfast.Config{Outlier: holdfast.Outlier{MaxPercent: set.percent}}, addrs...)
				for _, addr := range addrs {
					lease := leaseOf(t, c, addr)
					fail(lease, 50)
					lease.Done()
				}
				out := 0
				for _, n := range c.Stats().Nodes {
					if n.State == holdfast.StateEjected {
						out++
					}
				}
				if out != set.out {
					t.Errorf("of %d failing nodes %d were ejected, want %d", set.nodes, out, set.out)
				}
			})
		})
	}

	t.Run("checks are not capped", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			for _, s := range w.servers {
				s.crash()
			}
			c := w.cluster(holdfast.Config{Check: holdfast.Check{Interval: time.Second}})
			w.resolved(c)
			if got, want := nodesOf(c), []string{"10.0.0.1 ejected", "10.0.0.2 ejected", "10.0.0.3 ejected"}; !slices.Equal(got, want) {
				t.Errorf("nodes %q, want %q", got, want)
			}
		})
	})
}

// 30 s, 60 s, 90 s … 300 s, each up to a tenth longer; and one less for each
// interval of ten seconds that the node is well.
func TestEjectionTimeGrowsAndDecays(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{})
		addr := w.servers[0].addr
		out := func() time.Duration {
			t.Helper()
			start := time.Now()
			eject(t, c, addr)
			return w.readmitted(addr).Sub(start)
		}
		var times []time.Duration
		for i := range 12 {
			least := min(time.Duration(i+1)*30*time.Second, 300*time.Second)
			d := out()
			within(t, d, least, least*11/10)
			times = append(times, d%(30*time.Second))
		}
		slices.Sort(times)
		if len(slices.Compact(times)) < 8 {
			t.Errorf("the times are not jittered: %v", times)
		}
		if n := c.Stats().Nodes[0].Ejections; n != 12 {
			t.Errorf("Stats tells of %d ejections, want 12", n)
		}
		time.Sleep(100*time.Second + time.Second) // ten or eleven sweeps
		within(t, out(), 60*time.Second, 99*time.Second)
		time.Sleep(time.Minute)
		within(t, out(), 30*time.Second, 33*time.Second)
	})

	t.Run("an interval of failures alone is none that it is well", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			addr := w.servers[0].addr
			eject(t, c, addr)
			w.readmitted(addr)
			lease := leaseOf(t, c, addr)
			fail(lease, 4)
			lease.Done()
			time.Sleep(10 * time.Second) // and so one sweep
			start := time.Now()
			eject(t, c, addr)
			within(t, w.readmitted(addr).Sub(start), 60*time.Second, 66*time.Second)
		})
	})

	// A node that is still down when its time is over stays out for longer.
	t.Run("a failed probe for readmission counts as well", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			addr := w.servers[0].addr
			w.servers[0].crash()
			start := time.Now()
			eject(t, c, addr)
			time.Sleep(3 * time.Minute)
			var dialed []time.Duration
			for _, e := range of(addr, w.seen(holdfast.EventDial)) {
				dialed = append(dialed, e.Time.Sub(start))
			}
			if len(dialed) != 2 {
				t.Fatalf("in three minutes it was probed at %v, want at 30 and at 90 s", dialed)
			}
			within(t, dialed[0], 30*time.Second, 33*time.Second)
			within(t, dialed[1]-dialed[0], 60*time.Second, 66*time.Second)
			w.servers[0].listen()
			within(t, w.readmitted(addr).Sub(start), 180*time.Second, 198*time.Second)
		})
	})
}

// A thousand callers are there when a node's time is over. One probe goes to it,
// and they go where they went before.
func TestReadmissionTakesOneProbe(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		s := w.servers[0]
		s.does(answers("ping", after(200*time.Millisecond, reply)))
		c := w.cluster(holdfast.Config{Probe: ping, Check: holdfast.Check{Interval: -1}})
		start := time.Now()
		eject(t, c, s.addr)
		time.Sleep(29*time.Second + 900*time.Millisecond)

		var wg sync.WaitGroup
		var early atomic.Int64 // operations on the node before it was readmitted
		for i := range 1000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond / 10)
				for time.Since(start) < 34*time.Second {
					err := c.Do(t.Context(), holdfast.Unsafe, func(ctx context.Context, conn *holdfast.Conn) error {
						if conn.Node().Addr() == s.addr && conn.Node().State() == holdfast.StateEjected {
							early.Add(1)
						}
						return say("x")(ctx, conn)
					})
					if err != nil {
						t.Error(err)
					}
					time.Sleep(500 * time.Millisecond)
				}
			})
		}
		back := w.readmitted(s.addr)
		wg.Wait()

		within(t, back.Sub(start), 30*time.Second, 34*time.Second)
		lines := s.got()
		if n := len(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return l != "ping" })); n != 1 {
			t.Errorf("%d probes, want 1", n)
		}
		if lines[0] != "ping" || early.Load() != 0 {
			t.Errorf("before the probe was answered the node got %q first and %d operations", lines[0], early.Load())
		}
		if len(lines) == 1 {
			t.Error("after its readmission the node got nothing")
		}
		if cause := of(s.addr, w.seen(holdfast.EventState)); cause[1].Cause != "probe passed" {
			t.Errorf("readmitted because of %q", cause[1].Cause)
		}
	})
}

// With too few left, the ejected ones are better than nothing: who has been out
// longest comes first.
func TestPanicModeUsesEjectedNodes(t *testing.T) {
	inWorld(t, 4, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Outlier: holdfast.Outlier{MaxPercent: 100}})
		addr := func(i int) string { return w.servers[i].addr }
		pass := func() string {
			var order strings.Builder
			var tried []*holdfast.Node
			for {
				lease, err := c.Pick(0, tried)
				if err != nil {
					return order.String()
				}
				lease.Done()
				tried = append(tried, lease.Node())
				order.WriteString(letter(lease.Node()))
			}
		}
		first := time.Now()
		eject(t, c, addr(1))
		time.Sleep(time.Second)
		eject(t, c, addr(0))
		if got := pass(); got != "cd" {
			t.Errorf("with half of them out a pass goes over %s", got)
		}
		if n := len(w.seen(holdfast.EventPanic)); n != 0 || c.Stats().Panic {
			t.Error("half of them is enough, and it is panic")
		}
		time.Sleep(time.Second)
		eject(t, c, addr(2))
		if got := pass(); got != "dbac" {
			t.Errorf("in panic a pass goes over %s, want the usable one and then by time of ejection: dbac", got)
		}
		if p := w.seen(holdfast.EventPanic); len(p) != 1 || p[0].Cause == "over" || !c.Stats().Panic {
			t.Errorf("panic is not told: %v", p)
		}
		w.servers[3].crash()
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Errorf("with the last usable node down: %v", err)
		}
		if got := w.servers[1].got(); len(got) != 1 {
			t.Errorf("the oldest ejection got %q", got)
		}
		w.servers[3].listen()

		// It ends when enough are back: the first of them is, after thirty seconds.
		back := w.readmitted(addr(1))
		within(t, back.Sub(first), 30*time.Second, 33*time.Second)
		time.Sleep(4 * time.Second)
		p := w.seen(holdfast.EventPanic)
		if len(p) != 2 || p[1].Cause != "over" || c.Stats().Panic {
			t.Fatalf("the end of panic is not told: %v", p)
		}
		all := w.seen(holdfast.EventState)
		for _, e := range all {
			if e.From == holdfast.StateEjected && e.Time.Before(p[1].Time) && e.Node.Addr() != addr(1) && e.Node.Addr() != addr(0) {
				t.Errorf("panic was over only after %v", all)
			}
		}
	})

	t.Run("when the checks are wrong about all", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			for _, s := range w.servers {
				s.does(answers("ping", nonsense))
			}
			c := w.cluster(holdfast.Config{Probe: ping})
			w.resolved(c)
			if got, want := nodesOf(c), []string{"10.0.0.1 ejected", "10.0.0.2 ejected", "10.0.0.3 ejected"}; !slices.Equal(got, want) {
				t.Fatalf("nodes %q, want %q", got, want)
			}
			for range 100 {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			if p := w.seen(holdfast.EventPanic); len(p) != 1 {
				t.Errorf("panic was told %d times: %v", len(p), p)
			}
		})
	})

	t.Run("unless it is off", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.servers[0].does(answers("ping", nonsense))
			w.servers[1].does(answers("ping", nonsense))
			c := w.cluster(holdfast.Config{Probe: ping, Outlier: holdfast.Outlier{PanicPercent: -1}})
			w.resolved(c)
			if _, err := c.Pick(0, nil); !errors.Is(err, holdfast.ErrNoEndpoint) {
				t.Errorf("with all ejected and panic off Pick said %v", err)
			}
			if n := len(w.seen(holdfast.EventPanic)); n != 0 {
				t.Error("panic is off and was told")
			}
		})
	})
}

// A tenth of its share at first, all of it after the window, in steps of a tenth.
func TestSlowStartRampsUp(t *testing.T) {
	for _, policy := range []struct {
		name   string
		picker holdfast.Picker
		chance int // what chance adds or takes, of 1100
	}{
		{"round robin", holdfast.RoundRobin(), 10},
		{"least loaded", holdfast.LeastLoaded(), 100},
		{"random", holdfast.Random(), 100},
	} {
		t.Run(policy.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Picker: policy.picker, Outlier: holdfast.Outlier{SlowStart: 30 * time.Second}})
				eject(t, c, w.servers[0].addr)
				if got := chosen(t, c, 20); strings.Contains(got, "a") {
					t.Errorf("while it is out the node was chosen: %s", got)
				}
				back := w.readmitted(w.servers[0].addr)
				at := func(d time.Duration, share float64, least, most int) {
					t.Helper()
					time.Sleep(time.Until(back.Add(d)))
					lease := leaseOf(t, c, w.servers[0].addr)
					if s := lease.Node().Share(); s < share-0.001 || s > share+0.001 {
						t.Errorf("after %v its share is %.3f, want %.3f", d, s, share)
					}
					lease.Done()
					if got := strings.Count(chosen(t, c, 1100), "a"); got < least-policy.chance || got > most+policy.chance {
						t.Errorf("after %v it got %d of 1100, want %d to %d", d, got, least, most)
					}
				}
				at(time.Second, 0.1, 100, 100)    // 0.1 : 1
				at(15*time.Second, 0.5, 314, 367) // 0.4 : 1 to 0.5 : 1
				at(31*time.Second, 1, 550, 550)   // 1 : 1
			})
		})
	}

	t.Run("off by default", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.RoundRobin()})
			eject(t, c, w.servers[0].addr)
			w.readmitted(w.servers[0].addr)
			if got := chosen(t, c, 10); strings.Count(got, "a") != 5 {
				t.Errorf("after its readmission ten choices fell as %s", got)
			}
		})
	})
}

// One of three is killed under load. What it had in hand is lost, if it may not be
// repeated; nothing else is.
func TestDeadNodeCostsOnlyWhatWasInFlight(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		var inHand [3]atomic.Int64
		for i, s := range w.servers {
			s.does(func(conn net.Conn, line string) bool {
				inHand[i].Add(1)
				time.Sleep(20 * time.Millisecond)
				inHand[i].Add(-1)
				return reply(conn, line)
			})
		}
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 64}})
		var failed atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(1+(i+n)%7) * time.Millisecond):
					}
					if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
						failed.Add(1)
						if e := asError(t, err); e.Written == 0 || e.Node != w.servers[1].addr {
							t.Errorf("lost although nothing was sent to the dead node: %v", err)
						}
					}
				}
			})
		}
		time.Sleep(time.Second + 500*time.Microsecond) // between two steps of the load
		cost := inHand[1].Load()
		w.servers[1].crash()
		time.Sleep(2 * time.Second)
		if n := failed.Load(); cost == 0 || n != cost {
			t.Errorf("%d operations failed, want the %d that the dead node had in hand", n, cost)
		}

		close(stop)
		wg.Wait()

		w.servers[1].listen()
		before := len(w.servers[1].got())
		time.Sleep(40 * time.Second) // its ejection is over
		for range 30 {
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Errorf("when the node is back: %v", err)
			}
		}
		if len(w.servers[1].got()) == before {
			t.Error("the node that came back got nothing")
		}
	})
}

// A node comes and goes every half second. What is told of it is no more than what
// happened, and mostly far less: it is left alone ever longer.
func TestFlappingNodeIsDamped(t *testing.T) {
	const real = 120 // changes in a minute
	for _, way := range []struct {
		name  string
		check time.Duration
		most  int // changes that may be told
	}{
		{"by traffic", 0, real / 3},
		{"by checks slower than it", 2 * time.Second, real * 2 / 3},
		{"by checks that follow it", 200 * time.Millisecond, real + real/10}, // a backoff may end while it is down
	} {
		t.Run(way.name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				s := w.servers[0]
				c := w.cluster(holdfast.Config{Picker: holdfast.RoundRobin(), Check: holdfast.Check{Interval: way.check}})
				stop := w.load(c, 6)
				time.Sleep(time.Second)
				for range real / 2 {
					s.crash()
					time.Sleep(500 * time.Millisecond)
					s.listen()
					time.Sleep(500 * time.Millisecond)
				}
				failed := stop()

				told := 0 // usable, and not any more
				for _, e := range w.seen(holdfast.EventState) {
					switch {
					case e.Node.Addr() == s.addr && usable(e.From) != usable(e.To):
						told++
					case e.Node.Addr() != s.addr && !usable(e.To):
						t.Errorf("%v, which is well, went %v: %v", e.Node, e.To, e.Err)
					}
				}
				if told < 2 || told > way.most {
					t.Errorf("of %d changes %d were told, want at most %d", real, told, way.most)
				}
				if failed > real/2 {
					t.Errorf("%d operations were lost to a node that went down %d times", failed, real/2)
				}
			})
		})
	}
}

func usable(s holdfast.State) bool { return s <= holdfast.StateReady }

func TestIdleConnsOfAnEjectedNodeClose(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
		var conns []*holdfast.Conn
		for range 3 {
			conn, err := c.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		conns[0].Release()
		conns[1].Release()
		if n := c.Stats().Nodes[0].Idle; n != 2 {
			t.Fatalf("%d connections rest on the node", n)
		}
		eject(t, c, w.servers[0].addr)
		synctest.Wait()
		if n := len(w.client.Conns()); n != 1 {
			t.Errorf("%d connections are open, want the one in use", n)
		}
		if n := c.Stats().Nodes[0].Idle; n != 0 {
			t.Errorf("%d connections rest on the ejected node", n)
		}
		if err := exchange(conns[2], "x"); err != nil {
			t.Errorf("the connection in use was cut: %v", err)
		}
		conns[2].Release()
		synctest.Wait()
		if n := len(w.client.Conns()); n != 0 {
			t.Errorf("the connection that came back to an ejected node is kept: %d open", n)
		}
	})

	t.Run("who waits for one goes elsewhere", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Pool: holdfast.Pool{Max: 1}})
			held, err := c.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan *holdfast.Conn, 1)
			go func() {
				conn, err := c.Acquire(t.Context()) // the pool of the first node is full
				if err != nil {
					t.Error(err)
				}
				got <- conn
			}()
			time.Sleep(time.Minute)
			within(t, took(func() {
				eject(t, c, w.servers[0].addr)
				if conn := <-got; conn == nil || conn.Node().Addr() != w.servers[1].addr {
					t.Errorf("who waited for an ejected node got %v", conn)
				} else {
					conn.Release()
				}
			}), 0, 0)
			held.Release()
		})
	})
}

// Every change of a node's state is told once, in order, with why; what State says
// is what was told last.
func TestTransitionsAreEventsWithACause(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		source := newFeed()
		source.set(w.servers[0].addr, w.servers[1].addr, w.servers[2].addr)
		outOfFiles := false
		c := w.clusterFrom(holdfast.Config{
			Picker: holdfast.Ordered(),
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if outOfFiles {
					return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}
				}
				return w.client.DialContext(ctx, network, addr)
			}}, source)
		do := func() error { return c.Do(t.Context(), holdfast.Idempotent, say("x")) }

		outOfFiles = true // nobody's fault, and no connection
		if err := do(); err == nil {
			t.Error("an operation without a descriptor")
		}
		outOfFiles = false
		w.told(c, "out of descriptors")
		own, err := c.DialContext(t.Context(), "tcp", "") // a: ready
		if err != nil {
			t.Fatal(err)
		}
		w.told(c, "a driver's connection")
		own.Close() // a: idle
		w.told(c, "and its end")
		do() // a: connecting, ready
		w.told(c, "connected")
		w.servers[0].crash()
		time.Sleep(3 * time.Second) // a: the broken connection is found
		w.told(c, "broken")
		do() // a: backoff, b: ready
		w.told(c, "backing off")
		w.servers[0].listen()
		time.Sleep(time.Second) // a: backoff over
		w.told(c, "back")
		eject(t, c, w.servers[1].addr)
		w.told(c, "ejected")
		w.readmitted(w.servers[1].addr)
		w.told(c, "readmitted")
		source.set(w.servers[0].addr+"?weight=-1", w.servers[1].addr)
		w.told(c, "drained and removed")
		source.set(w.servers[0].addr, w.servers[1].addr)
		do()
		w.told(c, "back again")

		seen := map[holdfast.State]bool{}
		for _, e := range w.seen(holdfast.EventState) {
			seen[e.To] = true
		}
		for _, s := range []holdfast.State{holdfast.StateIdle, holdfast.StateConnecting, holdfast.StateReady,
			holdfast.StateBackoff, holdfast.StateEjected, holdfast.StateDraining} {
			if !seen[s] {
				t.Errorf("the story has no %v", s)
			}
		}
	})
}

// told checks that the events so far are whole: each begins where the last ended,
// and they end where the nodes are.
func (w *world) told(c *holdfast.Cluster, when string) {
	w.t.Helper()
	synctest.Wait()
	last := map[*holdfast.Node]holdfast.State{}
	for _, e := range w.seen(holdfast.EventState) {
		if e.From == e.To || e.From != last[e.Node] || e.Cause == "" || e.Time.IsZero() {
			w.t.Errorf("%s: %v was %v, and is told to go from %v to %v because of %q", when, e.Node, last[e.Node], e.From, e.To, e.Cause)
		}
		last[e.Node] = e.To
	}
	for n, s := range last {
		if now := n.State(); now != s {
			w.t.Errorf("%s: %v is %v and was told to be %v", when, n, now, s)
		}
	}
}
