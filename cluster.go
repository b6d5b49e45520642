package holdfast

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/dns"
)

// Cluster is a set of interchangeable endpoints and the live connections to them.
// Make one with [New], keep it as long as the endpoints matter, and close it. All
// methods are safe for concurrent use. Connections and background work begin with
// the first use.
type Cluster struct {
	cfg         Config // with its defaults filled in: 0 means off
	ownClassify bool   // Classify is the user's
	unseen      bool   // nobody observes, nothing is logged
	source      Resolver
	tls         *tls.Config
	dns         dns.Client
	dialer      net.Dialer      // with the options of Config.Socket
	ctx         context.Context // ends all background work
	cancel      context.CancelFunc
	started     sync.Once
	wg          sync.WaitGroup // every goroutine of the Cluster
	wake        chan struct{}  // tells run that something is due earlier
	view        atomic.Pointer[view]
	stats       counters
	ports       ports     // of Datagrams.Listen; a Node has its own
	exchanges   sync.Pool // of *exchange; not global, for what a test's bubble made must stay there

	// mu guards the rest, and the parts of Node and Conn that say so. It is never
	// held across I/O, a wait, or a function of the user; what happens under it
	// is announced by settle, after it.
	mu         sync.Mutex
	nodes      []*Node // in configured order
	names      []*name // endpoints that must be looked up
	resolved   bool    // there was a first answer, good or bad
	resolveErr *Error  // of the source's last word; each name has its own
	version    uint64  // of the facts that a view depends on
	published  uint64  // version of the view
	panicking  bool
	cuts       map[*context.CancelCauseFunc]struct{} // of the dials under way
	open       int                                   // pool slots taken on all nodes
	dialing    int                                   // of which dials
	waiting    int                                   // tries in the nodes' queues
	callers    int                                   // whose tries these are: one may wait for several nodes
	evicting   int
	codel      codel
	sweepAt    time.Duration // clock() of the next look at idle connections
	outlierAt  time.Duration // clock() of the next outlier sweep
	draining   bool
	closed     bool
	quiet      chan struct{} // closed when the last connection is gone while draining
	events     events
}

// New returns a Cluster over the endpoints of a source. It checks everything that
// can be checked and does no I/O: unreachable endpoints show in the first use, or
// in [Cluster.WaitReady].
func New(source Resolver, cfg Config) (*Cluster, error) {
	own, unseen := cfg.Retry.Classify != nil, cfg.Observe == nil && cfg.Log == nil
	cfg, err := cfg.resolved()
	if err != nil {
		return nil, err
	}
	if source == nil {
		return nil, ErrNoEndpoint
	}
	c := &Cluster{cfg: cfg, ownClassify: own, unseen: unseen, source: source, wake: make(chan struct{}, 1), cuts: map[*context.CancelCauseFunc]struct{}{}}
	c.tls = c.baseTLS()
	c.dialer = net.Dialer{Control: cfg.Socket.options().Control, KeepAlive: -1, FallbackDelay: -1}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.view.Store(&view{gone: make(chan struct{})})
	if fixed, ok := source.(fixed); ok {
		if err := fixed.check(); err != nil {
			return nil, err
		}
		c.setEndpoints(fixed.endpoints)
	}
	return c, nil
}

// begin starts the background work with the first use.
func (c *Cluster) begin() {
	c.started.Do(func() {
		c.spawn(c.run)
		if _, ok := c.source.(fixed); !ok {
			c.spawn(c.watch)
		}
	})
}

// spawn starts a goroutine that Close waits for, unless the Cluster is closed.
func (c *Cluster) spawn(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spawnLocked(f)
}

func (c *Cluster) spawnLocked(f func()) bool {
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// run is the clock of the Cluster: it does what is due and sleeps until the next.
// All timers of nodes, names, checks and sweeps are its own.
func (c *Cluster) run() {
	timer := time.NewTimer(c.tick())
	defer timer.Stop()
	for {
		c.publish()
		c.spawn(c.flush) // Observe may be slow, the clock may not
		select {
		case <-c.ctx.Done():
			return
		case <-timer.C:
		case <-c.wake:
		}
		timer.Reset(c.tick())
	}
}

// wakeup makes run look again at what is due.
func (c *Cluster) wakeup() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// tick does what is due and returns how long there is nothing to do.
func (c *Cluster) tick() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closedLocked() != nil {
		return time.Hour
	}
	now := clock()
	next := now + time.Hour
	c.lookupDueLocked(now, &next)
	for _, n := range c.nodes {
		n.dueLocked(now, &next)
	}
	c.sweepDueLocked(now, &next)
	c.outlierDueLocked(now, &next)
	return max(next-now, 0)
}

// dueLocked does what is due for a node and lowers next to what comes then.
func (n *Node) dueLocked(now time.Duration, next *time.Duration) {
	if n.draining {
		return
	}
	if n.retryAt != 0 && due(n.retryAt, now, next) {
		n.backoffOverLocked("backoff over")
	}
	n.readmitDueLocked(now, next)
	n.checkDueLocked(now, next)
	n.fillDueLocked(now, next)
	n.slowStartDueLocked(now, next)
}

// due reports whether at has come; if not, next is lowered to it.
func due(at, now time.Duration, next *time.Duration) bool {
	if at <= now {
		return true
	}
	*next = min(*next, at)
	return false
}

// closedLocked is ErrClosed or ErrDraining once new use is refused.
func (c *Cluster) closedLocked() error {
	switch {
	case c.closed:
		return ErrClosed
	case c.draining:
		return ErrDraining
	}
	return nil
}

func (c *Cluster) closedNow() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.closedLocked(); err != nil {
		return &Error{Phase: PhaseAcquire, Class: ClassClosed, Err: err}
	}
	return nil
}

