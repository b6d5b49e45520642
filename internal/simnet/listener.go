package simnet

import (
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A Listener is a stream listener of a [Net.Listen]. Closing it resets the
// connections that nobody has accepted.
type Listener struct {
	net  *Net
	host *Host
	at   place

	changed  sync.Cond
	deadline deadline
	backlog  int
	waiting  int     // admitted and not accepted; the handshake may be under way
	queue    []*Conn // of these, the ones that Accept can have
	closed   bool
}

// Accept returns the next connection, a [*Conn], waiting for it.
func (l *Listener) Accept() (net.Conn, error) {
	l.net.lock()
	defer l.net.unlock()
	c, err := try(l.net, &l.changed, l.accept)
	if err != nil {
		return nil, l.error("accept", err)
	}
	return c, nil
}

func (l *Listener) accept() (*Conn, error) {
	switch {
	case l.closed:
		return nil, net.ErrClosed
	case l.host.frozen:
		return nil, syscall.EAGAIN
	case l.deadline.passed(l.net):
		return nil, os.ErrDeadlineExceeded
	case len(l.queue) == 0:
		return nil, syscall.EAGAIN
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	l.waiting--
	c.listener = nil
	return c, nil
}

// admit makes the server's end of the stream that c dials, unless the backlog
// is full.
func (l *Listener) admit(c *Conn) bool {
	if l.waiting >= l.backlog {
		return false
	}
	l.waiting++
	s := l.net.newConn(l.host, c.remote, c.local)
	s.listener = l
	c.pair(s)
	return true
}

// enqueue is the end of a handshake.
func (l *Listener) enqueue(c *Conn) {
	l.queue = append(l.queue, c)
	l.changed.Broadcast()
}

// Close stops listening; the address is free at once. A waiting Accept and any
// later call return [net.ErrClosed].
func (l *Listener) Close() error {
	l.net.lock()
	defer l.net.unlock()
	if l.closed {
		return l.error("close", net.ErrClosed)
	}
	mine := slices.DeleteFunc(l.host.sorted(), func(c *Conn) bool { return c.listener != l })
	l.shut()
	for _, c := range mine {
		c.reset()
	}
	return nil
}

// shut leaves the streams in the queue to the caller.
func (l *Listener) shut() {
	l.closed = true
	l.queue = nil
	l.deadline.set(l.net, time.Time{}, &l.changed)
	delete(l.net.listeners, l.at)
	l.changed.Broadcast()
}

// Addr returns a [*net.TCPAddr] or [*net.UnixAddr].
func (l *Listener) Addr() net.Addr { return l.at.addr() }

// SetDeadline sets when Accept gives up with [os.ErrDeadlineExceeded].
func (l *Listener) SetDeadline(t time.Time) error {
	l.net.lock()
	defer l.net.unlock()
	if l.closed {
		return l.error("set", net.ErrClosed)
	}
	l.deadline.set(l.net, t, &l.changed)
	return nil
}

// error has the listener's own address where a stream's has the peer's.
func (l *Listener) error(op string, err error) error {
	return &net.OpError{Op: op, Net: l.at.proto, Addr: l.at.addr(), Err: err}
}
