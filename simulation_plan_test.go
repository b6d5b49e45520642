package holdfast_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// plan is all that a seed decides, drawn before anything runs.
type plan struct {
	Seed    uint64
	Servers int
	Policy  string
	Source  string // "static", "pushed" (a Resolver) or "names" (Names.Lookup)
	Shares  []share

	Timeouts holdfast.Timeouts
	Backoff  holdfast.Backoff
	Retry    holdfast.Retry
	Percent  int // of the retry budget
	Reserve  int // of the retry budget, a second
	Pool     holdfast.Pool
	Check    holdfast.Check
	Outlier  holdfast.Outlier
	Refresh  time.Duration // of names

	Handshake, Probe bool
	Nosy             bool // Observe asks the Cluster back
	Deaf             bool // Dial does not always listen to its context
	Link             simnet.Link
	Buffer           int // of a stream, in bytes

	Pooled bool // only the pool dials: the sockets per node are bounded exactly
	Clean  bool // and packets keep their order: so are those that a server sees
	Fair   bool // one node, so that all waits have one order

	Callers [][]deed
	Faults  []fault
	Mercy   time.Duration // all faults end
}

// share is one endpoint's place among the others.
type share struct{ Weight, Priority int }

// deed is what a caller does next.
type deed struct {
	ID     uint64
	After  time.Duration
	What   string
	Safety holdfast.Safety
	Limit  time.Duration // its context's deadline; 0: none
	Cancel time.Duration // its context's cancellation; 0: never
	Size   int           // of the payload
	Fate   string        // how the operation behaves
	Hold   time.Duration // how long it keeps what it got
}

// fault is what goes wrong, or well again, at a time.
type fault struct {
	At     time.Duration
	What   string
	Server int
	N      int
	For    time.Duration
	Set    []int // servers, for a change of membership
}

func (f *fault) String() string {
	return fmt.Sprintf("%s server %d n %d for %v set %v", f.What, f.Server+1, f.N, f.For, f.Set)
}

func (d *deed) String() string {
	return fmt.Sprintf("%s %d (%s, safety %d, size %d, limit %v, cancel %v, hold %v)", d.What, d.ID, d.Fate, d.Safety, d.Size, d.Limit, d.Cancel, d.Hold)
}

func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d servers, %s, %s %v, pooled %t, clean %t, fair %t, handshake %t, probe %t, nosy %t\n",
		p.Seed, p.Servers, p.Policy, p.Source, p.Shares, p.Pooled, p.Clean, p.Fair, p.Handshake, p.Probe, p.Nosy)
	fmt.Fprintf(&b, "  link %+v, buffer %d\n  %+v\n  backoff %+v\n  %+v, budget %d %% and %d a second\n  %+v\n  %+v\n  %+v\n  names every %v\n",
		p.Link, p.Buffer, p.Timeouts, p.Backoff, p.Retry, p.Percent, p.Reserve, p.Pool, p.Check, p.Outlier, p.Refresh)
	for i, deeds := range p.Callers {
		for _, d := range deeds {
			fmt.Fprintf(&b, "  caller %d, after %v: %v\n", i, d.After, &d)
		}
	}
	for i := range p.Faults {
		fmt.Fprintf(&b, "  at %v: %v\n", p.Faults[i].At, &p.Faults[i])
	}
	fmt.Fprintf(&b, "  at %v: mercy\n", p.Mercy)
	return b.String()
}

// dice draws a plan.
type dice struct{ *rand.Rand }

