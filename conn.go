package holdfast

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/sockopt"
)

// Conn is a connection to a node. It is a [net.Conn] that counts bytes, notes its
// first error and knows how it goes back. Reading and writing at the same time
// from two goroutines is safe, as with any net.Conn.
//
// A Conn from Acquire ends with one of Release, Discard and Close; a Conn from
// DialContext or Lease.Dial with Close. Whoever ended it must not touch it again:
// it may be serving someone else. In Do the Cluster ends it.
type Conn struct {
	// Session is for the user: state of this connection, such as a sequence
	// number. It is nil on every new connection and never touched by the library.
	Session any

	nc      net.Conn  // what is read and written: raw, or TLS over it
	raw     net.Conn  // what was dialed; see socket
	tls     *tls.Conn // nc, if we made it TLS
	node    *Node
	poller  *sockopt.Poller // made when it is first asked; see poll
	opened  time.Duration   // clock()
	expires atomic.Int64    // clock(); 0 when never
	log     *slog.Logger    // nil unless reads and writes are logged

	written, read atomic.Int64 // since opened
	failed        atomic.Pointer[ioFailure]
	interrupted   atomic.Bool // its deadlines have passed, for good
	retired       atomic.Bool
	closed        atomic.Bool

	// The lease of whoever holds the connection; holds is true until it is done.
	lease   Lease
	holds   atomic.Bool
	pooled  bool          // counted in the node's pool: Release gives it back
	probe   bool          // a check's own: it does not make its node ready
	served  atomic.Bool   // an exchange succeeded
	greeted int64         // bytes read by the handshakes
	since   time.Duration // clock() of the checkout or, at rest, of the release
	pinged  time.Duration // clock() of the last Pool.Ping
	start   int64         // written at the checkout
	limits  limits
}

// ioFailure is the first error of a connection: it is never used again.
type ioFailure struct {
	phase Phase
	err   error
}

// limits bound the reads and writes of an operation: each one by its own limit,
// all of them by the operation's end. A deadline that the operation sets itself
// holds instead of the single limits, but never past the end.
type limits struct {
	read, write       time.Duration
	end               time.Time
	ownRead, ownWrite atomic.Bool
}

// inForce reports whether the socket may have a deadline.
func (l *limits) inForce() bool {
	return l.read > 0 || l.write > 0 || !l.end.IsZero() || l.ownRead.Load() || l.ownWrite.Load()
}

func (l *limits) set(read, write time.Duration, end time.Time) {
	l.read, l.write, l.end = read, write, end
	l.ownRead.Store(false)
	l.ownWrite.Store(false)
}

// earlier is the earlier of two deadlines, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

func (n *Node) newConn(raw net.Conn) *Conn {
	conn := &Conn{nc: raw, raw: raw, node: n, opened: clock()}
	if n.c.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		conn.log = n.c.cfg.Log
	}
	return conn
}

// Read reads up to len(p) bytes. Use [io.ReadFull] for an exact length: TCP may
// split a message anywhere.
func (conn *Conn) Read(p []byte) (int, error) {
	if l := &conn.limits; l.read > 0 && !l.ownRead.Load() {
		conn.nc.SetReadDeadline(earlier(time.Now().Add(l.read), l.end))
		conn.stayInterrupted()
	}
	start := conn.startLog()
	n, err := conn.nc.Read(p)
	conn.read.Add(int64(n))
	if err != nil {
		conn.fail(PhaseRead, err)
	}
	if conn.log != nil {
		conn.logIO("read", start, p[:n], n, err)
	}
	return n, err
}

// Write writes all of p or returns an error and how much was taken: by the
// kernel, or under TLS by the record layer.
func (conn *Conn) Write(p []byte) (int, error) {
	if l := &conn.limits; l.write > 0 && !l.ownWrite.Load() {
		conn.nc.SetWriteDeadline(earlier(time.Now().Add(l.write), l.end))
		conn.stayInterrupted()
	}
	start := conn.startLog()
	n, err := conn.nc.Write(p)
	conn.written.Add(int64(n))
	if err != nil {
		conn.fail(PhaseWrite, err)
	}
	if conn.log != nil {
		conn.logIO("write", start, p[:n], n, err)
	}
	return n, err
}

