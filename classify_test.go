package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/dns"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// The twelve errors on which the original reconnects, ENETUNREACH, which it
// forgot, and the table of the Ruby guide.
func TestClassifyNamesEveryErrno(t *testing.T) {
	in := func(op string, errno syscall.Errno) error {
		return &net.OpError{Op: op, Net: "tcp", Err: os.NewSyscallError(op, errno)}
	}
	for _, row := range []struct {
		err       error
		class     holdfast.Class
		transient bool
	}{
		{in("read", syscall.ECONNABORTED), holdfast.ClassReset, true},
		{in("connect", syscall.ECONNREFUSED), holdfast.ClassRefused, true},
		{in("read", syscall.ECONNRESET), holdfast.ClassReset, true},
		{in("connect", syscall.EHOSTUNREACH), holdfast.ClassUnreachable, true},
		{in("read", syscall.EIO), holdfast.ClassIO, true},
		{in("connect", syscall.ENETDOWN), holdfast.ClassUnreachable, true},
		{in("read", syscall.ENETRESET), holdfast.ClassUnreachable, true},
		{in("write", syscall.EPIPE), holdfast.ClassReset, true},
		{in("connect", syscall.ETIMEDOUT), holdfast.ClassTimeout, true},
		{io.EOF, holdfast.ClassEOF, true}, // EOFError
		{in("connect", syscall.ENETUNREACH), holdfast.ClassUnreachable, true},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, holdfast.ClassTimeout, true}, // ConnectionTimeout

		{io.ErrUnexpectedEOF, holdfast.ClassEOF, true},
		{in("connect", syscall.EHOSTDOWN), holdfast.ClassUnreachable, true},
		{in("write", syscall.ENOTCONN), holdfast.ClassReset, true},
		{in("connect", syscall.ENOENT), holdfast.ClassRefused, true}, // no such Unix socket
		{in("connect", syscall.EACCES), holdfast.ClassDenied, false},
		{in("connect", syscall.EPERM), holdfast.ClassDenied, false},
		{in("connect", syscall.EADDRINUSE), holdfast.ClassResource, false},
		{in("connect", syscall.EADDRNOTAVAIL), holdfast.ClassResource, false},
		{in("socket", syscall.EMFILE), holdfast.ClassResource, false},
		{in("socket", syscall.ENFILE), holdfast.ClassResource, false},
		{in("socket", syscall.ENOMEM), holdfast.ClassResource, false},
		{in("write", syscall.ENOBUFS), holdfast.ClassResource, false},
		{in("setsockopt", syscall.EINVAL), holdfast.ClassOther, false},

		{context.Canceled, holdfast.ClassCanceled, false},
		{context.DeadlineExceeded, holdfast.ClassTimeout, true},
		{net.ErrClosed, holdfast.ClassClosed, false},
		{holdfast.ErrClosed, holdfast.ClassClosed, false},
		{holdfast.ErrDraining, holdfast.ClassClosed, false},
		{holdfast.ErrPoolExhausted, holdfast.ClassExhausted, false},
		{holdfast.ErrNoEndpoint, holdfast.ClassNoEndpoint, false},
		{holdfast.Unprocessed(errors.New("READONLY")), holdfast.ClassUnprocessed, true},
		{errors.New("connection refused, reset, EOF, timeout"), holdfast.ClassOther, false}, // texts decide nothing
	} {
		for _, err := range []error{row.err, fmt.Errorf("exchange: %w", row.err), errors.Join(errors.New("first"), row.err)} {
			if got := holdfast.Classify(err); got != row.class || got.Transient() != row.transient {
				t.Errorf("%v: %v, transient %t; want %v, %t", err, got, got.Transient(), row.class, row.transient)
			}
		}
	}
}

