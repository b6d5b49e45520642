package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/dns"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

func TestEveryNodeIsTriedBeforeAnySleep(t *testing.T) {
	wrongRole := func(w *world) func(context.Context, *holdfast.Conn) error {
		return func(_ context.Context, conn *holdfast.Conn) error {
			if conn.Node().Addr() != w.servers[4].addr {
				return errors.New("wrong role")
			}
			return nil
		}
	}
	for _, way := range waysIn[:4] {
		for _, how := range []string{"refuse", "fail the handshake"} {
			t.Run(way.name+", four "+how, func(t *testing.T) {
				inWorld(t, 5, func(t *testing.T, w *world) {
					cfg := holdfast.Config{Picker: holdfast.Random(), Retry: holdfast.Retry{Attempts: -1}, Handshake: wrongRole(w)}
					if how == "refuse" {
						cfg.Handshake = nil
						for _, s := range w.servers[:4] {
							s.crash()
						}
					}
					c := w.cluster(cfg)
					within(t, took(func() {
						if err := way.take(t.Context(), c); err != nil {
							t.Error(err)
						}
					}), 0, 0)
					dialed := map[string]int{}
					for _, e := range w.all(holdfast.EventDial) {
						if dialed[e.Node.Addr()]++; dialed[e.Node.Addr()] > 1 {
							t.Errorf("%v was dialed twice in one pass", e.Node)
						}
					}
					if dialed[w.servers[4].addr] != 1 {
						t.Errorf("dialed %v, want the good node at last", dialed)
					}
				})
			})
		}
	}
	t.Run("all refuse", func(t *testing.T) {
		inWorld(t, 5, func(t *testing.T, w *world) {
			for _, s := range w.servers {
				s.crash()
			}
			c := w.cluster(holdfast.Config{})
			start := time.Now()
			c.Do(t.Context(), holdfast.Unsafe, say("x"))
			synctest.Wait()
			w.mu.Lock()
			defer w.mu.Unlock()
			dials := 0
			for _, e := range w.events {
				switch {
				case e.Kind == holdfast.EventDial && dials < 5:
					if dials++; !e.Time.Equal(start) {
						t.Errorf("dial %d came after %v", dials, e.Time.Sub(start))
					}
				case e.Kind == holdfast.EventRetry && dials < 5:
					t.Errorf("slept after %d dials: %v", dials, e.Err)
				}
			}
		})
	})
}

func TestAttemptsBoundRetries(t *testing.T) {
	for attempts, want := range map[int]int{0: 3, -1: 1, 1: 1, 2: 2, 7: 7} {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(net.Conn, string) bool { return false })
			c := w.cluster(holdfast.Config{Retry: holdfast.Retry{Attempts: attempts}})
			err := c.Do(t.Context(), holdfast.Idempotent, say("again"))
			if n := len(w.servers[0].got()); n != want || asError(t, err).Attempt != want {
				t.Errorf("Attempts %d: ran %d times, the error is of attempt %d; want %d", attempts, n, asError(t, err).Attempt, want)
			}
		})
	}
	// The example of the Ruby guide.
	t.Run("three attempts, two seconds apart", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Retry: holdfast.Retry{Attempts: 3, Backoff: every(2 * time.Second)}})
			start := time.Now()
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want refused", err)
			}
			var at []time.Duration
			for _, e := range w.all(holdfast.EventDial) {
				at = append(at, e.Time.Sub(start))
			}
			if fmt.Sprint(at) != "[0s 2s 4s]" {
				t.Errorf("dialed at %v, want at once and 2 s apart", at)
			}
		})
	})
	// Exponential, with full jitter, capped, and all of it within a total time.
	t.Run("a total limit", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Retry: holdfast.Retry{Attempts: 1000, Backoff: holdfast.Backoff{Base: 50 * time.Millisecond, Multiplier: 2, Jitter: 1, Max: time.Second}}})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var err error
			within(t, took(func() { err = c.Do(ctx, holdfast.Unsafe, say("x")) }), 20*time.Second, 20*time.Second)
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v, want the end of the context and why", err)
			}
			for _, e := range w.all(holdfast.EventRetry) {
				if e.Duration > 2*time.Second {
					t.Errorf("slept %v, above twice the cap", e.Duration)
				}
			}
		})
	})
}

// lateContext is one whose timer is late, as on a busy host.
type lateContext struct {
	context.Context
	end time.Time
}

func (l lateContext) Deadline() (time.Time, bool) { return l.end, true }

