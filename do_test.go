package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

func TestDoExchanges(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{})
		for range 10 {
			if err := c.Do(t.Context(), holdfast.Unsafe, say("hello")); err != nil {
				t.Fatal(err)
			}
		}
		s := c.Stats()
		if s.Operations != 10 || s.Successes != 10 || s.Failures != 0 {
			t.Errorf("%d operations, %d successes, %d failures", s.Operations, s.Successes, s.Failures)
		}
	})
}

// The defect of the original: s1 accepts and closes, s2 is healthy; s1 was used
// four times in a row, the call failed, and s2 was never tried.
func TestOrderedMovesOnAfterLoss(t *testing.T) {
	half := func(conn net.Conn, line string) bool {
		io.WriteString(conn, line[:len(line)/2])
		return false
	}
	for _, loss := range []struct {
		name  string
		sick  func(s *server)
		dials int // of the sick server, at most, in five operations
	}{
		{"before a byte", func(s *server) { s.greets(func(net.Conn) bool { return false }) }, 1},
		{"after the request", func(s *server) { s.does(func(net.Conn, string) bool { return false }) }, 1},
		{"after half a reply", func(s *server) { s.does(half) }, 5},
		{"by a reset", func(s *server) {
			s.does(func(conn net.Conn, _ string) bool { conn.(*simnet.Conn).Reset(); return false })
		}, 1},
	} {
		t.Run(loss.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				sick, healthy := w.servers[0], w.servers[1]
				loss.sick(sick)
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
				for range 5 {
					if err := c.Do(t.Context(), holdfast.Idempotent, say("ordered")); err != nil {
						t.Fatal(err)
					}
				}
				if n := len(healthy.got()); n != 5 {
					t.Errorf("the healthy server got %d operations, want 5", n)
				}
				if n := sick.dials(); n < 1 || n > loss.dials {
					t.Errorf("the server that hangs up was dialed %d times in 5 operations, want 1 to %d", n, loss.dials)
				}
			})
		})
	}
}

func TestWaitReady(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.servers[0]
		s.crash()
		time.AfterFunc(3*time.Second, s.listen)
		c := w.cluster(holdfast.Config{Backoff: every(500 * time.Millisecond)})
		within(t, took(func() {
			if err := c.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
		}), 3*time.Second, 4*time.Second)

		if s := c.Stats(); s.Conns != 1 || s.Idle != 1 {
			t.Errorf("%d connections, %d of them at rest, want the one in the pool", s.Conns, s.Idle)
		}
		if err := c.Do(t.Context(), holdfast.Unsafe, say("ready")); err != nil {
			t.Fatal(err)
		}
		if n := s.dials(); n != 1 {
			t.Errorf("dialed %d times, want the connection of WaitReady to be used", n)
		}
	})
}

func TestWaitReadySaysWhyItWasNotReady(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.servers[0].crash()
		c := w.cluster(holdfast.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var err error
		within(t, took(func() { err = c.WaitReady(ctx) }), 2*time.Second, 2*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(fmt.Sprint(err), "connection refused") {
			t.Errorf("got %v, want the end of the context and what kept the node away", err)
		}
	})
}

