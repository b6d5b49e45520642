package holdfast_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/proxy"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

const stagger = 250 * time.Millisecond // RFC 8305's connection attempt delay

// through is a proxy on a host of its own. It knows names that the client does
// not, and notes whom it was asked for.
type through struct {
	w     *world
	host  *simnet.Host
	knows map[string]string
	mu    sync.Mutex // guards asked
	asked []string
}

// proxy starts a proxy at addr that serves each connection by greet, which reads
// whom the client wants and returns how to answer.
func (w *world) proxy(addr string, knows map[string]string, greet func(net.Conn, *bufio.Reader) (string, func(error))) *through {
	w.t.Helper()
	ln, err := w.net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	host, _, _ := net.SplitHostPort(addr)
	p := &through{w: w, host: w.net.Host(host), knows: knows}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(conn, greet) })
		}
	})
	w.t.Cleanup(func() { ln.Close(); wg.Wait() })
	return p
}

func (p *through) serve(conn net.Conn, greet func(net.Conn, *bufio.Reader) (string, func(error))) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	target, answer := greet(conn, r)
	p.mu.Lock()
	p.asked = append(p.asked, target)
	p.mu.Unlock()
	if addr, ok := p.knows[target]; ok {
		target = addr
	}
	onward, err := p.host.DialContext(context.Background(), "tcp", target)
	answer(err)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		io.Copy(onward, r)
		onward.(*simnet.Conn).CloseWrite()
	})
	io.Copy(conn, onward)
	conn.Close()
	wg.Wait()
	onward.Close()
}

// socks is the server's side of RFC 1928, as far as CONNECT goes.
func socks(conn net.Conn, r *bufio.Reader) (string, func(error)) {
	b := make([]byte, 256)
	io.ReadFull(r, b[:2])    // version, number of methods
	io.ReadFull(r, b[:b[1]]) // methods
	conn.Write([]byte{5, 0}) // none is fine
	io.ReadFull(r, b[:4])    // version, CONNECT, reserved, type of address
	var host string
	switch b[3] {
	case 1:
		io.ReadFull(r, b[:4])
		host = net.IP(b[:4]).String()
	case 3:
		io.ReadFull(r, b[:1])
		n := b[0]
		io.ReadFull(r, b[:n])
		host = string(b[:n])
	}
	io.ReadFull(r, b[:2])
	target := fmt.Sprintf("%s:%d", host, binary.BigEndian.Uint16(b))
	return target, func(err error) {
		reply := []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		if err != nil {
			reply[1] = 5 // connection refused
		}
		conn.Write(reply)
	}
}

// connect is the server's side of HTTP CONNECT (RFC 9110 §9.3.6).
func connect(conn net.Conn, r *bufio.Reader) (string, func(error)) {
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		return "", func(error) { io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") }
	}
	return req.Host, func(err error) {
		if err != nil {
			io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	}
}

// forward is how the SOCKS client reaches its proxy: over the simulated network.
type forward struct{ *simnet.Host }

func (f forward) Dial(network, addr string) (net.Conn, error) {
	return f.DialContext(context.Background(), network, addr)
}

func TestDialThroughSOCKS(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		p := w.proxy("10.0.9.1:1080", map[string]string{"db.internal:7000": w.servers[0].addr}, socks)
		dialer, err := proxy.SOCKS5("tcp", "10.0.9.1:1080", nil, forward{w.client})
		if err != nil {
			t.Fatal(err)
		}
		c := w.clusterOf(holdfast.Config{
			Picker: holdfast.Ordered(),
			Dial:   dialer.(proxy.ContextDialer).DialContext,
		}, "tcp://db.internal:7000", "tcp://10.0.0.2:7000")
		throughProxy(t, w, c, p)
	})
}

