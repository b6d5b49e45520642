package holdfast_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
)

func TestDialTimeoutIsPerAttempt(t *testing.T) {
	blackHole := func(w *world) *holdfast.Cluster {
		w.net.Partition("10.0.1.1", "")
		return w.cluster(holdfast.Config{
			Picker:   holdfast.Ordered(),
			Timeouts: holdfast.Timeouts{Dial: 2 * time.Second, Stagger: -1},
			Backoff:  every(100 * time.Millisecond),
			Retry:    holdfast.Retry{Attempts: 3, Backoff: every(500 * time.Millisecond)},
		})
	}
	t.Run("each connect has its own", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := blackHole(w)
			var err error
			within(t, took(func() { _, err = c.DialContext(t.Context(), "", "") }), 6*time.Second, 6*time.Second)
			if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseDial || len(e.Tried) != 2 {
				t.Errorf("got %v, want three timeouts of the dial", err)
			}
		})
	})
	t.Run("each attempt of an operation", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := blackHole(w)
			var err error
			within(t, took(func() { err = c.Do(t.Context(), holdfast.Unsafe, say("x")) }), 7*time.Second, 7*time.Second) // 3 × 2 s and 2 × 0.5 s
			if e := asError(t, err); !e.Timeout() || e.Attempt != 3 {
				t.Errorf("got %v, want a timeout of the third attempt", err)
			}
			for _, e := range w.all(holdfast.EventDial) {
				within(t, e.Duration, 2*time.Second, 2*time.Second)
			}
		})
	})
	t.Run("the context over all of them", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := blackHole(w)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			var err error
			within(t, took(func() { err = c.Do(ctx, holdfast.Unsafe, say("x")) }), 3*time.Second, 3*time.Second)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the end of the context", err)
			}
		})
	})
}

