package proxy_test

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
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
