//go:build unix

package holdfast_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// lineServer answers each line with the line on real sockets, and hands each
// connection to the test, which decides how it ends.
type lineServer struct {
	addr  string
	conns chan net.Conn
	mu    sync.Mutex
	lines []string
}

func newLineServer(t *testing.T, ln net.Listener) *lineServer {
	s := &lineServer{addr: url(ln.Addr()), conns: make(chan net.Conn, 100)}
	serveOn(t, ln, func(conn net.Conn) {
		s.conns <- conn
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			s.mu.Lock()
			s.lines = append(s.lines, strings.TrimSpace(line))
			s.mu.Unlock()
			io.WriteString(conn, line)
		}
	})
	return s
}

func (s *lineServer) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

// seesRead waits until a poll of the client's socket tells of bytes or an end.
func seesRead(t *testing.T, conn *holdfast.Conn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client's kernel has it", func() (seen bool) {
		raw.Control(func(fd uintptr) {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			seen = n > 0
		})
		return seen
	})
}

// Ways in which a server's end of a connection ends.
var ends = map[string]func(net.Conn){
	"FIN": func(conn net.Conn) { closeNow(conn) },
	"RST": func(conn net.Conn) {
		if tc, ok := conn.(*tls.Conn); ok {
			conn = tc.NetConn()
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		conn.Close()
	},
	"close_notify":           func(conn net.Conn) { conn.Close() },
	"close_notify, no FIN":   func(conn net.Conn) { conn.(*tls.Conn).CloseWrite() },
	"late application bytes": func(conn net.Conn) { io.WriteString(conn, "late\n") },
}

// deadAtRest lets a pooled connection end so while it rests and returns what
// became of the next operation, which must not run twice.
func deadAtRest(t *testing.T, s *lineServer, cfg holdfast.Config, end func(net.Conn)) error {
	t.Helper()
	cfg.Pool.CheckIdle = max(cfg.Pool.CheckIdle, -1)
	c := clusterAt(t, cfg, s.addr)
	var used *holdfast.Conn
	if err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
		used = conn
		return exchange(conn, "first")
	}); err != nil {
		t.Fatal(err)
	}
	end(<-s.conns)
	seesRead(t, used)
	err := c.Do(t.Context(), holdfast.Unsafe, say("second"))
	if k := c.Stats(); k.Retries != 0 || k.Nodes[0].Failures != 0 && err == nil {
		t.Errorf("%d retries, %d failures: it was found by using it", k.Retries, k.Nodes[0].Failures)
	}
	if err == nil {
		if n := c.Stats().Nodes[0].BytesWritten; n != uint64(len("first\nsecond\n")) {
			t.Errorf("%d bytes were written: some to the dead connection", n)
		}
		if got := s.got(); !slices.Equal(got, []string{"first", "second"}) {
			t.Errorf("the server got %q", got)
		}
	}
	return err
}

const checkAlways = time.Nanosecond // even what rested no millisecond

func TestDeadIdleConnIsFoundBeforeWriting(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, how := range []string{"FIN", "RST"} {
			listen := func(t *testing.T) *lineServer {
				addr := "127.0.0.1:0"
				if network == "unix" {
					addr = filepath.Join(t.TempDir(), "s")
				}
				ln, err := net.Listen(network, addr)
				if err != nil {
					t.Fatal(err)
				}
				return newLineServer(t, ln)
			}
			t.Run(network+" "+how, func(t *testing.T) {
				cfg := holdfast.Config{Pool: holdfast.Pool{CheckIdle: checkAlways}}
				if err := deadAtRest(t, listen(t), cfg, ends[how]); err != nil {
					t.Error(err)
				}
			})
		}
	}

	// The same without the check: what is written is lost, and an operation that
	// must not run twice has failed.
	t.Run("unchecked", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := holdfast.Config{Pool: holdfast.Pool{CheckIdle: -1}}
		err = deadAtRest(t, newLineServer(t, ln), cfg, ends["FIN"])
		if e := asError(t, err); e.SafeToRetry() || e.Written == 0 || !e.Reused {
			t.Errorf("%d bytes written, reused %v: %v", e.Written, e.Reused, err)
		}
	})
}

