package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// What went wrong once.

// idles checks that nothing runs where nothing happens.
func idles(t *testing.T, what string) {
	t.Helper()
	const look = 500 * time.Millisecond
	before := cpuTime(t)
	time.Sleep(look)
	if used := cpuTime(t) - before; used > look/4 {
		t.Errorf("%s: %v of CPU in %v", what, used, look)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// One parked connection has one timer, however long it waits.
func TestParkedConnectionsDoNotMultiplyTimers(t *testing.T) {
	leak.Check(t)
	cfg := proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Limits: serve.Limits{MaxConns: 1, Over: serve.Wait}}
	p, addr := start(t, cfg, paths["loops"])
	a := dial(t, addr)
	if err := ask(a, "x"); err != nil {
		t.Fatal(err)
	}
	b := dial(t, addr)
	time.Sleep(1500 * time.Millisecond)
	if n := p.Stats().Accepted; n > 10 {
		t.Errorf("two connections were accepted %d times", n)
	}
	idles(t, "one connection waits")
	a.Close()
	if err := ask(b, "y"); err != nil {
		t.Errorf("when there is room: %v", err)
	}
}

// What a stalled backend has not taken of a client that is gone makes nothing spin.
func TestResetBehindAStallDoesNotSpin(t *testing.T) {
	leak.Check(t)
	say, done := make(chan struct{}), make(chan struct{})
	back := serveEach(t, func(c *net.TCPConn) {
		<-say
		c.Write([]byte("x"))
		time.Sleep(50 * time.Millisecond)
		c.Write([]byte("y"))
		<-done
	})
	_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, back)}, paths["loops"])
	c := dial(t, addr)
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	io.Copy(c, endless{})
	c.SetLinger(0)
	c.Close()
	close(say)
	time.Sleep(200 * time.Millisecond)
	idles(t, "a backend does not read")
	close(done)
}

// A client that reads slowly is not told that this was all.
func TestSlowReadersAreNotCutCleanly(t *testing.T) {
	const size = 20 << 20
	for name, end := range map[string]func(*proxy.Proxy){
		"shutdown": func(p *proxy.Proxy) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			p.Shutdown(ctx)
		},
		"idle": func(*proxy.Proxy) { time.Sleep(1500 * time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				leak.Check(t)
				cfg := proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, func(c *net.TCPConn) { c.Write(make([]byte, size)) }))}
				if name == "idle" {
					cfg.Timeouts.Idle = time.Second
				}
				p, addr := start(t, cfg, front)
				c := dial(t, addr)
				time.Sleep(300 * time.Millisecond)
				end(p)
				if n, err := io.Copy(io.Discard, c); n < size && err == nil {
					t.Errorf("%d of %d bytes, and a clean end", n, size)
				}
			})
		})
	}
}

// A policy that takes turns has one turn for each connection.
func TestRoundRobinTakesEachTurn(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		var served [2]atomic.Int64
		backs := make([]string, 2)
		for i := range backs {
			backs[i] = serveEach(t, func(c *net.TCPConn) { served[i].Add(1); echo(c) })
		}
		_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Picker: holdfast.RoundRobin()}, backs...)}, front)
		for range 20 {
			if err := ask(dial(t, addr), "x"); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := served[0].Load(), served[1].Load(); a != 10 || b != 10 {
			t.Errorf("%d and %d of 20 in turns", a, b)
		}
	})
}

// Connections whose idle limit came leave no timer behind.
func TestEndedPairsLeaveNoTimers(t *testing.T) {
	cfg := proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))}
	cfg.Timeouts.Idle = 20 * time.Millisecond
	p, addr := start(t, cfg, paths["goroutines"])
	for range 200 {
		c := dial(t, addr)
		c.Write([]byte("x"))
		io.Copy(io.Discard, c)
		c.Close()
	}
	eventually(t, "all have ended", func() bool { return p.Stats().Open == 0 })
	idles(t, "200 connections ended")
}

// A connection moves to a successor that does not know its backend, and stays.
func TestMovedFromABackendThatIsGone(t *testing.T) {
	leak.Check(t)
	p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))}, paths["loops"])
	next, err := proxy.New(proxy.Config{
		Cluster:  cluster(t, holdfast.Config{}, serveEach(t, echo)),
		Backends: proxy.Backends{Down: proxy.Sever},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	c := dial(t, addr)
	if err := ask(c, "x"); err != nil {
		t.Fatal(err)
	}
	if err := p.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // the successor has looked at its backends
	if err := ask(c, "y"); err != nil {
		t.Errorf("after the move: %v", err)
	}
}

// A reset that the predecessor has seen is one for the successor too.
func TestAResetMoves(t *testing.T) {
	leak.Check(t)
	back := serveEach(t, func(c *net.TCPConn) {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		io.Copy(c, endless{})
		c.SetLinger(0)
	})
	backends := cluster(t, holdfast.Config{}, back)
	p, addr := start(t, proxy.Config{Cluster: backends}, paths["loops"])
	next, err := proxy.New(proxy.Config{Cluster: backends})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	c := dial(t, addr)
	time.Sleep(400 * time.Millisecond)
	c.Write([]byte("x")) // which finds the backend gone
	time.Sleep(50 * time.Millisecond)
	if err := p.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, then %v; want a reset", n, err)
	}
	c.Close()
	eventually(t, "it is over", func() bool { return next.Stats().Open == 0 })
}

// A client that has said all, and then is gone, is gone for the backend too.
func TestAResetBehindAnEndPassesOn(t *testing.T) {
	leak.Check(t)
	heard, gone := make(chan error, 1), make(chan struct{})
	back := serveEach(t, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		select {
		case <-gone:
		case <-time.After(patience):
		}
		_, err := c.Write([]byte("x"))
		heard <- err
	})
	p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, back)}, paths["loops"])
	c := dial(t, addr)
	c.Write([]byte("q"))
	c.CloseWrite()
	time.Sleep(100 * time.Millisecond)
	c.SetLinger(0)
	c.Close()
	eventually(t, "it is over", func() bool { return p.Stats().Open == 0 })
	close(gone)
	if err := <-heard; err == nil {
		t.Error("the backend answers a client that is gone")
	}
}

// A listener that somebody has made to block must not stop the world.
func TestABlockingListenerDoesNotBlockTheLoop(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Fd() // which clears O_NONBLOCK, for all who share the socket
	p, err := proxy.New(proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve(ln) }()
	defer func() { p.Close(); <-served }()
	c := dial(t, ln.Addr().String())
	if err := ask(c, "x"); err != nil {
		t.Error(err)
	}
	runtime.GC()
	if err := ask(c, "y"); err != nil {
		t.Error(err)
	}
}
