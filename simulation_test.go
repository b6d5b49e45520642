package holdfast_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
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

var (
	simSeed  = flag.Int64("seed", -1, "replay this `seed` of TestSimulation")
	simSeeds = flag.Uint64("simseeds", 2000, "`number` of seeds that TestSimulation runs")
)

// A seed is a whole story: servers, a configuration, faults and callers, all
// drawn before anything runs. It replays what was drawn and what the network does,
// not Go's scheduling nor the Cluster's own dice.
func TestSimulation(t *testing.T) {
	if *simSeed >= 0 {
		s := simulate(t, draw(uint64(*simSeed)), nil)
		t.Log(s.report())
		if len(s.wrong) > 0 {
			t.Fail()
		}
		return
	}
	chunks := uint64(runtime.GOMAXPROCS(0))
	for first := range chunks {
		t.Run(fmt.Sprintf("chunk %d", first), func(t *testing.T) {
			t.Parallel()
			for seed := first; seed < *simSeeds && !t.Failed(); seed += chunks {
				if s := simulate(t, draw(seed), nil); len(s.wrong) > 0 {
					t.Errorf("seed %d\n%s", seed, s.report())
				}
			}
		})
	}
}

// Each row breaks one thing between the callers and a sound Cluster, or tells the
// books of a stricter limit than the Cluster was given. Within a thousand seeds the
// simulation must notice, and name the promise that was broken.
func TestSimulationCatchesABrokenPromise(t *testing.T) {
	for _, row := range []struct {
		name, promise string
		tamper        func(*sim)
	}{
		{"a server answers with somebody else's payload", "a reply is one's own", swapReplies},
		{"a client repeats an unsafe operation", "an unsafe operation runs at most once", func(s *sim) {
			s.do = func(ctx context.Context, safety holdfast.Safety, fn func(context.Context, *holdfast.Conn) error) error {
				err := s.cluster.Do(ctx, safety, fn)
				if err != nil {
					err = s.cluster.Do(ctx, safety, fn)
				}
				return err
			}
		}},
		{"a client says that nothing was sent", "SafeToRetry means that nothing ran", func(s *sim) {
			s.do = func(ctx context.Context, safety holdfast.Safety, fn func(context.Context, *holdfast.Conn) error) error {
				err := s.cluster.Do(ctx, safety, fn)
				if e, ok := err.(*holdfast.Error); ok {
					err = &holdfast.Error{Phase: holdfast.PhaseAcquire, Err: e.Err}
				}
				return err
			}
		}},
		{"a client is late", "every wait ends with its context", func(s *sim) {
			s.acquire = func(ctx context.Context) (*holdfast.Conn, error) {
				conn, err := s.cluster.Acquire(ctx)
				if err != nil {
					time.Sleep(time.Nanosecond)
				}
				return conn, err
			}
		}},
		{"a lease is never done", "InFlight ends at 0", func(s *sim) {
			s.do = func(ctx context.Context, safety holdfast.Safety, fn func(context.Context, *holdfast.Conn) error) error {
				s.cluster.Pick(0, nil)
				return s.cluster.Do(ctx, safety, fn)
			}
		}},
		{"a connection is never given back", "when all are home, all connections rest", func(s *sim) {
			var once sync.Once
			s.acquire = func(ctx context.Context) (*holdfast.Conn, error) {
				once.Do(func() { s.cluster.Acquire(ctx) })
				return s.cluster.Acquire(ctx)
			}
		}},
		{"who waits is served out of turn", "waiters are served in order", func(s *sim) {
			s.acquire = func(ctx context.Context) (*holdfast.Conn, error) {
				conn, err := s.cluster.Acquire(ctx)
				if err == nil && rand.IntN(2) == 0 {
					time.Sleep(time.Second)
				}
				return conn, err
			}
		}},
		{"an event is lost", "a node's events are a walk of its states", func(s *sim) {
			s.observe = func(e holdfast.Event) {
				if rand.IntN(4) > 0 {
					s.event(e)
				}
			}
		}},
		{"a pool takes a place too many", "the pool opens no more than Pool.Max", func(s *sim) { s.plan.Pool.Max = max(1, s.plan.perNode()-1) }},
		{"a budget is not kept", "retries stay within the budget", func(s *sim) { s.plan.Percent, s.plan.Reserve = 1, -1 }},
		{"a goroutine never ends", "goroutines end", func(*sim) {
			never := make(chan int)
			go func() { <-never }()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(1000) {
				s := simulate(t, draw(seed), row.tamper)
				if slices.ContainsFunc(s.wrong, func(w string) bool { return strings.HasPrefix(w, row.promise) }) {
					return
				}
			}
			t.Errorf("1000 seeds, and nobody noticed: %s", row.promise)
		})
	}
}

