package holdfast

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Lease is the right to use one node, counted in its load from [Cluster.Pick] to
// Done. It is a value: hand it on, but call Done once.
type Lease struct{ n *Node }

// Pick chooses a node that is not in tried. It never blocks, resolves or dials:
// before the first resolution is over, and while no node is usable, the error
// matches [ErrNoEndpoint] and joins what is known of every node. key is for
// policies that hash: [Maglev] and [Rendezvous].
//
// Everything else here stands on Pick: what you build on it shares the balancing,
// the ejection and the statistics.
func (c *Cluster) Pick(key uint64, tried []*Node) (Lease, error) {
	c.begin()
	v := c.view.Load()
	for _, pick := range v.tiers {
		n := pick(key, tried)
		if n != nil && !slices.Contains(tried, n) {
			n.inflight.Add(1)
			return Lease{n}, nil
		}
	}
	return Lease{}, c.noNode(tried)
}

// PickDown chooses a node that only waits for its backoff to end, for who can neither wait
// nor go elsewhere when Pick has nothing: the one that was tried longest ago, if that is
// Backoff.Base or more. It counts as tried with that, so that one caller finds out for all
// whether it is back, be its backoff as long as it may; the others learn of it by Pick. ok
// is false if there is none.
func (c *Cluster) PickDown(tried []*Node) (l Lease, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closedLocked() != nil {
		return Lease{}, false
	}
	now := clock()
	var oldest *Node
	for _, n := range c.nodes {
		if n.deriveLocked() == StateBackoff && !slices.Contains(tried, n) && (oldest == nil || n.triedAt < oldest.triedAt) {
			oldest = n
		}
	}
	if oldest == nil || now-oldest.triedAt < c.cfg.Backoff.Base {
		return Lease{}, false
	}
	oldest.triedAt = now
	oldest.inflight.Add(1)
	return Lease{oldest}, true
}

// PickAddr is Pick of the node that is dialed at addr, whatever its health: for
// connections that are there already, such as those a predecessor handed over. networks
// are those of the nodes that are meant, as several may have one address; none is all.
// ok is false if there is none.
func (c *Cluster) PickAddr(addr string, networks ...string) (l Lease, ok bool) {
	c.begin()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.addr == addr && (len(networks) == 0 || slices.Contains(networks, n.network)) {
			n.inflight.Add(1)
			return Lease{n}, true
		}
	}
	return Lease{}, false
}

// Node returns the chosen node.
func (l Lease) Node() *Node { return l.n }

// Dial connects to the node: the connection, TLS, Config.Handshake, then
// handshake if it is not nil, within Config.Timeouts and ctx. A failure counts
// against the node and starts its backoff, unless ctx ended sooner than Timeouts.Dial
// allows. The connection is the caller's and not pooled; it must be closed. Dial does
// not end the lease.
func (l Lease) Dial(ctx context.Context, handshake func(context.Context, *Conn) error) (*Conn, error) {
	return l.n.c.connect(ctx, l.n, l.n.c.cfg.Timeouts.least(), handshake)
}

// Plain reports whether a connection to the node is no more than one to its Addr, with
// these options: no TLS, no Config.Dial, no Config.Handshake. Who runs sockets by other
// means than package net may connect by itself then, and says how it went by
// [Lease.Dialed].
func (l Lease) Plain() (options Socket, ok bool) {
	cfg := &l.n.c.cfg
	return cfg.Socket, cfg.Dial == nil && cfg.Handshake == nil && !l.n.endpoint.Load().TLS
}

// Dialed tells of a connect to the node that was made without Dial and took d. Like one
// of Dial's, a failure starts the node's backoff and counts against it, unless it is
// this host's. Pick heeds it at once; Config.Observe is told by another goroutine.
func (l Lease) Dialed(d time.Duration, err error) {
	n, c := l.n, l.n.c
	n.totals.dials.Add(1)
	event := Event{Kind: EventDial, Node: n, Duration: d}
	if err == nil {
		n.dialTimes.Record(d)
		c.mu.Lock()
		event.Attempt = n.failures + 1
		if clock()-n.failedAt >= c.cfg.Backoff.StableAfter {
			n.stableLocked() // nobody tells how long it lasted: it is long since one failed
		}
		n.connectedLocked()
		c.emitLocked(event)
		news := c.published != c.version || !c.unseen
		c.mu.Unlock()
		if !news {
			return
		}
	} else {
		e := n.dialError(PhaseDial, err)
		event.Err = e
		c.connectBlamed(n, !e.Class.local(), e, event)
		c.publish() // who picks next must not get it
	}
	c.wakeup()
}

// Transferred counts bytes of a connection that was made without Dial.
func (l Lease) Transferred(written, read int64) {
	l.n.totals.written.Add(uint64(written))
	l.n.totals.read.Add(uint64(read))
}

// Report tells how the node fared: d feeds its latency unless it is negative, err
// its health. Call it any number of times. Cancellations and failures of this
// host are not held against the node.
func (l Lease) Report(d time.Duration, err error) { l.n.report(clock(), d, err) }

// Done ends the lease.
func (l Lease) Done() {
	if l.n.inflight.Add(-1) < 0 {
		panic("holdfast: Lease.Done called twice")
	}
}

// view is what Pick reads: an immutable snapshot of the usable nodes. Its tiers
// are tried in order: the priority levels in use, then each level below.
type view struct {
	tiers    []func(key uint64, tried []*Node) *Node
	resolved bool
	gone     chan struct{} // closed when the next view is there
}