// The connection's own deadline may fire before the context's timer: that is the
// end of the operation, not a failure to be mended.
func TestNoAttemptAfterTheDeadline(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{})
		late, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		runs := 0
		var err error
		within(t, took(func() {
			err = c.Do(lateContext{late, time.Now().Add(time.Second)}, holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
				runs++
				_, err := conn.Read(make([]byte, 1))
				return err
			})
		}), time.Second, time.Second)
		if runs != 1 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%d runs, %v; want the end of the context after one", runs, err)
		}
	})
}

func TestBackoffBetweenRounds(t *testing.T) {
	gaps := func(w *world) (gaps []time.Duration) {
		dials := w.all(holdfast.EventDial)
		for i := range dials[1:] {
			gaps = append(gaps, dials[i+1].Time.Sub(dials[i].Time))
		}
		return gaps
	}
	// What the original did, said here: ten retries, half a second apart, 5 s in all.
	t.Run("a fixed interval", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Backoff: every(500 * time.Millisecond), Retry: holdfast.Retry{Attempts: 11, Backoff: every(time.Millisecond)}})
			within(t, took(func() { c.Do(t.Context(), holdfast.Unsafe, say("x")) }), 5*time.Second, 5*time.Second)
			for _, gap := range gaps(w) {
				within(t, gap, 500*time.Millisecond, 500*time.Millisecond)
			}
		})
	})
	t.Run("by default", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Retry: holdfast.Retry{Backoff: every(time.Millisecond)}})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			c.WaitReady(ctx)
			exact, delay := 0, 200*time.Millisecond
			for _, gap := range gaps(w) {
				within(t, gap, delay*8/10-1, delay*12/10+1)
				if gap == delay {
					exact++
				}
				delay = min(delay*16/10, 30*time.Second)
			}
			if n := len(gaps(w)); delay != 30*time.Second || exact > n/2 {
				t.Errorf("%d delays grew to %v, %d of them without jitter", n, delay, exact)
			}
		})
	})
	// A second of each node's own: all are dialed again, and none twice.
	t.Run("a whole round", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			for _, s := range w.servers {
				s.crash()
			}
			c := w.cluster(holdfast.Config{Backoff: every(time.Second), Retry: holdfast.Retry{Attempts: 4, Backoff: every(time.Millisecond)}})
			start := time.Now()
			c.Do(t.Context(), holdfast.Unsafe, say("x"))
			rounds := map[time.Duration]int{}
			for _, e := range w.all(holdfast.EventDial) {
				rounds[e.Time.Sub(start)]++
			}
			if fmt.Sprint(rounds) != "map[0s:3 1s:3 2s:3 3s:3]" {
				t.Errorf("dials came %v, want three each second", rounds)
			}
		})
	})
}

func TestIdempotentRunsAgainOnAnotherNode(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		for _, s := range w.servers[:2] {
			s.does(func(net.Conn, string) bool { return false })
		}
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
		if err := c.Do(t.Context(), holdfast.Idempotent, say("carry on")); err != nil {
			t.Fatal(err)
		}
		for _, s := range w.servers {
			if got := fmt.Sprint(s.got()); got != "[carry on]" {
				t.Errorf("%s got %s, want the operation once", s.addr, got)
			}
		}
		if s := c.Stats(); s.Successes != 1 || s.Failures != 0 || s.Hidden != 2 || s.Retries != 2 {
			t.Errorf("%d successes, %d failures, %d hidden, %d retries; want 1, 0, 2, 2", s.Successes, s.Failures, s.Hidden, s.Retries)
		}
	})
	// When all were tried, the pass begins anew.
	t.Run("or on the same, when there is no other", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			var lost atomic.Int32
			w.servers[0].does(func(conn net.Conn, line string) bool { return lost.Add(1) > 2 && reply(conn, line) })
			c := w.cluster(holdfast.Config{})
			if err := c.Do(t.Context(), holdfast.Idempotent, say("carry on")); err != nil {
				t.Error(err)
			}
		})
	})
}

