package holdfast_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/holdfast-net/holdfast"
)

// hashPolicies are those that give a key the same node, with their bound.
var hashPolicies = map[string]func(bound int) holdfast.Picker{"Maglev": holdfast.Maglev, "Rendezvous": holdfast.Rendezvous}

type choice = func(key uint64, tried []*holdfast.Node) *holdfast.Node

// forEachHash runs a story for every policy that hashes.
func forEachHash(t *testing.T, story func(t *testing.T, policy func(bound int) holdfast.Picker)) {
	for name, policy := range hashPolicies {
		t.Run(name, func(t *testing.T) { story(t, policy) })
	}
}

// setOf returns the nodes of a Cluster over addrs, which nobody dials.
func setOf(t testing.TB, addrs ...string) (*holdfast.Cluster, []*holdfast.Node) {
	t.Helper()
	var nodes []*holdfast.Node
	c, err := holdfast.New(holdfast.Static(addrs...), holdfast.Config{Picker: func(usable []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
		nodes = usable
		return holdfast.Ordered()(usable)
	}})
	if err != nil {
		t.Fatal(err)
	}
	set := nodes // as it is now: Close ends it
	t.Cleanup(func() { c.Close() })
	return c, set
}

// addrs are n addresses, some of which differ in one digit only.
func addrs(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("tcp://10.0.%d.%d:7000", i/250, i%250+1))
	}
	return all
}

// spread counts whom n keys get.
func spread(pick choice, n int) map[string]int {
	counts := map[string]int{}
	for key := range n {
		counts[pick(uint64(key), nil).Addr()]++
	}
	return counts
}

// homes spells the choices for the keys 0 to n−1.
func homes(t *testing.T, c *holdfast.Cluster, n int) string {
	t.Helper()
	var b strings.Builder
	for key := range n {
		lease, err := c.Pick(uint64(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(letter(lease.Node()))
		lease.Done()
	}
	return b.String()
}

// nodesAt returns the usable nodes with these addresses.
func nodesAt(t *testing.T, c *holdfast.Cluster, addrs ...string) (nodes []*holdfast.Node) {
	t.Helper()
	for _, addr := range addrs {
		lease := leaseOf(t, c, addr)
		nodes = append(nodes, lease.Node())
		lease.Done()
	}
	return nodes
}

// hold takes n leases of key's choice and keeps them to the end of the test.
func hold(t *testing.T, c *holdfast.Cluster, n int, key func() uint64) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		lease, err := c.Pick(key(), nil)
		if err != nil {
			t.Fatal(err)
		}
		counts[lease.Node().Addr()]++
		t.Cleanup(lease.Done)
	}
	return counts
}

// Sessions outlive versions: these answers must never change.
func TestHashPoliciesNeverChange(t *testing.T) {
	for text, want := range map[string]uint64{ // of FNV-1a, from its authors' test vectors
		"":       0xcbf29ce484222325,
		"a":      0xaf63dc4c8601ec8c,
		"foobar": 0x85944171f73967e8,
	} {
		if got := holdfast.Key(text); got != want || holdfast.Key([]byte(text)) != want {
			t.Errorf("Key(%q) = %#x, want %#x", text, got, want)
		}
	}

	_, plain := setOf(t, "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000", "10.0.0.4:7000", "10.0.0.5:7000")
	_, mixed := setOf(t, "10.0.0.1:7000?weight=3", "tls://10.0.0.2:7000?sni=b", "udp://10.0.0.3:7000", "10.0.0.4:7000?priority=0&weight=2")
	for _, row := range []struct {
		name   string
		policy holdfast.Picker
		nodes  []*holdfast.Node
		want   string
		sum    uint64 // of 20000 keys: for what is rare, such as many misses in the table
	}{
		{"Maglev", holdfast.Maglev(0), plain, "aeeadaaeabcacbeabbebeeaeddbc", 0x63b3be00e32a8bd5},
		{"Maglev, with three of five usable", holdfast.Maglev(0), []*holdfast.Node{plain[0], plain[2], plain[4]}, "aeeacaaeaccacaeacaeeeeaecaec", 0xe6a44711957f27c5},
		{"Maglev, by weights", holdfast.Maglev(0), mixed, "aadadaaaadaaaaaaaccdaaabadba", 0x57475fb7df782248},
		{"Rendezvous", holdfast.Rendezvous(0), plain, "eccddcadeaeddcbaddbaccbeeacd", 0xe6654f0f05abb08},
		{"Rendezvous, by weights", holdfast.Rendezvous(0), mixed, "baadbaadcaaddcaaddacccdccadd", 0x42ef388a8ad7b136},
	} {
		pick := row.policy(row.nodes)
		var got strings.Builder
		for key := range uint64(24) {
			got.WriteString(letter(pick(key, nil)))
		}
		for _, name := range []string{"192.0.2.1", "2001:db8::", "example.com", "alice"} {
			got.WriteString(letter(pick(holdfast.Key(name), nil)))
		}
		if got.String() != row.want {
			t.Errorf("%s: the keys go to %s, want %s", row.name, &got, row.want)
		}
		all := make([]byte, 20_000)
		for key := range all {
			all[key] = letter(pick(uint64(key), nil))[0]
		}
		if sum := holdfast.Key(all); sum != row.sum {
			t.Errorf("%s: the choices sum up to %#x, want %#x", row.name, sum, row.sum)
		}
	}
}

