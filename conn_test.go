package holdfast_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// listenOn listens on a real socket until the test ends and gives each connection
// to handle in a goroutine of its own. The test's end waits for all of them; their
// connections are closed first.
func listenOn(t *testing.T, network, addr string, handle func(net.Conn)) net.Addr {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, ln, handle)
	return ln.Addr()
}

func serveOn(t *testing.T, ln net.Listener, handle func(net.Conn)) {
	var (
		accepting, handling sync.WaitGroup
		conns               []net.Conn
	)
	accepting.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			handling.Go(func() { handle(conn) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		accepting.Wait() // it may hold one more that nobody else knows of
		for _, conn := range conns {
			closeNow(conn)
		}
		handling.Wait()
	})
}

// closeNow closes without the goodbye of TLS, which may wait for a peer that does
// not read.
func closeNow(conn net.Conn) {
	if tc, ok := conn.(*tls.Conn); ok {
		conn = tc.NetConn()
	}
	conn.Close()
}

// echo sends back whatever comes.
func echo(conn net.Conn) {
	io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
	conn.Close()
}

// clusterAt makes a Cluster on real sockets that ends with the test.
func clusterAt(t *testing.T, cfg holdfast.Config, addrs ...string) *holdfast.Cluster {
	t.Helper()
	c, err := holdfast.New(holdfast.Static(addrs...), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// url is an address of a listener in the grammar of ParseEndpoint.
func url(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return a.Network() + "://" + a.String()
}

// eventually waits for what the kernel or a background goroutine does soon.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	end := time.After(10 * time.Second)
	for !done() {
		select {
		case <-again.C:
		case <-end:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// pipes are connections of ours to one accepted by a listener, for nettest.
func pipes(cfg holdfast.Config, scheme string, listen func() (net.Listener, error),
	dial func(context.Context, *holdfast.Cluster) (net.Conn, error)) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		ln, err := listen()
		if err != nil {
			return nil, nil, nil, err
		}
		accepted := make(chan net.Conn, 1)
		go func() {
			conn, _ := ln.Accept()
			if tc, ok := conn.(*tls.Conn); ok {
				tc.Handshake()
			}
			accepted <- conn
		}()
		c, err := holdfast.New(holdfast.Static(scheme+ln.Addr().String()), cfg)
		if err != nil {
			return nil, nil, nil, err
		}
		if c1, err = dial(context.Background(), c); err != nil {
			return nil, nil, nil, err
		}
		c2 = <-accepted
		return c1, c2, func() { c1.Close(); closeNow(c2); c.Close(); ln.Close() }, nil
	}
}

func dialContext(ctx context.Context, c *holdfast.Cluster) (net.Conn, error) {
	return c.DialContext(ctx, "tcp", "any:1")
}

func leaseDial(ctx context.Context, c *holdfast.Cluster) (net.Conn, error) {
	lease, err := c.Pick(0, nil)
	if err != nil {
		return nil, err
	}
	defer lease.Done()
	conn, err := lease.Dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func acquire(ctx context.Context, c *holdfast.Cluster) (net.Conn, error) {
	conn, err := c.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func TestConnIsANetConn(t *testing.T) {
	onLoopback := func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	t.Run("TCP", func(t *testing.T) {
		t.Parallel()
		nettest.TestConn(t, pipes(holdfast.Config{}, "tcp://", onLoopback, dialContext))
	})
	t.Run("lease", func(t *testing.T) {
		t.Parallel()
		nettest.TestConn(t, pipes(holdfast.Config{}, "tcp://", onLoopback, leaseDial))
	})
	t.Run("simnet", func(t *testing.T) { // outside a bubble, on the real clock
		t.Parallel()
		n := simnet.New(1)
		defer n.Close()
		cfg := holdfast.Config{Dial: n.Host("10.0.1.1").DialContext}
		nettest.TestConn(t, pipes(cfg, "tcp://", func() (net.Listener, error) { return n.Listen("tcp", "10.0.0.1:0") }, dialContext))
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		ca := newAuthority(t)
		cfg := holdfast.Config{TLS: ca.client()}
		testTLSConn(t, pipes(cfg, "tls://", func() (net.Listener, error) {
			return tls.Listen("tcp", "127.0.0.1:0", ca.server(t, "127.0.0.1"))
		}, dialContext))
	})
}

// testTLSConn is what of nettest.TestConn can hold over TLS: crypto/tls gives a
// stream up for good when a write times out, and three of nettest's tests write
// on after that.
func testTLSConn(t *testing.T, mp nettest.MakePipe) {
	on := func(name string, f func(t *testing.T, c1, c2 net.Conn)) {
		t.Run(name, func(t *testing.T) {
			c1, c2, stop, err := mp()
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			f(t, c1, c2)
		})
	}
	timedOut := func(t *testing.T, err error) {
		t.Helper()
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("got %v, want a timeout", err)
		}
	}
	on("BasicIO", func(t *testing.T, c1, c2 net.Conn) {
		want := make([]byte, 1<<20)
		rand.Read(want)
		go echo(c2)
		go c1.Write(want)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c1, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a megabyte came back changed, or not at all: %v", err)
		}
	})
	on("ReadTimeout", func(t *testing.T, c1, c2 net.Conn) {
		go echo(c2)
		for _, at := range []time.Time{time.Unix(1, 0), time.Now().Add(10 * time.Millisecond)} {
			c1.SetReadDeadline(at)
			_, err := c1.Read(make([]byte, 1))
			timedOut(t, err)
		}
		c1.SetReadDeadline(time.Time{})
		if err := exchange(c1, "goes on"); err != nil {
			t.Error(err)
		}
	})
	on("WriteTimeout", func(t *testing.T, c1, c2 net.Conn) {
		go io.WriteString(c2, "hello")
		c1.SetWriteDeadline(time.Unix(1, 0))
		n, err := c1.Write(make([]byte, 1024))
		timedOut(t, err)
		if n != 0 {
			t.Errorf("%d bytes written after the deadline", n)
		}
		if _, err := io.ReadFull(c1, make([]byte, 5)); err != nil {
			t.Errorf("a write timeout ended reading: %v", err)
		}
	})
	on("PresentTimeout", func(t *testing.T, c1, c2 net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c1.Read(make([]byte, 1))
			timedOut(t, err)
		})
		wg.Go(func() {
			var err error
			for err == nil {
				_, err = c1.Write(make([]byte, 1024))
			}
			timedOut(t, err)
		})
		time.AfterFunc(10*time.Millisecond, func() { c1.SetDeadline(time.Unix(1, 0)) })
		wg.Wait()
	})
	on("CloseTimeout", func(t *testing.T, c1, c2 net.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() { c1.Read(make([]byte, 1)) })
		wg.Go(func() {
			for {
				if _, err := c1.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		})
		time.AfterFunc(10*time.Millisecond, func() { c1.Close() })
		wg.Wait()
	})
	on("ConcurrentMethods", func(t *testing.T, c1, c2 net.Conn) {
		go echo(c2)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { c1.Read(make([]byte, 1024)) })
			wg.Go(func() { c1.Write(make([]byte, 1024)) })
			wg.Go(func() { c1.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) })
			wg.Go(func() { c1.LocalAddr() })
			wg.Go(func() { c1.RemoteAddr() })
		}
		wg.Go(func() { c1.SetReadDeadline(time.Unix(1, 0)) })
		wg.Wait()
	})
}

