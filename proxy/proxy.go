package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/spool"
	"github.com/holdfast-net/holdfast/serve"
)

// ErrClosed is what Serve returns after Shutdown or Close. It matches [net.ErrClosed].
var ErrClosed = fmt.Errorf("proxy: closed: %w", net.ErrClosed)

// Proxy passes connections on to backends. Make one with [New]. Methods may be called
// concurrently. Shutdown or Close ends it, for good; its Clusters are the caller's to
// close, afterwards.
type Proxy struct {
	set    atomic.Pointer[settings]
	gate   *serve.Gate
	server *serve.Server // of the connections that have goroutines
	log    *slog.Logger
	access *slog.Logger
	endLog func()
	loops  loops
	counts counters
	born   time.Time

	base    context.Context // ends when connections are cut
	cancel  context.CancelFunc
	adopted sync.WaitGroup // connections with goroutines that no server of ours counts
	guests  atomic.Int64   // how many those are

	closed chan struct{} // no more is accepted
	over   chan struct{} // nothing is left
	ending atomic.Int64  // clock() at which the drain is over; 0 while there is none
	tasks  sync.WaitGroup
	once   sync.Once // ends the tasks

	updating sync.Mutex // one Update at a time

	mu     sync.Mutex
	pairs  map[*pair]struct{}
	queues map[*holdfast.Cluster]*queue
	fronts int // listeners
}

// New returns a Proxy. It checks everything that can be checked, reads the files of
// TLS, and connects to nobody.
func New(cfg Config) (*Proxy, error) {
	set, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	p := &Proxy{born: time.Now(), closed: make(chan struct{}), over: make(chan struct{}), pairs: map[*pair]struct{}{}, queues: map[*holdfast.Cluster]*queue{}}
	p.base, p.cancel = context.WithCancel(context.Background())
	p.set.Store(set)
	var endLog, endAccess func(time.Duration)
	p.log, endLog = spool.New(cfg.Log)
	p.access, endAccess = spool.New(cfg.Access)
	p.endLog = func() { endLog(time.Second); endAccess(time.Second) }
	p.gate = &serve.Gate{Limits: set.Limits}
	p.server = p.newServer(set)
	if err := p.loops.open(p, set.Loops); err != nil {
		p.endLog()
		return nil, err
	}
	p.tasks.Go(p.watch)
	return p, nil
}

// newServer is the front of connections that have goroutines: their admission, PROXY
// headers and TLS are serve's.
func (p *Proxy) newServer(set *settings) *serve.Server {
	or := func(d time.Duration) time.Duration { // off, where the default would be another
		if d == 0 {
			return -1
		}
		return d
	}
	return &serve.Server{
		Handler: serve.HandlerFunc(p.serveConn),
		Gate:    p.gate,
		TLS:     set.TLS,
		Proxy:   set.Proxy,
		Socket:  set.Socket,
		Timeouts: serve.Timeouts{
			Handshake: or(set.limits.Handshake), Header: or(set.limits.Hello),
			Idle: -1, Read: -1, Write: -1, Lifetime: -1, // the relay has its own
		},
		Drain:   serve.Drain{Linger: -1},
		Observe: p.observe,
		Log:     set.Log,
	}
}

// observe counts those who came to the server and did not get as far as the relay.
func (p *Proxy) observe(e serve.Event) {
	switch e.Kind {
	case serve.Refused:
		p.counts.ends[Denied].Add(1)
	case serve.HeaderFailed, serve.HandshakeFailed:
		p.counts.ends[BadHello].Add(1)
	}
}

// clock is the time since the Proxy was made, and never 0.
func (p *Proxy) clock() time.Duration { return time.Since(p.born) + 1 }

// Serve accepts connections from ln and passes them on, until Shutdown or Close; it then
// returns [ErrClosed]. It may be called for several listeners. No error of an accept
// ends it unless ln is closed. It closes ln.
func (p *Proxy) Serve(ln net.Listener) error {
	select {
	case <-p.closed:
		ln.Close()
		return ErrClosed
	default:
	}
	p.mu.Lock()
	p.fronts++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.fronts--
		p.mu.Unlock()
	}()
	if !p.set.Load().terminates() {
		if f, ok := p.loops.front(ln); ok {
			return p.loops.serve(f)
		}
	}
	err := p.server.Serve(ln)
	if errors.Is(err, serve.ErrServerClosed) {
		return ErrClosed
	}
	return err
}