func TestDeadIdleTLSConnIsFoundBeforeWriting(t *testing.T) {
	ca := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for how, end := range ends {
			t.Run(tls.VersionName(version)+" "+how, func(t *testing.T) {
				serverConfig := ca.server(t, "127.0.0.1")
				serverConfig.MaxVersion = version
				ln, err := tls.Listen("tcp", "127.0.0.1:0", serverConfig)
				if err != nil {
					t.Fatal(err)
				}
				s := newLineServer(t, ln)
				s.addr = "tls://" + ln.Addr().String()
				cfg := holdfast.Config{TLS: ca.client(), Pool: holdfast.Pool{CheckIdle: checkAlways}}
				if err := deadAtRest(t, s, cfg, end); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// ticketsLast is a server that sends its tickets after the client's last flight, as
// most do. Go's does so when it has asked for a certificate; else they travel with
// its own last flight, and TLS reads them off the socket with that.
func ticketsLast(t *testing.T, ca *authority, host string) *tls.Config {
	cfg := ca.server(t, host)
	cfg.ClientAuth = tls.RequestClientCert
	return cfg
}

// A TLS 1.3 server sends its session tickets after the handshake, so a fresh
// connection has bytes to read that are no reply. go-redis once took them off the
// socket, which broke the session.
func TestPendingTLSTicketIsNotADeadConn(t *testing.T) {
	ca := newAuthority(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			serverConfig := ticketsLast(t, ca, "127.0.0.1")
			serverConfig.MaxVersion = version
			ln, err := tls.Listen("tcp", "127.0.0.1:0", serverConfig)
			if err != nil {
				t.Fatal(err)
			}
			s := newLineServer(t, ln)
			c := clusterAt(t, holdfast.Config{TLS: ca.client(), Pool: holdfast.Pool{CheckIdle: checkAlways}}, "tls://"+ln.Addr().String())
			first := borrow(t, c)
			first.Release()
			if version == tls.VersionTLS13 {
				seesRead(t, first) // the tickets
			}
			for range 3 { // digested by the first check, and no harm done
				again := borrow(t, c)
				if again != first {
					t.Fatal("a sound connection with tickets to read was given up")
				}
				again.Release()
			}
			again := borrow(t, c)
			if err := exchange(again, "works"); err != nil {
				t.Error(err)
			}
			again.Discard(nil)

			next := borrow(t, c)
			defer next.Release()
			if state, _ := next.ConnectionState(); !state.DidResume {
				t.Error("the tickets were lost: the next connection shook hands in full")
			}
			if err := exchange(next, "resumed"); err != nil {
				t.Error(err)
			}
			if got := s.got(); !slices.Equal(got, []string{"works", "resumed"}) {
				t.Errorf("the server got %q", got)
			}
		})
	}

	// The ticket is kept even if nobody reads on the connection it came with.
	t.Run("by the check alone", func(t *testing.T) {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", ticketsLast(t, ca, "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		newLineServer(t, ln)
		c := clusterAt(t, holdfast.Config{TLS: ca.client(), Pool: holdfast.Pool{CheckIdle: checkAlways}}, "tls://"+ln.Addr().String())
		first := borrow(t, c)
		first.Release()
		seesRead(t, first)
		borrow(t, c).Discard(nil)
		next := borrow(t, c)
		defer next.Release()
		if state, _ := next.ConnectionState(); !state.DidResume {
			t.Error("the ticket was lost")
		}
	})
}

// A server that says something after its reply: the next reader of the connection
// would take it for the reply to his own request.
func TestLateBytesDiscardAnIdleConn(t *testing.T) {
	t.Run("simulated", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(conn net.Conn, line string) bool {
				time.AfterFunc(10*time.Millisecond, func() { io.WriteString(conn, "late\n") })
				return reply(conn, line)
			})
			c := w.cluster(holdfast.Config{})
			for range 20 {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("next")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			if n := w.servers[0].met(); n != 20 {
				t.Errorf("%d connections for 20 operations that each spoil theirs", n)
			}
			if n := c.Stats().Nodes[0].Failures; n != 0 {
				t.Errorf("%d failures: late bytes cost nobody anything", n)
			}
		})
	})
	t.Run("tcp", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := holdfast.Config{Pool: holdfast.Pool{CheckIdle: checkAlways}}
		if err := deadAtRest(t, newLineServer(t, ln), cfg, ends["late application bytes"]); err != nil {
			t.Error(err)
		}
	})
	// In one record, or one segment, with the reply: then TLS has them already, and
	// the socket has nothing to show.
	for name, answer := range map[string]func(net.Conn, string) bool{
		"in the reply's record":  func(conn net.Conn, line string) bool { return reply(conn, line+"late\n") },
		"in the reply's segment": func(conn net.Conn, line string) bool { return reply(conn, line) && reply(conn, "late\n") },
	} {
		t.Run("TLS, "+name, func(t *testing.T) {
			ca := newAuthority(t)
			inWorld(t, 0, func(t *testing.T, w *world) {
				s := w.startTLS("10.0.0.1:7000", ca.server(t, "10.0.0.1"))
				s.does(answer)
				c := w.clusterTLS(holdfast.Config{TLS: ca.client()})
				for range 3 {
					if err := c.Do(t.Context(), holdfast.Unsafe, say("next")); err != nil {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				if n := s.met(); n != 3 {
					t.Errorf("%d connections for 3 operations that each spoil theirs", n)
				}
			})
		})
	}
}

// A NAT that forgets a connection at rest drops what is sent on it, without a word
// to either side.
func TestSilentIdleDropFailsSafe(t *testing.T) {
	for _, safety := range []holdfast.Safety{holdfast.Unsafe, holdfast.Idempotent} {
		t.Run(map[holdfast.Safety]string{holdfast.Unsafe: "unsafe", holdfast.Idempotent: "idempotent"}[safety], func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Timeouts: holdfast.Timeouts{Read: 3 * time.Second}})
				if err := c.Do(t.Context(), safety, say("warm")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				w.net.Partition(w.servers[0].ip(), "10.0.1.1")

				var err error
				d := took(func() { err = c.Do(t.Context(), safety, say("pay")) })
				ran := len(w.servers[0].got()) - 1 + len(w.servers[1].got())
				if safety == holdfast.Unsafe {
					if e := asError(t, err); !e.Timeout() || e.Written != 4 || !e.Reused || e.SafeToRetry() || e.Phase != holdfast.PhaseRead {
						t.Errorf("class %v, %d bytes written, reused %v, phase %v: %v", e.Class, e.Written, e.Reused, e.Phase, err)
					}
					if ran != 0 {
						t.Errorf("it ran %d times", ran)
					}
				} else if err != nil || ran != 1 {
					t.Errorf("it ran %d times: %v", ran, err)
				}
				within(t, d, 3*time.Second, 3*time.Second+250*time.Millisecond) // the read limit, a backoff

				// What was held up arrives late, and never as a second execution of
				// an unsafe operation.
				w.net.Heal(w.servers[0].ip(), "10.0.1.1")
				time.Sleep(time.Minute)
				ran = len(w.servers[0].got()) - 1 + len(w.servers[1].got())
				if safety == holdfast.Unsafe && ran > 1 {
					t.Errorf("an unsafe operation ran %d times", ran)
				}
			})
		})
	}
}

