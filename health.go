package holdfast

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// checkState is a node's standing with the active checks.
type checkState struct {
	at      time.Duration // clock() of the next
	busy    bool
	decided bool // there was a first verdict
	down    bool
	count   int  // results in a row that contradict the verdict
	failed  bool // a check failed since the node was ejected
}

// failed is told of every failure that may be held against a node.
func (c *Cluster) failed(n *Node, streak int, err error) {
	limit := c.cfg.Outlier.Consecutive
	if limit == 0 || streak < limit {
		return
	}
	e := n.asError(PhaseUse, err)
	c.mu.Lock()
	c.ejectLocked(n, fmt.Sprintf("%d failures in a row", streak), e)
	c.mu.Unlock()
	c.settle()
}

// ejectLocked takes a node out for a while, unless too many are out already. The
// cap counts this ejection too; at least one node may be out, never the last.
func (c *Cluster) ejectLocked(n *Node, cause string, err *Error) {
	if n.ejected || n.draining {
		return
	}
	total, out := 0, 1
	for _, o := range c.nodes {
		if o.draining {
			continue
		}
		total++
		if o != n && o.outLocked() {
			out++
		}
	}
	if out >= total || out > max(1, total*c.cfg.Outlier.MaxPercent/100) {
		return
	}
	n.ejected = true
	n.ejects++
	n.check.failed = false
	n.until = clock() + c.ejectTime(n.ejects)
	n.leaveLocked(cause, err)
}

// outLocked reports whether the node is ejected, by its failures or its checks.
func (n *Node) outLocked() bool { return n.ejected || n.check.down }

// leaveLocked is what both ways out have in common.
func (n *Node) leaveLocked(cause string, err *Error) {
	n.ejectAt = clock()
	if err == nil {
		n.changedLocked(cause, nil)
	} else {
		n.lastErr = err
		n.changedLocked(cause, err)
	}
	n.c.outdatedLocked()
	n.turnAwayLocked(errUnwanted)
	n.closeIdleLocked(errUnwanted)
	n.c.relookupLocked()
	n.c.wakeup()
}

// ejectTime grows with the times a node was ejected. Off it is short, not nothing:
// a node that is still down must not be probed without a pause.
func (c *Cluster) ejectTime(times int) time.Duration {
	d := max(c.cfg.Outlier.Eject*time.Duration(times), 100*time.Millisecond)
	if most := c.cfg.Outlier.MaxEject; most > 0 {
		d = min(d, most)
	}
	return d + time.Duration(rand.Int64N(int64(d)/10+1))
}

// readmitLocked takes a node back.
func (n *Node) readmitLocked(cause string) {
	n.ejected, n.until, n.retryAt = false, 0, 0
	for i := range n.streak {
		n.streak[i].Store(0)
	}
	if n.check.down {
		return
	}
	if n.c.cfg.Outlier.SlowStart > 0 {
		n.readmit.Store(int64(clock()))
	}
	n.changedLocked(cause, nil)
	n.c.outdatedLocked()
	n.c.pumpLocked(n)
	n.c.wakeup()
}

// readmitDueLocked probes an ejected node when its time is over: one probe, not
// the traffic of everyone who waited for it.
func (n *Node) readmitDueLocked(now time.Duration, next *time.Duration) {
	if !n.ejected || n.probing || !due(n.until, now, next) {
		return
	}
	n.probing = n.c.spawnLocked(func() {
		_, err := n.c.probe(n)
		n.c.mu.Lock()
		n.probing = false
		switch {
		case !n.ejected:
		case err == nil:
			n.readmitLocked("probe passed")
		case err == errStarved: // no verdict: the next probe is due at once
		default:
			n.ejects++
			n.until = clock() + n.c.ejectTime(n.ejects)
		}
		n.c.mu.Unlock()
		n.c.settle()
		n.c.wakeup()
	})
}

// probe makes a connection of its own to the node and runs Config.Probe on it. A
// result that is much later than its limit says more about this host, which was
// stopped or starved, than about the node: it is no verdict.
func (c *Cluster) probe(n *Node) (took time.Duration, err error) {
	most := c.cfg.Check.Timeout
	ctx, cancel := limit(c.ctx, most)
	defer cancel()
	start := clock()
	conn, err := c.connect(ctx, n, 0, func(_ context.Context, conn *Conn) error {
		conn.probe = true
		return nil
	})
	if err == nil {
		err = c.probeOn(ctx, conn)
		c.closeConn(conn, errProbed)
	}
	took = clock() - start
	if err != nil && most > 0 && took > most+starved {
		return took, errStarved
	}
	return took, err
}

const starved = 500 * time.Millisecond

var (
	errProbed  = fmt.Errorf("holdfast: it was a probe's")
	errStarved = fmt.Errorf("holdfast: the probe itself was held up")
)

