package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
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

// Urgent data stops a read short of what is there: what is behind it comes all the same.
func TestWhatIsBehindUrgentDataPasses(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))}, front)
		c := dial(t, addr)
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		raw, _ := c.SyscallConn()
		for i := range 60 {
			ahead := []int{3, 40 * kib, 200 * kib}[i%3] // read, and spliced
			raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 1) })
			go c.Write(payload[:ahead])
			time.Sleep(time.Duration(i%6) * time.Millisecond)
			raw.Control(func(fd uintptr) { unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
			c.Write([]byte("behind"))
			raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_CORK, 0) })
			if n, err := io.ReadFull(c, make([]byte, ahead+len("behind"))); err != nil {
				t.Fatalf("%d bytes came back, then %v", n, err)
			}
		}
	})
}

// A client cannot make backends look bad by what it asks for.
func TestALongNameIsNoFaultOfTheBackends(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		c := cluster(t, holdfast.Config{}, serveEach(t, echo), serveEach(t, echo))
		p, addr := start(t, proxy.Config{Routes: []proxy.Route{{Cluster: c}}, Backends: proxy.Backends{Header: 2}}, front)
		name := strings.Repeat("a", 5000) // of which no header can tell
		for range 12 {
			conn := dial(t, addr)
			tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
			conn.Close()
		}
		eventually(t, "all are refused", func() bool { return p.Stats().Open == 0 })
		for _, n := range c.Stats().Nodes {
			if n.DialFailures+n.Failures > 0 {
				t.Errorf("%s: %v", n.Node, n.Err)
			}
		}
		if s := p.Stats(); s.Ends[proxy.BadHello] != 12 {
			t.Errorf("%+v", s)
		}
	})
}

// Places that become free all at once are taken all at once.
func TestAQueueMovesWhenABackendComesBack(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		const places = 60
		b := newBackend(t)
		b.kill()
		backs := cluster(t, holdfast.Config{Backoff: holdfast.Backoff{Base: time.Second, Max: time.Second, Jitter: -1}}, b.addr, serveEach(t, echo))
		p, addr := start(t, proxy.Config{Cluster: backs, Backends: proxy.Backends{Max: places, QueueTime: 4 * time.Second}}, front)
		for range places {
			if err := ask(dial(t, addr), "x"); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		var failed atomic.Int64
		for range places {
			c := dial(t, addr)
			wg.Go(func() {
				if ask(c, "y") != nil {
					failed.Add(1)
				}
			})
		}
		eventually(t, "they wait", func() bool { return p.Stats().Queued == places })
		b.rise()
		wg.Wait()
		if s, n := p.Stats(), failed.Load(); n > min(int64(s.ConnectFailures), places/4) { // who has failed there does not go there again
			t.Errorf("%d of %d have waited for nothing: %+v", n, places, s)
		}
	})
}

// One who has failed at a node that is well again does not keep others from it.
func TestWhoCannotUseAPlaceLeavesItToOthers(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		const backoff = 300 * time.Millisecond
		b := newBackend(t)
		b.kill()
		backs := cluster(t, holdfast.Config{Picker: holdfast.Ordered(), Backoff: holdfast.Backoff{Base: backoff, Max: backoff, Jitter: -1}}, b.addr, serveEach(t, echo))
		p, addr := start(t, proxy.Config{Cluster: backs, Backends: proxy.Backends{Max: 1, QueueTime: -1}}, front)
		if err := ask(dial(t, addr), "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(backoff + backoff/3)
		unlucky := dial(t, addr)
		defer unlucky.Close()
		eventually(t, "it waits", func() bool { s := p.Stats(); return s.Queued == 1 && s.ConnectFailures == 2 })
		b.rise()
		if err := ask(dial(t, addr), "y"); err != nil {
			t.Errorf("another: %v, %+v", err, p.Stats())
		}
	})
}

// More places are for those who wait, too, and they are not in the way of others.
func TestAQueueHeedsAnUpdate(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		cfg := proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Backends: proxy.Backends{Max: 1, QueueTime: -1}}
		p, addr := start(t, cfg, front)
		if err := ask(dial(t, addr), "x"); err != nil {
			t.Fatal(err)
		}
		second := dial(t, addr)
		eventually(t, "it waits", func() bool { return p.Stats().Queued == 1 })
		cfg.Backends.Max = 4
		if err := p.Update(cfg); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*net.TCPConn{dial(t, addr), second} {
			c.SetDeadline(time.Now().Add(patience))
			if err := ask(c, "y"); err != nil {
				t.Errorf("%v, %+v", err, p.Stats())
			}
		}
	})
}

// A node may fail while it is asked whether there is another: the race detector says
// whether both look at the same.
func TestAFailureAtTheHeadStartIsNoRace(t *testing.T) {
	leak.Check(t)
	var turns atomic.Int64
	fails := func(context.Context, string, string) (net.Conn, error) {
		time.Sleep(1100 * time.Millisecond) // a little more than the head start
		return nil, errors.New("no")
	}
	picker := func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
		return func(_ uint64, tried []*holdfast.Node) *holdfast.Node {
			if turns.Add(1) == 2 {
				time.Sleep(300 * time.Millisecond)
			}
			for _, n := range nodes {
				if !slices.Contains(tried, n) {
					return n
				}
			}
			return nil
		}
	}
	c := cluster(t, holdfast.Config{Dial: fails, Picker: picker}, "10.0.0.1:1", "10.0.0.2:1")
	_, addr := start(t, proxy.Config{Cluster: c}, paths["goroutines"])
	isCut(t, dial(t, addr))
}