// Whatever way an operation ends, its place in the pool is free: the pool has
// only one, and the next operation gets it at once.
func TestDoReleasesOnEveryPath(t *testing.T) {
	boom := errors.New("boom")
	for _, path := range []struct {
		name string
		fn   func(cancel func(), conn *holdfast.Conn) error
		kept bool // the connection serves the next
	}{
		{"nil", func(_ func(), conn *holdfast.Conn) error { return exchange(conn, "x") }, true},
		{"nothing done", func(func(), *holdfast.Conn) error { return nil }, true},
		{"error", func(func(), *holdfast.Conn) error { return boom }, false},
		{"reusable", func(_ func(), conn *holdfast.Conn) error { return holdfast.Reusable(boom) }, true},
		{"panic", func(func(), *holdfast.Conn) error { panic(boom) }, false},
		{"goexit", func(func(), *holdfast.Conn) error { runtime.Goexit(); return nil }, false},
		{"cancel", func(cancel func(), conn *holdfast.Conn) error { cancel(); return exchange(conn, "x") }, false},
		{"cancelled but well", func(cancel func(), conn *holdfast.Conn) error {
			cancel()
			synctest.Wait()
			return nil
		}, false},
		{"deadline", func(_ func(), conn *holdfast.Conn) error { _, err := conn.Read(make([]byte, 1)); return err }, false},
		{"closed by fn", func(_ func(), conn *holdfast.Conn) error { return conn.Close() }, false},
		{"closed by fn, with an error", func(_ func(), conn *holdfast.Conn) error { conn.Close(); return boom }, false},
		{"retired", func(_ func(), conn *holdfast.Conn) error { conn.Retire(); return nil }, false},
		{"half-closed", func(_ func(), conn *holdfast.Conn) error { return conn.CloseWrite() }, false},
	} {
		t.Run(path.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1}})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				thrown := apart(func() {
					c.Do(ctx, holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error { return path.fn(cancel, conn) })
				})
				if path.name == "panic" && thrown != error(boom) {
					t.Errorf("the panic that went on is %v", thrown)
				}

				want := 0
				if path.kept {
					want = 1
				}
				synctest.Wait()
				s := c.Stats()
				if s.Conns != want || s.Idle != want || s.Nodes[0].InFlight != 0 {
					t.Errorf("%d connections, %d at rest, %d in flight; want %d, %[4]d, 0", s.Conns, s.Idle, s.Nodes[0].InFlight, want)
				}
				if n := len(w.client.Conns()); n != want {
					t.Errorf("%d sockets are open, want %d", n, want)
				}
				within(t, took(func() {
					if err := c.Do(t.Context(), holdfast.Unsafe, say("next")); err != nil {
						t.Errorf("the next operation: %v", err)
					}
				}), 0, 0)
				if n := w.servers[0].dials(); n != 2-want {
					t.Errorf("dialed %d times, want %d", n, 2-want)
				}
			})
		})
	}
}

// The defect of the original: 20 bytes that came as 10 and, 300 ms later, 10 were
// an early end of the stream.
func TestReadFullJoinsSplitSegments(t *testing.T) {
	const text = "0123456789abcdefghij"
	for _, split := range []int{10, 1} {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(conn net.Conn, _ string) bool {
				for rest := text; rest != ""; rest = rest[split:] {
					io.WriteString(conn, rest[:split])
					time.Sleep(300 * time.Millisecond)
				}
				return true
			})
			c := w.cluster(holdfast.Config{})
			got := make([]byte, len(text))
			err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				if _, err := io.WriteString(conn, "read\n"); err != nil {
					return err
				}
				_, err := io.ReadFull(conn, got)
				return err
			})
			if err != nil || string(got) != text {
				t.Errorf("split by %d: got %q, %v", split, got, err)
			}
		})
	}
}

func TestCallersWaitForTheFirstConnect(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.net.SetLink("", "", simnet.Link{Latency: 500 * time.Millisecond})
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 5}})
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say(fmt.Sprint("caller ", i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() { // one who has no time to wait takes no one's connection away
			ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
			defer cancel()
			var err error
			within(t, took(func() { err = c.Do(ctx, holdfast.Unsafe, say("impatient")) }), 700*time.Millisecond, 700*time.Millisecond)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the impatient caller got %v", err)
			}
		})
		time.Sleep(600 * time.Millisecond)
		if s := c.Stats(); s.Waiting != 11 || s.Dialing != 2 || s.Nodes[0].State != holdfast.StateConnecting {
			t.Errorf("%d wait, %d dials, %v; want 11, 2 at once, connecting", s.Waiting, s.Dialing, s.Nodes[0].State)
		}
		// Connected after 1 s, two more every second; 1 s a request: 2 + 4 + 4.
		within(t, took(wg.Wait), 3400*time.Millisecond, 3400*time.Millisecond)
		if n := len(w.servers[0].got()); n != 10 {
			t.Errorf("the server got %d requests, want 10", n)
		}
	})
}

