package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// borrow takes a pooled connection, or ends the test.
func borrow(t *testing.T, c *holdfast.Cluster) *holdfast.Conn {
	t.Helper()
	conn, err := c.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// begin is the first use of a Cluster: its background work begins.
func begin(t *testing.T, c *holdfast.Cluster) {
	t.Helper()
	lease, err := c.Pick(0, nil)
	if err != nil {
		t.Fatal(err)
	}
	lease.Done()
}

// loan is what came of an Acquire in the background.
type loan struct {
	conn *holdfast.Conn
	err  error
	wait time.Duration
}

// queue begins an Acquire and returns once it waits or is over.
func queue(ctx context.Context, c *holdfast.Cluster) <-chan loan {
	out := make(chan loan, 1)
	go func() {
		start := time.Now()
		conn, err := c.Acquire(ctx)
		out <- loan{conn, err, time.Since(start)}
	}()
	synctest.Wait()
	return out
}

// compass is a policy that the test steers: it picks the node with the address.
type compass struct{ addr atomic.Pointer[string] }

func (k *compass) point(addr string) { k.addr.Store(&addr) }

func (k *compass) picker() holdfast.Picker {
	return func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
		return func(_ uint64, tried []*holdfast.Node) *holdfast.Node {
			for _, n := range nodes {
				if n.Addr() == *k.addr.Load() && !slices.Contains(tried, n) {
					return n
				}
			}
			return nil
		}
	}
}

// open counts the connections that a server has and has not seen end.
func (s *server) open() int { return len(s.w.net.Host(s.ip()).Conns()) }

// settled is open once all is quiet.
func (s *server) settled() int {
	synctest.Wait()
	return s.open()
}

// met counts the connections that reached the server, once all is quiet.
func (s *server) met() int {
	synctest.Wait()
	return s.dials()
}

// closes returns the causes of all closes so far.
func (w *world) closes() (causes []string) {
	for _, e := range w.seen(holdfast.EventClose) {
		causes = append(causes, e.Cause)
	}
	return causes
}

func TestAcquireLendsOneConn(t *testing.T) {
	t.Run("to each its own", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			a, b := borrow(t, c), borrow(t, c)
			if a == b || a.LocalAddr().String() == b.LocalAddr().String() {
				t.Fatal("one connection was lent twice")
			}
			if s := c.Stats(); s.Conns != 2 || s.Idle != 0 || s.Nodes[0].InFlight != 2 {
				t.Errorf("while lent: %d connections, %d at rest, %d in flight", s.Conns, s.Idle, s.Nodes[0].InFlight)
			}
			for _, conn := range []*holdfast.Conn{a, b} {
				if err := exchange(conn, "hello"); err != nil {
					t.Error(err)
				}
			}
			a.Release()
			b.Release()
			if s := c.Stats(); s.Conns != 2 || s.Idle != 2 || s.Nodes[0].InFlight != 0 {
				t.Errorf("after Release: %d connections, %d at rest, %d in flight", s.Conns, s.Idle, s.Nodes[0].InFlight)
			}
			// The one used last goes first, so that those beyond the need grow old.
			if conn := borrow(t, c); conn != b {
				t.Error("the connection used last was not the next")
			}
			if n := w.servers[0].met(); n != 2 {
				t.Errorf("%d dials for two connections", n)
			}
		})
	})
	t.Run("its context bounds the wait only", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			ctx, cancel := context.WithCancel(t.Context())
			conn, err := w.cluster(holdfast.Config{}).Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			synctest.Wait()
			if err := exchange(conn, "still here"); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("the holder's deadline ends with the loan", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			first := borrow(t, c)
			first.SetDeadline(time.Now().Add(time.Second))
			first.Release()
			time.Sleep(2 * time.Second)
			next := borrow(t, c)
			if next != first {
				t.Error("a sound connection was not used again")
			}
			if err := exchange(next, "no deadline"); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("an error ends it", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			first := borrow(t, c)
			if err := exchange(first, "hello"); err != nil {
				t.Fatal(err)
			}
			first.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := first.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("read: %v", err)
			}
			first.Release()
			if next := borrow(t, c); next == first || w.servers[0].met() != 2 {
				t.Error("a connection that timed out was lent again")
			}
		})
	})
	t.Run("giving it back twice is a mistake", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			conn := borrow(t, w.cluster(holdfast.Config{}))
			conn.Release()
			defer func() {
				if recover() == nil {
					t.Error("the second Release did not panic")
				}
			}()
			conn.Release()
		})
	})
}

