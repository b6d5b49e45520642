// Package mmsg receives and sends datagrams in batches, without an allocation for each,
// and knows which local address each was sent to.
//
//	c := mmsg.New(pc, mmsg.Options{})
//	in := make([]mmsg.Message, c.Batch(64))
//	for i := range in {
//		in[i].Buf = make([]byte, 2048)
//	}
//	n, err := c.Receive(in) // waits for the first, and takes what else is there
//	…
//	failed, err := c.Send(out)
//
// On Linux a *net.UDPConn is read with recvmmsg and written with sendmmsg, parked in the
// runtime's poller like any other: deadlines and Close work. Neighbours in Send that go
// to one peer and are of one size, the last perhaps shorter, leave as one (UDP_SEGMENT):
// the way through the kernel is paid once for up to 64 of them. What a device refuses to
// cut up leaves one by one, and its destination is remembered.
//
// Everywhere else, and for any other net.PacketConn, a batch is one datagram.
//
// A socket that is bound to no address in particular has many. Message.Local says which
// one was asked (IP_PKTINFO), and sending with it replies from there: a client drops a
// reply that comes from elsewhere (RFC 2181 §4.1). It is known on Linux only.
package mmsg

import (
	"errors"
	"net"
	"net/netip"
)

// Message is a datagram.
type Message struct {
	Buf  []byte         // to receive into, or all of it to send
	N    int            // bytes received
	Peer netip.AddrPort // v4 is v4, in whatever form it came; not looked at by a connected socket
	Addr net.Addr       // the peer, of a PacketConn that is no *net.UDPConn

	// Local is the address it was sent to, or is to be sent from; the zero Addr is
	// unknown, or the system's choice.
	Local netip.Addr

	// Segment is the size of each datagram in Buf[:N], when several came as one; the
	// last may be shorter. 0 is one. Only with Options.GRO.
	Segment int

	// Truncated says that the datagram was longer than Buf. Where the system does not
	// tell, one that fills Buf counts: it should be a byte larger than what is expected.
	Truncated bool
}

// Options of a Conn. The zero value sends runs as one, and receives one by one.
type Options struct {
	NoGSO bool
	GRO   bool // receive runs as one: every Buf needs 64 KiB

	// Loop is for a goroutine that is busy with system calls: its own short ones are not
	// told to the runtime, which takes it for stuck and its processor away.
	Loop bool
}

// Conn is one user of a packet socket. One goroutine may receive while another sends;
// more need a Conn each, and any number of those share a socket. It holds no resources.
type Conn struct {
	pc        net.PacketConn
	udp       *net.UDPConn // nil if it is another
	connected bool
	batch     *batch // nil where there are none
}

// New sets up the socket for what o says. What a system cannot do is left out.
func New(pc net.PacketConn, o Options) *Conn {
	c := &Conn{pc: pc}
	if c.udp, _ = pc.(*net.UDPConn); c.udp != nil {
		c.connected = c.udp.RemoteAddr() != nil
		c.batch = newBatch(c.udp, c.connected, o)
	}
	return c
}

// Batch is how many datagrams a Receive of up to n may give.
func (c *Conn) Batch(n int) int {
	if c.batch == nil {
		return 1
	}
	return n
}

// Receive waits for a datagram and takes with it, into ms, those that have arrived too.
func (c *Conn) Receive(ms []Message) (int, error) {
	if c.batch != nil {
		return c.batch.receive(ms)
	}
	if err := c.receiveOne(&ms[0]); err != nil {
		return 0, err
	}
	return 1, nil
}

// Send sends all of them. It returns how many could not be sent, and why the first of
// these; only a deadline or Close makes it give up before the last.
func (c *Conn) Send(ms []Message) (failed int, err error) {
	if c.batch != nil {
		return c.batch.send(ms)
	}
	for i := range ms {
		if e := c.sendOne(&ms[i]); e != nil {
			failed++
			if err == nil {
				err = e
			}
		}
	}
	return failed, err
}

// Poll is a Receive that does not wait: 0 is that nothing has arrived. It is for those
// who watch the socket by other means, and can only if Polls says so.
func (c *Conn) Poll(ms []Message) (int, error) {
	if c.batch == nil {
		return 0, errors.ErrUnsupported
	}
	return c.batch.poll(ms)
}

// Polls reports whether there is a Poll: on Linux, of a *net.UDPConn.
func (c *Conn) Polls() bool { return c.batch != nil }

func (c *Conn) receiveOne(m *Message) (err error) {
	m.Peer, m.Addr, m.Local, m.Segment = netip.AddrPort{}, nil, netip.Addr{}, 0
	if c.udp != nil {
		m.N, _, _, m.Peer, err = c.udp.ReadMsgUDPAddrPort(m.Buf, nil)
	} else if m.N, m.Addr, err = c.pc.ReadFrom(m.Buf); err == nil {
		if u, ok := m.Addr.(*net.UDPAddr); ok {
			m.Peer = u.AddrPort()
		}
	}
	m.Peer = netip.AddrPortFrom(m.Peer.Addr().Unmap(), m.Peer.Port())
	m.Truncated = m.N == len(m.Buf)
	return err
}

func (c *Conn) sendOne(m *Message) (err error) {
	switch {
	case c.connected:
		_, err = c.udp.Write(m.Buf)
	case c.udp != nil:
		_, err = c.udp.WriteToUDPAddrPort(m.Buf, m.Peer)
	case m.Addr != nil:
		_, err = c.pc.WriteTo(m.Buf, m.Addr)
	default:
		_, err = c.pc.WriteTo(m.Buf, net.UDPAddrFromAddrPort(m.Peer))
	}
	return err
}
