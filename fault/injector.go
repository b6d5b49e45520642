package fault

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
)

// An Injector makes a [Plan] happen on the connections that it wraps. [New] makes one,
// and whoever made it closes it. All methods may be called at any time from any
// goroutine, in a synctest bubble from those of the bubble.
type Injector struct {
	counts counts

	// mu comes before the mutex of a conn or socket: all are to have the same plan.
	mu     sync.Mutex
	gone   sync.Cond // signalled when one has left conns or socks
	plan   Plan
	conns  map[*conn]bool
	socks  map[*socket]bool
	last   uint64 // number of the newest connection or socket
	closed bool
}

// Stats counts what has happened since the Injector was made.
type Stats struct {
	Conns      int   // connections and datagram sockets wrapped
	Open       int   // of these, not closed yet, or closed with bytes under way
	Up, Down   int64 // bytes handed on
	Cuts       int   // directions ended by Cut, and connections by Injector.Cut
	Resets     int   // connections ended by Reset, Injector.Reset and Injector.Close
	BlackHoles int   // directions that fell into one

	UpPackets, DownPackets PacketStats // datagrams
}

type counts struct {
	up, down, cuts, resets, holes atomic.Int64
	upPackets, downPackets        packetCounts
}

// New returns an Injector with that plan.
func New(plan Plan) *Injector {
	in := &Injector{plan: plan.settled(), conns: map[*conn]bool{}, socks: map[*socket]bool{}}
	in.gone.L = &in.mu
	return in
}

// Conn wraps c, which must not be used otherwise from then on, and closed through the
// wrapper. The wrapper has CloseWrite if c has it; Alive() error, by which a pool sees
// what has happened to an idle connection; and NetConn, which returns c: what is done
// there goes past the faults.
//
// Close returns at once. What is under way then still arrives, as it does when a program
// closes a socket, within a minute at most; Injector.Close ends that too.
//
// If c carries datagrams, as its local address says ("udp", "ip" or "unixgram"), it gets
// the faults of [Injector.PacketConn], and the wrapper is a [net.PacketConn] if c is.
func (in *Injector) Conn(c net.Conn) net.Conn {
	if carriesPackets(c) {
		p, _ := c.(net.PacketConn)
		s := in.socket(c, p)
		if p == nil {
			return packetSender{s}
		}
		return fullSocket{packetSender{s}}
	}
	w := &conn{inner: c, owner: in}
	w.changed.L = &w.mu
	in.mu.Lock()
	in.last++
	w.number = in.last
	w.up.rng = rand.New(rand.NewPCG(in.plan.Seed, 2*w.number))
	w.down.rng = rand.New(rand.NewPCG(in.plan.Seed, 2*w.number+1))
	in.conns[w] = true
	reset, closed := w.set(in.plan), in.closed
	in.mu.Unlock()

	switch {
	case reset:
		w.shut(Reset)
	case closed:
		w.sever(Reset)
	}
	if _, ok := c.(halfCloser); ok {
		return halfConn{w}
	}
	return w
}

// PacketConn wraps p, which must not be used otherwise from then on, and closed through
// the wrapper. That is a [net.Conn] too if p is, as a *net.UDPConn.
//
// Datagrams have the faults of [Packets], and of their Link these: Latency and Jitter, of
// which the latter lets them overtake each other; Bandwidth, one datagram behind the
// other; a BlackHole, which loses what it takes. Cut, Reset and Slice do not concern
// them. A full Buffer drops; 0 means 1 MiB there, and each datagram weighs 512 bytes more
// than it has. On the way down what waits to be read counts.
//
// What becomes of a datagram is settled when it is sent: a new plan holds for those that
// follow. A Write of one that gets lost or takes time succeeds; if the socket refuses it
// in the end, the next call fails. Close returns at once, and what is under way up still
// leaves, within a minute at most; until then the address is in use.
func (in *Injector) PacketConn(p net.PacketConn) net.PacketConn {
	c, _ := p.(net.Conn)
	s := in.socket(c, p)
	if c == nil {
		return packetConn{s}
	}
	return fullSocket{packetSender{s}}
}

