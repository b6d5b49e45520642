package proxy

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/holdfast-net/holdfast/serve"
)

// PacketStats are what a Packets did so far, and has now. All but Open only grow.
type PacketStats struct {
	Open     int               `json:"open"`     // sessions now
	Sessions uint64            `json:"sessions"` // that were begun
	Denied   serve.Refusals    `json:"denied"`   // that were not
	Ends     map[Reason]uint64 `json:"ends"`     // that ended, by why

	FromClients       uint64 `json:"from_clients"` // datagrams, dropped ones too
	FromClientsBytes  uint64 `json:"from_clients_bytes"`
	FromBackends      uint64 `json:"from_backends"`
	FromBackendsBytes uint64 `json:"from_backends_bytes"`

	Dropped PacketDrops `json:"dropped"`

	Refused uint64 `json:"refused"` // datagrams that a node refused (ICMP)
	Moved   uint64 `json:"moved"`   // sessions that went on at another node

	MovedOut uint64 `json:"moved_out"` // sessions, to the successor
	MovedIn  uint64 `json:"moved_in"`  // from the predecessor
}

// PacketDrops are datagrams that were not passed on, by why.
type PacketDrops struct {
	Denied    uint64 `json:"denied"`     // no session for them, see PacketStats.Denied
	NoBackend uint64 `json:"no_backend"` // none was usable, or had room
	TooLong   uint64 `json:"too_long"`
	Loops     uint64 `json:"loops"`      // from a socket of ours, or from who answers anything (ports 0, 7, 13, 17, 19)
	BadHeader uint64 `json:"bad_header"` // no PROXY header, or a wrong one
	Amplified uint64 `json:"amplified"`  // by PacketConfig.Amplification
	Unwanted  uint64 `json:"unwanted"`   // replies where none is expected
	Unsent    uint64 `json:"unsent"`     // the system did not take them
}

// What is counted. A hub counts by itself, and reports after each batch.
type packetCount int

const (
	sessionsBegun packetCount = iota
	fromClients
	fromClientsBytes
	fromBackends
	fromBackendsBytes
	dropDenied
	dropNoBackend
	dropTooLong
	dropLoop
	dropBadHeader
	dropAmplified
	dropUnwanted
	dropUnsent
	refusals
	rehomed
	sessionsOut
	sessionsIn
	sessionsFull
	packetCounts
)

type packetTally [packetCounts]uint64

type packetCounters struct {
	all  [packetCounts]atomic.Uint64
	ends [reasons]atomic.Uint64
}

// add takes a tally over, which begins anew.
func (c *packetCounters) add(t *packetTally) {
	for i, n := range t {
		if n > 0 {
			c.all[i].Add(n)
			t[i] = 0
		}
	}
}

// Stats returns a snapshot.
func (p *Packets) Stats() PacketStats {
	n := func(i packetCount) uint64 { return p.counts.all[i].Load() }
	denied := p.gate.Refused()
	denied.Conns = n(sessionsFull)
	s := PacketStats{
		Open: int(p.open.Load()), Sessions: n(sessionsBegun), Denied: denied, Ends: map[Reason]uint64{},
		FromClients: n(fromClients), FromClientsBytes: n(fromClientsBytes),
		FromBackends: n(fromBackends), FromBackendsBytes: n(fromBackendsBytes),
		Dropped: PacketDrops{
			Denied: n(dropDenied), NoBackend: n(dropNoBackend), TooLong: n(dropTooLong), Loops: n(dropLoop),
			BadHeader: n(dropBadHeader), Amplified: n(dropAmplified), Unwanted: n(dropUnwanted), Unsent: n(dropUnsent),
		},
		Refused: n(refusals), Moved: n(rehomed), MovedOut: n(sessionsOut), MovedIn: n(sessionsIn),
	}
	for r := range p.counts.ends {
		if n := p.counts.ends[r].Load(); n > 0 {
			s.Ends[Reason(r)] = n
		}
	}
	return s
}

// Totals are the counters of Stats by name, for whoever sums them over the generations
// of a process.
func (p *Packets) Totals() map[string]int64 {
	s := p.Stats()
	d := s.Dropped
	all := map[string]int64{
		"sessions": int64(s.Sessions), "from_clients": int64(s.FromClients), "from_clients_bytes": int64(s.FromClientsBytes),
		"from_backends": int64(s.FromBackends), "from_backends_bytes": int64(s.FromBackendsBytes),
		"dropped": int64(d.Denied + d.NoBackend + d.TooLong + d.Loops + d.BadHeader + d.Amplified + d.Unwanted + d.Unsent),
		"refused": int64(s.Refused), "moved": int64(s.Moved), "moved_out": int64(s.MovedOut), "moved_in": int64(s.MovedIn),
	}
	for r, n := range s.Ends {
		all["ended "+r.String()] = int64(n)
	}
	return all
}

func (p *Packets) logEnd(s *session, why Reason) {
	if !p.access.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := append(make([]slog.Attr, 0, 8),
		slog.String("client", s.key.client.String()), slog.String("why", why.String()),
		slog.Duration("took", s.h.now-s.began),
		slog.Uint64("from_client", s.datagrams[client]), slog.Uint64("from_client_bytes", s.bytes[client]),
		slog.Uint64("from_backend", s.datagrams[backend]), slog.Uint64("from_backend_bytes", s.bytes[backend]))
	if s.place != nil {
		attrs = append(attrs, slog.String("backend", s.place.node.String()))
	}
	p.access.LogAttrs(context.Background(), slog.LevelInfo, "session", attrs...)
}
