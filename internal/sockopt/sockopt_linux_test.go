package sockopt

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair on loopback, dialed with options.
func pair(t testing.TB, o Options) (client, server net.Conn) {
	t.Helper()
	return connect(t, listen(t, "tcp", "127.0.0.1:0"), o)
}

func listen(t testing.TB, network, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// connect takes one connection from a listener, and closes it.
func connect(t testing.TB, ln net.Listener, o Options) (client, server net.Conn) {
	t.Helper()
	defer ln.Close()
	d := net.Dialer{Control: o.Control, KeepAlive: -1}
	client, err := d.DialContext(t.Context(), ln.Addr().Network(), ln.Addr().String())
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

func option(t *testing.T, c syscall.Conn, level, name int) (value int) {
	t.Helper()
	raw, err := c.SyscallConn()
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
		KeepAlive:   net.KeepAliveConfig{Enable: true, Idle: 16 * time.Second, Interval: 5 * time.Second, Count: 3},
		UserTimeout: 31 * time.Second,
	})
	for _, o := range []struct {
		what              string
		level, name, want int
	}{
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 16},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 31_000},
	} {
		if got := option(t, c.(syscall.Conn), o.level, o.name); got != o.want {
			t.Errorf("%s = %d, want %d", o.what, got, o.want)
		}
	}
}

func TestUserTimeoutIsNeverRoundedAway(t *testing.T) {
	for given, want := range map[time.Duration]int{
		0: 0, -1: 0, 1: 1, time.Millisecond: 1, 1500 * time.Microsecond: 2, 1 << 62: 1<<31 - 1,
	} {
		c, _ := pair(t, Options{UserTimeout: given})
		if got := option(t, c.(syscall.Conn), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != want {
			t.Errorf("%v: TCP_USER_TIMEOUT = %d, want %d", given, got, want)
		}
	}
}

func TestKeepAliveOff(t *testing.T) {
	c, _ := pair(t, Options{})
	if got := option(t, c.(syscall.Conn), unix.SOL_SOCKET, unix.SO_KEEPALIVE); got != 0 {
		t.Errorf("SO_KEEPALIVE = %d, want off", got)
	}
}

func TestNoDelayUnlessNagle(t *testing.T) {
	for _, nagle := range []bool{false, true} {
		c, _ := pair(t, Options{Nagle: nagle})
		if got := option(t, c.(syscall.Conn), unix.IPPROTO_TCP, unix.TCP_NODELAY) != 0; got == nagle {
			t.Errorf("Nagle %v: TCP_NODELAY is %v", nagle, got)
		}
	}
}

func TestBufferSizes(t *testing.T) {
	c, _ := pair(t, Options{RecvBuf: 65536, SendBuf: 32768})
	for name, want := range map[int]int{unix.SO_RCVBUF: 65536, unix.SO_SNDBUF: 32768} {
		if got := option(t, c.(syscall.Conn), unix.SOL_SOCKET, name); got != 2*want { // Linux doubles it for its own use
			t.Errorf("option %d = %d, want %d", name, got, 2*want)
		}
	}
}

func TestBuffersOfAListenerAreInherited(t *testing.T) {
	o := Options{RecvBuf: 65536}
	ln, err := (&net.ListenConfig{Control: o.Control}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, server := connect(t, ln, Options{})
	if got := option(t, server.(syscall.Conn), unix.SOL_SOCKET, unix.SO_RCVBUF); got != 2*65536 {
		t.Errorf("SO_RCVBUF of what was accepted = %d", got)
	}
}

func TestWhatIsNotTCPIsLeftAlone(t *testing.T) {
	o := Options{KeepAlive: net.KeepAliveConfig{Enable: true}, RecvBuf: 1 << 20, UserTimeout: time.Second}
	plain, _ := connect(t, listen(t, "unix", filepath.Join(t.TempDir(), "s")), Options{})
	c, _ := connect(t, listen(t, "unix", filepath.Join(t.TempDir(), "s")), o)
	got := option(t, c.(syscall.Conn), unix.SOL_SOCKET, unix.SO_RCVBUF)
	if want := option(t, plain.(syscall.Conn), unix.SOL_SOCKET, unix.SO_RCVBUF); got != want {
		t.Errorf("SO_RCVBUF of a Unix socket went from %d to %d", want, got)
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if err := o.Apply(near); err != nil {
		t.Errorf("a pipe: %v", err)
	}
}

func TestApplyReachesAnEmbeddedTCPConn(t *testing.T) {
	c, _ := pair(t, Options{})
	wrapped := struct{ *net.TCPConn }{c.(*net.TCPConn)}
	if err := (Options{Nagle: true}).Apply(wrapped); err != nil {
		t.Fatal(err)
	}
	if got := option(t, wrapped, unix.IPPROTO_TCP, unix.TCP_NODELAY); got != 0 {
		t.Errorf("TCP_NODELAY = %d, want off", got)
	}
}

func TestErrorsNameTheCall(t *testing.T) {
	c, _ := pair(t, Options{})
	raw, _ := c.(syscall.Conn).SyscallConn()
	c.Close()
	if err := (Options{}).Control("tcp4", "", raw); err == nil {
		t.Error("a closed socket took options")
	}
	if err := (Options{}).Apply(c); err == nil {
		t.Error("a closed connection took options")
	}
	var refused *os.SyscallError
	err := Options{RecvBuf: 1}.set(^uintptr(0) >> 1)
	if e, ok := err.(interface{ Unwrap() []error }); !ok || len(e.Unwrap()) != 1 {
		t.Fatalf("a bad descriptor: %v", err)
	} else if refused, ok = e.Unwrap()[0].(*os.SyscallError); !ok || refused.Syscall != "setsockopt" {
		t.Errorf("a bad descriptor: %v", err)
	}
}