func TestPoolLimitsPerNodeAndTotal(t *testing.T) {
	t.Run("per node", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.net.SetLink("", "", simnet.Link{Latency: time.Millisecond})
			c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 3}})
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					conn := borrow(t, c)
					time.Sleep(10 * time.Millisecond)
					if n := w.servers[0].open(); n > 3 {
						t.Errorf("%d connections, the limit is 3", n)
					}
					conn.Release()
				})
			}
			wg.Wait()
			if n := w.servers[0].met(); n != 3 {
				t.Errorf("%d dials for 3 places", n)
			}
		})
	})

	// pgx once freed the place when the close began: a storm of cancels then
	// opened connections beyond the limit at the server.
	t.Run("a place is free when the close is over", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			var open atomic.Int32
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := w.client.DialContext(ctx, network, addr)
				if n := open.Add(1); n > 1 {
					t.Errorf("%d connections, the limit is 1", n)
				}
				return slowToClose{conn, &open}, err
			}
			c := w.cluster(holdfast.Config{Dial: dial, Pool: holdfast.Pool{Max: 1}})
			conn := borrow(t, c)
			next := queue(t.Context(), c)
			go conn.Discard(nil)
			got := <-next
			if got.err != nil {
				t.Fatal(got.err)
			}
			within(t, got.wait, slowClose, slowClose)
		})
	})

	t.Run("in all", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			var k compass
			c := w.cluster(holdfast.Config{Picker: k.picker(), Pool: holdfast.Pool{Total: 2}})
			for _, s := range w.servers[:2] {
				k.point(s.addr)
				borrow(t, c).Release()
				time.Sleep(10 * time.Millisecond)
			}
			// The third node needs a place: the connection that rested longest goes.
			k.point(w.servers[2].addr)
			var third *holdfast.Conn
			within(t, took(func() { third = borrow(t, c) }), 0, 0)
			if a, b := w.servers[0].settled(), w.servers[1].settled(); a != 0 || b != 1 {
				t.Errorf("the first node keeps %d connections, the second %d; want 0 and 1", a, b)
			}

			// With all in use, who comes next waits, until one comes back elsewhere.
			k.point(w.servers[1].addr)
			second := borrow(t, c)
			k.point(w.servers[0].addr)
			first := queue(t.Context(), c)
			time.Sleep(time.Second)
			second.Release()
			got := <-first
			if got.err != nil {
				t.Fatal(got.err)
			}
			within(t, got.wait, time.Second, time.Second)
			got.conn.Release()
			third.Release()
			if s := c.Stats(); s.Conns != 2 {
				t.Errorf("%d connections, the limit is 2", s.Conns)
			}
		})
	})

	// Making room on one node helps nobody who waits for another that is full.
	t.Run("the waiters of a full node cost others nothing", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			var k compass
			c := w.cluster(holdfast.Config{Picker: k.picker(), Pool: holdfast.Pool{Max: 1, Total: 2}})
			k.point(w.servers[0].addr)
			full := borrow(t, c)
			waiting := queue(t.Context(), c)
			k.point(w.servers[1].addr)
			for range 10 {
				borrow(t, c).Release()
			}
			if n := w.servers[1].met(); n != 1 {
				t.Errorf("%d dials for 10 operations one after another", n)
			}
			full.Release()
			(<-waiting).conn.Release()
		})
	})
}

const slowClose = 100 * time.Millisecond

type slowToClose struct {
	net.Conn
	open *atomic.Int32
}

func (s slowToClose) Close() error {
	time.Sleep(slowClose)
	s.open.Add(-1)
	return s.Conn.Close()
}

