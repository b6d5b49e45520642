package holdfast

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"github.com/holdfast-net/holdfast/internal/backoff"
	"github.com/holdfast-net/holdfast/internal/sockopt"
)

// Config says how a [Cluster] behaves. Its zero value is a good client: every
// wait bounded, every buffer limited, TLS verified. In every field 0 means the
// documented default, negative means off, nil means the standard library's way.
type Config struct {
	// Choosing.
	Picker Picker // nil means LeastLoaded()

	// Connecting.
	TLS *tls.Config // for tls:// endpoints; nil verifies with the system's roots

	// Dial replaces the network: SOCKS, HTTP CONNECT, an in-memory network.
	// With it names are passed on unresolved, and an endpoint is one node,
	// unless Names.Lookup is set too.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// Handshake runs on every new connection after TLS and before its first use:
	// authentication, a role check, Conn.Session. Any error means "not this
	// node" and moves on to the next; one wrapped by [Permanent] ends the whole.
	Handshake func(ctx context.Context, conn *Conn) error

	Timeouts Timeouts
	Backoff  Backoff // between connects to one node that fails
	Socket   Socket
	Names    Names

	// Using.
	Retry     Retry
	Pool      Pool
	Datagrams Datagrams // of Exchange and Send, over udp:// endpoints

	// Health. Probe is run on a connection of its own after Handshake: by active
	// checks, by readmission of an ejected node, and on idle connections when
	// Pool.Ping is set. Nil means that connecting and Handshake are proof enough.
	Probe   func(ctx context.Context, conn net.Conn) error
	Check   Check
	Outlier Outlier

	// Seeing. Log gets state changes: info = connected and node states, warn =
	// retries and failures, debug = reads and writes with bytes and durations.
	// Payloads are never logged unless Payload is set; what it returns for the
	// bytes read or written is logged below debug, at slog.LevelDebug-4.
	Log     *slog.Logger
	Payload func(p []byte) []byte

	// Observe gets every event, in order, one at a time, and never under a lock.
	// It must not call Close or Shutdown. While it is slow, events queue up to
	// 4096; further ones are dropped and counted in Stats.
	Observe func(Event)
}

// Timeouts bound each step. The context of a call bounds the whole.
type Timeouts struct {
	Dial      time.Duration // one connect attempt; 0 means 5 s
	Handshake time.Duration // TLS and Handshake together, absolute; 0 means 5 s
	Read      time.Duration // each Read in Do; 0 means 60 s
	Write     time.Duration // each Write in Do; 0 means 10 s

	// Stagger is the head start of one connect attempt over the next, RFC 8305's
	// connection attempt delay; 0 means 250 ms, negative tries one after another.
	Stagger time.Duration
}

// Backoff is the delay before a failed node is dialed again: Base·Multiplierⁿ up
// to Max, each delay spread by ±Jitter, the first one too. n goes back to 0 only
// when a connection stayed up for StableAfter, so a server that accepts and then
// closes does not look healthy again and again.
//
// gRPC's schedule is {Base: time.Second, Multiplier: 1.6, Jitter: 0.2, Max:
// 2 * time.Minute}. Full jitter over b is {Base: b/2, Multiplier: 2, Jitter: 1}.
// A fixed interval is {Base: d, Multiplier: 1, Jitter: -1}.
type Backoff struct {
	Base        time.Duration // 0 means 200 ms
	Max         time.Duration // before jitter; 0 means 30 s
	Multiplier  float64       // 0 means 1.6
	Jitter      float64       // share of the delay, 0 to 1; 0 means 0.2
	StableAfter time.Duration // 0 means 10 s
}

// Socket holds the options of TCP sockets.
type Socket struct {
	// KeepAlive probes idle connections; its zero fields mean 15 s idle, 5 s
	// between probes, 3 probes. Enable false with all other fields zero still
	// means on; a negative Idle turns it off.
	KeepAlive net.KeepAliveConfig

	// UserTimeout bounds how long written data may stay unacknowledged
	// (TCP_USER_TIMEOUT, RFC 5482, Linux); 0 means 30 s. It may not be shorter
	// than the keepalive's whole span, else one lost probe would kill.
	UserTimeout time.Duration

	RecvBuf, SendBuf int  // bytes; 0 leaves them to the kernel
	Nagle            bool // true delays small writes; Go's default sends at once
}

// Names says how names become addresses.
type Names struct {
	// Refresh is how often a name is looked up again, ±20 %; 0 means 30 s,
	// negative means only when nodes fail. A shorter TTL is honoured down to 5 s.
	Refresh time.Duration

	// Lookup turns an endpoint whose Addr is a name into endpoints whose Addr is
	// an address, and says how long that holds (0: unknown). Nil means DNS: A and
	// AAAA for hosts, SRV for srv://. A failed or empty answer keeps the last,
	// and so does one address family of a host when the other has an answer.
	Lookup func(ctx context.Context, e Endpoint) ([]Endpoint, time.Duration, error)
}

