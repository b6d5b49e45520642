package sockopt

import "syscall"

// Readiness is what a connection at rest has to say.
type Readiness uint8

const (
	Idle     Readiness = iota // open, and nothing to read
	Readable                  // bytes wait; off Linux the end may be behind them
	Closed                    // by the peer, with bytes before the end or without, by an error, or here
	Unknown                   // this system, or this connection, cannot tell
)

func (r Readiness) String() string {
	return [...]string{"idle", "readable", "closed", "unknown"}[r]
}

// A Poller asks one connection, again and again, at the price of one system call and
// no allocation. Only one goroutine may poll at a time; others may use the connection
// meanwhile, and close it. A Poller needs no closing.
type Poller struct {
	raw  syscall.RawConn // nil when there is nothing to ask
	ask  func(fd uintptr)
	said Readiness // by ask
}

// NewPoller returns a Poller for a connection. Give it the socket itself: a wrapper
// such as *tls.Conn may hold bytes that no poll sees.
func NewPoller(c syscall.Conn) *Poller {
	p := &Poller{}
	p.raw, _ = c.SyscallConn()
	p.ask = func(fd uintptr) { p.said = poll(fd) } // made once: a closure per Poll would allocate
	return p
}

// Poll asks, and does not wait. The descriptor is held meanwhile, so a concurrent
// Close cannot put another file in its place; after it the answer is Closed.
func (p *Poller) Poll() Readiness {
	if p.raw == nil {
		return Unknown
	}
	if p.raw.Control(p.ask) != nil {
		return Closed
	}
	return p.said
}