// The worst wait of the original was 115 s for one black-holed server, whatever
// the caller wanted. Here each wait of the API is begun by a caller who has one
// second, and each ends with it, by its deadline as by a cancellation.
func TestContextBoundsEveryWait(t *testing.T) {
	type cfg = holdfast.Config
	forever := holdfast.Timeouts{Dial: -1, Handshake: -1, Read: -1, Write: -1}
	silence := func(w *world) { w.servers[0].does(func(net.Conn, string) bool { return true }) }
	blackHole := func(w *world) { w.net.Partition("10.0.1.1", "10.0.0.1") }
	dead := func(w *world) { w.servers[0].crash() }
	nothing := func(*world) {}
	askForever := cfg{Names: holdfast.Names{Lookup: func(ctx context.Context, _ holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
		<-ctx.Done()
		return nil, 0, ctx.Err()
	}}}
	shakeForever := cfg{Timeouts: forever, Handshake: func(_ context.Context, conn *holdfast.Conn) error { return exchange(conn, "hello") }}
	full := cfg{Pool: holdfast.Pool{Max: 1}}
	do := func(s holdfast.Safety, fn func(context.Context, *holdfast.Conn) error) func(context.Context, *holdfast.Cluster) error {
		return func(ctx context.Context, c *holdfast.Cluster) error { return c.Do(ctx, s, fn) }
	}
	lease := func(handshake func(context.Context, *holdfast.Conn) error) func(context.Context, *holdfast.Cluster) error {
		return func(ctx context.Context, c *holdfast.Cluster) error {
			l, err := c.Pick(0, nil)
			if err != nil {
				return err
			}
			defer l.Done()
			_, err = l.Dial(ctx, handshake)
			return err
		}
	}
	lookedUp := func(ctx context.Context, c *holdfast.Cluster) error {
		_, err := c.DialAddr(ctx, "tcp", "other.example:7000")
		return err
	}

	type wait struct {
		name   string
		cfg    cfg
		before func(w *world)
		begin  func(ctx context.Context, c *holdfast.Cluster) error
	}
	waits := []wait{
		{"Lease.Dial: connecting", cfg{Timeouts: forever}, blackHole, lease(nil)},
		{"Lease.Dial: Config.Handshake", shakeForever, silence, lease(nil)},
		{"Lease.Dial: its own handshake", cfg{Timeouts: forever}, silence, lease(say("hello"))},
		{"Do: a read", cfg{Timeouts: forever}, silence, do(holdfast.Unsafe, say("x"))},
		{"Do: a write", cfg{Timeouts: forever}, func(w *world) { w.net.Host("10.0.0.1").Freeze() },
			do(holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				_, err := conn.Write(make([]byte, 1<<20))
				return err
			})},
		{"Do: the backoff before a retry", cfg{Retry: holdfast.Retry{Backoff: every(time.Hour)}},
			func(w *world) { w.servers[0].does(func(net.Conn, string) bool { return false }) }, do(holdfast.Idempotent, say("x"))},
		{"Do: the backoff of the only node", cfg{Backoff: every(time.Hour)}, dead, do(holdfast.Unsafe, say("x"))},
		{"WaitReady: the backoff of the only node", cfg{Backoff: every(time.Hour)}, dead,
			func(ctx context.Context, c *holdfast.Cluster) error { return c.WaitReady(ctx) }},
		{"DialAddr: a foreign name", askForever, nothing, lookedUp},
	}
	for _, way := range waysIn {
		if way.name != "DialAddr" {
			waits = append(waits, wait{way.name + ": the first lookup", askForever, nil, way.take})
		}
		waits = append(waits,
			wait{way.name + ": connecting", cfg{Timeouts: forever}, blackHole, way.take},
			wait{way.name + ": Config.Handshake", shakeForever, silence, way.take})
	}
	stubborn := cfg{Dial: func(context.Context, string, string) (net.Conn, error) {
		time.Sleep(time.Minute)
		return nil, errors.New("at last")
	}}
	for _, way := range waysIn {
		waits = append(waits, wait{way.name + ": a Dial that does not heed its context", stubborn, nothing, way.take})
	}
	for _, way := range waysIn[:3] {
		waits = append(waits, wait{way.name + ": a full pool", full, nothing, func(ctx context.Context, c *holdfast.Cluster) error {
			conn, err := c.Acquire(ctx)
			if err != nil {
				return err
			}
			defer conn.Release()
			return way.take(ctx, c)
		}})
	}
	waits = append(waits, wait{"Shutdown: a connection that is lent", cfg{}, nothing, func(ctx context.Context, c *holdfast.Cluster) error {
		if _, err := c.Acquire(ctx); err != nil {
			return err
		}
		return c.Shutdown(ctx)
	}})

	for _, wait := range waits {
		t.Run(wait.name, func(t *testing.T) {
			for _, cause := range []error{context.DeadlineExceeded, context.Canceled} {
				inWorld(t, 1, func(t *testing.T, w *world) {
					c := func() *holdfast.Cluster {
						if wait.before == nil {
							return w.clusterOf(wait.cfg, "db.example:7000")
						}
						wait.before(w)
						return w.cluster(wait.cfg)
					}()
					ctx, cancel := context.WithCancel(t.Context())
					if cause == context.DeadlineExceeded {
						ctx, cancel = context.WithTimeout(t.Context(), time.Second)
					} else {
						time.AfterFunc(time.Second, cancel)
					}
					defer cancel()
					var err error
					within(t, took(func() { err = wait.begin(ctx, c) }), time.Second, time.Second)
					if !errors.Is(err, cause) {
						t.Errorf("got %v, want %v", err, cause)
					}
					var e *holdfast.Error
					if strings.HasSuffix(wait.name, "a full pool") && (!errors.As(err, &e) || e.Phase != holdfast.PhaseAcquire) {
						t.Errorf("got %v, want it to be the acquire that was waited for", err)
					}
				})
			}
		})
	}
	t.Run("Pick never waits", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.clusterOf(askForever, "db.example:7000")
			within(t, took(func() {
				if _, err := c.Pick(0, nil); !errors.Is(err, holdfast.ErrNoEndpoint) {
					t.Errorf("got %v, want ErrNoEndpoint", err)
				}
			}), 0, 0)
		})
	})
}

