package holdfast

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ports are the sockets to one node or, where they are not connected, to all.
type ports struct {
	count atomic.Int32 // of those that are not closed

	mu     sync.Mutex    // guards the rest
	open   []*port       // that take new exchanges, the newest last
	making chan struct{} // closed when the one that is being made is there
}

// port is one socket. Its reader lives as long as it does. It is closed when it takes no
// more and nothing is awaited there, when nothing happened for a minute, or when it broke.
type port struct {
	c      *Cluster
	set    *ports
	n      *Node          // nil when it is not connected
	conn   *Conn          // when it is
	icmp   errorQueue     // of conn
	packet net.PacketConn // when it is not
	used   atomic.Int64   // clock() of the last exchange or send
	dead   atomic.Bool    // it is closed, or about to be

	mu      sync.Mutex // guards the rest
	asked   map[place]asked
	users   int  // exchanges and sends that have not left
	oneWay  bool // something was sent that awaits no reply
	retired bool // it takes no more
}

// place is where a reply is awaited. A port uses each once: what comes for one that was
// left is late, and never the reply to another request.
type place struct {
	from netip.AddrPort // zero on a connected socket: its kernel looks
	id   uint64
}

// asked is who waits at a place: nobody, once x is nil.
type asked struct {
	x *exchange
	i int // index into x.asks
}

func (c *Cluster) portsOf(n *Node) *ports {
	if c.cfg.Datagrams.Listen != nil {
		return &c.ports
	}
	return &n.ports
}

// take finds a port with a place for the exchange, or for a send that awaits nothing
// (nil), and makes one if there is none.
func (s *ports) take(ctx context.Context, n *Node, x *exchange, i int) (*port, place, error) {
	c := n.c
	at, err := c.placeOf(n)
	if err != nil {
		return nil, at, n.dialError(PhaseDial, err)
	}
	for {
		p, verdict, wait := s.look(&at, x, i, c.cfg.Datagrams.Sockets)
		switch verdict {
		case admitted:
			return p, at, nil
		case spent:
			p.endIdle()
		case sameNumber:
			x.draw()
		case wanted:
			err = s.make(ctx, n)
		case underWay:
			err = c.waitFor(ctx, n, wait)
		case tooMany:
			err = &Error{Phase: PhaseAcquire, Class: ClassExhausted, Endpoint: n.Endpoint(), Node: n.String(), Err: ErrPoolExhausted}
		}
		if err != nil {
			return nil, at, err
		}
	}
}

// verdict is what came of looking for a place.
type verdict int

const (
	admitted   verdict = iota
	unsuited           // this port is not for it
	spent              // this port takes no more
	sameNumber         // its number was used here: another must be drawn
	wanted             // a port must be made
	underWay           // somebody makes one
	tooMany
)

// look is one look at the ports. Nothing is made, ended or drawn under the lock.
func (s *ports) look(at *place, x *exchange, i, most int) (*port, verdict, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := len(s.open) - 1; k >= 0; k-- {
		p := s.open[k]
		v, full := p.admit(at, x, i)
		if full {
			s.open = slices.Delete(s.open, k, k+1)
		}
		if v != unsuited {
			return p, v, nil
		}
	}
	switch {
	case s.making != nil:
		return nil, underWay, s.making
	case int(s.count.Load()) >= most:
		return nil, tooMany, nil
	}
	s.making = make(chan struct{})
	return nil, wanted, nil
}

// placeOf is where replies of the node come from, as far as that must be looked at.
func (c *Cluster) placeOf(n *Node) (at place, err error) {
	if c.cfg.Datagrams.Listen != nil {
		at.from, err = netip.ParseAddrPort(n.addr)
		at.from = unmapped(at.from)
	}
	return at, err
}

// unmapped is the one form of an address: a dual-stack socket has v4 addresses in v6 form.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (c *Cluster) waitFor(ctx context.Context, n *Node, done chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return n.dialError(PhaseAcquire, ended(ctx))
	case <-c.ctx.Done():
		return n.dialError(PhaseAcquire, ErrClosed)
	}
}

// make opens a port, while others wait for it.
func (s *ports) make(ctx context.Context, n *Node) error {
	p := &port{c: n.c, set: s, asked: map[place]asked{}}
	err := p.connect(ctx, n)
	if err == nil {
		s.count.Add(1)
		p.used.Store(int64(clock()))
		if !n.c.spawn(p.run) {
			p.end(ErrClosed)
			err = n.dialError(PhaseDial, ErrClosed)
		}
	}
	s.mu.Lock()
	close(s.making)
	s.making = nil
	if err == nil {
		s.open = append(s.open, p)
	}
	s.mu.Unlock()
	if err == nil && n.unwanted() { // since it was picked: it has not heard of p, or will retire it
		s.retire()
		return n.away(errUnwanted)
	}
	return err
}

