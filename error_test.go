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
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

func TestErrorCountsBytesWritten(t *testing.T) {
	const buffer = 64 << 10 // what a simulated stream takes before its reader reads
	write := func(sizes ...int) func(context.Context, *holdfast.Conn) error {
		return func(_ context.Context, conn *holdfast.Conn) error {
			for _, size := range sizes {
				if n, err := conn.Write(make([]byte, size)); err != nil {
					if n == size {
						return fmt.Errorf("all %d bytes and yet %w", n, err)
					}
					return err
				}
			}
			_, err := conn.Read(make([]byte, 1))
			return err
		}
	}
	for _, row := range []struct {
		name string
		sick func(w *world, conn *simnet.Conn)
		fn   func(context.Context, *holdfast.Conn) error
		want int64
	}{
		{"nothing", func(_ *world, conn *simnet.Conn) { conn.ResetAfter(0) }, write(100), 0},
		{"nothing, but read", func(_ *world, conn *simnet.Conn) {}, write(), 0},
		{"all, in pieces", func(_ *world, conn *simnet.Conn) {}, write(1, 20, 300), 321},
		{"some of one piece", func(_ *world, conn *simnet.Conn) { conn.ResetAfter(13) }, write(100), 13},
		{"some of the second", func(_ *world, conn *simnet.Conn) { conn.ResetAfter(13) }, write(10, 100), 13},
		{"what the peer's window takes", func(w *world, _ *simnet.Conn) { w.net.Host("10.0.0.1").Freeze() }, write(buffer + 1), buffer},
		{"by io.Copy", func(_ *world, conn *simnet.Conn) { conn.ResetAfter(50_000) }, func(_ context.Context, conn *holdfast.Conn) error {
			_, err := io.Copy(conn, strings.NewReader(strings.Repeat("x", 100_000)))
			return err
		}, 50_000},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{
					Dial:     w.meddle(func(_ int, conn *simnet.Conn) { row.sick(w, conn) }),
					Timeouts: holdfast.Timeouts{Read: time.Second, Write: time.Second},
					Retry:    holdfast.Retry{Attempts: -1},
				})
				err := c.Do(t.Context(), holdfast.Unsafe, row.fn)
				w.net.Host("10.0.0.1").Thaw()
				e := asError(t, err)
				if e.Written != row.want || e.SafeToRetry() != (row.want == 0) {
					t.Errorf("%v: %d bytes written, safe to retry: %t; want %d", err, e.Written, e.SafeToRetry(), row.want)
				}
				if says := fmt.Sprintf("after %d bytes written", row.want); strings.Contains(err.Error(), says) != (row.want > 0) {
					t.Errorf("the text %q, want it to say %q if any", err, says)
				}
			})
		})
	}
	// Each attempt counts its own bytes, not the connection's.
	t.Run("of this attempt alone", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Read: time.Second}})
			for range 3 {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("a long request")); err != nil {
					t.Fatal(err)
				}
			}
			e := asError(t, c.Do(t.Context(), holdfast.Unsafe, write(5)))
			if e.Written != 5 || !e.Reused {
				t.Errorf("%d bytes written, reused: %t; want 5 on a connection that had served", e.Written, e.Reused)
			}
		})
	})
	// So does a lent connection, and the writes of the handshake are no one's.
	t.Run("without the handshake's", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Handshake: say("hello"), Timeouts: holdfast.Timeouts{Read: time.Second}})
			if e := asError(t, c.Do(t.Context(), holdfast.Unsafe, write(5))); e.Written != 5 {
				t.Errorf("%d bytes written, want 5", e.Written)
			}
		})
	})
}

func TestErrorNamesEndpointAndAddress(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		var log logged
		c := w.clusterOf(holdfast.Config{
			Log:    recorder(log.add).at(0),
			Picker: holdfast.Ordered(),
			Retry:  holdfast.Retry{Attempts: -1},
			Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				var found []holdfast.Endpoint
				for _, s := range w.servers {
					e.Addr = s.addr
					found = append(found, e)
				}
				return found, 0, nil
			}},
		}, "db.example:7000")
		for _, s := range w.servers {
			s.crash()
		}
		err := c.Do(t.Context(), holdfast.Unsafe, say("x"))
		e := asError(t, err)
		if e.Node != "db.example[10.0.0.2]:7000" || e.Endpoint.Addr != "10.0.0.2:7000" || len(e.Tried) != 1 || e.Tried[0].Node != "db.example[10.0.0.1]:7000" {
			t.Errorf("the error is about %q (%+v), before that %v", e.Node, e.Endpoint, e.Tried)
		}
		for _, says := range []string{"db.example[10.0.0.1]:7000", "db.example[10.0.0.2]:7000"} {
			if !strings.Contains(err.Error(), says) {
				t.Errorf("the text %q does not say %s", err, says)
			}
		}
		dials := log.of("holdfast dial")
		if len(dials) != 2 {
			t.Fatalf("the log has the dials %v, want both", dials)
		}
		for i, s := range w.servers {
			if r := dials[i].attrs; r["endpoint"].String() != "tcp://db.example:7000" || r["addr"].String() != s.addr {
				t.Errorf("the log says endpoint %v, addr %v; want tcp://db.example:7000 and %s", r["endpoint"], r["addr"], s.addr)
			}
		}
	})
}

