package serve

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/record"
)

// passage is one HandOver: the connections that are to move, and how.
type passage struct {
	ctx  context.Context
	send func(state []byte, conns ...syscall.Conn) error

	mu      sync.Mutex
	waiting []*Conn            // Frames connections that were not told yet
	told    map[*Conn]struct{} // and those that were
	raw     map[*Conn]struct{} // those with a handler that may call Detach
	framed  chan struct{}      // closed when no Frames connection is left
	empty   chan struct{}      // and when none at all is
	over    bool
}

const (
	// movingAtOnce bounds how many connections stand still for the move: enough to
	// fill batches, few enough that each stands still for moments only.
	movingAtOnce = 256

	// rawPatience is how long handlers that read for themselves may take to detach.
	rawPatience = time.Second
)

// HandOver passes the live plaintext connections to the successor, by send, as
// restart.Mover says. Frames connections move between two messages, with the bytes
// that were read and not handled. It returns when all have moved that can, or ctx
// ends; those that stay are drained by the Shutdown that must follow.
func (s *Server) HandOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) error {
	s.begin()
	p := &passage{
		ctx: ctx, send: send, told: map[*Conn]struct{}{}, raw: map[*Conn]struct{}{},
		framed: make(chan struct{}), empty: make(chan struct{}),
	}
	s.passAll(p)
	defer s.passing.Store(nil)
	p.tellMore()
	select {
	case <-p.framed:
	case <-ctx.Done():
	}
	patience := time.NewTimer(rawPatience)
	defer patience.Stop()
	select {
	case <-p.empty:
	case <-patience.C:
	case <-ctx.Done():
	}
	return p.end()
}

// passAll begins the passage with the connections there are. A Frames connection that
// is not that far finds the passage by itself when it is; only TLS, which cannot move,
// could let it wait. p.mu is held over both steps, so that who leaves in between does
// it afterwards.
func (s *Server) passAll(p *passage) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.passing.Store(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	closeOnce(s.draining)
	for c := range s.conns {
		switch stage := c.stage.Load(); {
		case stage == framed:
			p.waiting = append(p.waiting, c)
		case stage == handled && c.nc == c.raw:
			p.raw[c] = struct{}{}
		case stage == preparing && c.ln.tls == nil && s.rests():
			p.told[c] = struct{}{}
		}
	}
}

// tellMore asks the next connections to move.
func (p *passage) tellMore() {
	p.mu.Lock()
	n := min(max(movingAtOnce-len(p.told), 0), len(p.waiting))
	next := p.waiting[:n]
	p.waiting = p.waiting[n:]
	for _, c := range next {
		p.told[c] = struct{}{}
	}
	p.checkLocked()
	p.mu.Unlock()
	for _, c := range next {
		c.interrupt()
	}
}

// left notes that a connection has moved, stays or is gone.
func (p *passage) left(c *Conn) {
	p.mu.Lock()
	if _, told := p.told[c]; !told {
		p.waiting = slices.DeleteFunc(p.waiting, func(o *Conn) bool { return o == c })
	}
	delete(p.told, c)
	delete(p.raw, c)
	refill := len(p.told) <= movingAtOnce/2 && len(p.waiting) > 0
	p.checkLocked()
	p.mu.Unlock()
	if refill {
		p.tellMore()
	}
}

func (p *passage) checkLocked() {
	if len(p.waiting)+len(p.told) > 0 {
		return
	}
	closeOnce(p.framed)
	if len(p.raw) == 0 {
		closeOnce(p.empty)
	}
}

// ended reports whether it is too late to move.
func (p *passage) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over || p.ctx.Err() != nil
}

func (p *passage) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	if n := len(p.waiting) + len(p.told); n > 0 {
		return fmt.Errorf("serve: %d connections were busy for too long to move", n)
	}
	return nil
}

// move passes a connection on from its own read loop; false is that it stays.
func (c *Conn) move(p *passage) (moved bool) {
	defer p.left(c)
	c.tried = p
	if c.nc != c.raw {
		return false // TLS cannot move
	}
	defer func() { c.out.resume(moved) }() // whatever happens, or those who send would wait for ever
	return c.stop() == nil && c.passOn(p, c.in.bytes(), nil) == nil
}

