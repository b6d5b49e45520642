package proxy_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// ended waits for the end of one connection, and for its reason.
func ended(t *testing.T, p *proxy.Proxy, why proxy.Reason) {
	t.Helper()
	eventually(t, fmt.Sprintf("one connection ends: %v", why), func() bool { s := p.Stats(); return s.Ends[why] > 0 && s.Open == 0 })
	if s := p.Stats(); s.Ends[why] != 1 || len(s.Ends) != 1 {
		t.Errorf("ends: %v, want one: %v", s.Ends, why)
	}
}

// untilReset waits for a reset without reading or writing.
func untilReset(c *net.TCPConn) {
	raw, _ := c.SyscallConn()
	raw.Control(func(fd uintptr) { unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, int(patience.Milliseconds())) })
}

// Each wait has a bound, and says its name.
func TestTimeouts(t *testing.T) {
	const limit = 100 * time.Millisecond
	hold := func(c *net.TCPConn) { c.SetDeadline(time.Now().Add(patience)); io.Copy(io.Discard, c) }
	for _, c := range []struct {
		name   string
		cfg    proxy.Config
		server func(*net.TCPConn)
		client func(t *testing.T, c *net.TCPConn)
		why    proxy.Reason
	}{
		{"idle", proxy.Config{Timeouts: proxy.Timeouts{Idle: limit}}, hold, func(t *testing.T, c *net.TCPConn) {
			if got := readAll(c); got != "0 bytes, end" {
				t.Error(got)
			}
		}, proxy.Idle},
		{"not idle while one side speaks", proxy.Config{Timeouts: proxy.Timeouts{Idle: 5 * limit}}, hold, func(t *testing.T, c *net.TCPConn) {
			tick := time.NewTicker(limit / 2)
			defer tick.Stop()
			for range 20 {
				<-tick.C
				if _, err := c.Write([]byte("x")); err != nil {
					t.Error(err)
				}
			}
			c.Close()
		}, proxy.ClientClosed},
		{"half closed", proxy.Config{Timeouts: proxy.Timeouts{HalfClosed: limit}}, func(c *net.TCPConn) {
			readAll(c)
			untilReset(c)
		}, func(t *testing.T, c *net.TCPConn) {
			c.CloseWrite()
			if got := readAll(c); got != "0 bytes, reset" {
				t.Error(got)
			}
		}, proxy.HalfClosed},
		{"half closed by the backend", proxy.Config{Timeouts: proxy.Timeouts{HalfClosed: limit}}, func(c *net.TCPConn) { c.CloseWrite(); hold(c) },
			func(t *testing.T, c *net.TCPConn) {
				if got := readAll(c); got != "0 bytes, end" {
					t.Error(got)
				}
			}, proxy.HalfClosed},
		{"lifetime", proxy.Config{Timeouts: proxy.Timeouts{Lifetime: limit}}, echo, func(t *testing.T, c *net.TCPConn) {
			for ask(c, "still here") == nil {
			}
		}, proxy.TooOld},
		{"write", proxy.Config{Timeouts: proxy.Timeouts{Write: limit}, Socket: serve.Socket{SendBuf: 16 * kib}}, func(c *net.TCPConn) {
			for {
				if _, err := c.Write(payload[:mib]); err != nil {
					return
				}
			}
		}, func(t *testing.T, c *net.TCPConn) {
			time.Sleep(5 * limit)
			if got := readAll(c); !strings.HasSuffix(got, "reset") {
				t.Error(got)
			}
		}, proxy.Stalled},
		{"a ClientHello in pieces", proxy.Config{Timeouts: proxy.Timeouts{Hello: 2 * limit}, Routes: []proxy.Route{{ServerName: "a.test"}}}, hold,
			func(t *testing.T, c *net.TCPConn) { trickle(t, c, []byte{22, 3, 1, 2, 0, 1, 0, 1, 252}, limit/4) }, proxy.BadHello},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				leak.Check(t)
				cfg := c.cfg
				cfg.Cluster = cluster(t, holdfast.Config{}, serveEach(t, c.server))
				if len(cfg.Routes) > 0 {
					cfg.Routes = []proxy.Route{{ServerName: cfg.Routes[0].ServerName, Cluster: cfg.Cluster}}
				}
				p, addr := start(t, cfg, front)
				c.client(t, dial(t, addr))
				ended(t, p, c.why)
			})
		})
	}
}

