package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// An operation may hide the error its connection saw; the stream is in an unknown
// place all the same.
func TestAnyErrorPoisonsTheConn(t *testing.T) {
	read := func(conn *holdfast.Conn) error { _, err := conn.Read(make([]byte, 1)); return err }
	for _, row := range []struct {
		name string
		see  func(w *world, conn *holdfast.Conn) error
	}{
		{"read deadline", func(_ *world, conn *holdfast.Conn) error {
			conn.SetReadDeadline(time.Now().Add(time.Second))
			return read(conn)
		}},
		{"deadline in the past", func(_ *world, conn *holdfast.Conn) error {
			conn.SetDeadline(time.Unix(1, 0))
			return read(conn)
		}},
		{"write deadline", func(_ *world, conn *holdfast.Conn) error {
			conn.SetWriteDeadline(time.Unix(1, 0))
			_, err := conn.Write([]byte("x"))
			return err
		}},
		{"end of the stream", func(w *world, conn *holdfast.Conn) error { w.servers[0].hangUp(); return read(conn) }},
		{"reset", func(w *world, conn *holdfast.Conn) error {
			conn.NetConn().(*simnet.Conn).Peer().Reset()
			return read(conn)
		}},
	} {
		poisons := func(t *testing.T, use func(t *testing.T, w *world, c *holdfast.Cluster)) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{})
				if err := c.Do(t.Context(), holdfast.Unsafe, say("sound")); err != nil {
					t.Fatal(err)
				}
				use(t, w, c)
				if s := c.Stats(); s.Conns != 0 {
					t.Errorf("%d connections are left", s.Conns)
				}
				if err := c.Do(t.Context(), holdfast.Unsafe, say("next")); err != nil {
					t.Error(err)
				}
				if n := w.servers[0].dials(); n != 2 {
					t.Errorf("dialed %d times, want a new connection after the error", n)
				}
			})
		}
		see := func(t *testing.T, w *world, conn *holdfast.Conn) {
			if err := row.see(w, conn); err == nil {
				t.Error("there was no error to see")
			}
		}
		t.Run(row.name+", hidden in Do", func(t *testing.T) {
			poisons(t, func(t *testing.T, w *world, c *holdfast.Cluster) {
				c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
					see(t, w, conn)
					return nil
				})
			})
		})
		t.Run(row.name+", called reusable", func(t *testing.T) {
			poisons(t, func(t *testing.T, w *world, c *holdfast.Cluster) {
				c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
					see(t, w, conn)
					return holdfast.Reusable(errors.New("no harm done"))
				})
			})
		})
		t.Run(row.name+", released", func(t *testing.T) {
			poisons(t, func(t *testing.T, w *world, c *holdfast.Cluster) {
				conn, err := c.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				see(t, w, conn)
				conn.Release()
			})
		})
	}
}

// The disaster of this field: a reply that comes after its caller has given up is
// read by the next one. With the original it happens when close_on_error is off.
func TestLateReplyNeverReachesTheNextCaller(t *testing.T) {
	t.Run("after a timeout", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(conn net.Conn, line string) bool {
				if line == "slow\n" {
					time.Sleep(2 * time.Second)
				}
				return reply(conn, line)
			})
			c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1}, Timeouts: holdfast.Timeouts{Read: time.Second}})
			if err := c.Do(t.Context(), holdfast.Unsafe, say("slow")); err == nil {
				t.Fatal("the slow request was answered in time")
			}
			for range 3 { // before, when and after the late reply comes
				if err := c.Do(t.Context(), holdfast.Unsafe, say("next")); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
			}
		})
	})
	// What broke redis-py and go-redis: replies take up to 10 ms, callers give up
	// after up to 14 ms, and all share a few connections.
	t.Run("in a storm of cancels", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			for i, s := range w.servers {
				dice, mu := rand.New(rand.NewPCG(1, uint64(i))), sync.Mutex{}
				s.does(func(conn net.Conn, line string) bool {
					mu.Lock()
					delay := time.Duration(dice.IntN(10_000)) * time.Microsecond
					mu.Unlock()
					time.Sleep(delay)
					return reply(conn, line)
				})
			}
			c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 4}, Outlier: holdfast.Outlier{Consecutive: -1, SuccessRate: -1}})
			var well, cut atomic.Int64
			var wg sync.WaitGroup
			for caller := range 20 {
				dice := rand.New(rand.NewPCG(2, uint64(caller)))
				wg.Go(func() {
					for i := range 50 {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(dice.IntN(14_000))*time.Microsecond)
						err := c.Do(ctx, holdfast.Idempotent, say(fmt.Sprintf("caller %d request %d", caller, i)))
						cancel()
						switch {
						case errors.Is(err, errWrongReply):
							t.Errorf("caller %d: %v", caller, err)
						case err == nil:
							well.Add(1)
						default:
							cut.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if well.Load() < 100 || cut.Load() < 100 {
				t.Errorf("%d answered, %d cut: the storm is none", well.Load(), cut.Load())
			}
		})
	})
}

