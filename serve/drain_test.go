package serve_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/serve"
)

// slowly is a server of lines whose handler takes that long.
func slowly(d time.Duration) *serve.Server {
	return &serve.Server{Handler: serve.Frames(frame.Lines(), func(ctx context.Context, c *serve.Conn, line []byte) error {
		select {
		case <-time.After(d):
			return c.Send(line)
		case <-ctx.Done():
			return ctx.Err()
		}
	})}
}

// U18, A9, D1.
func TestShutdownDrains(t *testing.T) {
	t.Run("what is in flight is finished, and its reply flushed", func(t *testing.T) {
		inWorld(t, slowly(3*time.Second), func(t *testing.T, w *world) {
			idle, busy := w.client(), w.client()
			idle.ask("hello")
			busy.write("one\ntwo\n")
			synctest.Wait()
			begin := time.Now()
			end := w.shutdown(time.Minute)
			within(t, idle.expectEnd().Sub(begin), 0, 0)
			idle.Close()
			if _, err := w.net.Host("10.0.0.9").DialContext(t.Context(), "tcp", here); err == nil {
				t.Error("still accepting")
			}
			busy.expect("one\ntwo\n") // both had come
			busy.expectEnd()
			busy.Close()
			took, err := end()
			if err != nil {
				t.Error(err)
			}
			within(t, took, 6*time.Second, 6*time.Second)
			if s := w.srv.Stats(); s.Open != 0 || s.Cut != 0 {
				t.Errorf("%+v", s)
			}
			if err := w.srv.Shutdown(t.Context()); err != nil {
				t.Errorf("the second time: %v", err)
			}
		})
	})
	t.Run("the deadline cuts, and says how many", func(t *testing.T) {
		inWorld(t, slowly(time.Hour), func(t *testing.T, w *world) {
			a, b := w.client(), w.client()
			a.write("x\n")
			b.write("x\n")
			synctest.Wait()
			took, err := w.shutdown(10 * time.Second)()
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 connections") {
				t.Errorf("got %v", err)
			}
			within(t, took, 10*time.Second, 10*time.Second)
			a.expectGone()
			b.expectGone()
			if s := w.srv.Stats(); s.Cut != 2 || s.Open != 0 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("a message that is there in part gets its time", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			c, slow := w.client(), w.client()
			c.write("hal")
			slow.write("hal")
			synctest.Wait()
			end := w.shutdown(time.Minute)
			time.Sleep(5 * time.Second)
			c.write("f\n")
			c.expect("half\n")
			c.expectEnd()
			c.Close()
			slow.expectGone()
			took, err := end()
			if err != nil {
				t.Error(err)
			}
			within(t, took, 30*time.Second, 30*time.Second)
		})
	})
	t.Run("goodbye, and the wait for each", func(t *testing.T) {
		srv := echoes()
		srv.Drain = serve.Drain{Wait: 4 * time.Second, Goodbye: func(_ context.Context, c *serve.Conn) error { return c.Send([]byte("GOAWAY")) }}
		inWorld(t, srv, func(t *testing.T, w *world) {
			leaves, stays := w.client(), w.client()
			leaves.ask("hello")
			stays.ask("hello")
			end := w.shutdown(time.Minute)
			for _, c := range []*client{leaves, stays} {
				c.expect("GOAWAY\n")
				time.Sleep(time.Second)
				c.ask("one more")
			}
			leaves.Close()
			stays.expectEnd()
			stays.Close()
			took, err := end()
			if err != nil {
				t.Error(err)
			}
			within(t, took, 4*time.Second, 4*time.Second)
		})
	})
	t.Run("goodbye to raw handlers", func(t *testing.T) {
		srv := raw(copies)
		srv.Drain = serve.Drain{Wait: 4 * time.Second, Goodbye: func(_ context.Context, c *serve.Conn) error {
			_, err := io.WriteString(c, "GOAWAY\n")
			return err
		}}
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			c.ask("hello")
			end := w.shutdown(time.Minute)
			c.expect("GOAWAY\n")
			c.ask("one more")
			took, err := end()
			if err != nil {
				t.Error(err)
			}
			within(t, took, 4*time.Second, 4*time.Second)
			c.expectGone()
		})
	})
	t.Run("a goodbye that panics is one connection's", func(t *testing.T) {
		srv := echoes()
		srv.Drain = serve.Drain{Wait: -1, Goodbye: func(context.Context, *serve.Conn) error { panic("a bug") }}
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			c.ask("hello")
			end := w.shutdown(time.Minute)
			c.expectEnd()
			c.Close()
			if _, err := end(); err != nil || srv.Stats().Panics != 1 {
				t.Error(err, srv.Stats().Panics)
			}
		})
	})
	t.Run("the peer has a second to read the last bytes", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			w.client().ask("hello") // and does not close
			took, err := w.shutdown(time.Minute)()
			if err != nil {
				t.Error(err)
			}
			within(t, took, time.Second, time.Second)
		})
	})
	t.Run("who has just come may say what for", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			c, silent := w.client(), w.client()
			synctest.Wait()
			begin := time.Now()
			end := w.shutdown(time.Minute)
			time.Sleep(time.Second / 2) // its first request is under way
			c.ask("hello")
			silent.Close()
			c.expectEnd()
			c.Close()
			took, err := end()
			if err != nil {
				t.Error(err)
			}
			within(t, took, time.Second, time.Second)
			within(t, time.Since(begin), time.Second, time.Second)
		})
	})
	t.Run("accepted at the last moment", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			second, _ := w.net.Listen("tcp", "10.0.0.1:7001")
			ln := &lastMoment{Listener: second, closed: make(chan struct{})}
			go w.srv.Serve(ln)
			conn, _ := w.net.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7001")
			c := newClient(t, conn)
			c.write("hello\n")
			synctest.Wait()
			end := w.shutdown(time.Minute) // the connection is between accept and the books
			c.expect("hello\n")
			c.expectEnd()
			c.Close()
			if _, err := end(); err != nil {
				t.Error(err)
			}
			if s := w.srv.Stats(); s.Accepted != 1 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("Serve after it", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			w.srv.Shutdown(t.Context())
			ln, _ := w.net.Listen("tcp", "10.0.0.1:7001")
			if err := w.srv.Serve(ln); !errors.Is(err, serve.ErrServerClosed) {
				t.Error(err)
			}
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener is left open: %v", err)
			}
		})
	})
}

