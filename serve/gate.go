package serve

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/sockopt"
)

// Limits are who may connect, and how many. 0 is the default, negative is none.
type Limits struct {
	MaxConns int // open at once: as many files as may be open, less 200

	// MaxPerIP is how many one client may have open; a v6 client is its /64. None by
	// default: many clients may be behind one address.
	MaxPerIP int

	Rate      float64 // accepted per second, in bursts of a second's worth: no limit; who is refused for itself does not count
	RatePerIP float64 // and from one client: no limit

	// Over is what happens to those beyond MaxConns and Rate. Beyond the limits per
	// client, they are always closed.
	Over       Over
	RejectWith []byte // sent in plaintext before a connection beyond MaxConns or MaxPerIP is closed

	Allow, Deny []netip.Prefix // of the client; Deny wins, and an empty Allow is everybody
	AllowUIDs   []int          // who may connect to Unix sockets; empty is everybody that the file's mode lets

	// MaxHandshakes is how many TLS handshakes answer their client's first message at
	// once: 256; the others wait, within their time. A silent client is not counted.
	MaxHandshakes int
}

// Over is a policy.
type Over int

const (
	Reject Over = iota // accept and close
	Wait               // accept nobody until there is room; they wait in the socket's queue
)

// Why a connection was refused.
var (
	ErrTooMany = errors.New("serve: too many connections")
	ErrTooFast = errors.New("serve: too many connections a second")
	ErrDenied  = errors.New("serve: not allowed from there")
)

var (
	errTooManyPerIP = fmt.Errorf("%w from one address", ErrTooMany)
	errTooFastPerIP = fmt.Errorf("%w from one address", ErrTooFast)
)

// spareFiles are left for everything that is not a connection.
const spareFiles = 200

func (l Limits) withDefaults() Limits {
	l.Allow, l.Deny = unmapped(l.Allow), unmapped(l.Deny)
	if l.MaxConns == 0 {
		l.MaxConns = max(sockopt.MaxFiles()-spareFiles, 1)
	}
	if l.MaxHandshakes == 0 {
		l.MaxHandshakes = 256
	}
	if l.MaxHandshakes < 0 {
		l.MaxHandshakes = 1 << 20
	}
	return l
}

// Gate is the admission of a server, for those that accept by themselves: each
// connection enters, is checked under the client's address, and leaves.
//
//	var pass serve.Pass
//	if err := gate.Enter(&pass); err != nil { … close … }
//	defer pass.Leave()
//	if err := pass.Admit(client); err != nil { … close … }
//
// Nothing allocates once a client is known. The zero value has the default limits;
// Limits must not change after first use, but by Update. All methods may be called
// concurrently.
type Gate struct {
	Limits Limits

	once sync.Once
	set  atomic.Pointer[Limits]

	refused [reasons]atomic.Uint64

	mu      sync.Mutex
	open    int
	room    chan struct{} // closed when a place is free; nil when nobody waits
	rate    bucket
	clients map[netip.Addr]*client
	swept   time.Time
	sweepAt int // how many clients are too many
}

// client is what is known of one address.
type client struct {
	open int
	rate bucket
}

type reason int

const (
	reasonConns reason = iota
	reasonPerIP
	reasonRate
	reasonRatePerIP
	reasonNetwork
	reasonUID
	reasons
)

// Pass is one connection's place. The zero value has none.
type Pass struct {
	gate   *Gate
	client netip.Addr // under which it counts, once it was admitted
}

func (g *Gate) limits() *Limits {
	g.once.Do(func() {
		set := g.Limits.withDefaults()
		g.set.Store(&set)
		g.clients, g.sweepAt = map[netip.Addr]*client{}, maxClients
	})
	return g.set.Load()
}

// Update puts other limits in force. Connections that are in stay, and count; those of
// each client only if there was a limit per client when they came.
func (g *Gate) Update(l Limits) {
	g.limits()
	l = l.withDefaults()
	g.set.Store(&l)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.room != nil { // those who wait look again
		close(g.room)
		g.room = nil
	}
}