// One type says where an operation was, and errors.Is and errors.As find the cause
// that any other client would have returned.
func TestErrorPhasesAndCauses(t *testing.T) {
	refused := errors.New("wrong role")
	boom := errors.New("boom")
	for _, row := range []struct {
		name    string
		addr    string
		cfg     holdfast.Config
		sick    func(w *world)
		fn      func(context.Context, *holdfast.Conn) error
		phase   holdfast.Phase
		class   holdfast.Class
		causes  []error
		timeout bool
	}{
		{name: "a name that does not exist", addr: "lost.example:7000",
			cfg: holdfast.Config{Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				return nil, 0, &net.DNSError{Err: "no such host", Name: e.Addr, IsNotFound: true}
			}}},
			phase: holdfast.PhaseResolve, class: holdfast.ClassDNSNotFound, causes: []error{holdfast.ErrNoEndpoint}},
		{name: "nothing to choose from", addr: "10.0.0.1:7000?weight=-1",
			phase: holdfast.PhaseAcquire, class: holdfast.ClassNoEndpoint, causes: []error{holdfast.ErrNoEndpoint}},
		{name: "nobody listens", sick: func(w *world) { w.servers[0].crash() },
			phase: holdfast.PhaseDial, class: holdfast.ClassRefused, causes: []error{syscall.ECONNREFUSED}},
		{name: "no route", sick: func(w *world) { w.net.SetLink("", "10.0.0.1", simnet.Link{Reject: syscall.EHOSTUNREACH}) },
			phase: holdfast.PhaseDial, class: holdfast.ClassUnreachable, causes: []error{syscall.EHOSTUNREACH}},
		{name: "no answer to the dial", sick: func(w *world) { w.net.Partition("", "10.0.0.1") },
			phase: holdfast.PhaseDial, class: holdfast.ClassTimeout, causes: []error{context.DeadlineExceeded}, timeout: true},
		{name: "the handshake's own error", cfg: holdfast.Config{Handshake: func(context.Context, *holdfast.Conn) error { return refused }},
			phase: holdfast.PhaseHandshake, class: holdfast.ClassOther, causes: []error{refused}},
		{name: "a reset between the bytes", sick: func(w *world) {
			w.servers[0].does(func(conn net.Conn, _ string) bool { conn.(*simnet.Conn).Reset(); return false })
		}, phase: holdfast.PhaseRead, class: holdfast.ClassReset, causes: []error{syscall.ECONNRESET}},
		{name: "the end of the stream", sick: func(w *world) { w.servers[0].does(func(net.Conn, string) bool { return false }) },
			phase: holdfast.PhaseRead, class: holdfast.ClassEOF, causes: []error{io.EOF}},
		{name: "half a reply", sick: func(w *world) {
			w.servers[0].does(func(conn net.Conn, line string) bool { io.WriteString(conn, line[:1]); return false })
		}, phase: holdfast.PhaseRead, class: holdfast.ClassEOF, causes: []error{io.ErrUnexpectedEOF}},
		{name: "no reply", sick: func(w *world) { w.servers[0].does(func(net.Conn, string) bool { return true }) },
			phase: holdfast.PhaseRead, class: holdfast.ClassTimeout, causes: []error{os.ErrDeadlineExceeded}, timeout: true},
		{name: "no room to write", sick: func(w *world) { w.net.Host("10.0.0.1").Freeze() },
			fn: func(_ context.Context, conn *holdfast.Conn) error {
				_, err := conn.Write(make([]byte, 1<<20))
				return err
			},
			phase: holdfast.PhaseWrite, class: holdfast.ClassTimeout, causes: []error{os.ErrDeadlineExceeded}, timeout: true},
		{name: "the operation's own error", fn: func(context.Context, *holdfast.Conn) error { return boom },
			phase: holdfast.PhaseUse, class: holdfast.ClassOther, causes: []error{boom}},
		{name: "the operation hides its cause", sick: func(w *world) { w.servers[0].does(func(net.Conn, string) bool { return false }) },
			fn: func(_ context.Context, conn *holdfast.Conn) error {
				return fmt.Errorf("exchange failed: %v", exchange(conn, "x"))
			},
			phase: holdfast.PhaseRead, class: holdfast.ClassEOF},
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
					row.fn = say("question")
				}
				row.cfg.Retry.Attempts = -1
				err := w.clusterOf(row.cfg, row.addr).Do(t.Context(), holdfast.Unsafe, row.fn)
				w.net.Host("10.0.0.1").Thaw()
				e := asError(t, err)
				if e.Phase != row.phase || e.Class != row.class || e.Timeout() != row.timeout {
					t.Errorf("%v: phase %v, class %v, timeout %t; want %v, %v, %t", err, e.Phase, e.Class, e.Timeout(), row.phase, row.class, row.timeout)
				}
				for _, cause := range row.causes {
					if !errors.Is(err, cause) {
						t.Errorf("%v is not %v", err, cause)
					}
				}
				var asNet net.Error
				if !errors.As(err, &asNet) || asNet.Timeout() != row.timeout {
					t.Errorf("%v as a net.Error: timeout %t", err, asNet.Timeout())
				}
				var op *net.OpError
				if row.phase == holdfast.PhaseDial && (!errors.As(err, &op) || op.Op != "dial") {
					t.Errorf("%v has no *net.OpError of a dial, which drivers look for", err)
				}
			})
		})
	}
}