// Instances have nothing in common but their configuration.
func TestHashPoliciesAgreeWithoutSharedState(t *testing.T) {
	t.Run("whatever the order of the endpoints", func(t *testing.T) {
		forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
			list := addrs(50)
			list[7] += "?weight=5"
			_, nodes := setOf(t, list...)
			rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			_, shuffled := setOf(t, list...)
			a, b := policy(0)(nodes), policy(0)(shuffled)
			for key := range uint64(10_000) {
				if x, y := a(key, nil), b(key, nil); x.Addr() != y.Addr() {
					t.Fatalf("key %d: %v and, in another order, %v", key, x, y)
				}
			}
		})
	})

	t.Run("whatever each sees of their health", func(t *testing.T) {
		forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
			inWorld(t, 5, func(t *testing.T, w *world) {
				cfg := func() holdfast.Config { return holdfast.Config{Picker: policy(-1)} }
				well, one, other := w.cluster(cfg()), w.cluster(cfg()), w.cluster(cfg())
				eject(t, one, w.servers[0].addr)
				eject(t, other, w.servers[1].addr)
				ofWell, ofOne, ofOther := homes(t, well, 5000), homes(t, one, 5000), homes(t, other, 5000)
				moved := map[string]int{}
				for key, home := range ofWell {
					x, y := ofOne[key], ofOther[key]
					if rune(x) != home && home != 'a' || rune(y) != home && home != 'b' {
						t.Fatalf("key %d belongs to %c; who misses a chose %c, who misses b chose %c", key, home, x, y)
					}
					if home == 'a' {
						moved[string(x)]++
					}
				}
				for _, n := range []string{"b", "c", "d", "e"} {
					if !near(moved[n], 250, 60) {
						t.Errorf("the keys of a went to %v, want a quarter each", moved)
					}
				}
			})
		})
	})

	// The table is of all levels, for which of them are in use is a matter of health.
	t.Run("whatever becomes of the level below", func(t *testing.T) {
		forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				c := w.clusterOf(holdfast.Config{Picker: policy(-1)}, append(addrs(3), "10.0.0.4:7000?priority=1", "10.0.0.5:7000?priority=1")...)
				before := homes(t, c, 3000)
				for _, n := range "abc" {
					if got := strings.Count(before, string(n)); !near(got, 1000, 120) {
						t.Errorf("of 3000 keys %c has %d, want a third", n, got)
					}
				}
				lease, err := c.Pick(0, nodesAt(t, c, "10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"))
				if err != nil {
					t.Fatal(err)
				}
				defer lease.Done()
				fail(lease, 5)
				if s := lease.Node().State(); s != holdfast.StateEjected {
					t.Fatalf("%v is %v", lease.Node(), s)
				}
				if homes(t, c, 3000) != before {
					t.Error("keys moved for the health of a node they do not use")
				}
			})
		})
	})
}