func TestDiscardCountsAgainstTheNode(t *testing.T) {
	for _, test := range []struct {
		reason  error
		blamed  uint64
		ejected bool
	}{
		{nil, 0, false},
		{errWrongReply, 5, true},
		{context.Canceled, 0, false}, // nobody's fault
	} {
		t.Run(fmt.Sprint(test.reason), func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
				for range 5 {
					borrow(t, c).Discard(test.reason)
				}
				n := c.Stats().Nodes[0]
				if n.Failures != test.blamed || n.Conns != 0 || n.InFlight != 0 {
					t.Errorf("%d failures, %d connections, %d in flight; want %d, 0, 0", n.Failures, n.Conns, n.InFlight, test.blamed)
				}
				if ejected := n.State == holdfast.StateEjected; ejected != test.ejected {
					t.Errorf("ejected %v, want %v", ejected, test.ejected)
				}
				if n := w.servers[0].settled(); n != 0 {
					t.Errorf("%d connections are still open", n)
				}
			})
		})
	}
}

func TestWaitersAreServedInOrder(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1}})
		holder := borrow(t, c)

		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			if i%7 == 3 { // some give up: their turn goes to the next
				time.AfterFunc(time.Second, cancel)
			}
			wg.Go(func() {
				defer cancel()
				conn, err := c.Acquire(ctx)
				if err != nil {
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				conn.Release()
			})
			synctest.Wait()
		}
		time.Sleep(2 * time.Second)

		// Who has just given it back and wants it again comes last.
		holder.Release()
		holder = borrow(t, c)
		wg.Wait()
		holder.Release()
		want := make([]int, 0, 50)
		for i := range 50 {
			if i%7 != 3 {
				want = append(want, i)
			}
		}
		if !slices.Equal(order, want) {
			t.Errorf("served %v", order)
		}
		if n := w.servers[0].met(); n != 1 {
			t.Errorf("%d dials for one place", n)
		}
	})
}

func TestWaitersAreLimited(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1, Waiters: 3}})
		holder := borrow(t, c)
		var waiting []<-chan loan
		for range 3 {
			waiting = append(waiting, queue(t.Context(), c))
		}
		if n := c.Stats().Waiting; n != 3 {
			t.Errorf("Stats show %d waiting, want 3", n)
		}
		one := <-queue(t.Context(), c) // too many
		if !errors.Is(one.err, holdfast.ErrPoolExhausted) || asError(t, one.err).Class != holdfast.ClassExhausted {
			t.Errorf("the fourth got %v", one.err)
		}
		within(t, one.wait, 0, 0)
		holder.Release()
		for _, ch := range waiting {
			got := <-ch
			if got.err != nil {
				t.Fatalf("a waiter within the limit got %v", got.err)
			}
			got.conn.Release()
		}
		if n := c.Stats().Waiting; n != 0 {
			t.Errorf("Stats show %d waiting after all were served", n)
		}
	})
}

// Callers for whom a connection is being made do not count: they wait for the
// network, not for each other.
func TestWaitersAreLimitedDuringTheFirstConnect(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.net.SetLink("", "", simnet.Link{Latency: 50 * time.Millisecond})
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{MaxDials: 2, Waiters: 3}})
		var callers []<-chan loan
		for range 6 {
			callers = append(callers, queue(t.Context(), c))
		}
		served, refused := 0, 0
		for _, ch := range callers {
			switch got := <-ch; {
			case got.err == nil:
				served++
				got.conn.Release()
			case errors.Is(got.err, holdfast.ErrPoolExhausted):
				refused++
				within(t, got.wait, 0, 0)
			default:
				t.Error(got.err)
			}
		}
		if served != 5 || refused != 1 {
			t.Errorf("%d served, %d refused; want 2 dials and 3 waiters served, 1 refused", served, refused)
		}
	})
}

func TestPoolExhaustedEndsWithTheContext(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1}})
		holder := borrow(t, c)
		defer holder.Release()

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		for name, call := range map[string]func() error{
			"Acquire": func() error { _, err := c.Acquire(ctx); return err },
			"Do":      func() error { return c.Do(ctx, holdfast.Idempotent, say("x")) },
		} {
			var err error
			d := took(func() { err = call() })
			e := asError(t, err)
			if !errors.Is(err, holdfast.ErrPoolExhausted) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v matches not both ErrPoolExhausted and the context's error", name, err)
			}
			if name == "Acquire" && (e.Class != holdfast.ClassExhausted || e.Phase != holdfast.PhaseAcquire || e.Node != w.servers[0].addr) {
				t.Errorf("%s: class %v, phase %v, node %q", name, e.Class, e.Phase, e.Node)
			}
			if !e.SafeToRetry() {
				t.Errorf("%s: nothing was written, yet it is not safe to retry", name)
			}
			within(t, d, 0, 3*time.Second)
			ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
		}

		// A cancellation is a cancellation, not an exhausted pool.
		ctx, cancel = context.WithCancel(t.Context())
		waiting := queue(ctx, c)
		cancel()
		got := <-waiting
		if !errors.Is(got.err, context.Canceled) || asError(t, got.err).Class != holdfast.ClassCanceled {
			t.Errorf("cancelled while waiting: %v", got.err)
		}
		if n := c.Stats(); n.Waiting != 0 || n.Nodes[0].InFlight != 1 || n.Nodes[0].Failures != 0 {
			t.Errorf("%d waiting, %d in flight, %d failures; want 0, 1, 0", n.Waiting, n.Nodes[0].InFlight, n.Nodes[0].Failures)
		}
	})
}

