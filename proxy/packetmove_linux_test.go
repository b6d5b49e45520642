package proxy_test

import (
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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
	a := newNode(t, "a", "127.0.0.1:0")
	addr, admin := startProgram(t, a.url())
	if dialAsker(t, addr).ask("x", 10*time.Second) == "" {
		t.Fatal("the proxy does not answer")
	}
	var stop atomic.Bool
	var all sync.WaitGroup
	var sent, lost atomic.Int64
	for range clients {
		c := dialAsker(t, addr)
		all.Go(func() {
			n := c.stream(&stop)
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

// stream sends a datagram each few milliseconds, whatever comes back, and counts what does.
func (a *asker) stream(stop *atomic.Bool) (n streamed) {
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
		if _, err := fmt.Fprintf(a, "%d", n.sent); err == nil {
			n.sent++
		}
		time.Sleep(5 * time.Millisecond)
	}
	a.SetReadDeadline(time.Now().Add(2 * time.Second))
	n.heard = <-heard
	return n
}
