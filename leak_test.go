//go:build unix

package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
)

// checkLeaks is leak.Check without the collector, whose finalizers would close what
// nobody owns any more, and so hide it.
func checkLeaks(t *testing.T) {
	t.Helper()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	leak.Check(t)
}

// ourGoroutines returns the stacks that run code of the library now.
func ourGoroutines() (ours []string) {
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "/holdfast.(") && !strings.Contains(stack, "holdfast_test.ourGoroutines") {
			ours = append(ours, stack)
		}
	}
	return ours
}

// noneOfOurs fails the test if a goroutine runs our code. One that has said that it
// ends may be on its last instruction still, so they get a moment; less than any wait
// that the library bounds by time.
func noneOfOurs(t *testing.T) {
	t.Helper()
	ours := ourGoroutines()
	for range 20 {
		if len(ours) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
		ours = ourGoroutines()
	}
	for _, stack := range ours {
		t.Errorf("after Close:\n%s", stack)
	}
}

// When Close returns, every goroutine of the Cluster has ended: not soon, but then.
// Each kind of them is under way at that moment.
func TestCloseWaitsForEveryGoroutine(t *testing.T) {
	checkLeaks(t)
	ca := newAuthority(t)
	good := listenOn(t, "tcp", "127.0.0.1:0", echo).String()
	silent := "tls://" + listenOn(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { io.Copy(io.Discard, conn) }).String()
	full := tightListener(t)
	events := make(chan struct{}, 1)
	cfg := holdfast.Config{
		TLS:    ca.client(),
		Picker: holdfast.RoundRobin(),
		Pool:   holdfast.Pool{Max: 4, MinIdle: 2, Ping: time.Millisecond},
		Probe: func(ctx context.Context, conn net.Conn) error {
			select {
			case events <- struct{}{}:
			default:
			}
			<-ctx.Done() // for as long as it may
			return ctx.Err()
		},
		Check: holdfast.Check{Interval: time.Hour, Timeout: time.Hour},
		Names: holdfast.Names{Lookup: func(ctx context.Context, _ holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
			<-ctx.Done()
			return nil, 0, ctx.Err()
		}},
	}
	c, err := holdfast.New(holdfast.Static(good, silent, full, "never.example:7000"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 20 {
		callers.Go(func() {
			c.Do(ctx, holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
				_, err := conn.Read(make([]byte, 1)) // for as long as it may
				return err
			})
		})
		callers.Go(func() {
			if conn, err := c.DialContext(ctx, "tcp", "any:1"); err == nil {
				callers.Go(func() { conn.Read(make([]byte, 1)) })
				<-ctx.Done()
				conn.Close()
			}
		})
	}
	<-events // a probe runs
	eventually(t, "connections, dials and waiters", func() bool {
		s := c.Stats()
		return s.Conns > 4 && s.Dialing > 0 && s.Waiting > 0
	})
	if n := len(ourGoroutines()); n < 10 {
		t.Errorf("%d goroutines run our code before Close: no test of it", n)
	}

	cancel() // those who call us are not ours to wait for
	callers.Wait()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	noneOfOurs(t)
}

// Every way to fail gives back its descriptor and ends its goroutines.
func TestErrorPathsLeakNoDescriptor(t *testing.T) {
	type story func(t *testing.T, c *holdfast.Cluster)
	ca := newAuthority(t)
	hangUp := func(conn net.Conn) { conn.Close() }
	reset := func(conn net.Conn) {
		conn.Read(make([]byte, 4096))
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	silent := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	chatty := func(conn net.Conn) { io.WriteString(conn, "late\n"); io.Copy(io.Discard, conn) }
	dials := func(t *testing.T, c *holdfast.Cluster) {
		if _, err := c.DialContext(t.Context(), "tcp", "any:1"); err == nil {
			t.Error("it connected")
		}
	}
	does := func(t *testing.T, c *holdfast.Cluster) {
		if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err == nil {
			t.Error("it went well")
		}
	}
	all := func(stories ...story) story {
		return func(t *testing.T, c *holdfast.Cluster) {
			for _, s := range stories {
				s(t, c)
			}
		}
	}
	briefly := func(t *testing.T, f func(context.Context)) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		f(ctx)
	}
	failing := errors.New("not this one")

	for _, test := range []struct {
		name  string
		serve func(net.Conn) // nil: nobody listens
		tls   bool
		cfg   holdfast.Config
		story story
	}{
		{"refused", nil, false, holdfast.Config{}, all(dials, does)},
		{"hangs up", hangUp, false, holdfast.Config{}, does},
		{"resets", reset, false, holdfast.Config{}, does},
		{"TLS: not spoken", hangUp, true, holdfast.Config{}, all(dials, does)},
		{"TLS: wrong name", echo, true, holdfast.Config{TLS: &tls.Config{RootCAs: ca.pool, ServerName: "other.example"}}, all(dials, does)},
		{"TLS: stalls", silent, true, holdfast.Config{Timeouts: holdfast.Timeouts{Handshake: 20 * time.Millisecond}}, all(dials, does)},
		{"handshake fails", echo, false, holdfast.Config{Handshake: func(context.Context, *holdfast.Conn) error { return failing }}, all(dials, does)},
		{"handshake panics", echo, false, holdfast.Config{Handshake: func(context.Context, *holdfast.Conn) error { panic(failing) }}, all(dials, does)},
		{"handshake is refused for good", echo, false, holdfast.Config{Handshake: func(context.Context, *holdfast.Conn) error { return holdfast.Permanent(failing) }}, all(dials, does)},
		{"probes fail", echo, false, holdfast.Config{
			Probe: func(context.Context, net.Conn) error { return failing },
			Check: holdfast.Check{Interval: 5 * time.Millisecond},
		}, func(t *testing.T, c *holdfast.Cluster) {
			c.WaitReady(t.Context())
			eventually(t, "some checks", func() bool { return c.Stats().Nodes[0].Dials > 3 })
		}},
		{"reads time out", silent, false, holdfast.Config{Timeouts: holdfast.Timeouts{Read: 10 * time.Millisecond}}, does},
		{"the context ends", silent, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			briefly(t, func(ctx context.Context) { c.Do(ctx, holdfast.Idempotent, say("x")) })
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			c.Do(ctx, holdfast.Idempotent, say("x"))
			c.DialContext(ctx, "tcp", "any:1")
		}},
		{"the operation fails", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			c.Do(t.Context(), holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { return failing })
		}},
		{"the operation panics", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			defer func() { recover() }()
			c.Do(t.Context(), holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { panic(failing) })
		}},
		{"the operation closes", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error { return conn.Close() })
		}},
		{"discarded", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) { borrow(t, c).Discard(failing) }},
		{"never given back", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) { borrow(t, c) }},
		{"never closed", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			if _, err := c.DialContext(t.Context(), "tcp", "any:1"); err != nil {
				t.Error(err)
			}
		}},
		{"late bytes", chatty, false, holdfast.Config{Pool: holdfast.Pool{CheckIdle: checkAlways}}, func(t *testing.T, c *holdfast.Cluster) {
			conn := borrow(t, c)
			seesRead(t, conn)
			conn.Release()
			borrow(t, c).Release()
		}},
		{"a lease's handshake fails", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			lease, err := c.Pick(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer lease.Done()
			if _, err := lease.Dial(t.Context(), func(context.Context, *holdfast.Conn) error { return failing }); err == nil {
				t.Error("it connected")
			}
		}},
		{"an address outside the set fails", echo, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			if _, err := c.DialAddr(t.Context(), "tcp", "127.0.0.1:1"); err == nil {
				t.Error("it connected")
			}
		}},
		{"a drain is cut short", silent, false, holdfast.Config{}, func(t *testing.T, c *holdfast.Cluster) {
			borrow(t, c)
			briefly(t, func(ctx context.Context) { c.Shutdown(ctx) })
			dials(t, c)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := ln.Addr().String()
			if test.serve == nil {
				ln.Close()
			} else {
				if test.tls && test.name != "TLS: not spoken" && test.name != "TLS: stalls" {
					ln = tls.NewListener(ln, ca.server(t, "127.0.0.1"))
				}
				serveOn(t, ln, test.serve)
			}
			if test.tls {
				addr = "tls://" + addr
			}
			if test.cfg.TLS == nil {
				test.cfg.TLS = ca.client()
			}
			test.cfg.Retry.Attempts = 2
			test.cfg.Backoff = holdfast.Backoff{Base: time.Millisecond, Max: time.Millisecond}
			c, err := holdfast.New(holdfast.Static(addr), test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			test.story(t, c)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			noneOfOurs(t)
			if s := c.Stats(); s.Conns != 0 {
				t.Errorf("%d connections after Close", s.Conns)
			}
		})
	}

	// Who loses a race of dials is closed too, whether it lost in its dial or after.
	t.Run("overtaken", func(t *testing.T) {
		checkLeaks(t)
		slow := make(chan struct{})
		first := listenOn(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { <-slow; echo(conn) }).String()
		second := listenOn(t, "tcp", "127.0.0.1:0", echo).String()
		c, err := holdfast.New(holdfast.Static(first, second, tightListener(t)), holdfast.Config{
			Picker:    holdfast.Ordered(),
			Timeouts:  holdfast.Timeouts{Stagger: time.Millisecond},
			Handshake: func(_ context.Context, conn *holdfast.Conn) error { return exchange(conn, "login") },
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			conn, err := c.DialContext(t.Context(), "tcp", "any:1")
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Fatal(err)
			}
			c.ResetBackoff()
		}
		close(slow)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