// With the original a timeout was never retried; here who may run twice says so.
func TestReadTimeoutIsRetriedOnlyWhenIdempotent(t *testing.T) {
	for _, row := range []struct {
		name   string
		cfg    holdfast.Timeouts
		freeze bool
		op     func(context.Context, *holdfast.Conn) error
		phase  holdfast.Phase
	}{
		{"read", holdfast.Timeouts{Read: time.Second}, false, say("x"), holdfast.PhaseRead},
		{"write", holdfast.Timeouts{Write: time.Second}, true, say(strings.Repeat("x", 100_000)), holdfast.PhaseWrite},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, safety := range []holdfast.Safety{holdfast.Unsafe, holdfast.Idempotent} {
				inWorld(t, 2, func(t *testing.T, w *world) {
					w.servers[0].does(func(net.Conn, string) bool { return true })
					if row.freeze {
						w.net.Host("10.0.0.1").Freeze()
						defer w.net.Host("10.0.0.1").Thaw()
					}
					c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Timeouts: row.cfg})
					var err error
					d := took(func() { err = c.Do(t.Context(), safety, row.op) })
					if safety == holdfast.Idempotent {
						if err != nil || len(w.servers[1].got()) != 1 {
							t.Errorf("idempotent: %v, the other server got %d requests", err, len(w.servers[1].got()))
						}
						return
					}
					within(t, d, time.Second, time.Second)
					if e := asError(t, err); !e.Timeout() || e.Phase != row.phase || e.Attempt != 1 || w.servers[1].dials() != 0 {
						t.Errorf("unsafe: %v at attempt %d, %d dials of the other server", err, e.Attempt, w.servers[1].dials())
					}
				})
			}
		})
	}
}

// An error that is the operation's own says nothing about its connection, however
// much it looks like a broken one.
func TestUnlistedErrorIsNotRetried(t *testing.T) {
	elsewhere := &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	nested := &holdfast.Error{Phase: holdfast.PhaseDial, Class: holdfast.ClassRefused, Node: "elsewhere", Err: elsewhere}
	for name, own := range map[string]error{
		"of the application":             errors.New("no such account"),
		"a file that is not there":       &fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT},
		"a connection to elsewhere":      elsewhere,
		"another cluster's":              nested,
		"the end of another stream":      io.EOF,
		"a limit of its own":             context.DeadlineExceeded,
		"a name of its own":              &net.DNSError{Err: "server misbehaving", IsTemporary: true},
		"permanent":                      holdfast.Permanent(elsewhere),
		"reusable":                       holdfast.Reusable(errors.New("-ERR syntax")),
		"reusable and another's":         holdfast.Reusable(nested),
		"reusable and wrapped":           fmt.Errorf("select: %w", holdfast.Reusable(nested)),
		"reusable and a broken stream's": holdfast.Reusable(io.ErrUnexpectedEOF),
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{})
				runs := 0
				err := c.Do(t.Context(), holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
					runs++
					if err := exchange(conn, "x"); err != nil {
						t.Error(err)
					}
					return own
				})
				if runs != 1 || !errors.Is(err, own) && !errors.Is(err, errors.Unwrap(own)) {
					t.Errorf("%d runs, got %v; want it back after one", runs, err)
				}
				if s := c.Stats(); s.Retries != 0 || s.Failures != 1 {
					t.Errorf("%d retries, %d failures counted", s.Retries, s.Failures)
				}
			})
		})
	}
}

// What the operation calls permanent is not tried elsewhere, though its connection
// broke.
func TestPermanentErrorIsNotRetried(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		for _, s := range w.servers {
			s.does(func(net.Conn, string) bool { return false })
		}
		c := w.cluster(holdfast.Config{})
		runs := 0
		err := c.Do(t.Context(), holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
			runs++
			return holdfast.Permanent(exchange(conn, "x"))
		})
		if runs != 1 || !errors.Is(err, io.EOF) {
			t.Errorf("%d runs, %v; want the lost connection after one", runs, err)
		}
	})
}

