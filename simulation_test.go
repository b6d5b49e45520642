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
		if s := simulate(t, draw(uint64(*simSeed)), nil); len(s.wrong) > 0 || testing.Verbose() {
			t.Log(s.report())
			if len(s.wrong) > 0 {
				t.Fail()
			}
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
	closing func(*simSocket) error

	mu       sync.Mutex // guards the rest
	began    time.Time
	lasted   time.Duration
	mercy    time.Time // when the faults ended
	log      []logLine
	wrong    []string
	executed map[uint64]int // by operation, on all servers together
	unsent   []uint64       // operations that a caller was told are safe to retry
	unsafe   []uint64
	sockets  map[*simSocket]bool
	lent     map[*holdfast.Conn]*lending
	walk     map[*holdfast.Node]holdfast.State
	opened   int // connections, by the events
	retried  uint64
	instant  time.Time
	dials    map[string]int // in this instant, by address
	last     time.Time      // of the last event
	nodes    map[*holdfast.Node]bool
	pending  map[*deed]time.Time
	waits    []wait // of Acquire
	paid     int    // runs of a Do that wrote after an earlier one had
	dos      int
	serial   uint64
}

type logLine struct {
	at     time.Duration
	format string
	args   []any
}

// lending is what is known of a connection by those it was lent to.
type lending struct {
	to      string // "" when nobody has it
	spoiled string // why it may never be lent again
}

// wait is an Acquire that succeeded.
type wait struct{ from, to time.Time }

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
	s.closing = func(k *simSocket) error { return k.Conn.Close() }
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

	s.within(s.plan.patience()*time.Duration(s.plan.longest()+1), "every caller comes home", callers.Wait)
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

