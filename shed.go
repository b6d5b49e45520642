package holdfast

import (
	"errors"
	"time"
)

// codel decides when waits are too long (Nichols and Jacobson's controlled delay,
// as DBConnection uses it): not one wait above the target, but none below it for
// a whole interval.
type codel struct {
	since time.Duration // start of the interval
	least time.Duration // shortest wait in it
	over  bool          // the last interval was too long throughout
}

const codelInterval = 2 * time.Second

func (k *codel) noteLocked(wait, target time.Duration) {
	if target == 0 {
		return
	}
	now := clock()
	if now-k.since >= codelInterval {
		k.over = now-k.since < 2*codelInterval && k.least > target
		k.since, k.least = now, wait
	}
	k.least = min(k.least, wait)
	if wait <= target {
		k.over = false
	}
}

// shedTimer fires when a waiting race has waited twice the target.
func (c *Cluster) shedTimer(r *race) (<-chan time.Time, func()) {
	target := c.cfg.Pool.WaitTarget
	if target == 0 || len(r.running) == 0 || r.running[0].dialing {
		return nil, func() {}
	}
	t := time.NewTimer(max(r.running[0].started+2*target-clock(), target))
	return t.C, func() { t.Stop() }
}

// shed ends a race that waited too long in an overloaded pool.
func (c *Cluster) shed(r *race) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	waited := clock() - r.running[0].started
	c.codel.noteLocked(waited, c.cfg.Pool.WaitTarget)
	if !c.codel.over {
		return nil
	}
	n := r.running[0].lease.n
	err := errors.Join(ErrPoolExhausted, errors.New("every wait was longer than Pool.WaitTarget"))
	return r.join(&Error{Phase: PhaseAcquire, Class: ClassExhausted, Endpoint: n.Endpoint(), Node: n.String(), Err: err})
}
