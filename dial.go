package holdfast

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/certs"
)

// connect makes a connection to one node and keeps the node's books: backoff,
// health, statistics. Pooled or not, every connection comes from here. A node that had
// less than least when ctx ended is not blamed.
func (c *Cluster) connect(ctx context.Context, n *Node, least time.Duration, handshake func(context.Context, *Conn) error) (*Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return c.connectUntil(ctx, &cancel, n, least, handshake)
}

// connectUntil is connect with a context that cancel ends, for who has one: a context
// between two others costs a dial six allocations.
func (c *Cluster) connectUntil(ctx context.Context, cancel *context.CancelCauseFunc, n *Node, least time.Duration, handshake func(context.Context, *Conn) error) (*Conn, error) {
	if err := c.dialBegins(n, cancel); err != nil {
		return nil, err
	}
	defer c.dialEnds(n, cancel)

	start := clock()
	conn, err := c.dial(ctx, n, handshake)
	took := clock() - start
	n.totals.dials.Add(1)
	event := Event{Kind: EventDial, Node: n, Duration: took}
	if err == nil {
		n.dialTimes.Record(took)
		if err = c.adopt(conn, event); err != nil {
			conn.raw.Close()
		}
	}
	if err != nil {
		return nil, c.connectFailed(ctx, n, least, err, event)
	}
	c.settle()
	return conn, nil
}

// dialBegins keeps the node of a dial under way, and makes Close cancel it without a
// goroutine to wait for that, until dialEnds.
func (c *Cluster) dialBegins(n *Node, cancel *context.CancelCauseFunc) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.keepLocked(n); err != nil {
		return err
	}
	c.cuts[cancel] = struct{}{}
	if c.closed {
		(*cancel)(ErrClosed)
	}
	return nil
}

func (c *Cluster) dialEnds(n *Node, cancel *context.CancelCauseFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.cuts, cancel)
	c.letGoLocked(n)
}

// adopt enters a new connection in the books, unless the Cluster was closed.
func (c *Cluster) adopt(conn *Conn, event Event) error {
	n := conn.node
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return &Error{Phase: PhaseDial, Class: ClassClosed, Endpoint: n.Endpoint(), Node: n.String(), Err: ErrClosed}
	}
	event.Attempt = n.failures + 1
	c.emitLocked(event)
	n.conns[conn] = struct{}{}
	if conn.probe {
		n.probes++
	}
	n.pool.unproven = false
	n.connectedLocked()
	return nil
}

// connectFailed blames the node, unless the caller gave up, was in a hurry, or this
// host is at fault, and returns the error.
func (c *Cluster) connectFailed(ctx context.Context, n *Node, least time.Duration, err error, event Event) error {
	var e *Error
	errors.As(err, &e)
	switch end := ended(ctx); {
	case c.ctx.Err() != nil:
		e.Err, e.Class = ErrClosed, ClassClosed
	case errors.Is(end, context.Canceled):
		e.Err, e.Class = end, c.cfg.Retry.Classify(end)
	}
	event.Err = e
	c.connectBlamed(n, !e.Class.local() && !late(ctx) && !(e.Timeout() && ended(ctx) != nil && event.Duration < least), e, event)
	c.settle()
	return e
}

// connectBlamed enters a failed connect in the books, and holds it against the node if
// that is to blame.
func (c *Cluster) connectBlamed(n *Node, blame bool, e *Error, event Event) {
	n.totals.dialFailures.Add(1)
	c.mu.Lock()
	event.Attempt = n.failures + 1
	if blame {
		n.connectFailedLocked(e)
	}
	c.emitLocked(event)
	c.mu.Unlock()
	if blame {
		n.report(clock(), -1, e)
	}
}

// late reports whether ctx should have ended much earlier: then this host was
// stopped or starved, and what failed in it says nothing about the node.
func late(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ok && time.Since(end) > starved
}

