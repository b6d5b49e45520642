package holdfast

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// A race is one pass over the nodes in the order of the policy (RFC 8305 with
// endpoints for addresses): the first node gets a head start, the next joins when
// that is over or the first fails, at most maxTries at once, address families in
// turn. The first connection wins. Each node is tried once, so a race ends.
//
// What a try is depends on who races: a wait for a pooled connection or a dial of
// one's own. Either delivers one result, or finds the race over and keeps it.
type race struct {
	c       *Cluster
	pick    func(c *Cluster, tried []*Node) (Lease, error)
	launch  func(*Cluster, context.Context, *try) error // starts a try; an error ends the race
	results chan result                                 // room for every try under way: delivering never blocks
	first   Lease                                       // the first choice, when it was made already
	tried   []*Node                                     // this operation must not take these
	running []*try
	failed  []*Error
	turned  int // how often a node went out of use while the race waited for it

	exhausted error  // why there is no further node
	queued    int    // tries in the nodes' queues; guarded by the Cluster's lock
	rest      result // of what followed the caller's own dial

	mu   sync.Mutex // guards over
	over bool
}

// try is one node's part in a race.
type try struct {
	race    *race
	lease   Lease
	started time.Duration
	dialing bool // a connection is being made, so that a slow one may be overtaken
}

type result struct {
	try  *try
	conn *Conn
	err  error
}

const maxTries = 4

// deliver hands a result to the race, unless it is over.
func (t *try) deliver(conn *Conn, err error) bool {
	t.race.mu.Lock()
	defer t.race.mu.Unlock()
	if t.race.over {
		return false
	}
	t.race.results <- result{t, conn, err}
	return true
}

// race makes one pass over the usable nodes that are not in tried, beginning with
// first if that is chosen already. It returns the connection, holding its lease,
// and the nodes that did not win.
func (c *Cluster) race(ctx context.Context, first Lease, tried []*Node) (*Conn, []*Node, error) {
	r := c.newRace((*Cluster).pickAny, (*Cluster).poolTry)
	r.first, r.tried = first, slices.Clone(tried)
	conn, err := r.run(ctx)
	return conn, r.losers(len(tried), conn), err
}

func (c *Cluster) newRace(pick func(*Cluster, []*Node) (Lease, error), launch func(*Cluster, context.Context, *try) error) *race {
	return &race{c: c, pick: pick, launch: launch, results: make(chan result, maxTries)}
}

// losers are the nodes tried from the i-th on that did not win.
func (r *race) losers(i int, conn *Conn) []*Node {
	losers := r.tried[i:]
	if conn != nil {
		losers = slices.DeleteFunc(losers, func(n *Node) bool { return n == conn.node })
	}
	return losers
}

func (c *Cluster) pickAny(tried []*Node) (Lease, error) { return c.Pick(0, tried) }

// pickAmong is the order of given nodes, for a race among them.
func pickAmong(nodes []*Node) func(c *Cluster, tried []*Node) (Lease, error) {
	pick := Ordered()(nodes)
	return func(_ *Cluster, tried []*Node) (Lease, error) {
		n := pick(0, tried)
		if n == nil {
			return Lease{}, &Error{Phase: PhaseAcquire, Class: ClassNoEndpoint, Err: ErrNoEndpoint}
		}
		n.inflight.Add(1)
		return Lease{n}, nil
	}
}

// lead is a race of dials in which the caller makes the first one itself. Mostly
// it comes before its head start is over, and then it costs no goroutine and no
// switch to one; else the rest of the race joins from a timer's goroutine, which
// the caller waits for.
func (r *race) lead(ctx context.Context) (*Conn, error) {
	for {
		lease, err := r.pickFamily()
		if err != nil {
			return nil, r.lost(err)
		}
		r.tried = append(r.tried, lease.n)
		t := &try{race: r, lease: lease, started: clock(), dialing: true}
		conn, err := r.dialFirst(ctx, t)
		if conn != nil || err != nil {
			return conn, err
		}
		if ctx.Err() != nil {
			return nil, r.lost(nil)
		}
	}
}