// The original's next write after a failure was a NoMethodError on nil.
func TestUseAfterCloseIsErrClosed(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{})
		lease, err := c.Pick(0, nil)
		if err != nil {
			t.Fatal(err)
		}
		lent, err := c.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		own, err := c.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}

		closed := func(what string, err error) {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after Close: %v, want net.ErrClosed", what, err)
			}
		}
		for _, way := range waysIn {
			err := way.take(t.Context(), c)
			closed(way.name, err)
			if !errors.Is(err, holdfast.ErrClosed) || asError(t, err).Class != holdfast.ClassClosed {
				t.Errorf("%s after Close: %v, want holdfast.ErrClosed", way.name, err)
			}
		}
		_, err = c.Pick(0, nil)
		closed("Pick", err)
		_, err = lease.Dial(t.Context(), nil)
		closed("Lease.Dial", err)
		if class := asError(t, err).Class; class != holdfast.ClassClosed {
			t.Errorf("Lease.Dial after Close: class %v", class)
		}
		lease.Done()
		for name, conn := range map[string]net.Conn{"lent": lent, "own": own} {
			_, err = conn.Write([]byte("x"))
			closed("Write of a conn "+name, err)
			_, err = conn.Read(make([]byte, 1))
			closed("Read of a conn "+name, err)
			closed("Close of a conn "+name, conn.Close())
			closed("SetDeadline of a conn "+name, conn.SetDeadline(time.Now()))
		}
		lent.Release()
		lent.Discard(nil)

		c.Refresh(time.Second)
		c.ResetBackoff()
		if s := c.Stats(); s.Conns != 0 || s.Idle != 0 {
			t.Errorf("%d connections are left", s.Conns)
		}
		if err := errors.Join(c.Close(), c.Shutdown(t.Context())); err != nil {
			t.Errorf("closing again: %v", err)
		}
	})
}

// A panic in the operation goes on, one in a function that runs in a goroutine of
// ours is an error; either way the pool's only place is free again.
func TestPanicGivesItsPlaceBack(t *testing.T) {
	recovers := func(t *testing.T, w *world, c *holdfast.Cluster) {
		t.Helper()
		synctest.Wait()
		if s := c.Stats(); s.Conns != 0 || s.Dialing != 0 || s.Nodes[0].InFlight != 0 || len(w.client.Conns()) != 0 {
			t.Errorf("left: %d connections, %d dials, %d in flight, %d sockets", s.Conns, s.Dialing, s.Nodes[0].InFlight, len(w.client.Conns()))
		}
		c.ResetBackoff()
		if err := c.Do(t.Context(), holdfast.Unsafe, say("after the panic")); err != nil {
			t.Errorf("after the panic: %v", err)
		}
	}
	isError := func(t *testing.T, err error) {
		t.Helper()
		if asError(t, err); !strings.Contains(err.Error(), "panic: boom") {
			t.Errorf("got %v, want the panic as an error", err)
		}
	}
	one := holdfast.Pool{Max: 1, Total: 1}

	t.Run("operation", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Pool: one})
			thrown := apart(func() {
				c.Do(t.Context(), holdfast.Idempotent, func(context.Context, *holdfast.Conn) error { panic("boom") })
			})
			if thrown != "boom" {
				t.Errorf("the panic that went on is %v", thrown)
			}
			recovers(t, w, c)
		})
	})
	t.Run("Handshake", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			boom := true
			c := w.cluster(holdfast.Config{Pool: one, Handshake: func(context.Context, *holdfast.Conn) error {
				if boom {
					panic("boom")
				}
				return nil
			}})
			isError(t, c.Do(t.Context(), holdfast.Unsafe, say("x")))
			boom = false
			recovers(t, w, c)
		})
	})
	t.Run("handshake of a lease", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Pool: one})
			lease, err := c.Pick(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = lease.Dial(t.Context(), func(context.Context, *holdfast.Conn) error { panic("boom") })
			lease.Done()
			isError(t, err)
			recovers(t, w, c)
		})
	})
	t.Run("Dial", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			boom := true
			c := w.cluster(holdfast.Config{Pool: one, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if boom {
					panic("boom")
				}
				return w.client.DialContext(ctx, network, addr)
			}})
			isError(t, c.Do(t.Context(), holdfast.Unsafe, say("x")))
			boom = false
			recovers(t, w, c)
		})
	})
	t.Run("Probe", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			var boom atomic.Bool
			boom.Store(true)
			c := w.cluster(holdfast.Config{Pool: one, Check: holdfast.Check{Interval: time.Second}, Probe: func(context.Context, net.Conn) error {
				if boom.Load() {
					panic("boom")
				}
				return nil
			}})
			c.Refresh(0) // begins
			synctest.Wait()
			checks := w.all(holdfast.EventCheck)
			if len(checks) == 0 || checks[0].Err == nil || !strings.Contains(checks[0].Err.Error(), "panic: boom") {
				t.Errorf("checks %v, want the panic as an error", checks)
			}
			boom.Store(false)
			time.Sleep(10 * time.Second)
			recovers(t, w, c)
		})
	})
}

// apart runs f in a goroutine of its own, which f may end, and returns what it
// panicked with.
func apart(f func()) (thrown any) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { thrown = recover() }()
		f()
	}()
	<-done
	return thrown
}

// meddle is a Config.Dial that hands each new connection, counted from 1, to f
// before the Cluster gets it.
func (w *world) meddle(f func(nth int, conn *simnet.Conn)) func(context.Context, string, string) (net.Conn, error) {
	var dials atomic.Int32
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		nth := int(dials.Add(1))
		conn, err := w.client.DialContext(ctx, network, addr)
		if err == nil {
			f(nth, conn.(*simnet.Conn))
		}
		return conn, err
	}
}

// Whoever closes a connection may come at the moment its use succeeds.
func TestClosedAsItsUseSucceeds(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.servers[0].does(func(conn net.Conn, line string) bool { reply(conn, line); return false })
		c := w.cluster(holdfast.Config{})
		for range 100 {
			var closing sync.WaitGroup
			err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				_, err := io.WriteString(conn, "x\n")
				io.Copy(io.Discard, conn) // to its end: the connection broke
				closing.Go(func() { conn.Close() })
				return err
			})
			closing.Wait()
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