// ReadFrom keeps the kernel's shortcuts (splice, sendfile) for io.Copy.
func (conn *Conn) ReadFrom(r io.Reader) (int64, error) {
	from, ok := conn.nc.(io.ReaderFrom)
	if !ok || conn.limits.write > 0 {
		return io.Copy(writerOnly{conn}, r)
	}
	n, err := from.ReadFrom(r)
	conn.written.Add(n)
	if err != nil {
		conn.copyFailed(PhaseWrite, err)
	}
	return n, err
}

// WriteTo keeps the kernel's shortcuts for io.Copy.
func (conn *Conn) WriteTo(w io.Writer) (int64, error) {
	to, ok := conn.nc.(io.WriterTo)
	if !ok || conn.limits.read > 0 {
		return io.Copy(w, readerOnly{conn})
	}
	n, err := to.WriteTo(w)
	conn.read.Add(n)
	if err != nil {
		conn.copyFailed(PhaseRead, err)
	}
	return n, err
}

// copyFailed notes an error of a copy in the kernel, which may be the other end's:
// then this connection is not used again, but nobody is blamed.
func (conn *Conn) copyFailed(phase Phase, err error) {
	if sc, ok := conn.raw.(syscall.Conn); ok && sockopt.NewPoller(sc).Poll() == sockopt.Closed {
		conn.fail(phase, err)
		return
	}
	conn.retired.Store(true)
}

type (
	writerOnly struct{ io.Writer }
	readerOnly struct{ io.Reader }
)

// fail notes the first error. A deadline that has passed leaves the stream in an
// unknown place, so it counts too. An interruption does not know what it stops: the
// read or write that it ends tells the phase.
func (conn *Conn) fail(phase Phase, err error) {
	for {
		f := conn.failed.Load()
		switch {
		case f == nil:
		case f.phase == PhaseUse && phase < PhaseUse:
			err = f.err
		default:
			return
		}
		if conn.failed.CompareAndSwap(f, &ioFailure{phase, err}) {
			return
		}
	}
}

// SetDeadline, SetReadDeadline and SetWriteDeadline hold instead of the limits of
// Config.Timeouts, but an operation's own end stays in force.
func (conn *Conn) SetDeadline(t time.Time) error {
	return errors.Join(conn.SetReadDeadline(t), conn.SetWriteDeadline(t))
}

func (conn *Conn) SetReadDeadline(t time.Time) error {
	conn.limits.ownRead.Store(true)
	defer conn.stayInterrupted()
	return conn.nc.SetReadDeadline(earlier(t, conn.limits.end))
}

func (conn *Conn) SetWriteDeadline(t time.Time) error {
	conn.limits.ownWrite.Store(true)
	defer conn.stayInterrupted()
	return conn.nc.SetWriteDeadline(earlier(t, conn.limits.end))
}

// CloseWrite ends the sending direction: the peer reads to its end and can still
// answer. It fails where the transport has no half-close.
func (conn *Conn) CloseWrite() error {
	half, ok := conn.nc.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("holdfast: %T has no half-close", conn.nc)
	}
	conn.retired.Store(true)
	return half.CloseWrite()
}

func (conn *Conn) LocalAddr() net.Addr  { return conn.nc.LocalAddr() }
func (conn *Conn) RemoteAddr() net.Addr { return conn.nc.RemoteAddr() }

// Node returns the node the connection leads to.
func (conn *Conn) Node() *Node { return conn.node }

// NetConn returns the socket underneath, below TLS. What is written there is not
// counted.
func (conn *Conn) NetConn() net.Conn { return conn.socket() }

// socket is what has the descriptor: Config.Dial may bring TLS of its own.
func (conn *Conn) socket() net.Conn {
	nc := conn.raw
	for {
		tc, ok := nc.(*tls.Conn)
		if !ok {
			return nc
		}
		nc = tc.NetConn()
	}
}