func TestBrokenConnIsReplacedAtCheckout(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 5}})
		use := func() {
			t.Helper()
			var conns []*holdfast.Conn
			for range 5 {
				conn := borrow(t, c)
				if err := exchange(conn, "x"); err != nil {
					t.Fatal(err)
				}
				conns = append(conns, conn)
			}
			for _, conn := range conns {
				conn.Release()
			}
		}
		for name, breakThem := range map[string]func(){
			"closed in peace": w.servers[0].hangUp,
			"crashed":         func() { w.servers[0].crash(); w.servers[0].listen() },
		} {
			use()
			time.Sleep(10 * time.Second)
			breakThem()
			time.Sleep(10 * time.Millisecond)
			use() // not one of five callers notices
			if k := c.Stats(); k.Conns != 5 || k.Nodes[0].Failures != 0 {
				t.Errorf("%s: %d connections, %d failures; want 5 and none", name, k.Conns, k.Nodes[0].Failures)
			}
		}
	})
}

func TestPingProbesIdleConns(t *testing.T) {
	probing := holdfast.Config{
		Check: holdfast.Check{Interval: -1}, // the active checks have connections of their own
		Probe: func(_ context.Context, conn net.Conn) error { return exchange(conn, "ping") },
	}
	pings := func(s *server) (n int) {
		for _, line := range s.got() {
			if line == "ping" {
				n++
			}
		}
		return n
	}

	t.Run("those at rest, once in a while", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			cfg := probing
			cfg.Pool.Ping = 10 * time.Second
			c := w.cluster(cfg)
			a, b := borrow(t, c), borrow(t, c)
			a.Release()
			time.Sleep(9 * time.Second)
			if n := pings(w.servers[0]); n != 0 {
				t.Errorf("%d pings before it was time", n)
			}
			time.Sleep(51 * time.Second)
			if n := pings(w.servers[0]); n < 5 || n > 6 { // one connection at rest, 10 to 11.2 s apart
				t.Errorf("%d pings in a minute, want one every 10 s", n)
			}
			b.Release()
			if k := c.Stats(); k.Conns != 2 || w.servers[0].met() != 2 {
				t.Errorf("%d connections, %d dialed; a ping needs none of its own", k.Conns, w.servers[0].met())
			}
		})
	})
	t.Run("a frozen server is found", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			cfg := probing
			cfg.Pool.Ping = 10 * time.Second
			c := w.cluster(cfg)
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Fatal(err)
			}
			w.net.Host(w.servers[0].ip()).Freeze() // its kernel goes on: keepalive sees nothing
			time.Sleep(13 * time.Second)           // 10 s, a sweep, the probe's limit of 1 s
			if k := c.Stats(); k.Idle != 0 || k.Conns != 0 {
				t.Errorf("%d connections to a frozen server, %d at rest", k.Conns, k.Idle)
			}
			w.net.Host(w.servers[0].ip()).Thaw()
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Error(err)
			}
		})
	})
	// Pings take a round trip each; meanwhile the others are there for callers.
	t.Run("one at a time", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.net.SetLink("", "", simnet.Link{Latency: 50 * time.Millisecond})
			cfg := probing
			cfg.Pool = holdfast.Pool{Max: 10, Ping: 10 * time.Second}
			c := w.cluster(cfg)
			var conns []*holdfast.Conn
			for range 10 {
				conns = append(conns, borrow(t, c))
			}
			for _, conn := range conns {
				conn.Release()
			}
			for pings(w.servers[0]) == 0 {
				time.Sleep(time.Millisecond)
			}
			d := took(func() { // nine at once, while the tenth is pinged
				for i := range 9 {
					conns[i] = borrow(t, c)
				}
			})
			within(t, d, 0, 0)
			for _, conn := range conns[:9] {
				conn.Release()
			}
			if n := w.servers[0].met(); n != 10 {
				t.Errorf("%d connections were made, want the first 10", n)
			}
		})
	})
	// Those beyond the need still go: a ping is no use.
	t.Run("a ping does not keep what nobody needs", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			cfg := probing
			cfg.Pool = holdfast.Pool{Ping: 10 * time.Second, MaxIdleTime: time.Minute}
			c := w.cluster(cfg)
			borrow(t, c).Release()
			time.Sleep(time.Minute + 2*time.Second)
			if n := c.Stats().Conns; n != 0 {
				t.Error("a connection that nobody used for MaxIdleTime is still open")
			}
		})
	})
}