func TestDialThroughHTTPConnect(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		p := w.proxy("10.0.9.1:3128", map[string]string{"db.internal:7000": w.servers[0].addr}, connect)
		c := w.clusterOf(holdfast.Config{
			Picker: holdfast.Ordered(),
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := w.client.DialContext(ctx, network, "10.0.9.1:3128")
				if err != nil {
					return nil, err
				}
				defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
				fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", addr, addr)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = errors.New(resp.Status)
				}
				if err != nil {
					conn.Close()
					return nil, err
				}
				return conn, nil
			},
		}, "tcp://db.internal:7000", "tcp://10.0.0.2:7000")
		throughProxy(t, w, c, p)
	})
}

// throughProxy is the story of both kinds: the name reaches the proxy as it is, who
// is down behind it is passed over, and the error of none tells who they were.
func throughProxy(t *testing.T, w *world, c *holdfast.Cluster, p *through) {
	t.Helper()
	asked := func() []string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return slices.Clone(p.asked)
	}
	if err := c.Do(t.Context(), holdfast.Unsafe, say("one")); err != nil {
		t.Fatal(err)
	}
	if got := w.servers[0].got(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("the server behind the proxy got %q", got)
	}
	if got := asked(); !slices.Equal(got, []string{"db.internal:7000"}) {
		t.Errorf("the proxy was asked for %q, want the name as it is", got)
	}
	if nodes := c.Stats().Nodes; len(nodes) != 2 || nodes[0].Node != "db.internal:7000" {
		t.Errorf("an endpoint is not one node: %+v", nodes)
	}

	w.servers[0].crash()
	time.Sleep(time.Second)
	// A connection through a proxy may hide its socket, and then it cannot be looked
	// at before use: only an idempotent operation is sure to move on.
	if err := c.Do(t.Context(), holdfast.Idempotent, say("two")); err != nil {
		t.Fatal(err)
	}
	if got := w.servers[1].got(); !slices.Equal(got, []string{"two"}) {
		t.Errorf("the second server got %q", got)
	}

	w.servers[1].crash()
	time.Sleep(time.Second) // the backoff of the first is over
	_, err := c.DialContext(t.Context(), "tcp", "")
	for _, addr := range []string{"db.internal:7000", "10.0.0.2:7000"} {
		if err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("with all down the error is %v, and does not name %s", err, addr)
		}
	}
}

// dials notes the dials of a cluster: where to, from when, until when.
type dials struct {
	w  *world
	mu sync.Mutex // guards the rest
	to []string
	at [][2]time.Time
}

func (d *dials) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	i := len(d.to)
	d.to = append(d.to, addr)
	d.at = append(d.at, [2]time.Time{time.Now(), {}})
	d.mu.Unlock()
	conn, err := d.w.dualStack()(ctx, network, addr)
	d.mu.Lock()
	d.at[i][1] = time.Now()
	d.mu.Unlock()
	return conn, err
}

