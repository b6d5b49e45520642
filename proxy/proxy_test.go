package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// opaque hides the socket of a listener, so that its connections have goroutines.
type opaque struct{ net.Listener }

// paths are the two ways in which bytes are relayed. Whatever is tested of one is tested
// of the other.
var paths = map[string]func(net.Listener) net.Listener{
	"loops":      func(ln net.Listener) net.Listener { return ln },
	"goroutines": func(ln net.Listener) net.Listener { return opaque{ln} },
}

func onBothPaths(t *testing.T, test func(t *testing.T, front func(net.Listener) net.Listener)) {
	for name, front := range paths {
		t.Run(name, func(t *testing.T) { test(t, front) })
	}
}

// listen returns a listener that is closed with the test.
func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// serveEach runs serve for each connection of a new listener, and waits for them.
func serveEach(t testing.TB, serve func(*net.TCPConn)) (addr string) {
	t.Helper()
	ln := listen(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func cluster(t testing.TB, cfg holdfast.Config, addrs ...string) *holdfast.Cluster {
	t.Helper()
	c, err := holdfast.New(holdfast.Static(addrs...), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// start runs a Proxy and returns its address.
func start(t testing.TB, cfg proxy.Config, front func(net.Listener) net.Listener) (*proxy.Proxy, string) {
	t.Helper()
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t)
	served := make(chan error, 1)
	go func() { served <- p.Serve(front(ln)) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return p, ln.Addr().String()
}

func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func TestEcho(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))}, front)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				c := dial(t, addr)
				sent := make([]byte, 1<<20)
				rand.Read(sent)
				go func() { c.Write(sent); c.CloseWrite() }()
				got, err := io.ReadAll(c)
				if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
					t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
				}
			})
		}
		wg.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		s := p.Stats()
		if s.Accepted != 20 || s.Open != 0 || s.FromClients != 20<<20 || s.FromBackends != 20<<20 || s.Ends[proxy.ClientClosed] != 20 {
			t.Errorf("%+v", s)
		}
	})
}

func TestServerFirst(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		banner := bytes.Repeat([]byte("hello "), 10)
		_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, func(c *net.TCPConn) { c.Write(banner) }))}, front)
		got, err := io.ReadAll(dial(t, addr))
		if err != nil || !bytes.Equal(got, banner) {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// What passes is counted at the node too.
func TestBytesAreTheNodes(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		c := cluster(t, holdfast.Config{}, serveEach(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 5))
			c.Write([]byte("goodbye"))
		}))
		_, addr := start(t, proxy.Config{Cluster: c}, front)
		conn := dial(t, addr)
		conn.Write([]byte("hello"))
		if got, err := io.ReadAll(conn); string(got) != "goodbye" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		var n holdfast.NodeStats
		for range 1000 { // some are counted at the end of the connection
			if n = c.Stats().Nodes[0]; n.BytesWritten == 5 && n.BytesRead == 7 {
				return
			}
			time.Sleep(time.Millisecond)
		}
		t.Errorf("%d bytes to the backend and %d from it", n.BytesWritten, n.BytesRead)
	})
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	c := cluster(t, holdfast.Config{}, "10.0.0.1:1")
	for name, cfg := range map[string]proxy.Config{
		"nowhere":          {},
		"a route to none":  {Routes: []proxy.Route{{ServerName: "a"}}},
		"two asterisks":    {Routes: []proxy.Route{{ServerName: "*.*.a", Cluster: c}}},
		"PROXY 3":          {Cluster: c, Backends: proxy.Backends{Header: 3}},
		"no such key file": {Cluster: c, TLS: serve.TLS{CertFile: "nowhere.pem", KeyFile: "nowhere.pem"}},
	} {
		if p, err := proxy.New(cfg); err == nil {
			p.Close()
			t.Errorf("%s: no error", name)
		}
	}
}