func (n *Node) unwanted() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.draining || n.c.closedLocked() != nil
}

func (p *port) connect(ctx context.Context, n *Node) (err error) {
	c := p.c
	if listen := c.cfg.Datagrams.Listen; listen != nil {
		if p.packet, err = guarded(func() (net.PacketConn, error) { return listen(ctx) }); err != nil {
			return n.dialError(PhaseDial, err) // others wait for it: they must not wait for ever
		}
		return nil
	}
	p.n = n
	if p.conn, err = c.connect(ctx, n, c.cfg.Timeouts.least(), nil); err != nil {
		return err
	}
	p.icmp.listen(p.conn)
	return nil
}

// admit gives the exchange a place; a send needs none. full is a port that takes no more.
func (p *port) admit(at *place, x *exchange, i int) (_ verdict, full bool) {
	d := &p.c.cfg.Datagrams
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.retired:
		return spent, true
	case x == nil:
		p.oneWay = true
	case d.ID == nil && p.oneWay:
		return unsuited, false // an answer to what was sent would be taken for the reply
	default:
		at.id = x.id
		if was, used := p.asked[*at]; used {
			switch {
			case x.mayDraw():
				return sameNumber, false
			case was.x != nil:
				return unsuited, false
			}
			p.retired = true // numbers come again: it has done its part
			return spent, true
		}
		p.asked[*at] = asked{x, i}
		p.retired = len(p.asked) >= d.Uses
	}
	p.used.Store(int64(clock()))
	p.users++
	return admitted, p.retired
}

// leave ends the wait at a place.
func (p *port) leave(at place) {
	p.mu.Lock()
	p.asked[at] = asked{}
	p.mu.Unlock()
	p.release()
}

// release ends one use of the port. The last one closes it if it is to end.
func (p *port) release() {
	p.mu.Lock()
	p.users--
	p.mu.Unlock()
	p.endIdle()
}

// endIdle ends the port if it takes no more and nobody uses it.
func (p *port) endIdle() {
	p.mu.Lock()
	over := p.retired && p.users == 0
	p.mu.Unlock()
	if over {
		p.end(errPortOver)
	}
}

// retire ends the taking of new exchanges.
func (p *port) retire() {
	p.mu.Lock()
	p.retired = true
	p.mu.Unlock()
}

// retire ends the ports when what they wait for is over.
func (s *ports) retire() {
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for _, p := range open {
		p.retire()
		p.endIdle()
	}
}

var (
	errPortOver = ownReason("holdfast: the socket is not needed any more")
	errPortIdle = ownReason("holdfast: idle")
)

// end closes the socket; its reader notices.
func (p *port) end(cause error) {
	if p.dead.Swap(true) {
		return
	}
	p.retire()
	if p.conn != nil {
		p.c.closeConn(p.conn, cause)
	} else {
		p.packet.Close()
	}
	p.set.count.Add(-1)
}

// send sends a datagram to the node, for x if a reply is awaited. What the kernel was told
// of an earlier one it tells by failing this one, which is sent again then. Of a socket for
// all nodes nobody knows which of them is meant.
func (p *port) send(m []byte, n *Node, x *exchange) error {
	err := p.write(m, n)
	if err == nil || !refusal(err) {
		return err
	}
	if p.n != nil {
		p.refused(err, x)
	}
	return p.write(m, n)
}

func (p *port) write(m []byte, n *Node) (err error) {
	if p.conn != nil {
		_, err = p.conn.Write(m)
		return err
	}
	to, err := p.c.placeOf(n)
	if err != nil {
		return err
	}
	if u, ok := p.packet.(interface {
		WriteToUDPAddrPort([]byte, netip.AddrPort) (int, error)
	}); ok {
		_, err = u.WriteToUDPAddrPort(m, to.from)
	} else {
		_, err = p.packet.WriteTo(m, net.UDPAddrFromAddrPort(to.from))
	}
	n.totals.written.Add(uint64(len(m)))
	return err
}

// read reads a datagram, and where it came from if the socket is not connected.
func (p *port) read(buf []byte) (n int, from netip.AddrPort, err error) {
	if p.conn != nil {
		n, err = p.conn.Read(buf)
		return n, from, err
	}
	if u, ok := p.packet.(interface {
		ReadFromUDPAddrPort([]byte) (int, netip.AddrPort, error)
	}); ok {
		n, from, err = u.ReadFromUDPAddrPort(buf)
		return n, unmapped(from), err
	}
	n, addr, err := p.packet.ReadFrom(buf)
	if u, ok := addr.(*net.UDPAddr); ok {
		from = unmapped(u.AddrPort())
	}
	return n, from, err
}

