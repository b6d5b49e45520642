package serve

import (
	"net/netip"
	"time"

	"github.com/holdfast-net/holdfast/internal/mmsg"
)

// RestAfter makes idle connections rest sooner, until what it returns is called.
func RestAfter(d time.Duration) (restore func()) {
	before := restAfter
	restAfter = d
	return func() { restAfter = before }
}

// Drains reports whether connections have been told to leave.
func (s *Server) Drains() bool {
	s.begin()
	return isClosed(s.draining)
}

// Clients is how many addresses a gate remembers.
func (g *Gate) Clients() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.clients)
}

const MaxClients = maxClients

// Record is what a connection is to its successor.
func Record(client string, state, unread []byte) []byte {
	return saved{client, state, unread}.encode()
}

// ReadRecord is the inverse of Record.
func ReadRecord(b []byte) (client string, state, unread []byte, err error) {
	r, err := decode(b)
	return r.client, r.state, r.unread, err
}

// ShrinkTables makes the tables of sources hold less.
func (s *Packets) ShrinkTables(most int) {
	s.begin()
	s.validated.most, s.sources.clients.most, s.replies.most = most, most, most*answerWeight
}

// Meet is a datagram from a source, handled by nobody in particular.
func (s *Packets) Meet(from netip.AddrPort, data []byte) {
	now := time.Now()
	w := &worker{lane: &lane{s: s, most: maxDatagram}, now: now, text: make([]byte, 0, roomForReplies), out: make([]mmsg.Message, 0, maxReplies)}
	w.one(&mmsg.Message{Peer: from}, data)
	w.out, w.text = nil, nil
}

// Tables are how many sources are validated, how many clients are known, and how many
// answers.
func (s *Packets) Tables() (validated, clients, answers int) {
	return s.validated.len(), s.sources.clients.len(), s.replies.len()
}

func (r *recent[K, V]) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.young) + len(r.old)
}
