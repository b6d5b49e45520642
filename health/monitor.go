package health

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Config says what is watched, and who is told.
type Config struct {
	Services map[string]Service // by name; at least one

	// Log gets a change of a service's verdict at info (healthy) or error, a check that
	// this host kept from being one at warn, and every check at debug. Nil discards.
	Log *slog.Logger

	// Observe gets every Result, in order for each service, and never under a lock; those
	// of different services may come at the same time. The verdict has changed if Since is
	// Checked. A slow one delays the results of its service.
	Observe func(name string, r Result)
}

// Service is one thing that is watched, and how.
type Service struct {
	Addr string // as holdfast.ParseEndpoint reads it: tcp://, tls://, unix:, udp://, srv:// or host:port

	// Kind is the probe as [ParseProbe] reads it; "" asks for a connection, and for TLS
	// where Addr is tls://. HTTP in it asks for the host of Addr, and TLS over tcp:// is done
	// with Config.TLS. A probe of your own goes into Config.Probe, without a Kind.
	Kind string

	// Config is that of the Cluster that makes the checks: Check, TLS, Timeouts, Dial,
	// Names and Socket count here. Log and Observe are taken by the Monitor; Outlier does
	// not apply. Check.Interval cannot be off.
	Config holdfast.Config
}

// Result is what is known of a service: its verdict, and its last check.
type Result struct {
	Healthy bool      // the verdict; of CheckAll, that the check passed
	Since   time.Time // when the verdict became what it is

	Checked  time.Time     // when the last check ended
	Response time.Duration // how long it took from dialing to the answer; 0 if it failed
	Err      error         // why it failed; nil if it passed

	Kind string // what was asked for: "connect", "tls", "http", "redis", "postgres", "exchange", "udp", or "probe"

	// Layer is where the last check ended, well or not: "resolve", "connect", "tls" or
	// "answer"; or "silence" for a UDP service that said nothing, which proves nothing.
	Layer string

	Rise, Fall int       // checks that passed, or failed, in a row
	Expires    time.Time // when the server's certificate does, the first of them; zero if not known
	Addrs, Up  int       // how many addresses the service has, and how many of them are healthy
}

// Monitor watches services. All methods are safe for concurrent use. It holds nothing
// that must be closed: what runs ends with Run or CheckAll.
type Monitor struct {
	cfg      Config
	services []*service // by name

	mu      sync.Mutex // guards the rest
	running bool
	results map[string]Result
}

// service is a Service with its texts understood.
type service struct {
	name, kind string
	addr       string
	timeout    time.Duration // of a check
	cfg        holdfast.Config
}

// New checks all that can be checked, and does no I/O.
func New(cfg Config) (*Monitor, error) {
	if len(cfg.Services) == 0 {
		return nil, errors.New("health: no service")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Monitor{cfg: cfg, results: map[string]Result{}}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Services)) {
		s, err := newService(name, cfg.Services[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("health: service %s: %w", name, err))
		}
		m.services = append(m.services, s)
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return m, nil
}

func newService(name string, in Service) (*service, error) {
	endpoint, err := holdfast.ParseEndpoint(in.Addr)
	if err != nil {
		return nil, err
	}
	s := &service{name: name, addr: in.Addr, kind: "connect", cfg: in.Config}
	s.cfg.TLS = unresumed(in.Config.TLS)
	switch {
	case in.Kind != "" && s.cfg.Probe != nil:
		return nil, errors.New("there are both a Kind and a Config.Probe, want one of them")
	case s.cfg.Probe != nil:
		s.kind = "probe"
	case in.Kind == "" && endpoint.TLS:
		s.kind = "tls"
	case in.Kind != "":
		if err := s.ask(in.Kind); err != nil {
			return nil, err
		}
	}
	switch datagrams := endpoint.Network == "udp"; {
	case datagrams && s.kind != "udp" && s.kind != "exchange" && s.kind != "probe":
		return nil, fmt.Errorf("kind %s over udp://: a UDP server says nothing unless asked, want the kind udp", s.kind)
	case !datagrams && endpoint.Network != "srv" && s.kind == "udp":
		return nil, fmt.Errorf("kind udp over %s: want udp://", in.Addr)
	}
	check := &s.cfg.Check
	if check.Interval < 0 {
		return nil, errors.New("checks cannot be off, as Check.Interval has it")
	}
	check.Timeout = cmp.Or(check.Timeout, min(time.Second, cmp.Or(check.Interval, time.Second)))
	s.timeout = check.Timeout
	s.cfg.Outlier.Consecutive = -1 // a node has no traffic but checks, and these have rules of their own
	return s, s.try()
}

