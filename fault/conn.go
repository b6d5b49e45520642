package fault

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A conn is a connection with faults. A direction is direct while its link is clean:
// calls go to inner. The first fault makes it piped, for good: bytes go through its
// line, and a goroutine of the conn's stands at inner's end of it.
//
// inner is called without mu, except for its deadlines: these say which of a direct
// call and a change to piped came first.
type conn struct {
	inner  net.Conn
	owner  *Injector
	number uint64

	mu      sync.Mutex
	changed sync.Cond // signalled by whatever may let a waiting call go on
	up      way
	down    way
	writing bool      // a Write is under way in the line
	booted  bool      // inner's write deadline has to be set again before the next Write
	halve   bool      // deliver has to end inner's sending side
	closed  bool      // by its user
	until   time.Time // closed, when the bytes under way are given up
	reset   bool      // both sides are told ECONNRESET
	severed bool      // ended in both directions, but perhaps not closed
	ending  bool      // somebody is about to close inner, and to say so by shut
	ended   bool      // inner is closed
}

// A way is one direction: its line, and the calls of the user's side.
type way struct {
	line
	piped    bool
	running  bool        // its goroutine has not ended: deliver on the way up, fetch on the way down
	pumping  bool        // its goroutine will deal with what is pushed
	cut      bool        // by a plan
	calls    int         // direct calls under way
	over     error       // what calls fail with from now on; what is under way up may still arrive
	alarm    *time.Timer // wakes those who wait for an arrival
	deadline deadline
}

type halfCloser interface{ CloseWrite() error }

// halfConn is a conn of which inner can close one direction.
type halfConn struct{ *conn }

func (c *conn) LocalAddr() net.Addr  { return c.inner.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }
func (c *conn) NetConn() net.Conn    { return c.inner }

func (c *conn) Read(b []byte) (int, error) {
	if c.enter(&c.down) {
		n, err := c.inner.Read(b)
		c.owner.counts.down.Add(int64(n))
		if c.leave(&c.down, err, false) || n > 0 {
			return n, err
		}
	}
	n, reset, err := c.read(b)
	if reset {
		c.shut(Reset)
	}
	return n, c.opError("read", err)
}

func (c *conn) Write(b []byte) (n int, err error) {
	if c.enter(&c.up) {
		n, err = c.inner.Write(b)
		c.owner.counts.up.Add(int64(n))
		if c.leave(&c.up, err, n > 0) {
			return n, err
		}
	}
	m, err := c.write(b[n:], n > 0)
	return n + m, c.opError("write", err)
}

// enter begins a direct call, if the direction is direct.
func (c *conn) enter(w *way) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !w.piped {
		w.calls++
	}
	return !w.piped
}

// leave ends a direct call. It reports false if the call is to go on in the line, because
// the direction is not direct any more. Who has written a part is then the one who writes.
func (c *conn) leave(w *way, err error, part bool) (done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.calls--
	c.changed.Broadcast()
	switch {
	case err == nil:
		return true
	case c.closed:
	case !w.piped, !c.severed && !isTimeout(err):
		return true
	}
	c.writing = c.writing || part
	return false
}

func (c *conn) read(b []byte) (n int, reset bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		now := time.Now()
		if err := c.faultLocked(&c.down, now); err != nil {
			return 0, false, err
		}
		n = c.down.read(b, now)
		if n > 0 || len(b) == 0 {
			c.owner.counts.down.Add(int64(n))
			c.changed.Broadcast() // there is room
			return n, c.strikeLocked(), nil
		}
		_, ready, wait := c.down.look(now)
		if ready {
			c.down.over = c.down.pop().err
			continue
		}
		c.waitLocked(&c.down, wait)
	}
}

// write puts b into the line. It is the caller's turn if mine; else it waits for those
// who write, so that writes do not mix.
func (c *conn) write(b []byte, mine bool) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		now := time.Now()
		if err = c.faultLocked(&c.up, now); err != nil {
			break
		}
		if !c.writing && c.up.calls == 0 {
			c.writing, mine = true, true
		}
		if room := c.up.room(); mine && room > 0 && n < len(b) {
			data := b[n:][:min(room, len(b)-n)]
			c.up.push(piece{at: now, data: append([]byte(nil), data...)})
			n += len(data)
			c.changed.Broadcast()
		}
		if mine && n == len(b) {
			break
		}
		c.changed.Wait()
	}
	if mine {
		c.writing = false
		c.changed.Broadcast()
	}
	return n, err
}

// faultLocked is why a call on a piped direction fails, nil if it does not.
func (c *conn) faultLocked(w *way, now time.Time) error {
	switch {
	case c.closed:
		return net.ErrClosed
	case w.deadline.passed(now):
		return os.ErrDeadlineExceeded
	case c.reset:
		return syscall.ECONNRESET
	}
	return w.over
}

// waitLocked gives up the lock until something has changed, or d is over unless negative.
func (c *conn) waitLocked(w *way, d time.Duration) {
	switch {
	case d < 0:
	case w.alarm == nil:
		w.alarm = time.AfterFunc(d, c.wake)
	default:
		w.alarm.Reset(d)
	}
	c.changed.Wait()
}

func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed.Broadcast()
}

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.down, t, c.inner.SetReadDeadline)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.up, t, c.inner.SetWriteDeadline)
}

func (c *conn) setDeadline(w *way, t time.Time, direct func(time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return c.opError("set", net.ErrClosed)
	case !w.piped:
		w.deadline.at = t // for when it becomes piped
		return direct(t)
	}
	w.deadline.set(t, c.wake)
	c.changed.Broadcast()
	return nil
}

// A deadline is a time, and while the direction is piped a timer that wakes its calls.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

// set moves the deadline; zero removes it. The time is kept as a distance from now,
// which survives a wall clock that is set meanwhile.
func (d *deadline) set(t time.Time, wake func()) {
	d.stop()
	d.at = t
	if t.IsZero() {
		return
	}
	now := time.Now()
	left := t.Sub(now)
	d.at = now.Add(left)
	if left > 0 {
		d.timer = time.AfterFunc(left, wake)
	}
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

func (d *deadline) passed(now time.Time) bool { return !d.at.IsZero() && !d.at.After(now) }

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (c *conn) opError(op string, err error) error {
	return opError(op, c.LocalAddr(), c.RemoteAddr(), err)
}

// opError dresses an error of ours as package net would. What comes from inner, success
// and [io.EOF] pass as they are.
func opError(op string, local, remote net.Addr, err error) error {
	switch e := err.(type) {
	case syscall.Errno:
		err = os.NewSyscallError(op, e)
	default:
		if err != net.ErrClosed && err != os.ErrDeadlineExceeded {
			return err
		}
	}
	return &net.OpError{Op: op, Net: local.Network(), Source: local, Addr: remote, Err: err}
}