// A backend that goes down while the proxy drains is severed as ever.
func TestADrainDoesNotKeepWhatIsSevered(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		b := newBackend(t)
		backs := cluster(t, holdfast.Config{Probe: func(context.Context, net.Conn) error { return nil },
			Check: holdfast.Check{Interval: 20 * time.Millisecond, Fall: 1, Rise: 1}, Outlier: holdfast.Outlier{PanicPercent: -1}}, b.addr)
		p, addr := start(t, proxy.Config{Cluster: backs, Backends: proxy.Backends{Down: proxy.Sever}}, front)
		c := dial(t, addr)
		if err := ask(c, "x"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		down := make(chan struct{})
		go func() { p.Shutdown(ctx); close(down) }()
		time.Sleep(50 * time.Millisecond)
		b.mu.Lock()
		b.ln.Close()
		b.ln = nil
		b.mu.Unlock()
		c.SetDeadline(time.Now().Add(patience))
		if got := readAll(c); got != "0 bytes, reset" {
			t.Error(got)
		}
		cancel()
		<-down
	})
}

// At the limit who waits is let in as soon as there is room.
func TestRoomIsTakenAtOnce(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		_, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Limits: serve.Limits{MaxConns: 2, Over: serve.Wait},
		}, front)
		var wg sync.WaitGroup
		begin := time.Now()
		for range 8 {
			wg.Go(func() {
				for range 50 {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						t.Error(err)
						return
					}
					c.SetDeadline(time.Now().Add(2 * patience))
					if err := ask(c, "x"); err != nil {
						t.Error(err)
					}
					c.Close()
				}
			})
		}
		wg.Wait()
		if d := time.Since(begin); d > 4*time.Second { // by a look every 100 ms it would be 13
			t.Errorf("400 connections by twos took %v", d)
		}
	})
}

// Close does not wait for who does not read, as the end of a connection does.
func TestCloseDoesNotLinger(t *testing.T) {
	leak.Check(t)
	gone := make(chan struct{})
	backs := cluster(t, holdfast.Config{Dial: (&net.Dialer{}).DialContext}, serveEach(t, func(c *net.TCPConn) {
		c.Write(payload[:200*kib])
		settle(c)
		time.Sleep(100 * time.Millisecond)
		reset(c)
		close(gone)
	}))
	p, addr := start(t, proxy.Config{Cluster: backs, Timeouts: proxy.Timeouts{Linger: -1}}, paths["loops"])
	dial(t, addr).SetReadBuffer(4 * kib)
	<-gone
	time.Sleep(100 * time.Millisecond)
	if s := p.Stats(); s.Open != 1 {
		t.Fatalf("nothing lingers: %+v", s)
	}
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close waits")
	}
}

// Fault 70: a panic in a function of the user's ends its connection only.
func TestAPanicOfTheUsersEndsItsConnectionOnly(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		const good, badKey, badPolicy = 0, 1, 2
		var what atomic.Uint64
		picker := func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
			return func(key uint64, _ []*holdfast.Node) *holdfast.Node {
				if key == badPolicy {
					panic("no such key")
				}
				return nodes[0]
			}
		}
		key := func(proxy.Client) uint64 {
			if what.Load() == badKey {
				panic("no such client")
			}
			return what.Load()
		}
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Picker: picker}, serveEach(t, echo)), Key: key}, front)
		for _, bad := range []uint64{badKey, badPolicy} {
			what.Store(bad)
			c, err := net.Dial("tcp", addr)
			if err != nil { // it was reset before it was handed out
				continue
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			if got := readAll(c); got != "0 bytes, end" && got != "0 bytes, reset" {
				t.Error(got)
			}
		}
		what.Store(good)
		if err := ask(dial(t, addr), "x"); err != nil {
			t.Error(err)
		}
		eventually(t, "the others have left", func() bool { return p.Stats().Open == 1 })
	})
}

// That all backends wait out their backoffs, which may be long, does not shut out clients
// when one is back.
func TestABackendIsUsedBeforeItsBackoffIsOver(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		a, b := newBackend(t), newBackend(t)
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{
			Picker:  holdfast.Ordered(),
			Backoff: holdfast.Backoff{Base: 20 * time.Millisecond, Multiplier: 10_000, Max: time.Hour, Jitter: -1},
		}, a.addr, b.addr)}, front)
		a.kill()
		eventually(t, "the first has a long backoff", func() bool {
			if err := ask(dial(t, addr), "x"); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Millisecond)
			return p.Stats().ConnectFailures == 2
		})
		a.rise()
		b.kill()
		eventually(t, "the first is used again", func() bool {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return false // it was reset already
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			return ask(c, "x") == nil
		})
	})
}