// A connection whose descriptor was closed behind our back is found as well, and
// what its holder learns is an error, not another's bytes.
func TestUseAfterTheSocketIsGone(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{})
		conn := borrow(t, c)
		conn.NetConn().Close()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		conn.Release()
		synctest.Wait()
		if n := c.Stats().Idle; n != 0 {
			t.Error("a closed socket rests in the pool")
		}
	})
}

// A dialer of the user's own may bring TLS of its own, for tcp:// as it is or for tls://
// below ours, as through an HTTPS proxy. What is known of a connection at rest is the
// same.
func TestTLSOfTheUsersOwnDialer(t *testing.T) {
	ca := newAuthority(t)
	server := ticketsLast(t, ca, "10.0.0.1")
	client := ca.client()
	client.ServerName = "10.0.0.1"
	client.ClientSessionCache = tls.NewLRUClientSessionCache(0) // so that there are tickets
	for scheme, layers := range map[string][]*tls.Config{"tcp://": {server}, "tls://": {server, server}} {
		story := func(name string, conns int, script func(net.Conn, string) bool) {
			t.Run(scheme+" "+name, func(t *testing.T) {
				inWorld(t, 0, func(t *testing.T, w *world) {
					s := w.startTLS("10.0.0.1:7000", layers...)
					s.does(script)
					c := w.clusterOf(holdfast.Config{TLS: ca.client(), Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
						conn, err := w.client.DialContext(ctx, network, addr)
						if err != nil {
							return nil, err
						}
						tc := tls.Client(conn, client)
						return tc, tc.HandshakeContext(ctx)
					}}, scheme+s.addr)
					borrow(t, c).Release()
					for range 3 {
						time.Sleep(20 * time.Millisecond)
						if err := c.Do(t.Context(), holdfast.Unsafe, say("next")); err != nil {
							t.Fatal(err)
						}
					}
					if n := s.met(); n != conns {
						t.Errorf("%d connections, want %d", n, conns)
					}
					if n := c.Stats().Nodes[0].Failures; n != 0 {
						t.Errorf("%d failures: what happens at rest costs nobody anything", n)
					}
				})
			})
		}
		story("all is well", 1, reply)
		story("closed by the peer", 3, func(conn net.Conn, line string) bool { reply(conn, line); return false })
		story("late bytes", 3, func(conn net.Conn, line string) bool {
			time.AfterFunc(10*time.Millisecond, func() { io.WriteString(conn, "late\n") })
			return reply(conn, line)
		})
		story("late bytes in the reply's record", 3, func(conn net.Conn, line string) bool { return reply(conn, line+"late\n") })
		story("late bytes in the reply's segment", 3, func(conn net.Conn, line string) bool { return reply(conn, line) && reply(conn, "late\n") })
	}
}