// Retry says when Do runs an operation again.
type Retry struct {
	Attempts int           // in all; 0 means 3, negative means 1
	PerTry   time.Duration // bounds one attempt; 0 leaves it to the context

	// Backoff is slept before an attempt, except before the first failover with
	// nothing written; the zero value is full jitter over 25 ms, 50 ms … 250 ms.
	Backoff Backoff

	// Budget bounds retries to a share of requests; nil means one of this
	// Cluster's own. One Budget may serve several Clusters.
	Budget *Budget

	// Classify replaces [Classify], which it may call.
	Classify func(error) Class
}

// Pool bounds the pooled connections of Do and Acquire. Connections from
// DialContext are the caller's to count.
type Pool struct {
	Max      int // per node; 0 means 4 × GOMAXPROCS
	MinIdle  int // kept ready per node, in the background
	MaxDials int // at once per node; 0 means 2
	Total    int // over all nodes; 0 means 1024
	Waiters  int // callers waiting over all nodes; 0 means 1024, negative means none wait

	MaxIdleTime time.Duration // 0 means 5 min
	MaxLifetime time.Duration // −10 % jitter; 0 means 1 h

	// CheckIdle is how long a connection may lie unused before it is polled (one
	// system call, no round trip) when taken again, so that an end or bytes nobody
	// asked for are found before it is used; 0 means 1 ms, negative never. One that
	// lay shorter, or goes straight to who waits for it, is used as it is.
	CheckIdle time.Duration

	// Ping runs Config.Probe on connections idle for so long; 0 means never.
	Ping time.Duration

	// WaitTarget keeps the queue for connections short in an overload: when every
	// wait within 2 s was longer than this, whoever has waited twice as long gets
	// ErrPoolExhausted, until one wait was short again. It measures the wait for a
	// connection, not for a dial nor for a reply. 0 and negative mean off: callers
	// wait as long as their contexts let them. The rule is CoDel (RFC 8289), the
	// 2 s are those of Elixir's DBConnection, whose target is 50 ms.
	WaitTarget time.Duration
}

// Check schedules active checks of every node. They are off while both Interval
// and Config.Probe are zero. The first check after start decides at once. One that this
// host was too late for, or had no files or ports for, is no verdict (ClassResource).
type Check struct {
	Interval   time.Duration // ±10 %; 0 means 2 s
	Timeout    time.Duration // 0 means 1 s or Interval, the shorter
	Fast       time.Duration // interval while a verdict is changing; 0 means Interval/4
	Rise, Fall int           // consecutive results that change the verdict; 0 means 2 and 3
}

// Outlier ejects nodes that fail while others do not. The numbers are Envoy's
// outlier detection and gRPC's A50, except that the cap is computed after the
// ejection, so that it can never empty the set: at least one node may be ejected,
// and the last one never is.
type Outlier struct {
	Consecutive    int // failures in a row; 0 means 5
	SuccessRate    int // standard deviations × 1000 below the mean; 0 means 1900
	FailurePercent int // of an interval's calls; 0 means off (Envoy enforces 0 % of it too)
	MaxPercent     int // of nodes ejected; 0 means 10
	PanicPercent   int // fewer usable than this: ejected ones are used too; 0 means 50

	Interval  time.Duration // of the two statistical rules; 0 means 10 s
	Eject     time.Duration // × times ejected, +10 % jitter; 0 means 30 s
	MaxEject  time.Duration // 0 means 300 s
	SlowStart time.Duration // a readmitted node's share grows over this; 0 means off
}

// or returns the default when v is zero, and 0 when v is negative: off.
func or[T int | time.Duration | float64](v, def T) T {
	switch {
	case v == 0:
		return def
	case v < 0:
		return 0
	}
	return v
}

