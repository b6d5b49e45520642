package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/proxyproto"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// closedPort is an address where nobody listens.
func closedPort(t testing.TB) string {
	ln := listen(t)
	ln.Close()
	return ln.Addr().String()
}

// Before the first byte another backend is tried, each once.
func TestAnotherBackendIsTried(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Picker: holdfast.Ordered()},
			closedPort(t), closedPort(t), serveEach(t, echo))}, front)
		if err := ask(dial(t, addr), "whoever you are"); err != nil {
			t.Error(err)
		}
		if s := p.Stats(); s.Connects != 3 || s.ConnectFailures != 2 || s.Hidden != 2 {
			t.Errorf("%+v", s)
		}
		if err := ask(dial(t, addr), "again"); err != nil {
			t.Error(err)
		}
		if s := p.Stats(); s.Connects != 4 {
			t.Errorf("those that failed were tried again at once: %+v", s)
		}
	})
}

// A backend in a black hole costs one client its head start, once.
func TestBlackHoleCostsOnce(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		backs := cluster(t, holdfast.Config{Picker: holdfast.Ordered(), Backoff: holdfast.Backoff{Base: time.Minute, Max: time.Minute}},
			blackHole(t), serveEach(t, echo))
		p, addr := start(t, proxy.Config{Cluster: backs}, front)
		begin := time.Now()
		if err := ask(dial(t, addr), "first"); err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > 4*time.Second {
			t.Errorf("it cost %v", d)
		}
		for range 5 {
			if err := ask(dial(t, addr), "later"); err != nil {
				t.Error(err)
			}
		}
		if s := p.Stats(); s.ConnectFailures != 1 || s.Hidden != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// backendAt is an echo that can be killed, and comes back where it was.
type backendAt struct {
	t    testing.TB
	addr string

	mu    sync.Mutex
	ln    net.Listener
	conns map[net.Conn]bool
	seen  int // accepted since it came back
}

func newBackend(t testing.TB) *backendAt {
	b := &backendAt{t: t, addr: "127.0.0.1:0"}
	b.rise()
	t.Cleanup(func() { b.kill() })
	return b
}

func (b *backendAt) rise() {
	ln, err := net.Listen("tcp", b.addr)
	if err != nil {
		b.t.Error(err)
		return
	}
	b.mu.Lock()
	b.ln, b.addr, b.conns, b.seen = ln, ln.Addr().String(), map[net.Conn]bool{}, 0
	b.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			if b.ln != ln {
				b.mu.Unlock()
				reset(c)
				return
			}
			b.conns[c] = true
			b.seen++
			b.mu.Unlock()
			go func() {
				io.Copy(c, c)
				c.Close()
				b.mu.Lock()
				delete(b.conns, c)
				b.mu.Unlock()
			}()
		}
	}()
}

// kill is kill -9: what was there is reset. It returns how much that was.
func (b *backendAt) kill() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ln == nil {
		return 0
	}
	b.ln.Close()
	b.ln = nil
	for c := range b.conns {
		reset(c)
	}
	return len(b.conns)
}

func (b *backendAt) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

// load is clients that connect, ask, and leave, as fast as they are let.
func load(addr string, clients int, pause time.Duration, stop <-chan struct{}) (wait func() (ok, failed int64)) {
	var wg sync.WaitGroup
	var good, bad atomic.Int64
	for range clients {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
				c, err := net.DialTimeout("tcp", addr, patience)
				if err == nil {
					c.SetDeadline(time.Now().Add(patience))
					err = ask(c, "are you there?")
					reset(c) // no TIME_WAIT: there are many
				}
				if err != nil {
					bad.Add(1)
				} else {
					good.Add(1)
				}
			}
		})
	}
	return func() (int64, int64) { wg.Wait(); return good.Load(), bad.Load() }
}