// A name server in trouble passes, a name that does not exist does not.
func TestClassifyDNS(t *testing.T) {
	for _, row := range []struct {
		name      string
		err       error
		class     holdfast.Class
		transient bool
	}{
		{"NXDOMAIN", &dns.Error{Kind: dns.NotFound}, holdfast.ClassDNSNotFound, false},
		{"no address", &dns.Error{Kind: dns.Empty}, holdfast.ClassDNSEmpty, false},
		{"SERVFAIL", &dns.Error{Kind: dns.ServFail}, holdfast.ClassDNS, true},
		{"REFUSED", &dns.Error{Kind: dns.Refused}, holdfast.ClassDNSRefused, true},
		{"timeout", &dns.Error{Kind: dns.Timeout}, holdfast.ClassDNSTimeout, true},
		{"malformed", &dns.Error{Kind: dns.Malformed}, holdfast.ClassDNS, true},
		{"net: NXDOMAIN", &net.DNSError{Err: "no such host", IsNotFound: true}, holdfast.ClassDNSNotFound, false},
		{"net: timeout", &net.DNSError{Err: "i/o timeout", IsTimeout: true}, holdfast.ClassDNSTimeout, true},
		{"net: temporary", &net.DNSError{Err: "server misbehaving", IsTemporary: true}, holdfast.ClassDNS, true},
		{"nothing answered", nil, holdfast.ClassDNSEmpty, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				lookups := 0
				c := w.clusterOf(holdfast.Config{
					Retry: holdfast.Retry{Attempts: 2},
					Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
						if lookups++; lookups > 1 {
							e.Addr = w.servers[0].addr
							return []holdfast.Endpoint{e}, 0, nil
						}
						return nil, 0, row.err
					}},
				}, "db.example:7000")
				if _, err := c.Acquire(t.Context()); asError(t, err).Class != row.class || asError(t, err).Phase != holdfast.PhaseResolve {
					t.Errorf("got %v of class %v, want %v", err, asError(t, err).Class, row.class)
				}
				// An operation that nothing was written of waits for what passes.
				err := c.Do(t.Context(), holdfast.Unsafe, say("x"))
				if row.transient != (err == nil) {
					t.Errorf("the operation ended with %v; the trouble passes: %t", err, row.transient)
				}
			})
		})
	}
}

// The original's list of errors was one for the whole process, to be changed by
// anyone.
func TestClassifierBelongsToItsCluster(t *testing.T) {
	moved := errors.New("MOVED 10.0.0.2:7000")
	inWorld(t, 2, func(t *testing.T, w *world) {
		ours := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Retry: holdfast.Retry{Classify: func(err error) holdfast.Class {
			if errors.Is(err, moved) {
				return holdfast.ClassReset
			}
			return holdfast.Classify(err)
		}}})
		theirs := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
		runs := func(c *holdfast.Cluster) (n int, err error) {
			err = c.Do(t.Context(), holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
				if n++; conn.Node().Addr() == w.servers[0].addr {
					return moved
				}
				return exchange(conn, "x")
			})
			return n, err
		}
		if n, err := runs(ours); n != 2 || err != nil {
			t.Errorf("the cluster that knows the error: %d runs, %v; want it to move on", n, err)
		}
		if n, err := runs(theirs); n != 1 || !errors.Is(err, moved) || asError(t, err).Class != holdfast.ClassOther {
			t.Errorf("the other: %d runs, %v; want the error after one", n, err)
		}
		if class := holdfast.Classify(moved); class != holdfast.ClassOther {
			t.Errorf("the standard classifier says %v", class)
		}
	})
}

