package holdfast

import (
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/hist"
)

// State is what a node is good for.
type State uint8

const (
	StateIdle       State = iota // usable, no connection
	StateConnecting              // usable, a first connection is being made
	StateReady                   // usable, connected
	StateBackoff                 // a connect failed; not dialed before the delay is over
	StateEjected                 // failing while others do not, or failing its checks
	StateDraining                // removed or weighted off: no new use
)

var stateNames = [...]string{"idle", "connecting", "ready", "backoff", "ejected", "draining"}

func (s State) String() string               { return stateNames[s] }
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Node is one resolved address of an endpoint, with its connections, load and
// health. Nodes belong to their Cluster; all methods are safe for concurrent use.
type Node struct {
	c       *Cluster
	id      string
	network string // as net.Dial takes it
	addr    string // resolved
	name    string // the endpoint whose name the address came from; "" when it was configured
	v6      bool

	endpoint  atomic.Pointer[Endpoint] // weight and priority may change
	inflight  atomic.Int64             // leases not yet done
	readmit   atomic.Int64             // clock() when slow start began; 0 when not in it
	latency   ewma
	streak    [2]atomic.Int32 // failures since the last success: seen here, and told by the peer
	dialTimes hist.Histogram
	totals    nodeTotals

	// Of exchanges of datagrams.
	ports     ports
	roundTrip roundTrip
	heard     atomic.Int64 // clock() of the last reply
	suspect   atomic.Bool  // it refused, and nothing came from it since

	// What follows is guarded by c.mu.
	pool     nodePool
	conns    map[*Conn]struct{} // every open connection, pooled or not
	probes   int                // of which probes have their own
	state    State              // as last announced; derive says what it is
	lastErr  *Error             // of the last failed connect or exchange
	failures int                // connects failed since one was stable: the backoff's exponent
	failedAt time.Duration      // clock() of the last failed connect; 0 when none
	triedAt  time.Duration      // the same, or when PickDown last chose it
	retryAt  time.Duration      // clock() before which no connect is tried; 0 when none
	refill   []time.Duration    // clock() of the background connects that replace broken connections
	ejected  bool               // by its failures; check.down is by its checks
	ejectAt  time.Duration      // clock() of the ejection: the oldest is used first in panic
	until    time.Duration      // clock() when readmission is tried; 0 when checks decide
	ejects   int                // times ejected, less one for each healthy interval
	probing  bool               // for readmission
	sweeping bool
	draining bool
	removed  bool // by its source: forgotten once it is empty
	kept     int  // dials under way, and others for whom it must not be forgotten
	check    checkState
	swept    [2]uint64 // successes and failures at the last outlier sweep
}

type nodeTotals struct {
	dials, dialFailures, successes, failures, written, read atomic.Uint64
}

func (c *Cluster) newNode(e Endpoint) *Node {
	n := &Node{c: c, id: nodeID(e), network: e.Network, addr: e.Addr, v6: isV6(e.Addr), conns: map[*Conn]struct{}{}}
	n.endpoint.Store(&e)
	return n
}

// nodeID is what makes two resolved endpoints the same node. Hashing goes by it:
// another form of it would move every key of every user.
func nodeID(e Endpoint) string {
	id := e.Network + " " + e.Addr
	if e.TLS {
		id += " tls " + e.serverName()
	}
	return id
}

func isIP(host string) bool { return parseIP(host).IsValid() }

func isV6(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	return err == nil && parseIP(host).Is6()
}

// Endpoint returns the endpoint the node came from; its Addr is resolved.
func (n *Node) Endpoint() Endpoint { return *n.endpoint.Load() }

// Addr returns the resolved address that is dialed.
func (n *Node) Addr() string { return n.addr }

// InFlight returns how many leases of the node are not done: its load.
func (n *Node) InFlight() int { return int(n.inflight.Load()) }

// Latency returns the peak-sensitive moving average of what was reported.
func (n *Node) Latency() time.Duration { return n.latency.at(clock()) }

// State returns what the node is good for now.
func (n *Node) State() State {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.deriveLocked()
}

// String returns "name[address]:port" for a node that came from a name, else its
// address.
func (n *Node) String() string {
	e := n.Endpoint()
	host, _, _ := net.SplitHostPort(n.addr)
	if e.ServerName == "" || e.ServerName == host {
		return n.addr
	}
	_, port, _ := net.SplitHostPort(n.addr)
	return e.ServerName + "[" + host + "]:" + port
}

// Share is the node's part of the load relative to others: its weight, reduced
// while it starts slowly.
func (n *Node) Share() float64 {
	w := float64(n.endpoint.Load().weight())
	since := n.readmit.Load()
	if since == 0 {
		return w
	}
	return w * max(0.1, min(1, float64(clock()-time.Duration(since))/float64(n.c.cfg.Outlier.SlowStart)))
}

// deriveLocked says which state the facts amount to.
func (n *Node) deriveLocked() State {
	switch {
	case n.draining:
		return StateDraining
	case n.outLocked():
		return StateEjected
	case n.retryAt != 0 && n.pool.open == n.pool.dialing:
		return StateBackoff // with a pooled connection left it can still serve
	case len(n.conns) > n.probes:
		return StateReady
	case n.pool.dialing > 0:
		return StateConnecting
	}
	return StateIdle
}