func (c *Cluster) probeOn(ctx context.Context, conn *Conn) error {
	if c.cfg.Probe == nil {
		return nil
	}
	if end, ok := ctx.Deadline(); ok {
		conn.limits.set(0, 0, end)
		conn.nc.SetDeadline(end)
	}
	stop := conn.watch(ctx)
	_, err := guarded(func() (struct{}, error) { return struct{}{}, c.cfg.Probe(ctx, conn) })
	if stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// ping probes a pooled connection at rest.
func (c *Cluster) ping(conn *Conn) error {
	ctx, cancel := context.WithTimeout(c.ctx, max(c.cfg.Check.Timeout, time.Second))
	defer cancel()
	err := c.probeOn(ctx, conn)
	if err != nil {
		conn.fail(PhaseUse, err)
	}
	return err
}

// checkDueLocked runs the active check of a node when it is time.
func (n *Node) checkDueLocked(now time.Duration, next *time.Duration) {
	if n.c.cfg.Check.Interval == 0 || n.check.busy || !due(n.check.at, now, next) {
		return
	}
	n.check.busy = n.c.spawnLocked(func() {
		took, err := n.c.probe(n)
		e := n.asError(PhaseUse, err)
		n.c.mu.Lock()
		n.check.busy = false
		n.c.emitLocked(Event{Kind: EventCheck, Node: n, Duration: took, Err: err})
		ours := err == errStarved || e != nil && e.Class == ClassResource // this host's trouble: no verdict
		if !ours && n.c.closedLocked() == nil {
			n.judgeLocked(e)
		}
		every := n.c.cfg.Check.Interval
		if n.check.count > 0 && !ours {
			every = n.c.cfg.Check.Fast
		}
		n.check.at = clock() + jitter(every, 0.1)
		n.c.mu.Unlock()
		n.c.settle()
		n.c.wakeup()
	})
}

// judgeLocked counts a result: the first decides at once, later ones when Rise or
// Fall of them agree against the verdict. A pass also readmits a node that its
// failures ejected, if the checks had seen the trouble too or it is the first
// time; where traffic fails again and again and checks see nothing, traffic wins.
func (n *Node) judgeLocked(err *Error) {
	k := &n.check
	k.failed = k.failed || err != nil
	need := n.c.cfg.Check.Fall
	if k.down {
		need = n.c.cfg.Check.Rise
	}
	switch {
	case !k.decided:
		k.decided = true
		need = 1
		if err == nil {
			return
		}
	case (err != nil) == k.down:
		k.count = 0
		if err == nil && n.ejected && (k.failed || n.ejects == 1) {
			n.readmitLocked("check passed")
		}
		return
	}
	if k.count++; k.count < need {
		return
	}
	k.count = 0
	k.down = !k.down
	if k.down {
		n.leaveLocked("check failed", err)
		return
	}
	n.ejected = false
	n.readmitLocked("check passed")
}

// The volumes below which the statistical rules say nothing (Envoy, gRPC A50).
const (
	outlierHosts   = 5
	rateVolume     = 100
	failuresVolume = 50
)

// outlierDueLocked compares the nodes' calls since the last sweep.
func (c *Cluster) outlierDueLocked(now time.Duration, next *time.Duration) {
	o := &c.cfg.Outlier
	if len(c.nodes) < 2 || o.Interval == 0 {
		return
	}
	if c.outlierAt == 0 {
		c.outlierAt = now + o.Interval
	}
	if !due(c.outlierAt, now, next) {
		return
	}
	c.outlierAt = now + o.Interval
	*next = min(*next, c.outlierAt)
	var counts []callCount
	for _, n := range c.nodes {
		ok, failed := n.callsLocked()
		if !n.draining && !n.outLocked() {
			if ok > 0 || failed == 0 { // else it was in, but not well
				n.ejects = max(0, n.ejects-1)
			}
			counts = append(counts, callCount{n, ok, failed})
		}
	}
	if o.SuccessRate > 0 {
		c.ejectByRateLocked(counts)
	}
	if o.FailurePercent > 0 {
		c.ejectByPercentLocked(counts)
	}
}

// callsLocked returns the calls since the last sweep.
func (n *Node) callsLocked() (ok, failed float64) {
	now := [2]uint64{n.totals.successes.Load(), n.totals.failures.Load()}
	ok, failed = float64(now[0]-n.swept[0]), float64(now[1]-n.swept[1])
	n.swept = now
	return ok, failed
}

type callCount struct {
	n          *Node
	ok, failed float64
}

func (k callCount) total() float64 { return k.ok + k.failed }
func (k callCount) rate() float64  { return k.ok / k.total() }

// enough returns the counts that have the volume, or none if too few have.
func enough(counts []callCount, volume float64) []callCount {
	var out []callCount
	for _, k := range counts {
		if k.total() >= volume {
			out = append(out, k)
		}
	}
	if len(out) < outlierHosts {
		return nil
	}
	return out
}

// ejectByRateLocked ejects nodes whose success rate is far below the others'.
func (c *Cluster) ejectByRateLocked(counts []callCount) {
	counts = enough(counts, rateVolume)
	if counts == nil {
		return
	}
	var sum, squares float64
	for _, k := range counts {
		sum += k.rate()
	}
	mean := sum / float64(len(counts))
	for _, k := range counts {
		squares += (k.rate() - mean) * (k.rate() - mean)
	}
	least := mean - math.Sqrt(squares/float64(len(counts)))*float64(c.cfg.Outlier.SuccessRate)/1000
	for _, k := range counts {
		if k.rate() < least {
			c.ejectLocked(k.n, fmt.Sprintf("success rate %.0f %%, the others' %.0f %%", 100*k.rate(), 100*mean), nil)
		}
	}
}

// ejectByPercentLocked ejects nodes that fail too large a share of their calls.
func (c *Cluster) ejectByPercentLocked(counts []callCount) {
	for _, k := range enough(counts, failuresVolume) {
		if percent := 100 * k.failed / k.total(); percent >= float64(c.cfg.Outlier.FailurePercent) {
			c.ejectLocked(k.n, fmt.Sprintf("%.0f %% of calls failed", percent), nil)
		}
	}
}

// slowStartDueLocked renews the view while a node's share grows.
func (n *Node) slowStartDueLocked(now time.Duration, next *time.Duration) {
	began := time.Duration(n.readmit.Load())
	if began == 0 {
		return
	}
	window := n.c.cfg.Outlier.SlowStart
	if now-began >= window {
		n.readmit.Store(0)
	} else {
		*next = min(*next, now+window/10, began+window)
	}
	n.c.outdatedLocked()
}
