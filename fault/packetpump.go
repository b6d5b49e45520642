package fault

import (
	"errors"
	"net"
	"time"
)

const maxPacket = 64 << 10 // the largest datagram that fetch reads whole

// set gives s its links of a new plan.
func (s *socket) set(p Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ending {
		return
	}
	s.up.set(p.Up)
	s.down.set(p.Down)
	if !s.down.piped && !s.down.link.clean() {
		s.down.piped, s.down.running = true, true
		s.down.deadline.set(s.down.deadline.at, s.wake)
		s.inner.SetReadDeadline(longAgo)
		go s.fetch()
	}
	s.changed.Broadcast()
}

// fetch takes what inner receives to the way down, until the socket is closed.
func (s *socket) fetch() {
	defer s.ran(&s.down.running)
	if !s.takeOver() {
		return
	}
	buf := make([]byte, maxPacket)
	for {
		n, from, err := s.receive(buf)
		if !s.fetched(buf[:n], from, err) {
			return
		}
	}
}

// takeOver waits for direct reads to end, and makes inner ready for those of fetch.
func (s *socket) takeOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.down.calls > 0 && !s.closed && !s.ending {
		s.changed.Wait()
	}
	if s.closed || s.ending {
		return false
	}
	s.inner.SetReadDeadline(time.Time{})
	return true
}

// fetched takes in a datagram. An error, such as the answer of a port where nobody
// listens, it keeps for the user, and waits until it has been told: inner may have
// nothing else to say.
func (s *socket) fetched(data []byte, from net.Addr, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.ending:
		return false
	case errors.Is(err, net.ErrClosed): // by somebody who goes past us
		s.down.over = err
		s.changed.Broadcast()
		return false
	case err == nil:
		s.down.enter(time.Now(), data, from)
		s.changed.Broadcast()
		return true
	}
	s.failure = err
	s.changed.Broadcast()
	for s.failure != nil && !s.closed && !s.ending {
		s.changed.Wait()
	}
	return true
}

// deliver takes what has arrived on the way up to inner, and closes that if its user has
// closed the socket meanwhile.
func (s *socket) deliver() {
	defer s.ran(&s.up.running)
	for {
		d, hangUp := s.departure()
		switch {
		case hangUp:
			s.shut()
			return
		case d == nil:
			return
		}
		s.carry(d)
	}
}

// departure waits for the next datagram that is due; nil means that there will be none.
func (s *socket) departure() (d *datagram, hangUp bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up.carrying = false
	for {
		now := time.Now()
		switch {
		case s.ending:
			return nil, false
		case s.closed && (len(s.up.queue) == 0 || !now.Before(s.until)):
			s.up.purge()
			s.ending = true
			return nil, true
		}
		d, wait := s.up.next(now)
		if d != nil {
			s.up.carrying = true
			return d, false
		}
		if left := s.until.Sub(now); s.closed && wait > left {
			wait = left
		}
		s.waitLocked(&s.up.alarm, wait)
	}
}

// carry writes d to inner. The user's deadline on inner is not for a datagram that has
// been sent long ago.
func (s *socket) carry(d *datagram) {
	_, err := s.transmit(d.data, d.addr)
	if isTimeout(err) {
		s.rearm(false)
		_, err = s.transmit(d.data, d.addr)
		s.rearm(true)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.up.passed(len(d.data))
		return
	}
	s.up.counts.dropped.Add(1)
	if !isTimeout(err) && s.failure == nil {
		s.failure = err
		s.changed.Broadcast()
	}
}

// rearm sets inner's write deadline, the user's or none, unless Close has.
func (s *socket) rearm(users bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case users:
		s.inner.SetWriteDeadline(s.up.deadline.at)
	default:
		s.inner.SetWriteDeadline(time.Time{})
	}
}

// Close ends the socket for its user. What is under way up still leaves.
func (s *socket) Close() error {
	s.mu.Lock()
	if s.closed {
		defer s.mu.Unlock()
		return s.opError("close", nil, net.ErrClosed)
	}
	s.closed = true
	s.down.purge()
	later := !s.ending && (s.up.carrying || len(s.up.queue) > 0)
	mine := !s.ending && !later
	if later {
		s.until = time.Now().Add(linger)
		s.inner.SetWriteDeadline(s.until)
		s.inner.SetReadDeadline(longAgo)
	}
	s.ending = s.ending || mine
	s.stopTimersLocked()
	s.changed.Broadcast()
	s.mu.Unlock()

	var err error
	if mine {
		err = s.shut()
	}
	s.mu.Lock()
	for s.down.running || s.up.running && !later {
		s.changed.Wait()
	}
	s.mu.Unlock()
	s.bury()
	return err
}

// end closes the socket now, for the Injector.
func (s *socket) end() {
	s.mu.Lock()
	mine := !s.ending
	s.ending = true
	s.up.purge()
	s.down.purge()
	s.stopTimersLocked()
	s.changed.Broadcast()
	s.mu.Unlock()
	if mine {
		s.shut()
	}
}

func (s *socket) stopTimersLocked() {
	s.down.deadline.stop()
	if s.down.alarm != nil {
		s.down.alarm.Stop()
	}
	if s.up.alarm != nil && s.ending {
		s.up.alarm.Stop()
	}
}

// shut closes inner, once: for whoever has set ending.
func (s *socket) shut() error {
	err := s.inner.Close()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.bury()
	return err
}

// ran is the end of a goroutine.
func (s *socket) ran(running *bool) {
	s.mu.Lock()
	*running = false
	s.changed.Broadcast()
	s.mu.Unlock()
	s.bury()
}

// bury takes s off its owner's list when nothing is left of it.
func (s *socket) bury() {
	s.mu.Lock()
	gone := s.ended && !s.up.running && !s.down.running
	s.mu.Unlock()
	if gone {
		s.owner.forgetSocket(s)
	}
}
