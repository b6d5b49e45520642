package simnet

import (
	"hash/fnv"
	"io"
	"math/rand/v2"
	"syscall"
	"time"
)

// Link says how packets fare in one direction between two hosts. The zero
// Link is perfect: instant, without loss, as wide as need be.
type Link struct {
	Latency time.Duration // one way; a dial takes both ways
	Jitter  time.Duration // adds up to this much, evenly; reorders datagrams, never a stream

	Loss      float64 // chance that a datagram, SYN or its answer is lost, or a segment late
	Duplicate float64 // chance that a datagram arrives twice

	// Bandwidth in bytes per second, shared by all that goes this way between
	// these two hosts, first come first served; 0 means unlimited. What waits
	// for its turn counts as sent: a dial queues behind bulk data.
	Bandwidth int

	// Reject answers SYNs and datagrams that have arrived with this error:
	// ECONNREFUSED as a RST or port-unreachable, EHOSTUNREACH or ENETUNREACH
	// as a router would. Streams that are established do not feel it.
	Reject syscall.Errno
}

// A route is the way from one host to another, by name; "" stands for any.
type route struct{ from, to string }

// SetLink makes l the link from one host to another, in that direction only;
// "" means any host. The more exact of several wins, the sender's name before
// the receiver's. A host reaches itself, and Unix paths, by the zero Link
// unless both names are given. What is on its way keeps its time of arrival.
func (n *Net) SetLink(from, to string, l Link) {
	n.lock()
	defer n.unlock()
	n.links[route{hostName(from), hostName(to)}] = l
}

// Partition makes a black hole between two hosts, both ways; "" means any
// other host. SYNs and datagrams vanish, also those under way that would
// arrive meanwhile. Established streams stall: writes fill their buffers.
func (n *Net) Partition(a, b string) {
	n.lock()
	defer n.unlock()
	a, b = hostName(a), hostName(b)
	n.cuts[route{a, b}], n.cuts[route{b, a}] = true, true
}

// Heal ends the Partition made with the same two names. What streams held
// back sets off at once, as if their retransmission timers fired now.
func (n *Net) Heal(a, b string) {
	n.lock()
	defer n.unlock()
	a, b = hostName(a), hostName(b)
	delete(n.cuts, route{a, b})
	delete(n.cuts, route{b, a})
	n.resume()
}

// routes lists the names under which a way may be known, the exact one first.
func routes(from, to *Host) []route {
	exact := route{from.name, to.name}
	if from == to || !from.ip.IsValid() || !to.ip.IsValid() {
		return []route{exact}
	}
	return []route{exact, {from.name, ""}, {"", to.name}, {}}
}

func (n *Net) link(from, to *Host) Link {
	for _, r := range routes(from, to) {
		if l, ok := n.links[r]; ok {
			return l
		}
	}
	return Link{}
}

func (n *Net) cut(from, to *Host) bool {
	for _, r := range routes(from, to) {
		if n.cuts[r] {
			return true
		}
	}
	return false
}

// arrival says when a packet that sets off now gets there, and books its time
// on the link.
func (n *Net) arrival(from, to *Host, size int, rng *rand.Rand) time.Time {
	l, t := n.link(from, to), n.clock.now
	if l.Bandwidth > 0 {
		r := route{from.name, to.name}
		t = later(t, n.busy[r]).Add(time.Duration(size) * time.Second / time.Duration(l.Bandwidth))
		n.busy[r] = t
	}
	if l.Jitter > 0 {
		t = t.Add(time.Duration(rng.Int64N(int64(l.Jitter))))
	}
	return t.Add(l.Latency)
}

// carry takes one packet that nobody retransmits from host to host, and calls
// arrive if it gets there.
func (n *Net) carry(from, to *Host, size int, rng *rand.Rand, arrive func()) {
	if n.cut(from, to) || chance(rng, n.link(from, to).Loss) {
		n.stats.Lost++
		return
	}
	n.at(n.arrival(from, to, size, rng), func() {
		if n.cut(from, to) {
			n.stats.Lost++
			return
		}
		arrive()
	})
}

// resume sets the stalled directions going; those still stuck stall again.
func (n *Net) resume() {
	stalled := n.stalled
	n.stalled = nil
	for _, p := range stalled {
		p.stalled = false
		p.retransmit()
	}
}

// dice returns the generator of the flow between two addresses.
func (n *Net) dice(from, to place) *rand.Rand {
	h := fnv.New64a()
	io.WriteString(h, from.String()+">"+to.String())
	return rand.New(rand.NewPCG(n.seed, h.Sum64()))
}

func chance(rng *rand.Rand, p float64) bool { return p > 0 && rng.Float64() < p }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
