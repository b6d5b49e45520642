package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/spool"
)

// ErrServerClosed is what Serve returns after Shutdown or Close. It matches
// [net.ErrClosed].
var ErrServerClosed = fmt.Errorf("serve: server closed: %w", net.ErrClosed)

// A Handler speaks the protocol on one connection. ctx ends with the connection, and
// when the server is cut. When ServeConn returns, the connection is closed; an error
// says why, and is logged unless it is the peer's end.
type Handler interface {
	ServeConn(ctx context.Context, c *Conn) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, c *Conn) error

// ServeConn calls f.
func (f HandlerFunc) ServeConn(ctx context.Context, c *Conn) error { return f(ctx, c) }

// Server serves connections. Its zero value with a Handler is useful; fields must not
// change after first use. Methods may be called concurrently. Shutdown or Close ends
// it, for good.
type Server struct {
	Handler  Handler
	Limits   Limits
	Gate     *Gate // nil is one of its own, with Limits; else they are the Gate's
	Timeouts Timeouts
	TLS      TLS   // the zero value is plaintext
	Proxy    Proxy // whose word about the client's address is taken
	Socket   Socket
	Drain    Drain

	// Workers is how many goroutines accept and serve, one connection at a time
	// each; who comes when all are busy waits in the socket's queue. 0 is a
	// goroutine for each connection.
	Workers int

	// Resume rebuilds a connection of the predecessor, before it is served: state is
	// what its Session gave by MarshalBinary, or what was passed to Detach. An error
	// leaves the connection with the predecessor. nil keeps the state for
	// Conn.Resumed only.
	Resume func(c *Conn, state []byte) error

	Log     *slog.Logger // nil discards; what is too slow to take it loses records, and says so
	Observe func(Event)  // nil is nobody; called from many goroutines, never under a lock

	once     sync.Once
	gate     *Gate
	log      *slog.Logger
	endLog   func(time.Duration)
	limits   timeouts
	failures sparingly // of headers and handshakes, in the log
	base     context.Context
	cancel   context.CancelCauseFunc
	draining chan struct{} // closed when Draining begins
	closed   chan struct{} // closed when no more is accepted
	shakes   chan struct{} // a place for each handshake that computes
	serving  sync.WaitGroup
	counts   counters
	ids      atomic.Uint64
	passing  atomic.Pointer[passage] // while HandOver runs

	mu        sync.Mutex
	conns     map[*Conn]struct{}
	listeners map[*listening]struct{}
	own       *listening // of the connections that were accepted elsewhere
	accepting int        // loops that may come up with one more connection
	keys      [][32]byte
	isDrained bool
	isClosed  bool          // no connection is served any more
	quiet     chan struct{} // closed when no accept loop runs, and none will
	empty     chan struct{} // closed when drained and no connection is left
}

// Timeouts are absolute: they end at a moment, however many bytes trickle in until
// then. 0 is the default, negative is none.
type Timeouts struct {
	Handshake time.Duration // TLS: 10 s
	Header    time.Duration // the PROXY header: 5 s
	Idle      time.Duration // between two messages, or reads of a raw handler: 1 h
	Read      time.Duration // of one message, from its first byte: 30 s
	Write     time.Duration // for the peer to take what is written, or 128 KiB of it: 30 s
	Lifetime  time.Duration // of a connection, ended between two messages: none
}

type timeouts = Timeouts

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, value time.Duration) {
		switch {
		case *d == 0:
			*d = value
		case *d < 0:
			*d = 0
		}
	}
	set(&t.Handshake, 10*time.Second)
	set(&t.Header, 5*time.Second)
	set(&t.Idle, time.Hour)
	set(&t.Read, 30*time.Second)
	set(&t.Write, 30*time.Second)
	set(&t.Lifetime, 0)
	return t
}

// Drain is how connections end when the server does.
type Drain struct {
	// Goodbye tells the client, in its protocol, that the connection will end: a
	// GOAWAY. For Frames it runs between two messages; for raw handlers beside them.
	Goodbye func(ctx context.Context, c *Conn) error

	// Wait is how long a connection is served after its goodbye, for the client to
	// leave by itself: 0 is 5 s, negative is not at all. Without Goodbye nobody could
	// know, and there is no wait.
	Wait time.Duration

	// Linger is how long the peer may take to read the last bytes: 0 is 1 s,
	// negative is not at all.
	Linger time.Duration
}

