package holdfast

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
)

// Maglev gives a key the same node as long as the set of nodes stays: by a table of
// 65537 slots that the nodes fill in turns, as often as their weight says (Eisenbud et
// al., Maglev, NSDI '16, §3.4). A choice costs the same for any number of nodes, until
// the bound is looked at, which reads the load of each. For up to 64 nodes, and where
// not a key too many may move, there is [Rendezvous].
//
// What holds for both: the key is that of [Cluster.Pick]; [Key] makes one. The answer
// depends on the key and on the nodes' addresses, TLS names and weights alone, not on
// their order, nor on anything of this process: instances with the same endpoints agree
// without talking. A node that is not usable, or in tried, gives each of its keys to
// the next in that key's own order, and gets them back; no other key moves. That goes
// for a node drained by weight −1 too, which keeps its place as one of weight 1, until
// it is removed. A node that starts slowly has all its keys: keys do not move for that.
//
// bound limits skew (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded
// Loads, 2016): a node with more than bound percent of the mean of leases in flight, by
// weight, is passed over, unless all are. 125 to 200 make sense; 0 means 150, negative
// takes the bound off. Below ten leases in flight no node counts as loaded, so that
// the few connections of an only client stay together. Where the bound bites, the load
// seen here decides, and instances may disagree.
//
// A removal moves the keys of that node and fewer than 1 % of the others, with up to
// 100 nodes; shares are even to one slot. The table takes 128 KiB, and a few
// milliseconds when the set or a weight changes; health does not touch it. Clusters
// with different endpoints should not share one Picker: it keeps one table.
//
// Do, Acquire and DialContext have one key, 0, and so one node up to the bound.
func Maglev(bound int) Picker {
	var last atomic.Pointer[maglevTable]
	return func(nodes []*Node) func(uint64, []*Node) *Node {
		h := newHashing(nodes, bound)
		if len(nodes) > 1 {
			h.seat(nodes[0].c.members(), &last)
		}
		return h.pick
	}
}

// Rendezvous gives a key the node that scores highest for it, by a hash of both and the
// node's weight (Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit
// Rates, 1998). It is exact: a node that comes or goes moves its own keys and no other.
// A choice looks at every node, so it suits some 64 of them. For the rest it is as
// [Maglev], bound too.
func Rendezvous(bound int) Picker {
	return func(nodes []*Node) func(uint64, []*Node) *Node {
		return newHashing(nodes, bound).pick
	}
}

// Key makes a key for [Cluster.Pick] of a client's address, a server name, a user: it
// is FNV-1a with 64 bits, the same in every version and on every machine. Who can
// choose the bytes can choose the node; the bound of the policy is the defence.
func Key[B ~string | ~[]byte](b B) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(b) {
		h = (h ^ uint64(b[i])) * 1099511628211
	}
	return h
}

// mix spreads every bit of x over the whole result: the finalizer of SplitMix64
// (Steele, Lea, Flood 2014). Keys may be small numbers, and FNV-1a alone leaves what
// differs at the end of two addresses in few bits. What goes through it decides which
// node gets a key: a change here moves every session of every user.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashing is what both policies share: the usable nodes, and with seats those of them
// who sit in the table.
type hashing struct {
	nodes  []hashed
	weight float64 // of all nodes
	equal  bool    // the weights are
	bound  float64 // times the mean; 0 when off

	table *maglevTable // nil for Rendezvous
	seats []*hashed    // by member of the table; nil for who is not usable
}

type hashed struct {
	*Node
	seed   uint64 // of the id, for it is the same everywhere
	weight float64
}

const (
	boundDefault = 150 // percent
	light        = 10  // leases in flight that are never too many
)

func newHashing(nodes []*Node, bound int) *hashing {
	h := &hashing{nodes: make([]hashed, 0, len(nodes)), equal: true}
	if bound >= 0 {
		h.bound = float64(cmp.Or(bound, boundDefault)) / 100
	}
	for _, n := range nodes {
		w := float64(n.endpoint.Load().weight()) // not Share: see Maglev
		h.nodes = append(h.nodes, hashed{n, Key(n.id), w})
		h.weight += w
		h.equal = h.equal && w == h.nodes[0].weight
	}
	return h
}

// pick takes the first node in the key's order that is not overloaded, and if all are,
// the first.
func (h *hashing) pick(key uint64, tried []*Node) *Node {
	n := h.first(key, tried, math.Inf(1))
	if n == nil {
		return nil
	}
	if h.bound > 0 && n.inflight.Load() >= light {
		most := h.mostPerWeight()
		if !n.takes(most) {
			n = cmp.Or(h.first(key, tried, most), n)
		}
	}
	return n.Node
}

// mostPerWeight is the bound for each unit of weight, with the lease that is to come
// counted in. It adds up the nodes' own counters: a common one would be a line of cache
// that all cores write.
func (h *hashing) mostPerWeight() float64 {
	sum := int64(1)
	for i := range h.nodes {
		sum += h.nodes[i].inflight.Load()
	}
	return h.bound * float64(sum) / h.weight
}

