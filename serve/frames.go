package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/frame"
)

// Frames is a Handler for a protocol of messages: handle is called for each of them,
// one after the other, with a msg that is valid until it returns. It answers with
// [Conn.Send]. An error ends the connection, after what was sent before.
func Frames(f frame.Format, handle func(ctx context.Context, c *Conn, msg []byte) error) Handler {
	return &frames{f, handle}
}

type frames struct {
	format frame.Format
	handle func(context.Context, *Conn, []byte) error
}

// errEnd is the end of a connection that we decided.
var errEnd = errors.New("serve: the connection ended")

// errPeerEnd is the end that the client chose, between two messages.
var errPeerEnd = fmt.Errorf("serve: the client closed the connection: %w", io.EOF)

// errMoved ends a connection here that goes on at the successor.
var errMoved = errors.New("serve: the connection moved")

// ErrReadTimeout is a message that was not complete within Timeouts.Read, or a
// client that said nothing for Timeouts.Idle.
var ErrReadTimeout = fmt.Errorf("serve: the client took too long: %w", os.ErrDeadlineExceeded)

// ServeConn is the read loop. The goroutine waits in fill nearly all of its life, so
// what is below it on the stack is kept small.
func (f *frames) ServeConn(ctx context.Context, c *Conn) (err error) {
	if c.stage.Load() != framed {
		c.begin(f.format)
	}
	if err = c.woken; err == nil {
		err = f.loop(ctx, c)
	}
	c.moved = errors.Is(err, errMoved)
	c.in.drop()
	return err
}