// Update puts another Config in force for the connections that come from now on. Those
// there are stay as they are. An error changes nothing. Loops and the logs stay, and so
// does what is done in front of connections with goroutines: TLS, PROXY headers before
// it, and their limits. That a file of TLS is new is noticed without.
func (p *Proxy) Update(cfg Config) error {
	p.updating.Lock()
	defer p.updating.Unlock()
	set, err := newSettings(cfg)
	if err != nil {
		return err
	}
	if now := p.set.Load(); !reflect.DeepEqual(now.TLS, set.TLS) || set.terminates() && !reflect.DeepEqual(now.Proxy, set.Proxy) {
		return errors.New("proxy: TLS, and PROXY headers before it, cannot be changed while connections are accepted")
	}
	p.gate.Update(set.Limits)
	p.set.Store(set)
	p.loops.tune(set.Socket)
	return nil
}

// TicketKeys sets the master of the TLS session ticket keys, newest first, as restart
// gives it: so sessions resume at the successor.
func (p *Proxy) TicketKeys(keys [][32]byte) { p.server.TicketKeys(keys) }

// Shutdown stops accepting and lets connections end. They are ended by the proxy, when
// they are quiet, at moments spread over the time there is until ctx ends, so that their
// clients do not come back all at once; without a deadline they end by themselves. What
// is left when ctx ends is cut, and counted in the error. Nothing runs any more when it
// returns.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.stopAccepting()
	p.drain(ctx)
	// The server would close what is left, and its clients would take that for the end:
	// it gets a moment more, in which they are reset.
	lenient, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	cut := 0
	cutting := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cutting)
		cut = p.cutPairs()
		time.AfterFunc(resetTime, func() { cancel(context.Cause(ctx)) })
	})
	var both sync.WaitGroup
	var errs [3]error
	both.Go(func() { errs[0] = p.server.Shutdown(lenient) })
	both.Go(func() { errs[1] = p.loops.shutdown(ctx) })
	both.Wait()
	p.adopted.Wait()
	if !stop() {
		if <-cutting; cut > 0 {
			errs[2] = cutError(cut, context.Cause(ctx))
		}
	}
	p.end()
	return errors.Join(errs[:]...)
}

// resetTime is how long goroutines may take to reset what they relay.
const resetTime = 100 * time.Millisecond

// Close ends the Proxy at once: connections are reset.
func (p *Proxy) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p.Shutdown(ctx)
	return nil
}

func (p *Proxy) stopAccepting() {
	p.mu.Lock()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	p.mu.Unlock()
	p.loops.stopAccepting()
}

// end waits for the tasks of the Proxy itself.
func (p *Proxy) end() {
	p.once.Do(func() {
		close(p.over)
		p.tasks.Wait()
		p.cancel()
		p.loops.close()
		p.endLog()
	})
}

// drain says until when connections end, and gives each its moment.
func (p *Proxy) drain(ctx context.Context) {
	end, ok := ctx.Deadline()
	if !ok {
		return
	}
	p.ending.CompareAndSwap(0, int64(p.clock()+time.Until(end)))
	for _, pr := range p.allPairs() {
		pr.endWithin(time.Until(end))
	}
}

func (p *Proxy) allPairs() []*pair {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Keys(p.pairs))
}

// cutPairs resets all pairs, and those to come.
func (p *Proxy) cutPairs() int {
	p.cancel()
	all := p.allPairs()
	for _, pr := range all {
		pr.cut()
	}
	return len(all)
}

// guarded calls what has functions of the user's in it: Key, and the policy of a Cluster.
// They run where a panic would end the process; it is the end of one connection instead.
func (p *Proxy) guarded(f func()) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			p.log.Error("proxy: a panic ends a connection", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	f()
	return true
}

// every is how often the Proxy looks after what no event tells it.
const every = 100 * time.Millisecond

// watch sees to the connections of backends that went down, and to queues whose places
// became free without a connection ending here.
func (p *Proxy) watch() {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-p.over:
			return
		case <-tick.C:
		}
		p.wakeQueues()
		p.endWhatIsDown()
	}
}

// endWhatIsDown applies Backends.Down.
func (p *Proxy) endWhatIsDown() {
	down := p.set.Load().Backends.Down
	if down == Keep {
		return
	}
	gone := downNodes{}
	for _, pr := range p.allPairs() {
		if gone.has(pr.lease.Node()) {
			pr.down(down)
		}
	}
	p.loops.endWhatIsDown(down)
}

// downNodes remembers which nodes are down, for one look at all connections.
type downNodes map[*holdfast.Node]bool

func (d downNodes) has(n *holdfast.Node) bool {
	if n == nil {
		return false // of a former generation, and not known to this one
	}
	down, known := d[n]
	if !known {
		s := n.State()
		down = !s.Usable() && s != holdfast.StateDraining
		d[n] = down
	}
	return down
}

// cutError says what could not end in time.
func cutError(n int, cause error) error {
	return fmt.Errorf("proxy: %d connections were cut: %w", n, cause)
}
