package proxy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// scene is one connection: what its client and its server do, and what each of them saw.
type scene struct {
	name           string
	client, server func(net.Conn) string

	tcp   bool // it means something on TCP only
	plain bool // and without TLS: close_notify comes before what TCP would tell
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// payload is what is sent where the bytes do not matter.
var payload = bytes.Repeat([]byte("0123456789abcdef"), 13*mib/16)

// What is sent both ways at once.
var (
	up, upSum     = random()
	down, downSum = random()
)

func random() ([]byte, [32]byte) {
	b := make([]byte, 3*mib/2)
	rand.Read(b)
	return b, sha256.Sum256(b)
}

// bytesThen reads n bytes, and what comes then.
func bytesThen(c net.Conn, n int) string {
	if _, err := io.CopyN(io.Discard, c, int64(n)); err != nil {
		return fmt.Sprintf("not %d bytes, %s", n, fate(err))
	}
	rest, err := io.Copy(io.Discard, c)
	return fmt.Sprintf("%d bytes and %d more, %s", n, rest, fate(err))
}

// await waits for the other side, but not for ever: it may have failed.
func await(c chan struct{}) {
	select {
	case <-c:
	case <-time.After(patience):
	}
}

// writesOn writes until that fails.
func writesOn(c net.Conn) string {
	for range 100_000 {
		if _, err := c.Write(payload[:kib]); err != nil {
			return "a write: " + fate(err)
		}
	}
	return "nothing"
}

// sentAndReset sends what the peer's kernel takes of n bytes, resets, and says how many
// that were: the peer must read them all.
func sentAndReset(c net.Conn, n int, sent *int) {
	c.SetWriteDeadline(time.Now().Add(150 * time.Millisecond))
	m, _ := c.Write(payload[:n])
	*sent = m - settle(c)
	reset(c)
}

// The scenes with a state of their own are made anew for each connection.
func scenes() []scene {
	var acked int
	gone, ready := make(chan struct{}), make(chan struct{})
	meet := make(chan struct{})
	exchange := func(c net.Conn, mine []byte, theirs *[32]byte) string {
		var wg sync.WaitGroup
		wg.Go(func() {
			for b := mine; len(b) > 0; {
				n := min(len(b), 1+len(b)*7919%70_001)
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			closeWrite(c)
		})
		h := sha256.New()
		n, err := io.Copy(h, c)
		wg.Wait()
		return fmt.Sprint(n, " bytes, the right ones: ", [32]byte(h.Sum(nil)) == *theirs, ", ", fate(err))
	}
	return []scene{{
		name:   "the client ends its half, and 200 KB are the answer",
		client: func(c net.Conn) string { io.WriteString(c, "hello"); closeWrite(c); return readAll(c) },
		server: func(c net.Conn) string { s := readAll(c); c.Write(payload[:200*kib]); return s },
	}, {
		name: "the server ends its half, and the client goes on",
		client: func(c net.Conn) string {
			s := readAll(c)
			c.Write(payload[:200*kib])
			closeWrite(c)
			return s
		},
		server: func(c net.Conn) string { io.WriteString(c, "hello"); closeWrite(c); return readAll(c) },
	}, {
		name: "the server resets after 100 KB", tcp: true,
		client: func(c net.Conn) string { return readAll(c) },
		server: func(c net.Conn) string {
			c.Write(payload[:100*kib])
			left := settle(c)
			reset(c)
			return fmt.Sprint(left)
		},
	}, {
		name: "the client resets after 50 KB", tcp: true,
		client: func(c net.Conn) string {
			c.Write(payload[:50*kib])
			left := settle(c)
			reset(c)
			return fmt.Sprint(left)
		},
		server: func(c net.Conn) string { return readAll(c) },
	}, {
		name: "a reset behind what a slow client has not read", tcp: true, plain: true,
		client: func(c net.Conn) string { await(gone); return bytesThen(c, acked)[len(fmt.Sprint(acked)):] },
		server: func(c net.Conn) string { defer close(gone); sentAndReset(c, 2*mib, &acked); return "" },
	}, {
		name: "a reset behind what a slow server has not read", tcp: true, plain: true,
		client: func(c net.Conn) string { defer close(gone); sentAndReset(c, 2*mib, &acked); return "" },
		server: func(c net.Conn) string { await(gone); return bytesThen(c, acked)[len(fmt.Sprint(acked)):] },
	}, {
		name: "the server's answer and reset, while the client writes on", tcp: true, plain: true,
		client: func(c net.Conn) string {
			await(gone)
			c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			c.Write(payload[:64*kib]) // which may fail, or be for nobody
			n, _ := io.CopyN(io.Discard, c, int64(acked))
			return fmt.Sprint(n == int64(acked))
		},
		server: func(c net.Conn) string { defer close(gone); sentAndReset(c, 2*mib, &acked); return "" },
	}, {
		name: "the server answers and closes without having read", tcp: true, plain: true,
		client: func(c net.Conn) string {
			c.Write(payload[:10*kib])
			close(ready)
			return readAll(c)
		},
		server: func(c net.Conn) string {
			await(ready)
			c.Read(make([]byte, 1)) // so much is here, and more behind it
			io.WriteString(c, "too large")
			settle(c)
			return ""
		},
	}, {
		name: "the client is reset while the server writes", tcp: true,
		client: func(c net.Conn) string { io.CopyN(io.Discard, c, 100*kib); reset(c); return "" },
		server: writesOn,
	}, {
		name: "the client ends its half, and is reset while the server writes", tcp: true,
		client: func(c net.Conn) string { closeWrite(c); io.CopyN(io.Discard, c, 100*kib); reset(c); return "" },
		server: func(c net.Conn) string { return readAll(c) + ", " + writesOn(c) },
	}, {
		name: "the client closes, and the server writes", tcp: true,
		client: func(c net.Conn) string { io.WriteString(c, "bye"); c.Close(); close(gone); return "" },
		server: func(c net.Conn) string { await(gone); return readAll(c) + ", " + writesOn(c) },
	}, {
		name:   "both end at once",
		client: func(c net.Conn) string { c.Write([]byte("x")); await(meet); closeWrite(c); return readAll(c) },
		server: func(c net.Conn) string { c.Read(make([]byte, 1)); close(meet); closeWrite(c); return readAll(c) },
	}, {
		name:   "both close at once",
		client: func(c net.Conn) string { c.Write([]byte("x")); await(meet); c.Close(); return "" },
		server: func(c net.Conn) string { c.Read(make([]byte, 1)); close(meet); c.Close(); return "" },
	}, {
		name: "the end behind what a slow client has not read",
		client: func(c net.Conn) string {
			await(ready)
			h := sha256.New()
			n, err := io.Copy(h, c)
			return fmt.Sprint(n, " bytes, the right ones: ", [32]byte(h.Sum(nil)) == sha256.Sum256(payload[:3*mib]), ", ", fate(err))
		},
		server: func(c net.Conn) string {
			written := make(chan string, 1)
			go func() { n, err := c.Write(payload[:3*mib]); written <- fmt.Sprint(n, err) }()
			time.Sleep(20 * time.Millisecond) // whatever fits is under way
			close(ready)
			return <-written
		},
	}, {
		name: "the server speaks first",
		client: func(c net.Conn) string {
			b := make([]byte, 6)
			io.ReadFull(c, b)
			c.Write([]byte("thanks"))
			return string(b)
		},
		server: func(c net.Conn) string { io.WriteString(c, "hello\n"); return readAll(c) },
	}, {
		name:   "nothing is said",
		client: func(c net.Conn) string { return "" },
		server: readAll,
	}, {
		name:   "nothing is said, and the server closes",
		client: readAll,
		server: func(c net.Conn) string { return "" },
	}, {
		name: "byte by byte",
		client: func(c net.Conn) string {
			for i := range 300 {
				if err := ask(c, string(rune('a'+i%26))); err != nil {
					return err.Error()
				}
			}
			return "each came back"
		},
		server: func(c net.Conn) string { n, err := io.Copy(c, c); return fmt.Sprint(n, " bytes, ", fate(err)) },
	}, {
		name:   "much both ways at once",
		client: func(c net.Conn) string { return exchange(c, up, &downSum) },
		server: func(c net.Conn) string { return exchange(c, down, &upSum) },
	}}
}

// passage is what is between client and server, and how one gets through.
type passage struct {
	name        string
	front, back string // "tcp", "unix" or "tls"
	cfg         func(*proxy.Config)
	over        string // TLS that passes through
}

// Relay semantics equal to a direct connection: everything that one side does is seen by
// the other as if nothing were between them. What a direct connection shows is measured.
func TestConformance(t *testing.T) {
	ca := newAuthority(t)
	serverTLS, clientTLS := ca.server(), ca.client("db.test")
	secure := func(c net.Conn) net.Conn { return tls.Client(c, clientTLS) }
	secured := func(c net.Conn) net.Conn { return tls.Server(c, serverTLS) }

	// One story at a time: the sides' answers.
	play := func(t *testing.T, s scene, client, server net.Conn) [2]string {
		t.Helper()
		var saw [2]string
		var wg sync.WaitGroup
		for i, side := range []struct {
			c  net.Conn
			do func(net.Conn) string
		}{{client, s.client}, {server, s.server}} {
			side.c.SetDeadline(time.Now().Add(patience))
			wg.Go(func() {
				if secure, ok := side.c.(*tls.Conn); ok {
					if err := secure.Handshake(); err != nil {
						saw[i] = "handshake: " + err.Error()
						side.c.Close()
						return
					}
				}
				saw[i] = side.do(side.c)
				side.c.Close()
			})
		}
		wg.Wait()
		return saw
	}

	listenOn := func(t *testing.T, network string) net.Listener {
		if network != "unix" {
			return listen(t)
		}
		ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		return ln
	}
	connect := func(t *testing.T, ln net.Listener) net.Conn {
		c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	accept := func(t *testing.T, ln net.Listener) net.Conn {
		ln.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Now().Add(patience))
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { c.Close() })
		return c
	}

	truth := map[string][2]string{}
	t.Run("direct", func(t *testing.T) {
		for _, over := range []string{"tcp", "unix", "tls"} {
			for i, s := range scenes() {
				if s.tcp && over == "unix" || s.plain && over == "tls" {
					continue
				}
				ln := listenOn(t, over)
				client := connect(t, ln)
				server := accept(t, ln)
				if over == "tls" {
					client, server = secure(client), secured(server)
				}
				truth[over+s.name] = play(t, scenes()[i], client, server)
			}
		}
	})

	passages := []passage{
		{name: "tcp to tcp", front: "tcp", back: "tcp"},
		{name: "unix to tcp", front: "unix", back: "tcp"},
		{name: "tcp to unix", front: "tcp", back: "unix"},
		{name: "unix to unix", front: "unix", back: "unix"},
		{name: "TLS ends in front", front: "tls", back: "tcp", cfg: func(c *proxy.Config) { c.TLS = serve.TLS{Config: serverTLS} }},
		{name: "TLS begins behind", front: "tcp", back: "tls"},
		{name: "TLS on both sides", front: "tls", back: "tls", cfg: func(c *proxy.Config) { c.TLS = serve.TLS{Config: serverTLS} }},
		{name: "TLS passes through", front: "tcp", back: "tcp", over: "tls"},
		{name: "TLS passes through by its name", front: "tcp", back: "tcp", over: "tls", cfg: func(c *proxy.Config) {
			c.Cluster, c.Routes = nil, []proxy.Route{{ServerName: "db.test", Cluster: c.Cluster}}
		}},
		{name: "small buffers", front: "tcp", back: "tcp", cfg: func(c *proxy.Config) { c.Socket.SendBuf = 32 * kib }},
	}
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		for _, way := range passages {
			t.Run(way.name, func(t *testing.T) {
				back := listenOn(t, way.back)
				addr := "tcp://" + back.Addr().String()
				switch way.back {
				case "unix":
					addr = "unix:" + back.Addr().String()
				case "tls":
					addr = "tls://" + back.Addr().String()
				}
				cfg := proxy.Config{Cluster: cluster(t, holdfast.Config{TLS: clientTLS}, addr)}
				if way.cfg != nil {
					way.cfg(&cfg)
				}
				ln := listenOn(t, way.front)
				p := startOn(t, cfg, front(ln))
				played := 0
				for i, s := range scenes() {
					unixy, secret := way.front == "unix" || way.back == "unix", way.front == "tls" || way.back == "tls" || way.over == "tls"
					if s.tcp && unixy || s.plain && secret {
						continue
					}
					played++
					client := connect(t, ln)
					if way.front == "tls" || way.over == "tls" {
						client = secure(client)
						// A TLS backend is reached only when TLS in front is done.
						client.SetDeadline(time.Now().Add(patience))
						if way.front == "tls" {
							if err := client.(*tls.Conn).Handshake(); err != nil {
								t.Fatalf("%s: %v", s.name, err)
							}
						}
					}
					// The proxy connects behind while the client handshakes.
					server := make(chan net.Conn, 1)
					go func() { server <- accept(t, back) }()
					if way.over == "tls" {
						go client.(*tls.Conn).Handshake()
					}
					inner := <-server
					if inner == nil {
						t.Fatalf("%s: the backend was not reached", s.name)
					}
					if way.back == "tls" || way.over == "tls" {
						inner = secured(inner)
					}
					want := truth["tcp"+s.name]
					if way.over == "tls" || way.front == "tls" && way.back == "tls" {
						want = truth["tls"+s.name]
					}
					if got := play(t, scenes()[i], client, inner); got != want {
						t.Errorf("%s:\n  client %q\n  direct %q\n  server %q\n  direct %q", s.name, got[0], want[0], got[1], want[1])
					}
				}
				eventually(t, "every connection has ended", func() bool { return p.Stats().Open == 0 })
				if n := p.Stats().Accepted; n != uint64(played) {
					t.Errorf("%d connections of %d were accepted", n, played)
				}
			})
		}
	})
	for _, s := range scenes() {
		t.Logf("%-70s client %q, server %q", s.name, truth["tcp"+s.name][0], truth["tcp"+s.name][1])
	}
}

