package holdfast_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

func TestStatsCountEveryOutcome(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.net.SetLink("", "", simnet.Link{Latency: 5 * time.Millisecond})
		c := w.cluster(holdfast.Config{
			Picker:   holdfast.Ordered(),
			Timeouts: holdfast.Timeouts{Read: time.Second},
			Backoff:  every(100 * time.Millisecond),
			Pool:     holdfast.Pool{Max: 1},
			Retry:    holdfast.Retry{Backoff: every(20 * time.Millisecond)},
		})
		sick := w.servers[0]
		do := func(s holdfast.Safety, fn func(context.Context, *holdfast.Conn) error) error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			return c.Do(ctx, s, fn)
		}
		fails := func(err error) {
			t.Helper()
			if err == nil {
				t.Error("it did not fail")
			}
		}
		for range 3 { // 3 successes: 10 bytes each way
			if err := do(holdfast.Unsafe, say("123456789")); err != nil {
				t.Fatal(err)
			}
		}
		fails(do(holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { return holdfast.Reusable(errors.New("no such key")) }))
		fails(do(holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { return errors.New("own") }))
		apart(func() { do(holdfast.Unsafe, func(context.Context, *holdfast.Conn) error { panic("own") }) })

		sick.does(func(net.Conn, string) bool { return false }) // eof, hidden by a retry
		if err := do(holdfast.Idempotent, say("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		sick.does(func(net.Conn, string) bool { return true }) // a timeout
		fails(do(holdfast.Unsafe, say("x")))
		ctx, cancel := context.WithCancel(t.Context()) // a cancellation
		time.AfterFunc(100*time.Millisecond, cancel)
		fails(c.Do(ctx, holdfast.Unsafe, say("x")))
		sick.crash() // refused, hidden by the race
		if err := do(holdfast.Unsafe, say("x")); err != nil {
			t.Fatal(err)
		}

		s := c.Stats()
		got := fmt.Sprint("operations ", s.Operations, " successes ", s.Successes, " failures ", s.Failures,
			" hidden ", s.Hidden, " retries ", s.Retries, " denied ", s.BudgetDenied)
		if want := "operations 10 successes 5 failures 5 hidden 2 retries 1 denied 0"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if got, want := fmt.Sprint(s.Errors), "map[other:2 refused:1 timeout:1 eof:1]"; got != want {
			t.Errorf("errors by class %s, want %s", got, want)
		}
		a, b := s.Nodes[0], s.Nodes[1]
		if a.Dials != 6 || a.DialFailures != 1 || a.Successes != 4 || a.Failures != 5 || a.State != holdfast.StateBackoff || !strings.Contains(a.Err, "refused") {
			t.Errorf("the sick node: %s", brief(a))
		}
		if b.Dials != 1 || b.DialFailures != 0 || b.Successes != 2 || b.Failures != 0 || b.State != holdfast.StateReady || b.Err != "" {
			t.Errorf("the healthy node: %s", brief(b))
		}
		if a.BytesWritten != 36 || a.BytesRead != 30 || b.BytesWritten != 4 || b.BytesRead != 4 {
			t.Errorf("bytes %d, %d and %d, %d; want 36, 30 and 4, 4", a.BytesWritten, a.BytesRead, b.BytesWritten, b.BytesRead)
		}
		if s.Conns != 1 || s.Idle != 1 || b.Conns != 1 || b.Idle != 1 || a.InFlight+b.InFlight != 0 {
			t.Errorf("%d connections, %d at rest: %s, %s", s.Conns, s.Idle, brief(a), brief(b))
		}
		if s.Latency.Count != 9 || s.Wait.Count != 7 || a.DialTime.Count != 5 { // a panic has no latency
			t.Errorf("%d latencies, %d waits, %d dial times; want 9, 7, 5", s.Latency.Count, s.Wait.Count, a.DialTime.Count)
		}
		// At most 3 % off: a round trip is 10 ms, and so is a dial.
		within(t, s.Latency.Quantile(0.1), 0, 10300*time.Microsecond)
		within(t, b.DialTime.Quantile(0.5), 9700*time.Microsecond, 10300*time.Microsecond)
		within(t, s.Latency.Quantile(1), 970*time.Millisecond, 1030*time.Millisecond)

		// A retry counts when it is decided, as its event tells, if the context ends before it too.
		short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		w.servers[1].does(func(net.Conn, string) bool { return false })
		fails(c.Do(short, holdfast.Idempotent, func(context.Context, *holdfast.Conn) error { return holdfast.Unprocessed(errors.New("busy")) }))
		if n := c.Stats().Retries; n > s.Retries+1 {
			t.Errorf("%d retries counted, want one at most", n-s.Retries)
		}
		w.servers[1].does(nil)
		time.Sleep(time.Second)

		// What is under way: one at work, one waiting.
		conn, err := c.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() { fails(do(holdfast.Unsafe, say("x"))) }()
		synctest.Wait()
		s = c.Stats()
		if s.Idle != 0 || s.Waiting != 1 || s.Nodes[1].InFlight != 2 || s.Operations != 12 {
			t.Errorf("%d at rest, %d waiting, %d in flight, %d operations; want 0, 1, 2, 12", s.Idle, s.Waiting, s.Nodes[1].InFlight, s.Operations)
		}
		time.Sleep(10 * time.Second)
		conn.Release()
		s = c.Stats()
		if s.Waiting != 0 || s.Operations != s.Successes+s.Failures || s.Nodes[1].InFlight != 0 {
			t.Errorf("after all: %d waiting, %d operations, %d successes, %d failures", s.Waiting, s.Operations, s.Successes, s.Failures)
		}
	})
}

