package fault

import (
	"io"
	"net"
	"syscall"
	"time"
)

// Close ends the connection for its user, and for the peer behind what is under way.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		defer c.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	}
	c.closed = true
	later := c.lingerLocked()
	mine := !later && !c.ending
	c.ending = c.ending || mine
	c.stopTimersLocked()
	c.changed.Broadcast()
	c.mu.Unlock()

	var err error
	if mine {
		err = c.shut(Cut)
	}
	c.mu.Lock()
	for c.down.running || c.up.running && !later {
		c.changed.Wait()
	}
	c.mu.Unlock()
	c.bury()
	return err
}

// lingerLocked leaves closing inner to deliver, if anything is under way: the end at least.
func (c *conn) lingerLocked() bool {
	if !c.up.pumping || c.ending {
		return false
	}
	now := time.Now()
	c.up.push(piece{at: now, end: closed})
	if _, ready, _ := c.up.look(now); ready && c.up.wire[0].end == closed {
		return false
	}
	c.until = now.Add(linger)
	c.booted = false
	c.inner.SetWriteDeadline(c.until)
	c.inner.SetReadDeadline(longAgo)
	c.down.purge()
	return true
}

func (c *conn) stopTimersLocked() {
	c.up.deadline.stop()
	c.down.deadline.stop()
	if c.down.alarm != nil {
		c.down.alarm.Stop()
	}
}

// CloseWrite ends the direction up behind what is under way.
func (c halfConn) CloseWrite() error {
	c.mu.Lock()
	switch {
	case c.closed:
		defer c.mu.Unlock()
		return c.opError("close", net.ErrClosed)
	case c.reset:
		defer c.mu.Unlock()
		return c.opError("shutdown", syscall.ENOTCONN)
	case !c.up.piped:
		c.mu.Unlock()
		return c.inner.(halfCloser).CloseWrite()
	}
	defer c.mu.Unlock()
	if c.up.over == nil {
		c.up.over = syscall.EPIPE
		c.up.push(piece{at: time.Now(), end: finished})
		c.changed.Broadcast()
	}
	return nil
}

// sever ends the connection now, in both directions, and reports whether it was there.
func (c *conn) sever(how End) bool {
	c.mu.Lock()
	mine := c.endLocked(how)
	c.mu.Unlock()
	if mine {
		c.shut(how)
	}
	return mine
}

// endLocked makes all calls fail, and reports whether it is on the caller to shut.
func (c *conn) endLocked(how End) bool {
	if c.ending {
		return false
	}
	c.ending, c.severed = true, true
	for _, w := range []*way{&c.up, &c.down} {
		w.purge()
		w.piped = true
	}
	c.up.over = syscall.EPIPE
	if c.down.over == nil {
		c.down.over = io.EOF
	}
	if how == Reset {
		c.reset = true
		c.owner.counts.resets.Add(1)
	}
	c.changed.Broadcast()
	return true
}

// shut closes inner, once: for whoever has set ending.
func (c *conn) shut(how End) error {
	if how == Reset {
		resetSocket(c.inner)
	}
	err := c.inner.Close()
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.bury()
	return err
}

// bury takes c off its owner's list when nothing is left of it.
func (c *conn) bury() {
	c.mu.Lock()
	gone := c.ended && !c.up.running && !c.down.running
	c.mu.Unlock()
	if gone {
		c.owner.forget(c)
	}
}

// resetSocket closes the socket below c with a RST, if there is one. It goes below TLS,
// whose Close says goodbye first.
func resetSocket(c net.Conn) {
	for {
		if socket, ok := c.(interface{ SetLinger(sec int) error }); ok {
			socket.SetLinger(0)
			c.Close()
			return
		}
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		c = wrapper.NetConn()
	}
}