// Enter takes a place for a connection that was just accepted, whoever is at the
// other end: that may have to be read first, and may take its time. By the policy Wait
// an error says that it has to wait, and is not counted as a refusal.
func (g *Gate) Enter(p *Pass) error {
	why, err := g.enter(p)
	if err != nil && g.limits().Over == Wait {
		return err
	}
	if err != nil {
		return g.refuse(why, err)
	}
	return nil
}

func (g *Gate) enter(p *Pass) (why reason, err error) {
	l := g.limits()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case l.MaxConns > 0 && g.open >= l.MaxConns:
		return reasonConns, ErrTooMany
	case !g.rate.take(l.Rate, time.Now()):
		return reasonRate, ErrTooFast
	}
	g.open++
	p.gate = g
	return 0, nil
}

// EnterAnyway takes a place for a connection that has been let in already, by the
// predecessor, under the client's address. There is no Admit after it.
func (g *Gate) EnterAnyway(p *Pass, client netip.Addr) {
	g.limits()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open++
	p.gate = g
	if key := keyOf(client); key.IsValid() && g.perClient() {
		p.client = key
		g.clientLocked(key).open++
	}
}

// Admit checks the client, whose address is the peer's or what a trusted proxy said,
// and counts the connection as its own. It is called once.
func (p *Pass) Admit(addr netip.Addr) error {
	g := p.gate
	l := g.limits()
	if !addr.IsValid() {
		return nil
	}
	addr = addr.Unmap().WithZone("")
	if !l.admits(addr) {
		return p.refuse(reasonNetwork, ErrDenied)
	}
	if !g.perClient() {
		return nil
	}
	if why, err := p.count(l, keyOf(addr)); err != nil {
		return p.refuse(why, err)
	}
	return nil
}

// count makes it a connection of a client, who may have so many.
func (p *Pass) count(l *Limits, key netip.Addr) (why reason, err error) {
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.clientLocked(key)
	switch {
	case l.MaxPerIP > 0 && c.open >= l.MaxPerIP:
		return reasonPerIP, errTooManyPerIP
	case !c.rate.take(l.RatePerIP, time.Now()):
		return reasonRatePerIP, errTooFastPerIP
	}
	c.open++
	p.client = key
	return 0, nil
}

// refuse turns away who has entered. The Rate is of those who may come: others, however
// fast, must not use it up for them.
func (p *Pass) refuse(why reason, err error) error {
	g := p.gate
	g.mu.Lock()
	g.rate.tokens++ // never more than a second's worth: see fill
	g.mu.Unlock()
	return g.refuse(why, err)
}

func (g *Gate) perClient() bool { return g.limits().MaxPerIP > 0 || g.limits().RatePerIP > 0 }

// AdmitUser checks the user at the other end of a Unix socket; ask is called for its
// uid only if that matters.
func (p *Pass) AdmitUser(ask func() (uid int, ok bool)) error {
	uids := p.gate.limits().AllowUIDs
	if len(uids) == 0 {
		return nil
	}
	if uid, ok := ask(); ok && !slices.Contains(uids, uid) {
		return p.refuse(reasonUID, ErrDenied)
	}
	return nil
}

// admit checks a connection of a Server.
func (p *Pass) admit(c *Conn) error {
	if err := p.AdmitUser(func() (int, bool) {
		u, isUnix := c.raw.(*net.UnixConn)
		if !isUnix {
			return 0, false
		}
		return sockopt.PeerUID(u), true // -1 is nobody: what cannot be told is not allowed
	}); err != nil {
		return err
	}
	return p.Admit(addrOf(c.RemoteAddr()))
}

// Leave gives the place back. A second time it does nothing.
func (p *Pass) Leave() {
	g := p.gate
	if g == nil {
		return
	}
	p.gate = nil
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	if c := g.clients[p.client]; c != nil && p.client.IsValid() {
		c.open--
	}
	if g.room != nil {
		close(g.room)
		g.room = nil
	}
}