// lastMoment gives out a connection only after it was closed.
type lastMoment struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *lastMoment) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	<-l.closed
	return conn, err
}

func (l *lastMoment) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// A8: a handler that reads for itself sees that it should leave.
func TestDrainingSeenByHandler(t *testing.T) {
	srv := raw(func(ctx context.Context, c *serve.Conn) error {
		for {
			select {
			case <-c.Draining():
				_, err := io.WriteString(c, "bye\n")
				return err
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				io.WriteString(c, "tick\n")
			}
		}
	})
	inWorld(t, srv, func(t *testing.T, w *world) {
		c := w.client()
		c.expect("tick\ntick\n")
		end := w.shutdown(time.Minute)
		c.expect("bye\n")
		c.expectEnd()
		c.Close()
		if took, err := end(); err != nil || took != 0 {
			t.Error(err, took)
		}
	})
}

// curious is a listener whose Close asks the server that it belongs to.
type curious struct {
	net.Listener
	srv *serve.Server
}

func (l curious) Close() error {
	l.srv.Stats()
	return l.Listener.Close()
}

// No lock of the server's is held while the user's listener closes.
func TestListenerCloseMayAskTheServer(t *testing.T) {
	leak.Check(t)
	srv := echoes()
	ln, err := serve.Listen(t.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- srv.Serve(curious{ln, srv}) }()
	eventually(t, "it listens", func() bool { return srv.Stats().Listeners == 1 })
	go srv.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, serve.ErrServerClosed) {
			t.Error(err)
		}
		srv.Close()
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for itself")
	}
}

// Any order and number of Serve, Shutdown and Close, with clients: nothing is left.
func TestLifecycleRaces(t *testing.T) {
	leak.Check(t)
	for i := range 60 {
		srv := echoes()
		if i%3 == 0 {
			srv.Drain.Goodbye = func(_ context.Context, c *serve.Conn) error { return c.Send([]byte("bye")) }
			srv.Drain.Wait = time.Millisecond
		}
		if i%2 == 0 {
			srv.Handler = serve.HandlerFunc(copies)
			srv.Drain.Wait = time.Millisecond
		}
		if i%5 == 0 {
			srv.Workers = 2
		}
		var wg sync.WaitGroup
		for range 2 {
			ln, err := serve.Listen(t.Context(), "tcp://127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if err := srv.Serve(ln); !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			})
			for range 3 {
				wg.Go(func() {
					conn, err := net.Dial("tcp", ln.Addr().String())
					if err != nil {
						return
					}
					defer conn.Close()
					io.WriteString(conn, "hello\n")
					conn.Read(make([]byte, 10))
				})
			}
		}
		for range 2 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*100*time.Microsecond)
				defer cancel()
				srv.Shutdown(ctx)
			})
			wg.Go(func() { srv.Stats() })
			if i%4 == 0 {
				wg.Go(func() { srv.Close() })
			}
		}
		wg.Wait()
		if s := srv.Stats(); s.Open != 0 || s.Listeners != 0 {
			t.Fatalf("%+v", s)
		}
	}
}

// tardy is a socket on which the deadline of an order takes effect late: after the read
// loop has had every occasion to go on.
type tardy struct {
	net.Conn
	meanwhile func()
}

func (c *tardy) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		c.meanwhile()
		for range 10_000 {
			runtime.Gosched()
		}
	}
	return c.Conn.SetReadDeadline(t)
}

// An order whose deadline comes after the loop has obeyed it must not look like that of
// an idle connection, which would be cut.
func TestLateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		defer n.Close()
		ln, _ := n.Listen("tcp", here)
		srv := echoes()
		srv.Drain = serve.Drain{Wait: time.Minute, Goodbye: func(context.Context, *serve.Conn) error { return nil }}
		w := &world{t: t, net: n, srv: srv}
		c := w.client()
		conn, _ := ln.Accept()
		go srv.ServeConn(&tardy{conn, func() { c.write("meanwhile\n") }})
		c.ask("hello")
		if err := srv.HandOver(t.Context(), nil); err != nil { // there is nothing to send: no descriptor
			t.Error(err)
		}
		c.expect("meanwhile\n")
		for range 10 {
			time.Sleep(time.Second)
			c.ask("still here")
		}
		srv.Close()
	})
}