func (f *frames) loop(ctx context.Context, c *Conn) error {
	for {
		ordered, err := f.handleAll(ctx, c)
		if err != nil {
			return err
		}
		if err := c.boundary(ctx); err != nil {
			return err
		}
		if ordered {
			continue // what it left is not for later
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// handleAll handles the messages that are there, and sends the replies together. It
// stops when there are orders.
func (f *frames) handleAll(ctx context.Context, c *Conn) (ordered bool, err error) {
	if c.in.len() == 0 {
		return false, nil
	}
	c.out.hold()
	for c.in.len() > 0 && err == nil {
		if ordered = c.kicked.Load(); ordered {
			break
		}
		var fr frame.Frame
		if fr, err = f.format.Cut(c.in.bytes(), c.in.from); err != nil {
			break
		}
		if fr.Size == 0 {
			c.in.from = fr.From
			break
		}
		c.msgs++
		c.in.skip(fr.Size)
		err = f.handle(ctx, c, fr.Msg)
	}
	c.publish()
	if e := c.release(); err == nil {
		err = e
	}
	return ordered, err
}

// begin makes the read loop ours.
func (c *Conn) begin(f frame.Format) {
	c.out.format = f
	c.in.c = c
	c.in.prepare()
	if len(c.unread) > 0 {
		c.in.load(c.unread)
		c.unread = nil
	}
	c.stage.Store(framed)
	if c.leaving() || c.srv.passing.Load() != nil {
		c.kick() // the order came before there was anybody to take it
	}
}

func (c *Conn) leaving() bool {
	select {
	case <-c.srv.draining:
		return true
	default:
		return c.expired.Load()
	}
}

// boundary is between two messages: here a connection moves, says goodbye, ends. An
// error ends it.
func (c *Conn) boundary(ctx context.Context) error {
	if c.kicked.Swap(false) {
		c.reads.forget() // the kick has replaced the deadline
	}
	if p := c.srv.passing.Load(); p != nil && p != c.tried && c.move(p) {
		return errMoved
	}
	if !c.leaving() {
		return nil
	}
	if !c.said {
		c.said = true
		if c.srv.Drain.Goodbye != nil {
			c.sayGoodbye(ctx)
		}
		if d := c.srv.Drain.wait(); d > 0 {
			time.AfterFunc(d, func() {
				c.waited.Store(true)
				c.kick()
			})
		} else {
			c.waited.Store(true)
		}
	}
	if c.waited.Load() && c.in.len() == 0 {
		return errEnd
	}
	return nil
}

// fill waits for bytes. It returns nil without any when there are orders.
func (c *Conn) fill() error {
	c.quiet = time.Now()
	if c.in.len() > 0 {
		c.armMessage(c.quiet)
	} else {
		c.in.since = time.Time{}
		c.armRead(c.quiet)
	}
	if c.kicked.Load() {
		return nil
	}
	return c.filled(c.in.fill())
}

// filled makes of a read what the loop wants to know.
func (c *Conn) filled(n int, err error) error {
	c.received += uint64(n)
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	case errors.Is(err, os.ErrDeadlineExceeded) && c.kicked.Load():
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && c.mayRest():
		return errRest
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrReadTimeout
	case errors.Is(err, io.EOF) && c.in.len() == 0:
		return errPeerEnd
	case errors.Is(err, io.EOF):
		return fmt.Errorf("serve: the client ended within a message: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// armMessage bounds the rest of a message by the time since its first byte, however
// many follow.
func (c *Conn) armMessage(now time.Time) {
	began := c.in.since.IsZero()
	if began {
		c.in.since = now
	}
	d := c.srv.limits.Read
	if d == 0 || c.reads.own.Load() || (!began && c.reads.at.Load() == messageDeadline) {
		return
	}
	c.raw.SetReadDeadline(c.in.since.Add(d))
	c.reads.at.Store(messageDeadline)
}

// messageDeadline is in force, and too early for anything else.
const messageDeadline = -1

// publish adds this connection's counts to the server's.
func (c *Conn) publish() {
	s := &c.srv.counts
	if c.received > 0 {
		s.received.Add(c.received)
		c.received = 0
	}
	if c.msgs > 0 {
		s.messages.Add(c.msgs)
		c.msgs = 0
	}
}

// inbox is what has come and was not handled yet. While nothing has, it holds no
// buffer: it reads once the socket is readable, into one from a pool.
type inbox struct {
	c          *Conn
	raw        syscall.RawConn // nil when bytes come through TLS, or from no socket
	tryFunc    func(fd uintptr) bool
	buf        []byte // what is held: of the pool, or grown
	pooled     *[]byte
	start, end int
	from       int       // of the last Cut
	since      time.Time // when the message that is there in part began
	n          int       // of the last try
	err        error
}

const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

func (i *inbox) len() int      { return i.end - i.start }
func (i *inbox) bytes() []byte { return i.buf[i.start:i.end] }

// prepare chooses how to wait.
func (i *inbox) prepare() {
	if i.c.nc != i.c.raw || !tries {
		return
	}
	if sc, ok := i.c.raw.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			i.raw, i.tryFunc = raw, i.try
		}
	}
}

func (i *inbox) load(b []byte) {
	i.room(len(b))
	i.end += copy(i.buf[i.end:], b)
}

// skip leaves a frame behind. The bytes stay until the next fill.
func (i *inbox) skip(n int) {
	i.start += n
	i.from = 0
	i.since = time.Time{}
}

// read gives bytes to a handler that reads the stream itself.
func (i *inbox) read(p []byte) int {
	if i.len() == 0 {
		return 0
	}
	n := copy(p, i.bytes())
	i.skip(n)
	return n
}

// fill reads once, waiting as long as it takes.
func (i *inbox) fill() (int, error) {
	if i.raw == nil {
		i.room(1)
		n, err := i.c.nc.Read(i.buf[i.end:])
		i.end += n
		return n, err
	}
	if err := i.raw.Read(i.tryFunc); err != nil {
		return 0, err
	}
	i.end += i.n
	if i.n == 0 && i.err == nil {
		return 0, io.EOF
	}
	return i.n, i.err
}

// room makes place for at least n bytes: only a message that is there in part makes
// the buffer grow, and no further than twice what has come.
func (i *inbox) room(n int) {
	if i.start == i.end {
		i.start, i.end = 0, 0
	}
	switch {
	case i.buf == nil && n <= bufferSize:
		i.pooled = buffers.Get().(*[]byte)
		i.buf = *i.pooled
	case i.end+n <= len(i.buf):
	case i.len()+n <= len(i.buf) && i.len() <= len(i.buf)/2:
		i.end = copy(i.buf, i.bytes())
		i.start = 0
	default:
		grown := make([]byte, max(2*i.len(), i.len()+n, bufferSize))
		size := copy(grown, i.bytes())
		i.drop()
		i.buf, i.end = grown, size
	}
}

// drop gives the buffer back.
func (i *inbox) drop() {
	if i.pooled != nil {
		buffers.Put(i.pooled)
		i.pooled = nil
	}
	i.buf, i.start, i.end = nil, 0, 0
}

// outbox is what was sent and has not left yet. Whoever finds nobody writing writes,
// and goes on for those who come meanwhile; so there is one writer, no lock is held
// while it writes, and what many send leaves together.
type outbox struct {
	format frame.Format

	mu     sync.Mutex
	buf    []byte
	pooled *[]byte
	held   bool          // the read loop has more to answer
	busy   bool          // somebody writes
	err    error         // of a write: the connection is of no use any more
	idle   chan struct{} // closed when the writer is done; nil when nobody waits
}

const (
	sendAt     = bufferSize // what is held back leaves when it is this much
	maxPending = 8 * bufferSize
)

// Send sends a message in the format of [Frames]. It may be called by any goroutine;
// messages leave whole, in the order of the calls. It waits when much is pending;
// an error of a write may be that of an earlier message.
func (c *Conn) Send(msg []byte) error {
	o := &c.out
	if o.format == nil {
		return errors.New("serve: Send is for Frames handlers")
	}
	o.mu.Lock()
	for o.err == nil && o.busy && len(o.buf) > maxPending {
		o.waitLocked()
	}
	if o.err != nil {
		defer o.mu.Unlock()
		return o.err
	}
	if o.buf == nil {
		o.pooled = buffers.Get().(*[]byte)
		o.buf = (*o.pooled)[:0]
	}
	b, err := o.format.Append(o.buf, msg)
	o.buf = b
	if err != nil || o.busy || (o.held && len(b) < sendAt) {
		o.mu.Unlock()
		return err
	}
	return c.writeLocked()
}

// waitLocked waits, unlocked, until the writer is done.
func (o *outbox) waitLocked() {
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.mu.Unlock()
	<-idle // a write ends by its limit
	o.mu.Lock()
}

// writeLocked writes all that is pending, and unlocks.
func (c *Conn) writeLocked() error {
	o := &c.out
	o.busy = true
	for len(o.buf) > 0 && o.err == nil {
		b, pooled := o.buf, o.pooled
		o.buf, o.pooled = nil, nil
		o.mu.Unlock()
		_, err := c.Write(b)
		if pooled != nil && cap(b) == bufferSize {
			buffers.Put(pooled)
		}
		o.mu.Lock()
		o.err = err
	}
	o.busy = false
	if o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
	defer o.mu.Unlock()
	return o.err
}

// hold keeps replies back until release.
func (o *outbox) hold() {
	o.mu.Lock()
	o.held = true
	o.mu.Unlock()
}

func (c *Conn) release() error {
	c.out.mu.Lock()
	c.out.held = false
	if c.out.busy || len(c.out.buf) == 0 {
		defer c.out.mu.Unlock()
		return c.out.err
	}
	return c.writeLocked()
}

// flush returns when nothing is pending and nobody writes.
func (c *Conn) flush() error {
	o := &c.out
	o.mu.Lock()
	o.held = false
	for o.busy {
		o.waitLocked()
	}
	if len(o.buf) == 0 || o.err != nil {
		defer o.mu.Unlock()
		return o.err
	}
	return c.writeLocked()
}