func (p *port) setReadDeadline(t time.Time) {
	if p.conn != nil {
		p.conn.SetReadDeadline(t)
	} else {
		p.packet.SetReadDeadline(t)
	}
}

// refusal tells what the network says of a node from what is wrong with the socket.
func refusal(err error) bool {
	class := Classify(err)
	return class == ClassRefused || class == ClassUnreachable
}

// maxRefusals in a row without a datagram end a port: it could be one that only fails.
const maxRefusals = 64

// run is the reader of the port.
func (p *port) run() {
	defer p.end(errPortOver)
	if p.packet != nil { // else Close sees to it
		defer p.endWith(p.c.ctx)()
	}
	buf := make([]byte, p.c.cfg.Datagrams.Max+1) // a byte more shows what is too long
	refusals := 0
	p.setReadDeadline(time.Now().Add(datagramIdle))
	for {
		n, from, err := p.read(buf)
		switch {
		case err == nil, n == len(buf): // some systems call it an error that it did not fit
			refusals = 0
			p.hear(buf[:n], from)
			continue
		case p.dead.Load(), p.c.ctx.Err() != nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			if p.rested() {
				return
			}
			continue
		case refusals == maxRefusals, !refusal(err) && !errors.Is(err, syscall.EMSGSIZE):
			p.end(err)
			p.refused(err, nil)
			return
		}
		refusals++
		p.icmp.drain()
		if p.n != nil && refusal(err) { // else the path got narrower: the kernel cuts what is sent again
			p.refused(err, nil)
		}
	}
}

// endWith closes the socket when ctx ends. The returned func ends that, and waits for it.
func (p *port) endWith(ctx context.Context) (stop func()) {
	ended := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(ended)
		p.end(ErrClosed)
	})
	return func() {
		if !cancel() {
			<-ended
		}
	}
}

// rested closes a port that was idle for long; else it is looked at again later.
func (p *port) rested() bool {
	p.mu.Lock()
	idle := clock() - time.Duration(p.used.Load())
	p.retired = p.retired || p.users == 0 && idle >= datagramIdle
	over := p.users == 0 && p.retired
	p.mu.Unlock()
	if over {
		p.end(errPortIdle)
		return true
	}
	p.setReadDeadline(time.Now().Add(max(datagramIdle-idle, time.Second)))
	return false
}

// hear finds out what a datagram answers. What panics in a function of the user's is
// no reply: this goroutine is ours.
func (p *port) hear(m []byte, from netip.AddrPort) {
	d, stats := &p.c.cfg.Datagrams, &p.c.stats
	defer func() {
		if recover() != nil {
			stats.forged.Add(1)
		}
	}()
	cut := len(m) > d.Max
	m = m[:min(len(m), d.Max)]
	at := place{from: from}
	if d.ID != nil {
		id, ok := d.ID(m)
		if !ok {
			stats.forged.Add(1)
			return
		}
		at.id = id
	}
	to, known := p.find(at)
	if to.x != nil {
		defer to.x.release()
	}
	switch {
	case !known, to.x != nil && d.Match != nil && !d.Match(to.x.request, m):
		stats.forged.Add(1)
		return
	case to.x == nil || !to.x.arrive(m, cut, to.i):
		stats.late.Add(1)
	}
	if p.n != nil {
		p.n.heard.Store(int64(clock()))
	}
}

// find returns who waits at a place, held until release; known is that somebody did once.
func (p *port) find(at place) (to asked, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to, known = p.asked[at]; to.x != nil {
		to.x.holders.Add(1)
	}
	return to, known
}

// refused tells the node's books and everyone who waits here that the network says no.
// Nothing proves that it is about their request: a reply that comes all the same counts.
// Of x it is known that it is not.
func (p *port) refused(err error, x *exchange) {
	if p.n != nil && refusal(err) {
		p.n.refused(err)
	}
	p.mu.Lock()
	var waiting []*exchange
	for _, a := range p.asked {
		if a.x != nil && a.x != x {
			a.x.holders.Add(1)
			waiting = append(waiting, a.x)
		}
	}
	p.mu.Unlock()
	for _, x := range waiting {
		x.refuse(p, err)
		x.release()
	}
}

// refused backs the node off like a failed dial, once at a time. A node that had
// answered long enough begins anew.
func (n *Node) refused(err error) {
	n.c.mu.Lock()
	known := n.retryAt != 0
	if !known && time.Duration(n.heard.Load()) >= n.failedAt+n.c.cfg.Backoff.StableAfter {
		n.stableLocked()
	}
	n.c.mu.Unlock()
	if !known {
		n.suspect.Store(true)
		Lease{n}.Dialed(0, err)
	}
}