// research/client.md §4.8, row by row. The first of two nodes fails; that an
// operation may run again means that it ends well on the second, or on the first
// when it is back.
func TestRetrySafetyTable(t *testing.T) {
	busy := errors.New("server is busy")
	first := func(cut func(conn *simnet.Conn)) func(*world, *holdfast.Config) {
		return func(w *world, cfg *holdfast.Config) {
			cfg.Dial = w.meddle(func(nth int, conn *simnet.Conn) {
				if nth == 1 {
					cut(conn)
				}
			})
		}
	}
	answers := func(script func(net.Conn, string) bool) func(*world, *holdfast.Config) {
		return func(w *world, _ *holdfast.Config) { w.servers[0].does(script) }
	}
	for _, row := range []struct {
		name       string
		fails      func(w *world, cfg *holdfast.Config)
		op         func(context.Context, *holdfast.Conn) error
		unsafe     bool // may run again if unsafe
		idempotent bool // if idempotent
	}{
		{name: "resolve failure", unsafe: true, idempotent: true, fails: func(w *world, cfg *holdfast.Config) {
			asked := 0
			cfg.Names.Lookup = func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				if asked++; asked == 1 {
					return nil, 0, &dns.Error{Kind: dns.ServFail}
				}
				e.Addr = w.servers[0].addr
				return []holdfast.Endpoint{e}, 0, nil
			}
		}},
		{name: "dial failure", unsafe: true, idempotent: true, fails: func(w *world, _ *holdfast.Config) {
			for _, s := range w.servers {
				s.crash()
				time.AfterFunc(100*time.Millisecond, s.listen)
			}
		}},
		{name: "handshake failure", unsafe: true, idempotent: true, fails: func(w *world, cfg *holdfast.Config) {
			cfg.Handshake = say("hello")
			for _, s := range w.servers {
				s.greets(func(net.Conn) bool { return false })
				time.AfterFunc(100*time.Millisecond, func() { s.greets(nil) })
			}
		}},
		{name: "nothing written, fresh connection", unsafe: true, idempotent: true,
			fails: first(func(conn *simnet.Conn) { conn.ResetAfter(0) })},
		{name: "a byte written, no reply", idempotent: true,
			fails: first(func(conn *simnet.Conn) { conn.ResetAfter(1) })},
		{name: "all written, no reply", idempotent: true,
			fails: answers(func(net.Conn, string) bool { return false })},
		{name: "partial reply", idempotent: true,
			fails: first(func(conn *simnet.Conn) { conn.Peer().CutAfter(2) })},
		{name: "timeout after a write", idempotent: true,
			fails: answers(func(net.Conn, string) bool { return true })},
		{name: "the peer says it did not act", unsafe: true, idempotent: true,
			fails: answers(func(conn net.Conn, _ string) bool { return reply(conn, "BSY\n") }),
			op: func(ctx context.Context, conn *holdfast.Conn) error {
				err := exchange(conn, "pay")
				if errors.Is(err, errWrongReply) {
					return holdfast.Unprocessed(busy)
				}
				return err
			}},
	} {
		for safety, may := range map[holdfast.Safety]bool{holdfast.Unsafe: row.unsafe, holdfast.Idempotent: row.idempotent} {
			t.Run(fmt.Sprintf("%s, %s", row.name, safetyNames[safety]), func(t *testing.T) {
				inWorld(t, 2, func(t *testing.T, w *world) {
					cfg := holdfast.Config{Picker: holdfast.Ordered(), Timeouts: holdfast.Timeouts{Read: time.Second}}
					row.fails(w, &cfg)
					addrs := []string{w.servers[0].addr, w.servers[1].addr}
					if cfg.Names.Lookup != nil {
						addrs = []string{"db.example:7000"}
					}
					op := row.op
					if op == nil {
						op = say("pay")
					}
					mayRunAgain(t, w.clusterOf(cfg, addrs...).Do(t.Context(), safety, op), may)
				})
			})
		}
	}

	// The same on a connection that has served before and broke at rest, unnoticed.
	for safety, name := range safetyNames {
		t.Run("nothing written, reused connection, "+name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Pool: holdfast.Pool{CheckIdle: -1}})
				if err := c.Do(t.Context(), holdfast.Unsafe, say("before")); err != nil {
					t.Fatal(err)
				}
				w.client.Conns()[0].Peer().Reset()
				time.Sleep(time.Millisecond)
				within(t, took(func() { mayRunAgain(t, c.Do(t.Context(), safety, say("pay")), true) }), 0, 0)
				if got := fmt.Sprint(w.servers[1].got()); got != "[pay]" {
					t.Errorf("the other server got %s: it runs elsewhere, at once", got)
				}
			})
		})
		t.Run("all written, no reply, reused connection, "+name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
				if err := c.Do(t.Context(), holdfast.Unsafe, say("before")); err != nil {
					t.Fatal(err)
				}
				w.servers[0].does(func(net.Conn, string) bool { return false })
				mayRunAgain(t, c.Do(t.Context(), safety, say("pay")), safety == holdfast.Idempotent)
			})
		})
	}
	// On a fresh connection it is counted: a node that breaks every connection before
	// a byte is no endless loop.
	t.Run("nothing written, ever", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			runs := 0
			c := w.cluster(holdfast.Config{Dial: w.meddle(func(_ int, conn *simnet.Conn) { conn.ResetAfter(0) })})
			err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				runs++
				return exchange(conn, "x")
			})
			if e := asError(t, err); runs != 3 || !e.SafeToRetry() {
				t.Errorf("%d runs, then %v, safe to retry: %t; want 3 and true", runs, err, e.SafeToRetry())
			}
		})
	})
	// A datagram that was sent may have been acted on, answer or not.
	t.Run("datagram", func(t *testing.T) {
		for _, safety := range []holdfast.Safety{holdfast.Unsafe, holdfast.Idempotent} {
			inWorld(t, 0, func(t *testing.T, w *world) {
				healthy, err := w.net.ListenPacket("udp", "10.0.0.2:53")
				if err != nil {
					t.Fatal(err)
				}
				defer healthy.Close()
				asked := 0
				go func() {
					buf := make([]byte, 100)
					for {
						n, from, err := healthy.ReadFrom(buf)
						if err != nil {
							return
						}
						asked++
						healthy.WriteTo(buf[:n], from)
					}
				}()
				c := w.clusterOf(holdfast.Config{Picker: holdfast.Ordered(), Timeouts: holdfast.Timeouts{Read: time.Second}},
					"udp://10.0.0.1:53", "udp://10.0.0.2:53")
				err = c.Do(t.Context(), safety, say("ask"))
				synctest.Wait()
				if again := asked > 0; again != (safety == holdfast.Idempotent) || again != (err == nil) {
					t.Errorf("%s: %v, the other server was asked: %t", safetyNames[safety], err, again)
				}
			})
		}
	})
}

