// Package sockopt sets the options of a socket, and asks a connection at rest,
// without waiting, what has become of it.
//
//	o := sockopt.Options{
//		KeepAlive:   net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
//		UserTimeout: 30 * time.Second,
//	}
//	d := net.Dialer{Control: o.Control, KeepAlive: -1} // -1: Apply does it
//	conn, err := d.DialContext(ctx, "tcp", addr)
//	…
//	err = o.Apply(conn)
//
//	p := sockopt.NewPoller(conn.(syscall.Conn))
//	…
//	if p.Poll() == sockopt.Closed { // before writing to a connection that was idle
//
// # Two moments
//
// Control runs before the socket connects or listens: a receive buffer must be set by
// then to count for the window scale, which the SYN announces (RFC 7323 §2.2). Apply
// runs after, for what package net can set.
//
// # Half-open connections
//
// Keepalive finds a dead peer on an idle connection, and only there: while bytes are
// unacknowledged Linux sends no probe, and retransmits for 15 minutes (tcp_retries2).
// TCP_USER_TIMEOUT (RFC 5482) bounds that. It bounds keepalive too, instead of its
// count (gRFC A18), so it should be no less than Idle + Interval·Count.
//
// # Liveness
//
// Reading from a connection at rest tells a live one from a closed one only in
// plaintext: a TLS peer that closes leaves an alert to be read before the end, and
// a healthy TLS 1.3 server leaves session tickets. On Linux Poll asks for POLLRDHUP,
// which only the peer's FIN or RST raises, with bytes before it or without. Elsewhere
// it peeks at the next byte: bytes before the end hide it, and Poll says Readable.
//
// No poll can see a peer that vanished without a FIN or RST. A connection that is
// Idle now may be closed by the time its next byte is written.
//
// # Systems
//
// TCP_USER_TIMEOUT exists on Linux only; elsewhere it is left out. Poll needs Unix;
// elsewhere it is Unknown for what is open. All else is everywhere.
package sockopt

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// Options are what to set on a socket. They are concrete values: the defaults are the
// caller's business. The zero Options turn keepalive off, delay no small write, and
// leave the rest to the system. They are not changed by use and may be shared.
type Options struct {
	// KeepAlive as package net has it: in a field 0 means 15 s or 9 probes, and
	// negative leaves the system's value. Enable false turns keepalive off.
	KeepAlive net.KeepAliveConfig

	UserTimeout      time.Duration // TCP_USER_TIMEOUT, to the millisecond, rounded up; 0 and less leave the system's
	RecvBuf, SendBuf int           // bytes; 0 and less let the system tune them, which setting them ends
	Nagle            bool          // delay small writes while bytes are unacknowledged (RFC 896)
}

// Control sets the buffers and the user timeout of a TCP socket that is yet to
// connect or listen; other networks it leaves alone. It has the type of
// [net.Dialer.Control] and [net.ListenConfig.Control]. The kernel cuts buffers to its
// own limits (net.core.rmem_max, wmem_max) without an error.
func (o Options) Control(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var err error
	if e := c.Control(func(fd uintptr) { err = o.set(fd) }); e != nil {
		return e
	}
	return err
}

// Apply sets keepalive and Nagle on a TCP connection, dialed or accepted. Any other
// is left as it is: a Unix socket has neither, and TLS has them beneath.
func (o Options) Apply(c net.Conn) error {
	tcp, ok := c.(interface { // a *net.TCPConn, and what embeds one
		SetKeepAliveConfig(net.KeepAliveConfig) error
		SetNoDelay(bool) error
	})
	if !ok {
		return nil
	}
	var err error
	if o.Nagle { // package net has set TCP_NODELAY: that call can be spared
		err = tcp.SetNoDelay(false)
	}
	return errors.Join(tcp.SetKeepAliveConfig(o.KeepAlive), err)
}

// unlimited is a number of files that nobody has.
const unlimited = 1 << 24