// unresumed makes every check shake hands in full: a session that is resumed shows the
// certificate that it began with, though the server may have a new one.
func unresumed(cfg *tls.Config) *tls.Config {
	if cfg == nil {
		cfg = &tls.Config{}
	}
	cfg = cfg.Clone()
	cfg.SessionTicketsDisabled = true
	return cfg
}

// ask reads the kind and gives the probe what it needs of the service.
func (s *service) ask(kind string) error {
	p, name, err := parse(kind)
	if err != nil {
		return err
	}
	s.kind = name
	if over, ok := p.(TLS); ok {
		over.Config = s.cfg.TLS
		p = over
	}
	if p != nil {
		s.cfg.Probe = p.Probe
	}
	return nil
}

// try makes the service's Cluster for its complaints.
func (s *service) try() error {
	c, err := holdfast.New(holdfast.Static(s.addr), s.cfg)
	if err != nil {
		return err
	}
	return c.Close()
}

// Run checks every service, at once and then every Check.Interval, until ctx ends, and
// returns the cause of that. To run a Monitor twice at a time is a mistake, and panics.
func (m *Monitor) Run(ctx context.Context) error {
	m.begin()
	defer m.end()
	var wg sync.WaitGroup
	for _, s := range m.services {
		w := m.watch(s, func(r Result) { m.publish(s, r) })
		wg.Go(func() {
			<-ctx.Done()
			w.close()
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (m *Monitor) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running {
		panic("health: a Monitor runs already")
	}
	m.running = true
}

func (m *Monitor) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = false
}

// CheckAll checks every service once, all at the same time, and returns the results by
// name. A service whose check has not ended with ctx, or within twice its limit (a lookup
// has as much as the check), is not healthy. While Run is at work what it knows is left
// alone; otherwise Results and Healthy tell of this check too.
func (m *Monitor) CheckAll(ctx context.Context) map[string]Result {
	found := make([]Result, len(m.services))
	var wg sync.WaitGroup
	for i, s := range m.services {
		wg.Go(func() { found[i] = m.once(ctx, s) })
	}
	wg.Wait()
	results := map[string]Result{}
	for i, s := range m.services {
		results[s.name] = found[i]
	}
	return results
}

// once checks one service with a Cluster that lives as long as that takes.
func (m *Monitor) once(ctx context.Context, s *service) Result {
	decided := make(chan Result, 1)
	w := m.watch(s, func(r Result) {
		select {
		case decided <- r:
		default: // a later one
		}
	})
	r := w.first(ctx, decided)
	w.close()
	m.mu.Lock()
	running := m.running
	m.mu.Unlock()
	if !running {
		return m.publish(s, r)
	}
	r.Since = r.Checked
	return r
}

// publish keeps a result and tells of it.
func (m *Monitor) publish(s *service, r Result) Result {
	m.mu.Lock()
	old, known := m.results[s.name]
	changed := !known || old.Healthy != r.Healthy
	r.Since = old.Since
	if changed {
		r.Since = r.Checked
	}
	m.results[s.name] = r
	m.mu.Unlock()

	if changed {
		m.logChange(s, r)
	}
	if m.cfg.Observe != nil {
		m.cfg.Observe(s.name, r)
	}
	return r
}

func (m *Monitor) logChange(s *service, r Result) {
	attrs := []slog.Attr{slog.String("service", s.name), slog.String("kind", r.Kind), slog.String("layer", r.Layer)}
	if r.Healthy {
		attrs = append(attrs, slog.Duration("duration", r.Response))
		m.cfg.Log.LogAttrs(context.Background(), slog.LevelInfo, "service healthy", attrs...)
		return
	}
	m.cfg.Log.LogAttrs(context.Background(), slog.LevelError, "service unhealthy", append(attrs, errAttrs(r.Err)...)...)
}

func errAttrs(err error) []slog.Attr {
	if err == nil {
		return nil
	}
	return []slog.Attr{slog.String("class", holdfast.Classify(err).String()), slog.String("err", fmt.Sprintf("%.512s", err))}
}

// Results returns the last result of every service that has one, by name.
func (m *Monitor) Results() map[string]Result {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.results)
}

// Healthy returns the names of the services whose last result is healthy, in order.
func (m *Monitor) Healthy() []string {
	var names []string
	for name, r := range m.Results() {
		if r.Healthy {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
