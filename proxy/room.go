package proxy

import (
	"net/netip"
	"time"

	"github.com/holdfast-net/holdfast/serve"
)

// lessees are sessions in the order in which they were filed: the first is idle for
// longest, within lag. All may be idle for the same time, so that no timers are needed,
// and few datagrams cost the move to the end.
type lessees struct{ first, last *session }

// lag is how exact that order is.
const lag = 100 * time.Millisecond

func (q *lessees) add(s *session) {
	s.filed = s.active
	s.before, s.after = q.last, nil
	if q.last != nil {
		q.last.after = s
	} else {
		q.first = s
	}
	q.last = s
}

func (q *lessees) remove(s *session) {
	if s.before != nil {
		s.before.after = s.after
	} else {
		q.first = s.after
	}
	if s.after != nil {
		s.after.before = s.before
	} else {
		q.last = s.before
	}
	s.before, s.after = nil, nil
}

// touch takes note that something came to a session.
func (h *hub) touch(s *session) {
	s.active = h.now
	if s.active-s.filed >= lag {
		q := h.queueOf(s)
		q.remove(s)
		q.add(s)
	}
}

func (h *hub) queueOf(s *session) *lessees {
	if s.assured {
		return &h.queues[1]
	}
	return &h.queues[0]
}

// admit asks whether a client may have another session, if there is room.
func (h *hub) admit(pass *serve.Pass, client netip.Addr) bool {
	if h.p.ending.Load() || h.p.gate.Enter(pass) != nil {
		return false
	}
	if pass.Admit(client) != nil {
		pass.Leave()
		return false
	}
	return true
}

// makeRoom finds room for a session of a client who may have one: who may not must not
// drive out anybody. A table that was made smaller shrinks by one for each that comes.
func (h *hub) makeRoom() bool {
	most := int64(h.set.Limits.MaxConns)
	if most <= 0 {
		return true
	}
	h.unkeep()
	for range 2 {
		if h.p.open.Load() < most {
			return true
		}
		s := h.dispensable()
		if s == nil {
			h.askAround()
			return false
		}
		h.end(s, Evicted)
	}
	return h.p.open.Load() < most
}

// askAround has the hub with the most sessions end one, for here nobody gives way: a flood
// at one address must not shut out who comes to another. The place is kept for the next,
// who is the same client when it asks again.
func (h *hub) askAround() {
	if h.asked || h.set.Full == DropNew {
		return
	}
	var other *hub
	for _, o := range h.p.all() {
		if o != h && (other == nil || o.open.Load() > other.open.Load()) {
			other = o
		}
	}
	h.asked = other != nil && other.post(func() {
		s := other.dispensable()
		if s != nil {
			other.end(s, Evicted)
			h.p.open.Add(1)
		}
		if !h.post(func() { h.asked, h.kept = false, s != nil }) && s != nil {
			h.p.open.Add(-1)
		}
	})
}

// unkeep gives up the place that another hub made.
func (h *hub) unkeep() {
	if h.kept {
		h.kept = false
		h.p.open.Add(-1)
	}
}

// dispensable is the session that makes room for another.
func (h *hub) dispensable() *session {
	unassured, assured := h.queues[0].first, h.queues[1].first
	for assured != nil && assured.lane {
		assured = assured.after
	}
	switch {
	case h.set.Full == DropNew:
		return nil
	case h.set.Full == EvictUnassured || assured == nil:
		return unassured
	case unassured == nil || assured.filed < unassured.filed:
		return assured
	}
	return unassured
}
