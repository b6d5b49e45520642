package holdfast_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

// choose picks a node as the policy would and lets go of it at once.
func choose(t *testing.T, c *holdfast.Cluster, tried ...*holdfast.Node) *holdfast.Node {
	t.Helper()
	lease, err := c.Pick(0, tried)
	if err != nil {
		t.Fatal(err)
	}
	lease.Done()
	return lease.Node()
}

// letter names the nodes of a world: 10.0.0.1:7000 is a, 10.0.0.2:7000 is b …
func letter(n *holdfast.Node) string {
	last, _, _ := strings.Cut(strings.TrimPrefix(n.Addr(), "10.0.0."), ":")
	return string(rune('a' + last[0] - '1'))
}

// chosen spells the next n choices.
func chosen(t *testing.T, c *holdfast.Cluster, n int) string {
	t.Helper()
	var b strings.Builder
	for range n {
		b.WriteString(letter(choose(t, c)))
	}
	return b.String()
}

// held takes n leases, keeps them to the end of the test, and counts them by node.
func held(t *testing.T, c *holdfast.Cluster, n int) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for range n {
		lease, err := c.Pick(0, nil)
		if err != nil {
			t.Fatal(err)
		}
		counts[letter(lease.Node())]++
		t.Cleanup(lease.Done)
	}
	return counts
}

// near reports whether got is want, give or take some.
func near(got, want, some int) bool { return got >= want-some && got <= want+some }

// The defect of the original: its shuffle began anew with every pass, and took the
// server it had just lost up to four times in a row.
func TestRandomExcludesTried(t *testing.T) {
	t.Run("a pass takes every node once", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.Random()})
			first := map[string]int{}
			for range 300 {
				var tried []*holdfast.Node
				for range w.servers {
					n := choose(t, c, tried...)
					if slices.Contains(tried, n) {
						t.Fatalf("%v was taken again after it was tried", n)
					}
					tried = append(tried, n)
				}
				if _, err := c.Pick(0, tried); !errors.Is(err, holdfast.ErrNoEndpoint) {
					t.Fatalf("all were tried, and Pick said %v", err)
				}
				first[letter(tried[0])]++
			}
			for _, n := range []string{"a", "b", "c"} {
				if !near(first[n], 100, 50) {
					t.Errorf("of 300 passes %v began at node %s", first, n)
				}
			}
		})
	})
	t.Run("an operation does not go back to who lost it", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			hangUp := func(net.Conn, string) bool { return false }
			w.servers[0].does(hangUp)
			w.servers[1].does(hangUp)
			c := w.cluster(holdfast.Config{
				Picker:  holdfast.Random(),
				Backoff: holdfast.Backoff{Base: time.Millisecond, Multiplier: 1},
				Outlier: holdfast.Outlier{Consecutive: -1},
			})
			for i := range 50 {
				if err := c.Do(t.Context(), holdfast.Idempotent, say(string(rune('A'+i)))); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // and all are usable again
			}
			for _, s := range w.servers[:2] {
				lines := s.got()
				if len(lines) < 5 {
					t.Errorf("%s was tried by %d of 50 operations", s.addr, len(lines))
				}
				for i, l := range lines {
					if slices.Contains(lines[:i], l) {
						t.Errorf("%s lost operation %s and got it again", s.addr, l)
					}
				}
			}
		})
	})
}

