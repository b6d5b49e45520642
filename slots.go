package holdfast

import (
	"math/rand/v2"
	"slices"
	"time"
)

// slotWantedLocked reports whether a caller waits who lacks nothing but a slot.
func (c *Cluster) slotWantedLocked() bool {
	return c.waiting > 0 && slices.ContainsFunc(c.nodes, func(n *Node) bool {
		return len(n.pool.waiters) > n.pool.dialing && c.lacksSlotOnlyLocked(n)
	})
}

// pumpLocked dials for those who wait, as far as the limits allow.
func (c *Cluster) pumpLocked(n *Node) {
	for len(n.pool.waiters) > n.pool.dialing && c.mayDialLocked(n) {
		c.dialLocked(n)
	}
}

// mayDialLocked reports whether the node may have one more connection now. At the
// limit over all nodes, a connection that rests elsewhere makes room.
func (c *Cluster) mayDialLocked(n *Node) bool {
	if !c.lacksSlotOnlyLocked(n) {
		return false
	}
	if c.open < c.cfg.Pool.Total {
		return true
	}
	c.evictLocked(n)
	return false
}

// lacksSlotOnlyLocked reports whether nothing about the node itself forbids a dial.
func (c *Cluster) lacksSlotOnlyLocked(n *Node) bool {
	p, maxDials := &n.pool, c.cfg.Pool.MaxDials
	if p.unproven {
		maxDials = 1
	}
	return c.closedLocked() == nil && !n.draining && n.retryAt == 0 && p.open < c.cfg.Pool.Max && p.dialing < maxDials
}

// evictLocked closes the connection that has rested longest on another node. The
// close frees the slot and pumps again.
func (c *Cluster) evictLocked(except *Node) {
	if c.evicting >= c.waiting {
		return
	}
	var oldest *Conn
	for _, n := range c.nodes {
		if n != except && len(n.pool.idle) > 0 && (oldest == nil || n.pool.idle[0].since < oldest.since) {
			oldest = n.pool.idle[0]
		}
	}
	if oldest == nil {
		return
	}
	idle := &oldest.node.pool.idle
	*idle = append((*idle)[:0], (*idle)[1:]...)
	c.evicting++
	c.spawnLocked(func() {
		c.mu.Lock()
		c.evicting--
		c.mu.Unlock()
		c.closeConn(oldest, errSlot)
	})
}

// dialLocked takes a slot and fills it in the background.
func (c *Cluster) dialLocked(n *Node) {
	n.pool.open++
	n.pool.dialing++
	c.open++
	c.dialing++
	c.spawnLocked(func() { c.fillSlot(n) })
	n.changedLocked("connecting", nil)
}

// fillSlot makes a connection for whoever waits first. Its context is the
// Cluster's: no caller's cancellation ends a dial that others may need.
func (c *Cluster) fillSlot(n *Node) {
	conn, err := c.connect(c.ctx, n, 0, nil)
	c.mu.Lock()
	n.pool.dialing--
	c.dialing--
	if err != nil {
		c.failWaitersLocked(n, err)
		c.freeSlotLocked(n)
		n.lostLocked() // without a backoff, background connects must not spin either
		n.changedLocked("connect failed", err)
		c.forgetLocked(n)
		c.quietLocked()
		c.mu.Unlock()
		c.settle()
		return
	}
	conn.pooled = true
	if life := c.cfg.Pool.MaxLifetime; life > 0 {
		conn.expires.Store(int64(conn.opened + life - time.Duration(rand.Int64N(int64(life)/10+1))))
	}
	cause := c.parkLocked(conn, clock())
	c.pumpLocked(n)
	n.changedLocked("connected", nil)
	c.mu.Unlock()
	c.wakeup() // run keeps MinIdle, MaxDials at a time
	if cause != nil {
		c.closeConn(conn, cause)
	}
	c.settle()
}

// failWaitersLocked passes a failed dial on: to the one it was made for, and to
// all when this was the last slot, or when nothing would help.
func (c *Cluster) failWaitersLocked(n *Node, err error) {
	all := n.pool.open == 1 || has(err, permanent)
	for len(n.pool.waiters) > 0 {
		t := n.pool.waiters[0]
		c.removeWaiterLocked(n, 0)
		if t.deliver(nil, err) && !all {
			return
		}
	}
}

// freeSlotLocked gives a slot back and lets those dial who wait for one.
func (c *Cluster) freeSlotLocked(n *Node) {
	n.pool.open--
	c.open--
	c.pumpLocked(n)
	if c.waiting > 0 && c.open == c.cfg.Pool.Total-1 {
		for _, other := range c.nodes {
			c.pumpLocked(other)
		}
	}
}
