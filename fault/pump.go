package fault

import (
	"io"
	"syscall"
	"time"
)

// longAgo, as a deadline, interrupts a call that waits.
var longAgo = time.Unix(1, 0)

// set gives c its links of a new plan. It reports whether c is to be reset at once, by
// the caller and without locks.
func (c *conn) set(p Plan) (reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.severed || c.ending {
		return false
	}
	c.up.set(p.Up)
	c.down.set(p.Down)
	c.pipeUpLocked()
	c.pipeDownLocked()
	c.changed.Broadcast()
	return c.strikeLocked()
}

// pipeUpLocked makes this direction piped, if it is time. A Write on inner is interrupted
// either way: what is left of it meets the new link.
func (c *conn) pipeUpLocked() {
	w := &c.up
	if !w.piped && w.link.clean() {
		return
	}
	c.booted = true
	c.inner.SetWriteDeadline(longAgo)
	if !w.piped {
		c.pipeLocked(w)
		go c.deliver()
	}
}

func (c *conn) pipeDownLocked() {
	if w := &c.down; !w.piped && !w.link.clean() {
		c.inner.SetReadDeadline(longAgo)
		c.pipeLocked(w)
		go c.fetch()
	}
}

func (c *conn) pipeLocked(w *way) {
	w.piped, w.pumping, w.running = true, true, true
	w.deadline.set(w.deadline.at, c.wake)
}

// strikeLocked ends the directions whose time has come. If that resets the connection, the
// caller has to shut it when it has given up the lock.
func (c *conn) strikeLocked() (reset bool) {
	if c.severed || c.ending {
		return false
	}
	for _, w := range []*way{&c.up, &c.down} {
		if !w.strike() {
			continue
		}
		switch w.link.Then {
		case BlackHole:
			c.owner.counts.holes.Add(1)
		case Cut:
			if !w.cut {
				c.cutLocked(w)
			}
		case Reset:
			return c.endLocked(Reset)
		}
	}
	return false
}

// cutLocked ends one direction behind what has been handed on.
func (c *conn) cutLocked(w *way) {
	c.owner.counts.cuts.Add(1)
	w.cut = true
	if w == &c.up {
		w.over, c.halve = syscall.EPIPE, true
		c.dropLocked()
	} else {
		w.over = io.EOF
		w.purge()
	}
	c.changed.Broadcast()
}

// dropLocked loses what is under way up, but not that inner has to be closed behind it.
func (c *conn) dropLocked() {
	c.up.purge()
	if c.closed {
		c.up.push(piece{at: time.Now(), end: closed})
	}
}

// deliver takes what arrives on the way up to inner, until the connection is at its end.
func (c *conn) deliver() {
	defer c.pumped(&c.up)
	for {
		data, todo := c.arrivals()
		switch todo {
		case carry:
			n, err := c.inner.Write(data)
			if c.delivered(n, err) {
				c.shut(Reset)
			}
		case finish:
			if half, ok := c.inner.(halfCloser); ok {
				half.CloseWrite()
			} else {
				c.sever(Cut)
			}
		case hangUp:
			c.shut(Cut)
		case giveUp:
			c.shut(Reset)
		case stop:
			return
		}
	}
}

// What deliver has to do next.
type todo uint8

const (
	stop   todo = iota
	carry       // write to inner
	finish      // end inner's sending side
	hangUp      // close inner
	giveUp      // reset inner
)

// arrivals waits for the next thing to do.
func (c *conn) arrivals() ([]byte, todo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case c.ending || !c.up.pumping:
			c.up.pumping = false
			return nil, stop
		case c.up.calls > 0:
			c.changed.Wait()
			continue
		case c.halve:
			c.halve = false
			return nil, finish
		case c.closed && !now.Before(c.until):
			c.endLocked(Reset)
			return nil, giveUp
		}
		n, ready, wait := c.up.look(now)
		switch {
		case n > 0:
			c.rearmLocked()
			return c.up.wire[0].data[:n], carry
		case ready && c.up.pop().end == finished:
			return nil, finish
		case ready:
			c.ending = true
			return nil, hangUp
		}
		if left := c.until.Sub(now); c.closed && (wait < 0 || wait > left) {
			wait = left
		}
		c.waitLocked(&c.up, wait)
	}
}

// rearmLocked gives inner the write deadline that deliver wants, after an interruption.
func (c *conn) rearmLocked() {
	if c.booted {
		c.booted = false
		c.inner.SetWriteDeadline(c.until)
	}
}

// delivered notes what inner has taken, and reports whether c is to be reset for it. A
// Write that was interrupted is tried again, with what is left.
func (c *conn) delivered(n int, err error) (reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner.counts.up.Add(int64(n))
	c.up.take(n)
	c.changed.Broadcast() // there is room
	switch {
	case err == nil:
	case isTimeout(err):
		c.booted = true // as it is, unless the deadline was somebody else's
	default:
		c.dropLocked()
		c.up.pumping = c.closed
		if c.up.over == nil {
			c.up.over = err
		}
	}
	return c.strikeLocked()
}

// fetch takes what inner receives to the way down, until its end.
func (c *conn) fetch() {
	defer c.pumped(&c.down)
	if !c.takeOver() {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		room := c.awaitRoom(len(buf))
		if room == 0 {
			return
		}
		n, err := c.inner.Read(buf[:room])
		if !c.fetched(buf[:n], err) {
			return
		}
	}
}

// takeOver waits for direct reads to end, and makes inner ready for those of fetch.
func (c *conn) takeOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.down.calls > 0 && !c.ending {
		c.changed.Wait()
	}
	if c.closed || c.ending {
		return false
	}
	c.inner.SetReadDeadline(time.Time{})
	return true
}

// awaitRoom waits until up to most bytes may be read, or returns 0.
func (c *conn) awaitRoom(most int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch room := c.down.room(); {
		case c.closed || c.ending:
			return 0
		case c.down.over != nil:
			return most // for nobody: the peer must not notice
		case room > 0:
			return min(room, most)
		}
		c.changed.Wait()
	}
}

func (c *conn) fetched(data []byte, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ending {
		return false
	}
	if c.down.over == nil {
		now := time.Now()
		if len(data) > 0 {
			c.down.push(piece{at: now, data: append([]byte(nil), data...)})
		}
		if err != nil {
			c.down.push(piece{at: now, end: failed, err: err})
		}
		c.changed.Broadcast()
	}
	return err == nil
}

// pumped is the end of a goroutine.
func (c *conn) pumped(w *way) {
	c.mu.Lock()
	w.running = false
	c.changed.Broadcast()
	c.mu.Unlock()
	c.bury()
}