// A policy of the user's own may be wrong; then the call fails or goes on with the
// next choice, but it neither spins nor hangs.
func TestCustomPickerIsBounded(t *testing.T) {
	type choice = func(key uint64, tried []*holdfast.Node) *holdfast.Node

	// Its choice is a black hole, and still the choice when others should join.
	t.Run("one that never says nil", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.net.Partition(clientIP, w.servers[0].ip())
			c := w.cluster(holdfast.Config{Picker: func(nodes []*holdfast.Node) choice {
				return func(uint64, []*holdfast.Node) *holdfast.Node { return nodes[0] }
			}})
			var err error
			within(t, took(func() { _, err = c.DialContext(t.Context(), "tcp", "") }), 5*time.Second, 5*time.Second)
			if e := asError(t, err); e.Class != holdfast.ClassTimeout || e.Node != w.servers[0].addr || len(e.Tried) != 0 {
				t.Errorf("got %v, want the one timeout of the only choice", err)
			}
			if n := w.net.Stats().Dials; n != 1 {
				t.Errorf("%d dials in one pass of a policy with one choice", n)
			}
		})
	})

	t.Run("one that says nil at once", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: func([]*holdfast.Node) choice {
				return func(uint64, []*holdfast.Node) *holdfast.Node { return nil }
			}})
			within(t, took(func() {
				if _, err := c.DialContext(t.Context(), "tcp", ""); !errors.Is(err, holdfast.ErrNoEndpoint) {
					t.Errorf("DialContext: %v", err)
				}
				if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); !errors.Is(err, holdfast.ErrNoEndpoint) {
					t.Errorf("Do: %v", err)
				}
			}), 0, 0)
			if n := w.net.Stats().Dials; n != 0 {
				t.Errorf("%d dials without a choice", n)
			}
		})
	})

	// It returns a node that was there when it was asked first and is not wanted now:
	// nobody may be left waiting for it while another node is idle.
	t.Run("one that clings to a former set", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			source := newFeed()
			source.set(w.servers[0].addr, w.servers[1].addr)
			var first atomic.Pointer[holdfast.Node] // views may be built at the same time
			c := w.clusterFrom(holdfast.Config{Picker: func(nodes []*holdfast.Node) choice {
				first.CompareAndSwap(nil, nodes[0])
				return func(_ uint64, tried []*holdfast.Node) *holdfast.Node {
					if n := first.Load(); !slices.Contains(tried, n) {
						return n
					}
					return nodes[len(nodes)-1]
				}
			}}, source)
			source.set(w.servers[1].addr)
			for range 3 {
				within(t, took(func() {
					if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
						t.Error(err)
					}
				}), 0, 0)
			}
			if n := w.servers[0].dials(); n != 0 {
				t.Errorf("the node that was removed was dialed %d times", n)
			}
		})
	})

	t.Run("one that panics", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			calls := 0
			c := w.cluster(holdfast.Config{Picker: func(nodes []*holdfast.Node) choice {
				return func(uint64, []*holdfast.Node) *holdfast.Node {
					if calls++; calls == 1 {
						panic("no idea")
					}
					return nodes[0]
				}
			}})
			func() {
				defer func() {
					if p := recover(); p != "no idea" {
						t.Errorf("the caller recovered %v", p)
					}
				}()
				c.Do(t.Context(), holdfast.Idempotent, say("x"))
			}()
			if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
				t.Errorf("after a panic of the policy: %v", err)
			}
			for _, n := range c.Stats().Nodes {
				if n.InFlight != 0 {
					t.Errorf("%s has %d leases in flight", n.Node, n.InFlight)
				}
			}
		})
	})
}