func (s *Server) begin() {
	s.once.Do(func() {
		if s.Handler == nil {
			panic("serve: a Server without a Handler")
		}
		s.log, s.endLog = spool.New(s.Log) // what blocks a log must not block a connection
		if s.gate = s.Gate; s.gate == nil {
			s.gate = &Gate{Limits: s.Limits}
		}
		s.limits = s.Timeouts.withDefaults()
		s.base, s.cancel = context.WithCancelCause(context.Background())
		s.draining, s.closed = make(chan struct{}), make(chan struct{})
		s.quiet, s.empty = make(chan struct{}), make(chan struct{})
		s.shakes = make(chan struct{}, s.gate.limits().MaxHandshakes)
		s.conns, s.listeners = map[*Conn]struct{}{}, map[*listening]struct{}{}
	})
}

// ServeConn serves a connection that was accepted elsewhere, as if Serve had: it is
// admitted, and closed at the end. It returns why it ended.
func (s *Server) ServeConn(conn net.Conn) error {
	s.begin()
	ln, err := s.elsewhere()
	if err != nil {
		conn.Close()
		return err
	}
	c, err := s.admit(ln, conn, s.gate.Enter)
	if err != nil {
		return err
	}
	return s.serveConn(c)
}

func (s *Server) newConn(ln *listening, raw net.Conn) *Conn {
	c := &Conn{srv: s, ln: ln, raw: raw, nc: raw, id: s.ids.Add(1)}
	c.ctx, c.cancel = context.WithCancel(s.base)
	c.reads.forget()
	c.writes.forget()
	return c
}

// admit counts a connection and enters it in the books. What is refused is closed.
func (s *Server) admit(ln *listening, raw net.Conn, enter func(*Pass) error) (*Conn, error) {
	s.counts.accepted.Add(1)
	c := s.newConn(ln, raw)
	if err := enter(&c.pass); err != nil {
		c.cancel()
		s.refuse(raw, err)
		return nil, err
	}
	if !s.enlist(c) {
		c.cancel()
		c.pass.Leave()
		raw.Close()
		return nil, ErrServerClosed
	}
	return c, nil
}

// enlist enters a connection; it fails when the server is closed.
func (s *Server) enlist(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return false
	}
	s.conns[c] = struct{}{}
	s.serving.Add(1)
	return true
}

// beside runs do in a goroutine that serving waits for, unless the connection is gone.
func (s *Server) beside(c *Conn, do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.conns[c]; open {
		s.serving.Go(do) // its own count is in serving, which so is not at zero
	}
}

func (s *Server) delist(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.checkEmptyLocked()
	s.mu.Unlock()
	if p := s.passing.Load(); p != nil { // it may have found c before that
		p.left(c)
	}
	c.cancel()
	c.pass.Leave()
	s.serving.Done()
}

func (s *Server) checkEmptyLocked() {
	if s.isDrained && len(s.conns) == 0 {
		s.isClosed = true
		closeOnce(s.empty)
	}
}

// closeOnce closes a channel that only the holder of a lock closes.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// serveConn is the life of a connection, or a part of it between two rests.
func (s *Server) serveConn(c *Conn) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(c, p)
		}
		if err == errRest {
			c.publish()
			go s.rest(c) // it is counted as before
			return
		}
		c.finish(err)
		s.delist(c)
	}()
	if c.stage.Load() == preparing {
		if err := s.prepare(c.ctx, c); err != nil {
			return err
		}
		s.handle(c)
	}
	err = s.Handler.ServeConn(c.ctx, c)
	if err != nil && !c.moved && err != errRest && !expected(err) {
		s.log.Debug("serve: connection ended", "id", c.id, "remote", c.RemoteAddr(), "err", clip(err.Error()))
	}
	return err
}

// handle makes a prepared connection ready for its handler.
func (s *Server) handle(c *Conn) {
	if !s.rests() { // a read loop of ours begins by itself
		c.setStage(handled)
		if c.leaving() {
			c.goodbye() // it came before there was anybody to tell
		}
	}
	if s.limits.Lifetime > 0 {
		c.life = time.AfterFunc(s.limits.Lifetime, c.expire)
	}
}

// prepare does what comes before the handler.
func (s *Server) prepare(ctx context.Context, c *Conn) error {
	if c.taken {
		return s.Socket.apply(c.raw) // the rest its predecessor did
	}
	if err := s.Socket.apply(c.raw); err != nil {
		return err
	}
	if err := s.readHeader(c); err != nil {
		s.counts.badHeaders.Add(1)
		return s.unprepared(HeaderFailed, c, err)
	}
	if err := c.pass.admit(c); err != nil {
		s.refuse(c.raw, err)
		return err
	}
	if c.ln.tls == nil {
		return nil
	}
	if err := s.shake(ctx, c); err != nil {
		s.counts.handshakeFailures.Add(1)
		return s.unprepared(HandshakeFailed, c, err)
	}
	return nil
}

