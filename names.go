package holdfast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/internal/dns"
)

// name is an endpoint and what it stands for: the addresses of the last good
// answer, or the endpoint itself when it is an address already.
type name struct {
	endpoint Endpoint
	literal  bool
	last     []Endpoint
	answered bool   // there was an answer, good or bad
	err      *Error // of the last answer, if it was bad
	failures int
	asking   bool
	asked    time.Duration // clock() of the last question
	due      time.Duration // clock() of the next; never when Names.Refresh is off
}

const (
	lookupLimit = 30 * time.Second // one lookup, gRPC's limit
	lookupFloor = 5 * time.Second  // between two lookups of a name
	maxLookups  = 16               // at once
	never       = time.Duration(1<<63 - 1)
)

// newName begins a name. With a dialer of the user's own, hosts are passed on as
// they are; only SRV names must become hosts.
func (c *Cluster) newName(e Endpoint) *name {
	passOn := c.cfg.Dial != nil && c.cfg.Names.Lookup == nil && e.Network != "srv"
	if passOn || !e.isName() {
		return &name{endpoint: e, literal: true, last: []Endpoint{e}, answered: true}
	}
	n := &name{endpoint: e}
	for _, old := range c.names {
		if was := old.endpoint; was.Network == e.Network && was.Addr == e.Addr && was.TLS == e.TLS && was.ServerName == e.ServerName {
			n.inherit(old)
		}
	}
	return n
}

// inherit keeps the addresses of a name whose weight or priority is new until the
// next answer.
func (n *name) inherit(old *name) {
	n.last, n.answered, n.err = slices.Clone(old.last), old.answered, old.err
	for i := range n.last {
		if n.endpoint.Network != "srv" { // there the records have their own
			n.last[i].Weight, n.last[i].Priority = n.endpoint.Weight, n.endpoint.Priority
		}
	}
}

// label is the endpoint as it stands in the nodes of a name, "" for an address.
func (n *name) label() string {
	if n.literal {
		return ""
	}
	return n.endpoint.String()
}

func (c *Cluster) lookupDueLocked(now time.Duration, next *time.Duration) {
	asking := 0
	for _, n := range c.names {
		if n.asking {
			asking++
		}
	}
	for _, n := range c.names {
		if n.literal || n.asking || asking >= maxLookups || !due(n.due, now, next) {
			continue
		}
		asking++
		n.asking = c.spawnLocked(func() { c.ask(n) })
	}
}

// ask looks a name up and takes the answer into the set.
func (c *Cluster) ask(n *name) {
	ctx, cancel := context.WithTimeout(c.ctx, lookupLimit)
	defer cancel()
	found, ttl, err := c.lookup(ctx, n.endpoint, n.last)
	class := ClassOther
	if err != nil {
		class = c.cfg.Retry.Classify(err)
	}

	c.mu.Lock()
	n.asking, n.answered, n.asked = false, true, clock()
	if err != nil {
		n.failures++
		n.due = n.asked + max(time.Second, c.cfg.Backoff.delay(n.failures-1))
		n.err = &Error{Phase: PhaseResolve, Class: class, Endpoint: n.endpoint, Err: err}
		c.emitLocked(Event{Kind: EventResolve, Cause: n.endpoint.String(), Attempt: n.failures, Err: n.err})
	} else {
		n.err, n.failures = nil, 0
		n.last = found
		n.due = c.nextLookup(n.asked, ttl)
	}
	c.regroupLocked()
	c.mu.Unlock()
	c.settle()
	c.wakeup()
}

// nextLookup is when an answer is asked for again: a refresh interval later, or
// after its TTL if that is shorter, ±20 %.
func (c *Cluster) nextLookup(now, ttl time.Duration) time.Duration {
	every := c.cfg.Names.Refresh
	if every == 0 {
		return never
	}
	if ttl > 0 {
		every = min(every, max(ttl, lookupFloor))
	}
	return now + jitter(every, 0.2)
}

// resolveErrsLocked returns why the source and each name gave no good answer, as
// copies: who fails an operation with them adds to them.
func (c *Cluster) resolveErrsLocked() []*Error {
	var errs []*Error
	note := func(err *Error) {
		if err != nil {
			e := *err
			errs = append(errs, &e)
		}
	}
	note(c.resolveErr)
	for _, n := range c.names {
		note(n.err)
	}
	return errs
}

// relookupLocked asks again soon: nodes fail, so perhaps they have moved. It wakes
// run only for something new, for run itself may lead here.
func (c *Cluster) relookupLocked() {
	for _, n := range c.names {
		if soon := n.asked + lookupFloor; soon < n.due {
			n.due = soon
			c.wakeup()
		}
	}
}

// lookup turns an endpoint into endpoints that can be dialed as they are. last is what
// it became before, for the parts of which nothing can be learned now.
func (c *Cluster) lookup(ctx context.Context, e Endpoint, last []Endpoint) ([]Endpoint, time.Duration, error) {
	if e.TLS && e.ServerName == "" {
		e.ServerName = c.tls.ServerName // Config.TLS's own word comes before the host
	}
	if f := c.cfg.Names.Lookup; f != nil && e.isName() {
		return c.lookupOwn(ctx, e)
	}
	switch {
	case e.Network == "srv":
		return c.lookupSRV(ctx, e, last)
	case e.isName() && c.cfg.Dial == nil:
		return c.lookupHost(ctx, e, last)
	}
	return []Endpoint{e}, 0, nil
}