// It must show 4: one of three backends is killed each second. Who fails is who was being
// served there.
func TestBackendsAreKilled(t *testing.T) {
	kills := 5
	if soak {
		kills = 20
	}
	for name, check := range map[string]holdfast.Check{"checks": {Interval: 200 * time.Millisecond}, "no checks": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				t.Parallel()
				backs := []*backendAt{newBackend(t), newBackend(t), newBackend(t)}
				p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Check: check},
					backs[0].addr, backs[1].addr, backs[2].addr)}, front)
				stop := make(chan struct{})
				wait := load(addr, 8, 2*time.Millisecond, stop)
				served := 0
				for i := range kills {
					b := backs[i%3]
					time.Sleep(700 * time.Millisecond)
					served += b.kill()
					time.Sleep(300 * time.Millisecond)
					b.rise()
				}
				close(stop)
				good, bad := wait()
				t.Logf("%d were served, %d failed; %d were under way at the kills", good, bad, served)
				// Those that were in the backend's queue of accepts, or in the proxy's, are under
				// way too, and not seen by the backend: at most one for each client.
				if limit := int64(served + 8*kills); bad > limit || check.Interval == 0 && bad*50 > good+50*int64(8*kills) {
					t.Errorf("%d of %d failed, %d were under way at the kills: %+v", bad, good+bad, served, p.Stats())
				}
			})
		})
	}
}

// Fault 48: when all come back at once they are not run over.
func TestNoHerdWhenAllComeBack(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		b := newBackend(t)
		// What comes back is met by who comes then: nobody waits in the proxy, and nothing is
		// repeated there.
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Backoff: holdfast.Backoff{Base: 50 * time.Millisecond, Max: 100 * time.Millisecond}}, b.addr)}, front)
		stop := make(chan struct{})
		const clients = 10
		wait := load(addr, clients, 10*time.Millisecond, stop)
		time.Sleep(500 * time.Millisecond)
		b.kill()
		before := p.Stats().Connects
		time.Sleep(500 * time.Millisecond)
		if n := p.Stats().Connects - before; n > 200 {
			t.Errorf("%d connects to who is down", n)
		}
		came := p.Stats().Accepted
		b.rise()
		time.Sleep(500 * time.Millisecond)
		n := b.count()
		came = p.Stats().Accepted - came
		if n == 0 || uint64(n) > came+clients { // one for each that came, or was under way
			t.Errorf("%d connections in the first half second, for %d of clients", n, came)
		}
		close(stop)
		wait()
	})
}

// Beyond Backends.Max who comes waits, and gets the next place, in the order of arrival.
func TestQueue(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		order := make(chan string, 16)
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, func(c *net.TCPConn) {
			b := make([]byte, 1)
			io.ReadFull(c, b)
			order <- string(b)
			io.Copy(c, c)
		})), Backends: proxy.Backends{Max: 1, Queue: 4, QueueTime: 5 * time.Second}}, front)
		var conns []*net.TCPConn
		for i := range 5 {
			c := dial(t, addr)
			fmt.Fprint(c, i)
			conns = append(conns, c)
			eventually(t, "it is in", func() bool { return p.Stats().Queued == i && p.Stats().Connects == 1 })
		}
		c, err := net.Dial("tcp", addr) // one too many
		if err == nil {
			isCut(t, c)
			c.Close()
		}
		eventually(t, "the queue is full", func() bool { return p.Stats().Ends[proxy.QueueFull] == 1 })
		reset(conns[2]) // it does not want to wait
		for i, c := range conns {
			for i != 2 {
				var got string
				select {
				case got = <-order:
				case <-time.After(patience):
					t.Fatalf("%d is never served: %+v", i, p.Stats())
				}
				if got == fmt.Sprint(i) {
					break
				}
				if got != "2" { // whose end goroutines see when it has its place
					t.Errorf("%s is served before %d", got, i)
				}
			}
			c.Close()
		}
		eventually(t, "all are gone", func() bool { return p.Stats().Open == 0 && p.Stats().Queued == 0 })
	})
}

