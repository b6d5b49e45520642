//go:build unix

package proxy

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// told runs a story through the state machine and returns the orders it gave, the clock
// standing still.
type told struct {
	*testing.T
	r relay
}

func tell(t *testing.T) *told {
	limits := Timeouts{}.withDefaults()
	limits.Lifetime = 10 * time.Hour
	s := &told{T: t}
	s.r.begin(&limits, 1)
	s.r.life = limits.Lifetime // without jitter
	return s
}

func (s *told) expect(from side, want order) *told {
	s.Helper()
	if got := s.r.next(from); got != want {
		s.Errorf("of what the %v sends: order %d, want %d", from, got, want)
	}
	return s
}

func TestEndsPassOnInEachDirection(t *testing.T) {
	s := tell(t).expect(client, carryOn)
	s.r.eof(client)
	s.expect(client, shutWrite).expect(backend, carryOn)
	s.r.passedOn(client)
	s.expect(client, carryOn).expect(backend, carryOn)
	s.r.eof(backend)
	s.expect(backend, shutWrite)
	s.r.passedOn(backend)
	s.expect(client, closeBoth).expect(backend, closeBoth)
	if s.r.why != ClientClosed {
		t.Errorf("why: %v", s.r.why)
	}
}

func TestAnEndWaitsForWhatIsPending(t *testing.T) {
	s := tell(t)
	s.r.waits(backend, true, 1)
	s.r.eof(backend)
	s.expect(backend, carryOn)
	s.r.waits(backend, false, 2)
	s.expect(backend, shutWrite)
}

func TestAResetGoesBehindWhatWasSent(t *testing.T) {
	s := tell(t)
	s.r.waits(backend, true, 1) // an answer that the client has not taken yet
	s.r.waits(client, true, 1)  // and a request that nobody will take
	s.r.readFailed(backend, unix.ECONNRESET)
	s.expect(backend, carryOn).expect(client, carryOn)
	s.r.waits(backend, false, 2)
	s.expect(backend, lingerReset)
	if s.r.why != BackendReset || s.r.pending[client] {
		t.Errorf("why %v, pending %v", s.r.why, s.r.pending)
	}
}

// A write finds out first that a side is gone: what it said before is still read.
func TestAFailedWriteLeavesWhatWasSaid(t *testing.T) {
	for name, rest := range map[string]func(r *relay){
		"an error": func(r *relay) { r.readFailed(client, unix.ECONNRESET) },
		"an end":   func(r *relay) { r.eof(client) },
	} {
		s := tell(t)
		s.r.writeFailed(client, unix.EPIPE)
		s.expect(client, carryOn)
		s.r.moved(client, 100, 2)
		s.expect(client, carryOn)
		rest(&s.r)
		s.expect(client, lingerReset)
		if s.r.why != ClientReset {
			t.Errorf("%s: why %v", name, s.r.why)
		}
	}
}

func TestBothReset(t *testing.T) {
	s := tell(t)
	s.r.readFailed(client, unix.ETIMEDOUT)
	s.r.readFailed(backend, unix.EPIPE)
	s.expect(client, resetBoth).expect(backend, resetBoth)
	if s.r.why != ClientLost {
		t.Errorf("why: %v", s.r.why)
	}
}

func TestAResetAfterAnEnd(t *testing.T) {
	s := tell(t)
	s.r.eof(client)
	s.r.passedOn(client)
	s.r.readFailed(client, unix.ECONNRESET) // it closed with bytes unread
	s.expect(client, lingerReset)
}

func TestLimitsAreExact(t *testing.T) {
	for name, c := range map[string]struct {
		story func(r *relay)
		due   time.Duration
		want  order
		why   Reason
	}{
		"idle":        {func(r *relay) {}, time.Hour + 1, closeBoth, Idle},
		"busy":        {func(r *relay) { r.moved(client, 1, time.Minute) }, time.Hour + time.Minute, closeBoth, Idle},
		"half closed": {func(r *relay) { r.eof(client); r.passedOn(client) }, time.Minute + 1, resetBoth, HalfClosed},
		"half closed, and answered": {func(r *relay) {
			r.eof(client)
			r.passedOn(client)
			r.moved(backend, 1, 50*time.Second)
		}, time.Minute + 50*time.Second, resetBoth, HalfClosed},
		"stalled": {func(r *relay) { r.waits(backend, true, 3*time.Second) }, 33 * time.Second, resetBoth, Stalled},
		"stalled, and moved": {func(r *relay) {
			r.waits(backend, true, 3*time.Second)
			r.moved(backend, 1, 9*time.Second)
			r.waits(backend, true, 9*time.Second)
		}, 39 * time.Second, resetBoth, Stalled},
		"old":       {func(r *relay) { r.active = 10 * time.Hour }, 10*time.Hour + 1, closeBoth, TooOld},
		"lingering": {func(r *relay) { r.closing = time.Second }, 6 * time.Second, resetBoth, Open},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			c.story(&s.r)
			if due := s.r.due(); due != c.due {
				t.Errorf("due at %v, want %v", due, c.due)
			}
			if o := s.r.expire(c.due - 1); o != carryOn {
				t.Errorf("a moment before: order %d", o)
			}
			if o := s.r.expire(c.due); o != c.want || s.r.why != c.why {
				t.Errorf("order %d because %v, want %d because %v", o, s.r.why, c.want, c.why)
			}
		})
	}
}

func TestNoLimits(t *testing.T) {
	s := tell(t)
	limits := Timeouts{Idle: -1, HalfClosed: -1, Write: -1, Lifetime: -1, Linger: -1}.withDefaults()
	s.r.begin(&limits, 1)
	s.r.waits(client, true, 1)
	if due := s.r.due(); due != 0 {
		t.Errorf("due at %v", due)
	}
	if o := s.r.expire(1000 * time.Hour); o != carryOn {
		t.Errorf("order %d", o)
	}
}

// A side that takes nothing is given up, however much it says itself.
func TestAStallIsOfOneDirection(t *testing.T) {
	s := tell(t)
	s.r.waits(backend, true, 1)
	for now := time.Second; now < 30*time.Second; now += time.Second {
		s.r.moved(client, 1, now)
	}
	if o := s.r.expire(30*time.Second + 1); o != resetBoth || s.r.why != Stalled {
		t.Errorf("order %d because %v", o, s.r.why)
	}
}

func TestLeavingWaitsForQuiet(t *testing.T) {
	s := tell(t)
	s.r.leave(time.Second, 2*time.Second, BackendDown)
	s.r.moved(client, 1, time.Second-quiet/2)
	if o := s.r.expire(time.Second); o != carryOn {
		t.Errorf("busy: order %d", o)
	}
	if o := s.r.expire(time.Second + quiet); o != closeBoth || s.r.why != BackendDown {
		t.Errorf("quiet: order %d because %v", o, s.r.why)
	}

	s = tell(t)
	s.r.leave(time.Second, 2*time.Second, Drained)
	s.r.waits(backend, true, 1)
	if o := s.r.expire(time.Second + 500*time.Millisecond); o != carryOn {
		t.Errorf("something is under way: order %d", o)
	}
	if o := s.r.expire(2 * time.Second); o != resetBoth {
		t.Errorf("time is over, and something is under way: order %d", o)
	}
}