// swapReplies makes servers answer with the reply to whoever asked before.
func swapReplies(s *sim) {
	s.answer = func(sv *simServer, f frame) frame {
		reply := f
		if sv.last.verb == f.verb && sv.last.id != f.id {
			reply = sv.last
		}
		sv.last = f
		return reply
	}
}

// sim is one run of one plan: servers that keep books, callers that keep the
// promises they were given, and whoever breaks things in between. What is wrong
// is noted, not fatal, so that the harness itself can be tested.
type sim struct {
	plan    *plan
	net     *simnet.Net
	host    *simnet.Host // the client's
	servers []*simServer
	source  chan []holdfast.Endpoint // nil unless membership is pushed
	cluster *holdfast.Cluster
	trouble atomic.Value // string: what the client's own functions do wrong now

	// What stands between the callers and the Cluster, and at the servers'
	// mouth. TestSimulationCatches puts something broken here.
	do      func(context.Context, holdfast.Safety, func(context.Context, *holdfast.Conn) error) error
	acquire func(context.Context) (*holdfast.Conn, error)
	observe func(holdfast.Event)
	answer  func(*simServer, frame) frame

	mu       sync.Mutex // guards the rest
	began    time.Time
	lasted   time.Duration
	mercy    time.Time // when the faults ended
	log      []logLine
	wrong    []string
	executed map[uint64]int // by operation, on all servers together
	unsafe   []uint64
	unsent   []uint64 // operations that a caller was told are safe to retry
	sockets  map[*simSocket]bool
	instant  time.Time
	dials    map[string]int // in this instant, by address
	lent     map[*holdfast.Conn]*lending
	walk     map[*holdfast.Node]holdfast.State // as the events tell it
	opened   int                               // connections, by the events
	retried  uint64
	last     time.Time               // of the last event
	nodes    map[*holdfast.Node]bool // all that were heard of
	pending  map[*deed]time.Time     // calls under way
	waits    []wait                  // of Acquire
	dos      int
	paid     int    // runs of a Do that wrote after an earlier one had
	serial   uint64 // of exchanges that run nothing
}

// simulate runs a plan in a bubble of its own and returns what was wrong.
func simulate(t *testing.T, p *plan, tamper func(*sim)) (s *sim) {
	s = &sim{plan: p, executed: map[uint64]int{}, sockets: map[*simSocket]bool{}, lent: map[*holdfast.Conn]*lending{},
		walk: map[*holdfast.Node]holdfast.State{}, nodes: map[*holdfast.Node]bool{}, dials: map[string]int{}, pending: map[*deed]time.Time{}}
	// Real time, outside the bubble: in a spin virtual time stands still.
	spin := time.AfterFunc(20*time.Second, func() { panic("it spins\n" + s.report()) })
	defer spin.Stop()
	defer func() {
		if r := recover(); r != nil { // the bubble's own verdict: goroutines that never end
			s.violation("goroutines end", "%v", r)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		s.begin()
		if tamper != nil {
			tamper(s)
		}
		s.story()
	})
	s.audit()
	return s
}