// Marks go on top of each other, and nothing stays nothing.
func TestMarksOfErrors(t *testing.T) {
	if err := errors.Join(holdfast.Permanent(nil), holdfast.Reusable(nil), holdfast.Unprocessed(nil)); err != nil {
		t.Errorf("marks of nil: %v", err)
	}
	cause := errors.New("READONLY")
	for _, mark := range []func(error) error{holdfast.Permanent, holdfast.Reusable, holdfast.Unprocessed} {
		if err := mark(cause); !errors.Is(err, cause) || err.Error() != cause.Error() {
			t.Errorf("marked: %v", err)
		}
	}
	// Whoever says that trying again will not help is heard, in whatever order.
	for name, err := range map[string]error{
		"permanent over unprocessed": holdfast.Permanent(holdfast.Unprocessed(cause)),
		"unprocessed over permanent": holdfast.Unprocessed(holdfast.Permanent(cause)),
		"side by side":               errors.Join(holdfast.Unprocessed(cause), holdfast.Permanent(cause)),
	} {
		inWorld(t, 2, func(t *testing.T, w *world) {
			runs := 0
			got := w.cluster(holdfast.Config{}).Do(t.Context(), holdfast.Idempotent, func(context.Context, *holdfast.Conn) error {
				runs++
				return err
			})
			if runs != 1 || !errors.Is(got, cause) {
				t.Errorf("%s: %d runs, %v; want one", name, runs, got)
			}
		})
	}
}

// A caller who leaves is not the node's fault, whatever reason it gives: errgroup
// gives the error of another call, which may look like anything.
func TestCancellationWithACauseBlamesNobody(t *testing.T) {
	elsewhere := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	forever := holdfast.Timeouts{Dial: -1, Handshake: -1, Read: -1}
	silence := func(w *world) { w.servers[0].does(func(net.Conn, string) bool { return true }) }
	for _, row := range []struct {
		name string
		cfg  holdfast.Config
		sick func(w *world)
		use  func(ctx context.Context, c *holdfast.Cluster) error
	}{
		{"in a read", holdfast.Config{Timeouts: forever}, silence, func(ctx context.Context, c *holdfast.Cluster) error {
			return c.Do(ctx, holdfast.Idempotent, say("x"))
		}},
		{"in a dial", holdfast.Config{Timeouts: forever}, func(w *world) { w.net.Partition("", "10.0.0.1") }, waysIn[0].take},
		{"in a dial of one's own", holdfast.Config{Timeouts: forever}, func(w *world) { w.net.Partition("", "10.0.0.1") }, waysIn[3].take},
		{"in a handshake of one's own", holdfast.Config{Timeouts: forever, Handshake: say("hello")}, silence, waysIn[3].take},
		{"before", holdfast.Config{}, func(w *world) { time.Sleep(2 * time.Second) }, waysIn[0].take},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(elsewhere) })
				row.sick(w)
				c := w.cluster(row.cfg)
				err := row.use(ctx, c)
				if e := asError(t, err); e.Class != holdfast.ClassCanceled || !errors.Is(err, context.Canceled) || !errors.Is(err, elsewhere) {
					t.Errorf("got %v of class %v, want the cancellation and its cause", err, e.Class)
				}
				synctest.Wait()
				s := c.Stats()
				if n := s.Nodes[0]; n.State == holdfast.StateBackoff || n.Failures != 0 || len(s.Errors) != 0 {
					t.Errorf("the node is %v with %d failures %v: it was blamed", n.State, n.Failures, s.Errors)
				}
			})
		})
	}
}