// brief leaves the histograms out.
func brief(n holdfast.NodeStats) string {
	return fmt.Sprintf("%s %v %q, %d dials, %d failed, %d successes, %d failures, %d connections, %d at rest, %d in flight",
		n.Node, n.State, n.Err, n.Dials, n.DialFailures, n.Successes, n.Failures, n.Conns, n.Idle, n.InFlight)
}

// Stats is what dashboards read: names, not numbers.
func TestStatsAsJSON(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.servers[0].crash()
		c := w.cluster(holdfast.Config{})
		c.DialContext(t.Context(), "", "")
		text, err := json.Marshal(c.Stats())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{`"operations":0`, `"errors":{"refused":1}`, `"state":"backoff"`, `"dial_failures":1`, `"node":"10.0.0.1:7000"`} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s has no %s", text, want)
			}
		}
	})
}

// Waiting counts callers, however many nodes each of them waits for.
func TestWaitingCountsCallers(t *testing.T) {
	inWorld(t, 4, func(t *testing.T, w *world) {
		w.net.Partition("10.0.1.1", "")
		c := w.cluster(holdfast.Config{Pool: holdfast.Pool{Waiters: 15}})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := c.Acquire(ctx); errors.Is(err, holdfast.ErrPoolExhausted) {
					t.Errorf("ten callers are too many for a queue of fifteen: %v", err)
				}
			})
		}
		time.Sleep(2 * time.Second) // the staggered dials to all four nodes are under way
		if n := c.Stats().Waiting; n != 10 {
			t.Errorf("%d waiting, want the ten callers", n)
		}
		if _, err := c.Acquire(ctx); errors.Is(err, holdfast.ErrPoolExhausted) {
			t.Errorf("one more: %v", err)
		}
		wg.Wait()
	})
}

func TestNodeStatesAreVisible(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		w.net.SetLink("", "", simnet.Link{Latency: 100 * time.Millisecond})
		s := w.servers[0]
		r := &changing{}
		c, err := holdfast.New(r, holdfast.Config{
			Dial:    w.client.DialContext,
			Picker:  holdfast.Ordered(),
			Backoff: every(10 * time.Second),
			Outlier: holdfast.Outlier{Consecutive: 2, Eject: time.Minute},
			Observe: w.observe,

			Timeouts: holdfast.Timeouts{Stagger: -1}, // nobody overtakes
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ours, other := tcp(s.addr), tcp(w.servers[1].addr)
		r.push(c, ours, other)
		lease, err := c.Pick(0, nil)
		if err != nil {
			t.Fatal(err)
		}
		node := lease.Node()
		lease.Done()
		is := func(want holdfast.State) {
			t.Helper()
			synctest.Wait()
			if got := node.State(); got != want || c.Stats().Nodes[0].State != want {
				t.Errorf("the node is %v, Stats says %v; want %v", got, c.Stats().Nodes[0].State, want)
			}
		}
		use := func(fn func(context.Context, *holdfast.Conn) error) { c.Do(t.Context(), holdfast.Unsafe, fn) }
		failing := func(context.Context, *holdfast.Conn) error { return errors.New("bad answer") }

		is(holdfast.StateIdle)
		go use(say("x"))
		is(holdfast.StateConnecting)
		time.Sleep(10 * time.Second)
		is(holdfast.StateReady)
		s.hangUp()
		time.Sleep(10 * time.Second)
		is(holdfast.StateIdle)
		s.crash()
		use(say("x"))
		is(holdfast.StateBackoff)
		time.Sleep(10 * time.Second)
		is(holdfast.StateIdle)
		s.listen()
		use(say("x"))
		is(holdfast.StateReady)
		use(failing)
		use(failing)
		is(holdfast.StateEjected)
		time.Sleep(90 * time.Second) // it passes its probe
		is(holdfast.StateIdle)
		r.push(c, other)
		time.Sleep(time.Second)
		if got := node.State(); got != holdfast.StateDraining || len(c.Stats().Nodes) != 1 {
			t.Errorf("removed, the node is %v, of %d", got, len(c.Stats().Nodes))
		}

		var steps []string
		for _, e := range w.all(holdfast.EventState) {
			if e.Node != node {
				continue
			}
			steps = append(steps, fmt.Sprintf("%v→%v", e.From, e.To))
			if e.Cause == "" || (e.To == holdfast.StateBackoff || e.To == holdfast.StateEjected) && e.Err == nil {
				t.Errorf("%v→%v has the cause %q and the error %v", e.From, e.To, e.Cause, e.Err)
			}
		}
		want := "idle→connecting connecting→ready ready→idle idle→connecting connecting→backoff backoff→idle " +
			"idle→connecting connecting→ready ready→idle idle→connecting connecting→ready ready→ejected ejected→idle idle→draining"
		if got := strings.Join(steps, " "); got != want {
			t.Errorf("went %s\nwant %s", got, want)
		}
	})
}

