// Package sockopt sets the options of sockets and asks, without waiting, what a
// connection at rest has to say.
//
// What a system lacks is left out: TCP_USER_TIMEOUT exists on Linux only, and a
// poll of one descriptor on Unix systems.
package sockopt

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// Options are concrete values: defaults are the caller's business. Zero durations
// and sizes leave the system's value alone.
type Options struct {
	KeepAlive        net.KeepAliveConfig // Enable false turns keepalive off
	UserTimeout      time.Duration       // TCP_USER_TIMEOUT, RFC 5482
	RecvBuf, SendBuf int                 // bytes
	Nagle            bool                // delay small writes
}

// Control sets what must be set before connecting, so that the window scale fits
// the buffers. It is a [net.Dialer.Control].
func (o Options) Control(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var err error
	if e := c.Control(func(fd uintptr) { err = o.beforeConnect(fd) }); e != nil {
		return e
	}
	return err
}

// Apply sets the rest on a connection. What is not TCP is left as it is.
func (o Options) Apply(c net.Conn) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	return errors.Join(tcp.SetKeepAliveConfig(o.KeepAlive), tcp.SetNoDelay(!o.Nagle))
}

// Readiness is what a connection at rest has to say.
type Readiness uint8

const (
	Idle     Readiness = iota // healthy, nothing to read
	Readable                  // bytes wait
	Closed                    // the peer closed or reset it, or we did; bytes may wait too
	Unknown                   // this system cannot tell
)

// Poller asks one connection, again and again, without allocating. It is not safe
// for concurrent use; closing the connection meanwhile is.
type Poller struct {
	raw   syscall.RawConn // nil when there is nothing to ask
	ask   func(fd uintptr)
	state Readiness
}

// NewPoller returns a Poller for a connection.
func NewPoller(c syscall.Conn) *Poller {
	p := &Poller{}
	p.raw, _ = c.SyscallConn()
	p.ask = func(fd uintptr) { p.state = poll(fd) } // made once: a closure per poll would allocate
	return p
}

// Poll asks with one system call that does not wait.
func (p *Poller) Poll() Readiness {
	if p.raw == nil {
		return Unknown
	}
	if p.raw.Control(p.ask) != nil {
		return Closed
	}
	return p.state
}
