package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a connection to a client. It is a [net.Conn] whose reads and writes have
// the server's limits unless deadlines are set, and whose remote address is the
// client's even behind a trusted proxy. Reading and writing at the same time is safe.
type Conn struct {
	// Session is the user's: state of this connection. If it has MarshalBinary, as
	// encoding.BinaryMarshaler says, that goes to the successor with the connection.
	Session any

	srv    *Server
	ln     *listening
	raw    net.Conn // the socket
	nc     net.Conn // what is read and written: the socket, or TLS over it
	id     uint64
	client net.Addr // nil is that of the socket
	pass   Pass
	ctx    context.Context
	cancel context.CancelFunc
	state  []byte // from the predecessor
	taken  bool

	unread []byte // what was read before the handler began
	in     inbox
	out    outbox

	reads, writes   deadline
	stage           atomic.Int32 // preparing, handled or framed; changes under mu
	kicked          atomic.Bool  // its read loop should look for orders; changes under mu
	expired, waited atomic.Bool
	said            atomic.Bool // goodbye

	mu    sync.Mutex // guards the deadline of reads, with what says whose it is
	own   time.Time  // the user's; zero is none
	poked bool       // it is past, so that the read loop looks for orders
	over  bool       // it stays as it is: nothing more is read, or only the end

	tried          *passage // which it could not take
	moved, used    bool     // used: it has had a message
	life           *time.Timer
	rests          bool      // its goroutine may end while it is idle
	quiet          time.Time // since when nothing has come
	woken          error     // what ended its rest
	received, msgs uint64    // not yet in the server's counts
}

// The stages of a connection.
const (
	preparing int32 = iota // PROXY header, admission, TLS
	handled                // its handler reads for itself
	framed                 // its read loop is ours
)

// ID is a number that no other connection of this server has.
func (c *Conn) ID() uint64 { return c.id }

// Draining is closed when the server drains: finish, and return.
func (c *Conn) Draining() <-chan struct{} { return c.srv.draining }

// Resumed returns the state that came with the connection from the predecessor.
func (c *Conn) Resumed() (state []byte, ok bool) { return c.state, c.taken }

// ConnectionState returns the TLS state, false when the connection is plaintext.
func (c *Conn) ConnectionState() (tls.ConnectionState, bool) { return tlsState(c.nc) }

func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr is the client's address: the peer's, or what a trusted proxy said.
func (c *Conn) RemoteAddr() net.Addr {
	if c.client != nil {
		return c.client
	}
	return c.raw.RemoteAddr()
}

// NetConn returns the socket underneath, below TLS.
func (c *Conn) NetConn() net.Conn { return c.raw }

// SyscallConn gives access to the socket.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("serve: %T is no system socket", c.raw)
	}
	return sc.SyscallConn()
}

// Read reads what has come. Within a Frames handler it continues the stream after
// the message that is being handled, and what was sent before leaves first: the client
// may wait for it.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.unread) > 0 {
		n := copy(p, c.unread)
		c.unread = c.unread[n:]
		return n, nil
	}
	if n := c.in.read(p); n > 0 {
		return n, nil
	}
	c.out.mu.Lock()
	if err := c.writeAndUnlock(); err != nil {
		return 0, err
	}
	for {
		c.armRead(c.srv.limits.Idle, time.Now())
		n, err := c.nc.Read(p)
		c.srv.counts.received.Add(uint64(n))
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && c.unpoke() {
			continue // orders are for between two messages
		}
		return n, err
	}
}

// Write writes all of p, behind what was sent and in one piece, unless the peer takes
// too little in Timeouts.Write. A Frames connection whose Write ended in the middle is
// of no use any more.
func (c *Conn) Write(p []byte) (n int, err error) {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.err == nil && (o.busy || o.moving) {
		o.waitLocked()
	}
	if o.err != nil {
		return 0, o.err
	}
	o.busy = true
	c.writePendingLocked()
	if err = o.err; err == nil {
		o.mu.Unlock()
		n, err = c.write(p)
		o.mu.Lock()
		if n > 0 && o.format != nil {
			o.err = err // what followed would be taken for the rest of p
		}
	}
	c.writeOutLocked() // others have relied on this writer
	return n, err
}

func (c *Conn) write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		c.armWrite(time.Now())
		var m int
		m, err = c.nc.Write(p[:min(len(p), stallUnit)])
		n += m
		p = p[m:]
	}
	c.srv.counts.sent.Add(uint64(n))
	return n, err
}

// stallUnit is how much the peer must take within Timeouts.Write.
const stallUnit = 128 << 10

// deadline is one that the server sets. To move a deadline costs as much as a short
// read, so it is set late by an eighth, and again only when it would come too early.
type deadline struct {
	at  atomic.Int64 // since begun; or one of those below
	own atomic.Bool  // the user has set one
}

const (
	unknown   = math.MinInt64     // what is in force was not set by next
	ofMessage = math.MinInt64 + 1 // that of a message, which is too early for anything else
	never     = math.MaxInt64
)

var begun = time.Now()

// due reports whether the deadline in force is another than the limit wants.
func (d *deadline) due(limit time.Duration, now time.Time) bool {
	at := d.at.Load()
	switch {
	case d.own.Load():
		return false
	case at == unknown || at == ofMessage:
		return true
	case limit == 0 || at == never:
		return at != never || limit != 0
	}
	return time.Duration(at)-now.Sub(begun) < limit
}

// next returns the deadline to set; the zero time is none.
func (d *deadline) next(limit time.Duration, now time.Time) time.Time {
	if limit == 0 {
		d.at.Store(never)
		return time.Time{}
	}
	end := now.Add(limit + limit/8)
	d.at.Store(int64(end.Sub(begun)))
	return end
}

