package serve

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// recent is a map of what was used recently, of at most `most` in weight: when half of
// it is new, what is in the other half is forgotten. The zero value needs its most.
type recent[K comparable, V any] struct {
	most int

	mu         sync.Mutex
	young, old map[K]weighed[V]
	weight     int // of the young
}

type weighed[V any] struct {
	value  V
	weight int
}

func (r *recent[K, V]) get(k K) (v V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.getLocked(k)
}

func (r *recent[K, V]) put(k K, v V, weight int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.putLocked(k, v, weight)
}

func (r *recent[K, V]) getLocked(k K) (v V, ok bool) {
	if e, ok := r.young[k]; ok {
		return e.value, true
	}
	e, ok := r.old[k]
	if ok {
		r.putLocked(k, e.value, e.weight)
	}
	return e.value, ok
}

func (r *recent[K, V]) putLocked(k K, v V, weight int) {
	if r.young == nil {
		r.young, r.old = map[K]weighed[V]{}, map[K]weighed[V]{}
	}
	if before, ok := r.young[k]; ok {
		r.weight -= before.weight
	} else if r.weight+weight > r.most/2 {
		clear(r.old)
		r.young, r.old, r.weight = r.old, r.young, 0
	}
	r.weight += weight
	r.young[k] = weighed[V]{v, weight}
}

func (r *recent[K, V]) delete(k K) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.young[k]; ok {
		r.weight -= e.weight
		delete(r.young, k)
	}
	delete(r.old, k)
}

// sources are how often datagrams may be handled.
type sources struct {
	mu      sync.Mutex
	all     bucket
	clients recent[netip.Addr, *bucket]
}

// take returns noDrop if there is a token for all, and one for this client.
func (s *sources) take(l *PacketLimits, from netip.Addr, now time.Time) drop {
	if l.Rate <= 0 && l.RatePerIP <= 0 {
		return noDrop
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.RatePerIP > 0 && from.IsValid() {
		b, ok := s.clients.get(keyOf(from))
		if !ok {
			b = &bucket{}
			s.clients.put(keyOf(from), b, 1)
		}
		if !b.take(l.RatePerIP, now) {
			return dropRatePerIP
		}
	}
	if !s.all.take(l.Rate, now) {
		return dropRate
	}
	return noDrop
}

// replies are what was answered.
type replies struct {
	recent[request, *answer]
	seed maphash.Seed
}

// request is a datagram and whose it is. Nobody can forge one of the same sum: its seed
// is secret.
type request struct {
	from netip.AddrPort
	sum  uint64
}

// answer does not change: that to a request that is still being handled is none.
type answer struct {
	until   time.Time
	replies [][]byte
}

// answerWeight is about what an answer takes beside its replies.
const answerWeight = 256

// find returns what is known of a request, or makes it known that it is handled now.
func (r *replies) find(req request, now time.Time) *answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.getLocked(req); ok && now.Before(a.until) {
		return a
	}
	r.putLocked(req, &answer{until: now.Add(time.Hour)}, answerWeight)
	return nil
}

func (r *replies) sumOf(data []byte) uint64 { return maphash.Bytes(r.seed, data) }

// handleOnce handles a datagram, unless that was done before, or is being done.
func (w *worker) handleOnce(p *Packet) {
	r := &w.s.replies
	req := request{p.m.Peer, r.sumOf(p.Data)}
	if a := r.find(req, w.now); a != nil {
		w.duplicates++
		for _, b := range a.replies {
			w.queue(p, b)
		}
		return
	}
	w.keep = true
	ok := w.handle(p)
	w.keep = false
	if ok {
		r.put(req, &answer{time.Now().Add(w.s.Dedup), slices.Clone(w.kept)}, answerWeight+p.sent)
	} else {
		r.delete(req)
	}
	clear(w.kept)
	w.kept = w.kept[:0]
}