// waitResolved waits for the first answer about the endpoints' addresses, and for
// a view of the facts as they are: that one is in the making when they are ahead.
func (c *Cluster) waitResolved(ctx context.Context) error {
	c.begin()
	for {
		v := c.view.Load()
		if v.resolved && !c.outdated() {
			return c.closedNow()
		}
		select {
		case <-v.gone:
		case <-ctx.Done():
			end := ended(ctx)
			return &Error{Phase: PhaseResolve, Class: c.cfg.Retry.Classify(end), Err: end}
		case <-c.ctx.Done():
			return c.closedNow()
		}
	}
}

// WaitUsable returns when Pick may have a node to choose: at once if it has one, else
// when a backoff or an ejection is over or a name is resolved, and now and then for
// no reason. The error is that of ctx, or says that the Cluster is closed.
func (c *Cluster) WaitUsable(ctx context.Context) error {
	c.begin()
	if !c.waitUsable(ctx) {
		return ended(ctx)
	}
	return c.closedNow()
}

// waitUsable waits until some node may be picked, for as long as a backoff can
// last, and reports whether ctx still lives.
func (c *Cluster) waitUsable(ctx context.Context) bool {
	if most := c.cfg.Backoff.Max; most > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, most*2, errWaitedLong)
		defer cancel()
	}
	for {
		v := c.view.Load()
		if len(v.tiers) > 0 || c.closedNow() != nil {
			return true
		}
		select {
		case <-v.gone:
		case <-ctx.Done():
			return context.Cause(ctx) == errWaitedLong
		case <-c.ctx.Done():
			return true
		}
	}
}

var errWaitedLong = errors.New("holdfast: no node came back")

// WaitReady returns when one connection is established and handshaken, which it
// leaves in the pool. It tries again until ctx ends or an error is [Permanent].
func (c *Cluster) WaitReady(ctx context.Context) error {
	for {
		conn, _, err := c.acquire(ctx, nil)
		if err == nil {
			conn.Release()
			return nil
		}
		if ctx.Err() != nil || has(err, permanent) || errors.Is(err, ErrClosed) || errors.Is(err, ErrDraining) {
			return err
		}
		pause := max(c.cfg.Retry.Backoff.delay(4), 10*time.Millisecond) // a backoff that is off must not make it spin
		if !sleep(ctx, pause, c.ctx.Done()) || !c.waitUsable(ctx) {
			var e *Error
			errors.As(err, &e)
			return c.outOfTime(ctx, e)
		}
	}
}

// ResetBackoff lets every node be dialed at once: the network is back.
func (c *Cluster) ResetBackoff() {
	c.mu.Lock()
	for _, n := range c.nodes {
		n.failures = 0
		n.refill = nil
		if n.retryAt != 0 {
			n.backoffOverLocked("reset")
		}
	}
	c.mu.Unlock()
	c.settle()
	c.wakeup()
}

// Refresh looks all names up again now. With spread > 0 it also replaces every
// pooled connection at a random moment within spread, so that a changed password
// or a moved service is met without a stampede.
func (c *Cluster) Refresh(spread time.Duration) {
	c.begin()
	c.mu.Lock()
	for _, name := range c.names {
		name.due = 0
	}
	if spread > 0 {
		for _, n := range c.nodes {
			for conn := range n.conns {
				at := int64(clock() + time.Duration(rand.Int64N(int64(spread))))
				if old := conn.expires.Load(); old == 0 || at < old {
					conn.expires.Store(at)
				}
			}
		}
	}
	c.mu.Unlock()
	c.wakeup()
}

// Shutdown ends the Cluster in peace: new use gets [ErrDraining], callers that
// wait get it too, connections at rest close, those in use close when they come
// back. When the last is gone, or ctx ends, the rest is cut as by Close. The error
// is ctx's if something had to be cut.
func (c *Cluster) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return c.Close()
	}
	if !c.draining {
		c.draining = true
		c.quiet = make(chan struct{})
		for _, n := range slices.Clone(c.nodes) {
			n.closeIdleLocked(ErrDraining)
			n.refuseLocked(ErrDraining)
		}
	}
	c.quietLocked()
	quiet := c.quiet
	c.outdatedLocked()
	c.mu.Unlock()
	c.settle()

	var err error
	select {
	case <-quiet:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-c.ctx.Done():
	}
	return errors.Join(err, c.Close())
}

// quietLocked tells Shutdown when nothing is left.
func (c *Cluster) quietLocked() {
	if c.quiet == nil || c.dialing > 0 || slices.ContainsFunc(c.nodes, func(n *Node) bool { return len(n.conns) > 0 }) {
		return
	}
	select {
	case <-c.quiet:
	default:
		close(c.quiet)
	}
}

// Close cuts every connection, whoever holds it, ends the background work and
// waits for it. Closing twice is harmless.
func (c *Cluster) Close() error {
	c.mu.Lock()
	c.closed = true
	for cancel := range c.cuts {
		(*cancel)(ErrClosed) // it runs nothing of the user's
	}
	var conns []*Conn
	for _, n := range c.nodes {
		for conn := range n.conns {
			conns = append(conns, conn)
		}
		n.pool.idle = nil
		n.refuseLocked(ErrClosed)
	}
	c.outdatedLocked()
	c.mu.Unlock()
	c.cancel()
	for _, conn := range conns {
		if conn.holds.Load() {
			conn.fail(PhaseUse, ErrClosed) // no goodbye: its holder may be writing
		}
		c.closeConn(conn, ErrClosed)
	}
	c.wg.Wait()
	c.settle()
	return nil
}
