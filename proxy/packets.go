package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/sockopt"
	"github.com/holdfast-net/holdfast/internal/spool"
	"github.com/holdfast-net/holdfast/serve"
)

// PacketConfig says where datagrams go, and what bounds their sessions. In every field 0
// is the documented default, negative is off.
type PacketConfig struct {
	// Cluster is where datagrams go: to its udp:// nodes.
	Cluster *holdfast.Cluster

	// Key is what policies that hash choose by: nil is ByIP.
	Key func(Client) uint64

	// Limits are those of sessions. MaxConns 0 is 10,000, or half of the files that may be
	// open, less 200, if that is less; MaxPerIP 0 is 256. Rates are of new sessions. What is
	// over a limit is dropped, and never waits.
	Limits  serve.Limits
	PerNode int  // sessions of one node at once: no limit
	Full    Full // who makes room when there are MaxConns

	// Idle is for how long a session stays in which no datagram comes, from either side,
	// to a tenth of a second: 60 s.
	Idle time.Duration

	// Requests is how many datagrams of a client go to one node, before another is chosen:
	// 1 balances each by itself. 0 is all of a session, as long as the node is well.
	Requests int

	// Responses is how many datagrams answer each of a client's: a session ends when none
	// is missing, at once. 1 suits DNS. 0 is unknown, and negative is none at all.
	Responses int

	// Amplification is how many bytes a client may be sent for each of its own, until it
	// was heard after a reply: no limit, for only the protocol knows what is too much. It
	// matters if the backends answer anybody; for DNS 50 is above what is needed.
	Amplification float64

	// Proxy is whose datagrams begin with a PROXY header. Anybody can forge the source of
	// one: it is for networks in which nobody does.
	Proxy  serve.Proxy
	Header bool // begin each datagram to a backend with a PROXY header, of version 2

	Socket serve.PacketSocket // in front

	Log    *slog.Logger // nil discards; what is too slow to take it loses records, and says so
	Access *slog.Logger // one record for each session that ended; nil is none
}

// Full is what happens to a new session when there is no room.
type Full int

const (
	// EvictUnassured has it take the place of the session that is idle for longest among
	// those whose client was not heard again after a reply: so a flood of forged addresses
	// drives out itself, and nobody who is served. If there is none it is dropped. Linux's
	// connection tracking does the same.
	EvictUnassured Full = iota

	DropNew     // it is dropped
	EvictIdlest // it takes the place of the session that is idle for longest
)

// packetSettings are a PacketConfig in force.
type packetSettings struct {
	PacketConfig
	idle time.Duration // 0 is for ever
}

const (
	maxSessions      = 10_000
	maxSessionsPerIP = 256
)

func newPacketSettings(cfg PacketConfig) (*packetSettings, error) {
	switch {
	case cfg.Cluster == nil:
		return nil, errors.New("proxy: no Cluster: nowhere to go")
	case cfg.Full < EvictUnassured || cfg.Full > EvictIdlest:
		return nil, fmt.Errorf("proxy: there is no policy Full(%d)", cfg.Full)
	case cfg.Proxy.Version == 1:
		return nil, errors.New("proxy: PROXY version 1 has no datagrams")
	}
	s := &packetSettings{PacketConfig: cfg, idle: max(cmp.Or(cfg.Idle, time.Minute), 0)}
	if s.Key == nil {
		s.Key = ByIP
	}
	if s.Limits.MaxConns == 0 {
		s.Limits.MaxConns = max(min(maxSessions, (sockopt.MaxFiles()-spareFiles)/2), 1)
	}
	s.Limits.MaxPerIP = cmp.Or(s.Limits.MaxPerIP, maxSessionsPerIP)
	s.Limits.Over = serve.Reject
	return s, nil
}

// gated are the limits but for MaxConns: by that, somebody may have to make room.
func (s *packetSettings) gated() serve.Limits {
	l := s.Limits
	l.MaxConns = -1
	return l
}

// readsHeader reports whether any peer's word about clients is taken.
func (s *packetSettings) readsHeader() bool { return len(s.Proxy.Trusted) > 0 }

// sessionless reports whether datagrams need no session: each goes to a node of its own,
// and nothing comes back.
func (s *packetSettings) sessionless() bool { return s.Requests == 1 && s.Responses < 0 }

