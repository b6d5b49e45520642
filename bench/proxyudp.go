package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/mmsg"
	"github.com/holdfast-net/holdfast/proxy"
	"golang.org/x/sys/unix"
)

// udpRows are the loads of datagrams: each socket of the clients is a session, with four
// datagrams of 100 bytes under way. HAProxy has no datagrams.
func udpRows() (rows []proxyRow) {
	for _, conns := range []int{64, 1000} {
		rows = append(rows, proxyRow{name: fmt.Sprintf("proxy: UDP round trip 100 B, %s sessions", thousands(conns)), unit: "message",
			task:  task{Kind: "udp", Conns: conns, Size: 100, Warm: 200 * time.Millisecond, For: 400 * time.Millisecond},
			peers: []setting{nginx16}, at: pinned, cpuBar: 0.8})
	}
	return rows
}

func newPackets() (*proxy.Packets, error) {
	backends, err := holdfast.New(holdfast.Static("udp://"+os.Getenv("BACKEND")), holdfast.Config{})
	if err != nil {
		return nil, err
	}
	cfg := proxy.PacketConfig{Cluster: backends}
	cfg.Limits.MaxPerIP = -1 // all clients are here
	return proxy.NewPackets(cfg)
}

// servePackets is ours for datagrams, in the background of beProxy, at the same address.
func servePackets(addr string) error {
	p, err := newPackets()
	if err != nil {
		return err
	}
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	go p.ServePacket(pc) // ends with the process
	return nil
}

// packetEcho sends back what comes to the backend as a datagram, and where from.
type packetEcho struct {
	conn *mmsg.Conn
	in   []mmsg.Message
	out  []mmsg.Message
}

func newPacketEcho(addr net.Addr) (e *packetEcho, fd int, err error) {
	pc, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		return nil, 0, err
	}
	udp := pc.(*net.UDPConn)
	udp.SetReadBuffer(4 << 20)
	udp.SetWriteBuffer(4 << 20)
	e = &packetEcho{conn: mmsg.New(udp, mmsg.Options{NoGSO: true}), in: make([]mmsg.Message, 64)}
	for i := range e.in {
		e.in[i].Buf = make([]byte, 2048)
	}
	raw, err := udp.SyscallConn()
	if err == nil {
		raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	}
	return e, fd, err
}

func (e *packetEcho) turn() {
	n, err := e.conn.Poll(e.in)
	if err != nil || n == 0 {
		return
	}
	e.out = e.out[:0]
	for _, m := range e.in[:n] {
		m.Buf = m.Buf[:m.N]
		binary.LittleEndian.PutUint16(m.Buf[max(m.N-2, 0):], m.Peer.Port()) // so that who asks knows its session
		e.out = append(e.out, m)
	}
	e.conn.Send(e.out)
}

// underWay is how many datagrams of a client are.
const underWay = 4

// udpSocket is one of the clients.
type udpSocket struct {
	fd    int
	seq   uint64
	from  uint16 // the port that the backend is asked from
	slots [underWay]struct {
		seq  uint64 // 0 is none
		sent time.Time
	}
}

type udpLoop struct {
	*poller
	*window
	socks []udpSocket
	msg   []byte
	buf   []byte
}

func udpLoad(t task, r *result) error {
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	to, err := rawAddr(t.Addr)
	if err != nil {
		return err
	}
	l := &udpLoop{poller: p, window: newWindow(t, r), msg: bytes.Clone(pattern[1 : 1+t.Size]), buf: make([]byte, 64<<10)}
	l.socks = make([]udpSocket, t.Conns)
	defer func() {
		for i := range l.socks {
			unix.Close(l.socks[i].fd)
		}
	}()
	for i := range l.socks {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			l.socks[i].fd = fd
			err = unix.Connect(fd, to)
		}
		if err != nil {
			return err
		}
		l.add(fd, unix.EPOLLIN, int32(i))
	}
	l.run()
	return nil
}

func (l *udpLoop) run() {
	now := time.Now()
	for i := range l.socks {
		for k := 0; k < underWay && l.Rate == 0; k++ {
			l.send(i, now)
		}
	}
	l.window.run(now, l.poller, l.read, func(nth int, due time.Time) { l.send(nth%len(l.socks), due) }, l.outstanding)
}

func (l *udpLoop) outstanding() (n int) {
	for i := range l.socks {
		for _, s := range l.socks[i].slots {
			if s.seq != 0 {
				n++
			}
		}
	}
	return n
}

func (l *udpLoop) send(i int, now time.Time) {
	c := &l.socks[i]
	c.seq++
	slot := &c.slots[c.seq%underWay]
	switch {
	case slot.seq != 0 && l.Rate == 0:
		return // of the four one is lost
	case slot.seq != 0:
		l.fail(errors.New("a datagram is lost"))
	}
	slot.seq, slot.sent = c.seq, now
	l.address(i, c.seq)
	if n, e := rawWrite(c.fd, l.msg); e != 0 || n < len(l.msg) {
		l.fail(fmt.Errorf("write: %d bytes, %v", n, e))
	}
}

func (l *udpLoop) address(i int, seq uint64) {
	binary.LittleEndian.PutUint64(l.msg, seq)
	binary.LittleEndian.PutUint32(l.msg[8:], uint32(i))
}

func (l *udpLoop) read(i int) {
	c := &l.socks[i]
	n, e := rawRead(c.fd, l.buf)
	if e == unix.EAGAIN {
		return
	}
	if e != 0 || n != len(l.msg) {
		l.fail(fmt.Errorf("read: %d bytes, %v", n, e))
		return
	}
	seq := binary.LittleEndian.Uint64(l.buf)
	slot := &c.slots[seq%underWay]
	l.address(i, seq)
	if slot.seq != seq || !bytes.Equal(l.buf[:n-2], l.msg[:n-2]) {
		l.fail(errors.New("a wrong answer"))
		return
	}
	from := binary.LittleEndian.Uint16(l.buf[n-2:])
	if c.from != 0 && c.from != from {
		l.Anew++
	}
	c.from = from
	now := time.Now()
	l.count(1, now.Sub(slot.sent))
	slot.seq = 0
	if !l.stop && l.Rate == 0 {
		l.send(i, now)
	}
}