// Bytes that should not be there end the connection, count against the node until
// it is ejected, and are never worth a retry.
func TestProtocolErrorClosesAndCounts(t *testing.T) {
	garbled := errors.New("reply is no reply")
	for _, row := range []struct {
		name     string
		class    holdfast.Class
		classify func(error) holdfast.Class
	}{
		{"as the operation's own error", holdfast.ClassOther, nil},
		{"named by the classifier", holdfast.ClassProtocol, func(err error) holdfast.Class {
			if errors.Is(err, garbled) {
				return holdfast.ClassProtocol
			}
			return holdfast.Classify(err)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				w.servers[0].does(func(conn net.Conn, _ string) bool { return reply(conn, "garbage\n") })
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Retry: holdfast.Retry{Classify: row.classify}})
				op := func(_ context.Context, conn *holdfast.Conn) error {
					io.WriteString(conn, "xxxxxxx\n")
					got := make([]byte, 8)
					if _, err := io.ReadFull(conn, got); err != nil || string(got) == "garbage\n" {
						return errors.Join(garbled, err)
					}
					return nil
				}
				for i := range 5 {
					err := c.Do(t.Context(), holdfast.Idempotent, op)
					if e := asError(t, err); !errors.Is(err, garbled) || e.Class != row.class || e.Attempt != 1 {
						t.Fatalf("got %v of class %v, want the garbled reply, once, as %v", err, e.Class, row.class)
					}
					synctest.Wait()
					if n := len(w.client.Conns()); n != 0 {
						t.Errorf("after garbage %d the connection is open", i)
					}
				}
				s := c.Stats()
				if n := s.Nodes[0]; n.Failures != 5 || s.Errors[row.class] != 5 || n.State != holdfast.StateEjected {
					t.Errorf("%d failures, %v, the node is %v; want 5 and ejected", n.Failures, s.Errors, n.State)
				}
				if err := c.Do(t.Context(), holdfast.Idempotent, op); err != nil {
					t.Errorf("with the garbler ejected: %v", err)
				}
			})
		})
	}
}

// This host has run out of something. Dialing on would fail on every node and
// blame them all; what is at rest in the pool goes on serving.
func TestResourceErrorNeverCountsAgainstANode(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EADDRNOTAVAIL} {
		t.Run(errno.Error(), func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				out, dials := false, 0
				c := w.cluster(holdfast.Config{
					Picker: holdfast.Ordered(),
					Pool:   holdfast.Pool{Max: 2},
					Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
						if out {
							dials++
							return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("socket", errno)}
						}
						return w.client.DialContext(ctx, network, addr)
					},
				})
				pooled, err := c.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				out = true
				for i := range 20 {
					var err error
					within(t, took(func() { err = c.Do(t.Context(), holdfast.Idempotent, say("x")) }), 0, 0)
					if e := asError(t, err); e.Class != holdfast.ClassResource || !errors.Is(err, errno) || dials != i+1 {
						t.Fatalf("call %d: %v of class %v after %d dials, want it to fail fast, of one dial", i+1, err, e.Class, dials)
					}
				}
				pooled.Release()
				if err := c.Do(t.Context(), holdfast.Unsafe, say("pooled")); err != nil {
					t.Errorf("a connection at rest: %v", err)
				}
				s := c.Stats()
				for _, n := range s.Nodes {
					if n.State > holdfast.StateReady || n.Failures != 0 || n.Err != "" {
						t.Errorf("%s is %v with %d failures, %q: it was blamed", n.Node, n.State, n.Failures, n.Err)
					}
				}
				if len(s.Errors) != 0 {
					t.Errorf("held against nodes: %v", s.Errors)
				}

				out = false
				lent, err := c.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer lent.Release()
				within(t, took(func() { // needs a second connection
					if err := c.Do(t.Context(), holdfast.Unsafe, say("again")); err != nil {
						t.Error(err)
					}
				}), 0, 0)
			})
		})
	}
	// The same while it happens to a connection in use.
	t.Run("in a write", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := w.client.DialContext(ctx, network, addr)
				return noBuffers{conn.(*simnet.Conn)}, err
			}})
			err := c.Do(t.Context(), holdfast.Unsafe, say("x"))
			if e := asError(t, err); e.Class != holdfast.ClassResource || e.Phase != holdfast.PhaseWrite {
				t.Errorf("got %v of class %v", err, e.Class)
			}
			if s := c.Stats(); s.Nodes[0].Failures != 0 || s.Nodes[0].State > holdfast.StateReady {
				t.Errorf("the node has %d failures and is %v", s.Nodes[0].Failures, s.Nodes[0].State)
			}
		})
	})
}

// noBuffers is a connection on a host without memory.
type noBuffers struct{ *simnet.Conn }

func (noBuffers) Write([]byte) (int, error) {
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.ENOBUFS)}
}