// unprepared tells of a client that did not get as far as the handler. Such there may
// be many.
func (s *Server) unprepared(what EventKind, c *Conn, err error) error {
	if unlogged, now := s.failures.now(); now {
		s.log.Warn("serve: "+string(what), "remote", c.RemoteAddr(), "err", clip(err.Error()), "unlogged", unlogged)
	}
	s.event(Event{Kind: what, Remote: c.RemoteAddr(), Err: err})
	return err
}

func (s *Server) panicked(c *Conn, p any) error {
	stack, err := debug.Stack(), fmt.Errorf("serve: panic: %v", p)
	s.counts.panics.Add(1)
	s.log.Error("serve: panic in a handler", "id", c.id, "remote", c.RemoteAddr(), "panic", clip(fmt.Sprint(p)), "stack", string(stack))
	s.event(Event{Kind: Panicked, Remote: c.RemoteAddr(), Err: err, Stack: stack})
	return err
}

func (s *Server) refuse(raw net.Conn, err error) {
	if last := s.gate.limits().RejectWith; len(last) > 0 && errors.Is(err, ErrTooMany) && s.TLS.off() {
		raw.SetWriteDeadline(time.Now().Add(time.Second)) // a fresh socket's buffer takes it at once
		raw.Write(last)
	}
	raw.Close()
	s.event(Event{Kind: Refused, Remote: raw.RemoteAddr(), Err: err})
}

// Shutdown stops accepting and lets connections end: see the package's Draining.
// It returns when all have, or ctx ends; then it cuts what is left and says how many
// those were. Nothing runs any more when it returns.
func (s *Server) Shutdown(ctx context.Context) error {
	s.begin()
	defer s.endLog(time.Second)
	s.stopAccepting()
	select {
	case <-s.quiet:
	case <-ctx.Done():
	}
	s.drainAll()
	select {
	case <-s.empty:
		s.cancel(ErrServerClosed)
		s.serving.Wait()
		return nil
	case <-ctx.Done():
	}
	n := s.cutAll()
	s.serving.Wait()
	if n == 0 {
		return nil
	}
	return fmt.Errorf("serve: %d connections were cut: %w", n, context.Cause(ctx))
}

// Close ends the server at once. It returns when nothing runs any more; a handler
// that does not heed its context or its connection is waited for.
func (s *Server) Close() error {
	s.begin()
	defer s.endLog(time.Second)
	s.stopAccepting()
	<-s.quiet
	s.cutAll()
	s.serving.Wait()
	return nil
}

func (s *Server) stopAccepting() {
	s.mu.Lock()
	closeOnce(s.closed)
	if s.accepting == 0 {
		closeOnce(s.quiet)
	}
	all := slices.Collect(maps.Keys(s.listeners))
	s.mu.Unlock()
	for _, ln := range all {
		ln.Close() // the user's function, perhaps
	}
}

// mayAccept is called before each accept; after it comes accepted.
func (s *Server) mayAccept() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if isClosed(s.closed) {
		return false
	}
	s.accepting++
	return true
}

func (s *Server) accepted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepting--
	if s.accepting == 0 && isClosed(s.closed) {
		closeOnce(s.quiet)
	}
}

// drainAll tells every connection, those that come from an accept under way included.
func (s *Server) drainAll() {
	s.mu.Lock()
	s.isDrained = true
	closeOnce(s.draining)
	s.checkEmptyLocked()
	all := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range all {
		c.goodbye()
	}
}

func (s *Server) cutAll() (n int) {
	s.mu.Lock()
	s.isClosed = true
	all := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	s.cancel(ErrServerClosed)
	for _, c := range all {
		c.raw.Close()
	}
	s.counts.cut.Add(uint64(len(all)))
	return len(all)
}

// TicketKeys sets the master of the TLS session ticket keys, newest first: servers
// with the same keys and the same policy for clients resume each other's sessions.
func (s *Server) TicketKeys(keys [][32]byte) {
	s.begin()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
	for ln := range s.listeners {
		ln.setTickets(keys)
	}
	if s.own != nil {
		s.own.setTickets(keys)
	}
}

// expected reports whether an error is the peer's end, or ours.
func expected(err error) bool {
	return errors.Is(err, errEnd) || errors.Is(err, errPeerEnd) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled)
}

func tlsState(nc net.Conn) (tls.ConnectionState, bool) {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return tls.ConnectionState{}, false
	}
	return tc.ConnectionState(), true
}