// outdatedLocked asks for a new view; publish makes it.
func (c *Cluster) outdatedLocked() { c.version++ }

func (c *Cluster) outdated() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.published != c.version
}

// outdatedInPanicLocked is for facts that only a view in panic depends on.
func (c *Cluster) outdatedInPanicLocked() {
	if c.panicking {
		c.outdatedLocked()
	}
}

// publish builds the view of the current facts, unless it is there already. The
// policy is the user's function, so it runs between two looks at the version.
func (c *Cluster) publish() {
	for {
		c.mu.Lock()
		version := c.version
		if c.published == version {
			c.mu.Unlock()
			return
		}
		tiers, resolved := c.tiersLocked(), c.resolved
		c.mu.Unlock()

		v := &view{resolved: resolved, gone: make(chan struct{})}
		for _, nodes := range tiers {
			v.tiers = append(v.tiers, c.cfg.Picker(nodes))
		}

		c.mu.Lock()
		if c.version == version {
			c.published = version
			close(c.view.Swap(v).gone)
		}
		c.mu.Unlock()
	}
}

// settle publishes and delivers what happened under the lock. Every unlock after
// a change of facts is followed by it.
func (c *Cluster) settle() {
	c.publish()
	c.flush()
}

// tiersLocked groups the nodes that may be picked. Level 0 stands alone while at
// least PanicPercent of it is usable; below that each next level joins it (the
// spill). When all levels together are below, it is panic: ejected nodes are used
// too, the oldest ejection first.
func (c *Cluster) tiersLocked() [][]*Node {
	if c.closedLocked() != nil {
		return nil
	}
	var tiers [][]*Node
	var first []*Node // the union that takes the load
	usable, total, filled := 0, 0, false
	for _, level := range c.levelsLocked() {
		var up []*Node
		for _, n := range level {
			if n.deriveLocked().Usable() {
				up = append(up, n)
			}
		}
		total += len(level)
		usable += len(up)
		if filled {
			if len(up) > 0 {
				tiers = append(tiers, up)
			}
			continue
		}
		first = append(first, up...)
		filled = usable > 0 && usable*100 >= total*c.cfg.Outlier.PanicPercent
	}
	c.panicLocked(total > 0 && !filled)
	if c.panicking {
		first = append(first, c.ejectedLocked()...)
	}
	if len(first) > 0 {
		tiers = slices.Insert(tiers, 0, first)
	}
	if len(tiers) == 0 {
		c.relookupLocked()
	}
	return tiers
}

// levelsLocked returns the nodes that take part, by priority, lowest number first.
func (c *Cluster) levelsLocked() [][]*Node {
	byPriority := map[int][]*Node{}
	var order []int
	for _, n := range c.nodes {
		if n.draining {
			continue
		}
		p := n.endpoint.Load().Priority
		if byPriority[p] == nil {
			order = append(order, p)
		}
		byPriority[p] = append(byPriority[p], n)
	}
	slices.Sort(order)
	levels := make([][]*Node, 0, len(order))
	for _, p := range order {
		levels = append(levels, byPriority[p])
	}
	return levels
}

// ejectedLocked returns the ejected nodes that may still be dialed, the oldest
// ejection first.
func (c *Cluster) ejectedLocked() []*Node {
	var out []*Node
	for _, n := range c.nodes {
		if n.outLocked() && !n.draining && n.retryAt == 0 {
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b *Node) int { return int(a.ejectAt - b.ejectAt) })
	return out
}

// panicLocked notes and announces that panic mode began or ended. It takes an
// ejected node: nodes that are merely backing off have nothing to offer in panic.
func (c *Cluster) panicLocked(low bool) {
	on := low && c.cfg.Outlier.PanicPercent > 0 && slices.ContainsFunc(c.nodes, (*Node).outLocked)
	if on == c.panicking {
		return
	}
	c.panicking = on
	cause := "too few usable nodes"
	if !on {
		cause = "over"
		for _, n := range c.nodes {
			if n.outLocked() { // in use until now, as in leaveLocked
				n.turnAwayLocked(errUnwanted)
				n.closeIdleLocked(errUnwanted)
			}
		}
	}
	c.emitLocked(Event{Kind: EventPanic, Cause: cause})
}

// noNode says why there is nothing to pick: closed, unresolved, all tried, or all
// down, with the reason of each.
func (c *Cluster) noNode(tried []*Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.closedLocked(); err != nil {
		return &Error{Phase: PhaseAcquire, Class: ClassClosed, Err: err}
	}
	e := &Error{Phase: PhaseAcquire, Class: ClassNoEndpoint, Err: ErrNoEndpoint, Tried: c.resolveErrsLocked()}
	if last := len(e.Tried) - 1; len(c.nodes) == 0 && last >= 0 {
		e.Phase, e.Class, e.Endpoint = PhaseResolve, e.Tried[last].Class, e.Tried[last].Endpoint
		e.Err = errors.Join(ErrNoEndpoint, e.Tried[last].Err)
		e.Tried = e.Tried[:last]
		return e
	}
	for _, n := range c.nodes {
		if !n.deriveLocked().Usable() && !slices.Contains(tried, n) {
			e.Tried = append(e.Tried, n.downErrLocked())
		}
	}
	return e
}
