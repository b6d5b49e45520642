package sockopt

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair on loopback, dialed with options.
func pair(t *testing.T, o Options) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, ln, o)
}

func connect(t *testing.T, ln net.Listener, o Options) (client, server net.Conn) {
	t.Helper()
	defer ln.Close()
	d := net.Dialer{Control: o.Control, KeepAlive: -1}
	client, err := d.DialContext(context.Background(), ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Apply(client); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func option(t *testing.T, c net.Conn, level, name int) (value int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) })
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestKeepAliveAndUserTimeout(t *testing.T) {
	c, _ := pair(t, Options{
		KeepAlive:   net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		UserTimeout: 30 * time.Second,
	})
	for _, o := range []struct {
		what              string
		level, name, want int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 30_000},
	} {
		if got := option(t, c, o.level, o.name); got != o.want {
			t.Errorf("%s = %d, want %d", o.what, got, o.want)
		}
	}
}

func TestKeepAliveOff(t *testing.T) {
	c, _ := pair(t, Options{})
	if got := option(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE); got != 0 {
		t.Errorf("SO_KEEPALIVE = %d, want off", got)
	}
}

func TestNoDelayUnlessNagle(t *testing.T) {
	for _, nagle := range []bool{false, true} {
		c, _ := pair(t, Options{Nagle: nagle})
		if got := option(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY) != 0; got == nagle {
			t.Errorf("Nagle %v: TCP_NODELAY is %v", nagle, got)
		}
	}
}

func TestBufferSizes(t *testing.T) {
	const want = 65536
	c, _ := pair(t, Options{RecvBuf: want, SendBuf: want})
	for _, name := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		if got := option(t, c, unix.SOL_SOCKET, name); got != 2*want { // Linux doubles it for its own use
			t.Errorf("option %d = %d, want %d", name, got, 2*want)
		}
	}
}

// settled polls until the connection says want: what the peer did takes a moment
// to arrive.
func settled(t *testing.T, c net.Conn, want Readiness) {
	t.Helper()
	p := NewPoller(c.(syscall.Conn))
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var got Readiness
	for range 5000 {
		if got = p.Poll(); got == want {
			return
		}
		<-tick.C
	}
	t.Errorf("readiness %d, want %d", got, want)
}

func TestPollTellsWhatTheKernelKnows(t *testing.T) {
	networks := map[string]func(t *testing.T) net.Listener{
		"tcp": func(t *testing.T) net.Listener { return listen(t, "tcp", "127.0.0.1:0") },
		"unix": func(t *testing.T) net.Listener {
			return listen(t, "unix", filepath.Join(t.TempDir(), "s"))
		},
	}
	for name, ln := range networks {
		t.Run(name, func(t *testing.T) {
			t.Run("idle", func(t *testing.T) {
				c, _ := connect(t, ln(t), Options{})
				settled(t, c, Idle)
			})
			t.Run("bytes wait", func(t *testing.T) {
				c, s := connect(t, ln(t), Options{})
				io.WriteString(s, "late")
				settled(t, c, Readable)
				got := make([]byte, 4)
				if _, err := io.ReadFull(c, got); err != nil || string(got) != "late" {
					t.Errorf("the poll ate bytes: %q, %v", got, err)
				}
				settled(t, c, Idle)
			})
			t.Run("peer closed", func(t *testing.T) {
				c, s := connect(t, ln(t), Options{})
				s.Close()
				settled(t, c, Closed)
			})
			t.Run("peer wrote and closed", func(t *testing.T) {
				c, s := connect(t, ln(t), Options{})
				io.WriteString(s, "bye")
				s.Close()
				settled(t, c, Closed)
			})
			t.Run("peer closed its sending half", func(t *testing.T) {
				c, s := connect(t, ln(t), Options{})
				s.(interface{ CloseWrite() error }).CloseWrite()
				settled(t, c, Closed)
			})
			t.Run("closed here", func(t *testing.T) {
				c, _ := connect(t, ln(t), Options{})
				p := NewPoller(c.(syscall.Conn))
				c.Close()
				if got := p.Poll(); got != Closed {
					t.Errorf("readiness %d, want Closed", got)
				}
			})
		})
	}
	t.Run("reset", func(t *testing.T) {
		c, s := pair(t, Options{})
		s.(*net.TCPConn).SetLinger(0)
		s.Close()
		settled(t, c, Closed)
	})
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestPollAllocatesNothing(t *testing.T) {
	c, _ := pair(t, Options{})
	p := NewPoller(c.(syscall.Conn))
	if n := testing.AllocsPerRun(100, func() { p.Poll() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPoll(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	p := NewPoller(c.(syscall.Conn))
	for b.Loop() {
		p.Poll()
	}
}