// trickle sends one byte after another until it is cut off, and then the last one again
// and again: a limit that every byte renews would never come.
func trickle(t *testing.T, c net.Conn, b []byte, every time.Duration) {
	t.Helper()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		if _, err := c.Write(b[min(i, len(b)-1):][:1]); err != nil {
			return
		}
		if i > 100*len(b) {
			t.Fatal("it was never cut off")
		}
		<-tick.C
	}
}

// A PROXY header may take Hello's time, however it comes.
func TestSlowProxyHeader(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Timeouts: proxy.Timeouts{Hello: 200 * time.Millisecond},
			Proxy: serve.Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		}, front)
		c := dial(t, addr)
		trickle(t, c, []byte("PROXY TCP4 1.2.3.4 5.6.7.8 11111 2222222222222222222222222222222222222222"), 25*time.Millisecond)
		eventually(t, "it is gone", func() bool { return p.Stats().Open == 0 })
	})
}

// Fault 17, 63: TLS handshakes that stall end by their own limit, and cost nobody else.
func TestSlowHandshakes(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	p, addr := start(t, proxy.Config{
		Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), TLS: serve.TLS{Config: ca.server()},
		Timeouts: proxy.Timeouts{Handshake: 300 * time.Millisecond},
	}, func(ln net.Listener) net.Listener { return ln })
	var wg sync.WaitGroup
	for i := range 40 {
		c := dial(t, addr)
		wg.Go(func() {
			if i%2 == 0 {
				isCut(t, c) // it says nothing
			} else {
				trickle(t, c, []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 0}, 20*time.Millisecond)
			}
		})
	}
	secure := tlsClient(dial(t, addr), ca)
	if err := ask(secure, "a good one"); err != nil {
		t.Error(err)
	}
	secure.Close()
	wg.Wait()
	eventually(t, "all are gone", func() bool { return p.Stats().Open == 0 })
}

// A black hole is not waited for longer than Connect.
func TestConnectIsBounded(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{}, blackHole(t)), Timeouts: proxy.Timeouts{Connect: 200 * time.Millisecond},
		}, front)
		begin := time.Now()
		isCut(t, dial(t, addr))
		if d := time.Since(begin); d > 4*time.Second {
			t.Errorf("after %v", d)
		}
		ended(t, p, proxy.NoBackend)
	})
}

// blackHole is an address that lets nobody in, and refuses nobody: its queue is full.
func blackHole(t testing.TB) string {
	t.Helper()
	addr := closedPort(t)
	t.Cleanup(fullListener(t, addr))
	return addr
}

// fullListener listens, and lets nobody in.
func fullListener(t testing.TB, addr string) (end func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(addr)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var in []net.Conn
	end = func() {
		unix.Close(fd)
		for _, c := range in {
			c.Close()
		}
	}
	for range 4 {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return end
		}
		in = append(in, c)
	}
	t.Fatal("the queue is never full")
	return end
}

// Last bytes that nobody takes are waited for no longer than Linger.
func TestLingerIsBounded(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{}, serveEach(t, func(c *net.TCPConn) {
				c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				c.Write(payload[:8*mib])
				reset(c)
			})),
			Timeouts: proxy.Timeouts{Linger: 200 * time.Millisecond, Write: 200 * time.Millisecond},
		}, front)
		c := dial(t, addr)
		eventually(t, "it ends though nobody reads", func() bool { s := p.Stats(); return s.Accepted == 1 && s.Open == 0 })
		if got := readAll(c); !strings.HasSuffix(got, "reset") {
			t.Error(got)
		}
	})
}

