package proxy_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
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

// askFrom is dialAsker with an address of its own.
func askFrom(t *testing.T, from, to string) *asker {
	t.Helper()
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))}
	conn, err := d.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &asker{t, conn}
}

// A client that may not have a session drives out nobody.
func TestDeniedClientsEvictNobody(t *testing.T) {
	for name, limits := range map[string]serve.Limits{
		"network": {MaxConns: 4, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}},
		"per IP":  {MaxConns: 4, MaxPerIP: 4},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			w.start(proxy.PacketConfig{Limits: limits, Full: proxy.EvictIdlest}, newNode(t, "a", "127.0.0.1:0"))
			for range 4 {
				w.dial().ask("x", 5*time.Second)
			}
			from := "127.0.0.1:0"
			if name == "network" {
				from = "127.0.0.2:0"
			}
			for range 10 {
				askFrom(t, from, w.addr).Write([]byte("x"))
			}
			eventually(t, "they are dropped", func() bool { return w.proxy.Stats().Dropped.Denied == 10 })
			if s := w.proxy.Stats(); s.Open != 4 || s.Ends[proxy.Evicted] != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// Who came first and was heard from last is not the idlest.
func TestIdlestIsTheIdlest(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Limits: serve.Limits{MaxConns: 3}}, a)
	send := func() *asker {
		c, before := w.dial(), a.got.Load()
		c.Write([]byte("x"))
		eventually(t, "it has come", func() bool { return a.got.Load() > before })
		time.Sleep(150 * time.Millisecond)
		return c
	}
	a.mute.Store(true)
	send() // the first to go
	a.mute.Store(false)
	send() // the second, although there was a reply since
	a.mute.Store(true)
	third := send()
	send()
	send()
	a.mute.Store(false)
	if third.ask("y", 5*time.Second) == "" || w.proxy.Stats().Sessions != 5 {
		t.Errorf("the third session was evicted, and the second had been idle for longer")
	}
}

// A lane whose dial failed is not used again.
func TestLaneThatCannotBeDialed(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	c := w.clusterOf(holdfast.Config{Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)} // no fault of the node
	}}, "udp://127.0.0.1:9")
	w.start(proxy.PacketConfig{Cluster: c, Requests: 1, Responses: -1})
	client := w.dial()
	for i := range uint64(20) {
		client.Write([]byte("x"))
		eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped.NoBackend > i })
	}
	if s := w.proxy.Stats(); s.Open != 0 {
		t.Errorf("%+v", s)
	}
}

// What is sent one way by a session arrives, however long the dial takes.
func TestOneWayWaitsForTheDial(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	c := w.clusterOf(holdfast.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		time.Sleep(50 * time.Millisecond)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}, a.url())
	w.start(proxy.PacketConfig{Cluster: c, Requests: 2, Responses: -1})
	client := w.dial()
	client.Write([]byte("1"))
	client.Write([]byte("2"))
	eventually(t, "both have come", func() bool { return a.got.Load() == 2 })
	eventually(t, "the session is over", func() bool { return w.proxy.Stats().Ends[proxy.Answered] == 1 })
}

// stuckConn takes nothing until it is closed.
type stuckConn struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *stuckConn) Write([]byte) (int, error) { <-c.closed; return 0, net.ErrClosed }
func (c *stuckConn) Read([]byte) (int, error)  { <-c.closed; return 0, io.EOF }
func (c *stuckConn) Close() error              { c.once.Do(func() { close(c.closed) }); return c.Conn.Close() }

// A node that takes nothing does not hold up the end.
func TestStuckNodeHoldsUpNoEnd(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	c := w.clusterOf(holdfast.Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return &stuckConn{Conn: conn, closed: make(chan struct{})}, err
	}}, a.url())
	w.start(proxy.PacketConfig{Cluster: c})
	w.dial().Write([]byte("x"))
	time.Sleep(50 * time.Millisecond)
	done := make(chan struct{})
	go func() { w.proxy.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("Close waits for a Write")
	}
}