// lookupOwn asks the user's function, refuses what cannot be dialed, and sees to it
// that TLS verifies the name, not the address it leads to.
func (c *Cluster) lookupOwn(ctx context.Context, e Endpoint) ([]Endpoint, time.Duration, error) {
	var ttl time.Duration
	found, err := guarded(func() (found []Endpoint, err error) {
		found, ttl, err = c.cfg.Names.Lookup(ctx, e)
		return found, err
	})
	if err != nil {
		return nil, 0, err
	}
	var errs []error
	good := slices.DeleteFunc(slices.Clone(found), func(e Endpoint) bool {
		err := e.check()
		errs = append(errs, err)
		return err != nil
	})
	if len(good) == 0 {
		return nil, 0, errors.Join(append(errs, &dns.Error{Kind: dns.Empty, Name: e.Addr})...)
	}
	if e.isHostPort() && e.ServerName == "" {
		e.ServerName = e.serverName()
	}
	for i := range good {
		good[i].ServerName = cmp.Or(good[i].ServerName, e.ServerName)
	}
	return good, ttl, nil
}

func (c *Cluster) lookupHost(ctx context.Context, e Endpoint, last []Endpoint) ([]Endpoint, time.Duration, error) {
	host, port, err := net.SplitHostPort(e.Addr)
	if err != nil {
		return nil, 0, err
	}
	addrs, ttl, err := c.dns.LookupIP(ctx, host)
	if len(addrs) == 0 {
		return nil, 0, err
	}
	if e.ServerName == "" {
		e.ServerName = host
	}
	found := make([]Endpoint, 0, len(addrs))
	for _, a := range addrs {
		e.Addr = net.JoinHostPort(a.String(), port)
		found = append(found, e)
	}
	if err != nil {
		found = append(found, otherFamily(last, e)...)
	}
	return found, ttl, nil
}

// otherFamily is what last has of the host of e in the address family that e is not of.
// Of two SRV hosts with one port and one sni= it cannot tell whose an address was.
func otherFamily(last []Endpoint, e Endpoint) (kept []Endpoint) {
	_, port, _ := net.SplitHostPort(e.Addr)
	v6 := isV6(e.Addr)
	for _, old := range last {
		if _, p, _ := net.SplitHostPort(old.Addr); p == port && old.ServerName == e.ServerName && isV6(old.Addr) != v6 {
			e.Addr = old.Addr
			kept = append(kept, e)
		}
	}
	return kept
}

// lookupSRV asks for the services and then for their hosts. The record's priority
// ranks below the endpoint's own; a record's weight of 0, "hardly ever", becomes
// 1. One host that cannot be found does not spoil the others.
func (c *Cluster) lookupSRV(ctx context.Context, e Endpoint, last []Endpoint) ([]Endpoint, time.Duration, error) {
	records, ttl, err := c.dns.LookupSRV(ctx, e.Addr)
	if err != nil {
		return nil, 0, err
	}
	var (
		wg   sync.WaitGroup
		each = make([][]Endpoint, len(records))
		errs = make([]error, len(records))
	)
	slots := make(chan struct{}, maxLookups)
	for i, r := range records {
		target := e
		target.Network = srvNetwork(e.Addr)
		target.Addr = net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))
		target.Priority = e.Priority<<16 + int(r.Priority)
		if e.Weight >= 0 {
			target.Weight = max(1, int(r.Weight))
		}
		wg.Go(func() {
			slots <- struct{}{}
			each[i], _, errs[i] = c.lookup(ctx, target, last)
			<-slots
		})
	}
	wg.Wait()
	found := slices.Concat(each...)
	if len(found) == 0 {
		return nil, 0, fmt.Errorf("no host of %s was found: %w", e, errors.Join(errs...))
	}
	return found, ttl, nil
}

func srvNetwork(name string) string {
	if strings.Contains(name, "._udp.") {
		return "udp"
	}
	return "tcp"
}

func parseIP(host string) netip.Addr {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}

// sameFamily returns the other nodes of the node's name with its address family,
// if there is one of the other family left to try.
func (c *Cluster) sameFamily(of *Node, tried []*Node) []*Node {
	if of.name == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var same []*Node
	other := false
	for _, n := range c.nodes {
		switch {
		case n == of || n.name != of.name:
		case n.v6 == of.v6:
			same = append(same, n)
		default:
			other = other || n.deriveLocked().Usable() && !slices.Contains(tried, n)
		}
	}
	if !other {
		return nil
	}
	return same
}

// nodeAt returns the node whose resolved address is addr.
func (c *Cluster) nodeAt(addr string) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		if n.addr == addr && !n.draining {
			return n
		}
	}
	return nil
}

// familiesInTurn orders the addresses of a name as a race over the cluster would.
func familiesInTurn(found []Endpoint) []Endpoint {
	var families [2][]Endpoint
	for _, e := range found {
		i := 0
		if isV6(e.Addr) != isV6(found[0].Addr) {
			i = 1
		}
		families[i] = append(families[i], e)
	}
	ordered := make([]Endpoint, 0, len(found))
	for i := range found {
		for _, family := range families {
			if i < len(family) {
				ordered = append(ordered, family[i])
			}
		}
	}
	return ordered
}

// foreignNodes are the nodes of addresses: those of the set, and others outside it
// that live as long as their connections. The caller lets them go.
func (c *Cluster) foreignNodes(addrs []Endpoint) []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes := make([]*Node, 0, len(addrs))
	for _, e := range addrs {
		n := c.foreignNodeLocked(e)
		n.kept++
		nodes = append(nodes, n)
	}
	return nodes
}

func (c *Cluster) foreignNodeLocked(e Endpoint) *Node {
	id := nodeID(e)
	if i := slices.IndexFunc(c.nodes, func(n *Node) bool { return n.id == id }); i >= 0 {
		return c.nodes[i]
	}
	n := c.newNode(e)
	n.draining, n.removed = true, true
	n.state = StateDraining
	c.nodes = append(slices.Clone(c.nodes), n)
	return n
}