// most returns how many were under way at once; one that begins when another ends
// was not.
func (d *dials) most() (most int) {
	for _, one := range d.at {
		n := 0
		for _, other := range d.at {
			if !other[0].After(one[0]) && (other[1].After(one[0]) || other == one) {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// The defect of its kind: one black-holed address ate all of the caller's time.
func TestBlackHoleCostsOneStagger(t *testing.T) {
	type way func(*testing.T, *holdfast.Cluster)
	for name, use := range map[string]way{
		"a dial of one's own": func(t *testing.T, c *holdfast.Cluster) {
			conn, err := c.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		},
		"an operation": func(t *testing.T, c *holdfast.Cluster) {
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				w.net.Partition(clientIP, w.servers[0].ip())
				c := w.cluster(holdfast.Config{
					Picker:  holdfast.Ordered(),
					Backoff: holdfast.Backoff{Base: time.Minute, Max: time.Minute, Jitter: -1},
				})
				within(t, took(func() { use(t, c) }), stagger, stagger)
				for range 5 { // it is remembered
					within(t, took(func() { use(t, c) }), 0, 0)
				}
				if n := c.Stats().Nodes[0]; n.State != holdfast.StateBackoff || n.Err == "" {
					t.Errorf("the black hole is %v because of %q", n.State, n.Err)
				}
			})
		})
	}

	t.Run("three of them cost three", func(t *testing.T) {
		inWorld(t, 4, func(t *testing.T, w *world) {
			for _, s := range w.servers[:3] {
				w.net.Partition(clientIP, s.ip())
			}
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
			within(t, took(func() {
				if conn, err := c.DialContext(t.Context(), "tcp", ""); err != nil {
					t.Error(err)
				} else {
					conn.Close()
				}
			}), 3*stagger, 3*stagger)
		})
	})

	t.Run("a slow node is waited for when there is no other", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.net.SetLink(clientIP, w.servers[0].ip(), simnet.Link{Latency: time.Second})
			c := w.cluster(holdfast.Config{})
			within(t, took(func() {
				if conn, err := c.DialContext(t.Context(), "tcp", ""); err != nil {
					t.Error(err)
				} else {
					conn.Close()
				}
			}), time.Second, time.Second)
			if s := c.Stats().Nodes[0]; s.State == holdfast.StateBackoff {
				t.Error("a slow node that nobody overtook is backing off")
			}
		})
	})

	// The one with the head start wins in the end: the other has not lost to it.
	t.Run("who began later is not to blame", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.net.SetLink(clientIP, "", simnet.Link{Latency: 300 * time.Millisecond})
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
			conn, err := c.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.RemoteAddr().String(); got != w.servers[0].addr {
				t.Errorf("%s won", got)
			}
			for _, n := range c.Stats().Nodes {
				if n.State == holdfast.StateBackoff {
					t.Errorf("%s is backing off: %s", n.Node, n.Err)
				}
			}
		})
	})

	t.Run("a negative stagger tries one after another", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.net.Partition(clientIP, w.servers[0].ip())
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Timeouts: holdfast.Timeouts{Stagger: -1}})
			within(t, took(func() {
				if conn, err := c.DialContext(t.Context(), "tcp", ""); err != nil {
					t.Error(err)
				} else {
					conn.Close()
				}
			}), 5*time.Second, 5*time.Second)
		})
	})
}

// A name with two addresses of each family, one family of which is a black hole:
// the first dial pays a stagger, those after it go to the good family.
func TestBrokenFamilyCostsOneStagger(t *testing.T) {
	v6 := []string{"fd00::1", "fd00::2"}
	v4 := []string{"10.0.0.1", "10.0.0.2"}
	for _, family := range []struct {
		name         string
		broken, good []string
	}{
		{"v6", v6, v4},
		{"v4", v4, v6},
	} {
		t.Run(family.name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				directory := newNames()
				directory.answer("db", append(slices.Clone(family.broken), family.good...)...)
				for _, ip := range append(slices.Clone(v4), v6...) {
					w.servers = append(w.servers, w.start(net.JoinHostPort(ip, "7000")))
					if slices.Contains(family.broken, ip) {
						w.net.Partition("", ip)
					}
				}
				dual := w.dualStack()
				c := w.clusterOf(holdfast.Config{
					Picker: holdfast.Ordered(), Dial: dual, Names: holdfast.Names{Lookup: directory.lookup},
				}, "tcp://db:7000")
				w.resolved(c)

				dial := func() time.Duration {
					return took(func() {
						conn, err := c.DialContext(t.Context(), "tcp", "")
						if err != nil {
							t.Fatal(err)
						}
						conn.Close()
					})
				}
				within(t, dial(), stagger, stagger)
				for range 10 {
					within(t, dial(), 0, 0)
				}
				// The broken family is asked again now and then, ever less often.
				slow := 0
				for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(50 * time.Millisecond) {
					if d := dial(); d != 0 {
						slow++
						within(t, d, stagger, stagger)
					}
				}
				if slow > 12 {
					t.Errorf("in a minute %d dials paid for the broken family", slow)
				}
			})
		})
	}
}

// dualStack dials from an address of the target's family.
func (w *world) dualStack() func(context.Context, string, string) (net.Conn, error) {
	six := w.net.Host("fd00:1::1")
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "[") {
			return six.DialContext(ctx, network, addr)
		}
		return w.client.DialContext(ctx, network, addr)
	}
}