func TestCloseTwice(t *testing.T) {
	for name, open := range map[string]func(context.Context, *holdfast.Cluster) (net.Conn, error){
		"DialContext": dialContext, "Acquire": acquire, "Lease.Dial": leaseDial,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{})
				conn, err := open(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.Close(); err != nil {
					t.Errorf("the first Close: %v", err)
				}
				if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the second Close: %v, want net.ErrClosed", err)
				}
				if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Read after Close: %v, want net.ErrClosed", err)
				}
				if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Write after Close: %v, want net.ErrClosed", err)
				}
				if name == "Acquire" {
					conn.(*holdfast.Conn).Release() // a deferred Release after Close is no mistake
				}
				if s := c.Stats(); s.Conns != 0 || s.Nodes[0].InFlight != 0 {
					t.Errorf("%d connections, %d in flight", s.Conns, s.Nodes[0].InFlight)
				}
				if n := len(w.seen(holdfast.EventClose)); n != 1 {
					t.Errorf("%d close events", n)
				}
			})
		})
	}
}

func TestConnReachesItsSocket(t *testing.T) {
	ca := newAuthority(t)
	secure, err := tls.Listen("tcp", "127.0.0.1:0", ca.server(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, secure, echo)
	plain := url(listenOn(t, "tcp", "127.0.0.1:0", echo))
	for _, addr := range []string{plain, "tls://" + secure.Addr().String()} {
		t.Run(addr[:3], func(t *testing.T) {
			c := clusterAt(t, holdfast.Config{TLS: ca.client()}, addr)
			conn, err := c.DialContext(t.Context(), "tcp", "any:1")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// What drivers ask for, by the interfaces they ask with.
			tcp, ok := conn.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn)
			if !ok || tcp.LocalAddr().String() != conn.LocalAddr().String() {
				t.Errorf("NetConn gives %T", tcp)
			}
			raw, err := conn.(syscall.Conn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var ours, sockets uintptr
			own, _ := tcp.SyscallConn()
			err = errors.Join(raw.Control(func(fd uintptr) { ours = fd }), own.Control(func(fd uintptr) { sockets = fd }))
			if err != nil || ours != sockets {
				t.Errorf("SyscallConn gives descriptor %d of the socket's %d: %v", ours, sockets, err)
			}
		})
	}

	t.Run("none in memory", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			conn := borrow(t, w.cluster(holdfast.Config{}))
			if _, err := conn.SyscallConn(); err == nil {
				t.Error("a connection in memory gave a descriptor")
			}
		})
	})
}

