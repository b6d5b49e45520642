package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
)

// A5: never before the limit, and at most an eighth later, however the deadline was
// moved before.
func TestIdleTimeout(t *testing.T) {
	const limit = 8 * time.Second
	for name, handler := range map[string]serve.Handler{
		"Frames": serve.Frames(frame.Lines(), echo),
		"raw":    serve.HandlerFunc(copies),
	} {
		for _, quiet := range []time.Duration{0, 100 * time.Millisecond, 900 * time.Millisecond, 1100 * time.Millisecond, 7 * time.Second} {
			t.Run(fmt.Sprintf("%s after %v", name, quiet), func(t *testing.T) {
				srv := &serve.Server{Handler: handler, Timeouts: serve.Timeouts{Idle: limit}}
				inWorld(t, srv, func(t *testing.T, w *world) {
					c := w.client()
					for range 20 {
						c.ask("x")
						time.Sleep(quiet)
					}
					c.ask("x")
					last := time.Now()
					within(t, c.expectGone().Sub(last), limit, limit+limit/8)
				})
			})
		}
	}
	t.Run("default", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			c := w.client()
			c.ask("x")
			begin := time.Now()
			within(t, c.expectGone().Sub(begin), time.Hour, time.Hour+time.Hour/8)
		})
	})
	t.Run("none, after a slow message", func(t *testing.T) { // the limit of a message must not stay
		srv := echoes()
		srv.Timeouts.Idle = -1
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			c.write("hel")
			time.Sleep(time.Second)
			c.write("lo\n")
			c.expect("hello\n")
			time.Sleep(100 * time.Hour)
			c.ask("still here")
		})
	})
	t.Run("a message without a limit has that of the idle", func(t *testing.T) {
		srv := echoes()
		srv.Timeouts = serve.Timeouts{Idle: limit, Read: -1}
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			for range 20 {
				c.write("x")
				time.Sleep(limit / 2)
			}
			c.write("\n")
			c.expect(strings.Repeat("x", 20) + "\n")
		})
	})
	t.Run("the user's own", func(t *testing.T) {
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
			c.SetReadDeadline(time.Now().Add(3 * time.Second))
			return c.Send(line)
		})}
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			c.ask("x")
			begin := time.Now()
			within(t, c.expectGone().Sub(begin), 3*time.Second, 3*time.Second)
		})
	})
}

// Fault 17: the limit is one of the whole message.
func TestSlowMessage(t *testing.T) {
	inWorld(t, echoes(), func(t *testing.T, w *world) {
		other, slow := w.client(), w.client()
		slow.ask("first")
		time.Sleep(time.Minute) // idle is another limit
		begin := time.Now()
		for time.Since(begin) < 30*time.Second {
			slow.write("x")
			time.Sleep(5 * time.Second)
		}
		within(t, slow.expectGone().Sub(begin), 30*time.Second, 30*time.Second)
		other.ask("hello")
	})
	t.Run("two messages", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			c := w.client()
			c.write("on")
			time.Sleep(20 * time.Second)
			c.write("e\ntw")
			c.expect("one\n")
			time.Sleep(20 * time.Second)
			c.write("o\n")
			c.expect("two\n")
		})
	})
}

// Fault 16: who does not read is cut at the limit of writes, holds a bounded amount of
// memory, and stops nobody else.
func TestStalledPeer(t *testing.T) {
	var sent atomic.Int64
	line := []byte(strings.Repeat("x", 1000))
	flood := func(_ context.Context, c *serve.Conn, msg []byte) error {
		if string(msg) != "flood" {
			return c.Send(msg)
		}
		for {
			if err := c.Send(line); err != nil {
				return err
			}
			sent.Add(int64(len(line) + 1))
		}
	}
	inWorld(t, &serve.Server{Handler: serve.Frames(frame.Lines(), flood)}, func(t *testing.T, w *world) {
		bad, good := w.client(), w.client()
		begin := time.Now()
		bad.write("flood\n")
		synctest.Wait()
		if n := sent.Load(); n > 64<<10+32<<10+1001 { // simnet's buffer, and ours
			t.Errorf("%d bytes were taken for a peer that reads nothing", n)
		}
		for time.Since(begin) < 29*time.Second {
			good.ask("hello")
			time.Sleep(time.Second)
		}
		if srv := w.srv.Stats(); srv.Open != 2 {
			t.Errorf("%d open before the limit", srv.Open)
		}
		time.Sleep(time.Duration(1.125*30*float64(time.Second)) - time.Since(begin))
		synctest.Wait()
		if srv := w.srv.Stats(); srv.Open != 1 {
			t.Errorf("%d open after the limit", srv.Open)
		}
		good.ask("hello")
	})
	t.Run("Send waits", func(t *testing.T) {
		var pending atomic.Int64
		conns := make(chan *serve.Conn, 1)
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, msg []byte) error {
			conns <- c
			return nil
		})}
		inWorld(t, srv, func(t *testing.T, w *world) {
			w.client().write("hello\n")
			c := <-conns
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					for {
						if err := c.Send(line); err != nil {
							if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
								t.Error(err)
							}
							return
						}
						pending.Add(int64(len(line)))
					}
				})
			}
			time.Sleep(time.Second)
			if n := pending.Load(); n > 64<<10+2*(256<<10) {
				t.Errorf("%d bytes pending for a peer that reads nothing", n)
			}
			begin := time.Now()
			wg.Wait() // all of them learn it
			within(t, time.Since(begin), 25*time.Second, 34*time.Second)
		})
	})
	t.Run("Send goes on", func(t *testing.T) { // nobody who waits is forgotten when the peer reads again
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, msg []byte) error {
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					for range 100 {
						if err := c.Send(line); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			return nil
		})}
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			c.write("hello\n")
			time.Sleep(20 * time.Second)
			n, err := io.Copy(io.Discard, io.LimitReader(c, 1000*1001))
			if n != 1000*1001 || err != nil {
				t.Error(n, err)
			}
		})
	})
}