// A node that has just come back is usable before the policy has been asked about
// the new set: who calls in between waits for the answer, and is not told that
// there is nobody.
func TestCallersWaitForThePolicy(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.servers[0]
		s.crash()
		var slow atomic.Bool
		policy := holdfast.Ordered()
		c := w.cluster(holdfast.Config{
			Backoff: every(time.Second),
			Picker: func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
				if slow.Load() {
					time.Sleep(time.Second)
				}
				return policy(nodes)
			},
		})
		c.Acquire(t.Context())
		s.listen()
		slow.Store(true)
		time.Sleep(1500 * time.Millisecond)
		if state := c.Stats().Nodes[0].State; state != holdfast.StateIdle {
			t.Fatalf("the node is %v: the story is over before it began", state)
		}
		within(t, took(func() {
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Error(err)
			}
		}), 0, time.Second)
	})
}

func TestNegativeWaitersFailFast(t *testing.T) {
	atOnce := func(t *testing.T, what string, c *holdfast.Cluster, want error) {
		t.Helper()
		for _, way := range waysIn[:2] {
			var err error
			within(t, took(func() { err = way.take(t.Context(), c) }), 0, 0)
			if !errors.Is(err, want) {
				t.Errorf("%s %s: %v, want %v", way.name, what, err, want)
			}
		}
	}
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1, Waiters: -1}, Retry: holdfast.Retry{Attempts: -1}, Backoff: every(time.Second)})
		conn, err := c.Acquire(t.Context()) // who may dial does not wait for anyone
		if err != nil {
			t.Fatal(err)
		}
		atOnce(t, "with a full pool", c, holdfast.ErrPoolExhausted)
		conn.Release()
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Error(err)
		}

		w.servers[0].crash()
		time.Sleep(time.Second)
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("the dead server gave %v", err)
		}
		atOnce(t, "while the only node backs off", c, holdfast.ErrNoEndpoint)
	})
}

// No reader, timer or watcher of ours stands behind an operation: what runs while
// fifty are under way is the same as when one is.
func TestNoGoroutinePerOperation(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 20}})
		var wg sync.WaitGroup
		defer wg.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for range 50 {
			wg.Go(func() {
				c.Do(ctx, holdfast.Unsafe, func(ctx context.Context, conn *holdfast.Conn) error {
					<-ctx.Done()
					return nil
				})
			})
		}
		time.Sleep(time.Minute)
		s := c.Stats()
		if s.Conns != 20 || s.Waiting != 30 {
			t.Fatalf("%d at work, %d waiting; want 20 and 30", s.Conns, s.Waiting)
		}
		if names := ours(); len(names) != 1 || !strings.Contains(names[0], "run") {
			t.Errorf("goroutines of ours beside the callers': %v, want the Cluster's clock alone", names)
		}
		cancel()
	})
}

