package serve

import "time"

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