func TestQueueTime(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)),
			Backends: proxy.Backends{Max: 1, QueueTime: 300 * time.Millisecond}, Timeouts: proxy.Timeouts{Connect: 100 * time.Millisecond}}, front)
		first := dial(t, addr)
		ask(first, "mine")
		begin := time.Now()
		isCut(t, dial(t, addr))
		if d := time.Since(begin); d < 250*time.Millisecond || d > 4*time.Second {
			t.Errorf("after %v", d)
		}
		eventually(t, "it is counted", func() bool { s := p.Stats(); return s.Ends[proxy.QueueTimeout] == 1 && s.Queued == 0 })
		// Who waits behind a place that a dead backend has left gets its time, and no more.
		if err := ask(first, "still mine"); err != nil {
			t.Error(err)
		}
	})
}

// One who has waited for a place and then meets a dead backend waits on, but not for
// ever; and a connect after a wait has its limit as any other.
func TestQueueAfterAFailedConnect(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		dead := closedPort(t)
		p, addr := start(t, proxy.Config{
			Cluster:  cluster(t, holdfast.Config{Picker: holdfast.Ordered(), Backoff: holdfast.Backoff{Base: time.Millisecond, Max: time.Millisecond, Jitter: -1}}, dead, serveEach(t, echo)),
			Backends: proxy.Backends{Max: 1, QueueTime: 500 * time.Millisecond},
		}, front)
		first := dial(t, addr)
		if err := ask(first, "mine"); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		isCut(t, dial(t, addr))
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("after %v", d)
		}
		eventually(t, "its time was over", func() bool { s := p.Stats(); return s.Ends[proxy.QueueTimeout] == 1 && s.Queued == 0 })
	})
}

func TestConnectAfterAWaitIsBounded(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		b := newBackend(t)
		p, addr := start(t, proxy.Config{
			Cluster:  cluster(t, holdfast.Config{}, b.addr),
			Backends: proxy.Backends{Max: 1, QueueTime: 5 * time.Second}, Timeouts: proxy.Timeouts{Connect: 300 * time.Millisecond},
		}, front)
		first := dial(t, addr)
		if err := ask(first, "mine"); err != nil {
			t.Fatal(err)
		}
		second := dial(t, addr)
		eventually(t, "it waits", func() bool { return p.Stats().Queued == 1 })
		fill := stall(t, b) // it takes nobody any more
		defer fill()
		first.Close()
		begin := time.Now()
		isCut(t, second)
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("after %v", d)
		}
	})
}

// stall replaces a backend's listener by one whose queue is full.
func stall(t *testing.T, b *backendAt) (end func()) {
	b.mu.Lock()
	b.ln.Close()
	b.ln = nil
	b.mu.Unlock()
	return fullListener(t, b.addr)
}

func TestBackendGoesDown(t *testing.T) {
	for _, c := range []struct {
		down proxy.Down
		want string // what the connection sees
	}{{proxy.Keep, ""}, {proxy.Drain, "end"}, {proxy.Sever, "reset"}} {
		t.Run([]string{"keep", "drain", "sever"}[c.down], func(t *testing.T) {
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				leak.Check(t)
				var sick atomic.Bool
				probe := func(context.Context, net.Conn) error {
					if sick.Load() {
						return errors.New("sick")
					}
					return nil
				}
				p, addr := start(t, proxy.Config{
					Cluster:  cluster(t, holdfast.Config{Probe: probe, Check: holdfast.Check{Interval: 20 * time.Millisecond, Fall: 1, Rise: 1}, Outlier: holdfast.Outlier{PanicPercent: -1}}, serveEach(t, echo), serveEach(t, echo)),
					Backends: proxy.Backends{Down: c.down},
				}, front)
				conn := dial(t, addr)
				if err := ask(conn, "up"); err != nil {
					t.Fatal(err)
				}
				sick.Store(true)
				if c.down == proxy.Keep {
					eventually(t, "nobody new is served", func() bool {
						c, err := net.Dial("tcp", addr)
						if err != nil {
							return true
						}
						defer c.Close()
						c.SetDeadline(time.Now().Add(time.Second))
						return ask(c, "new") != nil
					})
					if err := ask(conn, "what works, works"); err != nil {
						t.Error(err)
					}
					return
				}
				if _, err := conn.Read(make([]byte, 1)); fate(err) != c.want {
					t.Errorf("it ended by %v, want %s", err, c.want)
				}
				eventually(t, "it is counted", func() bool { return p.Stats().Ends[proxy.BackendDown] == 1 })
			})
		})
	}
}