func TestAtMostFourDialsAtOnce(t *testing.T) {
	inWorld(t, 9, func(t *testing.T, w *world) {
		for _, s := range w.servers[:8] {
			w.net.Partition(clientIP, s.ip())
		}
		d := &dials{w: w}
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Dial: d.dial})
		elapsed := took(func() {
			conn, err := c.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		})
		// Four begin 250 ms apart and end after 5 s each, and with each end the next
		// begins: at 5, 5.25, 5.5 and 5.75 s. The ninth follows the first of these.
		within(t, elapsed, 10*time.Second, 10*time.Second)
		synctest.Wait()
		if n := d.most(); n != 4 {
			t.Errorf("%d dials at once, want 4", n)
		}
		if n := len(d.to); n != 9 {
			t.Errorf("%d dials, want every node once", n)
		}
	})
}

// Whatever the race was won by, nothing of it stays behind: not the dials under
// way, and not a connection that comes in too late.
func TestLosersAreClosed(t *testing.T) {
	t.Run("dials under way are given up", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			w.net.SetLink(clientIP, w.servers[0].ip(), simnet.Link{Latency: time.Second})
			w.net.Partition(clientIP, w.servers[1].ip())
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
			conn, err := c.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if n := len(w.client.Conns()); n != 1 {
				t.Errorf("%d connections are open, want the winner's alone", n)
			}
			conn.Close()
			if n := len(w.client.Conns()); n != 0 {
				t.Errorf("%d connections are open at the end", n)
			}
			if s := c.Stats(); s.Conns != 0 {
				t.Errorf("the books hold %d connections at the end", s.Conns)
			}
		})
	})

	// A dialer that does not listen to its context brings a connection nobody wants.
	t.Run("a connection that comes too late is closed", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{
				Picker: holdfast.Ordered(),
				Dial: func(_ context.Context, network, addr string) (net.Conn, error) {
					if addr == w.servers[0].addr {
						time.Sleep(time.Second)
					}
					return w.client.DialContext(context.Background(), network, addr)
				}})
			var conn net.Conn
			var err error
			within(t, took(func() { conn, err = c.DialContext(t.Context(), "tcp", "") }), stagger, stagger)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			time.Sleep(2 * time.Second)
			if w.servers[0].dials() != 1 {
				t.Fatal("the late connection was never made: the story proves nothing")
			}
			if n := len(w.client.Conns()); n != 1 {
				t.Errorf("%d connections are open, want the winner's alone", n)
			}
			for _, n := range c.Stats().Nodes {
				if want := map[bool]int{true: 0, false: 1}[n.Node == w.servers[0].addr]; n.Conns != want || n.InFlight != want {
					t.Errorf("%s has %d connections and %d leases, want %d", n.Node, n.Conns, n.InFlight, want)
				}
			}
		})
	})

	// In the pool the loser is of use: it rests until it is wanted.
	for name, latency := range map[string]time.Duration{
		"a pooled loser goes to rest":                 time.Second,
		"a pooled loser of the same instant does too": stagger,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				w.net.SetLink(clientIP, w.servers[0].ip(), simnet.Link{Latency: latency})
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
				if err := c.Do(t.Context(), holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { return nil }); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Second)
				if s := c.Stats(); s.Idle != 2 || s.Conns != 2 || s.Waiting != 0 {
					t.Errorf("%d connections, %d at rest, %d waiting; want 2, 2, 0", s.Conns, s.Idle, s.Waiting)
				}
			})
		})
	}
	t.Run("of two in the same instant one is closed", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.net.SetLink(clientIP, w.servers[0].ip(), simnet.Link{Latency: stagger})
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
			conn, err := c.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			if n := len(w.client.Conns()); n != 1 {
				t.Errorf("%d connections are open", n)
			}
			conn.Close()
			for _, n := range c.Stats().Nodes {
				if n.InFlight != 0 || n.Conns != 0 {
					t.Errorf("%s has %d leases and %d connections at the end", n.Node, n.InFlight, n.Conns)
				}
			}
		})
	})
}

