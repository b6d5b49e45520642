package simnet

import (
	"context"
	"net"
	"syscall"
	"time"
)

const synRetries = 6 // Linux's tcp_syn_retries: ETIMEDOUT after 127 s

// DialContext connects from the host as a [net.Dialer] would. On tcp, tcp4,
// tcp6 and unix it gives a [*Conn] after one round trip, on udp, udp4 and udp6
// a connected [*PacketConn] at once. The local port is the next free one.
func (h *Host) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	to, err := parse(network, addr)
	if err != nil {
		return nil, dialError(network, to, err)
	}
	n := h.net
	n.lock()
	defer n.unlock()
	if err = ctx.Err(); err != nil {
		return nil, dialError(network, to, err)
	}
	if n.closed {
		return nil, dialError(network, to, net.ErrClosed)
	}
	at, err := h.local(to.proto)
	if err != nil {
		return nil, dialError(network, to, err)
	}
	if to.proto == "udp" {
		return n.newPacketConn(h, at, to), nil
	}
	c, err := h.connect(ctx, at, to)
	if err != nil {
		return nil, dialError(network, to, err)
	}
	return c, nil
}

func (h *Host) connect(ctx context.Context, at, to place) (*Conn, error) {
	n := h.net
	c := n.newConn(h, at, to)
	c.dialed = true
	d := &dial{conn: c, server: n.host(to.host())}
	defer context.AfterFunc(ctx, d.wake)() // poll looks at ctx itself
	_, err := try(n, &c.changed, func() (struct{}, error) { return struct{}{}, d.poll(ctx) })
	n.cancel(d.again)
	if err != nil {
		c.reset()
		return nil, err
	}
	return c, nil
}

// A dial is a handshake in progress, seen from the client.
type dial struct {
	conn   *Conn
	server *Host
	tries  int           // SYNs sent
	again  *event        // the next one
	err    syscall.Errno // the answer, if it is no
}

func (d *dial) wake() {
	d.conn.net.lock()
	defer d.conn.net.unlock()
	d.conn.changed.Broadcast()
}

func (d *dial) poll(ctx context.Context) error {
	c := d.conn
	switch {
	case c.closed:
		return net.ErrClosed
	case c.host.frozen:
		return syscall.EAGAIN
	case c.established:
		return nil
	case d.err != 0:
		return d.err
	case c.severed: // the RST has overtaken a lost SYN-ACK
		return syscall.ECONNREFUSED
	case ctx.Err() != nil:
		return ctx.Err()
	case d.tries == 0:
		c.net.stats.Dials++
		d.syn()
	}
	return syscall.EAGAIN
}

// syn sends the SYN and arranges for the next one.
func (d *dial) syn() {
	c := d.conn
	if d.tries > synRetries {
		d.fail(syscall.ETIMEDOUT)
		return
	}
	d.again = c.net.at(c.net.clock.now.Add(time.Second<<d.tries), d.syn)
	d.tries++
	c.net.carry(c.host, d.server, 0, c.in.rng, d.arrive)
}

// arrive is the SYN at the server, which answers or, its backlog full, drops it.
func (d *dial) arrive() {
	c, n := d.conn, d.conn.net
	reject := n.link(c.host, d.server).Reject
	l := n.listeners[c.remote]
	switch {
	case c.closed || c.established || d.err != 0:
		// a duplicate, or a dial given up
	case reject != 0:
		d.refuse(reject)
	case c.peer != nil && !c.peer.closed:
		d.accept() // our answer was lost
	case l == nil && c.remote.proto == "unix":
		d.refuse(syscall.ENOENT)
	case l == nil:
		d.refuse(syscall.ECONNREFUSED)
	case l.admit(c):
		d.accept()
	default:
		n.stats.Lost++
	}
}

// accept answers with a SYN-ACK. The ACK for it goes before all data in the
// stream; the server's end enters the accept queue when it arrives.
func (d *dial) accept() {
	d.answer(func() {
		d.conn.established = true
		d.conn.out().send(ack, nil)
		d.conn.changed.Broadcast()
	})
}

func (d *dial) refuse(with syscall.Errno) {
	d.answer(func() {
		d.conn.net.stats.Refused++
		d.fail(with)
	})
}

// answer carries the server's reply back, to be heard once.
func (d *dial) answer(heard func()) {
	c := d.conn
	c.net.carry(d.server, c.host, 0, c.in.rng, func() {
		if !c.closed && !c.established && d.err == 0 {
			heard()
		}
	})
}

func (d *dial) fail(with syscall.Errno) {
	d.err = with
	d.conn.changed.Broadcast()
}