// changing is a Resolver whose set the test changes.
type changing struct {
	mu   sync.Mutex // guards send
	send func([]holdfast.Endpoint, error)
}

func (r *changing) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	r.mu.Lock()
	r.send = push
	r.mu.Unlock()
	<-ctx.Done()
}

func (r *changing) push(c *holdfast.Cluster, endpoints ...holdfast.Endpoint) {
	c.Refresh(0) // begins
	synctest.Wait()
	r.mu.Lock()
	send := r.send
	r.mu.Unlock()
	send(endpoints, nil)
}

func tcp(addr string) holdfast.Endpoint { return holdfast.Endpoint{Network: "tcp", Addr: addr} }

// observe is the world's Config.Observe, for clusters it did not make.
func (w *world) observe(e holdfast.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func TestBackoffEventsCarryTheAttempt(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		s := w.servers[0]
		s.crash()
		time.AfterFunc(3500*time.Millisecond, s.listen)
		c := w.cluster(holdfast.Config{Backoff: every(time.Second), Retry: holdfast.Retry{Attempts: 10, Backoff: every(time.Millisecond)}})
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Fatal(err)
		}
		var dials, retries []int
		for _, e := range w.all(holdfast.EventDial) {
			dials = append(dials, e.Attempt)
			if last := len(dials) == 5; last != (e.Err == nil) {
				t.Errorf("dial %d ended with %v", e.Attempt, e.Err)
			}
		}
		for _, e := range w.all(holdfast.EventRetry) {
			retries = append(retries, e.Attempt)
			if e.Err == nil || e.Duration != time.Millisecond {
				t.Errorf("retry %d because of %v, after %v", e.Attempt, e.Err, e.Duration)
			}
		}
		if fmt.Sprint(dials) != "[1 2 3 4 5]" || fmt.Sprint(retries) != "[2 3 4 5]" {
			t.Errorf("connects %v, runs %v; want 1 to 5, and 2 to 5 again", dials, retries)
		}

		time.Sleep(time.Minute) // stable: the next outage begins anew
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Fatal(err)
		}
		s.crash()
		time.Sleep(time.Second)
		c.DialContext(t.Context(), "", "")
		dial := w.all(holdfast.EventDial)
		if last := dial[len(dial)-1]; last.Err == nil || last.Attempt != 1 {
			t.Errorf("the first connect after a minute of health is attempt %d, %v", last.Attempt, last.Err)
		}
	})
}

// While Observe is slow, 4096 events wait for it; the rest is dropped and counted,
// and the Cluster goes on.
func TestObserveQueueDropsAndCounts(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		resume := make(chan struct{})
		var seen []holdfast.Event
		var inside atomic.Int32
		var slow atomic.Bool
		c := w.cluster(holdfast.Config{Observe: func(e holdfast.Event) {
			if inside.Add(1) > 1 {
				t.Error("Observe is called twice at once")
			}
			if slow.Load() {
				<-resume
			}
			seen = append(seen, e)
			inside.Add(-1)
		}})
		slow.Store(true)
		stuck := make(chan struct{})
		go func() { // someone delivers the first event, and is stuck with it
			defer close(stuck)
			c.Do(t.Context(), holdfast.Unsafe, say("x"))
		}()
		synctest.Wait()
		const rounds = 3000
		for range rounds { // a dial and a close each
			conn, err := c.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		dropped := c.Stats().EventsDropped
		if dropped == 0 {
			t.Fatal("no event was dropped")
		}
		close(resume)
		<-stuck
		c.Close()
		total := uint64(len(seen)) + dropped
		if len(seen) < 4096 || len(seen) > 4096+100 || total < 2*rounds {
			t.Errorf("%d events seen, %d dropped; want the queue's 4096 and a few", len(seen), dropped)
		}
		for i := range seen[1:] {
			if seen[i+1].Time.Before(seen[i].Time) {
				t.Errorf("event %d, %v, is older than the one before", i+1, seen[i+1].Kind)
			}
		}
	})
	// The Cluster's own clock does not wait for it: nodes come back all the same.
	t.Run("and the clock goes on", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			s := w.servers[0]
			s.crash()
			c := w.cluster(holdfast.Config{Backoff: every(time.Second), Observe: func(e holdfast.Event) {
				if e.From == holdfast.StateBackoff {
					time.Sleep(time.Hour)
				}
			}})
			c.DialContext(t.Context(), "", "") // refused; the end of its backoff is reported, slowly
			time.Sleep(2 * time.Second)
			c.DialContext(t.Context(), "", "")
			s.listen()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := c.WaitReady(ctx); err != nil {
				t.Errorf("while Observe sleeps: %v", err)
			}
		})
	})
}