// What a backend is told of its clients.
func TestHeaderOut(t *testing.T) {
	ca := newAuthority(t)
	for _, c := range []struct {
		version int
		tls     bool
		behind  string
	}{{1, false, "tcp"}, {2, false, "tcp"}, {1, true, "tcp"}, {2, true, "tcp"}, {2, true, "tls"}, {2, false, "tls"}} {
		t.Run(fmt.Sprint("version ", c.version, ", TLS in front ", c.tls, ", behind ", c.behind), func(t *testing.T) {
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				leak.Check(t)
				came := make(chan proxyproto.Header, 1)
				back := serveEach(t, func(raw *net.TCPConn) {
					var conn net.Conn = raw
					if c.behind == "tls" {
						conn = tls.Server(raw, ca.server())
					}
					var b []byte
					for {
						h, n, err := proxyproto.Parse(b)
						if err != nil {
							t.Errorf("%q: %v", b, err)
							return
						}
						if n > 0 {
							came <- h
							conn.Write(b[n:])
							io.Copy(conn, conn)
							return
						}
						more := make([]byte, 512)
						m, err := conn.Read(more)
						if b = append(b, more[:m]...); err != nil {
							t.Errorf("%q: %v", b, err)
							return
						}
					}
				})
				if c.behind == "tls" {
					back = "tls://" + back
				}
				cfg := proxy.Config{Cluster: cluster(t, holdfast.Config{TLS: ca.client("db.test")}, back), Backends: proxy.Backends{Header: c.version}}
				if c.tls {
					cfg.TLS = serve.TLS{Config: ca.server("h2")}
				}
				_, addr := start(t, cfg, front)
				raw := dial(t, addr)
				var conn net.Conn = raw
				if c.tls {
					conn = tlsClient(raw, ca, "h2")
				}
				if err := ask(conn, "and then the stream"); err != nil {
					t.Fatal(err)
				}
				h := <-came
				if h.Version != c.version || h.Local || h.Source.String() != raw.LocalAddr().String() || h.Destination.String() != addr {
					t.Errorf("%+v, from %v to %v", h, raw.LocalAddr(), addr)
				}
				tlvs := map[byte]string{}
				for _, tlv := range h.TLVs {
					tlvs[tlv.Type] = string(tlv.Value)
				}
				switch ssl := tlvs[proxyproto.TypeSSL]; {
				case !c.tls || c.version == 1:
					if len(tlvs) > 0 {
						t.Errorf("%q", tlvs)
					}
				case tlvs[proxyproto.TypeAuthority] != "db.test", tlvs[proxyproto.TypeALPN] != "h2", !strings.Contains(ssl, "TLSv1.3"), ssl[0] != 1:
					t.Errorf("%q", tlvs)
				}
				conn.Close()
			})
		})
	}
}

