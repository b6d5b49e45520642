package fault

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"
)

// A socket is a datagram socket with faults, connected or not. What goes up is written to
// inner by the calling goroutine, if it is due at once; else by deliver, which begins
// with the first datagram that takes time. The way down is direct while its link is
// clean: calls go to inner. The first fault makes it piped, for good, and fetch reads.
//
// inner is called without mu, except for its deadlines.
type socket struct {
	inner interface {
		Close() error
		LocalAddr() net.Addr
		SetReadDeadline(time.Time) error
		SetWriteDeadline(time.Time) error
	}
	conn    net.Conn       // inner if that is one
	packets net.PacketConn // inner if that is one
	owner   *Injector

	mu      sync.Mutex
	changed sync.Cond // signalled by whatever may let a waiting call go on
	up      outbound
	down    inbound
	failure error     // of inner in our own calls, for the user's next one
	closed  bool      // by its user
	until   time.Time // closed, when what is under way is given up
	ending  bool      // somebody is about to close inner, and to say so by shut
	ended   bool      // inner is closed
}

type outbound struct {
	flow
	running  bool        // deliver has not ended
	carrying bool        // deliver has a datagram in hand
	alarm    *time.Timer // wakes deliver
	deadline deadline
}

type inbound struct {
	flow
	piped    bool
	running  bool        // fetch has not ended
	calls    int         // direct calls under way
	over     error       // what inner's reads will always fail with
	alarm    *time.Timer // wakes those who wait for an arrival
	deadline deadline
}

// packetConn is a socket as a [net.PacketConn].
type packetConn struct{ *socket }

// packetSender is a connected socket as a [net.Conn].
type packetSender struct{ *socket }

// fullSocket is both, as a *net.UDPConn is.
type fullSocket struct{ packetSender }

// carriesPackets reports whether c is a datagram socket, and its Read returns one of them.
func carriesPackets(c net.Conn) bool {
	if c.LocalAddr() == nil {
		return false
	}
	switch c.LocalAddr().Network() {
	case "udp", "udp4", "udp6", "ip", "ip4", "ip6", "unixgram":
		return true
	}
	return false
}

func newSocket(in *Injector, number, seed uint64) *socket {
	s := &socket{owner: in}
	s.changed.L = &s.mu
	s.up.flow = flow{counts: &in.counts.upPackets, bytes: &in.counts.up, holes: &in.counts.holes,
		rng: rand.New(rand.NewPCG(seed, 2*number))}
	s.down.flow = flow{counts: &in.counts.downPackets, bytes: &in.counts.down, holes: &in.counts.holes,
		rng: rand.New(rand.NewPCG(seed, 2*number+1))}
	return s
}

func (s *socket) LocalAddr() net.Addr { return s.inner.LocalAddr() }

func (c packetSender) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }
func (c packetSender) NetConn() net.Conn    { return c.conn }

func (c packetSender) Read(b []byte) (int, error) {
	if c.enter() {
		n, err := c.conn.Read(b)
		if c.leave(n, err) {
			return n, err
		}
	}
	n, _, err := c.read(b)
	return n, err
}

func (c packetSender) Write(b []byte) (int, error) { return c.write(b, nil) }

func (c packetConn) ReadFrom(b []byte) (int, net.Addr, error)         { return c.readFrom(b) }
func (c fullSocket) ReadFrom(b []byte) (int, net.Addr, error)         { return c.readFrom(b) }
func (c packetConn) WriteTo(b []byte, addr net.Addr) (n int, e error) { return c.writeTo(b, addr) }
func (c fullSocket) WriteTo(b []byte, addr net.Addr) (n int, e error) { return c.writeTo(b, addr) }

func (s *socket) readFrom(b []byte) (int, net.Addr, error) {
	if s.enter() {
		n, from, err := s.packets.ReadFrom(b)
		if s.leave(n, err) {
			return n, from, err
		}
	}
	return s.read(b)
}

func (s *socket) writeTo(b []byte, addr net.Addr) (int, error) {
	if addr == nil {
		return s.packets.WriteTo(b, nil) // inner says what is wrong with that
	}
	return s.write(b, addr)
}

// enter begins a direct read, if the way down is direct.
func (s *socket) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down.piped || s.closed || s.ending {
		return false
	}
	s.down.calls++
	return true
}

// leave ends a direct read. It reports false if the call is to go on in the flow.
func (s *socket) leave(n int, err error) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down.calls--
	s.changed.Broadcast()
	switch {
	case err == nil:
		s.down.counts.sent.Add(1)
		s.down.passed(n)
		return true
	case s.closed || s.ending:
		return false
	}
	return !s.down.piped || !isTimeout(err)
}

