package simnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A Conn is one end of a stream, from [Host.DialContext] or [Listener.Accept].
// It is a [net.Conn] with a *net.TCPConn's CloseWrite and buffer sizes, and
// with the faults of one stream: Reset, CutAfter, ResetAfter. All methods may
// be called concurrently; concurrent writes do not mix. The user closes it.
type Conn struct {
	net           *Net
	host          *Host
	id            uint64
	local, remote place
	listener      *Listener // server's end: where it came in, until accepted

	changed sync.Cond // signalled by whatever may let a waiting call go on
	peer    *Conn     // nil until the SYN has got through
	in      pipe      // from peer
	rd, wd  deadline
	writing bool // a Write is under way, perhaps parked half-way

	dialed      bool
	established bool // the handshake has ended, seen from this end
	closed      bool
	eof         bool // peer's FIN has arrived
	severed     bool // a RST has ended it
	rerr, werr  syscall.Errno

	ending kind // what follows budget more written bytes: fin, rst or none
	budget int
}

var errUnread = errors.New("simnet: unread bytes")

func (n *Net) newConn(h *Host, local, remote place) *Conn {
	n.conns++
	c := &Conn{net: n, host: h, id: n.conns, local: local, remote: remote}
	c.changed.L = &n.mu
	c.in = pipe{dst: c, rng: n.dice(remote, local), limit: bound(n.Buffer, defaultBuffer)}
	h.conns[c] = true
	return c
}

// pair makes c and s the two ends of one stream.
func (c *Conn) pair(s *Conn) {
	c.peer, s.peer = s, c
	c.in.src, s.in.src = s, c
}

// Read reads what has arrived, waiting for the first byte. After the peer's
// FIN it returns [io.EOF], after its RST ECONNRESET, in either case behind
// the bytes that came first.
func (c *Conn) Read(b []byte) (int, error) {
	c.net.lock()
	defer c.net.unlock()
	n, err := try(c.net, &c.changed, func() (int, error) { return c.read(b) })
	return n, ioError("read", c.local, c.remote, err)
}

func (c *Conn) read(b []byte) (int, error) {
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case c.host.frozen:
		return 0, syscall.EAGAIN
	case c.rd.passed(c.net):
		return 0, os.ErrDeadlineExceeded
	case len(b) == 0:
		return 0, nil
	case len(c.in.buf) > 0:
		return c.in.read(b), nil
	case c.eof:
		return 0, io.EOF
	case c.rerr != 0:
		return 0, c.rerr
	}
	return 0, syscall.EAGAIN
}

// Write returns when all of b is in the buffer of its direction, or with the
// number of bytes that are and the reason.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.net.lock()
	defer c.net.unlock()
	for c.writing {
		c.net.park(&c.changed)
	}
	c.writing = true
	for err == nil {
		var m int
		m, err = try(c.net, &c.changed, func() (int, error) { return c.write(b[n:]) })
		if n += m; n == len(b) {
			break
		}
	}
	c.writing = false
	c.changed.Broadcast()
	return n, ioError("write", c.local, c.remote, err)
}

func (c *Conn) write(b []byte) (int, error) {
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case c.host.frozen:
		return 0, syscall.EAGAIN
	case c.wd.passed(c.net):
		return 0, os.ErrDeadlineExceeded
	case c.werr != 0:
		return 0, c.werr
	case len(b) == 0:
		return 0, nil
	}
	room, err := c.out().room(len(b))
	if err != nil {
		return 0, err
	}
	if c.ending != none {
		room = min(room, c.budget)
	}
	c.out().write(b[:room])
	c.net.stats.Bytes += int64(room)
	c.spend(room)
	return room, nil
}

// Close sends a FIN behind what was written, or a RST if received bytes are
// unread. Calls under way return [net.ErrClosed], as does a second Close.
func (c *Conn) Close() error {
	c.net.lock()
	defer c.net.unlock()
	if c.closed {
		return ioError("close", c.local, c.remote, net.ErrClosed)
	}
	unread := len(c.in.buf) > 0
	c.shut()
	switch {
	case c.severed:
	case unread:
		c.out().send(rst, nil)
	case c.werr == 0:
		c.out().send(fin, nil)
	}
	return nil
}

