package simnet

import (
	"syscall"
	"time"
)

// How a stream ends: the transitions behind Conn's methods and what arrives.

// take is what c's side of the network does with a segment that has arrived.
func (c *Conn) take(s segment) {
	switch {
	case s.kind == rst:
		c.receiveReset()
	case c.closed || c.severed:
		c.refuse(s)
	case s.kind == ack:
		c.established = true
		c.listener.enqueue(c)
	case s.kind == fin:
		c.eof = true
	default:
		c.in.buf = append(c.in.buf, s.data...)
	}
	c.changed.Broadcast()
}

// refuse answers bytes for which there is no reader any more.
func (c *Conn) refuse(s segment) {
	if s.kind == payload {
		c.in.free(len(s.data))
		c.out().send(rst, nil)
	}
}

// receiveReset ends both directions. A stream whose SYN was admitted and whose
// handshake never ends gives its place in the backlog free.
func (c *Conn) receiveReset() {
	switch {
	case c.closed || c.severed:
		return
	case c.listener != nil && !c.established:
		c.listener.waiting--
		c.shut()
		return
	}
	c.net.stats.Resets++
	c.sever()
}

// sever makes further calls fail. After a FIN reads still end in EOF and
// writes are told of a broken pipe, as on Linux.
func (c *Conn) sever() {
	c.severed = true
	lost := syscall.ECONNRESET
	if c.eof {
		lost = syscall.EPIPE
	} else {
		c.rerr = lost
	}
	if c.werr == 0 {
		c.werr = lost
	}
	c.changed.Broadcast()
}

// finish ends the outgoing direction behind what was written.
func (c *Conn) finish(with kind) {
	c.out().send(with, nil)
	if with == rst {
		c.sever()
		return
	}
	c.werr = syscall.EPIPE
	c.changed.Broadcast()
}

// spend takes written bytes off the budget of CutAfter or ResetAfter.
func (c *Conn) spend(n int) {
	if c.ending == none {
		return
	}
	if c.budget -= n; c.budget <= 0 {
		with := c.ending
		c.ending = none
		c.finish(with)
	}
}

// reset closes c with a RST, which overtakes what is on the wire.
func (c *Conn) reset() {
	if c.closed {
		return
	}
	c.shut()
	if c.peer != nil && !c.severed {
		c.out().purge()
		c.out().send(rst, nil)
	}
}

// shut closes c for the program that has it; nothing is sent.
func (c *Conn) shut() {
	if c.closed {
		return
	}
	c.closed = true
	c.rd.set(c.net, time.Time{}, &c.changed)
	c.wd.set(c.net, time.Time{}, &c.changed)
	if unread := len(c.in.buf); unread > 0 {
		c.in.buf = nil
		c.in.free(unread)
	}
	c.host.forget(c)
	c.changed.Broadcast()
}

// out is the direction in which c writes.
func (c *Conn) out() *pipe { return &c.peer.in }
