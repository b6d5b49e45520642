package serve_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/serve"
)

// U1: a context for each connection, which ends with it; the socket is always closed.
func TestHandlerPerConnection(t *testing.T) {
	for name, end := range map[string]func(c *serve.Conn) error{
		"returns":        func(*serve.Conn) error { return nil },
		"fails":          func(*serve.Conn) error { return errors.New("no") },
		"closes":         func(c *serve.Conn) error { return c.Close() },
		"panics":         func(*serve.Conn) error { panic("no") },
		"client is gone": func(c *serve.Conn) error { _, err := io.Copy(io.Discard, c); return err },
	} {
		t.Run(name, func(t *testing.T) {
			ctxs := make(chan context.Context, 2)
			srv := raw(func(ctx context.Context, c *serve.Conn) error {
				ctxs <- ctx
				io.ReadFull(c, make([]byte, 1))
				return end(c)
			})
			inWorld(t, srv, func(t *testing.T, w *world) {
				one, other := w.client(), w.client()
				first, second := <-ctxs, <-ctxs
				if first == second || first.Err() != nil {
					t.Error("want a context each, both alive")
				}
				one.write("x")
				one.CloseWrite()
				one.expectEnd()
				one.Close()
				synctest.Wait()
				if (first.Err() == nil) == (second.Err() == nil) {
					t.Errorf("contexts: %v, %v; want one to have ended", first.Err(), second.Err())
				}
				if open := srv.Stats().Open; open != 1 {
					t.Errorf("%d connections are open, want the other one", open)
				}
				other.Close()
			})
		})
	}
}

func (c *client) CloseWrite() { c.Conn.(interface{ CloseWrite() error }).CloseWrite() }

// A7, fault 70.
func TestPanicEndsItsConnectionOnly(t *testing.T) {
	broken := &broken{Format: frame.Lines()}
	for name, srv := range map[string]*serve.Server{
		"Frames": {Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
			if string(line) == "panic" {
				panic("a bug")
			}
			return c.Send(line)
		})},
		"raw": raw(func(ctx context.Context, c *serve.Conn) error {
			for {
				line := make([]byte, 6)
				if _, err := io.ReadFull(c, line); err != nil {
					return err
				}
				if string(line) == "panic\n" {
					panic("a bug")
				}
				c.Write(line)
			}
		}),
		"encoder": {Handler: serve.Frames(broken, echo)}, // fault 38
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, srv, func(t *testing.T, w *world) {
				bad, good := w.client(), w.client()
				bad.ask("hello")
				good.ask("hello")
				bad.write("panic\n")
				bad.expectEnd()
				good.ask("fine!")
				if s := srv.Stats(); s.Panics != 1 || s.Open > 2 {
					t.Errorf("%+v, want one panic", s)
				}
				events := w.seen(serve.Panicked)
				if len(events) != 1 || !strings.Contains(string(events[0].Stack), "handler_test.go") || !strings.Contains(events[0].Err.Error(), "a bug") {
					t.Errorf("events %v, want one with the stack", events)
				}
				if lines := w.logged("panic"); len(lines) != 1 || !strings.Contains(lines[0], "handler_test.go") {
					t.Errorf("logged %q, want the stack", lines)
				}
			})
		})
	}
}

// broken is a format of the user's with a bug in it.
type broken struct{ frame.Format }

func (b *broken) Append(dst, msg []byte) ([]byte, error) {
	if string(msg) == "panic" {
		panic("a bug")
	}
	return b.Format.Append(dst, msg)
}

func TestServerWithoutHandlerPanics(t *testing.T) {
	defer func() {
		if p := recover(); p == nil {
			t.Error("no panic")
		}
	}()
	new(serve.Server).Serve(nil)
}

