package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/restart"
	"golang.org/x/sys/unix"
)

// A9, V5: sessions go on at the successor, towards the same node, from the same port, and
// what arrives meanwhile waits.
func TestSessionsMove(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
	w.start(proxy.PacketConfig{}, a, b)
	var clients []*asker
	var first []string
	for range 250 {
		c := w.dial()
		clients = append(clients, c)
		first = append(first, c.ask("x", 5*time.Second))
	}
	ports := a.sources() + b.sources()

	next, err := proxy.NewPackets(proxy.PacketConfig{Cluster: w.cluster})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	conn := w.socket()
	if err = w.proxy.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		c.Write([]byte("y")) // nobody reads now
	}
	if got := w.proxy.Stats(); got.Open != 0 || got.MovedOut != 250 {
		t.Errorf("the predecessor: %+v", got)
	}
	served := make(chan error, 1)
	go func() { served <- next.ServePacket(conn) }()
	for i, c := range clients {
		if got := c.hear(5 * time.Second); got != first[i][:2]+"y" {
			t.Errorf("client %d: %q, and before %q", i, got, first[i])
		}
	}
	if got := next.Stats(); got.Open != 250 || got.MovedIn != 250 || got.Sessions != 0 {
		t.Errorf("the successor: %+v", got)
	}
	if now := a.sources() + b.sources(); now != ports {
		t.Errorf("nodes were asked from %d ports, and %d before", now, ports)
	}
	next.Close()
	if err := <-served; err != proxy.ErrClosed {
		t.Error(err)
	}
}