// dialFirst returns nothing at all when the node failed and the pass goes on.
func (r *race) dialFirst(ctx context.Context, t *try) (*Conn, error) {
	if err := t.lease.n.backingOff(); err != nil {
		return r.take(result{t, nil, err})
	}
	own, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var others *time.Timer
	over := make(chan struct{})
	if stagger := r.c.cfg.Timeouts.Stagger; stagger > 0 {
		others = time.AfterFunc(stagger, func() {
			defer close(over)
			r.running = append(r.running, t)
			r.rest.conn, r.rest.err = r.run(ctx)
			cancel(nil)
		})
	}
	conn, err := r.c.connectUntil(own, &cancel, t.lease.n, r.c.cfg.Timeouts.least(), nil)
	if others == nil || others.Stop() {
		return r.take(result{t, conn, err})
	}
	if !t.deliver(conn, err) && conn != nil {
		conn.Close()
	}
	<-over
	return r.rest.conn, r.rest.err
}

func (r *race) run(ctx context.Context) (*Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer r.finish()
	for {
		if r.exhausted == nil && (len(r.running) == 0 || r.overdue()) {
			r.exhausted = r.next(ctx)
			continue
		}
		if len(r.running) == 0 {
			return nil, r.lost(r.exhausted)
		}
		conn, err := r.await(ctx, r.exhausted == nil)
		if conn != nil || err != nil {
			return conn, err
		}
	}
}

// next starts a try on the next node. A failure to start it counts as its result.
func (r *race) next(ctx context.Context) error {
	lease, err := r.pickFamily()
	if err != nil {
		return err
	}
	r.tried = append(r.tried, lease.n)
	t := &try{race: r, lease: lease, started: clock()}
	if err := r.launch(r.c, ctx, t); err != nil {
		lease.Done()
		return err
	}
	r.running = append(r.running, t)
	return nil
}

// pickFamily goes by the policy, but after one address of a name it prefers the
// name's other address family.
func (r *race) pickFamily() (Lease, error) {
	if lease := r.first; lease.n != nil {
		r.first = Lease{}
		return lease, nil
	}
	if len(r.tried) > 0 {
		if same := r.c.sameFamily(r.tried[len(r.tried)-1], r.tried); len(same) > 0 {
			if lease, err := r.pick(r.c, append(same, r.tried...)); err == nil {
				return lease, nil
			}
		}
	}
	return r.pick(r.c, r.tried)
}

// overdue reports whether the latest try has used up its head start.
func (r *race) overdue() bool {
	wait, ok := r.headStart()
	return ok && wait <= 0 && len(r.running) < maxTries
}

// headStart is what is left of the latest try's lead. Waiting for somebody else's
// connection to come back has no lead: a full pool is no reason to go elsewhere.
func (r *race) headStart() (time.Duration, bool) {
	stagger := r.c.cfg.Timeouts.Stagger
	if stagger == 0 || len(r.running) == 0 {
		return 0, false
	}
	t := r.running[len(r.running)-1]
	return t.started + stagger - clock(), t.dialing
}

// await waits for a result, the end of the head start, or the end of ctx.
func (r *race) await(ctx context.Context, more bool) (*Conn, error) {
	var timer <-chan time.Time
	if wait, ok := r.headStart(); ok && more && len(r.running) < maxTries {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	shed, stopShed := r.c.shedTimer(r)
	defer stopShed()
	select {
	case res := <-r.results:
		return r.take(res)
	case <-timer:
		return nil, nil
	case <-shed:
		return nil, r.c.shed(r)
	case <-ctx.Done():
		return nil, r.gaveUp(ctx)
	}
}

// take removes a finished try from the race. A permanent failure ends the race,
// any other leaves it to the next node.
func (r *race) take(res result) (*Conn, error) {
	r.running = slices.DeleteFunc(r.running, func(t *try) bool { return t == res.try })
	if res.err == nil {
		res.conn.hold(res.try.lease, clock())
		r.blameSlow(res.try)
		return res.conn, nil
	}
	res.try.lease.Done()
	if errors.Is(res.err, errUnwanted) && r.turned < maxTries {
		r.turnedAway(res.try.lease.n)
		return nil, nil
	}
	e := res.try.lease.n.dialError(PhaseDial, res.err)
	var shared *Error
	if errors.As(res.err, &shared) {
		*e = *shared // others wait for the same dial, and its node remembers it
	}
	if has(res.err, permanent) || e.Class == ClassResource || e.Class == ClassClosed {
		return nil, r.join(e)
	}
	r.failed = append(r.failed, e)
	return nil, nil
}

// turnedAway makes the race look again: a node that went out of use while the race
// waited was not tried, and what is left may be used now, in panic even that node.
func (r *race) turnedAway(n *Node) {
	r.turned++
	r.tried = slices.DeleteFunc(r.tried, func(o *Node) bool { return o == n })
	r.exhausted = nil
	r.c.settle()
}

// blameSlow puts nodes into backoff that had a head start and lost: otherwise
// every dial would wait for a black hole to show itself again.
func (r *race) blameSlow(winner *try) {
	stagger := r.c.cfg.Timeouts.Stagger
	for _, t := range r.running {
		if t.dialing && winner.started-t.started >= stagger {
			t.lease.n.lostRace(winner.lease.n)
		}
	}
}

// finish ends the race: what is delivered from now on stays with its pool, what
// was delivered in between goes back.
func (r *race) finish() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	for {
		select {
		case res := <-r.results:
			if res.conn != nil {
				r.c.unwanted(res.conn)
			}
		default:
			for _, t := range r.running {
				r.c.dequeue(t)
				t.lease.Done()
			}
			return
		}
	}
}