func TestRoundRobinIsEven(t *testing.T) {
	t.Run("from many goroutines", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.RoundRobin()})
			var mu sync.Mutex
			counts := map[string]int{}
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					all := chosen(t, c, 300)
					mu.Lock()
					defer mu.Unlock()
					for _, n := range all {
						counts[string(n)]++
					}
				})
			}
			wg.Wait()
			if counts["a"] != 800 || counts["b"] != 800 || counts["c"] != 800 {
				t.Errorf("2400 turns fell as %v", counts)
			}
		})
	})

	// A turn must not be spent on looking whether a connection is at rest: with two
	// nodes one of them would get everything.
	t.Run("by operation", func(t *testing.T) {
		for _, n := range []int{2, 3} {
			inWorld(t, n, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Picker: holdfast.RoundRobin()})
				for range 10 * n {
					if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
						t.Fatal(err)
					}
				}
				for _, s := range w.servers {
					if got := len(s.got()); got != 10 {
						t.Errorf("of %d nodes %s got %d operations, want 10", n, s.addr, got)
					}
				}
			})
		}
	})

	t.Run("by dial", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.RoundRobin()})
			for range 30 {
				conn, err := c.DialContext(t.Context(), "tcp", "")
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
			synctest.Wait()
			for _, s := range w.servers {
				if got := s.dials(); got != 10 {
					t.Errorf("%s was dialed %d times, want 10", s.addr, got)
				}
			}
		})
	})

	// The sequence of nginx's smooth weighted round robin for the weights 5, 1, 1.
	t.Run("weights are spread smoothly", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			c := w.clusterOf(holdfast.Config{Picker: holdfast.RoundRobin()},
				"tcp://10.0.0.1:7000?weight=5", "tcp://10.0.0.2:7000", "tcp://10.0.0.3:7000")
			if got, want := chosen(t, c, 14), "aabacaaaabacaa"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	})

	// A set that changes all the time must not send everybody to its beginning.
	t.Run("the turn survives a change of the set", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			source := newFeed()
			c := w.clusterFrom(holdfast.Config{Picker: holdfast.RoundRobin()}, source)
			counts := map[string]int{}
			for range 90 {
				source.set("10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000")
				counts[chosen(t, c, 1)]++
				source.set("10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000", "10.0.0.4:7000")
				counts[chosen(t, c, 1)]++
			}
			for _, n := range []string{"a", "b", "c"} {
				if counts[n] < 25 || counts[n] > 100 {
					t.Errorf("180 turns over three steady nodes and one that comes and goes fell as %v", counts)
					break
				}
			}
		})
	})
}

func TestPeakEWMAPrefersTheFasterNode(t *testing.T) {
	t.Run("by what operations took", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			for _, s := range w.servers {
				s.does(after(10*time.Millisecond, reply))
			}
			w.servers[1].does(after(200*time.Millisecond, reply))
			c := w.cluster(holdfast.Config{Picker: holdfast.PeakEWMA()})
			for range 300 {
				if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
					t.Fatal(err)
				}
			}
			slow := len(w.servers[1].got())
			if slow == 0 || slow > 20 {
				t.Errorf("of 300 operations the slow node got %d, want some and few", slow)
			}
			for _, s := range []*server{w.servers[0], w.servers[2]} {
				if got := len(s.got()); got < 80 {
					t.Errorf("of 300 operations %s, one of two fast nodes, got %d", s.addr, got)
				}
			}
		})
	})

	// A node nobody has used counts as slow, but not for ever.
	t.Run("a new node gets its chance", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			for _, s := range w.servers {
				s.does(after(10*time.Millisecond, reply))
			}
			c := w.cluster(holdfast.Config{Picker: holdfast.PeakEWMA()})
			for start := time.Now(); time.Since(start) < time.Minute; {
				if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
					t.Fatal(err)
				}
			}
			for _, s := range w.servers {
				if got := len(s.got()); got < 500 {
					t.Errorf("in a minute %s, as fast as the other, got %d of about 6000 operations", s.addr, got)
				}
			}
		})
	})

	t.Run("a peak counts at once and is forgotten over ten seconds", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.PeakEWMA()})
			lease, err := c.Pick(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer lease.Done()
			expect := func(what string, want time.Duration) {
				t.Helper()
				if got := lease.Node().Latency(); !near(int(got), int(want), int(time.Microsecond)) {
					t.Errorf("%s: latency %v, want %v", what, got, want)
				}
			}
			expect("never used", 0)
			lease.Report(20*time.Millisecond, nil)
			lease.Report(100*time.Millisecond, nil)
			expect("a peak", 100*time.Millisecond)
			lease.Report(20*time.Millisecond, nil)
			expect("a fast one right after it", 100*time.Millisecond)
			time.Sleep(10 * time.Second)
			expect("one time constant later", 36787944*time.Nanosecond) // 100 ms / e
			lease.Report(20*time.Millisecond, nil)
			expect("a fast one then", 49430355*time.Nanosecond) // (100/e + 20·(1 − 1/e)) ms
		})
	})

	t.Run("failing fast is not being fast", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.PeakEWMA(), Outlier: holdfast.Outlier{Consecutive: -1}})
			a, _ := c.Pick(0, nil)
			b, _ := c.Pick(0, []*holdfast.Node{a.Node()})
			defer a.Done()
			defer b.Done()
			a.Report(time.Millisecond, errors.New("no"))
			b.Report(50*time.Millisecond, nil)
			for range 20 {
				if n := choose(t, c); n == a.Node() {
					t.Fatalf("the node that fails in a millisecond was preferred: it looks as if it took %v", n.Latency())
				}
			}
		})
	})
}