func (s *sim) begin() {
	p := s.plan
	s.began = time.Now()
	s.trouble.Store("")
	s.observe = s.event
	s.answer = func(_ *simServer, f frame) frame { return f }
	s.net = simnet.New(p.Seed)
	s.net.Buffer = p.Buffer
	s.net.SetLink("", "", p.Link)
	s.host = s.net.Host("10.0.1.1")
	for i := range p.Servers {
		sv := &simServer{s: s, addr: fmt.Sprintf("10.0.0.%d:7000", i+1), ip: fmt.Sprintf("10.0.0.%d", i+1)}
		sv.host = s.net.Host(sv.ip)
		sv.rise()
		s.servers = append(s.servers, sv)
	}
	cfg := p.config()
	cfg.Dial = s.dial
	cfg.Observe = func(e holdfast.Event) {
		s.observe(e)
		if p.Nosy {
			s.ask(e)
		}
	}
	if p.Handshake {
		cfg.Handshake = s.handshake
	}
	if p.Probe {
		cfg.Probe = s.probe
	}
	if p.Source == "names" {
		cfg.Names.Lookup = s.lookup
	}
	c, err := holdfast.New(s.resolver(), cfg)
	if err != nil {
		panic(fmt.Sprintf("seed %d draws a configuration that is refused: %v", p.Seed, err))
	}
	s.cluster = c
	s.do, s.acquire = c.Do, c.Acquire
}

// story is the whole run: callers and faults together, then mercy, then the
// accounts.
func (s *sim) story() {
	var callers sync.WaitGroup
	for i := range s.plan.Callers {
		callers.Go(func() { s.caller(s.plan.Callers[i]) })
	}
	for i := range s.plan.Faults {
		f := &s.plan.Faults[i]
		time.Sleep(time.Until(s.began.Add(f.At)))
		s.look()
		s.note("fault: %v", f)
		s.fault(f, &callers)
	}
	time.Sleep(time.Until(s.began.Add(s.plan.Mercy)))
	s.look()
	s.note("mercy")
	s.mend()

	if !s.within(s.plan.patience()*time.Duration(s.plan.longest()+1), "every caller comes home", callers.Wait) {
		s.cluster.Close() // now they must
		callers.Wait()
	}
	s.look()
	if s.alive() {
		s.recovers()
		s.look()
		s.atRest()
	}
	start := time.Now()
	s.within(3*time.Minute, "Close returns", func() { s.cluster.Close() })
	if took := time.Since(start); took > 0 && !s.plan.Deaf {
		s.violation("Close waits for nobody else's time", "%v", took)
	}
	s.closed()
	s.lasted = time.Since(s.began)
	s.net.Close()
	synctest.Wait()
}

// within runs f and holds that it ends by itself.
func (s *sim) within(limit time.Duration, promise string, f func()) bool {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
		s.violation(promise, "not after %v; %s", limit, s.outstanding())
		return false
	}
}

func (s *sim) alive() bool {
	conn, err := s.cluster.Pick(0, nil)
	if err == nil {
		conn.Done()
	}
	return !errors.Is(err, net.ErrClosed)
}

// recovers holds that a healed world is a usable one: an operation succeeds, and
// no place of the pool has been lost.
func (s *sim) recovers() {
	limit := time.Now().Add(s.plan.recovery())
	try := func(promise string, f func(context.Context) error) bool {
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := f(ctx)
			cancel()
			if err == nil {
				return true
			}
			if time.Now().After(limit) {
				s.violation(promise, "still after %v: %v", s.plan.recovery(), err)
				return false
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	if !try("a healed cluster works again", func(ctx context.Context) error {
		return s.cluster.Do(ctx, holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
			return s.hello(conn, verbPing)
		})
	}) {
		return
	}
	var all []*holdfast.Conn
	for range s.plan.atOnce() {
		if !try("no place of the pool is lost", func(ctx context.Context) error {
			conn, err := s.cluster.Acquire(ctx)
			if err == nil {
				all = append(all, conn)
			}
			return err
		}) {
			break
		}
	}
	for _, conn := range all {
		conn.Release()
	}
}