func (s *socket) read(b []byte) (int, net.Addr, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		now := time.Now()
		if err := s.faultLocked(&s.down.deadline, now); err != nil {
			return 0, nil, s.opError("read", nil, err)
		}
		if s.down.over != nil && len(s.down.queue) == 0 {
			return 0, nil, s.down.over
		}
		d, wait := s.down.next(now)
		if d != nil {
			n := copy(b, d.data)
			s.down.passed(n)
			return n, d.addr, nil
		}
		s.waitLocked(&s.down.alarm, wait)
	}
}

// write takes b up, and with it what else is due, so that a datagram which was held back
// until this one has gone does follow it.
func (s *socket) write(b []byte, to net.Addr) (int, error) {
	s.mu.Lock()
	now := time.Now()
	if err := s.faultLocked(&s.up.deadline, now); err != nil {
		s.mu.Unlock()
		return 0, s.opError("write", to, err)
	}
	if s.up.link.clean() {
		s.mu.Unlock()
		n, err := s.transmit(b, to)
		if err == nil {
			s.up.counts.sent.Add(1)
			s.up.passed(n)
		}
		return n, err
	}
	mine := s.up.enter(now, b, cloned(to))
	due := s.departedLocked(now)
	s.mu.Unlock()

	var failed error
	for _, d := range due {
		if err := s.send(d); d == mine {
			failed = err
		}
	}
	if failed != nil {
		return 0, failed
	}
	return len(b), nil
}

// departedLocked takes out all that is due, and leaves the rest to deliver.
func (s *socket) departedLocked(now time.Time) (due []*datagram) {
	for {
		d, wait := s.up.next(now)
		if d != nil {
			due = append(due, d)
			continue
		}
		if wait != never && !s.up.running {
			s.up.running = true
			go s.deliver()
		}
		s.changed.Broadcast() // there may be a new first one
		return due
	}
}

// send writes d to inner, and counts it.
func (s *socket) send(d *datagram) error {
	_, err := s.transmit(d.data, d.addr)
	if err != nil {
		s.up.counts.dropped.Add(1)
		return err
	}
	s.up.passed(len(d.data))
	return nil
}

func (s *socket) transmit(b []byte, to net.Addr) (int, error) {
	if to == nil {
		return s.conn.Write(b)
	}
	return s.packets.WriteTo(b, to)
}

// receive reads from inner; a plain [net.Conn] does not say from whom.
func (s *socket) receive(b []byte) (int, net.Addr, error) {
	if s.packets != nil {
		return s.packets.ReadFrom(b)
	}
	n, err := s.conn.Read(b)
	return n, nil, err
}

// faultLocked is why a call fails, nil if it does not.
func (s *socket) faultLocked(d *deadline, now time.Time) error {
	failure := s.failure
	switch {
	case s.closed || s.ending:
		return net.ErrClosed
	case d.passed(now):
		return os.ErrDeadlineExceeded
	case failure != nil:
		s.failure = nil
		s.changed.Broadcast()
	}
	return failure
}

// waitLocked gives up the lock until something has changed, or d is over unless negative.
func (s *socket) waitLocked(alarm **time.Timer, d time.Duration) {
	switch {
	case d < 0:
	case *alarm == nil:
		*alarm = time.AfterFunc(d, s.wake)
	default:
		(*alarm).Reset(d)
	}
	s.changed.Wait()
}

func (s *socket) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

func (s *socket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func (s *socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.ending:
		return s.opError("set", nil, net.ErrClosed)
	case !s.down.piped:
		s.down.deadline.at = t // for when it becomes piped
		return s.inner.SetReadDeadline(t)
	}
	s.down.deadline.set(t, s.wake)
	s.changed.Broadcast()
	return nil
}

func (s *socket) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ending {
		return s.opError("set", nil, net.ErrClosed)
	}
	s.up.deadline.at = t
	return s.inner.SetWriteDeadline(t)
}

// Alive tells a pool, without waiting, whether the socket can be used again: an error if
// a datagram waits to be read, which nobody asked for.
func (c packetSender) Alive() error {
	if c.enter() {
		err := idle(c.conn)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.down.calls--
		c.changed.Broadcast()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || c.ending:
		return c.opError("read", nil, net.ErrClosed)
	case c.down.over != nil:
		return c.down.over
	case c.failure != nil:
		return c.failure
	case len(c.down.queue) > 0 && !c.down.queue[0].at.After(time.Now()):
		return errUnread
	}
	return nil
}

func (s *socket) opError(op string, to net.Addr, err error) error {
	if to == nil && s.conn != nil {
		to = s.conn.RemoteAddr()
	}
	return opError(op, s.LocalAddr(), to, err)
}

// cloned is addr, which its owner may change when a call has returned.
func cloned(addr net.Addr) net.Addr {
	switch a := addr.(type) {
	case *net.UDPAddr:
		return &net.UDPAddr{IP: append(net.IP(nil), a.IP...), Port: a.Port, Zone: a.Zone}
	case *net.IPAddr:
		return &net.IPAddr{IP: append(net.IP(nil), a.IP...), Zone: a.Zone}
	case *net.UnixAddr:
		copied := *a
		return &copied
	}
	return addr
}
