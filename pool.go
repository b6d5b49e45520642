package holdfast

import (
	"context"
	"slices"
	"time"
)

// nodePool is a node's part of the pool, guarded by the Cluster's lock: a stack
// of connections at rest and a queue of callers that wait for one. A slot is a
// connection or the dial of one; it is free again only when the close returned,
// so a storm of closes can never exceed the limit at the server.
type nodePool struct {
	idle     []*Conn // the last one was used last
	waiters  []*try  // the first one came first
	open     int     // slots taken
	dialing  int
	away     int  // connections at rest that are being looked at
	unproven bool // after a break: one dial at a time until one succeeds
}

// Acquire lends a pooled connection of a node of the policy's choice; Release,
// Discard or Close ends that. ctx bounds the wait, not the connection: a dial
// that was begun for a caller who left goes on and serves the next.
func (c *Cluster) Acquire(ctx context.Context) (*Conn, error) {
	conn, failed, err := c.acquire(ctx, nil)
	if err != nil {
		return nil, err
	}
	c.hide(len(failed))
	return conn, nil
}

// hide counts failures that no caller saw.
func (c *Cluster) hide(failures int) {
	if failures > 0 {
		c.stats.hidden.Add(uint64(failures))
	}
}

// acquire takes a connection at rest, or races for one. failed are the nodes that
// failed or were overtaken on the way.
func (c *Cluster) acquire(ctx context.Context, tried []*Node) (conn *Conn, failed []*Node, err error) {
	if end := ended(ctx); end != nil {
		return nil, nil, &Error{Phase: PhaseAcquire, Class: c.cfg.Retry.Classify(end), Err: end}
	}
	lease, err := c.Pick(0, tried)
	if err == nil {
		now := clock()
		if conn := c.takeIdle(lease.n, now); conn != nil {
			conn.hold(lease, now)
			return conn, nil, nil
		}
	} else if err := c.waitResolved(ctx); err != nil {
		return nil, nil, err
	}
	start := clock()
	conn, failed, err = c.race(ctx, lease, tried)
	c.stats.wait.Record(clock() - start)
	return conn, failed, err
}

// takeIdle takes the connection that was used last and is still good.
func (c *Cluster) takeIdle(n *Node, now time.Duration) *Conn {
	for {
		c.mu.Lock()
		conn := n.pool.popLocked()
		c.mu.Unlock()
		if conn == nil {
			return nil
		}
		cause := conn.unfit(now)
		if cause == nil {
			return conn
		}
		c.closeConn(conn, cause)
	}
}

func (p *nodePool) popLocked() *Conn {
	if len(p.idle) == 0 {
		return nil
	}
	last := len(p.idle) - 1
	conn := p.idle[last]
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return conn
}

var (
	errTooOld   = error(ownReason("holdfast: the connection reached its lifetime"))
	errIdleLong = error(ownReason("holdfast: the connection lay idle too long"))
	errRetired  = error(ownReason("holdfast: the connection was retired"))
)

// ownReason is why we close a connection that nothing is wrong with.
type ownReason string

func (r ownReason) Error() string { return string(r) }

// unfit says why a connection at rest may not be used again.
func (conn *Conn) unfit(now time.Duration) error {
	p := &conn.node.c.cfg.Pool
	rest := now - conn.since
	switch {
	case conn.expired(now):
		return errTooOld
	case p.MaxIdleTime > 0 && rest >= p.MaxIdleTime:
		return errIdleLong
	case conn.retired.Load():
		return errRetired
	case p.CheckIdle >= 0 && rest >= p.CheckIdle:
		return conn.alive()
	}
	return nil
}

func (conn *Conn) expired(now time.Duration) bool {
	at := conn.expires.Load()
	return at != 0 && now >= time.Duration(at)
}

// giveBack ends a loan: the connection goes to the first who waits for its node,
// to rest, or away.
func (c *Cluster) giveBack(conn *Conn, discard bool, now time.Duration) {
	var cause error
	if conn.limits.inForce() {
		conn.limits.set(0, 0, time.Time{})
		cause = conn.nc.SetDeadline(time.Time{})
	}
	switch f := conn.failed.Load(); {
	case f != nil:
		cause = f.err
	case discard:
		cause = errDiscarded
	case conn.retired.Load():
		cause = errRetired
	case conn.expired(now):
		cause = errTooOld
	}
	if cause != nil {
		c.closeConn(conn, cause)
		return
	}
	c.park(conn, now)
}

// park hands a good connection on, lays it to rest, or closes it if it may not
// rest.
func (c *Cluster) park(conn *Conn, since time.Duration) {
	c.mu.Lock()
	cause := c.parkLocked(conn, since)
	c.mu.Unlock()
	if cause != nil {
		c.closeConn(conn, cause)
	}
}

var (
	errDiscarded = error(ownReason("holdfast: discarded by its holder"))
	errSlot      = error(ownReason("holdfast: its slot is needed for another node"))
	errUnwanted  = error(ownReason("holdfast: its node is not in use"))
)

// parkLocked hands a good connection on or lays it to rest; an error says why it
// must be closed instead.
func (c *Cluster) parkLocked(conn *Conn, since time.Duration) error {
	n := conn.node
	if err := c.closedLocked(); err != nil {
		return err
	}
	if n.draining || (n.outLocked() && !c.panicking) {
		return errUnwanted
	}
	if conn.opened+c.cfg.Backoff.StableAfter <= since {
		n.stableLocked()
	}
	for len(n.pool.waiters) > 0 {
		t := n.pool.waiters[0]
		c.removeWaiterLocked(n, 0)
		if t.deliver(conn, nil) {
			c.codel.noteLocked(clock()-t.started, c.cfg.Pool.WaitTarget)
			return nil
		}
	}
	if c.open >= c.cfg.Pool.Total && c.slotWantedLocked() {
		return errSlot
	}
	conn.since = since
	i := len(n.pool.idle)
	for i > 0 && n.pool.idle[i-1].since > since {
		i--
	}
	n.pool.idle = slices.Insert(n.pool.idle, i, conn)
	return nil
}