// A node that takes nothing has failed, and does not hold up those of others.
func TestStuckNodeHoldsUpNobody(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
	c := w.clusterOf(holdfast.Config{
		Picker: holdfast.RoundRobin(),
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == b.pc.LocalAddr().String() {
				ours, theirs := net.Pipe() // which nobody reads
				t.Cleanup(func() { theirs.Close() })
				return ours, nil
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
	}, b.url(), a.url())
	w.start(proxy.PacketConfig{Cluster: c})
	for range 4 {
		if got := w.dial().ask("x", 5*time.Second); got != "a:x" {
			t.Errorf("%q", got)
		}
	}
}

// Where all nodes are down, and one is used in panic, a session stays at one port.
func TestSessionsStayInPanic(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		c := w.clusterOf(holdfast.Config{
			Picker: holdfast.RoundRobin(),
			Probe:  func(context.Context, net.Conn) error { return errors.New("it is unwell") },
			Check:  holdfast.Check{Interval: 20 * time.Millisecond, Fall: 1},
		}, a.url(), b.url())
		c.Pick(0, nil) // begins the checks, and takes the only place of one: the client has the other's
		eventually(t, "both are down", func() bool {
			for _, n := range c.Stats().Nodes {
				if n.State != holdfast.StateEjected {
					return false
				}
			}
			return len(c.Stats().Nodes) == 2
		})
		w.start(proxy.PacketConfig{Cluster: c, PerNode: 1}, nil...)
		client := w.dial()
		first := client.ask("x", 5*time.Second)
		time.Sleep(250 * time.Millisecond) // it looks after nodes
		for range 20 {
			if got := client.ask("x", 5*time.Second); got != first {
				t.Fatalf("%q, and first %q", got, first)
			}
		}
		if n := a.sources() + b.sources(); n != 1 || w.proxy.Stats().Moved != 0 {
			t.Errorf("from %d ports: %+v", n, w.proxy.Stats())
		}
	})
}

// A move that failed when the successor had the descriptors already: events of a socket
// that is closed here must not come for ever.
func TestSocketThatIsOpenElsewhereToo(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Idle: 200 * time.Millisecond}, a)
	w.dial().ask("x", 5*time.Second)
	elsewhere := -1
	err := w.proxy.HandOver(t.Context(), func(_ []byte, conns ...syscall.Conn) error {
		raw, _ := conns[0].SyscallConn()
		raw.Control(func(fd uintptr) { elsewhere, _ = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		return errors.New("it changed its mind")
	})
	defer unix.Close(elsewhere)
	if err == nil {
		t.Error("HandOver: no error, and nothing has moved")
	}
	eventually(t, "the session ends here", func() bool { return w.proxy.Stats().Open == 0 })
	a.seen.Range(func(from, _ any) bool {
		a.pc.WriteToUDPAddrPort([]byte("late"), from.(netip.AddrPort))
		return true
	})
	before := cpuTime(t)
	time.Sleep(500 * time.Millisecond)
	if took := cpuTime(t) - before; took > 60*time.Millisecond {
		t.Errorf("%v of CPU in half a second: the loop spins", took)
	}
}

// Who has several sessions, of one datagram each, has all their answers after a move.
func TestSpentSessionsMove(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	a.mute.Store(true)
	cfg := proxy.PacketConfig{Requests: 1, Responses: 1}
	w.start(cfg, a)
	client := w.dial()
	for range 5 {
		client.Write([]byte("x"))
	}
	eventually(t, "all have come", func() bool { return a.got.Load() == 5 })
	cfg.Cluster = w.cluster
	next := w.successor(cfg)
	if err := w.proxy.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	serveWith(t, next, w.socket())
	a.seen.Range(func(from, _ any) bool {
		a.pc.WriteToUDPAddrPort([]byte("y"), from.(netip.AddrPort))
		return true
	})
	for i := range 5 {
		if client.hear(5*time.Second) != "y" {
			t.Fatalf("%d of 5 answers came: %+v", i, next.Stats())
		}
	}
	eventually(t, "none is left", func() bool { return next.Stats().Open == 0 })
}

func (w *packetWorld) successor(cfg proxy.PacketConfig) *proxy.Packets {
	w.Helper()
	p, err := proxy.NewPackets(cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { p.Close() })
	return p
}

// serveWith has another Packets serve a socket.
func serveWith(t *testing.T, p *proxy.Packets, pc net.PacketConn) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- p.ServePacket(pc) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-served; err != proxy.ErrClosed {
			t.Errorf("ServePacket: %v", err)
		}
	})
}

