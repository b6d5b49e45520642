package holdfast

import (
	"math/rand/v2"
	"slices"
	"sort"
	"sync/atomic"
	"time"
)

// Picker is a balancing policy. It is called whenever the set of usable nodes
// changes, with that set in configured order, and returns the choice among them:
// a func that must be safe for concurrent use, must not block, and returns nil
// when every node it would choose is in tried. key is what the caller of
// [Cluster.Pick] gave, 0 for Do, Acquire and DialContext.
//
// A policy of one's own is a pure function over nodes; the Cluster owns the
// passes, the sleeps and the limits, so a choice that repeats a tried node only
// ends the pass.
type Picker func(nodes []*Node) func(key uint64, tried []*Node) *Node

// Ordered takes the first node in configured order: the others are for failover.
func Ordered() Picker {
	return func(nodes []*Node) func(uint64, []*Node) *Node {
		return func(_ uint64, tried []*Node) *Node {
			for _, n := range nodes {
				if !slices.Contains(tried, n) {
					return n
				}
			}
			return nil
		}
	}
}

// Random takes any node, by weight, and none twice before all were tried.
func Random() Picker {
	return twoChoices(func(_, _ *Node) bool { return false })
}

// RoundRobin takes the nodes in turn, each as often as its weight says and spread
// as evenly as can be (nginx's smooth weighted round robin). The turn goes on
// where it was when the set of nodes changes.
func RoundRobin() Picker {
	var turn atomic.Uint64
	return func(nodes []*Node) func(uint64, []*Node) *Node {
		schedule := smoothSchedule(nodes)
		return func(_ uint64, tried []*Node) *Node {
			for range schedule {
				n := schedule[(turn.Add(1)-1)%uint64(len(schedule))]
				if !slices.Contains(tried, n) {
					return n
				}
			}
			return nil
		}
	}
}

// smoothSchedule lays out one period of the smooth weighted sequence. Shares are
// scaled so that a period stays below a thousand turns or so.
func smoothSchedule(nodes []*Node) []*Node {
	shares, total := integerShares(nodes, 1024)
	current := make([]int, len(nodes))
	schedule := make([]*Node, 0, total)
	for range total {
		best := 0
		for i := range nodes {
			current[i] += shares[i]
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= total
		schedule = append(schedule, nodes[best])
	}
	return schedule
}

// integerShares turns the nodes' shares into the smallest whole numbers with the
// same ratios, rounded where their sum would pass limit.
func integerShares(nodes []*Node, limit int) (shares []int, total int) {
	sum := 0.0
	for _, n := range nodes {
		sum += n.Share()
	}
	scale := 1.0
	if sum > float64(limit) {
		scale = float64(limit) / sum
	} else if slices.ContainsFunc(nodes, func(n *Node) bool { return n.Share() < 1 }) {
		scale = 10 // a slow start goes in tenths
	}
	divisor := 0
	for _, n := range nodes {
		s := max(1, int(n.Share()*scale+0.5))
		shares = append(shares, s)
		divisor = gcd(divisor, s)
	}
	for i := range shares {
		shares[i] /= divisor
		total += shares[i]
	}
	return shares, total
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// LeastLoaded takes the less loaded of two nodes drawn at random by weight: load
// is leases in flight. It is the default, and right for long-lived connections.
func LeastLoaded() Picker {
	// Not one more, as if the lease were taken: with nothing in flight the heaviest
	// node would then win every time, where a tie leaves it to the draw.
	load := func(n *Node) float64 { return float64(n.inflight.Load()) / n.Share() }
	return twoChoices(func(a, b *Node) bool { return load(b) < load(a) })
}

// PeakEWMA takes, of two nodes drawn at random by weight, the one with the lower
// product of load and latency, where latency is a moving average that follows
// peaks at once and forgets over 10 s. A node nobody has used is tried once at the
// first chance, and counts as slow until that is over. It is right for short
// exchanges; long polls mislead it.
func PeakEWMA() Picker {
	cost := func(n *Node, now time.Duration) float64 {
		latency, inflight := n.latency.at(now), n.inflight.Load()
		if inflight > 0 && n.latency.stamp.Load() == 0 {
			latency = ewmaSeed
		}
		return float64(latency) * float64(inflight+1) / n.Share()
	}
	return twoChoices(func(a, b *Node) bool {
		now := clock()
		return cost(b, now) < cost(a, now)
	})
}

// twoChoices draws two distinct nodes and takes the better one (Mitzenmacher's
// power of two choices); better says whether b is.
func twoChoices(better func(a, b *Node) bool) Picker {
	return func(nodes []*Node) func(uint64, []*Node) *Node {
		draw := drawByShare(nodes)
		return func(_ uint64, tried []*Node) *Node {
			var a, b *Node
			switch {
			case len(tried) > 0:
				a, b = sampleTwo(nodes, tried)
			case len(nodes) > 1:
				a, b = draw()
			case len(nodes) == 1:
				return nodes[0]
			}
			if b != nil && better(a, b) {
				return b
			}
			return a
		}
	}
}

// drawByShare returns a func that draws two distinct nodes with probabilities
// after their weights. Equal weights need no table.
func drawByShare(nodes []*Node) func() (a, b *Node) {
	sums := make([]float64, len(nodes))
	sum, equal := 0.0, true
	for i, n := range nodes {
		w := n.Share()
		sum += w
		sums[i] = sum
		equal = equal && w == sums[0]
	}
	count := len(nodes)
	if equal {
		return func() (*Node, *Node) {
			i := rand.IntN(count)
			j := rand.IntN(count - 1)
			if j >= i {
				j++
			}
			return nodes[i], nodes[j]
		}
	}
	one := func() int { return min(sort.SearchFloat64s(sums, rand.Float64()*sum), count-1) }
	return func() (*Node, *Node) {
		i := one()
		for range 8 { // a heavy node may be drawn again and again
			if j := one(); j != i {
				return nodes[i], nodes[j]
			}
		}
		return nodes[i], nodes[(i+1+rand.IntN(count-1))%count]
	}
}

// sampleTwo draws two distinct nodes that are not in tried, or one, or none, in a
// single pass (reservoir sampling).
func sampleTwo(nodes, tried []*Node) (a, b *Node) {
	seen := 0
	for _, n := range nodes {
		if slices.Contains(tried, n) {
			continue
		}
		seen++
		switch i := rand.IntN(seen); {
		case seen == 1:
			a = n
		case seen == 2 && i == 0:
			a, b = n, a
		case seen == 2:
			b = n
		case i == 0:
			a = n
		case i == 1:
			b = n
		}
	}
	return a, b
}