func TestReadDeadlineFromContextElseConfig(t *testing.T) {
	read := func(_ context.Context, conn *holdfast.Conn) error { return exchange(conn, "x") }
	for _, row := range []struct {
		name   string
		config time.Duration // Timeouts.Read
		ctx    time.Duration // of the caller; 0 when there is no deadline
		fn     func(context.Context, *holdfast.Conn) error
		want   time.Duration
	}{
		{"the default", 0, 0, read, 60 * time.Second},
		{"the configured", 3 * time.Second, 0, read, 3 * time.Second},
		{"the context's, when earlier", 3 * time.Second, time.Second, read, time.Second},
		{"the configured, when earlier", 3 * time.Second, time.Minute, read, 3 * time.Second},
		{"the context's alone", -1, 5 * time.Minute, read, 5 * time.Minute},
		{"the operation's own, when longer", time.Second, 0, func(_ context.Context, conn *holdfast.Conn) error {
			conn.SetReadDeadline(time.Now().Add(9 * time.Second))
			return exchange(conn, "x")
		}, 9 * time.Second},
		{"the operation's own, never past the context", time.Second, 5 * time.Second, func(_ context.Context, conn *holdfast.Conn) error {
			conn.SetReadDeadline(time.Time{})
			return exchange(conn, "x")
		}, 5 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				w.servers[0].does(func(net.Conn, string) bool { return true })
				c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Read: row.config}})
				ctx := t.Context()
				if row.ctx > 0 {
					var cancel func()
					ctx, cancel = context.WithTimeout(ctx, row.ctx)
					defer cancel()
				}
				var err error
				within(t, took(func() { err = c.Do(ctx, holdfast.Unsafe, row.fn) }), row.want, row.want)
				if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseRead || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v, want a timeout of the read", err)
				}
			})
		})
	}
	// The limit is of each read: a long answer that keeps coming is none too slow.
	t.Run("each read begins anew", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(conn net.Conn, line string) bool {
				for i := range line {
					time.Sleep(2 * time.Second)
					io.WriteString(conn, line[i:i+1])
				}
				return true
			})
			c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Read: 3 * time.Second}})
			within(t, took(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("123456789")); err != nil {
					t.Error(err)
				}
			}), 20*time.Second, 20*time.Second)
		})
	})
	// A limit does not outlive its operation: the next has its own, and none is
	// left on a connection that was lent out bare.
	t.Run("no limit is left behind", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Read: time.Second}})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := c.Do(ctx, holdfast.Unsafe, say("x")); err != nil {
				t.Fatal(err)
			}
			w.servers[0].does(func(conn net.Conn, line string) bool {
				time.Sleep(10 * time.Second)
				return reply(conn, line)
			})
			conn, err := c.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			if err := exchange(conn, "y"); err != nil {
				t.Error(err)
			}
			if n := w.servers[0].dials(); n != 1 {
				t.Errorf("dialed %d times: it is not the same connection", n)
			}
		})
	})
}

// One attempt's limit leaves the others their time, wherever it strikes.
func TestPerTryMovesOn(t *testing.T) {
	for _, row := range []struct {
		name   string
		safety holdfast.Safety
		sick   func(t *testing.T, w *world, c *holdfast.Cluster)
	}{
		{"from a read", holdfast.Idempotent, func(_ *testing.T, w *world, _ *holdfast.Cluster) {
			w.servers[0].does(func(net.Conn, string) bool { return true })
		}},
		{"from a dial", holdfast.Unsafe, func(_ *testing.T, w *world, _ *holdfast.Cluster) { w.net.Partition("", "10.0.0.1") }},
		{"from a full pool", holdfast.Unsafe, func(t *testing.T, _ *world, c *holdfast.Cluster) {
			conn, err := c.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(conn.Release)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{
					Picker:   holdfast.Ordered(),
					Pool:     holdfast.Pool{Max: 1},
					Timeouts: holdfast.Timeouts{Dial: -1, Read: -1, Stagger: -1},
					Retry:    holdfast.Retry{PerTry: time.Second, Backoff: every(100 * time.Millisecond)},
				})
				row.sick(t, w, c)
				within(t, took(func() {
					if err := c.Do(t.Context(), row.safety, say("x")); err != nil {
						t.Error(err)
					}
				}), 1100*time.Millisecond, 1100*time.Millisecond)
				if n := len(w.servers[1].got()); n != 1 {
					t.Errorf("the other server got %d requests", n)
				}
			})
		})
	}
}

