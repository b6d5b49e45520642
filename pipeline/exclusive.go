package pipeline

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Exclusive is a connection of one's own, from the Cluster's pool and prepared by
// Config.Handshake: for what takes a connection over, such as a subscription, a
// transaction or a wait that blocks. Its methods are for one goroutine at a time, but
// one may Send while another one does Receive. Release or Discard ends it.
type Exclusive[R any] struct {
	p    *Client[R]
	conn *holdfast.Conn
	in   *stream[R]
	buf  []byte
	id   uint64

	mu  sync.Mutex
	err error // why it is not to be used any more
}

// session is what the pool keeps with a connection.
type session[R any] struct {
	p  *Client[R]
	in *stream[R]
}

// Exclusive lends a connection of a node of the Cluster's choice, within the limits of
// the Cluster's pool. An error says that nothing was sent.
func (p *Client[R]) Exclusive(ctx context.Context) (*Exclusive[R], error) {
	for attempt := 1; ; {
		if err := p.closed(); err != nil {
			return nil, &Error{NotSent, "", err}
		}
		conn, err := p.cluster.Acquire(ctx)
		if err != nil {
			return nil, &Error{NotSent, "", err}
		}
		if old, ok := conn.Session.(*session[R]); ok && old.p == p {
			return &Exclusive[R]{p: p, conn: conn, in: old.in}, nil
		}
		if conn.Session != nil {
			conn.Discard(nil) // another Client of the same Cluster made it
			continue
		}
		in, err := p.prepareOwn(ctx, conn)
		if err == nil {
			conn.Session = &session[R]{p, in}
			return &Exclusive[R]{p: p, conn: conn, in: in}, nil
		}
		name := conn.Node().String()
		conn.Discard(err)
		if ctx.Err() != nil {
			err = errors.Join(ended(ctx), err)
		}
		if attempt++; attempt > p.cfg.Attempts || ctx.Err() != nil || permanent(err) {
			return nil, &Error{NotSent, name, err}
		}
	}
}

func (p *Client[R]) closed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closing
}

// handshakeTime is what a handshake may take on an exclusive connection: the Cluster's
// default.
const handshakeTime = 5 * time.Second

func (p *Client[R]) prepareOwn(ctx context.Context, conn *holdfast.Conn) (*stream[R], error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	stop := interruptible(ctx, conn.SetDeadline)
	in, err := p.prepare(ctx, conn, nil)
	if stop() && err == nil {
		err = ended(ctx)
	}
	return in, err
}

// interruptible lets the end of ctx interrupt what a deadline interrupts. The func ends
// that, and reports whether it happened.
func interruptible(ctx context.Context, deadline func(time.Time) error) (stop func() bool) {
	deadline(time.Time{})
	happened := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(happened)
		deadline(time.Unix(1, 0))
	})
	return func() bool {
		if end() {
			return false
		}
		<-happened
		deadline(time.Time{})
		return true
	}
}

// Node returns the node that the connection leads to.
func (x *Exclusive[R]) Node() *holdfast.Node { return x.conn.Node() }

// Do sends a request and waits for its reply; what the peer pushes before it is
// dropped. Besides ctx, Config.Stall or Request.Slow bounds it, the longer of them; a
// negative Slow leaves it to ctx. Nothing is repeated: after an [*Error] with Unknown
// the connection is of no use.
func (x *Exclusive[R]) Do(ctx context.Context, req Request) (reply R, err error) {
	var one [1]R
	_, err = x.Batch(ctx, req, one[:])
	return one[0], err
}

// Batch sends what Encode appends and waits for as many replies as fit into replies.
func (x *Exclusive[R]) Batch(ctx context.Context, req Request, replies []R) (n int, err error) {
	if stall := max(x.p.cfg.Stall, req.Slow); req.Slow >= 0 && stall != never {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, stall, ErrStalled)
		defer cancel()
	}
	if err := x.Send(ctx, req); err != nil {
		return 0, err
	}
	stop := interruptible(ctx, x.conn.SetReadDeadline)
	defer stop()
	for n < len(replies) && err == nil {
		var v R
		v, err = x.in.reply(x.id)
		if bad, ok := err.(*badReply); ok {
			return n, &Error{Replied, x.conn.Node().String(), bad.error}
		}
		if err == nil {
			replies[n] = v
			n++
		}
	}
	return n, x.failed(ctx, Unknown, err)
}