// countPipes counts the ends of pipes that this process has open.
func countPipes() (n int) {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

var inheritedPipes = countPipes()

// io.Copy from one of our connections to another moves bytes inside the kernel, as
// it does between two *net.TCPConn. splice needs a pipe, so while a copy waits for
// more the process has one.
func TestCopyBetweenConnsSplices(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("splice is Linux's")
	}
	const size = 1 << 20
	sent := make(chan net.Conn, 1)
	from := url(listenOn(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		conn.Write(make([]byte, size))
		sent <- conn // stays open: the copy waits for more
	}))
	arrived := make(chan int64, 1)
	to := url(listenOn(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		n, _ := io.CopyN(io.Discard, conn, size)
		arrived <- n
	}))
	cfrom, cto := clusterAt(t, holdfast.Config{}, from), clusterAt(t, holdfast.Config{}, to)
	a, err := dialContext(t.Context(), cfrom)
	if err != nil {
		t.Fatal(err)
	}
	b, err := dialContext(t.Context(), cto)
	if err != nil {
		t.Fatal(err)
	}

	// An earlier copy may have left pipes in the runtime's pool.
	eventually(t, "nobody has a pipe", func() bool { runtime.GC(); return countPipes() <= inheritedPipes })
	copied := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(b, a)
		copied <- n
	}()
	if n := <-arrived; n != size {
		t.Fatalf("%d of %d bytes arrived", n, size)
	}
	if countPipes() <= inheritedPipes {
		t.Error("bytes were copied through user space")
	}
	(<-sent).Close()
	if n := <-copied; n != size {
		t.Errorf("io.Copy counted %d of %d bytes", n, size)
	}
	if n := cfrom.Stats().Nodes[0].BytesRead; n != size {
		t.Errorf("Stats count %d bytes read", n)
	}
	if n := cto.Stats().Nodes[0].BytesWritten; n != size {
		t.Errorf("Stats count %d bytes written", n)
	}
}

