package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
)

// watch is a service under observation: a Cluster whose checks are its only traffic, and
// what its events tell. Nodes, unnamed and complete belong to observe, of which the Cluster
// makes one call at a time.
type watch struct {
	m       *Monitor
	s       *service
	tell    func(Result)
	cluster *holdfast.Cluster
	closed  atomic.Bool

	nodes    map[*holdfast.Node]Result
	unnamed  Result // the failures to find an address, while there is none
	complete bool   // every address had a check

	mu    sync.Mutex // guards the rest
	notes map[*holdfast.Node]note
	local error // this host's fault, why the last check was no verdict
}

// watch begins to check a service; tell gets every result from the first that is about
// all its addresses, or about one that is well.
func (m *Monitor) watch(s *service, tell func(Result)) *watch {
	w := &watch{m: m, s: s, tell: tell, nodes: map[*holdfast.Node]Result{}, notes: map[*holdfast.Node]note{}}
	cfg := s.cfg
	cfg.Log, cfg.Observe, cfg.Probe = nil, w.observe, w.probe
	c, err := holdfast.New(holdfast.Static(s.addr), cfg)
	if err != nil {
		panic(err) // New has tried
	}
	w.cluster = c
	c.Refresh(0) // its first use, with which the checks begin
	return w
}

func (w *watch) close() {
	w.closed.Store(true) // checks that Close cuts are no news
	w.cluster.Close()
}

// probe is the service's own, with notes taken of how far it came.
func (w *watch) probe(ctx context.Context, conn net.Conn) error {
	n := note{layer: "connect"}
	if state, ok := stateOf(conn); ok {
		n.layer, n.expires = "tls", expiry(state)
	}
	defer func() { // also when the probe panics, which the Cluster makes an error
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notes[conn.(*holdfast.Conn).Node()] = n
	}()
	if w.s.cfg.Probe == nil {
		return nil
	}
	n.layer = "answer"
	return w.s.cfg.Probe(context.WithValue(ctx, noteKey{}, &n), conn)
}

func (w *watch) observe(e holdfast.Event) {
	switch {
	case w.closed.Load():
	case e.Kind == holdfast.EventCheck:
		w.checked(e)
	case e.Kind == holdfast.EventState && e.To == holdfast.StateDraining:
		delete(w.nodes, e.Node)
		w.update()
	case e.Kind == holdfast.EventResolve && e.Err != nil && w.addrs() == 0:
		w.unnamed = w.after(w.unnamed, e, note{layer: "resolve"})
		w.logCheck(e)
		w.tell(w.unnamed)
	}
}

func (w *watch) checked(e holdfast.Event) {
	w.mu.Lock()
	n, probed := w.notes[e.Node]
	delete(w.notes, e.Node)
	w.mu.Unlock()
	w.logCheck(e)
	state := e.Node.State()
	switch {
	case state == holdfast.StateDraining: // a check that was under way when the name lost the address
		return
	case holdfast.Classify(e.Err) == holdfast.ClassResource:
		w.mu.Lock()
		w.local = e.Err
		w.mu.Unlock()
		return
	case !probed:
		n.layer = layerOf(e.Err, e.Node)
	}
	r := w.after(w.nodes[e.Node], e, n)
	r.Healthy = state != holdfast.StateEjected
	w.nodes[e.Node] = r
	w.update()
}

// layerOf says what failed before the probe could begin.
func layerOf(err error, n *holdfast.Node) string {
	var e *holdfast.Error
	switch {
	case !errors.As(err, &e) || e.Phase != holdfast.PhaseHandshake:
		return "connect"
	case n.Endpoint().TLS:
		return "tls"
	}
	return "answer" // Config.Handshake is the user's
}

// after is a result with one more check.
func (w *watch) after(r Result, e holdfast.Event, n note) Result {
	r.Checked, r.Kind, r.Layer, r.Err = e.Time, w.s.kind, n.layer, e.Err
	if !n.expires.IsZero() {
		r.Expires = n.expires
	}
	if e.Err != nil {
		r.Response, r.Rise, r.Fall = 0, 0, r.Fall+1
	} else {
		r.Response, r.Rise, r.Fall = e.Duration, r.Rise+1, 0
	}
	return r
}

// update tells the result, once there is one.
func (w *watch) update() {
	if len(w.nodes) == 0 {
		return
	}
	r := w.whole()
	w.complete = w.complete || r.Healthy || len(w.nodes) >= w.addrs()
	if w.complete {
		w.tell(r)
	}
}

// whole makes one result of all addresses: that of the best.
func (w *watch) whole() Result {
	var best Result
	var expires time.Time
	up, first := 0, true
	for _, r := range w.nodes {
		if r.Healthy {
			up++
		}
		if !r.Expires.IsZero() && (expires.IsZero() || r.Expires.Before(expires)) {
			expires = r.Expires
		}
		if first || better(r, best) {
			best, first = r, false
		}
	}
	best.Addrs, best.Up, best.Expires = len(w.nodes), up, expires
	return best
}

// better reports whether a says more about the service than b.
func better(a, b Result) bool {
	switch {
	case a.Healthy != b.Healthy:
		return a.Healthy
	case (a.Err == nil) != (b.Err == nil):
		return a.Err == nil
	case a.Err == nil:
		return a.Response < b.Response
	}
	return a.Checked.After(b.Checked)
}

// addrs is how many addresses the service has now.
func (w *watch) addrs() (n int) {
	for _, node := range w.cluster.Stats().Nodes {
		if node.State != holdfast.StateDraining {
			n++
		}
	}
	return n
}

// logCheck tells of every check; of those that this host prevented not only at debug, for
// then nobody is watching.
func (w *watch) logCheck(e holdfast.Event) {
	level, text := slog.LevelDebug, "service checked"
	if e.Err != nil && holdfast.Classify(e.Err) == holdfast.ClassResource {
		level, text = slog.LevelWarn, "service not checked"
	}
	log := w.m.cfg.Log
	if !log.Enabled(context.Background(), level) {
		return
	}
	attrs := []slog.Attr{slog.String("service", w.s.name)}
	if e.Node != nil {
		attrs = append(attrs, slog.String("addr", e.Node.Addr()), slog.Duration("duration", e.Duration))
	}
	log.LogAttrs(context.Background(), level, text, append(attrs, errAttrs(e.Err)...)...)
}

// late is how much a timer may be over before it tells more about this process, which
// was stopped, than about the time it was set for.
const late = 500 * time.Millisecond

// first waits for the first result.
func (w *watch) first(ctx context.Context, decided <-chan Result) Result {
	for {
		limit := 2 * w.s.timeout // a lookup and a check; negative, and so never, if checks have no limit
		end := time.Now().Add(limit)
		var timeout <-chan time.Time
		if limit > 0 {
			timeout = time.After(limit)
		}
		select {
		case r := <-decided:
			return r
		case <-ctx.Done():
			return w.undecided(context.Cause(ctx))
		case <-timeout:
			if time.Since(end) < late {
				return w.undecided(fmt.Errorf("health: no result within %v: %w", limit, context.DeadlineExceeded))
			}
		}
	}
}

// undecided is the result when there is none.
func (w *watch) undecided(err error) Result {
	w.mu.Lock()
	if w.local != nil {
		err = w.local
	}
	w.mu.Unlock()
	layer, addrs := "resolve", w.addrs()
	if addrs > 0 {
		layer = "connect"
	}
	return Result{Checked: time.Now(), Kind: w.s.kind, Layer: layer, Err: err, Fall: 1, Addrs: addrs}
}