// forget makes the deadline due.
func (d *deadline) forget() { d.at.Store(unknown) }

func (c *Conn) armRead(limit time.Duration, now time.Time) {
	if !c.reads.due(limit, now) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.poked && !c.over && c.own.IsZero() {
		c.raw.SetReadDeadline(c.reads.next(limit, now))
	}
}

func (c *Conn) armWrite(now time.Time) {
	if limit := c.srv.limits.Write; c.writes.due(limit, now) {
		c.raw.SetWriteDeadline(c.writes.next(limit, now))
	}
}

// SetDeadline, SetReadDeadline and SetWriteDeadline hold instead of the server's
// limits. The zero time leaves it to them again, from the next read or write on.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = t
	c.reads.own.Store(!t.IsZero())
	c.reads.forget()
	if c.poked || c.over {
		return nil
	}
	return c.raw.SetReadDeadline(t)
}

func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writes.own.Store(!t.IsZero())
	c.writes.forget()
	return c.raw.SetWriteDeadline(t)
}

// CloseWrite ends the sending direction; what the client still sends can be read.
func (c *Conn) CloseWrite() error {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("serve: %T has no half-close", c.nc)
	}
	return half.CloseWrite()
}

// Close closes the connection at once. The server does it when the handler returns.
func (c *Conn) Close() error { return c.nc.Close() }

var past = time.Unix(1, 0)

// interrupt makes a read loop of ours look for orders, and ends the reads of a handler
// that reads for itself.
func (c *Conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch stage := c.stage.Load(); {
	case c.over || stage == preparing:
		return
	case stage == framed:
		c.poked = true
		c.kicked.Store(true)
	default:
		c.over = true
	}
	c.raw.SetReadDeadline(past)
}

func (c *Conn) setStage(stage int32) {
	c.mu.Lock()
	c.stage.Store(stage)
	c.mu.Unlock()
}

// unpoke reports whether a read has ended because of orders, and not of its deadline.
func (c *Conn) unpoke() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unpokeLocked()
}

func (c *Conn) unpokeLocked() bool {
	if !c.poked {
		return false
	}
	c.poked = false
	c.reads.forget()
	c.raw.SetReadDeadline(c.own)
	return true
}

// takeOrders is called where they are obeyed. What comes later interrupts again.
func (c *Conn) takeOrders() {
	if !c.kicked.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kicked.Store(false)
	c.unpokeLocked()
}

// goodbye begins the end of a connection. A read loop of ours does it between two
// messages; a handler that reads for itself is told beside, and after Drain.Wait its
// reads fail. One that is not that far does it when it is.
func (c *Conn) goodbye() {
	d := c.srv.Drain
	switch c.stage.Load() {
	case framed:
		c.interrupt()
	case handled:
		if d.Goodbye == nil && d.Wait == 0 || c.said.Swap(true) {
			return // Draining is all that it gets
		}
		c.srv.beside(c, func() {
			c.sayGoodbye(c.ctx)
			c.leaveIn(d.wait())
		})
	}
}

// leaveIn gives the client so long to leave by itself.
func (c *Conn) leaveIn(d time.Duration) {
	leave := time.AfterFunc(d, func() {
		c.waited.Store(true)
		c.interrupt()
	})
	context.AfterFunc(c.ctx, func() { leave.Stop() })
}

func (d Drain) wait() time.Duration {
	switch {
	case d.Wait < 0 || (d.Wait == 0 && d.Goodbye == nil):
		return 0
	case d.Wait == 0:
		return 5 * time.Second
	}
	return d.Wait
}

func (d Drain) linger() time.Duration {
	switch {
	case d.Linger < 0:
		return 0
	case d.Linger == 0:
		return time.Second
	}
	return d.Linger
}

func (c *Conn) sayGoodbye(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			c.srv.panicked(c, p)
		}
	}()
	if c.srv.Drain.Goodbye == nil {
		return
	}
	if err := c.srv.Drain.Goodbye(ctx, c); err != nil {
		c.srv.log.Debug("serve: goodbye", "id", c.id, "remote", c.RemoteAddr(), "err", clip(err.Error()))
	}
}

// expire ends the lifetime.
func (c *Conn) expire() {
	c.expired.Store(true)
	c.interrupt()
}

// finish closes the connection after its handler. A peer that has not ended yet is
// given the time to read the last bytes: a close with bytes unread is a reset, which
// would take them from it.
func (c *Conn) finish(err error) {
	c.publish()
	if c.life != nil {
		c.life.Stop()
	}
	if c.moved {
		c.raw.Close() // the successor has it: not a word to the peer
		return
	}
	if c.stage.Load() == framed {
		c.Flush()
	}
	if d := c.srv.Drain.linger(); d > 0 && lingers(err) && c.CloseWrite() == nil {
		c.mu.Lock()
		c.over = true // nobody shortens that
		c.raw.SetReadDeadline(time.Now().Add(d))
		c.mu.Unlock()
		io.Copy(io.Discard, io.LimitReader(onlyReader{c.raw}, 1<<20))
	}
	c.nc.Close()
}

// onlyReader hides what io.Copy would use instead of Read.
type onlyReader struct{ io.Reader }

// lingers reports whether the peer may still be there.
func lingers(err error) bool {
	for _, gone := range []error{errPeerEnd, net.ErrClosed, os.ErrDeadlineExceeded, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, gone) {
			return false
		}
	}
	return true
}

// clip makes what others wrote fit for a line of a log.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