func TestLeastLoadedPrefersTheLessLoadedNode(t *testing.T) {
	t.Run("by leases in flight", func(t *testing.T) {
		inWorld(t, 4, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{}) // it is the default
			counts := held(t, c, 4000)
			for n, got := range counts {
				if !near(got, 1000, 20) {
					t.Errorf("node %s holds %d of 4000 leases: %v", n, got, counts)
				}
			}
		})
	})
	t.Run("a connection of a driver's own is load until it is closed", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Picker: holdfast.LeastLoaded()})
			long, err := c.DialContext(t.Context(), "tcp", "")
			if err != nil {
				t.Fatal(err)
			}
			busy := long.(*holdfast.Conn).Node()
			for range 20 {
				if choose(t, c) == busy {
					t.Fatal("the node with a connection in use was preferred to the idle one")
				}
			}
			long.Close()
			other := choose(t, c, busy)
			lease, _ := c.Pick(0, []*holdfast.Node{busy})
			defer lease.Done()
			if n := choose(t, c); n != busy {
				t.Errorf("with the lease of %v taken and the connection closed, %v was chosen", other, n)
			}
		})
	})
	t.Run("a slow server is left alone", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.servers[0].does(after(time.Second, reply))
			w.servers[1].does(after(10*time.Millisecond, reply))
			c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 100}})
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					for range 50 {
						if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if slow := len(w.servers[0].got()); slow < 5 || slow > 50 {
				t.Errorf("the server that is a hundred times slower got %d of 500 operations", slow)
			}
		})
	})
}

func TestWeightsShareTheLoad(t *testing.T) {
	weighted := []string{"tcp://10.0.0.1:7000?weight=3", "tcp://10.0.0.2:7000", "tcp://10.0.0.3:7000?weight=-1"}
	one := func(t *testing.T, c *holdfast.Cluster) map[string]int { // one after another
		counts := map[string]int{}
		for _, n := range chosen(t, c, 4000) {
			counts[string(n)]++
		}
		return counts
	}
	all := func(t *testing.T, c *holdfast.Cluster) map[string]int { return held(t, c, 4000) } // at once

	for _, policy := range []struct {
		name   string
		picker holdfast.Picker
		load   func(*testing.T, *holdfast.Cluster) map[string]int
		heavy  int // of 4000, by the weights 3 and 1
		some   int
	}{
		{"ordered goes by the order alone", holdfast.Ordered(), one, 4000, 0},
		{"random", holdfast.Random(), one, 3000, 200},
		{"round robin", holdfast.RoundRobin(), one, 3000, 0},
		{"least loaded, one after another", holdfast.LeastLoaded(), one, 3000, 200},
		{"least loaded, all at once", holdfast.LeastLoaded(), all, 3000, 20},
		{"peak EWMA, all at once", holdfast.PeakEWMA(), all, 3000, 20},
	} {
		t.Run(policy.name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				c := w.clusterOf(holdfast.Config{Picker: policy.picker}, weighted...)
				got := policy.load(t, c)
				if !near(got["a"], policy.heavy, policy.some) || !near(got["b"], 4000-policy.heavy, policy.some) {
					t.Errorf("4000 leases by 3 : 1 fell as %v, want %d : %d", got, policy.heavy, 4000-policy.heavy)
				}
				if got["c"] != 0 {
					t.Errorf("the drained node got %d", got["c"])
				}
			})
		})
	}

	t.Run("minus one drains and the weight put back ends that", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			source := newFeed()
			source.set("10.0.0.1:7000", "10.0.0.2:7000")
			c := w.clusterFrom(holdfast.Config{Picker: holdfast.Ordered()}, source)
			if got := chosen(t, c, 3); got != "aaa" {
				t.Fatalf("chosen %s", got)
			}
			source.set("10.0.0.1:7000?weight=-1", "10.0.0.2:7000")
			if got := chosen(t, c, 3); got != "bbb" {
				t.Errorf("with a drained: chosen %s", got)
			}
			if s := c.Stats().Nodes[0]; s.State != holdfast.StateDraining {
				t.Errorf("the drained node is %v", s.State)
			}
			source.set("10.0.0.1:7000", "10.0.0.2:7000")
			if got := chosen(t, c, 3); got != "aaa" {
				t.Errorf("with a back: chosen %s", got)
			}
		})
	})
}