// record is what a predecessor with one session passes on.
func (w *packetWorld) record() (state []byte) {
	w.Helper()
	w.dial().ask("x", 5*time.Second)
	w.proxy.HandOver(w.Context(), func(b []byte, _ ...syscall.Conn) error { state = b; return errors.New("no") })
	if state == nil {
		w.Fatal("there is no record")
	}
	return state
}

func newSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// Sessions that come while the successor ends are ended with it.
func TestTakeOverWhileItEnds(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	w.start(proxy.PacketConfig{}, newNode(t, "a", "127.0.0.1:0"))
	state := w.record()
	for range 300 {
		next := w.successor(proxy.PacketConfig{Cluster: w.cluster})
		next.TakeOver(state, []int{newSocket(t)})
		var ends sync.WaitGroup
		ends.Go(func() { next.Close() })
		for range 4 {
			fd := newSocket(t)
			if next.TakeOver(state, []int{fd}) != nil {
				unix.Close(fd)
			}
		}
		ends.Wait()
		if open := next.Stats().Open; open != 0 {
			t.Fatalf("%d sessions are left", open)
		}
	}
	w.proxy.Close()
	if n := w.cluster.Stats().Nodes[0].InFlight; n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// latecomer is a socket that has one more datagram when it is not to be read any more.
type latecomer struct {
	net.PacketConn
	from net.Addr
	late atomic.Bool
	gone atomic.Bool
}

func (l *latecomer) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := l.PacketConn.ReadFrom(b)
	if err != nil && l.late.Load() && !l.gone.Swap(true) {
		time.Sleep(50 * time.Millisecond)
		return copy(b, "late"), l.from, nil
	}
	return n, from, err
}

// A socket that is read by a goroutine may give a datagram after it was told to stop: it
// goes its way before the sessions do.
func TestDatagramThatIsReadBeforeTheMove(t *testing.T) {
	leak.Check(t)
	a := newNode(t, "a", "127.0.0.1:0")
	w := &packetWorld{T: t}
	c := w.clusterOf(holdfast.Config{}, a.url())
	p := w.successor(proxy.PacketConfig{Cluster: c})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := &latecomer{PacketConn: pc}
	serveWith(t, p, front)
	client, other := dialAsker(t, pc.LocalAddr().String()), dialAsker(t, pc.LocalAddr().String())
	client.ask("x", 5*time.Second)
	other.ask("x", 5*time.Second)
	front.from = client.LocalAddr()
	front.late.Store(true)
	err = p.HandOver(t.Context(), func(_ []byte, conns ...syscall.Conn) error {
		time.Sleep(150 * time.Millisecond)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if s := p.Stats(); s.MovedOut != 2 || s.Open != 0 || a.got.Load() != 3 || a.sources() != 2 {
		t.Errorf("%+v; the node got %d from %d", s, a.got.Load(), a.sources())
	}
}

// Who closes the socket in front ends ServePacket, and nothing holds the port.
func TestSocketClosedUnderIt(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "a", "127.0.0.1:0")
		c := w.clusterOf(holdfast.Config{}, a.url())
		p := w.successor(proxy.PacketConfig{Cluster: c})
		udp, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := udp.LocalAddr().String()
		pc := udp
		if w.goroutines {
			pc = opaquePacket{udp}
		}
		served := make(chan error, 1)
		go func() { served <- p.ServePacket(pc) }()
		dialAsker(t, addr).ask("x", 5*time.Second)
		udp.Close()
		select {
		case err := <-served:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("ServePacket: %v", err)
			}
		case <-time.After(patience):
			t.Fatal("ServePacket goes on with a closed socket")
		}
		if again, err := net.ListenPacket("udp", addr); err != nil {
			t.Errorf("the port is held: %v", err)
		} else {
			again.Close()
		}
		if s := p.Stats(); s.Open != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// forge sends a datagram with a source of another's.
func forge(t *testing.T, from, to netip.AddrPort, data string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, datagramOf(from, to, data), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
}

// datagramOf is a datagram with its IP header.
func datagramOf(from, to netip.AddrPort, data string) []byte {
	b := make([]byte, 28, 28+len(data))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(data)))
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(data)))
	return append(b, data...)
}