// One client of ten is too many: every wait is too long, and making all wait
// longer would help nobody. The numbers are CoDel's with DBConnection's interval:
// nobody is shed before each wait of two seconds was above the target, then
// nobody waits longer than twice the target, and one short wait ends it.
func TestWaitTargetShedsLoad(t *testing.T) {
	const target = 50 * time.Millisecond
	overload := func(t *testing.T, w *world, target time.Duration) (c *holdfast.Cluster, outcome func() (early, late []loan)) {
		c = w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1, WaitTarget: target}})
		var mu sync.Mutex
		var early, late []loan
		var wg sync.WaitGroup
		begin := time.Now()
		for range 400 { // 8 s of callers every 20 ms; each keeps the connection for 100 ms
			wg.Go(func() {
				came := time.Since(begin)
				conn, err := c.Acquire(t.Context())
				got := loan{conn, err, time.Since(begin) - came}
				if err == nil {
					time.Sleep(100 * time.Millisecond)
					conn.Release()
				}
				mu.Lock()
				if came+got.wait < 2*time.Second {
					early = append(early, got)
				} else if came > 4200*time.Millisecond {
					late = append(late, got)
				}
				mu.Unlock()
			})
			time.Sleep(20 * time.Millisecond)
		}
		return c, func() ([]loan, []loan) { wg.Wait(); return early, late }
	}
	count := func(loans []loan) (served, shed int) {
		for _, l := range loans {
			if l.err == nil {
				served++
			} else {
				shed++
			}
		}
		return served, shed
	}

	t.Run("on", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c, outcome := overload(t, w, target)
			early, late := outcome()
			if _, shed := count(early); shed != 0 {
				t.Errorf("%d callers were shed before an interval was over", shed)
			}
			served, shed := count(late)
			if served < 30 || shed < 100 {
				t.Errorf("of the last 3.8 s %d were served and %d shed; one in five can be served", served, shed)
			}
			for _, l := range late {
				if l.wait > 2*target {
					t.Fatalf("a caller waited %v in an overloaded pool, want at most %v", l.wait, 2*target)
				}
				if l.err != nil && (!errors.Is(l.err, holdfast.ErrPoolExhausted) || asError(t, l.err).Class != holdfast.ClassExhausted) {
					t.Fatalf("shed with %v", l.err)
				}
			}

			// A short wait, and patience is back: a wait of twice the target passes.
			holder := borrow(t, c)
			first := queue(t.Context(), c)
			time.Sleep(target / 2)
			holder.Release()
			holder = (<-first).conn
			second := queue(t.Context(), c)
			time.Sleep(3 * target)
			holder.Release()
			if got := <-second; got.err != nil {
				t.Errorf("shed although the last wait was short: %v", got.err)
			} else {
				got.conn.Release()
			}
		})
	})
	t.Run("off", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			_, outcome := overload(t, w, 0)
			if _, late := outcome(); len(late) == 0 || late[0].err != nil {
				t.Error("shed without a WaitTarget")
			}
		})
	})
}

