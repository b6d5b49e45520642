package proxy

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/holdfast-net/holdfast/serve"
)

// Stats is what a Proxy did so far, and has now. All but Open, Queued and Listeners
// only grow.
type Stats struct {
	Open      int `json:"open"`   // connections now
	Queued    int `json:"queued"` // of them, those that wait for a place at a backend
	Listeners int `json:"listeners"`

	Accepted uint64            `json:"accepted"`
	Denied   serve.Refusals    `json:"denied"`
	Ends     map[Reason]uint64 `json:"ends"` // connections that ended, by why

	Connects        uint64 `json:"connects"` // to backends
	ConnectFailures uint64 `json:"connect_failures"`
	Hidden          uint64 `json:"hidden"` // of them, those no client saw: it went well elsewhere

	FromClients  uint64 `json:"from_clients"` // bytes
	FromBackends uint64 `json:"from_backends"`

	MovedOut uint64 `json:"moved_out"` // connections, to the successor
	MovedIn  uint64 `json:"moved_in"`  // from the predecessor
}

// counters are in force at once; each event loop has some of its own.
type counters struct {
	accepted, connects, connectFailures, hidden atomic.Uint64
	movedOut, movedIn                           atomic.Uint64
	queued                                      atomic.Int64
	bytes                                       [2]atomic.Uint64
	ends                                        [reasons]atomic.Uint64
}

func (c *counters) addTo(s *Stats) {
	s.Queued += int(c.queued.Load())
	s.Accepted += c.accepted.Load()
	s.Connects += c.connects.Load()
	s.ConnectFailures += c.connectFailures.Load()
	s.Hidden += c.hidden.Load()
	s.FromClients += c.bytes[client].Load()
	s.FromBackends += c.bytes[backend].Load()
	s.MovedOut += c.movedOut.Load()
	s.MovedIn += c.movedIn.Load()
	for r := range c.ends {
		if n := c.ends[r].Load(); n > 0 {
			s.Ends[Reason(r)] += n
		}
	}
}

// Stats returns a snapshot.
func (p *Proxy) Stats() Stats {
	s := Stats{Ends: map[Reason]uint64{}, Denied: p.gate.Refused()}
	p.mu.Lock()
	s.Listeners = p.fronts
	p.mu.Unlock()
	p.counts.addTo(&s)
	p.loops.addTo(&s)
	server := p.server.Stats() // of those with goroutines, from the moment they came
	s.Accepted += server.Accepted
	s.Open += server.Open + int(p.guests.Load())
	return s
}

// Totals are the counters of Stats by name, for whoever sums them over the generations
// of a process.
func (p *Proxy) Totals() map[string]int64 {
	s := p.Stats()
	all := map[string]int64{
		"accepted": int64(s.Accepted), "connects": int64(s.Connects), "connect_failures": int64(s.ConnectFailures),
		"hidden": int64(s.Hidden), "from_clients_bytes": int64(s.FromClients), "from_backends_bytes": int64(s.FromBackends),
		"moved_out": int64(s.MovedOut), "moved_in": int64(s.MovedIn),
	}
	for r, n := range s.Ends {
		all["ended "+r.String()] = int64(n)
	}
	return all
}

// ended enters the end of a connection in the books and the access log.
func (p *Proxy) ended(v *visit, why Reason, bytes [2]int64) {
	p.counts.ends[why].Add(1)
	p.logEnd(v, why, bytes)
}

func (p *Proxy) logEnd(v *visit, why Reason, bytes [2]int64) {
	if !p.access.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := append(make([]slog.Attr, 0, 8),
		slog.String("client", v.from.String()), slog.String("why", why.String()),
		slog.Duration("took", p.clock()-v.began), slog.Int64("from_client", bytes[client]), slog.Int64("from_backend", bytes[backend]))
	if v.from.ServerName != "" {
		attrs = append(attrs, slog.String("name", clip(v.from.ServerName)))
	}
	if n := v.lease.Node(); n != nil {
		attrs = append(attrs, slog.String("backend", n.String()))
	}
	if n := len(v.search.down); n > 0 {
		attrs = append(attrs, slog.Int("failed_before", n))
	}
	p.access.LogAttrs(context.Background(), slog.LevelInfo, "connection", attrs...)
}

// String is the client's address as a log has it.
func (c Client) String() string {
	if !c.Addr.IsValid() {
		return "unix"
	}
	return c.Addr.String()
}

// clip bounds what strangers write into a log.
func clip(s string) string {
	if len(s) > 256 {
		return s[:256] + "…"
	}
	return s
}