// SyscallConn gives access to the socket, as drivers need for their own liveness
// checks.
func (conn *Conn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := conn.socket().(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("holdfast: %T is no system socket", conn.socket())
	}
	return sc.SyscallConn()
}

// ConnectionState returns the TLS state, false when the connection is not TLS.
func (conn *Conn) ConnectionState() (tls.ConnectionState, bool) {
	tc, ok := conn.nc.(*tls.Conn)
	if !ok {
		return tls.ConnectionState{}, false
	}
	return tc.ConnectionState(), true
}

// Release gives a connection from Acquire back. It is used again unless it saw an
// error, was retired or is too old. Releasing twice panics.
func (conn *Conn) Release() { conn.end(nil, false) }

// Discard closes a connection from Acquire instead of giving it back; a non-nil
// reason counts against its node.
func (conn *Conn) Discard(reason error) { conn.end(reason, true) }

// Retire marks the connection as announced to end by its peer (a lame duck, a
// GOAWAY): it finishes its current use and is not used again.
func (conn *Conn) Retire() { conn.retired.Store(true) }

// Close closes the connection, whoever holds it. Closing twice is harmless and
// returns [net.ErrClosed].
func (conn *Conn) Close() error { return conn.node.c.closeHeld(conn) }

// end takes the connection from its holder.
func (conn *Conn) end(reason error, discard bool) {
	if !conn.pooled || !conn.holds.CompareAndSwap(true, false) {
		if conn.closed.Load() {
			return // already closed by the holder
		}
		panic("holdfast: Release or Discard of a connection that the pool has not lent")
	}
	now := clock()
	conn.node.report(now, -1, reason)
	conn.lease.Done()
	conn.node.c.giveBack(conn, discard, now)
}

// watch makes the end of ctx interrupt the connection. The returned func stops
// that, waits for it, and reports whether it happened.
func (conn *Conn) watch(ctx context.Context) (stop func() bool) {
	if ctx.Done() == nil {
		return func() bool { return false }
	}
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(done)
		conn.interrupt(ended(ctx))
	})
	return func() bool {
		if cancel() {
			return false
		}
		<-done
		return true
	}
}

// close closes the socket once. TLS says goodbye only when the stream is sound:
// after an error the notice could block, or lie.
func (conn *Conn) close() (err error, first bool) {
	if !conn.closed.CompareAndSwap(false, true) {
		return net.ErrClosed, false
	}
	if conn.failed.Load() != nil {
		return conn.socket().Close(), true
	}
	return conn.nc.Close(), true
}

// interrupt makes every read and write fail at once, for good.
func (conn *Conn) interrupt(err error) {
	conn.fail(PhaseUse, err)
	conn.interrupted.Store(true)
	conn.nc.SetDeadline(time.Unix(1, 0))
}

// stayInterrupted follows every deadline set while a context is watched: it would
// undo the interruption if that came first.
func (conn *Conn) stayInterrupted() {
	if conn.interrupted.Load() {
		conn.nc.SetDeadline(time.Unix(1, 0))
	}
}

// errDead is why a connection at rest cannot be used again.
var (
	errPeerClosed = fmt.Errorf("holdfast: the peer closed the connection at rest: %w", io.EOF)
	errLateBytes  = errors.New("holdfast: bytes arrived on a connection at rest")
)

// alive asks, without a round trip, whether a connection at rest can be used: the
// peer has not closed it and has sent nothing that nobody asked for.
func (conn *Conn) alive() error { return conn.judge(conn.arrived()) }

// arrived is what the socket has to show: bytes, or its end.
func (conn *Conn) arrived() error {
	if a, ok := conn.socket().(interface{ Alive() error }); ok {
		return a.Alive()
	}
	switch conn.poll() {
	case sockopt.Closed:
		return errPeerClosed
	case sockopt.Readable:
		return errLateBytes
	}
	return nil
}