// The lifetime of a connection ends it between two messages.
func TestLifetime(t *testing.T) {
	srv := echoes()
	srv.Timeouts.Lifetime = time.Minute
	inWorld(t, srv, func(t *testing.T, w *world) {
		begin := time.Now()
		idle, busy := w.client(), w.client()
		idle.ask("x")
		time.Sleep(50 * time.Second)
		busy.write("hal")
		within(t, idle.expectEnd().Sub(begin), time.Minute, time.Minute)
		time.Sleep(5 * time.Second)
		busy.write("f\n")
		busy.expect("half\n")
		busy.expectEnd()
	})
	t.Run("raw", func(t *testing.T) {
		srv := raw(func(_ context.Context, c *serve.Conn) error {
			buf := make([]byte, 100)
			for {
				n, err := c.Read(buf)
				if err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
					_, again := c.Read(buf) // as long as it tries
					c.SetReadDeadline(time.Now().Add(time.Hour))
					_, third := c.Read(buf)
					if again == nil || third == nil {
						t.Error("reads work again")
					}
					return err
				}
				time.Sleep(20 * time.Second) // the order comes while it does not read
				c.Write(buf[:n])
			}
		})
		srv.Timeouts = serve.Timeouts{Lifetime: 10 * time.Second, Idle: 8 * time.Second}
		inWorld(t, srv, func(t *testing.T, w *world) {
			begin := time.Now()
			c := w.client()
			c.write("x")
			c.expect("x")
			within(t, c.expectGone().Sub(begin), 20*time.Second, 20*time.Second)
		})
	})
}

// What a connection costs while it is idle for long: it rests, wakes up for bytes and
// for orders, and its limits stay what they are.
func TestRestingConnection(t *testing.T) {
	t.Cleanup(serve.RestAfter(20 * time.Millisecond))
	rests := func(t *testing.T) {
		t.Helper()
		eventually(t, "it rests", func() bool { return resting() == 1 })
	}
	t.Run("wakes up", func(t *testing.T) {
		leak.Check(t)
		addr := start(t, echoes())
		c := dial(t, addr)
		for range 5 {
			c.ask("hello")
			rests(t)
		}
		c.write("hal")
		c.write("f\n")
		c.expect("half\n")
		rests(t)
		c.CloseWrite()
		c.expectEnd()
	})
	t.Run("drains", func(t *testing.T) {
		leak.Check(t)
		srv := echoes()
		srv.Drain.Goodbye = func(_ context.Context, c *serve.Conn) error { return c.Send([]byte("bye")) }
		addr := start(t, srv)
		c := dial(t, addr)
		c.ask("hello")
		rests(t)
		done := make(chan error)
		go func() { done <- srv.Shutdown(context.Background()) }()
		c.expect("bye\n")
		c.ask("one more")
		c.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("is cut", func(t *testing.T) {
		leak.Check(t)
		srv := echoes()
		c := dial(t, start(t, srv))
		c.ask("hello")
		rests(t)
		srv.Close()
		c.expectGone()
	})
	t.Run("idle limit", func(t *testing.T) {
		leak.Check(t)
		srv := echoes()
		srv.Timeouts.Idle = 100 * time.Millisecond
		c := dial(t, start(t, srv))
		c.ask("hello")
		begin := time.Now()
		if d := c.expectGone().Sub(begin); d < 99*time.Millisecond {
			t.Errorf("cut after %v", d)
		}
	})
	t.Run("the user's deadline", func(t *testing.T) {
		leak.Check(t)
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			return c.Send(line)
		})}
		c := dial(t, start(t, srv))
		c.ask("hello")
		c.expectGone() // and not in an hour
	})
	t.Run("a handler that reads is not resting", func(t *testing.T) {
		leak.Check(t)
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
			c.Send([]byte("send it"))
			body := make([]byte, 4)
			if _, err := io.ReadFull(c, body); err != nil {
				t.Error(err)
			}
			return c.Send(body)
		})}
		c := dial(t, start(t, srv))
		c.write("put\n")
		c.expect("send it\n") // though the handler has not returned
		timer := time.NewTimer(100 * time.Millisecond)
		<-timer.C
		c.write("body")
		c.expect("body\n")
	})
}

// resting counts the connections that rest.
func resting() int {
	for size := 1 << 16; ; size *= 4 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Count(string(buf[:n]), "serve.(*Server).rest(")
		}
	}
}