// Detach passes a connection of a handler that reads for itself to the successor:
// with the bytes that it has read and not dealt with, and a state for Server.Resume.
// It works after Draining is closed, when the process is being succeeded. After nil
// the handler must not touch the connection and should return; after an error the
// connection is as it was.
func (c *Conn) Detach(unread, state []byte) error {
	p := c.srv.passing.Load()
	if p == nil || c.nc != c.raw || c.stage.Load() == framed {
		return fmt.Errorf("serve: this connection cannot move now: %w", errors.ErrUnsupported)
	}
	defer p.left(c)
	unread = append(slices.Clone(unread), c.unread...)
	if err := c.passOn(p, unread, state); err != nil {
		return err
	}
	c.moved = true
	return nil
}

// passOn sends one connection.
func (c *Conn) passOn(p *passage, unread, state []byte) error {
	sc, ok := c.raw.(syscall.Conn)
	if !ok || p.ended() {
		return errors.ErrUnsupported
	}
	if m, ok := c.Session.(encoding.BinaryMarshaler); ok && state == nil {
		var err error
		if state, err = c.marshal(m); err != nil {
			return err
		}
	}
	if len(state) > maxState {
		return fmt.Errorf("serve: a state of %d bytes, and at most %d move", len(state), maxState)
	}
	r := saved{client: addrText(c.client), state: state, unread: unread}
	if err := p.send(r.encode(), sc); err != nil {
		return err
	}
	c.srv.counts.movedOut.Add(1)
	return nil
}

// marshal calls MarshalBinary of the session. After an error, or a panic, the connection
// stays.
func (c *Conn) marshal(m encoding.BinaryMarshaler) (state []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.srv.panicked(c, p)
		}
	}()
	if state, err = m.MarshalBinary(); err != nil {
		c.srv.log.Error("serve: the session of a connection", "id", c.id, "err", err)
	}
	return state, err
}

const maxState = 64 << 10

// TakeOver serves a connection of the predecessor, as restart.Mover says.
func (s *Server) TakeOver(state []byte, fds []int) error {
	s.begin()
	r, err := decode(state)
	if err != nil {
		return err
	}
	if len(fds) != 1 {
		return fmt.Errorf("serve: %d descriptors for one connection", len(fds))
	}
	if !s.TLS.off() {
		return errors.New("serve: this server does TLS now, and the connection is plaintext")
	}
	raw, release, err := connOf(fds[0])
	if err != nil {
		return err
	}
	c := s.newConn(&listening{}, raw)
	c.unread, c.state, c.taken, c.client = r.unread, r.state, true, r.addr()
	if s.Resume != nil {
		if err := s.resume(c, r.state); err != nil {
			c.cancel()
			raw.Close()
			return err
		}
	}
	s.gate.EnterAnyway(&c.pass, addrOf(c.RemoteAddr()))
	if !s.enlist(c) {
		c.cancel()
		c.pass.Leave()
		raw.Close()
		return ErrServerClosed
	}
	release()
	s.counts.movedIn.Add(1)
	c.rests = s.rests()
	go s.serveConn(c) // which serving waits for
	return nil
}

// resume calls Resume. A panic there is this connection's, which stays.
func (s *Server) resume(c *Conn, state []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(c, p)
		}
	}()
	return s.Resume(c, state)
}

// saved is a connection without its socket: a version, the client's address if a
// proxy told it, the user's state, and the bytes that nobody has handled yet. A
// newer version may add fields at the end.
type saved struct {
	client        string
	state, unread []byte
}

const recordVersion = 1

func (r saved) encode() []byte {
	b := make([]byte, 0, 16+len(r.client)+len(r.state)+len(r.unread))
	return record.Append(append(b, recordVersion), []byte(r.client), r.state, r.unread)
}

func decode(b []byte) (r saved, err error) {
	if len(b) == 0 || b[0] < recordVersion {
		return r, errors.New("serve: not the record of a connection")
	}
	fields, err := record.Split(b[1:], 3)
	if err != nil {
		return r, fmt.Errorf("serve: the record of a connection: %w", err)
	}
	r.client, r.state, r.unread = string(fields[0]), slices.Clone(fields[1]), slices.Clone(fields[2])
	if r.client != "" && r.addr() == nil {
		err = errors.New("serve: the record of a connection: no address")
	}
	return r, err
}

// addrText and addr are inverse. A Unix address begins with "unix:".
func addrText(a net.Addr) string {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.String()
	case *net.UnixAddr:
		return "unix:" + a.Name
	}
	return ""
}

func (r saved) addr() net.Addr {
	if len(r.client) >= 5 && r.client[:5] == "unix:" {
		return &net.UnixAddr{Name: r.client[5:], Net: "unix"}
	}
	ap, err := netip.ParseAddrPort(r.client)
	if err != nil {
		return nil
	}
	return net.TCPAddrFromAddrPort(ap)
}