// Every function of the user's may call back: Stats, Pick, Refresh and the others
// take the lock that none of these functions may run under. A deadlock here ends
// with the stacks of all goroutines, because the bubble never becomes idle.
func TestUserFunctionsRunOutsideLocks(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		var c *holdfast.Cluster
		var mu sync.Mutex
		called := map[string]int{}
		callBack := func(from string) {
			mu.Lock()
			called[from]++
			first := called[from] <= 50
			mu.Unlock()
			if c == nil || !first { // New builds the first view; and every Refresh makes new calls
				return
			}
			c.Stats()
			c.ResetBackoff()
			c.Refresh(time.Hour)
			if lease, err := c.Pick(1, nil); err == nil {
				lease.Node().State()
				lease.Node().Latency()
				lease.Report(time.Millisecond, nil)
				lease.Done()
			}
		}
		policy := holdfast.Ordered()
		cfg := holdfast.Config{
			Picker: func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
				callBack("Picker")
				pick := policy(nodes)
				depth := atomic.Int32{} // its own Pick must not ask again
				return func(key uint64, tried []*holdfast.Node) *holdfast.Node {
					if depth.Add(1) == 1 {
						callBack("pick")
					}
					depth.Add(-1)
					return pick(key, tried)
				}
			},
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				callBack("Dial")
				return w.client.DialContext(ctx, network, addr)
			},
			Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				callBack("Lookup")
				if strings.HasPrefix(e.Addr, "lost") {
					return nil, 0, errors.New("no such name")
				}
				e.Addr = "10.0.0.3:7000"
				return []holdfast.Endpoint{e}, 0, nil
			}},
			Handshake: func(context.Context, *holdfast.Conn) error { callBack("Handshake"); return nil },
			Probe:     func(context.Context, net.Conn) error { callBack("Probe"); return nil },
			Check:     holdfast.Check{Interval: 500 * time.Millisecond},
			Pool:      holdfast.Pool{Ping: time.Second},
			Outlier:   holdfast.Outlier{Consecutive: 2},
			Retry: holdfast.Retry{Classify: func(err error) holdfast.Class {
				callBack("Classify")
				return holdfast.Classify(err)
			}},
			Log:     recorder(func(record) { callBack("Log") }).at(levelPayload),
			Payload: func(p []byte) []byte { callBack("Payload"); return p },
			Observe: func(e holdfast.Event) { callBack("Observe " + string(e.Kind)) },
		}
		c = w.clusterOf(cfg, "10.0.0.1:7000", "10.0.0.2:7000", "db.example:7000", "lost.example:7000")

		op := func(_ context.Context, conn *holdfast.Conn) error {
			callBack("fn")
			return exchange(conn, "x")
		}
		for second := range 10 {
			switch second {
			case 3: // the first node breaks, goes into backoff, is ejected
				w.servers[0].does(func(net.Conn, string) bool { return false })
			case 5:
				w.servers[0].crash()
			case 6: // nobody is left
				w.servers[1].crash()
				w.servers[2].crash()
			case 8:
				for _, s := range w.servers {
					s.does(nil)
					s.listen()
				}
			}
			for range 5 {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				c.Do(ctx, holdfast.Idempotent, op)
				if conn, err := c.DialContext(ctx, "", ""); err == nil {
					conn.Close()
				}
				cancel()
			}
			time.Sleep(time.Second)
		}
		c.Close()
		for _, name := range []string{"Picker", "pick", "Dial", "Lookup", "Handshake", "Probe", "Classify", "Log", "Payload", "fn",
			"Observe state", "Observe dial", "Observe close", "Observe retry", "Observe resolve", "Observe check"} {
			mu.Lock()
			if called[name] == 0 {
				t.Errorf("%s was never called", name)
			}
			mu.Unlock()
		}
	})
}

// lastFirst is a policy of one's own.
func lastFirst(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
	return func(_ uint64, tried []*holdfast.Node) *holdfast.Node {
		for _, n := range slices.Backward(nodes) {
			if !slices.Contains(tried, n) {
				return n
			}
		}
		return nil
	}
}

// waysIn are the calls that end with a connection; each gives it back at once.
var waysIn = []struct {
	name string
	take func(ctx context.Context, c *holdfast.Cluster) error
}{

	{"Do", func(ctx context.Context, c *holdfast.Cluster) error {
		return c.Do(ctx, holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { return nil })
	}},
	{"Acquire", func(ctx context.Context, c *holdfast.Cluster) error {
		conn, err := c.Acquire(ctx)
		if err == nil {
			conn.Release()
		}
		return err
	}},
	{"WaitReady", func(ctx context.Context, c *holdfast.Cluster) error { return c.WaitReady(ctx) }},
	{"DialContext", func(ctx context.Context, c *holdfast.Cluster) error {
		conn, err := c.DialContext(ctx, "tcp", "any")
		if err == nil {
			conn.Close()
		}
		return err
	}},
	{"DialAddr", func(ctx context.Context, c *holdfast.Cluster) error {
		conn, err := c.DialAddr(ctx, "tcp", "10.0.0.1:7000")
		if err == nil {
			conn.Close()
		}
		return err
	}},
}

// every is a backoff of a fixed interval, so that times are exact.
func every(d time.Duration) holdfast.Backoff {
	return holdfast.Backoff{Base: d, Multiplier: 1, Jitter: -1}
}

// all returns the events of one kind, also those that are being delivered.
func (w *world) all(kind holdfast.EventKind) []holdfast.Event {
	synctest.Wait()
	return w.seen(kind)
}

// ours names the functions of the library in each goroutine that is no caller's.
func ours() (names []string) {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		var own []string
		for line := range strings.Lines(g) {
			if name, ok := strings.CutPrefix(line, modulePath+"."); ok {
				own = append(own, strings.TrimSpace(name))
			}
		}
		if len(own) > 0 && !strings.Contains(g, modulePath+"_test.") {
			names = append(names, strings.Join(own, " < "))
		}
	}
	return names
}