// A node that comes or goes takes or leaves its own keys; of the others hardly any
// (Maglev), or none (Rendezvous), change hands.
func TestHashPoliciesMoveOnlyWhatTheyMust(t *testing.T) {
	const keys = 50_000
	for _, row := range []struct {
		name   string
		policy func(int) holdfast.Picker
		n      int
		extra  float64 // of the keys that need not move
	}{
		{"Maglev", holdfast.Maglev, 3, 0.02},
		{"Maglev", holdfast.Maglev, 10, 0.02},
		{"Maglev", holdfast.Maglev, 100, 0.02},
		{"Rendezvous", holdfast.Rendezvous, 3, 0},
		{"Rendezvous", holdfast.Rendezvous, 100, 0},
	} {
		t.Run(fmt.Sprint(row.name, " ", row.n), func(t *testing.T) {
			list := addrs(row.n)
			_, nodes := setOf(t, list...)
			full := row.policy(-1)(nodes)
			worst := 0.0
			for _, gone := range []int{0, row.n / 2, row.n - 1} {
				_, rest := setOf(t, slices.Delete(slices.Clone(list), gone, gone+1)...)
				without := row.policy(-1)(rest)
				stay, moved := 0, 0
				for key := range uint64(keys) {
					home := full(key, nil)
					if home == nodes[gone] {
						continue
					}
					stay++
					if without(key, nil).Addr() != home.Addr() {
						moved++
					}
				}
				worst = max(worst, float64(moved)/float64(stay))
			}
			t.Logf("extra moved: %.2f %%", 100*worst)
			if worst > row.extra {
				t.Errorf("%.2f %% of the keys moved without need, want at most %.0f %%", 100*worst, 100*row.extra)
			}
		})
	}

	// A drain is for coming back.
	t.Run("a drained node keeps its place", func(t *testing.T) {
		forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				source := newFeed()
				list := addrs(9)
				source.set(list...)
				c := w.clusterFrom(holdfast.Config{Picker: policy(-1)}, source)
				before := homes(t, c, 10_000)
				source.set(slices.Replace(slices.Clone(list), 1, 2, "10.0.0.2:7000?weight=-1")...)
				for i, now := range homes(t, c, 10_000) {
					if home := rune(before[i]); now == 'b' || home != 'b' && now != home {
						t.Fatalf("with b drained key %d went from %c to %c", i, home, now)
					}
				}
				source.set(list...)
				if homes(t, c, 10_000) != before {
					t.Error("keys moved though the drained node came back")
				}
			})
		})
	})
}

func TestHashPoliciesGoByWeight(t *testing.T) {
	forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
		_, nodes := setOf(t, "10.0.0.1:7000?weight=5", "10.0.0.2:7000?weight=3", "10.0.0.3:7000", "10.0.0.4:7000")
		counts := spread(policy(-1)(nodes), 100_000)
		for i, want := range []int{50_000, 30_000, 10_000, 10_000} {
			if got := counts[nodes[i].Addr()]; !near(got, want, want/20) {
				t.Errorf("%v has %d of 100000 keys, want %d", nodes[i], got, want)
			}
		}

		// The fewer they are, the more each of them gets of what is left.
		counts = spread(policy(-1)(nodes[1:]), 100_000)
		for i, want := range []int{60_000, 20_000, 20_000} {
			if got := counts[nodes[i+1].Addr()]; !near(got, want, want/20) {
				t.Errorf("without the heaviest %v has %d of 100000 keys, want %d", nodes[i+1], got, want)
			}
		}
	})
}

func TestMaglevSharesAreEven(t *testing.T) {
	slots := func(list ...string) map[string]int {
		_, nodes := setOf(t, list...)
		counts := map[string]int{}
		for _, n := range holdfast.MaglevSlots(nodes) {
			counts[n.Addr()]++
		}
		return counts
	}
	for _, n := range []int{1, 2, 3, 10, 100, 655, 1000, 4096} { // 655 is a hundredth of the slots
		for addr, got := range slots(addrs(n)...) {
			even := 65537 / float64(n)
			if off := math.Abs(float64(got) - even); off >= 1 || n <= 655 && off > even/100 {
				t.Errorf("of %d nodes %s has %d slots, an even share is %.1f", n, addr, got, even)
			}
		}
	}

	t.Run("by weight", func(t *testing.T) {
		list := addrs(100)
		for i := range list {
			list[i] += fmt.Sprintf("?weight=%d", 1+i%10)
		}
		counts := slots(list...)
		for i, addr := range list {
			addr, _, _ = strings.Cut(strings.TrimPrefix(addr, "tcp://"), "?")
			want := 65537 * float64(1+i%10) / 550
			if off := math.Abs(float64(counts[addr]) - want); off > 2 {
				t.Errorf("%s with weight %d has %d slots, want %.1f", addr, 1+i%10, counts[addr], want)
			}
		}
	})

	t.Run("the lightest has one", func(t *testing.T) {
		list := addrs(1000)
		list[0] += "?weight=65535"
		counts := slots(list...)
		if len(counts) != 1000 {
			t.Errorf("%d of 1000 nodes have a slot", len(counts))
		}
	})
}