func TestHalfClose(t *testing.T) {
	// The server answers when it has read all there is.
	answer := func(conn net.Conn) {
		all, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "%d bytes", len(all))
		conn.Close()
	}
	ca := newAuthority(t)
	secure, err := tls.Listen("tcp", "127.0.0.1:0", ca.server(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, secure, answer)
	for network, addr := range map[string]string{
		"tcp":  url(listenOn(t, "tcp", "127.0.0.1:0", answer)),
		"unix": url(listenOn(t, "unix", filepath.Join(t.TempDir(), "s"), answer)),
		"tls":  "tls://" + secure.Addr().String(),
	} {
		t.Run(network, func(t *testing.T) {
			c := clusterAt(t, holdfast.Config{TLS: ca.client()}, addr)
			conn := borrow(t, c)
			if _, err := conn.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("more")); err == nil {
				t.Error("a write after CloseWrite succeeded")
			}
			if got, err := io.ReadAll(conn); err != nil || string(got) != "1000 bytes" {
				t.Errorf("read %q, %v", got, err)
			}
			conn.Release()
			if n := c.Stats().Idle; n != 0 {
				t.Error("half a connection went back to the pool")
			}
		})
	}

	t.Run("never back to the pool", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			conn := borrow(t, c)
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			conn.Release() // no error was seen on it
			if n := c.Stats().Conns; n != 0 {
				t.Error("half a connection went back to the pool")
			}
		})
	})
	t.Run("udp", func(t *testing.T) {
		c := clusterAt(t, holdfast.Config{}, "udp://127.0.0.1:9")
		conn := borrow(t, c)
		defer conn.Release()
		if err := conn.CloseWrite(); err == nil {
			t.Error("a datagram socket closed half of itself")
		}
	})
}

