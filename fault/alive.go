package fault

import (
	"errors"
	"net"
	"syscall"
	"time"
)

var errUnread = errors.New("fault: unread bytes")

// Alive tells a pool, without waiting, whether the connection can be used again: nil if
// it is idle, [io.EOF] if the peer has closed it, an error too if bytes wait to be
// read. All that with the faults: what has not arrived does not count.
func (c *conn) Alive() error {
	if c.enter(&c.down) {
		err := idle(c.inner)
		c.leave(&c.down, nil, false)
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch _, ready, _ := c.down.look(now); {
	case c.closed:
		return c.opError("read", net.ErrClosed)
	case c.reset:
		return c.opError("read", syscall.ECONNRESET)
	case c.down.over != nil:
		return c.down.over
	case ready && c.down.wire[0].end == failed:
		return c.down.wire[0].err
	case ready:
		return errUnread
	}
	return nil
}

// idle asks inner itself, or its socket.
func idle(inner net.Conn) error {
	if a, ok := inner.(interface{ Alive() error }); ok {
		return a.Alive()
	}
	sc, ok := inner.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = peek(fd) }); e != nil {
		return e
	}
	return err
}