// U21, seeds' pool example: so many at once, the others wait.
func TestFixedWorkers(t *testing.T) {
	var busy, most atomic.Int32
	srv := echoes()
	srv.Workers = 3
	srv.Handler = serve.HandlerFunc(func(ctx context.Context, c *serve.Conn) error {
		most.Store(max(most.Load(), busy.Add(1)))
		defer busy.Add(-1)
		return copies(ctx, c)
	})
	inWorld(t, srv, func(t *testing.T, w *world) {
		var all []*client
		for range 10 {
			c := w.client()
			c.write("x\n")
			all = append(all, c)
		}
		synctest.Wait()
		if s := srv.Stats(); s.Open != 3 || s.Accepted != 3 {
			t.Errorf("%+v, want 3 open and the others in the queue", s)
		}
		for _, c := range all { // whoever ends makes room for the next, and nobody is lost
			c.expect("x\n")
			c.Close()
			synctest.Wait()
		}
		if most.Load() != 3 {
			t.Errorf("%d served at once, want 3", most.Load())
		}
		if s := srv.Stats(); s.Open != 0 || s.Accepted != 10 {
			t.Errorf("%+v, want 10 served", s)
		}
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// U21: the accept loop is the user's, and counting, limits and drain hold all the same.
func TestOwnAcceptLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		defer n.Close()
		srv := echoes()
		srv.Limits.MaxConns = 1
		ln, _ := n.Listen("tcp", here)
		ended := make(chan error, 4)
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				go func() { ended <- srv.ServeConn(conn) }()
			}
		}()
		w := &world{t: t, net: n, srv: srv}
		first := w.client()
		first.ask("mine")
		w.client().expectEnd()
		if err := <-ended; !errors.Is(err, serve.ErrTooMany) {
			t.Errorf("the one too many: %v", err)
		}
		ln.Close()
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		first.expectEnd()
		<-ended
		pipe, _ := net.Pipe()
		if err := srv.ServeConn(pipe); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Shutdown: %v", err)
		}
	})
}

// U24: counted when it is accepted, before a byte is read or a handshake done.
func TestCountedAtAccept(t *testing.T) {
	srv := echoes()
	srv.TLS = newAuthority(t).serverTLS()
	inWorld(t, srv, func(t *testing.T, w *world) {
		w.client()
		synctest.Wait()
		if s := srv.Stats(); s.Open != 1 || s.Accepted != 1 {
			t.Errorf("%+v, want the silent one counted", s)
		}
		took, err := w.shutdown(time.Minute)()
		if err != nil {
			t.Error(err)
		}
		within(t, took, 10*time.Second, 11*time.Second) // Shutdown waited for it: the limit of its handshake
	})
}

// U25: who goes away early harms nobody, and is no error of accept.
func TestEarlyDisconnect(t *testing.T) {
	leak.Check(t)
	srv := echoes()
	addr := start(t, srv)
	for range 50 {
		c := dial(t, addr)
		c.Conn.(*net.TCPConn).SetLinger(0) // a RST, perhaps before accept
		c.Close()
	}
	dial(t, addr).ask("fine")
	if s := srv.Stats(); s.Panics != 0 || s.AcceptErrors != 0 {
		t.Errorf("%+v", s)
	}
	eventually(t, "all are gone", func() bool { return srv.Stats().Open <= 1 })
}

// Fault 71: a log that nobody reads stops nothing, and delays the end by a second.
func TestBlockedLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		defer n.Close()
		reader, pipe := net.Pipe()
		srv := raw(func(context.Context, *serve.Conn) error { panic("a bug") })
		srv.Log = slog.New(slog.NewTextHandler(pipe, nil))
		ln, _ := n.Listen("tcp", here)
		go srv.Serve(ln)
		w := &world{t: t, net: n, srv: srv}
		for range 1500 {
			c := w.client()
			c.expectEnd()
			c.Close()
		}
		synctest.Wait()
		if s := srv.Stats(); s.Panics != 1500 || s.Open != 0 {
			t.Errorf("%+v", s)
		}
		begin := time.Now()
		srv.Close()
		within(t, time.Since(begin), time.Second, time.Second)
		reader.Close()
	})
}