// The original kept the last address's error only, and hid a timeout behind it.
func TestExhaustionJoinsEveryNodesError(t *testing.T) {
	notPrimary := errors.New("not the primary")
	sick := func(w *world) holdfast.Config {
		w.servers[0].crash()
		w.net.SetLink("", "10.0.0.2", simnet.Link{Reject: syscall.ENETUNREACH})
		w.net.Partition("", "10.0.0.3")
		return holdfast.Config{
			Picker:   holdfast.Ordered(),
			Timeouts: holdfast.Timeouts{Dial: time.Second, Stagger: -1},
			Retry:    holdfast.Retry{Attempts: 2, Backoff: every(time.Millisecond)},
			Backoff:  every(time.Millisecond),
			Handshake: func(context.Context, *holdfast.Conn) error {
				return notPrimary
			},
		}
	}
	check := func(t *testing.T, err error, rounds int) {
		t.Helper()
		for _, cause := range []error{syscall.ECONNREFUSED, syscall.ENETUNREACH, context.DeadlineExceeded, notPrimary} {
			if !errors.Is(err, cause) {
				t.Errorf("%v is not %v", err, cause)
			}
		}
		e := asError(t, err)
		count := map[string]int{}
		for _, each := range append(slices.Clone(e.Tried), e) {
			count[fmt.Sprint(each.Node, " ", each.Class)]++
		}
		for _, each := range []string{"10.0.0.1:7000 refused", "10.0.0.2:7000 unreachable", "10.0.0.3:7000 timeout", "10.0.0.4:7000 other"} {
			if count[each] != rounds {
				t.Errorf("%s stands %d times in %v, want %d", each, count[each], err, rounds)
			}
		}
	}
	for _, way := range waysIn[:4] {
		if way.name == "WaitReady" {
			continue // which does not give up
		}
		t.Run(way.name, func(t *testing.T) {
			inWorld(t, 4, func(t *testing.T, w *world) {
				rounds := 1
				if way.name == "Do" {
					rounds = 2
				}
				check(t, way.take(t.Context(), w.cluster(sick(w))), rounds)
			})
		})
	}
	// Those who come while all are backing off dial nobody, and are told why.
	t.Run("while all back off", func(t *testing.T) {
		inWorld(t, 4, func(t *testing.T, w *world) {
			cfg := sick(w)
			cfg.Backoff = every(10 * time.Second)
			cfg.Retry.Attempts = -1
			c := w.cluster(cfg)
			c.Acquire(t.Context())
			before := len(w.all(holdfast.EventDial))
			var err error
			within(t, took(func() { _, err = c.Acquire(t.Context()) }), 0, 0)
			check(t, err, 1)
			if !errors.Is(err, holdfast.ErrNoEndpoint) || len(w.all(holdfast.EventDial)) != before {
				t.Errorf("got %v after %d further dials, want ErrNoEndpoint after none", err, len(w.all(holdfast.EventDial))-before)
			}
		})
	})
	// What an error remembers is bounded, however often it was tried.
	t.Run("bounded", func(t *testing.T) {
		inWorld(t, 4, func(t *testing.T, w *world) {
			cfg := sick(w)
			cfg.Retry.Attempts = 100
			cfg.Retry.Budget = &holdfast.Budget{Percent: -1}
			err := w.cluster(cfg).Do(t.Context(), holdfast.Unsafe, say("x"))
			if e := asError(t, err); e.Attempt != 100 || len(e.Tried) < 10 || len(e.Tried) > 100 {
				t.Errorf("after %d attempts the error holds %d", e.Attempt, len(e.Tried))
			}
		})
	})
}