// Usable reports whether a policy may choose a node in this state.
func (s State) Usable() bool { return s <= StateReady }

// changedLocked announces a new state, if there is one, and its cause. Whatever
// changes the facts calls it before unlocking.
func (n *Node) changedLocked(cause string, err error) {
	now := n.deriveLocked()
	if now == n.state {
		return
	}
	before := n.state
	n.state = now
	n.c.emitLocked(Event{Kind: EventState, Node: n, From: before, To: now, Cause: cause, Err: err})
	if before.Usable() != now.Usable() {
		n.c.outdatedLocked()
	}
}

// connectedLocked notes a connect that succeeded.
func (n *Node) connectedLocked() {
	n.retryAt = 0
	n.lastErr = nil
	n.changedLocked("connected", nil)
	n.c.pumpLocked(n) // for those who waited for the backoff to end
}

// connectFailedLocked notes a connect that failed, or a connection that broke
// before it was of any use, and starts the backoff.
func (n *Node) connectFailedLocked(err *Error) {
	n.lastErr = err
	n.failedAt = clock()
	n.triedAt = n.failedAt
	n.retryAt = n.failedAt + n.c.cfg.Backoff.delay(n.failures)
	n.failures++
	n.changedLocked("connect failed", err)
	n.c.outdatedInPanicLocked()
	n.c.wakeup()
}

// backingOff is why the node may not be dialed now.
func (n *Node) backingOff() error {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.retryAt == 0 {
		return nil
	}
	return n.downErrLocked()
}

// stableLocked notes that a connection stayed up long enough to trust the node.
func (n *Node) stableLocked() { n.failures = 0 }

// lostLocked notes that an established connection broke. Each background connect
// that replaces one waits a random moment of its own, so that connections that
// broke together, here or at many clients, do not come back together.
func (n *Node) lostLocked() {
	if len(n.refill) < n.c.cfg.Pool.MinIdle {
		n.refill = append(n.refill, clock()+time.Duration(rand.Int64N(int64(time.Second))))
	}
	n.c.wakeup()
}

// backoffOverLocked lets the node be dialed again.
func (n *Node) backoffOverLocked(cause string) {
	n.retryAt = 0
	n.changedLocked(cause, nil)
	n.c.outdatedInPanicLocked()
	n.c.pumpLocked(n)
}

// report takes the outcome of one use of the node. d < 0 means that there is no
// time to learn from.
func (n *Node) report(now, d time.Duration, err error) {
	class := ClassOther
	if has(err, reusable) {
		err = nil
	}
	if err != nil {
		if class = n.c.cfg.Retry.Classify(err); class.local() {
			return
		}
	}
	if d >= 0 {
		n.latency.observe(now, d, err != nil)
	}
	if err == nil {
		n.succeeded()
		return
	}
	n.totals.failures.Add(1)
	n.c.stats.errors[class].Add(1)
	n.c.failed(n, int(n.streak[class.origin()].Add(1)), err)
}

func (n *Node) succeeded() {
	n.totals.successes.Add(1)
	for i := range n.streak {
		if n.streak[i].Load() != 0 { // mostly it is: spare the cache line
			n.streak[i].Store(0)
		}
	}
}

// ewma is a peak-sensitive moving average (Finagle's Peak EWMA): a slower sample
// counts at once, faster ones take it down over tau. Readers may see the value of
// one moment with the stamp of the next; the estimate is off by one sample then,
// which the next one mends.
type ewma struct {
	mu    sync.Mutex // serializes writers
	value atomic.Uint64
	stamp atomic.Int64
}

const (
	ewmaTau  = 10 * time.Second // Finagle's decay time
	ewmaSeed = time.Second      // of a node nobody has used: tower's default
)

// at is the estimate, decayed to the moment it is read.
func (e *ewma) at(now time.Duration) time.Duration {
	stamp := e.stamp.Load()
	if stamp == 0 {
		return 0
	}
	age := float64(now - time.Duration(stamp))
	return time.Duration(math.Float64frombits(e.value.Load()) * math.Exp(-age/float64(ewmaTau)))
}

// observe adds a sample. A failure is never faster than what is known, so that a
// node that fails quickly does not look quick.
func (e *ewma) observe(now, sample time.Duration, failed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	stamp, est := e.stamp.Load(), math.Float64frombits(e.value.Load())
	s := float64(sample)
	if failed {
		s = max(s, est, float64(ewmaSeed))
	}
	if stamp != 0 && s < est {
		w := math.Exp(-float64(now-time.Duration(stamp)) / float64(ewmaTau))
		s = est*w + s*(1-w)
	}
	e.value.Store(math.Float64bits(s))
	e.stamp.Store(int64(now))
}

// downErrLocked says why the node cannot be used.
func (n *Node) downErrLocked() *Error {
	e := &Error{Phase: PhaseAcquire, Class: ClassNoEndpoint, Endpoint: n.Endpoint(), Node: n.String()}
	if n.lastErr == nil {
		e.Err = errors.New(n.deriveLocked().String())
		return e
	}
	e.Class, e.Err = n.lastErr.Class, n.lastErr
	return e
}