// CloseWrite sends a FIN behind what was written; reading goes on.
func (c *Conn) CloseWrite() error {
	c.net.lock()
	defer c.net.unlock()
	var err error
	switch {
	case c.closed:
		err = net.ErrClosed
	case c.severed:
		err = syscallError("shutdown", syscall.ENOTCONN)
	case c.werr == 0:
		c.finish(fin)
	}
	return ioError("close", c.local, c.remote, err)
}

// Reset closes c with a RST, as SO_LINGER 0 or a crash does: what c has
// written is dropped unless it has arrived, and the peer fails with ECONNRESET
// one latency later.
func (c *Conn) Reset() {
	c.net.lock()
	defer c.net.unlock()
	c.reset()
}

// CutAfter ends c's outgoing direction after n more bytes: the peer reads
// these and then [io.EOF], further writes on c fail with EPIPE.
func (c *Conn) CutAfter(n int) { c.endAfter(n, fin) }

// ResetAfter resets the stream after n more bytes written on c, as if by
// something in between: the peer reads these and then fails with ECONNRESET;
// c fails so at once.
func (c *Conn) ResetAfter(n int) { c.endAfter(n, rst) }

func (c *Conn) endAfter(n int, with kind) {
	c.net.lock()
	defer c.net.unlock()
	if c.closed || c.werr != 0 {
		return
	}
	c.ending, c.budget = with, n
	c.spend(0)
}

// Alive tells without waiting what a poll of the socket would: nil when it is
// idle and healthy, [io.EOF] when the peer has closed, ECONNRESET after a RST,
// and an error when bytes wait to be read.
func (c *Conn) Alive() error {
	c.net.lock()
	defer c.net.unlock()
	var err error
	switch {
	case c.closed:
		err = net.ErrClosed
	case len(c.in.buf) > 0:
		err = errUnread
	case c.eof:
		err = io.EOF
	case c.rerr != 0:
		err = c.rerr
	}
	return ioError("read", c.local, c.remote, err)
}

// Peer returns the other end, for faults of the incoming direction:
// c.Peer().ResetAfter(10) cuts what c receives.
func (c *Conn) Peer() *Conn { return c.peer }

// LocalAddr returns a [*net.TCPAddr] or [*net.UnixAddr].
func (c *Conn) LocalAddr() net.Addr { return c.local.addr() }

// RemoteAddr returns a [*net.TCPAddr] or [*net.UnixAddr].
func (c *Conn) RemoteAddr() net.Addr { return c.remote.addr() }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error { return c.setDeadline(t, &c.rd, &c.wd) }

// SetReadDeadline sets when reads, also one under way, give up with
// [os.ErrDeadlineExceeded]; the zero time means never.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(t, &c.rd) }

// SetWriteDeadline is SetReadDeadline for writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(t, &c.wd) }

func (c *Conn) setDeadline(t time.Time, which ...*deadline) error {
	c.net.lock()
	defer c.net.unlock()
	if c.closed {
		return ioError("set", c.local, place{}, net.ErrClosed)
	}
	for _, d := range which {
		d.set(c.net, t, &c.changed)
	}
	return nil
}

// SetReadBuffer bounds the incoming direction: what the peer has sent, under
// way or arrived, and c has not read. It never drops what is there already.
func (c *Conn) SetReadBuffer(bytes int) error { return c.setBuffer(&c.in, bytes) }

// SetWriteBuffer bounds the outgoing direction; it is the peer's
// SetReadBuffer, for a direction has one buffer.
func (c *Conn) SetWriteBuffer(bytes int) error { return c.setBuffer(c.out(), bytes) }

func (c *Conn) setBuffer(p *pipe, bytes int) error {
	c.net.lock()
	defer c.net.unlock()
	p.limit = max(bytes, 1)
	p.src.changed.Broadcast()
	return nil
}