// resolved returns the configuration with every default filled in, or why it
// cannot work. After it, 0 means off.
func (cfg Config) resolved() (Config, error) {
	if cfg.Picker == nil {
		cfg.Picker = LeastLoaded()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Retry.Classify == nil {
		cfg.Retry.Classify = Classify
	}
	cfg.Timeouts.resolve()
	cfg.Backoff.resolve()
	cfg.Retry.resolve()
	cfg.Pool.resolve()
	cfg.Datagrams.resolve()
	cfg.Check.resolve(cfg.Probe != nil)
	cfg.Outlier.resolve()
	cfg.Names.Refresh = or(cfg.Names.Refresh, 30*time.Second)
	return cfg, errors.Join(cfg.Socket.resolve(), cfg.check())
}

func (t *Timeouts) resolve() {
	t.Dial = or(t.Dial, 5*time.Second)
	t.Handshake = or(t.Handshake, 5*time.Second)
	t.Read = or(t.Read, 60*time.Second)
	t.Write = or(t.Write, 10*time.Second)
	t.Stagger = or(t.Stagger, 250*time.Millisecond)
}

// least is what a caller must give a node before it may be blamed for not connecting.
func (t *Timeouts) least() time.Duration { return cmp.Or(t.Dial, never) }

func (b *Backoff) resolve() {
	b.Base = or(b.Base, 200*time.Millisecond)
	b.Max = or(b.Max, 30*time.Second)
	b.Multiplier = or(b.Multiplier, 1.6)
	b.Jitter = or(b.Jitter, 0.2)
	b.StableAfter = or(b.StableAfter, 10*time.Second)
}

func (b Backoff) delay(n int) time.Duration {
	return backoff.Policy{Base: b.Base, Max: b.Max, Multiplier: b.Multiplier, Jitter: b.Jitter}.Delay(n)
}

func (r *Retry) resolve() {
	r.Attempts = max(1, or(r.Attempts, 3))
	r.PerTry = or(r.PerTry, 0)
	if r.Backoff == (Backoff{}) {
		r.Backoff = Backoff{Base: 12500 * time.Microsecond, Max: 125 * time.Millisecond, Multiplier: 2, Jitter: 1}
	}
	r.Backoff.resolve()
	if r.Budget == nil {
		r.Budget = &Budget{}
	}
}

func (p *Pool) resolve() {
	p.Max = or(p.Max, 4*runtime.GOMAXPROCS(0))
	p.MinIdle = or(p.MinIdle, 0)
	p.MaxDials = max(1, or(p.MaxDials, 2))
	p.Total = or(p.Total, 1024)
	p.Waiters = or(p.Waiters, 1024)
	p.MaxIdleTime = or(p.MaxIdleTime, 5*time.Minute)
	p.MaxLifetime = or(p.MaxLifetime, time.Hour)
	p.Ping = or(p.Ping, 0)
	p.WaitTarget = or(p.WaitTarget, 0)
	if p.CheckIdle == 0 {
		p.CheckIdle = time.Millisecond // negative stays: it means never
	}
}

func (k *Check) resolve(probe bool) {
	if k.Interval == 0 && !probe {
		k.Interval = -1
	}
	k.Interval = or(k.Interval, 2*time.Second)
	k.Timeout = or(k.Timeout, min(time.Second, cmp.Or(k.Interval, time.Second)))
	k.Fast = or(k.Fast, k.Interval/4)
	k.Rise = max(1, or(k.Rise, 2))
	k.Fall = max(1, or(k.Fall, 3))
}

func (o *Outlier) resolve() {
	o.Consecutive = or(o.Consecutive, 5)
	o.SuccessRate = or(o.SuccessRate, 1900)
	o.FailurePercent = or(o.FailurePercent, 0)
	o.MaxPercent = or(o.MaxPercent, 10)
	o.PanicPercent = or(o.PanicPercent, 50)
	o.Interval = or(o.Interval, 10*time.Second)
	o.Eject = or(o.Eject, 30*time.Second)
	o.MaxEject = or(o.MaxEject, 300*time.Second)
	o.SlowStart = or(o.SlowStart, 0)
}

func (s *Socket) resolve() error {
	k := &s.KeepAlive
	if k.Enable = k.Idle >= 0; k.Enable {
		k.Idle = or(k.Idle, 15*time.Second)
		k.Interval = or(k.Interval, 5*time.Second)
		k.Count = or(k.Count, 3)
	}
	s.UserTimeout = or(s.UserTimeout, 30*time.Second)
	span := k.Idle + k.Interval*time.Duration(k.Count)
	if k.Enable && s.UserTimeout > 0 && s.UserTimeout < span {
		return fmt.Errorf("holdfast: Socket.UserTimeout %v is shorter than the keepalive's span of %v", s.UserTimeout, span)
	}
	return nil
}

func (s Socket) options() sockopt.Options {
	return sockopt.Options{KeepAlive: s.KeepAlive, UserTimeout: s.UserTimeout, RecvBuf: s.RecvBuf, SendBuf: s.SendBuf, Nagle: s.Nagle}
}

// check finds what no default can mend.
func (cfg *Config) check() error {
	var errs []error
	bad := func(wrong bool, what string) {
		if wrong {
			errs = append(errs, errors.New("holdfast: "+what))
		}
	}
	p := cfg.Pool
	bad(cfg.Datagrams.SetID != nil && cfg.Datagrams.ID == nil, "Datagrams.SetID needs Datagrams.ID")
	bad(p.Max == 0, "Pool.Max must allow a connection")
	bad(p.Total == 0, "Pool.Total must allow a connection")
	bad(p.MinIdle > p.Max, "Pool.MinIdle is more than Pool.Max")
	bad(cfg.Backoff.Jitter > 1 || cfg.Retry.Backoff.Jitter > 1, "Backoff.Jitter is above 1")
	bad(cfg.Outlier.MaxPercent > 100 || cfg.Outlier.PanicPercent > 100, "Outlier percentages go to 100")
	bad(cfg.Outlier.FailurePercent > 100, "Outlier.FailurePercent goes to 100")
	bad(cfg.TLS != nil && cfg.TLS.MaxVersion != 0 && cfg.TLS.MaxVersion < tls.VersionTLS12, "TLS below 1.2 is not spoken")
	return errors.Join(errs...)
}