// dial is the attempt itself: socket, TLS, handshakes.
func (c *Cluster) dial(ctx context.Context, n *Node, handshake func(context.Context, *Conn) error) (*Conn, error) {
	raw, err := c.dialSocket(ctx, n)
	if err != nil {
		return nil, n.dialError(PhaseDial, err)
	}
	conn := n.newConn(raw)
	if err := conn.shake(ctx, handshake); err != nil {
		raw.Close()
		return nil, n.dialError(PhaseHandshake, err)
	}
	return conn, nil
}

// asError is err as an *Error of this node, nil if err is nil. It calls the user's
// Classify: never under the lock.
func (n *Node) asError(phase Phase, err error) *Error {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return e
	}
	return n.dialError(phase, err)
}

func (n *Node) dialError(phase Phase, err error) *Error {
	return &Error{Phase: phase, Class: n.c.cfg.Retry.Classify(err), Endpoint: n.Endpoint(), Node: n.String(), Err: err}
}

func (c *Cluster) dialSocket(ctx context.Context, n *Node) (net.Conn, error) {
	ctx, cancel := limit(ctx, c.cfg.Timeouts.Dial)
	defer cancel()
	if c.cfg.Dial != nil {
		return c.dialOwn(ctx, n)
	}
	raw, err := c.dialer.DialContext(ctx, n.network, n.addr)
	if err != nil {
		return nil, err
	}
	if dialedItself(raw) {
		raw.Close() // a port of ours that nobody listened on: the kernel connected it to itself
		return nil, &net.OpError{Op: "dial", Net: n.network, Addr: raw.RemoteAddr(), Err: syscall.ECONNREFUSED}
	}
	if err := c.cfg.Socket.options().Apply(raw); err != nil {
		raw.Close()
		return nil, err
	}
	return raw, nil
}

// dialOwn calls the user's dialer. It may not heed its context, so it runs aside,
// and what it brings too late is closed.
func (c *Cluster) dialOwn(ctx context.Context, n *Node) (net.Conn, error) {
	type dialed struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialed)
	started := c.spawn(func() {
		conn, err := guarded(func() (net.Conn, error) { return c.cfg.Dial(ctx, n.network, n.addr) })
		select {
		case done <- dialed{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				conn.Close()
			}
		}
	})
	if !started {
		return nil, ErrClosed
	}
	select {
	case d := <-done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: n.network, Err: ctx.Err()}
	}
}

// dialedItself reports whether both ends are the same socket.
func dialedItself(raw net.Conn) bool {
	here, ok := raw.LocalAddr().(*net.TCPAddr)
	there, also := raw.RemoteAddr().(*net.TCPAddr)
	return ok && also && here.Port == there.Port && here.IP.Equal(there.IP)
}

// limit bounds ctx by d; 0 leaves it as it is.
func limit(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d)
}

// shake does TLS, Config.Handshake and the caller's own handshake within one
// absolute limit, so that a peer that feeds it a byte at a time gains nothing.
func (conn *Conn) shake(ctx context.Context, own func(context.Context, *Conn) error) error {
	n, cfg := conn.node, &conn.node.c.cfg
	if !n.Endpoint().TLS && cfg.Handshake == nil && own == nil {
		return nil
	}
	caller := ctx
	ctx, cancel := limit(ctx, cfg.Timeouts.Handshake)
	defer cancel()
	if e := n.Endpoint(); e.TLS {
		conn.tls = tls.Client(&belowTLS{Conn: conn.raw, conn: conn}, n.c.tlsConfig(e))
		conn.nc = conn.tls // before anyone may interrupt it
	}
	end, _ := ctx.Deadline()
	conn.limits.set(0, 0, end)
	conn.nc.SetDeadline(end)
	stop := conn.watch(ctx)
	err := conn.shakeHands(ctx, own)
	interrupted := stop()
	switch cause := ended(caller); {
	case err != nil && cause != nil:
		err = errors.Join(cause, err)
	case interrupted:
		err = errors.Join(ended(ctx), err)
	}
	if err != nil {
		return err
	}
	conn.greeted = conn.read.Load()
	conn.limits.set(0, 0, time.Time{})
	return conn.nc.SetDeadline(time.Time{})
}