// A thousand callers that come and go at random, before, while and after they are
// given a connection, leave every place as it was.
func TestCancelStormLeaksNothing(t *testing.T) {
	const places = 8
	callers, rounds := 100, 120
	if os.Getenv("HOLDFAST_SOAK") != "" {
		rounds *= 100
	}
	inWorld(t, 2, func(t *testing.T, w *world) {
		// All in whole milliseconds, so that ends, returns and dials fall on the same
		// moments.
		w.net.SetLink("", "", simnet.Link{Latency: time.Millisecond})
		c := w.cluster(holdfast.Config{
			Pool:    holdfast.Pool{Max: places, MaxLifetime: 50 * time.Millisecond},
			Observe: func(holdfast.Event) {},
		})
		var got, left atomic.Int64
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for range rounds {
					d := time.Duration(rng.IntN(12)) * time.Millisecond
					ctx, cancel := context.WithTimeout(t.Context(), d)
					conn, err := c.Acquire(ctx)
					if err != nil {
						left.Add(1)
						cancel()
						continue
					}
					got.Add(1)
					time.Sleep(time.Duration(rng.IntN(4)) * time.Millisecond)
					switch rng.IntN(10) {
					case 0:
						conn.Discard(nil)
					case 1:
						conn.Close()
					default:
						conn.Release()
					}
					cancel()
				}
			})
		}
		wg.Wait()
		time.Sleep(50 * time.Millisecond) // dials nobody waits for any more
		if got.Load() < 1000 || left.Load() < 1000 {
			t.Errorf("%d served, %d left: no storm", got.Load(), left.Load())
		}
		s := c.Stats()
		if s.Waiting != 0 || s.Dialing != 0 || s.Conns != s.Idle {
			t.Errorf("%d waiting, %d dialing, %d connections but %d at rest", s.Waiting, s.Dialing, s.Conns, s.Idle)
		}
		for i, n := range s.Nodes {
			if n.InFlight != 0 {
				t.Errorf("%d in flight on a node that nobody uses", n.InFlight)
			}
			if open := w.servers[i].open(); open != n.Conns {
				t.Errorf("the server has %d connections, the pool knows of %d", open, n.Conns)
			}
		}

		// Every place is there, and not one more.
		for range 2 * places {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := c.Acquire(ctx); err != nil {
				t.Fatalf("a place is gone: %v", err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Acquire(ctx); !errors.Is(err, holdfast.ErrPoolExhausted) {
			t.Errorf("beyond the limit: %v", err)
		}
	})
}

// A node whose pool is full of stuck operations takes only those down.
func TestFullNodeDoesNotBlockTheOthers(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		stuck := make(chan struct{})
		w.servers[0].does(func(net.Conn, string) bool { <-stuck; return false })
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 4}})
		var wg sync.WaitGroup
		for range 12 { // 4 stuck, some waiting for the same node
			wg.Go(func() { c.Do(t.Context(), holdfast.Unsafe, say("stuck")) })
		}
		synctest.Wait()
		for range 100 {
			d := took(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Fatal(err)
				}
			})
			within(t, d, 0, 0)
		}
		if n := w.servers[0].open(); n > 4 {
			t.Errorf("the stuck node has %d connections, the limit is 4", n)
		}
		close(stuck)
		wg.Wait()
	})
}

// A server that accepts no more connections, as databases do at their limit,
// still serves those it has.
func TestFailedGrowthKeepsWhatThereIs(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{})
		first := borrow(t, c)
		synctest.Wait()
		w.servers[0].ln.Close() // no more
		if _, err := c.Acquire(t.Context()); err == nil {
			t.Fatal("connected to nobody")
		}
		first.Release()
		for range 10 {
			var err error
			d := took(func() { err = c.Do(t.Context(), holdfast.Unsafe, say("x")) })
			if err != nil {
				t.Fatalf("a sound connection rests in the pool, yet: %v", err)
			}
			within(t, d, 0, 0)
		}
	})
}

// Nothing of a pool's own explanations is lost on the way to an event.
func TestCloseEventsSayWhy(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Max: 1}})
		borrow(t, c).Discard(nil)
		retired := borrow(t, c)
		retired.Retire()
		retired.Release()
		last := borrow(t, c)
		if err := exchange(last, "x"); err != nil {
			t.Fatal(err)
		}
		last.Release()
		w.servers[0].hangUp()
		time.Sleep(time.Millisecond)
		borrow(t, c)
		got := w.closes()
		want := []string{"discarded", "retired", "EOF"}
		if len(got) != len(want) {
			t.Fatalf("closes %q, want %q", got, want)
		}
		for i, cause := range got {
			if !strings.Contains(cause, want[i]) {
				t.Errorf("close %d because of %q, want %q", i, cause, want[i])
			}
		}
	})
}