// Level 0 takes all while half of it is usable. Below that the next level joins,
// and so on; and whatever level takes the load, one pass tries every node of every
// level before anything sleeps.
func TestPrioritiesSpillOver(t *testing.T) {
	const levels = "tcp://10.0.0.1:7000 tcp://10.0.0.2:7000 tcp://10.0.0.3:7000 tcp://10.0.0.4:7000 " +
		"tcp://10.0.0.5:7000?priority=1 tcp://10.0.0.6:7000?priority=1 tcp://10.0.0.7:7000?priority=2"
	inWorld(t, 7, func(t *testing.T, w *world) {
		c := w.clusterOf(holdfast.Config{
			Picker:  holdfast.RoundRobin(),
			Backoff: holdfast.Backoff{Base: time.Hour, Max: time.Hour},
		}, strings.Fields(levels)...)
		down := func(n int) { // and found to be so
			t.Helper()
			w.servers[n].crash()
			if _, err := c.DialContext(t.Context(), "tcp", w.servers[n].addr); err == nil {
				t.Fatalf("%s took a connection", w.servers[n].addr)
			}
		}
		expect := func(what, want string) {
			t.Helper()
			got := strings.Split(chosen(t, c, 70), "")
			slices.Sort(got)
			if took := strings.Join(slices.Compact(got), ""); took != want {
				t.Errorf("%s: the load went to %s, want %s", what, took, want)
			}
		}
		expect("all up", "abcd")
		down(0)
		down(1)
		expect("half of level 0 up", "cd")
		down(2)
		expect("a quarter of level 0 up, half of both levels", "def")
		down(4)
		expect("two of six up: the last level joins", "dfg")
		down(3)
		expect("level 0 down", "fg")

		w.servers[5].crash()
		var conn net.Conn
		var err error
		within(t, took(func() { conn, err = c.DialContext(t.Context(), "tcp", "") }), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	})

	t.Run("one pass goes through all levels before any sleep", func(t *testing.T) {
		inWorld(t, 7, func(t *testing.T, w *world) {
			c := w.clusterOf(holdfast.Config{Picker: holdfast.Ordered()}, strings.Fields(levels)...)
			for _, s := range w.servers[:6] {
				s.crash()
			}
			within(t, took(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Error(err)
				}
			}), 0, 0)
			if dials := w.net.Stats().Dials; dials != 7 {
				t.Errorf("%d dials to find the one of seven that is up, want each once", dials)
			}
		})
	})

	// Addresses of one family are no reason to leave the level they are on.
	t.Run("addresses of a name come before the next level", func(t *testing.T) {
		for _, ips := range [][]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "10.0.0.1", "10.0.0.2"}} {
			inWorld(t, 3, func(t *testing.T, w *world) {
				directory := newNames()
				directory.answer("db", ips...)
				c := w.byName(holdfast.Config{Picker: holdfast.Ordered()}, directory, "tcp://db:7000", "tcp://10.0.0.3:7000?priority=1")
				w.servers[0].crash() // and nobody listens at fd00::1
				conn, err := c.DialContext(t.Context(), "tcp", "")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if got := conn.RemoteAddr().String(); got != w.servers[1].addr {
					t.Errorf("with all but the last of %v down the dial went to %s", ips, got)
				}
			})
		}
	})
}

// after makes a script take its time.
func after(d time.Duration, script func(net.Conn, string) bool) func(net.Conn, string) bool {
	return func(conn net.Conn, line string) bool {
		time.Sleep(d)
		return script(conn, line)
	}
}
