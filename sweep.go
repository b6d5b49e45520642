package holdfast

import (
	"slices"
	"time"
)

// fillDueLocked keeps MinIdle connections ready.
func (n *Node) fillDueLocked(now time.Duration, next *time.Duration) {
	want := n.c.cfg.Pool.MinIdle
	if want == 0 || !n.deriveLocked().Usable() {
		return
	}
	n.refill = slices.DeleteFunc(n.refill, func(at time.Duration) bool { return due(at, now, next) })
	for len(n.pool.idle)+n.pool.away+n.pool.dialing+len(n.refill) < want && n.c.lacksSlotOnlyLocked(n) {
		if n.c.open >= n.c.cfg.Pool.Total {
			return // nobody is evicted for a connection that nobody waits for
		}
		n.c.dialLocked(n)
	}
}

const sweepEvery = time.Second

// sweepDueLocked looks at the connections at rest: the old, the dead and those to
// be pinged leave the stack.
func (c *Cluster) sweepDueLocked(now time.Duration, next *time.Duration) {
	if c.open == 0 && c.cfg.Pool.MinIdle == 0 {
		return
	}
	if !due(c.sweepAt, now, next) {
		return
	}
	c.sweepAt = now + jitter(sweepEvery, 0.2)
	*next = min(*next, c.sweepAt)
	for _, n := range c.nodes {
		if len(n.pool.idle) > 0 && !n.sweeping {
			n.sweeping = c.spawnLocked(func() {
				c.sweep(n)
				c.mu.Lock()
				n.sweeping = false
				c.mu.Unlock()
			})
		}
	}
}

// sweep polls the connections that have rested, and pings those that are due, one
// at a time and outside the lock, from the one used longest ago: the others are
// there for callers meanwhile.
func (c *Cluster) sweep(n *Node) {
	for i := 0; ; {
		conn := c.takeRested(n, i)
		if conn == nil {
			break
		}
		cause := conn.unfit(clock())
		if every := c.cfg.Pool.Ping; cause == nil && every > 0 && clock()-max(conn.since, conn.pinged) >= every {
			cause = c.ping(conn)
			conn.pinged = clock()
		}
		if cause != nil {
			c.closeConn(conn, cause)
		} else {
			c.giveBack(conn, false, conn.since) // a ping is no use: the idle time goes on
			i++
		}
		c.lookedAt(n)
	}
	c.settle()
}

func (c *Cluster) lookedAt(n *Node) {
	c.mu.Lock()
	n.pool.away--
	c.mu.Unlock()
	c.wakeup()
}

// takeRested takes the i-th connection at rest, if it has rested for a sweep.
func (c *Cluster) takeRested(n *Node, i int) *Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	idle, now := n.pool.idle, clock()
	if i >= len(idle) || now-idle[i].since < sweepEvery/2 {
		return nil
	}
	conn := idle[i]
	if conn.opened+c.cfg.Backoff.StableAfter <= now {
		n.stableLocked()
	}
	n.pool.idle = slices.Delete(idle, i, i+1)
	n.pool.away++
	return conn
}