// Send sends a request and waits for nothing.
func (x *Exclusive[R]) Send(ctx context.Context, req Request) (err error) {
	if err := cmp.Or(x.broken(), ctx.Err()); err != nil {
		return &Error{NotSent, x.conn.Node().String(), err}
	}
	if x.p.cfg.ID != nil {
		x.id++
	}
	if x.buf, err = req.Encode(x.buf[:0], x.id); err != nil {
		return err
	}
	stop := interruptible(ctx, x.conn.SetWriteDeadline)
	defer stop()
	n, err := x.conn.Write(x.buf)
	outcome := NotSent
	if n == len(x.buf) {
		outcome = Unknown
	}
	if cap(x.buf) > largeBuffer {
		x.buf = nil
	}
	return x.failed(ctx, outcome, err)
}

// Receive waits for what the peer sends next, reply or push. It reads no further than
// one look into the socket goes: who does not receive holds the peer up, not memory.
// When ctx ends the connection goes on.
func (x *Exclusive[R]) Receive(ctx context.Context) (v R, err error) {
	if err := x.broken(); err != nil {
		return v, &Error{NotSent, x.conn.Node().String(), err}
	}
	stop := interruptible(ctx, x.conn.SetReadDeadline)
	func() {
		defer rescue(&err)
		v, err = x.in.next()
	}()
	stop()
	bad, isBad := err.(*badReply)
	switch {
	case isBad:
		return v, &Error{Replied, x.conn.Node().String(), bad.error}
	case err != nil && timedOut(err) && ctx.Err() != nil:
		return v, ended(ctx)
	}
	return v, x.failed(ctx, Unknown, err)
}

// failed notes that the connection is of no use any more.
func (x *Exclusive[R]) failed(ctx context.Context, o Outcome, err error) error {
	if err == nil {
		return nil
	}
	if timedOut(err) && ctx.Err() != nil {
		err = ended(ctx)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.err = err
	return &Error{o, x.conn.Node().String(), err}
}

func (x *Exclusive[R]) broken() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// Release gives the connection back. Whoever changed its state, or leaves replies
// unread, discards it instead. Releasing twice panics.
func (x *Exclusive[R]) Release() {
	err := x.broken()
	switch {
	case err != nil:
		x.Discard(err)
	case x.in.r < x.in.w:
		x.Discard(nil)
	default:
		x.in.rest()
		x.conn.Release()
	}
}

// Discard closes the connection; a reason counts against its node.
func (x *Exclusive[R]) Discard(reason error) { x.conn.Discard(reason) }

// Raw sends a request and lets read take the reply off the connection itself, without
// the Decoder: for replies that are too large to be held. read must read the whole
// reply and no more; after an error of its the connection is of no use.
func (x *Exclusive[R]) Raw(ctx context.Context, req Request, read func(in *bufio.Reader) error) error {
	if err := x.Send(ctx, req); err != nil {
		return err
	}
	stop := interruptible(ctx, x.conn.SetReadDeadline)
	defer stop()
	in := bufio.NewReaderSize(raw[R]{x.in}, smallBuffer)
	err := read(in)
	ahead, _ := in.Peek(in.Buffered())
	x.in.buf = append(append(make([]byte, 0, smallBuffer), ahead...), x.in.buf[x.in.r:x.in.w]...)
	x.in.r, x.in.w = 0, len(x.in.buf)
	x.in.buf = x.in.buf[:cap(x.in.buf)]
	return x.failed(ctx, Unknown, err)
}

// raw reads a stream as it is.
type raw[R any] struct{ s *stream[R] }

func (r raw[R]) Read(b []byte) (int, error) {
	if s := r.s; s.r < s.w {
		n := copy(b, s.buf[s.r:s.w])
		s.r += n
		return n, nil
	}
	return r.s.conn.Read(b)
}
