package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
var errMoved = fmt.Errorf("serve: the connection moved: %w", net.ErrClosed)

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
		c.used = true
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
	c.mu.Lock()
	c.over = false
	c.reads.forget()
	c.stage.Store(framed)
	c.mu.Unlock()
	if c.leaving() || c.srv.passing.Load() != nil {
		c.interrupt() // the order came before there was anybody to take it
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
	c.takeOrders()
	leaving := c.leaving() // looked at first: a passage begins before Draining does
	if p := c.srv.passing.Load(); p != nil && p != c.tried && c.move(p) {
		return errMoved
	}
	if !leaving {
		return nil
	}
	if !c.said.Swap(true) {
		c.sayGoodbye(ctx)
		d := c.srv.Drain.wait()
		if !c.used {
			d = max(d, firstRequest)
		}
		if d > 0 {
			c.leaveIn(d)
		} else {
			c.waited.Store(true)
		}
	}
	if c.waited.Load() && c.in.len() == 0 {
		return errEnd
	}
	return nil
}

// firstRequest is how long a connection that has asked for nothing yet is given to do
// so: most that were just made are about to.
const firstRequest = time.Second

// fill waits for bytes. It returns nil without any when there are orders.
func (c *Conn) fill() error {
	c.quiet = time.Now()
	if c.in.len() > 0 {
		c.armMessage(c.quiet)
	} else {
		c.in.since = time.Time{}
		c.armRead(c.idleLimit(), c.quiet)
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
	case errors.Is(err, os.ErrDeadlineExceeded) && c.unpoke():
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
	if d == 0 {
		c.armRead(c.srv.limits.Idle, now)
		return
	}
	if !began && c.reads.at.Load() == ofMessage {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.poked && c.own.IsZero() {
		c.raw.SetReadDeadline(c.in.since.Add(d))
		c.reads.at.Store(ofMessage)
	}
}

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
// while it writes, and what many send leaves together. Its turn has an end, at which
// another becomes the writer, for it may be the read loop, or be waited for.
type outbox struct {
	format frame.Format

	mu     sync.Mutex
	buf    []byte
	pooled *[]byte
	held   bool  // the read loop has more to answer
	busy   bool  // somebody writes
	late   bool  // the writer's turn ends: nobody may add to it
	moving bool  // nobody new may: the connection stops, to move
	err    error // of a write: the connection is of no use any more
	// changed is closed when there is room again, or no writer; nil when nobody waits.
	changed chan struct{}
}

const (
	sendAt     = bufferSize // what is held back leaves when it is this much
	maxPending = 8 * bufferSize
	maxRounds  = 16 // of what was pending, in one turn
)

// Send sends a message in the format of [Frames]. It may be called by any goroutine;
// messages leave whole, in the order of the calls. It waits when much is pending;
// an error of a write may be that of an earlier message. What is sent while a message
// is handled leaves together, when the messages that came with it are handled too, it
// is 32 KiB, or the handler Reads, Writes or Flushes.
func (c *Conn) Send(msg []byte) error {
	if c.out.format == nil {
		return errors.New("serve: Send is for Frames handlers")
	}
	write, err := c.out.add(msg)
	if write {
		return c.writeOut()
	}
	return err
}

// Flush sends what is held back while a message is handled, and returns when it was
// written. It may be called by any goroutine.
func (c *Conn) Flush() error {
	_, err := c.Write(nil)
	return err
}

// add takes a message; true is that the caller has become the writer.
func (o *outbox) add(msg []byte) (write bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock() // also if a Format of the user's panics
	for o.err == nil && (o.moving || o.late || (o.busy && len(o.buf) > maxPending)) {
		o.waitLocked()
	}
	if o.err != nil {
		return false, o.err
	}
	if o.buf == nil {
		o.pooled = buffers.Get().(*[]byte)
		o.buf = (*o.pooled)[:0]
	}
	b, err := o.format.Append(o.buf, msg)
	o.buf = b
	if err != nil || o.busy || (o.held && len(b) < sendAt) {
		return false, err
	}
	o.busy = true
	return true, nil
}

// waitLocked waits, unlocked, until there is room or the writer is done.
func (o *outbox) waitLocked() {
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	changed := o.changed
	o.mu.Unlock()
	<-changed // a write ends by its limit
	o.mu.Lock()
}

func (o *outbox) changedLocked() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// writeAndUnlock writes what is pending, unless somebody writes already, who takes it along.
func (c *Conn) writeAndUnlock() error {
	o := &c.out
	if o.busy || o.err != nil || len(o.buf) == 0 {
		defer o.mu.Unlock()
		return o.err
	}
	o.busy = true
	o.mu.Unlock()
	return c.writeOut()
}

// writeOut is writeOutLocked for those who do not hold the lock.
func (c *Conn) writeOut() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.writeOutLocked()
}

// writeOutLocked writes all that is pending. The caller is the writer, and ceases to be
// it.
func (c *Conn) writeOutLocked() error {
	o := &c.out
	for n := 1; len(o.buf) > 0 && o.err == nil; n++ {
		o.late = n >= maxRounds
		c.writePendingLocked()
	}
	o.busy, o.late = false, false
	o.changedLocked()
	return o.err
}

// writePendingLocked writes, unlocked, what is pending now. The caller is the writer.
func (c *Conn) writePendingLocked() {
	o := &c.out
	b, pooled := o.buf, o.pooled
	o.buf, o.pooled = nil, nil
	o.changedLocked()
	o.mu.Unlock()
	_, err := c.write(b)
	if pooled != nil && cap(b) == bufferSize {
		buffers.Put(pooled)
	}
	o.mu.Lock()
	o.err = err
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
	return c.writeAndUnlock()
}

// stop lets nobody send until resume, and returns when everything has left. In this
// order, for those who send could put off the end for ever.
func (c *Conn) stop() error {
	o := &c.out
	o.mu.Lock()
	o.moving = true
	for o.busy {
		o.waitLocked()
	}
	return c.writeAndUnlock()
}

// resume ends stop: those who send go on, or fail because the connection has moved.
func (o *outbox) resume(moved bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.moving = false
	if moved {
		o.err = errMoved
	}
	o.changedLocked()
}