func TestDialContextConnIsTheCallersOwn(t *testing.T) {
	dial := func(t *testing.T, c *holdfast.Cluster, addr string) *holdfast.Conn {
		t.Helper()
		conn, err := c.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return conn.(*holdfast.Conn)
	}

	t.Run("never pooled", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1, Total: 1}})
			for range 5 { // the pool's limits are not the driver's
				conn := dial(t, c, "any:1")
				if err := exchange(conn, "x"); err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
			if s := c.Stats(); s.Conns != 5 || s.Idle != 0 {
				t.Errorf("%d connections, %d at rest", s.Conns, s.Idle)
			}
			// Pooled work goes on a connection of its own.
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Fatal(err)
			}
			if n := w.servers[0].met(); n != 6 {
				t.Errorf("%d connections were made, want 5 and the pool's", n)
			}
		})
	})
	t.Run("not to be released", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			conn := dial(t, c, "any:1")
			defer func() {
				if recover() == nil {
					t.Error("Release of a driver's connection did not panic")
				}
				if n := c.Stats().Idle; n != 0 {
					t.Error("a driver's connection is in the pool")
				}
			}()
			conn.Release()
		})
	})
	t.Run("load until closed", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{}) // the less loaded of two
			var conns []*holdfast.Conn
			for range 10 {
				conns = append(conns, dial(t, c, "any:1"))
			}
			for _, n := range c.Stats().Nodes {
				if n.InFlight != 5 || n.Conns != 5 {
					t.Errorf("%s: %d in flight, %d connections; want 5 of 10", n.Node, n.InFlight, n.Conns)
				}
			}
			for _, conn := range conns {
				conn.Close()
			}
			for _, n := range c.Stats().Nodes {
				if n.InFlight != 0 || n.Conns != 0 {
					t.Errorf("%s: %d in flight, %d connections after Close", n.Node, n.InFlight, n.Conns)
				}
			}
		})
	})
	t.Run("cut by Close", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			conn := dial(t, c, "any:1")
			time.AfterFunc(time.Second, func() { c.Close() })
			var err error
			d := took(func() { _, err = conn.Read(make([]byte, 1)) })
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("a read during Close: %v", err)
			}
			within(t, d, time.Second, time.Second)
			conn.Close()
			if n := w.servers[0].settled(); n != 0 {
				t.Errorf("the server still has %d connections", n)
			}
		})
	})
	// To cancel a request, drivers dial the address of the connection it runs on.
	t.Run("a node's address means the node", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
			for _, s := range w.servers {
				for range 3 {
					conn := dial(t, c, s.addr)
					if got := conn.RemoteAddr().String(); got != s.addr {
						t.Errorf("dialed %s for %s", got, s.addr)
					}
					again := dial(t, c, conn.RemoteAddr().String())
					if again.Node() != conn.Node() {
						t.Errorf("the connection's own address led to %v", again.Node())
					}
					if n := conn.Node().InFlight(); n != 2 {
						t.Errorf("%d in flight, want 2", n)
					}
					conn.Close()
					again.Close()
				}
			}
			// It does not move on: a cancel must not reach another server.
			w.servers[1].ln.Close()
			if _, err := c.DialContext(t.Context(), "tcp", w.servers[1].addr); asError(t, err).Node != w.servers[1].addr {
				t.Errorf("a refused cancel: %v", err)
			}
			if conn := dial(t, c, "10.0.0.99:7000"); conn.Node().Addr() != w.servers[0].addr {
				t.Errorf("an address of no node led to %v, not where the policy says", conn.Node())
			}
		})
	})
	t.Run("one pass without a sleep", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			c := w.clusterOf(holdfast.Config{}, "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
			var err error
			d := took(func() { _, err = c.DialContext(t.Context(), "tcp", "any:1") })
			within(t, d, 0, 0)
			if e := asError(t, err); len(e.Tried) != 2 || e.Class != holdfast.ClassRefused || !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("three nodes refused: %v", err)
			}
			var op *net.OpError
			if !errors.As(err, &op) || op.Op != "dial" { // what go-redis looks for
				t.Errorf("no *net.OpError of a dial in %v", err)
			}
		})
	})
	t.Run("DialAddr means the address", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			outside := w.servers[1]
			c := w.clusterOf(holdfast.Config{}, w.servers[0].addr)
			conn, err := c.DialAddr(t.Context(), "tcp", outside.addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := exchange(conn, "x"); err != nil || len(outside.got()) != 1 {
				t.Errorf("it led elsewhere: %v, %q", err, outside.got())
			}
			for range 10 {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Fatal(err)
				}
			}
			if n := len(outside.got()); n != 1 {
				t.Errorf("the policy chose an address outside the set %d times", n-1)
			}
			if n := len(c.Stats().Nodes); n != 2 {
				t.Errorf("Stats show %d nodes while it is open, want 2", n)
			}
			conn.Close()
			if n := len(c.Stats().Nodes); n != 1 {
				t.Errorf("Stats show %d nodes when it is closed, want 1", n)
			}

			// One of the set is the set's node, with its load.
			conn, err = c.DialAddr(t.Context(), "tcp", w.servers[0].addr)
			if err != nil {
				t.Fatal(err)
			}
			if n := c.Stats().Nodes; len(n) != 1 || n[0].InFlight != 1 {
				t.Errorf("nodes %+v", n)
			}
			conn.Close()

			w.servers[1].ln.Close()
			if _, err := c.DialAddr(t.Context(), "tcp", outside.addr); asError(t, err).Class != holdfast.ClassRefused {
				t.Errorf("nobody there: %v", err)
			}
			if n := len(c.Stats().Nodes); n != 1 {
				t.Errorf("Stats show %d nodes after a failed DialAddr, want 1", n)
			}
			synctest.Wait()
		})
	})
}

// A relay copies between its client and a connection of ours. When the client
// goes, that says nothing about the node.
func TestCopyDoesNotBlameTheNodeForTheOtherEnd(t *testing.T) {
	silent := make(chan struct{})
	addr := url(listenOn(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { <-silent }))
	defer close(silent)
	c := clusterAt(t, holdfast.Config{}, addr)
	ours, err := dialContext(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}

	clients, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer clients.Close()
	client, err := net.Dial("tcp", clients.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := clients.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	client.(*net.TCPConn).SetLinger(0)
	client.Close() // a RST

	if _, err := io.Copy(ours, accepted); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("io.Copy: %v, want the client's reset", err)
	}
	ours.Close()
	if n := c.Stats().Nodes[0]; n.State != holdfast.StateIdle || n.Failures != 0 {
		t.Errorf("the node is in state %v with %d failures: %s", n.State, n.Failures, n.Err)
	}
}