// On sockets the descriptor is the one below that TLS.
func TestTLSOfTheUsersOwnDialerDiesAtRest(t *testing.T) {
	ca := newAuthority(t)
	for how, end := range ends {
		t.Run(how, func(t *testing.T) {
			ln, err := tls.Listen("tcp", "127.0.0.1:0", ca.server(t, "127.0.0.1"))
			if err != nil {
				t.Fatal(err)
			}
			cfg := holdfast.Config{
				Dial: (&tls.Dialer{Config: ca.client()}).DialContext,
				Pool: holdfast.Pool{CheckIdle: checkAlways},
			}
			if err := deadAtRest(t, newLineServer(t, ln), cfg, end); err != nil {
				t.Error(err)
			}
		})
	}
}

// A connection that rested less than CheckIdle is taken as it is: the one way in which
// late bytes are read.
func TestCheckIdleBoundsWhatIsTakenUnseen(t *testing.T) {
	for checkIdle, want := range map[time.Duration]error{0: errWrongReply, 100 * time.Microsecond: nil, -1: errWrongReply} {
		t.Run(checkIdle.String(), func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				w.servers[0].does(func(conn net.Conn, line string) bool { return reply(conn, line+"late\n") })
				c := w.cluster(holdfast.Config{Pool: holdfast.Pool{CheckIdle: checkIdle}})
				if err := c.Do(t.Context(), holdfast.Unsafe, say("one")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(500 * time.Microsecond) // the default is 1 ms
				if err := c.Do(t.Context(), holdfast.Unsafe, say("four")); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
			})
		})
	}
}