// A call that lost a node goes on with the next in the key's order, as every other
// call with that key.
func TestHashPoliciesExcludeTried(t *testing.T) {
	forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
		c, nodes := setOf(t, addrs(12)...)
		pick, again := policy(0)(nodes), policy(0)(nodes)
		second := map[*holdfast.Node]bool{}
		for key := range uint64(500) {
			var tried []*holdfast.Node
			for range nodes {
				n := pick(key, tried)
				if n == nil || slices.Contains(tried, n) || n != again(key, tried) {
					t.Fatalf("key %d after %v: %v", key, tried, n)
				}
				tried = append(tried, n)
			}
			if n := pick(key, tried); n != nil {
				t.Fatalf("all were tried, and %v was chosen", n)
			}
			if tried[0] == nodes[0] {
				second[tried[1]] = true
			}
		}
		if len(second) < 8 {
			t.Errorf("the keys of one node have %d of 11 others as their next", len(second))
		}

		alone := policy(0)(nodes[:1])
		if alone(7, nil) != nodes[0] || alone(7, nodes[:1]) != nil {
			t.Error("the only node is not the only choice")
		}
		if _, err := c.Pick(7, nodes); !errors.Is(err, holdfast.ErrNoEndpoint) {
			t.Errorf("all were tried, and Pick said %v", err)
		}
	})
}

func TestHashPoliciesBoundTheLoad(t *testing.T) {
	hot := func() uint64 { return 42 }
	hashed := func(t *testing.T, picker holdfast.Picker, list ...string) *holdfast.Cluster {
		t.Helper()
		c, err := holdfast.New(holdfast.Static(list...), holdfast.Config{Picker: picker})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
		for _, row := range []struct {
			name  string
			bound int
			most  int // of 1000 leases of one key over ten nodes
		}{{"by default", 0, 150}, {"at 200 %", 200, 200}, {"at 125 %", 125, 125}, {"off", -1, 1000}} {
			t.Run(row.name, func(t *testing.T) {
				counts := hold(t, hashed(t, policy(row.bound), addrs(10)...), 1000, hot)
				for addr, got := range counts {
					if got > row.most {
						t.Errorf("%s holds %d leases, want at most %d", addr, got, row.most)
					}
				}
				if want := (1000 + row.most - 1) / row.most; len(counts) != want {
					t.Errorf("%d nodes hold them, want %d: %v", len(counts), want, counts)
				}
			})
		}

		t.Run("by weight", func(t *testing.T) {
			list := addrs(4)
			list[0] += "?weight=7"
			_, nodes := setOf(t, list...)
			unbound, key := policy(-1)(nodes), uint64(0)
			for unbound(key, nil) != nodes[1] { // a light one's
				key++
			}
			counts := hold(t, hashed(t, policy(125), list...), 1000, func() uint64 { return key })
			if got := counts["10.0.0.1:7000"]; got < 600 || got > 875 {
				t.Errorf("the node with 7 parts of 10 holds %v of 1000, want what the others leave, and at most 875", counts)
			}
			for _, addr := range []string{"10.0.0.2:7000", "10.0.0.3:7000", "10.0.0.4:7000"} {
				if counts[addr] > 125 {
					t.Errorf("%s holds %d of 1000, want at most 125", addr, counts[addr])
				}
			}
		})

		t.Run("a key stays where it is while there is room", func(t *testing.T) {
			_, nodes := setOf(t, addrs(10)...)
			unbound := policy(-1)(nodes)
			c := hashed(t, policy(150), addrs(10)...)
			key := uint64(0)
			hold(t, c, 2000, func() uint64 { key++; return key }) // 200 each, give or take 30
			for key := range uint64(1000) {
				lease, err := c.Pick(key, nil)
				if err != nil {
					t.Fatal(err)
				}
				lease.Done()
				if want := unbound(key, nil).Addr(); lease.Node().Addr() != want {
					t.Fatalf("key %d went to %v, its home %s has room", key, lease.Node(), want)
				}
			}
		})

		t.Run("an only client stays together", func(t *testing.T) {
			if counts := hold(t, hashed(t, policy(0), addrs(5)...), 10, hot); len(counts) != 1 {
				t.Errorf("ten connections of one client went to %v", counts)
			}
		})

		t.Run("all is better than none", func(t *testing.T) {
			c, nodes := setOf(t, addrs(2)...)
			hold(t, c, 100, hot) // Ordered: all on the first
			if n := policy(0)(nodes)(42, nodes[1:]); n != nodes[0] {
				t.Errorf("with the other one tried %v was chosen, want the loaded one", n)
			}
		})
	})
}

