package serve_test

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// A13, A14: what the kernel says about an accepted socket.
func TestSocketOptions(t *testing.T) {
	type options struct{ keepAlive, idle, interval, count, userTimeout, noDelay int }
	for _, c := range []struct {
		name string
		set  serve.Socket
		want options
	}{
		{"default", serve.Socket{}, options{1, 15, 5, 3, 30_000, 1}},
		{"chosen", serve.Socket{KeepAlive: 10 * time.Second, KeepAliveInterval: 2 * time.Second, KeepAliveCount: 4, UserTimeout: 20 * time.Second, Nagle: true},
			options{1, 10, 2, 4, 20_000, 0}},
		{"off", serve.Socket{KeepAlive: -1, UserTimeout: -1}, options{0, -1, -1, -1, 0, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			got := make(chan options, 1)
			srv := raw(func(_ context.Context, c *serve.Conn) error {
				rc, err := c.SyscallConn()
				if err != nil {
					return err
				}
				return rc.Control(func(fd uintptr) {
					get := func(level, name int) int {
						n, err := unix.GetsockoptInt(int(fd), level, name)
						if err != nil {
							t.Error(err)
						}
						return n
					}
					got <- options{
						get(unix.SOL_SOCKET, unix.SO_KEEPALIVE), get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE),
						get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT),
						get(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT), get(unix.IPPROTO_TCP, unix.TCP_NODELAY),
					}
				})
			})
			srv.Socket = c.set
			dial(t, start(t, srv)).expectEnd()
			o := <-got
			if c.want.idle < 0 {
				o.idle, o.interval, o.count = -1, -1, -1 // the system's
			}
			if o != c.want {
				t.Errorf("%+v, want %+v", o, c.want)
			}
		})
	}
}

// A13: what an operator may ask about a connection, and the sizes of its buffers.
func TestInfo(t *testing.T) {
	leak.Check(t)
	got := make(chan serve.Info, 1)
	srv := raw(func(_ context.Context, c *serve.Conn) error {
		info, err := c.Info()
		got <- info
		return err
	})
	srv.Socket = serve.Socket{RecvBuf: 20_000, SendBuf: 30_000}
	dial(t, start(t, srv)).expectEnd()
	if i := <-got; !i.KeepAlive || !i.NoDelay || !i.ReuseAddr || i.RecvBuf != 40_000 || i.SendBuf != 60_000 { // the kernel doubles
		t.Errorf("%+v", i)
	}
	dial(t, start(t, srv, "unix:@holdfast-info")).expectEnd()
	if i := <-got; i.NoDelay || i.RTT != 0 {
		t.Errorf("%+v", i)
	}
}