// lost is the error of a race that no node won.
func (r *race) lost(exhausted error) error {
	if len(r.failed) == 0 {
		return exhausted
	}
	var down *Error // nodes that could not be tried have their reasons too
	if errors.As(exhausted, &down) {
		r.failed = append(slices.Clone(down.Tried), r.failed...)
	}
	last := r.failed[len(r.failed)-1]
	r.failed = r.failed[:len(r.failed)-1]
	return r.join(last)
}

// join makes e the error of the race, with the failures before it and what is
// known of nodes that could not be tried.
func (r *race) join(e *Error) error {
	e.Tried = append(r.failed, e.Tried...)
	return e
}

// gaveUp is the error of a race whose context ended.
func (r *race) gaveUp(ctx context.Context) error {
	end := ended(ctx)
	e := &Error{Phase: PhaseDial, Class: r.c.cfg.Retry.Classify(end), Err: end}
	if len(r.running) > 0 {
		t := r.running[len(r.running)-1]
		e.Endpoint, e.Node = t.lease.n.Endpoint(), t.lease.n.String()
		if !t.dialing {
			e.Phase = PhaseAcquire
		}
		if !t.dialing && e.Class == ClassTimeout {
			e.Class, e.Err = ClassExhausted, errors.Join(ErrPoolExhausted, end)
		}
	}
	return r.join(e)
}

// dialTry races with connections of one's own.
func (c *Cluster) dialTry(ctx context.Context, t *try) error {
	if err := t.lease.n.backingOff(); err != nil {
		t.deliver(nil, err)
		return nil
	}
	t.dialing = true
	started := c.spawn(func() {
		conn, err := t.lease.Dial(ctx, nil)
		if !t.deliver(conn, err) && conn != nil {
			conn.Close()
		}
	})
	if !started {
		return &Error{Phase: PhaseDial, Class: ClassClosed, Err: ErrClosed}
	}
	return nil
}

// errSlow is why a node that lost a race is not dialed for a while.
var errSlow = errors.New("holdfast: overtaken by another node after a head start")

func (n *Node) slow() *Error {
	return &Error{Phase: PhaseDial, Class: ClassTimeout, Endpoint: n.Endpoint(), Node: n.String(), Err: errSlow}
}

// lostRace starts the backoff of a node that was overtaken. When the winner is an
// address of the same name but of the other family, the whole family shares it: a
// host with broken IPv6 would else pay for each of its addresses in turn.
func (n *Node) lostRace(winner *Node) {
	n.c.mu.Lock()
	if n.retryAt == 0 {
		n.connectFailedLocked(n.slow())
		for _, o := range n.c.nodes {
			if n.sameFamily(o) && winner.name == n.name && winner.v6 != n.v6 && len(o.conns) == 0 && o.retryAt < n.retryAt {
				o.retryAt, o.failures, o.lastErr = n.retryAt, n.failures, o.slow()
				o.changedLocked("address family overtaken", o.lastErr)
			}
		}
	}
	n.c.mu.Unlock()
	n.c.settle()
}

// sameFamily reports whether o is another address of the same name and family.
func (n *Node) sameFamily(o *Node) bool {
	return o != n && n.name != "" && o.name == n.name && o.v6 == n.v6
}
