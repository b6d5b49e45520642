//go:build !linux

package proxy

import (
	"time"

	"github.com/holdfast-net/holdfast"
)

// poller waits for what is posted, and for the next moment at which something is due.
type poller struct {
	mailbox
	bell chan struct{}
	next func() time.Duration // when something is due; negative is never
	time func() time.Duration
}

func (q *poller) open(now, next func() time.Duration) error {
	q.bell = make(chan struct{}, 1)
	q.time, q.next = now, next
	q.ring = func() {
		select {
		case q.bell <- struct{}{}:
		default:
		}
	}
	return nil
}

func (q *poller) shut() {}

// turn waits, and sees to what has come.
func (h *hub) turn() {
	var alarm <-chan time.Time
	if due := h.next(); due >= 0 {
		alarm = time.After(max(due-h.time(), 0))
	}
	select {
	case <-h.bell:
	case <-alarm:
	}
	h.now, h.set = h.p.clock(), h.p.set.Load()
	h.answer()
}

func (h *hub) listen() {
	if !h.heard {
		h.heard = true
		h.readBy.Go(h.readFront)
	}
}

func (h *hub) deafen() {
	if h.heard {
		h.heard = false
		h.pc.SetReadDeadline(longAgo)
	}
}

// frontError is nil: who reads the socket finds out.
func (h *hub) frontError() error { return nil }

type readers struct{}

func (h *hub) furnish() {}

// Each datagram is sent as it comes.
func (h *hub) stage(s *session, data []byte) bool { return h.send(s, data) }
func (h *hub) ship(*session)                      {}
func (h *hub) shipAll()                           {}

// target is Linux's: elsewhere every way is dialed.
type target struct{}

func datagramTarget(holdfast.Lease) *target { return nil }

func (h *hub) connect(s *session, lease holdfast.Lease, _ *place) error {
	h.dial(s, lease)
	return nil
}

func (h *hub) watch(*session) error { return nil }

func (h *hub) write(s *session, data []byte) error { return s.writeConn(data) }

// hang closes the way.
func (h *hub) hang(s *session) { h.hangConn(s) }