// within runs f, which must end by itself; if it does not, nothing can be trusted
// any more, the bubble would go on for ever.
func (s *sim) within(limit time.Duration, promise string, f func()) {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		s.violation(promise, "not after %v; %s", limit, s.outstanding())
		panic(s.report())
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

// look checks what must hold at every moment, when nothing is under way in this
// instant.
func (s *sim) look() {
	synctest.Wait()
	stats := s.cluster.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	if stats.Successes+stats.Failures > stats.Operations {
		s.violationLocked("operations = successes + failures", "%d, %d, %d", stats.Operations, stats.Successes, stats.Failures)
	}
	if stats.Idle > stats.Conns || stats.Waiting < 0 || stats.Dialing < 0 {
		s.violationLocked("the pool's counts are counts", "%d idle of %d, %d waiting, %d dialing", stats.Idle, stats.Conns, stats.Waiting, stats.Dialing)
	}
	if stats.EventsDropped > 0 {
		s.violationLocked("no event is lost", "%d", stats.EventsDropped)
	}
	open := 0
	for k := range s.sockets {
		if k.Conn != nil {
			open++
		}
	}
	if open < stats.Conns {
		s.violationLocked("each connection has a socket", "%d sockets, %d connections", open, stats.Conns)
	}
	for n, said := range s.walk {
		if now := n.State(); now != said {
			s.violationLocked("each change of state is an event", "%s is %v, the last event said %v", n.Addr(), now, said)
		}
	}
	if s.plan.Clean {
		for _, sv := range s.servers {
			if n := len(sv.host.Conns()); n > s.plan.perNode() {
				s.violationLocked("a server sees no more than Pool.Max", "%s sees %d", sv.addr, n)
			}
		}
	}
}

// atRest checks the accounts when no call is under way and the Cluster lives.
func (s *sim) atRest() {
	stats := s.cluster.Stats()
	if stats.Waiting != 0 {
		s.violation("nobody waits when all are home", "%d", stats.Waiting)
	}
	pinging := s.plan.Probe && s.plan.Pool.Ping > 0
	if s.plan.Pooled && !pinging && stats.Idle != stats.Conns {
		s.violation("all connections are back", "%d of %d idle", stats.Idle, stats.Conns)
	}
}

// closed checks the accounts at the end.
func (s *sim) closed() {
	synctest.Wait()
	stats := s.cluster.Stats()
	if stats.Conns != 0 || stats.Idle != 0 || stats.Dialing != 0 || stats.Waiting != 0 {
		s.violation("Close leaves nothing", "%d connections, %d idle, %d dialing, %d waiting", stats.Conns, stats.Idle, stats.Dialing, stats.Waiting)
	}
	if stats.Operations != stats.Successes+stats.Failures {
		s.violation("operations = successes + failures", "%d, %d, %d", stats.Operations, stats.Successes, stats.Failures)
	}
	start := time.Now()
	err := s.cluster.Do(context.Background(), holdfast.Idempotent, say("after the end"))
	if !errors.Is(err, holdfast.ErrClosed) || time.Since(start) != 0 {
		s.violation("use after Close is ErrClosed at once", "%v after %v", err, time.Since(start))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened != 0 || s.retried != stats.Retries {
		s.violationLocked("each connection and each retry has its events", "%d more opened than closed; %d retries, %d events", s.opened, stats.Retries, s.retried)
	}
	for n := range s.nodes {
		if k := n.InFlight(); k != 0 {
			s.violationLocked("InFlight ends at 0", "%s has %d", n.Addr(), k)
		}
	}
	for k := range s.sockets {
		s.violationLocked("Close leaves nothing", "a socket to %s", k.addr)
	}
}

// audit compares the books of servers and callers once everything has ended.
func (s *sim) audit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.unsafe {
		if n := s.executed[id]; n > 1 {
			s.violationLocked("an unsafe operation runs at most once", "operation %d ran %d times", id, n)
		}
	}
	for _, id := range s.unsent {
		if n := s.executed[id]; n > 0 {
			s.violationLocked("SafeToRetry means that nothing ran", "operation %d ran %d times", id, n)
		}
	}
	if most := s.plan.budget(s.dos, s.lasted); s.paid > most {
		s.violationLocked("retries stay within the budget", "%d repeated runs of %d operations, at most %d", s.paid, s.dos, most)
	}
	if s.plan.Fair {
		s.fairLocked()
	}
}

// fairLocked holds that who asked first was served first.
func (s *sim) fairLocked() {
	for _, a := range s.waits {
		for _, b := range s.waits {
			if a.from.Before(b.from) && a.to.After(b.to) {
				s.violationLocked("waiters are served in order", "asked at %v and served at %v, after who asked at %v and was served at %v",
					a.from.Sub(s.began), a.to.Sub(s.began), b.from.Sub(s.began), b.to.Sub(s.began))
				return
			}
		}
	}
}

// event holds that events come in order and that each node's are a walk.
func (s *sim) event(e holdfast.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked("event: %v", shownEvent(e))
	if e.Time.Before(s.last) {
		s.violationLocked("events come in order", "%v after %v", e.Time.Sub(s.began), s.last.Sub(s.began))
	}
	s.last = e.Time
	switch {
	case e.Kind == holdfast.EventDial && e.Err == nil:
		s.opened++
	case e.Kind == holdfast.EventClose:
		s.opened--
	case e.Kind == holdfast.EventRetry:
		s.retried++
	}
	if e.Node != nil {
		s.nodes[e.Node] = true
	}
	if e.Kind != holdfast.EventState {
		return
	}
	before, known := s.walk[e.Node]
	if known && before != e.From || !known && e.From != holdfast.StateIdle && e.From != holdfast.StateDraining || e.From == e.To {
		s.violationLocked("a node's events are a walk of its states", "%s goes from %v to %v, and was %v", e.Node.Addr(), e.From, e.To, before)
	}
	s.walk[e.Node] = e.To
}

// ask is an Observe that looks at what it is told about.
func (s *sim) ask(e holdfast.Event) {
	if s.cluster == nil { // New is not over
		return
	}
	if e.Node != nil {
		e.Node.State()
	}
	switch rand.IntN(20) {
	case 0:
		s.cluster.ResetBackoff()
	case 1:
		s.cluster.Refresh(time.Second)
	case 2:
		s.cluster.Stats()
	case 3:
		if lease, err := s.cluster.Pick(0, nil); err == nil {
			lease.Report(ms, nil)
			lease.Done()
		}
	}
}

type shownEvent holdfast.Event

func (e shownEvent) String() string {
	text := string(e.Kind)
	if e.Node != nil {
		text += " " + e.Node.Addr()
	}
	if e.From != e.To {
		text += fmt.Sprintf(" %v → %v", e.From, e.To)
	}
	if e.Cause != "" {
		text += ", " + e.Cause
	}
	if e.Err != nil {
		text += ", " + e.Err.Error()
	}
	return text
}

func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(format, args...)
}

// noteLocked keeps a line of the log; it becomes text only if it is needed.
func (s *sim) noteLocked(format string, args ...any) {
	s.log = append(s.log, logLine{time.Since(s.began), format, args})
}

func (s *sim) violation(promise, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violationLocked(promise, format, args...)
}

func (s *sim) violationLocked(promise, format string, args ...any) {
	text := promise + ": " + fmt.Sprintf(format, args...)
	s.wrong = append(s.wrong, text)
	s.noteLocked("WRONG: %s", text)
}

// report is what one needs to know of a failure.
func (s *sim) report() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, w := range s.wrong {
		fmt.Fprintf(&b, "  WRONG: %s\n", w)
	}
	fmt.Fprintf(&b, "%v\n", s.plan)
	const head, tail = 400, 100
	for i, l := range s.log {
		switch {
		case i < head || i >= len(s.log)-tail:
			fmt.Fprintf(&b, "  %12v %s\n", l.at, fmt.Sprintf(l.format, l.args...))
		case i == head:
			fmt.Fprintf(&b, "  … %d lines\n", len(s.log)-head-tail)
		}
	}
	fmt.Fprintf(&b, "replay: go test -race -run '^TestSimulation$' -count 20 . -args -seed=%d\n", s.plan.Seed)
	return b.String()
}

func (s *sim) outstanding() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var calls []string
	for d, since := range s.pending {
		calls = append(calls, fmt.Sprintf("since %v: %v", since.Sub(s.began), d))
	}
	slices.Sort(calls)
	return strings.Join(calls, "; ")
}