// Backpressure: who is not read is not read from. What is under way is what the kernel
// holds, and one buffer.
func TestBackpressure(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		release := make(chan struct{})
		defer close(release)
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Socket: holdfast.Socket{SendBuf: 64 * kib}}, serveEach(t, func(c *net.TCPConn) {
			c.SetReadBuffer(64 * kib)
			<-release
		})), Socket: serve.Socket{RecvBuf: 64 * kib}}, front)
		dial(t, addr)
		eventually(t, "it accepts, so that its options are set", func() bool { return p.Stats().Connects == 1 })
		c := dial(t, addr)
		c.SetWriteBuffer(64 * kib)
		sent := 0
		for stuck := 0; stuck < 3; { // the kernel takes what it takes, and then nothing
			c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := c.Write(payload[:256*kib])
			if sent += n; err != nil && n == 0 {
				stuck++
			}
			if sent > 64*mib {
				t.Fatalf("%d bytes were taken for a backend that reads nothing", sent)
			}
		}
		// The backend's kernel has a window's worth before its buffer is small.
		if passed := p.Stats().FromClients; sent > 8*mib || int64(sent)-int64(passed) > 4*64*kib+256*kib {
			t.Errorf("%d bytes were taken, of which %d were passed on", sent, passed)
		}
	})
}

func TestLimitsOfClients(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	mapped := []netip.Prefix{netip.MustParsePrefix("::ffff:127.0.0.0/104")}
	for _, c := range []struct {
		name   string
		limits serve.Limits
		in     int // of 5
		denied serve.Refusals
		last   string
	}{
		{"too many", serve.Limits{MaxConns: 3}, 3, serve.Refusals{Conns: 2}, ""},
		{"too many, and told", serve.Limits{MaxConns: 3, RejectWith: []byte("come back later\n")}, 3, serve.Refusals{Conns: 2}, "come back later\n"},
		{"too many of one", serve.Limits{MaxPerIP: 3}, 3, serve.Refusals{PerIP: 2}, ""},
		{"too many of one, and told", serve.Limits{MaxPerIP: 3, RejectWith: []byte("enough\n")}, 3, serve.Refusals{PerIP: 2}, "enough\n"},
		{"too fast", serve.Limits{Rate: 0.001}, 1, serve.Refusals{Rate: 4}, ""},
		{"one too fast", serve.Limits{RatePerIP: 0.001}, 1, serve.Refusals{RatePerIP: 4}, ""},
		{"denied", serve.Limits{Deny: loopback}, 0, serve.Refusals{Network: 5}, ""},
		{"denied in its other form", serve.Limits{Deny: mapped}, 0, serve.Refusals{Network: 5}, ""},
		{"allowed", serve.Limits{Allow: loopback}, 5, serve.Refusals{}, ""},
		{"not allowed", serve.Limits{Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}, 0, serve.Refusals{Network: 5}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
				leak.Check(t)
				p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Limits: c.limits}, front)
				var in []net.Conn
				for range 5 {
					conn, err := net.Dial("tcp", addr)
					if err != nil { // it was reset before it was handed out
						continue
					}
					defer conn.Close()
					conn.SetDeadline(time.Now().Add(patience))
					if len(in) < c.in {
						if err := ask(conn, "let me in"); err != nil {
							t.Error(err)
						}
						in = append(in, conn)
						continue
					}
					if got, _ := io.ReadAll(conn); string(got) != c.last {
						t.Errorf("who is not let in reads %q", got)
					}
				}
				eventually(t, "each is counted", func() bool {
					s := p.Stats()
					return s.Denied == c.denied && s.Open == c.in && s.Accepted == 5 && s.Ends[proxy.Denied] == uint64(5-c.in)
				})
				if len(in) != c.in {
					t.Errorf("%d are in: %+v", len(in), p.Stats())
				}
				for _, conn := range in {
					conn.Close()
				}
				eventually(t, "places are given back", func() bool { return p.Stats().Open == 0 })
				if c.limits.MaxConns+c.limits.MaxPerIP > 0 {
					if err := ask(dial(t, addr), "and now"); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// By the policy Wait nobody is turned away: who comes too early waits.
func TestOverLimitWaits(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		p, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Limits: serve.Limits{MaxConns: 2, Over: serve.Wait},
		}, front)
		var wg sync.WaitGroup
		for i := range 12 {
			c := dial(t, addr)
			wg.Go(func() {
				defer c.Close()
				if err := ask(c, "my turn"); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		eventually(t, "all have left", func() bool { return p.Stats().Open == 0 })
		if s := p.Stats(); s.Accepted != 12 || s.Denied != (serve.Refusals{}) {
			t.Errorf("%+v", s)
		}
	})
}

func TestUsersOfUnixSockets(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		for _, uid := range []int{os.Getuid(), os.Getuid() + 1} {
			ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			p := startOn(t, proxy.Config{
				Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Limits: serve.Limits{AllowUIDs: []int{uid}},
			}, front(ln))
			c, err := net.Dial("unix", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			if err := ask(c, "it is me"); (err == nil) != (uid == os.Getuid()) {
				t.Errorf("with uid %d allowed: %v", uid, err)
			}
			if uid != os.Getuid() && p.Stats().Denied.UnixUID != 1 {
				t.Errorf("%+v", p.Stats().Denied)
			}
			c.Close()
		}
	})
}