// The server's own counter decides: the connection is cut at every byte of the
// request and of the reply, by FIN, RST and silence, on fresh and used connections.
func TestUnsafeNeverRunsTwice(t *testing.T) {
	const request, answer = "pay 100\n", "paid 100\n"
	pay := func(_ context.Context, conn *holdfast.Conn) error {
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		got := make([]byte, len(answer))
		if _, err := io.ReadFull(conn, got); err != nil {
			return err
		}
		if string(got) != answer {
			return errWrongReply
		}
		return nil
	}
	type cut struct {
		name string
		do   func(conn *simnet.Conn, n int)
		upTo int
	}
	cuts := []cut{
		{"request ends", func(conn *simnet.Conn, n int) { conn.CutAfter(n) }, len(request)},
		{"request is reset", func(conn *simnet.Conn, n int) { conn.ResetAfter(n) }, len(request)},
		{"reply ends", func(conn *simnet.Conn, n int) { conn.Peer().CutAfter(n) }, len(answer)},
		{"reply is reset", func(conn *simnet.Conn, n int) { conn.Peer().ResetAfter(n) }, len(answer)},
		{"reply stalls", nil, len(answer) - 1},
	}
	cases := 0
	for _, cut := range cuts {
		for _, used := range []bool{false, true} {
			for _, safety := range []holdfast.Safety{holdfast.Unsafe, holdfast.Idempotent} {
				for n := 0; n <= cut.upTo; n++ {
					cases++
					inWorld(t, 2, func(t *testing.T, w *world) {
						at := fmt.Sprintf("%s after %d bytes, used %t, %s", cut.name, n, used, safetyNames[safety])
						w.servers[1].does(func(conn net.Conn, _ string) bool { return reply(conn, answer) })
						w.servers[0].does(func(conn net.Conn, _ string) bool {
							if cut.do == nil {
								return reply(conn, answer[:n])
							}
							return reply(conn, answer)
						})
						c := w.cluster(holdfast.Config{
							Picker:   holdfast.Ordered(),
							Timeouts: holdfast.Timeouts{Read: time.Second},
							Dial: w.meddle(func(nth int, conn *simnet.Conn) {
								if nth == 1 && !used && cut.do != nil {
									cut.do(conn, n)
								}
							}),
						})
						if used {
							conn, err := c.Acquire(t.Context())
							if err != nil {
								t.Fatal(err)
							}
							if cut.do != nil {
								cut.do(conn.NetConn().(*simnet.Conn), n)
							}
							conn.Release()
						}
						err := c.Do(t.Context(), safety, pay)
						executed := 0
						for _, s := range w.servers {
							executed += len(s.got())
						}
						switch {
						case errors.Is(err, errWrongReply):
							t.Errorf("%s: %v", at, err)
						case safety == holdfast.Idempotent && (err != nil || executed < 1):
							t.Errorf("%s: executed %d times, %v; want it done", at, executed, err)
						case safety == holdfast.Unsafe && executed > 1:
							t.Errorf("%s: executed %d times", at, executed)
						case err == nil && executed == 0:
							t.Errorf("%s: reported done and never executed", at)
						case err != nil && asError(t, err).SafeToRetry() && executed > 0:
							t.Errorf("%s: called safe to retry and was executed: %v", at, err)
						}
					})
				}
			}
		}
	}
	if cases < 150 {
		t.Errorf("only %d cuts were made", cases)
	}
}

