package proxy

import (
	"errors"
	"io"
	"math/rand/v2"
	"time"
)

// side is one end of a relay: the one it was accepted from, or the one it goes to.
type side uint8

const (
	client  side = 0
	backend side = 1
)

func (s side) other() side { return 1 - s }

func (s side) String() string { return [...]string{"client", "backend"}[s] }

// flow is how far the bytes that one side sends have come.
type flow uint8

const (
	flowing flow = iota
	ended        // the sender's end was read; what is pending goes first
	shut         // and passed on
	broken       // nothing more is read, nothing more is wanted
)

// relay is what is known of a connected pair, and decides what becomes of it. It does
// no I/O: those who do, an event loop or two goroutines, tell it what happened and do
// what it says. It is not safe for concurrent use.
type relay struct {
	limits *Timeouts

	flows   [2]flow  // of what each side sends
	reset   [2]bool  // the side is gone: its socket broke
	pending [2]bool  // something of what the side sent waits for the other to take it
	bytes   [2]int64 // sent by each side and taken by the other
	why     Reason   // of the end

	// Moments, as the clock of whoever does the I/O counts.
	opened, active time.Duration
	stalled        [2]time.Duration // since when what is pending has not moved
	life           time.Duration    // how long it may last; 0 is no limit
	closing        time.Duration    // since when the last bytes are waited for

	// An end that others want: from a moment on when it is quiet, and by another in any
	// case. 0 is none.
	leaveAt, leaveBy time.Duration
	leaveWhy         Reason
}

// order is what to do next.
type order uint8

const (
	carryOn     order = iota
	shutWrite         // pass the end of the stream on to the other side
	lingerReset       // reset the other side, once it has what was sent before
	closeBoth         // it is over, in order
	resetBoth         // it is over, and both should know that something is missing
)

func (r *relay) begin(limits *Timeouts, now time.Duration) {
	r.limits, r.opened, r.active = limits, now, now
	r.life = limits.Lifetime - time.Duration(0.1*rand.Float64()*float64(limits.Lifetime))
}

// moved notes that n bytes of a side were taken by the other.
func (r *relay) moved(from side, n int, now time.Duration) {
	r.bytes[from] += int64(n)
	r.active = now
	r.stalled[from] = now
}

// waits notes whether bytes of a side wait for the other to take them.
func (r *relay) waits(from side, pending bool, now time.Duration) {
	if pending && !r.pending[from] {
		r.stalled[from] = now
	}
	r.pending[from] = pending
}

// eof notes the end of what a side sends.
func (r *relay) eof(from side) {
	if r.flows[from] != flowing {
		return
	}
	if r.reset[from] { // the write that failed has taken the error with it
		r.flows[from] = broken
		return
	}
	r.flows[from] = ended
	r.because(endedBy(from))
}

// readFailed notes that a side's socket is broken, and all that it sent is read.
func (r *relay) readFailed(s side, err error) {
	r.writeFailed(s, err)
	if r.flows[s] == flowing {
		r.flows[s] = broken
	}
}

// writeFailed notes that a side's socket is broken. What the other sends is for nobody;
// what this one sent before may still be read, and is for the other.
func (r *relay) writeFailed(s side, err error) {
	if r.reset[s] {
		return
	}
	r.reset[s] = true
	r.flows[s.other()] = broken
	r.pending[s.other()] = false
	r.because(resetBy(s, err))
}

func (r *relay) because(why Reason) {
	if r.why == Open {
		r.why = why
	}
}

// next says what to do about what a side sends, once all that is known is noted.
func (r *relay) next(from side) order {
	to := from.other()
	switch {
	case r.reset[client] && r.reset[backend]:
		return resetBoth
	case r.reset[from] && !r.pending[from] && r.flows[from] != flowing:
		return lingerReset
	case r.reset[to]:
		return carryOn // the other flow says what becomes of this one
	case r.flows[from] == ended && !r.pending[from]:
		return shutWrite
	case r.flows[client] == shut && r.flows[backend] == shut:
		return closeBoth
	}
	return carryOn
}

// passedOn notes that the end of what a side sends is the other's.
func (r *relay) passedOn(from side) { r.flows[from] = shut }

// halfClosed reports whether one side has said all.
func (r *relay) halfClosed() bool {
	return (r.flows[client] == flowing) != (r.flows[backend] == flowing)
}

// due is when the next limit comes, 0 for never.
func (r *relay) due() time.Duration {
	var at time.Duration
	sooner := func(since, limit time.Duration) {
		if limit > 0 && (at == 0 || since+limit < at) {
			at = since + limit
		}
	}
	idle := r.limits.Idle
	if r.halfClosed() {
		idle = r.limits.HalfClosed
	}
	sooner(r.active, idle)
	sooner(r.opened, r.life)
	for from, pending := range r.pending {
		if pending {
			sooner(r.stalled[from], r.limits.Write)
		}
	}
	if r.closing > 0 {
		sooner(r.closing, r.limits.Linger)
	} else if r.leaveAt != 0 && (at == 0 || r.leaveAt < at) {
		at = r.leaveAt
	}
	return at
}

// expire says what a limit that has come means.
func (r *relay) expire(now time.Duration) order {
	past := func(since, limit time.Duration) bool { return limit > 0 && now >= since+limit }
	switch {
	case r.closing > 0:
		if past(r.closing, r.limits.Linger) {
			return resetBoth
		}
	case r.pending[client] && past(r.stalled[client], r.limits.Write),
		r.pending[backend] && past(r.stalled[backend], r.limits.Write):
		r.why = Stalled // whatever was said before: something is missing
		return resetBoth
	case r.halfClosed() && past(r.active, r.limits.HalfClosed):
		r.why = HalfClosed
		return resetBoth
	case past(r.active, r.limits.Idle):
		r.because(Idle)
		return r.endNow()
	case past(r.opened, r.life):
		r.because(TooOld)
		return r.endNow()
	case r.leaveAt != 0 && now >= r.leaveAt:
		if !r.isQuiet(now) && (r.leaveBy == 0 || now < r.leaveBy) {
			r.leaveAt = now + quiet
			return carryOn
		}
		r.because(r.leaveWhy)
		return r.endNow()
	}
	return carryOn
}

// leave wants an end; the first who does says when.
func (r *relay) leave(at, by time.Duration, why Reason) {
	if r.leaveAt == 0 {
		r.leaveAt, r.leaveBy, r.leaveWhy = max(at, 1), by, why
	}
}

// leaveSometime wants an end at a random moment within d, which leaves some for those
// that are busy then.
func (r *relay) leaveSometime(now, d time.Duration) {
	r.leave(now+time.Duration(rand.Float64()*0.9*float64(d)), 0, Drained)
}

// leaveBackend wants an end because the backend is down.
func (r *relay) leaveBackend(now time.Duration) { r.leave(now, now+drainLimit, BackendDown) }

// quiet is how long nothing must have been said for an end to be between two things.
const quiet = 200 * time.Millisecond

// drainLimit is how long a connection of a node that went down may be busy.
const drainLimit = 30 * time.Second

// endNow is how to end without being asked: a peer that misses something must know it.
func (r *relay) endNow() order {
	if r.pending[client] || r.pending[backend] {
		return resetBoth
	}
	return closeBoth
}

// isQuiet reports whether nothing was said for a while, and nothing is under way.
func (r *relay) isQuiet(now time.Duration) bool {
	return r.active+quiet <= now && !r.pending[client] && !r.pending[backend]
}

// isEnd reports whether a reader's error is the end of the stream. TLS that ends
// without saying so is an end too: what is above it must know whether all has come.
func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