// Who is believed about a client, and what happens to those who are wrong.
func TestHeaderIn(t *testing.T) {
	v2 := func(h proxyproto.Header) string {
		h.Version = 2
		b, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const v1 = "PROXY TCP4 192.0.2.1 198.51.100.1 1234 443\r\n"
	two := v2(proxyproto.Header{Source: netip.MustParseAddrPort("192.0.2.1:1234"), Destination: netip.MustParseAddrPort("198.51.100.1:443")})
	loopback, elsewhere := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	mapped := []netip.Prefix{netip.MustParsePrefix("::ffff:127.0.0.0/104")}
	for _, c := range []struct {
		name   string
		proxy  serve.Proxy
		sent   string
		want   string // the source that the backend is told; "" is that the client is cut off
		echoed string
	}{
		{"version 1", serve.Proxy{Trusted: loopback}, v1, "192.0.2.1:1234", ""},
		{"version 2", serve.Proxy{Trusted: loopback}, two, "192.0.2.1:1234", ""},
		{"fused with payload", serve.Proxy{Trusted: loopback}, v1 + "payload", "192.0.2.1:1234", "payload"},
		{"version 2, fused with payload", serve.Proxy{Trusted: loopback}, two + "payload", "192.0.2.1:1234", "payload"},
		{"trusted in its other form", serve.Proxy{Trusted: mapped}, v1, "192.0.2.1:1234", ""},
		{"a source in its other form", serve.Proxy{Trusted: loopback}, "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.1 1234 443\r\n", "192.0.2.1:1234", ""},
		{"LOCAL", serve.Proxy{Trusted: loopback}, v2(proxyproto.Header{Local: true}), "own", ""},
		{"UNKNOWN", serve.Proxy{Trusted: loopback}, "PROXY UNKNOWN\r\n", "own", ""},
		{"missing", serve.Proxy{Trusted: loopback}, "GET / HTTP/1.1\r\n", "", ""},
		{"the other version", serve.Proxy{Trusted: loopback, Version: 2}, v1, "", ""},
		{"only this version", serve.Proxy{Trusted: loopback, Version: 1}, v1, "192.0.2.1:1234", ""},
		{"too long", serve.Proxy{Trusted: loopback}, "PROXY TCP4 " + strings.Repeat("1", 200), "", ""},
		{"from who is not trusted", serve.Proxy{Trusted: elsewhere}, v1, "own", v1},
		{"only from who is trusted", serve.Proxy{Trusted: elsewhere, Only: true}, v1, "", ""},
		{"nobody is trusted", serve.Proxy{}, v1, "own", v1},
	} {
		for _, split := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ", byte by byte ", split), func(t *testing.T) {
				onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
					leak.Check(t)
					came := make(chan string, 1)
					back := serveEach(t, func(conn *net.TCPConn) {
						conn.SetDeadline(time.Now().Add(patience))
						var b []byte
						for {
							h, n, err := proxyproto.Parse(b)
							if err != nil {
								t.Error(err)
							}
							if n > 0 {
								came <- h.Source.String()
								conn.Write(b[n:])
								io.Copy(conn, conn)
								return
							}
							more := make([]byte, 512)
							m, err := conn.Read(more)
							if b = append(b, more[:m]...); err != nil {
								return
							}
						}
					})
					p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, back), Proxy: c.proxy, Backends: proxy.Backends{Header: 1}}, front)
					conn, err := net.Dial("tcp", addr)
					if err != nil {
						if c.want != "" {
							t.Fatal(err)
						}
						return
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(patience))
					pieces := []string{c.sent}
					if split {
						pieces = strings.Split(c.sent, "")
						if len(c.sent) != len(pieces) { // not text
							pieces = nil
							for i := range len(c.sent) {
								pieces = append(pieces, c.sent[i:i+1])
							}
						}
					}
					for _, piece := range pieces {
						if _, err := io.WriteString(conn, piece); err != nil {
							break // it has seen enough
						}
					}
					if c.want == "" {
						isCut(t, conn)
						eventually(t, "it is counted", func() bool {
							s := p.Stats()
							return s.Ends[proxy.BadHello]+s.Ends[proxy.Denied] == 1
						})
						return
					}
					if want := c.echoed; len(want) > 0 {
						got := make([]byte, len(want))
						if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
							t.Errorf("%q came back, %v", got, err)
						}
					}
					if err := ask(conn, "the stream"); err != nil {
						t.Error(err)
					}
					want := c.want
					if want == "own" {
						want = conn.LocalAddr().String()
					}
					if got := <-came; got != want {
						t.Errorf("the backend is told of %s, want %s", got, want)
					}
				})
			})
		}
	}
}

// named is a backend that says its name to who speaks TLS to it.
func named(t *testing.T, ca *authority, name string, secure bool) string {
	cfg := &tls.Config{Certificates: []tls.Certificate{ca.issue("db.test", "*.test", "*.wild.test", "other.org")}, NextProtos: []string{"h2", "pg"}}
	return serveEach(t, func(raw *net.TCPConn) {
		var c net.Conn = raw
		if secure {
			c = tls.Server(raw, cfg)
		}
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			io.WriteString(c, name)
		}
		c.Close()
	})
}