func TestFamiliesAreInterleaved(t *testing.T) {
	ips := []string{"fd00::1", "fd00::2", "fd00::3", "10.0.0.1", "10.0.0.2", "10.0.0.3"}
	want := []string{"[fd00::1]:7000", "10.0.0.1:7000", "[fd00::2]:7000", "10.0.0.2:7000", "[fd00::3]:7000", "10.0.0.3:7000"}
	for name, dial := range map[string]func(*testing.T, *holdfast.Cluster) error{
		"over the cluster": func(t *testing.T, c *holdfast.Cluster) error {
			_, err := c.DialContext(t.Context(), "tcp", "")
			return err
		},
		"to a name outside it": func(t *testing.T, c *holdfast.Cluster) error {
			_, err := c.DialAddr(t.Context(), "tcp", "other:7000")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				directory := newNames()
				directory.answer("db", ips...)
				directory.answer("other", ips...)
				d := &dials{w: w}
				c := w.clusterOf(holdfast.Config{
					Picker: holdfast.Ordered(),
					Names:  holdfast.Names{Lookup: directory.lookup},
					Dial:   d.dial, // nobody listens
				}, "tcp://db:7000")
				if name == "over the cluster" {
					w.resolved(c)
				}
				if err := dial(t, c); err == nil {
					t.Fatal("nobody listens, and a connection came")
				}
				if !slices.Equal(d.to, want) {
					t.Errorf("dialed %v, want %v", d.to, want)
				}
			})
		})
	}
}

// Another name is not the other family of this one.
func TestFamiliesOfEachNameAlone(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		directory := newNames()
		directory.answer("four", "10.0.0.1", "10.0.0.2")
		directory.answer("six", "fd00::1")
		d := &dials{w: w}
		c := w.byName(holdfast.Config{Picker: holdfast.Ordered(), Dial: d.dial}, directory, "tcp://four:7000", "tcp://six:7000")
		c.DialContext(t.Context(), "tcp", "")
		if want := []string{"10.0.0.1:7000", "10.0.0.2:7000", "[fd00::1]:7000"}; !slices.Equal(d.to, want) {
			t.Errorf("dialed %v, want %v", d.to, want)
		}
	})
}

func TestUnreachableMovesOn(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		t.Run(errno.Error(), func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				w.net.SetLink(clientIP, w.servers[0].ip(), simnet.Link{Reject: errno})
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
				within(t, took(func() {
					if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
						t.Error(err)
					}
				}), 0, 0)
				if s := c.Stats(); s.Errors[holdfast.ClassUnreachable] != 1 || s.Hidden != 1 {
					t.Errorf("classes %v, hidden %d; want one failure, unreachable, that no caller saw", s.Errors, s.Hidden)
				}

				w.net.SetLink(clientIP, w.servers[1].ip(), simnet.Link{Reject: errno})
				c.Close()
				c = w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
				_, err := c.DialContext(t.Context(), "tcp", "")
				if e := asError(t, err); e.Class != holdfast.ClassUnreachable || !errors.Is(err, errno) || len(e.Tried) != 1 {
					t.Errorf("with both unreachable: %v, class %v", err, e.Class)
				}
			})
		})
	}
}

