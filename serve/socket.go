package serve

import (
	"errors"
	"net"
	"time"

	"github.com/holdfast-net/holdfast/internal/sockopt"
)

// Socket is how accepted sockets are set up. 0 is the default, negative leaves it to
// the system.
type Socket struct {
	// KeepAlive is after how much silence the peer is asked whether it is there, then
	// at this interval, and how often before it is given up: 15 s, 5 s, 3.
	KeepAlive         time.Duration
	KeepAliveInterval time.Duration
	KeepAliveCount    int

	// UserTimeout is how long sent bytes may be unacknowledged (RFC 5482): 30 s.
	UserTimeout time.Duration

	RecvBuf, SendBuf int  // bytes; 0 lets the system tune them, which is best nearly always
	Nagle            bool // delay small writes while bytes are unacknowledged
}

func (o Socket) apply(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	opts := sockopt.Options{RecvBuf: o.RecvBuf, SendBuf: o.SendBuf, Nagle: o.Nagle}
	opts.KeepAlive = net.KeepAliveConfig{
		Enable: o.KeepAlive >= 0, Idle: or(o.KeepAlive, 15*time.Second),
		Interval: or(o.KeepAliveInterval, 5*time.Second), Count: or(o.KeepAliveCount, 3),
	}
	opts.UserTimeout = or(o.UserTimeout, 30*time.Second)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(opts.Control("tcp", "", raw), opts.Apply(conn))
}

func or[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}
