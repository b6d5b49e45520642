package holdfast

import (
	"fmt"
	"slices"
)

// setEndpoints makes endpoints the whole set: names are kept or begun, nodes are
// added, kept with their connections, or drained.
func (c *Cluster) setEndpoints(endpoints []Endpoint) {
	c.mu.Lock()
	var names []*name
	for _, e := range endpoints {
		i := slices.IndexFunc(c.names, func(n *name) bool { return n.endpoint == e })
		if i >= 0 {
			names = append(names, c.names[i])
		} else {
			names = append(names, c.newName(e))
		}
	}
	c.names = names
	c.resolveErr = nil
	c.regroupLocked()
	c.mu.Unlock()
	c.settle()
	c.wakeup()
}

// maxNodes bounds a set that hostile or broken sources may blow up.
const maxNodes = 4096

// regroupLocked brings the nodes in line with what the names stand for now.
func (c *Cluster) regroupLocked() {
	old := map[string]*Node{}
	for _, n := range c.nodes {
		old[n.id] = n
	}
	var nodes []*Node
	seen, kept := map[string]bool{}, map[*Node]bool{}
	changed := false
	c.resolved = len(c.names) > 0
	for _, name := range c.names {
		c.resolved = c.resolved && name.answered
		for _, e := range name.last {
			id := nodeID(e)
			if seen[id] || len(nodes) >= maxNodes {
				continue
			}
			seen[id] = true
			n := old[id]
			if n == nil {
				n = c.newNode(e)
				n.name = name.label()
				changed = true
			}
			changed = n.updateLocked(e) || changed
			nodes = append(nodes, n)
			kept[n] = true
		}
	}
	for _, n := range c.nodes { // those that are gone stay until they are empty
		if !kept[n] {
			changed = changed || !n.draining
			nodes = append(nodes, n)
		}
	}
	before := c.nodes
	c.nodes = nodes
	for _, n := range before {
		if !kept[n] {
			n.removed = true
			n.drainLocked("removed")
			c.forgetLocked(n)
		}
	}
	if len(nodes) > 0 && !c.resolved {
		c.resolved = slices.ContainsFunc(nodes, func(n *Node) bool { return !n.draining })
	}
	if changed {
		c.emitLocked(Event{Kind: EventResolve, Cause: fmt.Sprintf("%d nodes", len(nodes))})
	}
	c.outdatedLocked()
}

// updateLocked takes over weight and priority of a known address.
func (n *Node) updateLocked(e Endpoint) (changed bool) {
	changed = *n.endpoint.Load() != e
	n.endpoint.Store(&e)
	n.removed = false
	if e.Weight < 0 {
		n.drainLocked("weight")
	} else if n.draining {
		n.draining = false
		n.changedLocked("weight", nil)
	}
	return changed
}

// drainLocked ends new use of a node: its waiters go elsewhere, connections at
// rest close, those in use close when they come back.
func (n *Node) drainLocked(cause string) {
	if n.draining {
		return
	}
	n.draining = true
	n.changedLocked(cause, nil)
	n.turnAwayLocked(errUnwanted)
	n.closeIdleLocked(errUnwanted)
}

// turnAwayLocked sends those who wait for the node to another one.
func (n *Node) turnAwayLocked(reason error) {
	for len(n.pool.waiters) > 0 {
		t := n.pool.waiters[0]
		n.c.removeWaiterLocked(n, 0)
		t.deliver(nil, n.away(reason))
	}
}

// away is why a node takes nobody, who may go to another one.
func (n *Node) away(reason error) *Error {
	return &Error{Phase: PhaseAcquire, Class: ClassNoEndpoint, Endpoint: n.Endpoint(), Node: n.String(), Err: reason}
}

// closeIdleLocked closes the node's connections at rest.
func (n *Node) closeIdleLocked(cause error) {
	if n.ports.count.Load() > 0 {
		n.c.spawnLocked(n.ports.retire)
	}
	idle := n.pool.idle
	n.pool.idle = nil
	if len(idle) == 0 {
		return
	}
	n.c.spawnLocked(func() {
		for _, conn := range idle {
			n.c.closeConn(conn, cause)
		}
	})
}

// forgetLocked drops a drained node that nobody holds.
func (c *Cluster) forgetLocked(n *Node) {
	if !n.removed || n.kept > 0 || len(n.conns) > 0 || n.pool.open > 0 {
		return
	}
	c.nodes = slices.DeleteFunc(slices.Clone(c.nodes), func(o *Node) bool { return o == n })
}

// keepLocked keeps a node from being forgotten until letGoLocked. One that was, for
// leases outlive their nodes, comes back unless its address has another by now: an
// address has one node, or its limits and its health would be counted apart.
func (c *Cluster) keepLocked(n *Node) error {
	if n.removed && !slices.Contains(c.nodes, n) {
		if slices.ContainsFunc(c.nodes, func(o *Node) bool { return o.id == n.id }) {
			return n.away(errUnwanted)
		}
		c.nodes = append(slices.Clone(c.nodes), n)
	}
	n.kept++
	return nil
}

func (c *Cluster) letGoLocked(n *Node) {
	n.kept--
	c.forgetLocked(n)
}

func (c *Cluster) letGo(nodes []*Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range nodes {
		c.letGoLocked(n)
	}
}

// refuseLocked fails those who wait for the node: there is nowhere else to go.
func (n *Node) refuseLocked(reason error) {
	for len(n.pool.waiters) > 0 {
		t := n.pool.waiters[0]
		n.c.removeWaiterLocked(n, 0)
		t.deliver(nil, &Error{Phase: PhaseAcquire, Class: ClassClosed, Endpoint: n.Endpoint(), Node: n.String(), Err: reason})
	}
}
