package simnet

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	maxDatagram   = 65507     // what fits in an IPv4 packet beside two headers
	receiveBuffer = 208 << 10 // Linux's net.core.rmem_default
)

// A PacketConn is a datagram socket: a [net.PacketConn] from [Net.ListenPacket]
// or a [net.Conn] from [Host.DialContext], and always both, like a
// *net.UDPConn. All methods may be called concurrently. The user closes it.
type PacketConn struct {
	net       *Net
	host      *Host
	at, peer  place // peer is set when connected
	connected bool

	changed sync.Cond
	rd, wd  deadline
	queue   []datagram
	size    int // bytes in queue
	limit   int
	dice    map[place]*rand.Rand // by destination
	failure syscall.Errno        // the answer to an earlier datagram, for the next call
	closed  bool
}

type datagram struct {
	from place
	data []byte
}

func (n *Net) newPacketConn(h *Host, at, peer place) *PacketConn {
	p := &PacketConn{net: n, host: h, at: at, peer: peer, connected: peer != place{},
		limit: receiveBuffer, dice: map[place]*rand.Rand{}}
	p.changed.L = &n.mu
	n.packets[at] = p
	return p
}

// ReadFrom reads the next datagram; what does not fit in b is gone.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	d, err := p.next()
	if err != nil {
		return 0, nil, err
	}
	return copy(b, d.data), d.from.addr(), nil
}

// Read is ReadFrom without the sender.
func (p *PacketConn) Read(b []byte) (int, error) {
	d, err := p.next()
	return copy(b, d.data), err
}

func (p *PacketConn) next() (datagram, error) {
	p.net.lock()
	defer p.net.unlock()
	d, err := try(p.net, &p.changed, p.receive)
	return d, p.error("read", err)
}

func (p *PacketConn) receive() (datagram, error) {
	if err := p.ready(&p.rd); err != nil {
		return datagram{}, err
	}
	if len(p.queue) == 0 {
		return datagram{}, syscall.EAGAIN
	}
	d := p.queue[0]
	p.queue = p.queue[1:]
	p.size -= len(d.data)
	return d, nil
}

// ready is what a call finds before it does anything.
func (p *PacketConn) ready(d *deadline) error {
	failure := p.failure
	switch {
	case p.closed:
		return net.ErrClosed
	case p.host.frozen:
		return syscall.EAGAIN
	case d.passed(p.net):
		return os.ErrDeadlineExceeded
	case failure != 0:
		p.failure = 0
		return failure
	}
	return nil
}

// WriteTo sends b to a [*net.UDPAddr]. It fails on a connected socket.
func (p *PacketConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	u, ok := addr.(*net.UDPAddr)
	switch {
	case p.connected:
		return 0, p.error("write", net.ErrWriteToConnected)
	case !ok:
		return 0, p.error("write", syscall.EINVAL)
	}
	ap := u.AddrPort()
	return p.write(b, place{proto: "udp", ap: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())})
}

// Write sends b to the address that was dialed.
func (p *PacketConn) Write(b []byte) (int, error) {
	if !p.connected {
		return 0, p.error("write", syscall.EDESTADDRREQ)
	}
	return p.write(b, p.peer)
}

func (p *PacketConn) write(b []byte, to place) (int, error) {
	p.net.lock()
	defer p.net.unlock()
	n, err := try(p.net, &p.changed, func() (int, error) {
		if err := p.ready(&p.wd); err != nil {
			return 0, err
		}
		if len(b) > maxDatagram {
			return 0, syscall.EMSGSIZE
		}
		p.send(slices.Clone(b), to)
		return len(b), nil
	})
	return n, p.error("write", err)
}

// send puts a datagram on its way, or two.
func (p *PacketConn) send(data []byte, to place) {
	n, dst := p.net, p.net.host(to.host())
	rng := p.dice[to]
	if rng == nil {
		rng = n.dice(p.at, to)
		p.dice[to] = rng
	}
	n.stats.Datagrams++
	arrive := func() { p.arrive(data, to, dst, rng) }
	n.carry(p.host, dst, len(data), rng, arrive)
	if chance(rng, n.link(p.host, dst).Duplicate) {
		n.carry(p.host, dst, len(data), rng, arrive)
	}
}

// arrive is a datagram of p's at its destination.
func (p *PacketConn) arrive(data []byte, to place, dst *Host, rng *rand.Rand) {
	n, q := p.net, p.net.packets[to]
	answer := n.link(p.host, dst).Reject
	if answer == 0 && (q == nil || q.connected && q.peer != p.at) {
		answer = syscall.ECONNREFUSED
	}
	switch {
	case answer != 0:
		n.carry(dst, p.host, 0, rng, func() { p.bounce(answer) })
	case q.size+len(data) > q.limit:
		n.stats.Lost++
	default:
		q.queue = append(q.queue, datagram{p.at, data})
		q.size += len(data)
		q.changed.Broadcast()
	}
}

// bounce is the ICMP answer; only a connected socket hears it.
func (p *PacketConn) bounce(with syscall.Errno) {
	if p.connected && !p.closed {
		p.failure = with
		p.changed.Broadcast()
	}
}

// Close closes the socket; what it has sent is on its way.
func (p *PacketConn) Close() error {
	p.net.lock()
	defer p.net.unlock()
	if p.closed {
		return p.error("close", net.ErrClosed)
	}
	p.shut()
	return nil
}

func (p *PacketConn) shut() {
	p.closed = true
	p.rd.set(p.net, time.Time{}, &p.changed)
	p.wd.set(p.net, time.Time{}, &p.changed)
	delete(p.net.packets, p.at)
	if p.connected {
		delete(p.host.ports, p.at.ap.Port())
	}
	p.changed.Broadcast()
}

// LocalAddr returns a [*net.UDPAddr].
func (p *PacketConn) LocalAddr() net.Addr { return p.at.addr() }

// RemoteAddr returns a [*net.UDPAddr], nil unless connected.
func (p *PacketConn) RemoteAddr() net.Addr { return p.peer.addr() }

// SetDeadline sets both deadlines.
func (p *PacketConn) SetDeadline(t time.Time) error { return p.setDeadline(t, &p.rd, &p.wd) }

// SetReadDeadline sets when reads give up with [os.ErrDeadlineExceeded].
func (p *PacketConn) SetReadDeadline(t time.Time) error { return p.setDeadline(t, &p.rd) }

// SetWriteDeadline does so for writes, which wait only on a frozen host.
func (p *PacketConn) SetWriteDeadline(t time.Time) error { return p.setDeadline(t, &p.wd) }

func (p *PacketConn) setDeadline(t time.Time, which ...*deadline) error {
	p.net.lock()
	defer p.net.unlock()
	if p.closed {
		return p.error("set", net.ErrClosed)
	}
	for _, d := range which {
		d.set(p.net, t, &p.changed)
	}
	return nil
}

// SetReadBuffer bounds the bytes that wait to be read; what more arrives is lost.
func (p *PacketConn) SetReadBuffer(bytes int) error {
	p.net.lock()
	defer p.net.unlock()
	p.limit = max(bytes, 1)
	return nil
}

func (p *PacketConn) error(op string, err error) error {
	return ioError(op, p.at, p.peer, err)
}