// inPieces writes a byte at a time.
type inPieces struct{ net.Conn }

func (c inPieces) Write(p []byte) (int, error) {
	for i := range p {
		if n, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i + n, err
		}
	}
	return len(p), nil
}

// inRecords cuts the first record into small ones.
type inRecords struct {
	net.Conn
	done *bool
}

func (c inRecords) Write(p []byte) (int, error) {
	if *c.done {
		return c.Conn.Write(p)
	}
	*c.done = true
	var out []byte
	for body := p[5:]; len(body) > 0; {
		n := min(len(body), 50)
		out = append(out, p[0], p[1], p[2], 0, byte(n))
		out = append(out, body[:n]...)
		body = body[n:]
	}
	_, err := c.Conn.Write(out)
	return len(p), err
}

func TestRoutes(t *testing.T) {
	ca := newAuthority(t)
	for _, ends := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS ends here ", ends), func(t *testing.T) {
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				leak.Check(t)
				at := func(name string) *holdfast.Cluster { return cluster(t, holdfast.Config{}, named(t, ca, name, !ends)) }
				cfg := proxy.Config{
					Cluster: at("default"),
					Routes: []proxy.Route{
						{ServerName: "db.test", ALPN: "pg", Cluster: at("pg of db")}, {ServerName: "db.test", Cluster: at("db")},
						{ServerName: "*.wild.test", Cluster: at("wild")}, {ALPN: "pg", Cluster: at("pg")},
					},
				}
				if ends {
					cfg.TLS = serve.TLS{Config: &tls.Config{Certificates: []tls.Certificate{ca.issue("db.test", "*.test", "*.wild.test", "other.org")}, NextProtos: []string{"pg", "h2"}}}
				}
				p, addr := start(t, cfg, front)
				for _, c := range []struct {
					name, want string
					protocols  []string
				}{
					{"db.test", "db", nil}, {"DB.Test", "db", nil}, {"db.test", "pg of db", []string{"pg"}}, {"a.wild.test", "wild", nil},
					{"x.test", "default", []string{"h2"}}, {"x.test", "pg", []string{"h2", "pg"}}, {"other.org", "default", nil}, {"", "default", nil},
				} {
					for how, wrap := range map[string]func(net.Conn) net.Conn{
						"whole":      func(c net.Conn) net.Conn { return c },
						"in pieces":  func(c net.Conn) net.Conn { return inPieces{c} },
						"in records": func(c net.Conn) net.Conn { return inRecords{c, new(bool)} },
					} {
						conn := tls.Client(wrap(dial(t, addr)), &tls.Config{RootCAs: ca.pool(), ServerName: c.name, NextProtos: c.protocols, InsecureSkipVerify: c.name == ""})
						conn.Write([]byte("?"))
						got, err := io.ReadAll(conn)
						if string(got) != c.want {
							t.Errorf("%s %q %s: %q, %v, want %s", c.name, c.protocols, how, got, err, c.want)
						}
						conn.Close()
					}
				}
				for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "\x16\x03\x01\x00\x00"} {
					c := dial(t, addr)
					io.WriteString(c, garbage)
					io.Copy(io.Discard, c)
				}
				eventually(t, "garbage is counted", func() bool { s := p.Stats(); return s.Ends[proxy.BadHello] == 3 && s.Open == 0 })
			})
		})
	}
}

func TestNoRoute(t *testing.T) {
	ca := newAuthority(t)
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{Routes: []proxy.Route{{ServerName: "db.test", Cluster: cluster(t, holdfast.Config{}, named(t, ca, "db", true))}}}, front)
		if err := tls.Client(dial(t, addr), ca.client("x.test")).Handshake(); err == nil {
			t.Error("it came through")
		}
		ended(t, p, proxy.NoRoute)
	})
}