// Without files nobody new is served, at once; those that are in are, and when there are
// files again, so is everybody. The Proxy runs in a child that may open few.
func TestWithoutFiles(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		var log syncBuffer
		p, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo)), Limits: serve.Limits{MaxConns: -1},
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		}, front)
		kept := dial(t, addr)
		if err := ask(kept, "before"); err != nil {
			t.Fatal(err)
		}
		var late []int // made while there are files for them
		for range 20 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			late = append(late, fd)
		}
		var old unix.Rlimit
		unix.Getrlimit(unix.RLIMIT_NOFILE, &old)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		var held []*os.File
		for {
			f, err := os.Open(os.DevNull)
			if err != nil {
				break
			}
			held = append(held, f)
		}
		to := netip.MustParseAddrPort(addr)
		cpu, begin := cpuTime(t), time.Now()
		for _, fd := range late {
			if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(1500 * time.Millisecond) // a famine, of which some was longer than any one look
		if err := ask(kept, "those that are in are served"); err != nil {
			t.Error(err)
		}
		if used, took := cpuTime(t)-cpu, time.Since(begin); used > took/4 {
			t.Errorf("%v of computing in %v without files", used, took)
		}
		for _, f := range held {
			f.Close()
		}
		for _, fd := range late {
			unix.Close(fd)
		}
		unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
		eventually(t, "it has recovered", func() bool {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err != nil {
				return false
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(3 * time.Second))
			return ask(c, "again") == nil
		})
		if n := strings.Count(log.String(), "\n"); n == 0 || n > 20 {
			t.Errorf("%d lines of log:\n%s", n, log.String())
		}
		if n := p.Stats().Listeners; n != 1 {
			t.Errorf("%d listeners", n)
		}
	})
}

// syncBuffer is a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Whatever the kernel says to an accept, the loop goes on: neither for good nor in
// circles.
func TestAcceptErrors(t *testing.T) {
	for _, errno := range []string{"ENOBUFS", "ENOMEM", "EPROTO", "ENFILE", "EPERM", "ECONNABORTED"} {
		t.Run(errno, func(t *testing.T) {
			need(t, false, "strace")
			// The listener is watched edge by edge and level by level alike: every third call
			// fails, so that each connection meets an error and is accepted in the end.
			if !inChild(t, nil, "strace", "-f", "-qq", "-o", os.DevNull, "-e", "trace=accept4", "-e", "inject=accept4:error="+errno+":when=1..30+3") {
				return
			}
			var log syncBuffer
			p, addr := start(t, proxy.Config{
				Cluster: cluster(t, holdfast.Config{}, serveOnPlain(t)), Log: slog.New(slog.NewTextHandler(&log, nil)),
			}, func(ln net.Listener) net.Listener { return ln })
			for i := range 10 {
				c := dial(t, addr)
				if err := ask(c, "hello"); err != nil && errno != "ENFILE" { // for which one is closed
					t.Errorf("%d: %v", i, err)
				}
				c.Close()
			}
			if n := strings.Count(log.String(), "\n"); n > 20 || n == 0 && errno != "ECONNABORTED" {
				t.Errorf("%d lines of log", n)
			}
			if used := cpuTime(t); used > 5*time.Second {
				t.Errorf("%v of computing", used)
			}
			if p.Stats().Listeners != 1 {
				t.Error("the loop has ended")
			}
		})
	}
}

// serveOnPlain is an echo whose accepts may fail too.
func serveOnPlain(t *testing.T) string {
	ln := listen(t)
	go func() {
		for {
			c, err := ln.Accept()
			switch {
			case errors.Is(err, net.ErrClosed):
				return
			case err == nil:
				go func() { defer c.Close(); io.Copy(c, c) }()
			}
		}
	}()
	return ln.Addr().String()
}
