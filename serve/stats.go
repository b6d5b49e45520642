package serve

import (
	"net"
	"sync/atomic"
)

// Stats is what a server did so far, and has now. All but Open and Listeners only
// grow.
type Stats struct {
	Open      int // connections now
	Listeners int

	Accepted          uint64
	Refused           Refusals
	BadHeaders        uint64 // PROXY headers that were missing, late or wrong
	HandshakeFailures uint64
	AcceptErrors      uint64
	Panics            uint64
	Cut               uint64 // connections that did not end in time
	MovedOut, MovedIn uint64 // to the successor, from the predecessor
	Messages          uint64 // handled by Frames
	Received, Sent    uint64 // bytes of the handlers, without TLS around them
}

// Refusals are connections that were not let in, by why.
type Refusals struct {
	Conns, PerIP     uint64 // too many
	Rate, RatePerIP  uint64 // too fast
	Network, UnixUID uint64 // not allowed
}

type counters struct {
	accepted, badHeaders, handshakeFailures, acceptErrors, panics atomic.Uint64
	cut, movedOut, movedIn, messages, received, sent              atomic.Uint64
}

// Refused returns how many did not get in, by why.
func (g *Gate) Refused() Refusals {
	n := func(r reason) uint64 { return g.refused[r].Load() }
	return Refusals{
		Conns: n(reasonConns), PerIP: n(reasonPerIP), Rate: n(reasonRate), RatePerIP: n(reasonRatePerIP),
		Network: n(reasonNetwork), UnixUID: n(reasonUID),
	}
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	s.begin()
	s.mu.Lock()
	open, listeners := len(s.conns), len(s.listeners)
	s.mu.Unlock()
	c := &s.counts
	return Stats{
		Open: open, Listeners: listeners,
		Accepted: c.accepted.Load(), Refused: s.gate.Refused(), BadHeaders: c.badHeaders.Load(),
		HandshakeFailures: c.handshakeFailures.Load(), AcceptErrors: c.acceptErrors.Load(), Panics: c.panics.Load(),
		Cut: c.cut.Load(), MovedOut: c.movedOut.Load(), MovedIn: c.movedIn.Load(),
		Messages: c.messages.Load(), Received: c.received.Load(), Sent: c.sent.Load(),
	}
}

// Totals are the counters of Stats by name, for whoever sums them over the
// generations of a process.
func (s *Server) Totals() map[string]int64 {
	t := s.Stats()
	r := t.Refused
	return map[string]int64{
		"accepted": int64(t.Accepted), "bad_headers": int64(t.BadHeaders), "handshake_failures": int64(t.HandshakeFailures),
		"accept_errors": int64(t.AcceptErrors), "panics": int64(t.Panics), "cut": int64(t.Cut),
		"moved_out": int64(t.MovedOut), "moved_in": int64(t.MovedIn), "messages": int64(t.Messages),
		"received_bytes": int64(t.Received), "sent_bytes": int64(t.Sent),
		"refused": int64(r.Conns + r.PerIP + r.Rate + r.RatePerIP + r.Network + r.UnixUID),
	}
}

// Event is something an operator may want to know of at once.
type Event struct {
	Kind   EventKind
	Remote net.Addr // the client; nil where there is none
	Err    error    // why
	Stack  []byte   // of a panic
}

// EventKind is what happened.
type EventKind string

const (
	Refused         EventKind = "refused"          // not let in
	HeaderFailed    EventKind = "header failed"    // no PROXY header, or a wrong one
	HandshakeFailed EventKind = "handshake failed" // of TLS
	AcceptFailed    EventKind = "accept failed"    // at most once a second
	Panicked        EventKind = "panicked"         // a handler
	ReadFailed      EventKind = "read failed"      // of a packet socket; at most once a second
)

func (s *Server) event(e Event) {
	if s.Observe != nil {
		s.Observe(e)
	}
}
