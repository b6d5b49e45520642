//go:build unix

package restart

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
)

// calls are the requests that a supervisor passes on. Its loop owns all but room.
type calls struct {
	room   chan struct{} // for those under way
	count  uint64
	open   map[uint64]openCall
	repeat []call // made while the successor was starting
}

type openCall struct {
	at     *generation
	answer chan reply // buffered
}

// call passes a request on to the worker that serves. It runs beside the loop.
func (s *supervisor) call(ctx context.Context, o order) reply {
	if len(o.Request) > maxCall {
		return refusal(fmt.Errorf("restart: a request of %d bytes, the limit is %d", len(o.Request), maxCall))
	}
	c := call{Within: min(max(o.Within, 0), callTime), UID: o.uid, Request: o.Request}
	ctx, cancel := context.WithTimeout(ctx, c.Within)
	defer cancel()
	late := refusal(fmt.Errorf("restart: no answer within %v", c.Within))
	select {
	case s.calls.room <- struct{}{}:
		defer func() { <-s.calls.room }()
	case <-ctx.Done():
		return late
	}
	answer := make(chan reply, 1)
	s.post(func() { c.ID = s.place(c, answer) })
	select {
	case r := <-answer:
		return r
	case <-ctx.Done():
		s.post(func() { delete(s.calls.open, c.ID) })
		return late
	case <-s.done:
		return refusal(errStopping)
	}
}

// place sends a request to the worker that serves, or answers it with why not.
func (s *supervisor) place(c call, answer chan reply) (id uint64) {
	g := s.current
	switch {
	case g == nil || g.over:
		answer <- refusal(errNobody)
		return 0
	case !g.calls:
		answer <- refusal(errNoCalls)
		return 0
	case s.next != nil && s.next.phase == ready: // it accepts, and may yet be rolled back
		s.next.repeat(c)
	case s.next != nil && !s.remember(c):
		answer <- refusal(fmt.Errorf("restart: more than %d requests while a restart is under way", maxRepeat))
		return 0
	}
	s.calls.count++
	c.ID = s.calls.count
	s.calls.open[c.ID] = openCall{g, answer}
	g.tell(msgCall, c)
	return c.ID
}

// remember keeps a request for the successor: whether the state that it is told was
// saved before or after, nobody knows. Of equal ones the last says it all.
func (s *supervisor) remember(c call) bool {
	s.calls.repeat = slices.DeleteFunc(s.calls.repeat, func(o call) bool { return bytes.Equal(o.Request, c.Request) })
	if len(s.calls.repeat) == maxRepeat {
		return false
	}
	s.calls.repeat = append(s.calls.repeat, c)
	return true
}

// repeatCalls makes them again at the successor, as it begins to accept.
func (s *supervisor) repeatCalls(g *generation) {
	for _, c := range s.calls.repeat {
		g.repeat(c)
	}
	s.calls.repeat = nil
}

func (g *generation) repeat(c call) {
	if g.calls {
		g.tell(msgCall, c)
	}
}

func (s *supervisor) answered(m message) {
	r, err := decode[reply](m)
	if c, ok := s.calls.open[r.ID]; ok && err == nil {
		delete(s.calls.open, r.ID)
		r.ID = 0
		c.answer <- r
	}
}

// lostCalls answers those who waited for a worker that is gone.
func (s *supervisor) lostCalls(g *generation) {
	for id, c := range s.calls.open {
		if c.at == g {
			delete(s.calls.open, id)
			c.answer <- refusal(fmt.Errorf("restart: generation %d ended before it answered", g.id))
		}
	}
}

// serveCalls answers the requests that come, one after the other, so that they are made
// in the order in which they were asked.
func (w *underling) serveCalls(ctx context.Context) {
	for {
		select {
		case c := <-w.calls:
			r := w.cfg.answerCall(ctx, c)
			r.ID = c.ID
			if c.ID != 0 {
				w.link.tell(msgAnswer, r)
			} else if r.Err != "" {
				w.log.Warn("restart: a call that was repeated", "err", r.Err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// takeCall queues a request; that has no room only if the user's function does not end
// with its ctx.
func (w *underling) takeCall(m message) {
	c, err := decode[call](m)
	if err != nil {
		return
	}
	c.end = time.Now().Add(min(c.Within, callTime))
	select {
	case w.calls <- c:
	default:
		w.tasks.Go(func() {
			w.link.tell(msgAnswer, reply{ID: c.ID, Err: "restart: the worker is busy with other calls"})
		})
	}
}