func TestHashPoliciesDoNotAllocate(t *testing.T) {
	forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
		list := addrs(100)
		list[3] += "?weight=2"
		c, err := holdfast.New(holdfast.Static(list...), holdfast.Config{Picker: policy(0)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		hold(t, c, 1000, func() uint64 { return 42 })
		tried := []*holdfast.Node{nil}
		text, key := "192.0.2.1", uint64(0)
		if n := testing.AllocsPerRun(200, func() {
			lease, _ := c.Pick(holdfast.Key(text), nil)
			tried[0] = lease.Node()
			lease.Done()
			lease, _ = c.Pick(42, tried)
			lease.Done()
			key++
			lease, _ = c.Pick(key, nil)
			lease.Done()
		}); n != 0 {
			t.Errorf("%v allocations for three picks", n)
		}
	})
}

// One table for a set of nodes, however often their health changes.
func TestMaglevBuildsItsTableForMembersOnly(t *testing.T) {
	_, nodes := setOf(t, addrs(1000)...)
	picker := holdfast.Maglev(0)
	takes := func(usable []*holdfast.Node) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		picker(usable)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	const table = 65537 * 2
	if b := takes(nodes); b < table || b > 4*table {
		t.Errorf("the first choice among 1000 nodes took %d bytes, want a table of %d and little more", b, table)
	}
	for _, usable := range [][]*holdfast.Node{nodes[1:], nodes[:500], nodes[7:8], nodes} {
		if b := takes(usable); b > table/2 {
			t.Errorf("with %d of 1000 nodes usable a choice took %d bytes: a table again?", len(usable), b)
		}
	}
}

// Picks go on while nodes come, go and fail.
func TestHashPoliciesInAChangingSet(t *testing.T) {
	forEachHash(t, func(t *testing.T, policy func(int) holdfast.Picker) {
		inWorld(t, 6, func(t *testing.T, w *world) {
			source := newFeed()
			list := addrs(6)
			source.set(list...)
			c := w.clusterFrom(holdfast.Config{Picker: policy(0)}, source)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for i := range uint64(4) {
				wg.Go(func() {
					for key := i << 32; ; key++ {
						select {
						case <-stop:
							return
						default:
						}
						lease, err := c.Pick(key, nil)
						if err != nil {
							t.Error(err)
							return
						}
						if key%16 == 0 {
							lease.Report(-1, errBroken)
						}
						lease.Done()
						runtime.Gosched()
					}
				})
			}
			for i := range 30 {
				source.updates <- update{endpoints(t, slices.Concat(list[:i%6], list[i%6+1:])...), nil}
			}
			close(stop)
			wg.Wait()
			synctest.Wait()
			if all := homes(t, c, 1000); strings.Contains(all, "f") { // the last to be removed
				t.Error("a node that was removed is chosen")
			}
		})
	})
}

func endpoints(t *testing.T, addrs ...string) (set []holdfast.Endpoint) {
	t.Helper()
	for _, a := range addrs {
		e, err := holdfast.ParseEndpoint(a)
		if err != nil {
			t.Fatal(err)
		}
		set = append(set, e)
	}
	return set
}

// idle: nobody holds a lease; half: and every second node is down; busy: every node
// holds so many that the bound is looked at.
func BenchmarkHashPolicies(b *testing.B) {
	for name, policy := range hashPolicies {
		for _, n := range []int{3, 100, 1000} {
			run := func(what string, pick choice) {
				b.Run(fmt.Sprintf("%s/%d/%s", name, n, what), func(b *testing.B) {
					b.ReportAllocs()
					for key := uint64(0); b.Loop(); key++ {
						pick(key, nil)
					}
				})
			}
			_, nodes := setOf(b, addrs(n)...)
			run("idle", policy(0)(nodes))
			half := slices.Clone(nodes)
			for i := range half[:n/2] {
				half = slices.Delete(half, i, i+1)
			}
			run("half", policy(0)(half))

			var pick choice
			c, err := holdfast.New(holdfast.Static(addrs(n)...), holdfast.Config{Picker: func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
				pick = policy(0)(nodes)
				return pick
			}})
			if err != nil {
				b.Fatal(err)
			}
			busy := pick
			b.Cleanup(func() { c.Close() })
			for key := range uint64(20 * n) {
				lease, err := c.Pick(key, nil)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(lease.Done)
			}
			run("busy", busy)

			same := policy(0)
			run("build for health", func(uint64, []*holdfast.Node) *holdfast.Node { same(nodes); return nil })
			run("build for members", func(uint64, []*holdfast.Node) *holdfast.Node { policy(0)(nodes); return nil })
		}
	}
}