// enterAfter is Enter for an accept loop. One that saw room before it accepted may find
// that another loop has taken it; by the policy Wait, the connection waits then.
func (g *Gate) enterAfter(p *Pass, done <-chan struct{}) error {
	for g.limits().Over == Wait && !isClosed(done) {
		if _, err := g.enter(p); err == nil {
			return nil
		}
		g.wait(done)
	}
	return g.Enter(p)
}

// wait returns when a connection may be accepted, or done is closed.
func (g *Gate) wait(done <-chan struct{}) {
	l := g.limits()
	if l.Over != Wait {
		return
	}
	for {
		room, pause := g.full()
		var timer <-chan time.Time
		switch {
		case pause > 0:
			timer = time.After(pause)
		case room == nil:
			return
		}
		select {
		case <-room:
		case <-timer:
		case <-done:
			return
		}
	}
}

// full returns what to wait for: a place, or time.
func (g *Gate) full() (room <-chan struct{}, pause time.Duration) {
	l := g.limits()
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.MaxConns > 0 && g.open >= l.MaxConns {
		if g.room == nil {
			g.room = make(chan struct{})
		}
		return g.room, 0
	}
	return nil, g.rate.until(l.Rate, time.Now())
}

func (g *Gate) refuse(why reason, err error) error {
	g.refused[why].Add(1)
	return err
}

// maxClients bounds how many addresses are remembered. Beyond it those are forgotten
// that have nothing open: their rate begins anew. Those that have count for MaxConns
// too; the next look at all of them is when they have doubled.
const maxClients = 1 << 16

func (g *Gate) clientLocked(key netip.Addr) *client {
	if c := g.clients[key]; c != nil {
		return c
	}
	now := time.Now()
	if full := len(g.clients) >= g.sweepAt; full || now.Sub(g.swept) > time.Minute {
		g.swept = now
		for addr, c := range g.clients {
			if c.open == 0 && (full || now.Sub(c.rate.at) > time.Minute) {
				delete(g.clients, addr)
			}
		}
		g.sweepAt = max(maxClients, 2*len(g.clients))
	}
	c := &client{}
	g.clients[key] = c
	return c
}

// unmapped are networks as addresses are compared: v4 is v4, in whatever form it came.
func unmapped(nets []netip.Prefix) []netip.Prefix {
	nets = slices.Clone(nets)
	for i, n := range nets {
		nets[i] = unmap(n)
	}
	return nets
}

func unmap(n netip.Prefix) netip.Prefix {
	if n.Addr().Is4In6() && n.Bits() >= 96 {
		return netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-96)
	}
	return n
}

func (l *Limits) admits(addr netip.Addr) bool {
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	return !slices.ContainsFunc(l.Deny, in) && (len(l.Allow) == 0 || slices.ContainsFunc(l.Allow, in))
}

// keyOf is the address that a client is known by: a v6 client owns its /64.
func keyOf(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return addr
}

// bucket is a token bucket of one second's worth.
type bucket struct {
	at     time.Time // of the last take; zero when full
	tokens float64
}

func (b *bucket) fill(rate float64, now time.Time) {
	burst := max(rate, 1)
	if b.at.IsZero() {
		b.tokens = burst
	} else {
		b.tokens = min(b.tokens+now.Sub(b.at).Seconds()*rate, burst)
	}
	b.at = now
}

func (b *bucket) take(rate float64, now time.Time) bool {
	if rate <= 0 {
		return true
	}
	b.fill(rate, now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// until is how long it takes until there is a token.
func (b *bucket) until(rate float64, now time.Time) time.Duration {
	if rate <= 0 {
		return 0
	}
	if b.fill(rate, now); b.tokens >= 1 {
		return 0
	}
	return time.Duration((1-b.tokens)/rate*float64(time.Second)) + 1 // rounded up: never 0
}

// addrOf is the IP of an address, the zero Addr if it has none.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap()
	case nil, *net.UnixAddr: // whose name the peer chooses, and it may look like an IP
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