// A server that accepts and then closes looked healthy again at every accept: the
// original, and grpc-go once, dialed it in a tight loop.
func TestAcceptThenCloseBacksOff(t *testing.T) {
	greeting := func(_ context.Context, conn *holdfast.Conn) error {
		_, err := conn.Read(make([]byte, 1))
		return err
	}
	for _, row := range []struct {
		name      string
		says      string // before it closes
		handshake func(context.Context, *holdfast.Conn) error
		op        func(context.Context, *holdfast.Conn) error
	}{
		{"seen by who writes first", "", nil, say("x")},
		{"seen by who waits for a greeting", "", nil, greeting},
		{"after the handshake", "!", greeting, say("x")},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				s := w.servers[0]
				s.greets(func(conn net.Conn) bool { io.WriteString(conn, row.says); return false })
				c := w.cluster(holdfast.Config{
					Backoff:   holdfast.Backoff{Base: time.Second, Multiplier: 2, Max: 8 * time.Second, Jitter: -1},
					Handshake: row.handshake,
				})
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute-1)
				defer cancel()
				start := time.Now()
				var last error
				for ctx.Err() == nil {
					if err := c.Do(ctx, holdfast.Idempotent, row.op); ctx.Err() == nil {
						last = err
					}
					time.Sleep(time.Millisecond) // the caller's own loop
				}
				var at []time.Duration
				for _, e := range w.all(holdfast.EventDial) {
					at = append(at, e.Time.Sub(start).Truncate(time.Second))
				}
				if fmt.Sprint(at) != "[0s 1s 3s 7s 15s 23s 31s 39s 47s 55s]" {
					t.Errorf("dialed at %v, want after 1, 2, 4, 8, 8 … s", at)
				}
				if e := asError(t, last); e.Class != holdfast.ClassEOF && e.Class != holdfast.ClassReset {
					t.Errorf("got %v of class %v, want eof", last, e.Class)
				}
				if s := c.Stats(); s.Errors[holdfast.ClassEOF]+s.Errors[holdfast.ClassReset] < 8 || s.Nodes[0].Failures < 8 {
					t.Errorf("counted against the node: %v", s.Errors)
				}
			})
		})
	}
	// Only a connection that stays makes the next backoff begin anew.
	t.Run("until one is stable", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			s := w.servers[0]
			c := w.cluster(holdfast.Config{Backoff: holdfast.Backoff{Base: time.Second, Multiplier: 2, Jitter: -1, StableAfter: 10 * time.Second}})
			next := func() time.Duration { // until the node may be dialed again
				if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err == nil {
					t.Error("the server that hangs up answered")
				}
				return took(func() {
					for c.Stats().Nodes[0].State == holdfast.StateBackoff {
						time.Sleep(10 * time.Millisecond)
					}
				}).Round(100 * time.Millisecond)
			}
			ill := func() { s.hangUp(); s.greets(func(net.Conn) bool { return false }); time.Sleep(time.Second) }
			well := func(d time.Duration) {
				s.greets(nil)
				for start := time.Now(); time.Since(start) < d; time.Sleep(time.Second) {
					if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
						t.Fatal(err)
					}
				}
			}
			ill()
			first := next()
			well(5 * time.Second)
			ill()
			second := next()
			well(15 * time.Second)
			ill()
			third := next()
			if first != 4*time.Second || second <= first || third != first {
				t.Errorf("backoffs %v, %v after 5 s of health, %v after 15 s; want it to begin anew only then", first, second, third)
			}
		})
	})
}