// poolTry queues a try for a connection of its node and sees to it that one is
// made if there may be more.
func (c *Cluster) poolTry(_ context.Context, t *try) error {
	n := t.lease.n
	if conn := c.takeIdle(n, clock()); conn != nil {
		t.deliver(conn, nil)
		return nil
	}
	c.mu.Lock()
	defer c.settle()
	defer c.mu.Unlock()
	if err := c.closedLocked(); err != nil {
		return &Error{Phase: PhaseAcquire, Class: ClassClosed, Err: err}
	}
	if n.draining || n.outLocked() && !c.panicking { // went out in between
		t.deliver(nil, n.away(errUnwanted))
		return nil
	}
	if conn := n.pool.popLocked(); conn != nil { // came back in between
		t.deliver(conn, nil)
		return nil
	}
	n.pool.waiters = append(n.pool.waiters, t)
	c.waiting++
	if t.race.queued++; t.race.queued == 1 {
		c.callers++
	}
	evicting := c.evicting
	c.pumpLocked(n)
	// A backoff may be overtaken too, and an eviction is the beginning of a dial.
	t.dialing = n.pool.dialing > 0 || n.retryAt != 0 || c.evicting > evicting
	if most := c.cfg.Pool.Waiters; c.callers > most && c.waiting-c.dialing > most {
		c.removeWaiterLocked(n, len(n.pool.waiters)-1)
		return &Error{Phase: PhaseAcquire, Class: ClassExhausted, Endpoint: n.Endpoint(), Node: n.String(), Err: ErrPoolExhausted}
	}
	return nil
}

func (c *Cluster) removeWaiterLocked(n *Node, i int) {
	w := n.pool.waiters
	r := w[i].race
	if r.queued--; r.queued == 0 {
		c.callers--
	}
	copy(w[i:], w[i+1:])
	w[len(w)-1] = nil
	n.pool.waiters = w[:len(w)-1]
	c.waiting--
}

// dequeue takes a try that no longer waits out of its queue.
func (c *Cluster) dequeue(t *try) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := t.lease.n
	for i, w := range n.pool.waiters {
		if w == t {
			c.removeWaiterLocked(n, i)
			return
		}
	}
}

// unwanted takes back what a race got after it was won.
func (c *Cluster) unwanted(conn *Conn) {
	if conn.pooled {
		c.giveBack(conn, false, clock())
	} else {
		conn.Close()
	}
	c.settle()
}

// closeHeld is Conn.Close: the holder, if there is one, lets go.
func (c *Cluster) closeHeld(conn *Conn) error {
	held := conn.holds.CompareAndSwap(true, false)
	if held && !conn.pooled {
		conn.lease.reportStream(conn)
	}
	err := c.closeConn(conn, errDiscarded)
	if held {
		conn.lease.Done()
	}
	return err
}

// reportStream judges a connection that its owner closed: bytes read are a
// success, a break before any is a failure, and silence says nothing.
func (l Lease) reportStream(conn *Conn) {
	f := conn.failed.Load()
	switch {
	case f == nil || conn.read.Load() > 0:
		l.Report(-1, nil)
	case l.n.c.cfg.Retry.Classify(f.err) != ClassTimeout:
		l.Report(-1, f.err)
	}
}

// closeConn closes a connection and enters that in the books.
func (c *Cluster) closeConn(conn *Conn, cause error) error {
	err, first := conn.close()
	if !first {
		return err
	}
	n := conn.node
	broke := conn.broke(cause)
	n.totals.written.Add(uint64(conn.written.Load()))
	n.totals.read.Add(uint64(conn.read.Load()))
	c.mu.Lock()
	delete(n.conns, conn)
	if conn.probe {
		n.probes--
	}
	if conn.pooled {
		c.freeSlotLocked(n)
	}
	if broke != nil {
		c.brokeLocked(conn, broke)
	}
	c.emitLocked(Event{Kind: EventClose, Node: n, Cause: cause.Error(), Duration: clock() - conn.opened})
	n.changedLocked("last connection closed", nil)
	c.forgetLocked(n)
	c.quietLocked()
	c.mu.Unlock()
	c.settle()
	return err
}

// broke returns the error when the connection was ended by the peer or the
// network rather than by us.
func (conn *Conn) broke(cause error) *Error {
	if f := conn.failed.Load(); f != nil {
		cause = f.err
	} else if _, ours := cause.(ownReason); ours {
		return nil
	}
	e := conn.node.dialError(PhaseUse, cause)
	switch e.Class {
	case ClassReset, ClassEOF, ClassIO: // a time limit is ours: it says nothing about the connection's end
		return e
	}
	return nil
}

// brokeLocked notes a break. A connection that never served anyone and did not
// last is a failed connect, so a server that accepts and closes is backed off, unless
// its end was expected (Retire, CloseWrite); any other only delays connects that nobody
// waits for.
func (c *Cluster) brokeLocked(conn *Conn, err *Error) {
	n := conn.node
	n.pool.unproven = true
	n.lostLocked()
	if !conn.served.Load() && !conn.retired.Load() && conn.read.Load() == conn.greeted && clock()-conn.opened < c.cfg.Backoff.StableAfter && n.retryAt == 0 {
		n.connectFailedLocked(err)
	}
}