// takes reports whether one lease more leaves the node within its bound, rounded up.
func (n *hashed) takes(most float64) bool {
	return float64(n.inflight.Load()) < max(light, most*n.weight)
}

// first finds the first node in the key's order that is not in tried and takes one
// more: the one in the key's slot of the table, then in a few others, then that of the
// highest score. A few suffice: where most seats are empty, there are few to score.
func (h *hashing) first(key uint64, tried []*Node, most float64) *hashed {
	const looks, apart = 8, 0x9e3779b97f4a7c15 // apart: SplitMix64's step
	if h.table != nil {
		for i := range uint64(looks) {
			n := h.seats[h.table.slots[mix(key+i*apart)%maglevSize]]
			if n != nil && n.takes(most) && !slices.Contains(tried, n.Node) {
				return n
			}
		}
	}
	return h.highest(key, tried, most)
}

// highest finds the node with the highest score. u is even over (0, 1), so −w/ln(u)
// is highest for a node as often as its weight w says; with equal weights u alone has
// the same order and spares the logarithm. Logarithms of two kinds of processor may
// differ in the last bit, which decides one key in 2⁵⁰.
func (h *hashing) highest(key uint64, tried []*Node, most float64) (best *hashed) {
	high := 0.0
	for i := range h.nodes {
		n := &h.nodes[i]
		score := (float64(mix(key^n.seed)>>11) + 0.5) / (1 << 53)
		if !h.equal {
			score = -n.weight / math.Log(score)
		}
		if score > high && n.takes(most) && !slices.Contains(tried, n.Node) {
			best, high = n, score
		}
	}
	return best
}

// seat puts the usable nodes in their places in the table of all members. The table is
// last's, if that is of the same members.
func (h *hashing) seat(members []*Node, last *atomic.Pointer[maglevTable]) {
	h.table = last.Load()
	if h.table == nil || !slices.EqualFunc(h.table.members, members, member.is) {
		h.table = newMaglevTable(members)
		last.Store(h.table)
	}
	h.seats = make([]*hashed, len(members))
	for i := range h.nodes {
		n := &h.nodes[i]
		if at, ok := slices.BinarySearchFunc(members, n.id, func(m *Node, id string) int { return cmp.Compare(m.id, id) }); ok {
			h.seats[at] = n
		}
	}
}

// members returns the nodes that are configured, whatever their health, in the order
// of their ids.
func (c *Cluster) members() []*Node {
	c.mu.Lock()
	members := slices.DeleteFunc(slices.Clone(c.nodes), func(n *Node) bool { return n.removed })
	c.mu.Unlock()
	slices.SortFunc(members, func(a, b *Node) int { return cmp.Compare(a.id, b.id) })
	return members
}

// maglevSize is the number of slots: a prime, so that every skip visits all of them,
// and a hundred times more than the nodes of most sets. It does not grow with the set,
// for another size is another table.
const maglevSize = 65537

// maglevTable is a function of its members alone.
type maglevTable struct {
	members []member // by id
	slots   []uint16 // index of a member; maxNodes fit
}

type member struct {
	id     string
	weight uint64
}

func memberOf(n *Node) member    { return member{n.id, uint64(n.endpoint.Load().weight())} }
func (m member) is(n *Node) bool { return m == memberOf(n) }

func newMaglevTable(nodes []*Node) *maglevTable {
	t := &maglevTable{}
	for _, n := range nodes {
		t.members = append(t.members, memberOf(n))
	}
	t.slots = fillSlots(t.members)
	return t
}

// fillSlots lets the members take slots in turns, each the next that is free in its own
// permutation of them. The heaviest has a turn in every round, the others save up their
// weight for one. All have one in the first round, so each gets a slot. In whole
// numbers, or machines would round apart.
func fillSlots(members []member) []uint16 {
	type turn struct{ at, skip, saved uint64 }
	heaviest := uint64(0)
	for _, m := range members {
		heaviest = max(heaviest, m.weight)
	}
	turns := make([]turn, len(members))
	for i, m := range members {
		seed := Key(m.id)
		turns[i] = turn{mix(seed) % maglevSize, mix(^seed)%(maglevSize-1) + 1, heaviest - m.weight}
	}

	const free = math.MaxUint16
	slots := slices.Repeat([]uint16{free}, maglevSize)
	for left := maglevSize; ; {
		for i := range turns {
			t := &turns[i]
			if t.saved += members[i].weight; t.saved < heaviest {
				continue
			}
			t.saved -= heaviest
			for slots[t.at] != free {
				t.at = (t.at + t.skip) % maglevSize
			}
			slots[t.at] = uint16(i)
			if left--; left == 0 {
				return slots
			}
		}
	}
}