func TestRefusedMovesOnAtOnce(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.servers[0].crash()
		w.servers[1].crash()
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
		within(t, took(func() {
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Error(err)
			}
		}), 0, 0)
		w.servers[2].crash()
		time.Sleep(time.Minute)
		_, err := c.DialContext(t.Context(), "", "")
		if e := asError(t, err); e.Class != holdfast.ClassRefused || !strings.Contains(err.Error(), w.servers[2].addr) {
			t.Errorf("got %v of class %v, want refused, with the addresses", err, e.Class)
		}
	})
	// The kernel's own refusal.
	t.Run("on the loopback", func(t *testing.T) {
		open, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		go func() {
			for {
				conn, err := open.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					io.Copy(conn, conn)
				}()
			}
		}()
		c, err := holdfast.New(holdfast.Static("127.0.0.1:1", open.Addr().String()), holdfast.Config{Picker: holdfast.Ordered(), Backoff: every(30 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Error(err)
		}
		s := c.Stats()
		if s.Retries != 0 || s.Hidden != 1 || s.Nodes[0].DialFailures != 1 || s.Nodes[0].State != holdfast.StateBackoff {
			t.Errorf("%d retries, %d hidden, the closed port is %s", s.Retries, s.Hidden, brief(s.Nodes[0]))
		}
		if !strings.Contains(s.Nodes[0].Err, "refused") {
			t.Errorf("why it is down: %q", s.Nodes[0].Err)
		}
	})
}

func TestResetMidReplyRetriesOnlyIdempotent(t *testing.T) {
	const line = "a reply of some length"
	for _, safety := range []holdfast.Safety{holdfast.Unsafe, holdfast.Idempotent} {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{
				Picker: holdfast.Ordered(),
				Dial: w.meddle(func(nth int, conn *simnet.Conn) {
					if nth == 1 {
						conn.Peer().ResetAfter(10)
					}
				}),
			})
			err := c.Do(t.Context(), safety, say(line))
			synctest.Wait()
			if safety == holdfast.Idempotent {
				if err != nil || len(w.servers[0].got()) != 1 || len(w.servers[1].got()) != 1 {
					t.Errorf("idempotent: %v; the servers got %v and %v", err, w.servers[0].got(), w.servers[1].got())
				}
				return
			}
			e := asError(t, err)
			if e.Class != holdfast.ClassReset || e.Phase != holdfast.PhaseRead || e.Written != int64(len(line))+1 || e.SafeToRetry() {
				t.Errorf("unsafe: %v of class %v, safe to retry: %t", err, e.Class, e.SafeToRetry())
			}
			if n := w.servers[1].dials(); n != 0 || len(w.client.Conns()) != 0 {
				t.Errorf("unsafe: %d dials of the other server, %d connections left", n, len(w.client.Conns()))
			}
		})
	}
}

func TestWriteFailingHalfwayIsNotResent(t *testing.T) {
	body := strings.Repeat("x", 1<<20)
	for _, row := range []struct {
		name  string
		fails func(w *world, conn *simnet.Conn)
		class holdfast.Class
		sent  int64
	}{
		{"reset", func(_ *world, conn *simnet.Conn) { conn.ResetAfter(300_000) }, holdfast.ClassReset, 300_000},
		{"the peer stops reading", func(w *world, _ *simnet.Conn) { w.net.Host("10.0.0.1").Freeze() }, holdfast.ClassTimeout, 64 << 10},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, safety := range []holdfast.Safety{holdfast.Unsafe, holdfast.Idempotent} {
				inWorld(t, 2, func(t *testing.T, w *world) {
					defer w.net.Host("10.0.0.1").Thaw()
					c := w.cluster(holdfast.Config{
						Picker: holdfast.Ordered(),
						Dial: w.meddle(func(nth int, conn *simnet.Conn) {
							if nth == 1 {
								row.fails(w, conn)
							}
						}),
					})
					err := c.Do(t.Context(), safety, say(body))
					if safety == holdfast.Idempotent {
						if err != nil || len(w.servers[1].got()) != 1 || len(w.servers[1].got()[0]) != len(body) {
							t.Errorf("idempotent: %v; the other server got %d requests", err, len(w.servers[1].got()))
						}
						return
					}
					e := asError(t, err)
					if e.Class != row.class || e.Phase != holdfast.PhaseWrite || e.Written != row.sent || e.SafeToRetry() {
						t.Errorf("%v: class %v, %d bytes written, safe to retry: %t; want %v, %d, false", err, e.Class, e.Written, e.SafeToRetry(), row.class, row.sent)
					}
					if n := w.servers[1].dials(); n != 0 {
						t.Errorf("the other server was dialed %d times", n)
					}
				})
			}
		})
	}
}