// socket is the socket in front, as a successor inherits it.
func (w *packetWorld) socket() net.PacketConn {
	w.Helper()
	fd := -1
	raw, _ := w.pc.(syscall.Conn).SyscallConn()
	raw.Control(func(own uintptr) { fd, _ = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	pc, err := net.FilePacketConn(f)
	if err != nil {
		w.Fatal(err)
	}
	return pc
}

// A9, V5: restarts under load. No datagram is lost, and none meets a generation that does
// not know its session: that would begin another, from another port.
func TestSessionsThroughRestarts(t *testing.T) {
	leak.Check(t)
	restarts, clients := 10, 32
	if soak {
		restarts, clients = 60, 500
	}
	a := newNode(t, "a", "127.0.0.1:0", "through restarts")
	addr, admin := startProgram(t, a.url())
	if dialAsker(t, addr).ask("through restarts", 10*time.Second) == "" {
		t.Fatal("the proxy does not answer")
	}
	var stop atomic.Bool
	var all sync.WaitGroup
	var sent, lost atomic.Int64
	for range clients {
		c := dialAsker(t, addr)
		all.Go(func() {
			n := c.stream(&stop, time.Duration(clients)*150*time.Microsecond) // together what two CPUs can do
			sent.Add(int64(n.sent))
			lost.Add(int64(n.sent - n.heard))
		})
	}
	for i := range restarts {
		time.Sleep(50 * time.Millisecond)
		r, err := restart.Restart(t.Context(), admin)
		if err != nil || !r.OK {
			t.Errorf("restart %d: %+v, %v", i, r, err)
		}
	}
	time.Sleep(50 * time.Millisecond)
	stop.Store(true)
	all.Wait()
	if lost.Load() > 0 || a.sources() != clients+1 {
		t.Errorf("%d of %d lost; %d sessions, want %d", lost.Load(), sent.Load(), a.sources(), clients+1)
	}
	t.Logf("%d restarts, %d datagrams there and back, %d lost", restarts, sent.Load(), lost.Load())
}

type streamed struct{ sent, heard int }

// stream sends a datagram now and then, whatever comes back, and counts what does.
func (a *asker) stream(stop *atomic.Bool, every time.Duration) (n streamed) {
	heard := make(chan int)
	go func() {
		seen := map[string]bool{}
		buf := make([]byte, 100)
		for {
			size, err := a.Read(buf)
			if err != nil {
				heard <- len(seen)
				return
			}
			seen[string(buf[:size])] = true
		}
	}()
	for !stop.Load() {
		if _, err := fmt.Fprintf(a, "through restarts %d", n.sent); err == nil {
			n.sent++
		}
		time.Sleep(every)
	}
	a.SetReadDeadline(time.Now().Add(2 * time.Second))
	n.heard = <-heard
	return n
}

// A move that fails, or has no time: who did not move is served here until it is quiet,
// but nothing is read in front any more.
func TestSessionsThatStay(t *testing.T) {
	for name, refuse := range map[string]func(n int) bool{
		"all are refused": func(int) bool { return true },
		"some are":        func(n int) bool { return n == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			a := newNode(t, "a", "127.0.0.1:0")
			w.start(proxy.PacketConfig{}, a)
			next := w.successor(proxy.PacketConfig{Cluster: w.cluster})
			var clients []*asker
			for range 150 {
				c := w.dial()
				c.ask("x", 5*time.Second)
				clients = append(clients, c)
			}
			conn, calls, moved := w.socket(), 0, 0
			take := handTo(t, next)
			err := w.proxy.HandOver(t.Context(), func(state []byte, conns ...syscall.Conn) error {
				if calls++; refuse(calls - 1) {
					return errors.New("no")
				}
				moved += len(conns)
				return take(state, conns...)
			})
			if err == nil || w.proxy.Stats().Open != 150-moved || int(w.proxy.Stats().MovedOut) != moved {
				t.Errorf("HandOver: %v, and %d moved: %+v", err, moved, w.proxy.Stats())
			}
			serveWith(t, next, conn)
			a.seen.Range(func(from, _ any) bool { // whoever has a session, its client is told
				a.pc.WriteToUDPAddrPort([]byte("news"), from.(netip.AddrPort))
				return true
			})
			for i, c := range clients {
				if got := c.hear(5 * time.Second); got != "news" {
					t.Fatalf("client %d: %q", i, got)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := w.proxy.Shutdown(ctx); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// A HandOver without time moves nobody, and returns.
func TestHandOverWithoutTime(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	w.start(proxy.PacketConfig{}, newNode(t, "a", "127.0.0.1:0"))
	for range 250 {
		w.dial().ask("x", 5*time.Second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.proxy.HandOver(ctx, func([]byte, ...syscall.Conn) error { t.Error("something is sent"); return nil }); err == nil {
		t.Error("no error")
	}
	if s := w.proxy.Stats(); s.Open != 250 || s.MovedOut != 0 {
		t.Errorf("%+v", s)
	}
}

// Who comes while the sessions move is no successor's loss, and Close waits for the move.
func TestCloseWhileMoving(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{}, a)
	next := w.successor(proxy.PacketConfig{Cluster: w.cluster})
	for range 250 {
		w.dial().ask("x", 5*time.Second)
	}
	_, stop := w.busy(4)
	take := handTo(t, next)
	var closing sync.WaitGroup
	once := sync.OnceFunc(func() { closing.Go(func() { w.proxy.Close() }) })
	err := w.proxy.HandOver(t.Context(), func(state []byte, conns ...syscall.Conn) error {
		once()
		time.Sleep(10 * time.Millisecond)
		return take(state, conns...)
	})
	closing.Wait()
	stop()
	if s := w.proxy.Stats(); err != nil || s.Open != 0 || s.Ends[proxy.Cut] != 0 {
		t.Errorf("%v: %+v", err, s)
	}
	if s := next.Stats(); s.Open < 250 {
		t.Errorf("%+v", s)
	}
}

// Who closes the socket in front while sessions move takes none out of the books.
func TestSocketClosedWhileSessionsMove(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	c := w.clusterOf(holdfast.Config{}, a.url())
	p, next := w.successor(proxy.PacketConfig{Cluster: c}), w.successor(proxy.PacketConfig{Cluster: c})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.ServePacket(pc) }()
	for range 150 {
		dialAsker(t, pc.LocalAddr().String()).ask("x", 5*time.Second)
	}
	take := handTo(t, next)
	p.HandOver(t.Context(), func(state []byte, conns ...syscall.Conn) error {
		pc.Close()
		time.Sleep(1500 * time.Millisecond) // it finds out after a second
		return take(state, conns...)
	})
	if err := <-served; !errors.Is(err, net.ErrClosed) {
		t.Errorf("ServePacket: %v", err)
	}
	if s := p.Stats(); s.Open != 0 || s.MovedOut == 0 || s.MovedOut+s.Ends[proxy.Cut] != 150 {
		t.Errorf("%+v", s)
	}
	next.Close()
	if n := c.Stats().Nodes[0].InFlight; n != 0 {
		t.Errorf("%d leases are left", n)
	}
}

// Sessions for an address that is never served end when they are idle.
func TestSessionsOfNoAddress(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	w.start(proxy.PacketConfig{}, newNode(t, "a", "127.0.0.1:0"))
	for range 3 {
		w.dial().ask("x", 5*time.Second)
	}
	next := w.successor(proxy.PacketConfig{Cluster: w.cluster, Idle: 300 * time.Millisecond})
	if err := w.proxy.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they end", func() bool { s := next.Stats(); return s.Ends[proxy.Idle] == 3 && s.Open == 0 })
	eventually(t, "no lease is left", func() bool { return w.cluster.Stats().Nodes[0].InFlight == 0 })
}

// What a node says in a session that has moved is no sample of how fast it answers, if it
// answers nothing.
func TestRepliesAfterTheMoveAreNoSamples(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{}, a)
	client := w.dial()
	client.ask("x", 5*time.Second)
	c := w.clusterOf(holdfast.Config{}, "tcp://"+a.pc.LocalAddr().String(), a.url())
	next := w.successor(proxy.PacketConfig{Cluster: c})
	conn := w.socket()
	if err := w.proxy.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	serveWith(t, next, conn)
	time.Sleep(100 * time.Millisecond)
	a.seen.Range(func(from, _ any) bool {
		a.pc.WriteToUDPAddrPort([]byte("news"), from.(netip.AddrPort))
		return true
	})
	if got := client.hear(5 * time.Second); got != "news" {
		t.Errorf("%q", got)
	}
	for _, n := range c.Stats().Nodes {
		if n.Latency != 0 || n.InFlight == 1 != strings.HasPrefix(n.Endpoint, "udp:") {
			t.Errorf("%+v", n)
		}
	}
}

// A session whose node the successor does not know hears of it still, and goes on at
// another with the next datagram.
func TestSessionsOfAnUnknownNode(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
	w.start(proxy.PacketConfig{}, a)
	client := w.dial()
	client.ask("x", 5*time.Second)
	next := w.successor(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, b.url())})
	conn := w.socket()
	if err := w.proxy.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Fatal(err)
	}
	serveWith(t, next, conn)
	a.seen.Range(func(from, _ any) bool {
		a.pc.WriteToUDPAddrPort([]byte("late"), from.(netip.AddrPort))
		return true
	})
	if got := client.hear(5 * time.Second); got != "late" {
		t.Errorf("%q", got)
	}
	if got := client.ask("y", 5*time.Second); got != "b:y" {
		t.Errorf("%q", got)
	}
	if s := next.Stats(); s.Open != 1 || s.Sessions != 0 {
		t.Errorf("%+v", s)
	}
}

// Descriptors that are no sockets, and records that are none, are refused or end.
func TestTakeOverOfNonsense(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	w.start(proxy.PacketConfig{}, newNode(t, "a", "127.0.0.1:0"))
	state := w.record()
	next := w.successor(proxy.PacketConfig{Cluster: w.cluster})
	if next.TakeOver(nil, nil) == nil || next.TakeOver(state, nil) == nil || next.TakeOver(state[:len(state)-1], []int{0}) == nil {
		t.Error("it is taken")
	}
	conn := w.socket()
	serveWith(t, next, conn)
	file, err := unix.Open(os.Args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.TakeOver(state, []int{file}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool { s := next.Stats(); return s.MovedIn == 1 && s.Open == 0 })
}

// A successor that fails changes nothing for anybody.
func TestRestartThatFails(t *testing.T) {
	leak.Check(t)
	a := newNode(t, "a", "127.0.0.1:0")
	addr, admin := startProgram(t, a.url())
	client := dialAsker(t, addr)
	if client.ask("x", 10*time.Second) != "a:x" {
		t.Fatal("the proxy does not answer")
	}
	if err := os.WriteFile(admin+failing, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r, err := restart.Restart(t.Context(), admin); err == nil && r.OK {
			t.Error("it succeeded")
		}
		if client.ask("y", 5*time.Second) != "a:y" || dialAsker(t, addr).ask("z", 5*time.Second) != "a:z" {
			t.Error("the proxy does not answer any more")
		}
	}
	os.Remove(admin + failing)
	if r, err := restart.Restart(t.Context(), admin); err != nil || !r.OK {
		t.Errorf("%+v, %v", r, err)
	}
	if client.ask("y", 5*time.Second) != "a:y" || a.sources() != 3 {
		t.Errorf("it was asked from %d ports", a.sources())
	}
}