func one[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

// span is odd to the nanosecond, so that two things happen at one instant only
// when one causes the other.
func (d dice) span(most time.Duration) time.Duration {
	return 1 + time.Duration(d.Int64N(int64(most)))
}

const ms = time.Millisecond

func draw(seed uint64) *plan {
	d := dice{rand.New(rand.NewPCG(seed, 0x686f6c64))}
	p := &plan{Seed: seed, Servers: 1 + d.IntN(5)}
	p.Policy = one(d, "", "ordered", "random", "round robin", "ewma", "contrary")
	p.Source = one(d, "static", "static", "pushed", "names")
	p.Pooled = d.chance(50)
	p.Clean = p.Pooled && d.chance(50)
	p.Fair = p.Pooled && p.Source == "static" && d.chance(50)
	if p.Fair {
		p.Servers = 1
	}
	for range p.Servers {
		p.Shares = append(p.Shares, share{one(d, 0, 0, 1, 5), one(d, 0, 0, 0, 1, 2)})
	}
	p.drawConfig(d)
	p.drawNetwork(d)
	p.drawCallers(d)
	p.drawFaults(d)
	return p
}

func (p *plan) drawConfig(d dice) {
	p.Timeouts = holdfast.Timeouts{
		Dial: one(d, 0, 0, 50*ms, time.Second), Handshake: one(d, 0, 50*ms, time.Second),
		Read: one(d, 0, 0, -1, 100*ms, time.Second), Write: one(d, 0, 0, -1, 100*ms), Stagger: one(d, 0, 0, -1, 10*ms),
	}
	p.Backoff = holdfast.Backoff{Base: one(d, 0, -1, 5*ms, 100*ms), Max: one(d, 0, 200*ms, time.Second), Jitter: one(d, 0.0, -1, 1), StableAfter: one(d, 0, -1, 50*ms)}
	p.Retry = holdfast.Retry{Attempts: one(d, 0, 0, -1, 1, 2, 5), PerTry: one(d, 0, 0, 0, 20*ms, 300*ms)}
	p.Retry.Backoff = holdfast.Backoff{Base: one(d, 0, 0, -1, ms), Max: one(d, 0, 0, -1, 50*ms), Jitter: one(d, 0.0, -1)}
	if p.Clean { // a dial given up is one that the server may still see
		p.Timeouts.Dial, p.Timeouts.Handshake, p.Retry.PerTry = 0, 0, 0
	}
	p.Percent, p.Reserve = one(d, 0, 0, -1, 1, 50, 100), one(d, 0, -1, -1, 1)
	p.Pool = holdfast.Pool{
		Max: one(d, 0, 1, 1, 2, 3, 8), MaxDials: one(d, 0, 0, -1, 1, 8), Total: one(d, 0, 0, 1, 2, 3, 8),
		Waiters: one(d, 0, 0, 0, -1, 1, 3), MaxIdleTime: one(d, 0, 0, -1, 50*ms), MaxLifetime: one(d, 0, 0, -1, 100*ms, time.Second),
		CheckIdle: one[time.Duration](d, 0, 0, -1, 1), WaitTarget: one(d, 0, 0, 0, 5*ms, 50*ms), Ping: one(d, 0, 0, 600*ms),
	}
	p.Pool.MinIdle = min(one(d, 0, 0, 1, 2), p.perNode())
	if p.Pool.Waiters < 0 && p.Pool.Total != 0 { // who may not wait finds each place refilled
		p.Pool.MinIdle = 0
	}
	p.Check = holdfast.Check{
		Interval: one(d, 0, -1, 300*ms, time.Second), Timeout: one(d, 0, 200*ms), Fast: one[time.Duration](d, 0, 0, -1),
		Rise: one(d, 0, -1, 1), Fall: one(d, 0, 1, 5),
	}
	p.Outlier = holdfast.Outlier{
		Consecutive: one(d, 0, -1, 1, 2), MaxPercent: one(d, 0, 50, 100), PanicPercent: one(d, 0, -1, 1, 100),
		Interval: one(d, 0, -1, 500*ms), Eject: one(d, 0, -1, 100*ms, time.Second), MaxEject: one(d, 0, -1, time.Second), SlowStart: one(d, 0, 0, time.Second),
		FailurePercent: one(d, 0, 1, 50),
	}
	if p.Pooled { // checks and readmission dial connections of their own
		p.Check.Interval = -1
		p.Outlier.Consecutive, p.Outlier.SuccessRate, p.Outlier.FailurePercent = -1, -1, 0
	}
	p.Refresh = one(d, 0, -1, 200*ms)
	p.Handshake, p.Probe, p.Nosy = d.chance(30), d.chance(30), d.chance(20)
	p.Deaf = p.Pooled && !p.Clean && d.chance(30)
}

func (p *plan) drawNetwork(d dice) {
	p.Link.Latency = one(d, 0, d.span(ms), d.span(40*ms))
	if !p.Clean && d.chance(40) {
		p.Link.Jitter, p.Link.Loss = d.span(20*ms), one(d, 0, 0.01, 0.2)
	}
	p.Buffer = one(d, 0, 0, 0, 64, 1000)
}

func (p *plan) drawCallers(d dice) {
	id := uint64(0)
	for range 1 + d.IntN(4) {
		var deeds []deed
		for range 2 + d.IntN(7) {
			id++
			deeds = append(deeds, p.drawDeed(d, id))
		}
		p.Callers = append(p.Callers, deeds)
	}
}

// What callers do, and how their operations behave.
var (
	pooledDeeds = []string{"do", "do", "do", "do", "acquire", "acquire", "ready"}
	allDeeds    = append([]string{"dial", "dial node", "dial addr", "pick", "pick"}, pooledDeeds...)

	fates = []string{"good", "good", "good", "good", "good", "slow", "own error first", "own error after", "reusable", "permanent",
		"half", "unread", "retire", "close", "panic first", "panic after", "own deadline", "deaf", "nested"}
	endings = []string{"release", "release", "release", "discard", "blame", "close", "retire"}
)

func (p *plan) drawDeed(d dice, id uint64) deed {
	deeds := allDeeds
	if p.Pooled {
		deeds = pooledDeeds
	}
	k := deed{ID: id, What: one(d, deeds...), Safety: one(d, holdfast.Unsafe, holdfast.Idempotent), Hold: d.span(one(d, ms, 50*ms, 400*ms))}
	k.After = d.span(one(d, ms, 100*ms, 800*ms))
	k.Size = one(d, 0, 10, d.IntN(200), d.IntN(5000))
	if d.chance(2) {
		k.Size = maxSize
	}
	if p.Buffer > 0 { // each bufferful takes a round trip
		k.Size = min(k.Size, 20*p.Buffer)
	}
	k.Fate = one(d, fates...)
	if k.What != "do" {
		k.Fate = one(d, endings...)
	}
	if d.chance(70) {
		k.Limit = d.span(one(d, ms, 100*ms, 3*time.Second))
	}
	if d.chance(15) {
		k.Cancel = d.span(one(d, ms, 100*ms, time.Second))
	}
	return k
}

var (
	cleanFaults = []string{"crash", "rise", "rise", "hang up", "well", "well", "slow", "silent", "refuse", "reset", "reset all",
		"cut", "cut request", "resolve", "reset backoff", "refresh"}
	allFaults = append([]string{"freeze", "thaw", "thaw", "partition", "heal", "heal", "links", "no descriptors", "panics", "no names", "no handshake",
		"bare reset", "no trouble", "no trouble", "push nothing"}, cleanFaults...)
)

func (p *plan) drawFaults(d dice) {
	faults := allFaults
	switch {
	case p.Clean:
		faults = cleanFaults
	case p.Deaf: // no call waits for the dialer itself, only Close does
		faults = append([]string{"deaf dialer", "deaf dialer"}, allFaults...)
	}
	at := time.Duration(0)
	for range d.IntN(12) {
		at += d.span(one(d, 10*ms, 200*ms, time.Second))
		f := fault{At: at, What: one(d, faults...), Server: d.IntN(p.Servers), N: d.IntN(300), For: d.span(one(d, 10*ms, 500*ms))}
		for i := range p.Servers {
			if d.chance(60) {
				f.Set = append(f.Set, i)
			}
		}
		p.Faults = append(p.Faults, f)
	}
	if d.chance(30) {
		at += d.span(200 * ms)
		p.Faults = append(p.Faults, fault{At: at, What: one(d, "shutdown", "close"), For: d.span(one(d, ms, time.Second))})
		if d.chance(40) { // while the first is at it
			p.Faults = append(p.Faults, fault{At: at + d.span(20*ms), What: one(d, "shutdown", "close"), For: d.span(50 * ms)})
		}
	}
	p.Mercy = at + 20*ms + d.span(200*ms)
}

// config is the plan's configuration, but for the functions.
func (p *plan) config() holdfast.Config {
	cfg := holdfast.Config{Timeouts: p.Timeouts, Backoff: p.Backoff, Retry: p.Retry, Pool: p.Pool, Check: p.Check, Outlier: p.Outlier}
	cfg.Retry.Budget = &holdfast.Budget{Percent: p.Percent, PerSecond: p.Reserve}
	cfg.Names.Refresh = p.Refresh
	switch p.Policy {
	case "ordered":
		cfg.Picker = holdfast.Ordered()
	case "random":
		cfg.Picker = holdfast.Random()
	case "round robin":
		cfg.Picker = holdfast.RoundRobin()
	case "ewma":
		cfg.Picker = holdfast.PeakEWMA()
	case "contrary": // legal, and of no help
		cfg.Picker = func(nodes []*holdfast.Node) func(uint64, []*holdfast.Node) *holdfast.Node {
			return func(uint64, []*holdfast.Node) *holdfast.Node {
				if rand.IntN(8) == 0 {
					return nil
				}
				return nodes[rand.IntN(len(nodes))]
			}
		}
	}
	return cfg
}

// The numbers below are what the documents make of the configuration: 0 is the
// default, negative is off.

func limitOf(v, def, off time.Duration) time.Duration {
	switch {
	case v == 0:
		return def
	case v < 0:
		return off
	}
	return v
}

func (p *plan) perNode() int {
	if p.Pool.Max == 0 {
		return 4 * runtime.GOMAXPROCS(0)
	}
	return p.Pool.Max
}

func (p *plan) total() int {
	if p.Pool.Total == 0 {
		return 1024
	}
	return p.Pool.Total
}

// atOnce is how many connections can always be had together; none where those who
// wait for a dial are shed.
func (p *plan) atOnce() int {
	if p.Pool.WaitTarget > 0 {
		return 0
	}
	return min(p.perNode(), p.total())
}

func (p *plan) attempts() int {
	if p.Retry.Attempts == 0 {
		return 3
	}
	return max(1, p.Retry.Attempts)
}

// limitless reports whether an operation may wait for its peer without a limit.
func (p *plan) limitless() bool { return p.Timeouts.Read < 0 || p.Timeouts.Write < 0 }

func (p *plan) longest() (most int) {
	for _, deeds := range p.Callers {
		most = max(most, len(deeds))
	}
	return most
}

// patience bounds a call without a deadline, from when the faults are over.
func (p *plan) patience() time.Duration {
	use := limitOf(p.Timeouts.Read, time.Minute, 0) + limitOf(p.Timeouts.Write, 10*time.Second, 0)
	dial := limitOf(p.Timeouts.Dial, 5*time.Second, 0) + limitOf(p.Timeouts.Handshake, 5*time.Second, 0) + limitOf(p.Timeouts.Stagger, 250*ms, 0)
	pause := 2*limitOf(p.Backoff.Max, 30*time.Second, 0) + 250*ms
	queue := time.Duration(len(p.Callers)) * 4 * 400 * ms
	return time.Duration(p.attempts()) * (use + time.Duration(p.Servers)*dial + pause + queue)
}

// recovery bounds how long a healed cluster may stay unusable.
func (p *plan) recovery() time.Duration {
	backoff := 2 * limitOf(p.Backoff.Max, 30*time.Second, 0)
	eject := limitOf(p.Outlier.MaxEject, 300*time.Second, 0)
	check := 3 * limitOf(p.Check.Interval, 2*time.Second, 0)
	return 10*time.Second + backoff + eject*12/10 + check + 30*time.Second
}

// budget bounds the runs after a run that had written something.
func (p *plan) budget(operations int, lasted time.Duration) int {
	percent, reserve := p.Percent, p.Reserve
	if percent < 0 {
		return math.MaxInt
	}
	if percent == 0 {
		percent = 20
	}
	if reserve == 0 {
		reserve = 10
	}
	windows := int(lasted/(10*time.Second)) + 2
	return operations*percent/100 + max(0, reserve)*10*windows
}
