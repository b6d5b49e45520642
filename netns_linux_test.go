package holdfast_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
)

// needRoot skips a test that only root can run, with programs it needs, and says
// so. In CI that is a failure: there everything is there.
func needRoot(t *testing.T, programs ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "not root"
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = err.Error()
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("cannot run in CI: %s", missing)
	default:
		t.Skipf("needs a network namespace of its own: %s", missing)
	}
}

// inNamespace runs the test again in a process with a network of its own, which
// ends with it, and reports whether this is that process.
func inNamespace(t *testing.T, programs ...string) bool {
	t.Helper()
	needRoot(t, append(programs, "ip")...)
	if !inChild(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}) {
		return false
	}
	run(t, "ip", "link", "set", "lo", "up")
	return true
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// sysctl sets a value of this namespace's IPv4.
func sysctl(t *testing.T, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// The peer is gone without a word: its host lost power, or a firewall on the way
// forgot the connection. What the kernel finds by itself takes a quarter of an
// hour; keepalive and TCP_USER_TIMEOUT make it seconds.
func TestHalfOpenPeerIsFound(t *testing.T) {
	if !inNamespace(t, "nft") {
		return
	}
	server := listenOn(t, "tcp", "127.0.0.1:0", echo)
	cfg := holdfast.Config{
		// At least as short as the kernel lets one set keepalive.
		Socket: holdfast.Socket{
			KeepAlive:   net.KeepAliveConfig{Idle: time.Second, Interval: time.Second, Count: 1},
			UserTimeout: 2 * time.Second,
		},
	}
	c := clusterAt(t, cfg, url(server))
	deaf := clusterAt(t, holdfast.Config{Socket: holdfast.Socket{
		KeepAlive: net.KeepAliveConfig{Idle: -1}, UserTimeout: -1,
	}}, url(server))

	dial := func(c *holdfast.Cluster) net.Conn {
		conn, err := c.DialContext(t.Context(), "tcp", "any:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange(conn, "hello"); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	listening, asking, without := dial(c), dial(c), dial(deaf)
	rest := borrow(t, c)
	if err := exchange(rest, "hello"); err != nil {
		t.Fatal(err)
	}
	rest.Release()

	port := fmt.Sprint(server.(*net.TCPAddr).Port)
	run(t, "nft", "add table inet hole; add chain inet hole in { type filter hook input priority 0; }; "+
		"add rule inet hole in tcp dport "+port+" drop; add rule inet hole in tcp sport "+port+" drop")
	begin := time.Now()

	outcome := map[string]chan error{"nothing under way": make(chan error, 1), "data under way": make(chan error, 1)}
	go func() {
		_, err := listening.Read(make([]byte, 1))
		outcome["nothing under way"] <- err
	}()
	go func() {
		io.WriteString(asking, "anybody?\n")
		_, err := asking.Read(make([]byte, 1))
		outcome["data under way"] <- err
	}()
	never := make(chan error, 1)
	go func() {
		_, err := without.Read(make([]byte, 1))
		never <- err
	}()
	const limit = 30 * time.Second // 2 to 3 s are expected
	for what, found := range outcome {
		select {
		case err := <-found:
			if !errors.Is(err, syscall.ETIMEDOUT) || holdfast.Classify(err) != holdfast.ClassTimeout {
				t.Errorf("%s: %v, want ETIMEDOUT", what, err)
			}
		case <-time.After(limit - time.Since(begin)):
			t.Fatalf("%s: the peer's end was not found within %v", what, limit)
		}
	}
	eventually(t, "the connection at rest left the pool", func() bool { return c.Stats().Idle == 0 })
	select {
	case err := <-never:
		t.Errorf("found without keepalive and user timeout, so not by them: %v", err)
	default:
	}

	run(t, "nft", "flush ruleset")
	for range 3 {
		conn := borrow(t, c)
		if conn == rest {
			t.Fatal("a dead connection was lent")
		}
		if err := exchange(conn, "again"); err != nil {
			t.Error(err)
		}
		conn.Release()
	}
}

func TestPortExhaustionIsAResourceError(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	sysctl(t, "ip_local_port_range", "40000 40009")
	addr := url(listenOn(t, "tcp", "127.0.0.1:7000", echo))
	c := clusterAt(t, holdfast.Config{}, addr)
	var conns []net.Conn
	var last error
	for range 20 {
		conn, err := c.DialContext(t.Context(), "tcp", "any:1")
		if err != nil {
			last = err
			break
		}
		conns = append(conns, conn)
	}
	if n := len(conns); n == 0 || n > 10 {
		t.Fatalf("%d connections from 10 ports", n)
	}
	for i := range 10 { // no spin, and no blame, however often one asks
		begin := time.Now()
		if i > 0 {
			_, last = c.Acquire(t.Context())
		}
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("it took %v to fail", d)
		}
		if e := asError(t, last); e.Class != holdfast.ClassResource || !errors.Is(last, syscall.EADDRNOTAVAIL) || e.Phase != holdfast.PhaseDial {
			t.Fatalf("class %v in phase %v: %v", e.Class, e.Phase, last)
		}
	}
	if n := c.Stats().Nodes[0]; n.Failures != 0 || n.State != holdfast.StateReady {
		t.Errorf("the node is %v with %d failures: %s", n.State, n.Failures, n.Err)
	}
	for _, conn := range conns {
		if err := exchange(conn, "goes on"); err != nil {
			t.Error(err)
		}
	}

	conns[0].(*holdfast.Conn).NetConn().(*net.TCPConn).SetLinger(0) // no TIME_WAIT: the port is free
	conns[0].Close()
	if err := c.Do(t.Context(), holdfast.Unsafe, say("a port again")); err != nil {
		t.Error(err)
	}
}

// A dial to a port of the range that connections begin at, where nobody listens, may
// get that very port as its own: the kernel then connects the socket to itself, and
// everything written comes back. Package net tries again twice, which helps while
// the port rests in TIME_WAIT; a host that is short of those has none.
func TestSelfConnectIsRefused(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	sysctl(t, "ip_local_port_range", "45000 45000")
	sysctl(t, "tcp_max_tw_buckets", "0")
	const addr = "127.0.0.1:45000"
	conn, err := net.Dial("tcp", addr)
	if err != nil || conn.LocalAddr().String() != addr {
		t.Fatalf("no socket was connected to itself, so this proves nothing: %v", err)
	}
	conn.Close()

	c := clusterAt(t, holdfast.Config{}, addr)
	_, err = c.DialContext(t.Context(), "tcp", "any:1")
	if e := asError(t, err); e.Class != holdfast.ClassRefused || e.Phase != holdfast.PhaseDial || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("class %v in phase %v: %v", e.Class, e.Phase, err)
	}
	if n := c.Stats().Conns; n != 0 {
		t.Errorf("%d connections to oneself are left", n)
	}
}

// No network, no host, a firewall's word, nobody at the port: each by its own name.
func TestExchangeUnreachable(t *testing.T) {
	if !inNamespace(t, "nft") {
		return
	}
	run(t, "ip", "addr", "add", "10.1.0.3/32", "dev", "lo")
	run(t, "ip", "addr", "add", "10.1.0.4/32", "dev", "lo")
	run(t, "ip", "route", "add", "unreachable", "10.2.0.0/24")
	// What a router on the way says comes by ICMP, to sockets that asked for it.
	run(t, "nft", "add table inet f; add chain inet f in { type filter hook input priority 0; }; "+
		"add rule inet f in udp dport 53 ip daddr 10.1.0.3 reject with icmp type host-unreachable; "+
		"add rule inet f in udp dport 53 ip daddr 10.1.0.4 reject with icmp type net-unreachable")
	good := packetsOn(t, "127.0.0.1:0", nil)
	for _, test := range []struct {
		addr  string
		class holdfast.Class
		errno syscall.Errno
	}{
		{"10.9.0.1:53", holdfast.ClassUnreachable, syscall.ENETUNREACH}, // no route
		{"10.2.0.1:53", holdfast.ClassUnreachable, syscall.EHOSTUNREACH},
		{"10.1.0.3:53", holdfast.ClassUnreachable, syscall.EHOSTUNREACH},
		{"10.1.0.4:53", holdfast.ClassUnreachable, syscall.ENETUNREACH},
		{"127.0.0.1:9", holdfast.ClassRefused, syscall.ECONNREFUSED},
	} {
		t.Run(test.addr, func(t *testing.T) {
			d := numbered()
			d.First = 20 * time.Second // not by silence
			c := clusterAt(t, holdfast.Config{Datagrams: d, Retry: holdfast.Retry{Attempts: -1}}, "udp://"+test.addr)
			err := asks(t, c, holdfast.Unsafe, "x")
			if e := asError(t, err); e.Class != test.class || !errors.Is(err, test.errno) {
				t.Errorf("class %v: %v", e.Class, err)
			}
			c = clusterAt(t, holdfast.Config{Datagrams: d, Picker: holdfast.Ordered()}, "udp://"+test.addr, url(good.LocalAddr()))
			for range 10 {
				if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
					t.Error(err)
				}
			}
			if n := good.count(); n == 0 {
				t.Error("the other node was not asked")
			}
		})
	}
}