func (conn *Conn) shakeHands(ctx context.Context, own func(context.Context, *Conn) error) error {
	if conn.tls != nil {
		if err := conn.tls.HandshakeContext(ctx); err != nil {
			return tlsFailure{err}
		}
	}
	for _, f := range []func(context.Context, *Conn) error{conn.node.c.cfg.Handshake, own} {
		if f == nil {
			continue
		}
		if _, err := guarded(func() (struct{}, error) { return struct{}{}, f(ctx, conn) }); err != nil {
			return err
		}
	}
	if f := conn.failed.Load(); f != nil {
		return f.err // a handshake that hides its error leaves the stream in an unknown place
	}
	return nil
}

// baseTLS fills in what the user's configuration leaves open.
func (c *Cluster) baseTLS() *tls.Config {
	cfg := &tls.Config{}
	if c.cfg.TLS != nil {
		cfg = c.cfg.TLS.Clone()
	}
	certs.Safe(cfg)
	if cfg.ClientSessionCache == nil {
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(0)
	}
	return cfg
}

// tlsConfig is the configuration for one endpoint. Its own server name comes first,
// then that of Config.TLS, then its host.
func (c *Cluster) tlsConfig(e Endpoint) *tls.Config {
	if e.ServerName == "" && c.tls.ServerName != "" {
		return certs.For(c.tls, c.tls.ServerName)
	}
	return certs.For(c.tls, e.serverName())
}

// guarded turns a panic of the user's function into an error: it runs in a
// goroutine of ours, where a panic would end the process.
func guarded[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("holdfast: panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// DialContext returns a new connection for a driver that keeps its own: plug it
// in wherever a func(ctx, network, addr) is wanted. It makes one pass over the
// nodes, staggered, without sleeping or repeating: drivers retry by themselves.
//
// An addr equal to a node's resolved address dials that node, as drivers do to
// cancel a request; any other addr, and network, only name the cluster. Use
// [Cluster.DialAddr] when addr itself is meant. The connection is a
// [*Conn]; it counts as load of its node until it is closed, and is cut by Close of
// the Cluster.
func (c *Cluster) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := c.waitResolved(ctx); err != nil {
		return nil, err
	}
	if n := c.nodeAt(addr); n != nil {
		return c.dialOwned(ctx, n)
	}
	r := c.newRace((*Cluster).pickAny, (*Cluster).dialTry)
	conn, err := r.lead(ctx)
	if err != nil {
		return nil, err
	}
	c.hide(len(r.losers(0, conn)))
	return conn, nil
}

// DialAddr connects to addr itself, a host:port or any address of
// [ParseEndpoint], with this Cluster's resolving, staggering, TLS and socket
// options, but without choosing among its endpoints: for protocols that name
// their nodes, such as Kafka or Redis Cluster. network is "tcp", "unix" or "udp".
func (c *Cluster) DialAddr(ctx context.Context, network, addr string) (net.Conn, error) {
	e, err := ParseEndpoint(addr)
	if err != nil {
		return nil, err
	}
	if e.Network == "tcp" && network != "" {
		e.Network = network
	}
	c.begin()
	if err := c.closedNow(); err != nil {
		return nil, err
	}
	resolved, _, err := c.lookup(ctx, e, nil)
	if err != nil {
		return nil, &Error{Phase: PhaseResolve, Class: c.cfg.Retry.Classify(err), Endpoint: e, Err: err}
	}
	nodes := c.foreignNodes(familiesInTurn(resolved))
	defer c.letGo(nodes)
	conn, err := c.newRace(pickAmong(nodes), (*Cluster).dialTry).lead(ctx)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (c *Cluster) dialOwned(ctx context.Context, n *Node) (net.Conn, error) {
	n.inflight.Add(1)
	lease := Lease{n}
	conn, err := lease.Dial(ctx, nil)
	if err != nil {
		lease.Done()
		return nil, err
	}
	conn.hold(lease, clock())
	return conn, nil
}

// hold gives the connection the lease of its holder.
func (conn *Conn) hold(l Lease, now time.Duration) {
	conn.lease = l
	conn.since = now
	conn.start = conn.written.Load()
	conn.holds.Store(true)
}