func TestEveryPhaseHasItsTimeout(t *testing.T) {
	hangs := func(net.Conn, string) bool { return true }
	for _, row := range []struct {
		name  string
		cfg   holdfast.Config
		addr  string
		sick  func(w *world)
		fn    func(context.Context, *holdfast.Conn) error
		phase holdfast.Phase
		after time.Duration
	}{
		{name: "resolve", addr: "db.example:7000", phase: holdfast.PhaseResolve, after: 30 * time.Second,
			cfg: holdfast.Config{Names: holdfast.Names{Lookup: func(ctx context.Context, _ holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				<-ctx.Done()
				return nil, 0, ctx.Err()
			}}}},
		{name: "dial, by default", sick: func(w *world) { w.net.Partition("", "10.0.0.1") }, phase: holdfast.PhaseDial, after: 5 * time.Second},
		{name: "dial", sick: func(w *world) { w.net.Partition("", "10.0.0.1") }, phase: holdfast.PhaseDial, after: 700 * time.Millisecond,
			cfg: holdfast.Config{Timeouts: holdfast.Timeouts{Dial: 700 * time.Millisecond}}},
		{name: "handshake, by default", sick: func(w *world) { w.servers[0].does(hangs) }, phase: holdfast.PhaseHandshake, after: 5 * time.Second,
			cfg: holdfast.Config{Handshake: say("hello")}},
		{name: "handshake, a byte at a time", phase: holdfast.PhaseHandshake, after: 4 * time.Second,
			cfg: holdfast.Config{Handshake: say("hello"), Timeouts: holdfast.Timeouts{Handshake: 4 * time.Second}},
			sick: func(w *world) {
				w.servers[0].does(func(conn net.Conn, line string) bool {
					for i := range line {
						time.Sleep(time.Second)
						io.WriteString(conn, line[i:i+1])
					}
					return true
				})
			}},
		{name: "write, by default", sick: func(w *world) { w.net.Host("10.0.0.1").Freeze() }, phase: holdfast.PhaseWrite, after: 10 * time.Second,
			fn: func(_ context.Context, conn *holdfast.Conn) error {
				_, err := conn.Write(make([]byte, 1<<20))
				return err
			}},
		{name: "read, by default", sick: func(w *world) { w.servers[0].does(hangs) }, phase: holdfast.PhaseRead, after: 60 * time.Second},
		{name: "one attempt", sick: func(w *world) { w.servers[0].does(hangs) }, phase: holdfast.PhaseRead, after: 3 * time.Second,
			cfg: holdfast.Config{Retry: holdfast.Retry{PerTry: 3 * time.Second}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				if row.sick != nil {
					row.sick(w)
				}
				if row.addr == "" {
					row.addr = w.servers[0].addr
				}
				if row.fn == nil {
					row.fn = say("x")
				}
				row.cfg.Retry.Attempts = -1
				c := w.clusterOf(row.cfg, row.addr)
				var err error
				within(t, took(func() { err = c.Do(t.Context(), holdfast.Unsafe, row.fn) }), row.after, row.after)
				if e := asError(t, err); !e.Timeout() || e.Phase != row.phase {
					t.Errorf("got %v (%v, %v), want a timeout of phase %v", err, e.Phase, e.Class, row.phase)
				}
				w.net.Host("10.0.0.1").Thaw()
			})
		})
	}
}