// Datagrams forged to come from a socket of our own would go round for ever: our reply
// to them comes in, and is answered.
func TestOwnSourcesDoNotLoop(t *testing.T) {
	need(t, true)
	for _, c := range []struct{ name, bind, second, from, to string }{
		{"the same socket", "127.0.0.1", "", "127.0.0.1", "127.0.0.1"},
		{"another address of it", "0.0.0.0", "", "127.0.0.2", "127.0.0.1"},
		{"another socket", "127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.1"},
		{"from port 0", "127.0.0.1", "", "127.0.0.9:0", "127.0.0.1"},
		{"from who answers anything", "127.0.0.1", "", "127.0.0.9:7", "127.0.0.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			a := newNode(t, "", "127.0.0.1:0")
			w.startAt(c.bind+":0", proxy.PacketConfig{}, a)
			ports := map[string]uint16{c.bind: netip.MustParseAddrPort(w.addr).Port()}
			if c.second != "" {
				pc, err := net.ListenPacket("udp", c.second+":0")
				if err != nil {
					t.Fatal(err)
				}
				ports[c.second] = pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
				serveWith(t, w.proxy, pc)
				dialAsker(t, pc.LocalAddr().String()).ask("x", 5*time.Second) // it is served
			}
			dialAsker(t, netip.AddrPortFrom(netip.MustParseAddr(c.to), ports[c.bind]).String()).ask("x", 5*time.Second)
			asked := a.got.Load()
			from, err := netip.ParseAddrPort(c.from)
			if err != nil {
				port, ok := ports[c.from]
				if !ok {
					port = ports[c.bind]
				}
				from = netip.AddrPortFrom(netip.MustParseAddr(c.from), port)
			}
			forge(t, from, netip.AddrPortFrom(netip.MustParseAddr(c.to), ports[c.bind]), "x")
			eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped.Loops == 1 })
			if n := a.got.Load() - asked; n > 0 {
				t.Errorf("the node got it %d times", n)
			}
		})
	}
}

// A router on the way says that datagrams are too long: no reason to leave a node.
func TestShorterPathMovesNobody(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		w.start(proxy.PacketConfig{}, a, b)
		client := w.dial()
		first := client.ask("x", 5*time.Second)
		at := a
		if first == "b:x" {
			at = b
		}
		at.seen.Range(func(from, _ any) bool {
			quoted := datagramOf(from.(netip.AddrPort), at.pc.LocalAddr().(*net.UDPAddr).AddrPort(), "x")
			icmp(t, 3, 4, 1000, quoted)
			return true
		})
		for range 3 {
			client.ask("x", time.Second)
		}
		if s := w.proxy.Stats(); s.Refused != 0 || s.Moved != 0 {
			t.Errorf("%+v", s)
		}
		if got := client.ask("y", 5*time.Second); got != first[:2]+"y" {
			t.Errorf("%q, and first %q", got, first)
		}
	})
}

// icmp sends an error to this host, about a datagram that it sent.
func icmp(t *testing.T, kind, code byte, mtu uint16, quoted []byte) {
	t.Helper()
	b := []byte{kind, code, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
	b = append(b, quoted...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	c, err := net.Dial("ip4:icmp", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// A session that makes room has its last datagrams sent, and the node refuses them: it ends
// once, and takes no other out of the books.
func TestEvictedWithItsLastDatagrams(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	dead := newNode(t, "a", "127.0.0.1:0")
	dead.pc.Close()
	often := holdfast.Backoff{Base: time.Millisecond, Max: time.Millisecond, Jitter: -1}
	w.start(proxy.PacketConfig{Full: proxy.EvictIdlest, Idle: 200 * time.Millisecond, Limits: serve.Limits{MaxConns: 2},
		Cluster: w.clusterOf(holdfast.Config{Backoff: often}, dead.url())})
	var clients []*asker
	for range 5 {
		clients = append(clients, w.dial())
	}
	for range 200 {
		for _, c := range clients {
			for range 3 {
				c.Write([]byte("x"))
			}
		}
		time.Sleep(time.Millisecond)
	}
	eventually(t, "all are dealt with", func() bool { return w.proxy.Stats().FromClients == 3000 })
	for range 5 {
		if open := w.proxy.Stats().Open; open < 0 || open > 2 {
			t.Fatalf("%d sessions are open", open)
		}
	}
	eventually(t, "all have ended", func() bool { return w.proxy.Stats().Open == 0 })
}
