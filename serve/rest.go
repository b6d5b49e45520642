package serve

import (
	"errors"
	"os"
	"time"
)

// A goroutine that has handled a message has a stack of 4 KiB or more, and the runtime
// does not shrink one of 4. So a connection that has been idle for a while goes on
// waiting in a new goroutine, which does nothing but wait, on a stack of 2 KiB; with
// what the socket needs, that makes less than 4 KiB for each idle connection.

// restAfter is how long a connection is idle before it rests. Only tests change it.
var restAfter = 5 * time.Second

// errRest ends a goroutine whose connection goes on resting.
var errRest = errors.New("serve: the connection rests")

// rests reports whether the goroutine of a connection is the server's to end.
func (s *Server) rests() bool {
	_, ours := s.Handler.(*frames)
	return ours
}

// mayRest reports whether what ended the wait was not Timeouts.Idle.
func (c *Conn) mayRest() bool {
	idle := c.srv.limits.Idle
	return c.rests && c.in.raw != nil && c.in.len() == 0 && !c.reads.own.Load() && (idle == 0 || time.Since(c.quiet) < idle)
}

// idleLimit is how long to wait in this goroutine.
func (c *Conn) idleLimit() time.Duration {
	idle := c.srv.limits.Idle
	if c.rests && c.in.raw != nil && (idle == 0 || idle > restAfter) {
		return restAfter
	}
	return idle
}

// rest waits, and then serves on. It is a goroutine of its own.
func (s *Server) rest(c *Conn) {
	c.woken = c.await()
	s.serveConn(c)
}

// await waits for the next byte, an order, or the rest of the idle time.
func (c *Conn) await() error {
	end := time.Time{}
	if idle := c.srv.limits.Idle; idle > 0 {
		end = c.quiet.Add(idle)
	}
	c.mu.Lock()
	c.reads.forget()
	if !c.poked && c.own.IsZero() {
		c.raw.SetReadDeadline(end)
	}
	c.mu.Unlock()
	n, err := c.in.fill()
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return c.filled(n, err)
	case c.unpoke():
		return nil
	}
	return ErrReadTimeout
}
