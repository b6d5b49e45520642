package simnet

import (
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	defaultBuffer  = 64 << 10
	defaultBacklog = 4096 // net.core.somaxconn, which Go listens with
)

// Net is a network. [New] makes one and Close ends it, with all that is open
// on it. All methods of a Net and of what it gives out may be called at any
// time from any goroutine of its bubble.
type Net struct {
	// Buffer bounds each direction of a stream, in bytes sent and not yet
	// read: 0 means 64 KiB, negative no bound. [Conn.SetReadBuffer] and
	// [Conn.SetWriteBuffer] change it for one stream.
	// Backlog bounds the connections a listener has not accepted yet, from
	// their SYN on: 0 means 4,096, negative no bound. Beyond it SYNs are dropped.
	// Both count for what is opened afterwards; set them before first use.
	Buffer, Backlog int

	seed uint64

	// mu is the only lock: it guards all below and the state of every host,
	// socket and pipe. Exported methods take it by lock and give it back by
	// unlock; unexported ones run under it, and none of them waits but park.
	mu        sync.Mutex
	clock     clock
	closed    bool
	hosts     map[string]*Host
	listeners map[place]*Listener
	packets   map[place]*PacketConn
	links     map[route]Link
	cuts      map[route]bool
	busy      map[route]time.Time // until when a link with a bandwidth is occupied
	stalled   []*pipe             // directions that wait for Heal or Thaw
	conns     uint64              // numbers streams, so that walks over them have an order
	stats     Stats
}

// Stats counts what happened on a Net since it was made.
type Stats struct {
	Dials     int   // stream dials begun
	Refused   int   // of these, answered with an error instead of a connection
	Resets    int   // streams that received a RST
	Bytes     int64 // bytes taken by stream writes
	Datagrams int   // datagrams sent
	Lost      int   // SYNs, their answers, and datagrams that did not arrive
}

// New returns a network on which all chance follows from seed.
func New(seed uint64) *Net {
	return &Net{
		seed:      seed,
		hosts:     map[string]*Host{},
		listeners: map[place]*Listener{},
		packets:   map[place]*PacketConn{},
		links:     map[route]Link{},
		cuts:      map[route]bool{},
		busy:      map[route]time.Time{},
	}
}

// Close ends the network at this instant, without a packet: every socket is
// closed under its users, whose calls return [net.ErrClosed], frozen or not.
func (n *Net) Close() error {
	n.lock()
	defer n.unlock()
	n.closed = true
	for _, h := range n.hosts {
		h.stop((*Conn).shut)
	}
	n.clock.clear()
	return nil
}

// Stats returns a snapshot of the counters.
func (n *Net) Stats() Stats {
	n.lock()
	defer n.unlock()
	return n.stats
}

// Host returns the host with that IP address or Unix path; naming one is all
// it takes to exist.
func (n *Net) Host(name string) *Host {
	n.lock()
	defer n.unlock()
	return n.host(hostName(name))
}

// Listen announces on a stream address with an explicit host: "10.0.0.1:7000"
// or "[fd00::1]:0" on tcp, tcp4 and tcp6 (port 0 picks one), a path on unix.
// The listener is a [*Listener].
func (n *Net) Listen(network, addr string) (net.Listener, error) {
	n.lock()
	defer n.unlock()
	at, err := n.bind(network, addr, "udp")
	if err != nil {
		return nil, listenError(network, at, err)
	}
	l := &Listener{net: n, host: n.host(at.host()), at: at, backlog: bound(n.Backlog, defaultBacklog)}
	l.changed.L = &n.mu
	n.listeners[at] = l
	return l, nil
}

// ListenPacket opens an unconnected datagram socket on udp, udp4 or udp6, with
// an explicit host as for [Net.Listen]. It is a [*PacketConn].
func (n *Net) ListenPacket(network, addr string) (net.PacketConn, error) {
	n.lock()
	defer n.unlock()
	at, err := n.bind(network, addr, "tcp", "unix")
	if err != nil {
		return nil, listenError(network, at, err)
	}
	return n.newPacketConn(n.host(at.host()), at, place{}), nil
}

// bind reads an address to listen on, which must be free and of none of the
// wrong kinds, and picks the port if it has none.
func (n *Net) bind(network, addr string, wrong ...string) (place, error) {
	at, err := parse(network, addr)
	if err != nil {
		return at, err
	}
	for _, proto := range wrong {
		if at.proto == proto {
			return at, &net.AddrError{Err: "unexpected address type", Addr: addr}
		}
	}
	switch {
	case n.closed:
		return at, net.ErrClosed
	case at.proto != "unix" && at.ap.Addr().IsUnspecified():
		return at, syscall.EADDRNOTAVAIL
	case at.proto != "unix" && at.ap.Port() == 0:
		return n.host(at.host()).pick(at.proto, at.ap.Addr())
	case n.taken(at):
		return at, syscall.EADDRINUSE
	}
	return at, nil
}

func (n *Net) taken(at place) bool {
	return n.listeners[at] != nil || n.packets[at] != nil
}

func (n *Net) host(name string) *Host {
	h := n.hosts[name]
	if h == nil {
		ip, _ := netip.ParseAddr(name)
		h = &Host{net: n, name: name, ip: ip, conns: map[*Conn]bool{}, ports: map[uint16]bool{}, next: firstPort}
		n.hosts[name] = h
	}
	return h
}

// hostName brings a name given by a user to the one form that is compared. It
// panics on what can only be a slip, such as "10.0.0".
func hostName(name string) string {
	if ip, err := netip.ParseAddr(name); err == nil {
		return ip.Unmap().String()
	}
	if name != "" && !strings.Contains(name, "/") && name[0] != '@' {
		panic("simnet: " + name + " is neither an IP address nor a Unix path")
	}
	return name
}

// bound applies the house's zero rule to a limit.
func bound(limit, otherwise int) int {
	switch {
	case limit == 0:
		return otherwise
	case limit < 0:
		return math.MaxInt
	}
	return limit
}