// A port where nobody listens is one behind the proxy too.
func TestRefusedBackend(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		ln := listen(t)
		ln.Close()
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, ln.Addr().String())}, front)
		for range 3 { // the second time the node rests, and is not even tried
			begin := time.Now()
			c, err := net.Dial("tcp", addr) // which may see it already
			if err == nil {
				c.SetDeadline(time.Now().Add(patience))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if fate(err) != "reset" {
				t.Errorf("the client saw: %v", err)
			}
			if d := time.Since(begin); d > 3*time.Second {
				t.Errorf("after %v", d)
			}
		}
		eventually(t, "the end is counted", func() bool { return p.Stats().Ends[proxy.NoBackend] == 3 })
	})
}

// A client may say what it has to say, and leave, before its backend answers.
func TestClientLeavesBeforeTheBackendIsThere(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		release := make(chan struct{})
		arrived := make(chan string, 2)
		late := serveEach(t, func(c *net.TCPConn) {
			c.SetDeadline(time.Now().Add(patience))
			b, err := io.ReadAll(c)
			arrived <- fmt.Sprintf("%q, %s", b, fate(err))
		})
		cfg := holdfast.Config{Handshake: func(context.Context, *holdfast.Conn) error { <-release; return nil }}
		p, addr := start(t, proxy.Config{Cluster: cluster(t, cfg, late)}, front)
		c := dial(t, addr)
		io.WriteString(c, "I was here")
		c.Close()
		gone := dial(t, addr)
		reset(gone)
		eventually(t, "both are being connected", func() bool { return p.Stats().Connects == 2 })
		close(release)
		got := []string{<-arrived, <-arrived}
		if got[0] != `"I was here", end` && got[1] != `"I was here", end` {
			t.Errorf("the backend read %s", got)
		}
		eventually(t, "both have ended", func() bool { return p.Stats().Open == 0 })
	})
}