// Packets passes datagrams on to backends, and their replies back, as a NAT does: what
// comes from one address and port is a session, with a socket of its own towards one
// node, until nothing has come for a while.
//
//	p, err := proxy.NewPackets(proxy.PacketConfig{Cluster: resolvers, Responses: 1})
//	…
//	err = restart.Run(ctx, restart.Config{}, restart.BindPacket(p, "udp://:53"))
//
// Make one with [NewPackets]. Methods may be called concurrently. Shutdown or Close ends
// it, for good; its Cluster is the caller's to close, afterwards.
//
// A node is chosen as for a connection. That it is silent proves nothing; it is down when
// it refuses (ICMP), or fails its checks. A session then goes on at another, from the
// next datagram on, and at once with the first one if no reply has ever come. When all
// are down, and some are chosen all the same, sessions stay where they are. A node that is
// drained or was removed keeps its sessions for as long as it answers within a second.
//
// Under restart.Run sessions pass to the successor with their sockets: backends go on
// talking to the same address and port, and what arrives meanwhile waits.
//
// One socket is read and answered by one goroutine, in batches, on Linux; more
// processors are used by more sockets, such as those of [serve.ListenShards].
type Packets struct {
	set    atomic.Pointer[packetSettings]
	gate   *serve.Gate
	log    *slog.Logger
	access *slog.Logger
	endLog func()
	born   time.Time
	counts packetCounters

	base   context.Context // ends when sessions are cut
	cancel context.CancelFunc
	open   atomic.Int64 // sessions, of all hubs
	ending atomic.Bool  // sessions end when they are quiet, and none begins
	leaves atomic.Bool  // the successor reads the sockets
	once   sync.Once    // ends the logs

	handing sync.WaitGroup

	own addr.Own // to know our own datagrams by

	mu     sync.Mutex
	closed bool
	hubs   []*hub
	fronts []netip.AddrPort // what sockets are bound to; replaced, never changed
}

// NewPackets returns a Packets. It connects to nobody.
func NewPackets(cfg PacketConfig) (*Packets, error) {
	set, err := newPacketSettings(cfg)
	if err != nil {
		return nil, err
	}
	p := &Packets{born: time.Now(), gate: &serve.Gate{Limits: set.gated()}}
	p.set.Store(set)
	p.base, p.cancel = context.WithCancel(context.Background())
	var endLog, endAccess func(time.Duration)
	p.log, endLog = spool.New(cfg.Log)
	p.access, endAccess = spool.New(cfg.Access)
	p.endLog = func() { endLog(time.Second); endAccess(time.Second) }
	return p, nil
}

// Update puts another configuration in force, for the sessions that come from now on.
// Those there are stay as they are, but for Idle. An error changes nothing. The sockets
// and the logs stay.
func (p *Packets) Update(cfg PacketConfig) error {
	set, err := newPacketSettings(cfg)
	if err != nil {
		return err
	}
	p.gate.Update(set.gated())
	p.set.Store(set)
	for _, h := range p.all() {
		h.post(func() {}) // Idle may be shorter
	}
	return nil
}

func (p *Packets) addFront(f netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fronts = append(slices.Clip(p.fronts), f)
}

// isOwn reports whether a peer is a socket of ours, this one or another: our replies to it
// would come in as what is to be answered, for ever.
func (p *Packets) isOwn(peer netip.AddrPort) bool {
	p.mu.Lock()
	fronts := p.fronts
	p.mu.Unlock()
	return slices.ContainsFunc(fronts, func(f netip.AddrPort) bool {
		return f.Port() == peer.Port() &&
			(f.Addr() == peer.Addr() || f.Addr().IsUnspecified() && p.own.Has(peer.Addr(), time.Now()))
	})
}

// clock is the time since the Packets were made, and never 0.
func (p *Packets) clock() time.Duration { return time.Since(p.born) + 1 }

// ServePacket passes on what comes to pc until Shutdown or Close, and then returns
// [ErrClosed]; it always closes pc. It may be called for several.
func (p *Packets) ServePacket(pc net.PacketConn) error {
	h, err := p.hubOf(pc.LocalAddr().String(), true)
	if err != nil {
		pc.Close()
		return err
	}
	return h.serve(pc)
}

// hubOf is the hub of an address: new, or one that waits for its socket.
func (p *Packets) hubOf(addr string, serves bool) (*hub, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	for _, h := range p.hubs {
		if h.addr == addr && !(serves && h.served) {
			h.served = h.served || serves
			return h, nil
		}
	}
	h, err := newHub(p, addr)
	if err != nil {
		return nil, err
	}
	h.served = serves
	p.hubs = append(p.hubs, h)
	go h.run() // Shutdown waits for it
	return h, nil
}

func (p *Packets) all() []*hub {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.hubs)
}

// Shutdown lets sessions end: none begins any more, and each ends when it has been quiet
// for a second. What is left when ctx ends is cut, and counted in the error. Nothing runs
// any more when it returns.
func (p *Packets) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.handing.Wait() // it knows when to end
	p.ending.Store(true)
	hubs := p.all()
	for _, h := range hubs {
		h.post(func() {}) // so that it looks
	}
	stop := context.AfterFunc(ctx, func() {
		p.cancel() // dials
		for _, h := range hubs {
			h.cut()
		}
	})
	defer stop()
	cut := 0
	for _, h := range hubs {
		<-h.done
		cut += h.wasCut
	}
	p.once.Do(func() {
		p.cancel()
		p.endLog()
	})
	if cut > 0 {
		return fmt.Errorf("proxy: %d sessions were cut: %w", cut, context.Cause(ctx))
	}
	return nil
}

// Close ends the Packets at once.
func (p *Packets) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p.Shutdown(ctx)
	return nil
}