func TestRetryBudgetBoundsAmplification(t *testing.T) {
	busy := errors.New("server is busy")
	// An operation of which the server says that it did not act: always worth a
	// retry, and no node backs off.
	ask := func(runs *atomic.Int64) func(context.Context, *holdfast.Conn) error {
		return func(_ context.Context, conn *holdfast.Conn) error {
			runs.Add(1)
			if err := exchange(conn, "ask"); !errors.Is(err, errWrongReply) {
				return err
			}
			return holdfast.Unprocessed(busy)
		}
	}
	overloaded := func(w *world) {
		for _, s := range w.servers {
			s.does(func(conn net.Conn, _ string) bool { return reply(conn, "BSY\n") })
		}
	}
	cfg := func(b *holdfast.Budget) holdfast.Config {
		return holdfast.Config{
			Retry:   holdfast.Retry{Attempts: 3, Backoff: every(time.Millisecond), Budget: b},
			Outlier: holdfast.Outlier{Consecutive: -1, SuccessRate: -1},
		}
	}
	const seconds, perSecond = 60, 20

	t.Run("of one cluster", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			overloaded(w)
			var runs atomic.Int64
			c := w.cluster(cfg(&holdfast.Budget{PerSecond: 1}))
			var denied error
			for range seconds * perSecond {
				if err := c.Do(t.Context(), holdfast.Unsafe, ask(&runs)); errors.Is(err, holdfast.ErrRetryBudget) {
					denied = err
				}
				time.Sleep(time.Second / perSecond)
			}
			const requests = seconds * perSecond
			if n := runs.Load(); n < requests*115/100 || n > requests*120/100+seconds+10 {
				t.Errorf("%d requests became %d runs, want 20 %% and one a second more", requests, n)
			}
			if e := asError(t, denied); !errors.Is(denied, busy) || e.Class != holdfast.ClassUnprocessed {
				t.Errorf("got %v of class %v, want the original error and that the budget is spent", denied, e.Class)
			}
			if s := c.Stats(); s.BudgetDenied == 0 || s.Retries != uint64(runs.Load())-requests {
				t.Errorf("%d denied, %d retries counted of %d", s.BudgetDenied, s.Retries, runs.Load()-requests)
			}
			for _, s := range w.servers {
				s.does(nil)
			}
			if err := c.Do(t.Context(), holdfast.Unsafe, ask(&runs)); err != nil {
				t.Errorf("after the outage: %v", err)
			}
		})
	})
	t.Run("shared by two clusters", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			overloaded(w)
			var runs atomic.Int64
			shared := &holdfast.Budget{PerSecond: 10}
			two := []*holdfast.Cluster{w.cluster(cfg(shared)), w.cluster(cfg(shared))}
			for i := range seconds * perSecond {
				two[i%2].Do(t.Context(), holdfast.Unsafe, ask(&runs))
				time.Sleep(time.Second / perSecond)
			}
			// Two budgets would have granted twice the reserve.
			const requests = seconds * perSecond
			if n := runs.Load(); n < requests*115/100+9*seconds || n > requests*120/100+10*seconds+100 {
				t.Errorf("%d requests became %d runs, want 20 %% and ten a second more", requests, n)
			}
		})
	})
	t.Run("off", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			overloaded(w)
			var runs atomic.Int64
			c := w.cluster(cfg(&holdfast.Budget{Percent: -1}))
			for range 100 {
				c.Do(t.Context(), holdfast.Unsafe, ask(&runs))
			}
			if n := runs.Load(); n != 300 {
				t.Errorf("100 requests became %d runs, want all 3 of each", n)
			}
		})
	})
	// One failover of each call is free when nothing was written: it costs no server
	// an execution.
	t.Run("one unwritten failover is free", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{
				Retry: holdfast.Retry{Attempts: 5, Budget: &holdfast.Budget{Percent: 1, PerSecond: -1}},
				Dial:  w.meddle(func(_ int, conn *simnet.Conn) { conn.ResetAfter(0) }),
			})
			for range 10 {
				runs := 0
				err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
					runs++
					return exchange(conn, "x")
				})
				if runs != 2 || !errors.Is(err, holdfast.ErrRetryBudget) {
					t.Errorf("%d runs, %v; want a second one and no third", runs, err)
				}
				time.Sleep(time.Minute) // the nodes' own backoff is over
			}
		})
	})
}

var safetyNames = map[holdfast.Safety]string{holdfast.Unsafe: "unsafe", holdfast.Idempotent: "idempotent"}

// mayRunAgain checks how an operation ended of which the first run failed.
func mayRunAgain(t *testing.T, err error, may bool) {
	t.Helper()
	if may != (err == nil) {
		t.Errorf("got %v; it may run again: %t", err, may)
	}
	if err != nil {
		if e := asError(t, err); e.SafeToRetry() || e.Attempt != 1 {
			t.Errorf("%v: safe to retry: %t, attempt %d", err, e.SafeToRetry(), e.Attempt)
		}
	}
}