// The network is back, and the user knows it.
func TestResetBackoff(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.servers[0].crash()
		c := w.cluster(holdfast.Config{Backoff: holdfast.Backoff{Base: time.Hour, Max: 3 * time.Hour}})
		if _, err := c.DialContext(t.Context(), "tcp", ""); err == nil {
			t.Fatal("a dead server answered")
		}
		w.servers[0].listen()
		if _, err := c.DialContext(t.Context(), "tcp", ""); !errors.Is(err, holdfast.ErrNoEndpoint) || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("during the backoff: %v, want no endpoint, and why", err)
		}

		var err error
		done := make(chan time.Time, 1)
		go func() { // who waits for the backoff is let go too
			err = c.Do(t.Context(), holdfast.Unsafe, say("x"))
			done <- time.Now()
		}()
		time.Sleep(10 * time.Minute)
		select {
		case <-done:
			t.Fatalf("the backoff of an hour did not hold: %v", err)
		default:
		}
		reset := time.Now()
		c.ResetBackoff()
		if at := <-done; err != nil || !at.Equal(reset) {
			t.Errorf("an operation that waited ended %v after the reset with %v", at.Sub(reset), err)
		}
		states := w.seen(holdfast.EventState)
		if i := slices.IndexFunc(states, func(e holdfast.Event) bool { return e.From == holdfast.StateBackoff }); i < 0 || states[i].Cause != "reset" {
			t.Errorf("no event tells of the reset: %v", states)
		}
	})
	t.Run("and the next backoff is the first again", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Backoff: holdfast.Backoff{Base: time.Minute, Max: time.Hour, Multiplier: 2, Jitter: -1}})
			fail := func(backoff time.Duration) {
				t.Helper()
				dials := w.net.Stats().Dials + 1
				if c.DialContext(t.Context(), "tcp", ""); w.net.Stats().Dials != dials {
					t.Errorf("not dialed when the backoff before the one of %v should be over", backoff)
				}
				time.Sleep(backoff - time.Second)
				c.DialContext(t.Context(), "tcp", "")
				if n := w.net.Stats().Dials; n != dials {
					t.Errorf("dialed again within %v", backoff)
				}
				time.Sleep(2 * time.Second)
			}
			fail(time.Minute)
			fail(2 * time.Minute)
			fail(4 * time.Minute)
			c.ResetBackoff()
			fail(time.Minute)
			fail(2 * time.Minute)
		})
	})
}

// A caller in a hurry learns nothing about a node but that it takes longer than his
// deadline.
func TestCallersShortDeadlineIsNotTheNodesFault(t *testing.T) {
	ways := map[string]func(context.Context, *holdfast.Cluster) (net.Conn, error){"DialContext": dialContext, "Lease.Dial": leaseDial}
	for name, dial := range ways {
		for _, row := range []struct {
			what   string
			limits holdfast.Timeouts
			fail   func(w *world)
			blame  bool
		}{
			{"before the dial's", holdfast.Timeouts{}, (*world).blackHole, false},
			{"no limit but his", holdfast.Timeouts{Dial: -1}, (*world).blackHole, false},
			{"in a handshake", holdfast.Timeouts{}, (*world).muteServers, false},
			{"after the dial's", holdfast.Timeouts{Dial: 50 * time.Millisecond}, (*world).blackHole, true},
			{"after the handshake's", holdfast.Timeouts{Handshake: 50 * time.Millisecond}, (*world).muteServers, true},
			{"before the handshake's, after the time of a dial", holdfast.Timeouts{Dial: 50 * time.Millisecond}, (*world).muteServers, true},
		} {
			t.Run(name+" "+row.what, func(t *testing.T) {
				inWorld(t, 1, func(t *testing.T, w *world) {
					row.fail(w)
					c := w.cluster(holdfast.Config{Timeouts: row.limits, Handshake: say("hello")})
					begin(t, c)
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					defer cancel()
					_, err := dial(ctx, c)
					if e := asError(t, err); !e.Timeout() || !e.SafeToRetry() {
						t.Errorf("class %v: %v", e.Class, err)
					}
					n := c.Stats().Nodes[0]
					if blamed := n.Failures > 0 || n.State == holdfast.StateBackoff; blamed != row.blame {
						t.Errorf("the node is %v with %d failures", n.State, n.Failures)
					}
				})
			})
		}
	}
}

func (w *world) blackHole() { w.net.Partition(clientIP, w.servers[0].ip()) }

func (w *world) muteServers() {
	for _, s := range w.servers {
		s.does(func(net.Conn, string) bool { return true })
	}
}