// poll asks the socket of a connection at rest. Only its holder may.
func (conn *Conn) poll() sockopt.Readiness {
	if conn.poller == nil {
		sc, ok := conn.socket().(syscall.Conn)
		if !ok {
			return sockopt.Unknown
		}
		conn.poller = sockopt.NewPoller(sc)
	}
	return conn.poller.Poll()
}

// judge decides about bytes at rest. In plaintext they belong to no request. In
// TLS they may be tickets or a key update, which only a read through TLS can tell:
// below, it is handed what is there and nothing that would block. TLS may also hold
// bytes that came with the last reply, of which the socket shows nothing.
func (conn *Conn) judge(err error) error {
	tc, ok := conn.nc.(*tls.Conn)
	if !ok || errors.Is(err, io.EOF) {
		return err
	}
	wait, e := conn.dontWait(err != nil)
	if e != nil {
		return err // a deadline is all that could keep a read from blocking
	}
	defer wait()
	n, e := tc.Read(make([]byte, 1))
	switch {
	case n > 0:
		return errLateBytes
	case !errors.Is(e, os.ErrDeadlineExceeded):
		return errPeerClosed
	case err != nil:
		return conn.arrived() // if bytes are still there, TLS did not get to them
	}
	return nil
}

// digestTime is how long TLS that is not ours may take over bytes that have arrived.
const digestTime = time.Millisecond

// dontWait makes reads through TLS end where they would wait, until the returned func
// is called. What is below TLS that the user's dialer made, nobody can look at: a
// deadline ends its reads, one in the past leaves those of what TLS holds already.
func (conn *Conn) dontWait(arrived bool) (wait func(), err error) {
	if conn.socket() == conn.raw {
		below := conn.tls.NetConn().(*belowTLS)
		below.noWait.Store(true)
		return func() { below.noWait.Store(false) }, nil
	}
	end := time.Unix(1, 0)
	if arrived {
		end = time.Now().Add(digestTime)
	}
	return func() { conn.nc.SetReadDeadline(time.Time{}) }, conn.nc.SetReadDeadline(end)
}

// belowTLS stands between TLS and the socket so that TLS can be asked to digest
// what has arrived without waiting for more.
type belowTLS struct {
	net.Conn
	conn   *Conn
	noWait atomic.Bool
}

// errNothingYet is temporary, so that TLS forgets it.
var errNothingYet = &nothingYet{}

type nothingYet struct{}

func (*nothingYet) Error() string   { return "holdfast: nothing to read yet" }
func (*nothingYet) Timeout() bool   { return true }
func (*nothingYet) Temporary() bool { return true }
func (*nothingYet) Is(t error) bool { return t == os.ErrDeadlineExceeded }

func (b *belowTLS) Read(p []byte) (int, error) {
	if b.noWait.Load() && b.conn.arrived() == nil {
		return 0, errNothingYet
	}
	return b.Conn.Read(p)
}

// levelPayload is below debug: payloads are opt-in twice.
const levelPayload = slog.LevelDebug - 4

func (conn *Conn) startLog() time.Duration {
	if conn.log == nil {
		return 0
	}
	return clock()
}

func (conn *Conn) logIO(op string, start time.Duration, p []byte, n int, err error) {
	ctx := context.Background()
	attrs := []slog.Attr{slog.String("addr", conn.node.addr), slog.Int("bytes", n), slog.Duration("duration", clock()-start)}
	if err != nil {
		attrs = append(attrs, slog.String("class", conn.node.c.cfg.Retry.Classify(err).String()), slog.String("err", clip(err.Error())))
	}
	conn.log.LogAttrs(ctx, slog.LevelDebug, "holdfast "+op, attrs...)
	if redact := conn.node.c.cfg.Payload; redact != nil && conn.log.Enabled(ctx, levelPayload) {
		conn.log.LogAttrs(ctx, levelPayload, "holdfast payload", slog.String("op", op), slog.String("data", string(redact(p))))
	}
}
