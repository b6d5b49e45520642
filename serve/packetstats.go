package serve

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/mmsg"
)

// PacketStats are what a server of datagrams did so far. They only grow.
type PacketStats struct {
	Elapsed time.Duration // since the first socket was served

	Received, ReceivedBytes uint64 // datagrams, dropped ones too, and what was in them
	Sent, SentBytes         uint64 // replies, those too that the system did not take: see SendErrors
	Dropped                 Drops
	Duplicates              uint64 // answered, or not, as before: see Packets.Dedup
	Amplified               uint64 // replies refused by Amplification
	Errors, Panics          uint64 // of handlers
	ReadErrors, SendErrors  uint64
}

// Drops are datagrams that were not handled, by why.
type Drops struct {
	TooLong         uint64
	Loops           uint64 // from ourselves, or from who answers anything
	Network         uint64 // not allowed
	Rate, RatePerIP uint64 // too fast
}

// Sum is all of them.
func (d Drops) Sum() uint64 { return d.TooLong + d.Loops + d.Network + d.Rate + d.RatePerIP }

// PerSecond is how many datagrams were received, and bytes, in each second since an
// earlier snapshot, or since the start for the zero one.
func (s PacketStats) PerSecond(before PacketStats) (datagrams, bytes float64) {
	t := (s.Elapsed - before.Elapsed).Seconds()
	if t <= 0 {
		return 0, 0
	}
	return float64(s.Received-before.Received) / t, float64(s.ReceivedBytes-before.ReceivedBytes) / t
}

type drop int

const (
	dropTooLong drop = iota
	dropLoop
	dropNetwork
	dropRate
	dropRatePerIP
	drops
	noDrop drop = -1
)

// refuses says why a datagram is not handled.
func (w *worker) refuses(m *mmsg.Message, size int) drop {
	l, from := &w.s.limits, m.Peer
	switch {
	case m.Truncated || size > w.most:
		return dropTooLong
	case !from.IsValid():
		return w.s.sources.take(l, netip.Addr{}, w.now)
	case addr.AnswersAnything(from.Port()), w.isOwn(m):
		return dropLoop
	case (len(l.Allow) > 0 || len(l.Deny) > 0) && !l.admits(from.Addr().WithZone("")):
		return dropNetwork
	}
	return w.s.sources.take(l, from.Addr(), w.now)
}

// isOwn reports whether a datagram comes from this very socket.
func (w *worker) isOwn(m *mmsg.Message) bool {
	from := m.Peer
	if from.Port() != w.self.Port() {
		return false
	}
	if bound := w.self.Addr(); !bound.IsUnspecified() {
		return from.Addr() == bound
	}
	return from.Addr() == m.Local || w.own.Has(from.Addr(), w.now)
}

// tally is what a worker counts until it reports.
type tally struct {
	received, receivedBytes, sent, sentBytes uint64
	duplicates, amplified, errors, panics    uint64
	sendErrors                               uint64
	dropped                                  [drops]uint64
}

type packetCounters struct {
	received, receivedBytes, sent, sentBytes atomic.Uint64
	duplicates, amplified, errors, panics    atomic.Uint64
	sendErrors, readErrors                   atomic.Uint64
	dropped                                  [drops]atomic.Uint64
}

// report adds the tally to the counters of all, once for a batch.
func (w *worker) report() {
	c := &w.s.counts
	add := func(to *atomic.Uint64, n uint64) {
		if n > 0 {
			to.Add(n)
		}
	}
	add(&c.received, w.received)
	add(&c.receivedBytes, w.receivedBytes)
	add(&c.sent, w.sent)
	add(&c.sentBytes, w.sentBytes)
	add(&c.duplicates, w.duplicates)
	add(&c.amplified, w.amplified)
	add(&c.errors, w.errors)
	add(&c.panics, w.panics)
	add(&c.sendErrors, w.sendErrors)
	for i := range w.dropped {
		add(&c.dropped[i], w.dropped[i])
	}
	w.tally = tally{}
}

// Stats returns a snapshot.
func (s *Packets) Stats() PacketStats {
	s.begin()
	c := &s.counts
	n := func(d drop) uint64 { return c.dropped[d].Load() }
	stats := PacketStats{
		Received: c.received.Load(), ReceivedBytes: c.receivedBytes.Load(), Sent: c.sent.Load(), SentBytes: c.sentBytes.Load(),
		Dropped:    Drops{TooLong: n(dropTooLong), Loops: n(dropLoop), Network: n(dropNetwork), Rate: n(dropRate), RatePerIP: n(dropRatePerIP)},
		Duplicates: c.duplicates.Load(), Amplified: c.amplified.Load(), Errors: c.errors.Load(), Panics: c.panics.Load(),
		ReadErrors: c.readErrors.Load(), SendErrors: c.sendErrors.Load(),
	}
	if start := s.started.Load(); start != nil {
		stats.Elapsed = time.Since(*start)
	}
	return stats
}

// Totals are the counters of Stats by name, for whoever sums them over the generations
// of a process.
func (s *Packets) Totals() map[string]int64 {
	t := s.Stats()
	return map[string]int64{
		"datagrams_received": int64(t.Received), "datagrams_sent": int64(t.Sent),
		"datagram_received_bytes": int64(t.ReceivedBytes), "datagram_sent_bytes": int64(t.SentBytes),
		"datagrams_dropped": int64(t.Dropped.Sum()), "datagrams_repeated": int64(t.Duplicates),
		"datagrams_amplified": int64(t.Amplified), "datagram_errors": int64(t.Errors), "panics": int64(t.Panics),
		"datagram_read_errors": int64(t.ReadErrors), "datagram_send_errors": int64(t.SendErrors),
	}
}

// admits reports whether an address may send.
func (l *PacketLimits) admits(from netip.Addr) bool {
	return (&Limits{Allow: l.Allow, Deny: l.Deny}).admits(from)
}