// socket wraps what is one of them, or both.
func (in *Injector) socket(c net.Conn, p net.PacketConn) *socket {
	in.mu.Lock()
	in.last++
	s := newSocket(in, in.last, in.plan.Seed)
	s.conn, s.packets, s.inner = c, p, c
	if p != nil {
		s.inner = p
	}
	in.socks[s] = true
	s.set(in.plan)
	closed := in.closed
	in.mu.Unlock()
	if closed {
		s.end()
	}
	return s
}

// Listener wraps what ln accepts.
func (in *Injector) Listener(ln net.Listener) net.Listener { return &listener{ln, in} }

type listener struct {
	net.Listener
	in *Injector
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.in.Conn(c), nil
}

// Dial returns a function that dials as dial does, nil meaning a [net.Dialer], and wraps
// what it gets.
func (in *Injector) Dial(
	dial func(ctx context.Context, network, address string) (net.Conn, error),
) func(ctx context.Context, network, address string) (net.Conn, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return in.Conn(c), nil
	}
}

// Set replaces the plan, for connections to come and for those there are. For the
// latter both directions count After from here, and bytes under way travel on as if the
// new link had been theirs from the start.
func (in *Injector) Set(plan Plan) {
	plan = plan.settled()
	var reset []*conn
	in.mu.Lock()
	in.plan = plan
	for _, c := range in.liveLocked() {
		if c.set(plan) {
			reset = append(reset, c)
		}
	}
	for s := range in.socks {
		s.set(plan)
	}
	in.mu.Unlock()
	for _, c := range reset {
		c.shut(Reset)
	}
}

// Cut closes all connections there are. The wrapped side sees [io.EOF], and so does its
// peer, unless bytes that it has sent lie unread: then the kernel makes that a reset.
// What is under way is lost. Connections to come are not concerned, nor are datagrams.
func (in *Injector) Cut() { in.sever(Cut) }

// Reset resets all connections there are, as the plan's [Reset] would.
func (in *Injector) Reset() { in.sever(Reset) }

func (in *Injector) sever(how End) {
	in.mu.Lock()
	live := in.liveLocked()
	in.mu.Unlock()
	for _, c := range live {
		if c.sever(how) && how == Cut {
			in.counts.cuts.Add(1)
		}
	}
}

// Close resets all connections and closes all datagram sockets, also those to come, and
// waits until nothing of them is left.
func (in *Injector) Close() error {
	in.mu.Lock()
	in.closed = true
	socks := slices.Collect(maps.Keys(in.socks))
	in.mu.Unlock()
	in.sever(Reset)
	for _, s := range socks {
		s.end()
	}

	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.conns)+len(in.socks) > 0 {
		in.gone.Wait()
	}
	return nil
}

// Stats returns a snapshot of the counters.
func (in *Injector) Stats() Stats {
	in.mu.Lock()
	defer in.mu.Unlock()
	return Stats{
		Conns: int(in.last), Open: len(in.conns) + len(in.socks),
		Up: in.counts.up.Load(), Down: in.counts.down.Load(),
		Cuts: int(in.counts.cuts.Load()), Resets: int(in.counts.resets.Load()),
		BlackHoles: int(in.counts.holes.Load()),
		UpPackets:  in.counts.upPackets.stats(), DownPackets: in.counts.downPackets.stats(),
	}
}

// liveLocked lists the connections in the order in which they were wrapped.
func (in *Injector) liveLocked() []*conn {
	return slices.SortedFunc(maps.Keys(in.conns), func(a, b *conn) int { return cmp.Compare(a.number, b.number) })
}

func (in *Injector) forget(c *conn) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.conns, c)
	in.gone.Broadcast()
}

func (in *Injector) forgetSocket(s *socket) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.socks, s)
	in.gone.Broadcast()
}
