package fault_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/fault"
	"github.com/holdfast-net/holdfast/internal/leak"
)

// A pairing makes a datagram socket with faults and its peer, on real sockets.
type pairing func(t *testing.T, faults *fault.Injector) (c, peer net.PacketConn)

func bind(t *testing.T, network, address string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var pairings = map[string]pairing{
	"udp": func(t *testing.T, faults *fault.Injector) (c, peer net.PacketConn) {
		return faults.PacketConn(bind(t, "udp", "127.0.0.1:0")), bind(t, "udp", "127.0.0.1:0")
	},
	"udp6": func(t *testing.T, faults *fault.Injector) (c, peer net.PacketConn) {
		if one, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
			t.Skip(err)
		} else {
			one.Close()
		}
		return faults.PacketConn(bind(t, "udp6", "[::1]:0")), bind(t, "udp6", "[::1]:0")
	},
	"unixgram": func(t *testing.T, faults *fault.Injector) (c, peer net.PacketConn) {
		if runtime.GOOS == "windows" {
			t.Skip("it has none")
		}
		dir := t.TempDir()
		return faults.PacketConn(bind(t, "unixgram", filepath.Join(dir, "c"))), bind(t, "unixgram", filepath.Join(dir, "p"))
	},
	"bare": func(t *testing.T, faults *fault.Injector) (c, peer net.PacketConn) { // no net.Conn
		bare := struct{ net.PacketConn }{bind(t, "udp", "127.0.0.1:0")}
		return faults.PacketConn(bare), bind(t, "udp", "127.0.0.1:0")
	},
}

var harmless = map[string]fault.Plan{
	"clean": {},
	"slow":  {Up: fault.Link{Latency: 100 * time.Microsecond}, Down: fault.Link{Latency: 100 * time.Microsecond}},
	"up":    {Up: fault.Link{Bandwidth: 200 << 20}},
	"down":  {Down: fault.Link{Packets: fault.Packets{Loss: 1e-300}}},
}

// What net.PacketConn promises, in the manner of nettest.TestConn, which is for streams.
func TestPacketConn(t *testing.T) {
	for of, pair := range pairings {
		for how, plan := range harmless {
			for what, test := range map[string]func(t *testing.T, c, peer net.PacketConn){
				"BasicIO": packetIO, "PastTimeout": pastTimeout, "FutureTimeout": futureTimeout,
				"CloseEndsCalls": closeEndsCalls, "AfterClose": afterClose, "ShortRead": shortRead,
				"Concurrent": concurrentCalls,
			} {
				t.Run(of+" "+how+" "+what, func(t *testing.T) {
					leak.Check(t)
					faults := fault.New(plan)
					defer faults.Close()
					c, peer := pair(t, faults)
					peer.SetDeadline(time.Now().Add(patience))
					test(t, c, peer)
				})
			}
		}
	}
}

func packetIO(t *testing.T, c, peer net.PacketConn) {
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 64<<10)
	for _, size := range []int{1, 1000, 9000, 0, 1} {
		data := bytes.Repeat([]byte{byte(size)}, size)
		if n, err := c.WriteTo(data, peer.LocalAddr()); n != size || err != nil {
			t.Fatal(n, err)
		}
		n, from, err := peer.ReadFrom(b)
		if err != nil || !bytes.Equal(b[:n], data) || from.String() != c.LocalAddr().String() {
			t.Fatalf("peer: %d bytes from %v, %v", n, from, err)
		}
		if n, err := peer.WriteTo(data, from); n != size || err != nil {
			t.Fatal(n, err)
		}
		n, from, err = c.ReadFrom(b)
		if err != nil || !bytes.Equal(b[:n], data) || from.String() != peer.LocalAddr().String() {
			t.Fatalf("%d bytes from %v, %v", n, from, err)
		}
	}
}

func wantTimeout(t *testing.T, err error) {
	t.Helper()
	var e *net.OpError
	if !errors.As(err, &e) || !e.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want a timeout", err)
	}
}

func wantClosed(t *testing.T, err error) {
	t.Helper()
	var e *net.OpError
	if !errors.As(err, &e) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("error %v, want one of a closed socket", err)
	}
}

func pastTimeout(t *testing.T, c, peer net.PacketConn) {
	c.SetDeadline(time.Unix(1, 0))
	for range 2 {
		n, _, err := c.ReadFrom(make([]byte, 10))
		if wantTimeout(t, err); n != 0 {
			t.Error(n)
		}
		n, err = c.WriteTo([]byte("x"), peer.LocalAddr())
		if wantTimeout(t, err); n != 0 {
			t.Error(n)
		}
	}
	packetIO(t, c, peer)
}

func futureTimeout(t *testing.T, c, peer net.PacketConn) {
	var calls sync.WaitGroup
	for range 2 {
		calls.Go(func() {
			_, _, err := c.ReadFrom(make([]byte, 10))
			wantTimeout(t, err)
		})
	}
	c.SetReadDeadline(time.Now().Add(20 * ms))
	calls.Wait()
	calls.Go(func() {
		_, _, err := c.ReadFrom(make([]byte, 10))
		wantTimeout(t, err)
	})
	c.SetReadDeadline(time.Time{})
	c.SetReadDeadline(time.Now()) // which a call that waits is to notice
	calls.Wait()
	packetIO(t, c, peer)
}

func closeEndsCalls(t *testing.T, c, peer net.PacketConn) {
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			_, _, err := c.ReadFrom(make([]byte, 10))
			wantClosed(t, err)
		})
	}
	runtime.Gosched()
	if _, err := c.WriteTo([]byte("last"), peer.LocalAddr()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	calls.Wait()
	b := make([]byte, 10)
	if n, _, err := peer.ReadFrom(b); string(b[:n]) != "last" {
		t.Error(n, err)
	}
}

func afterClose(t *testing.T, c, peer net.PacketConn) {
	c.Close()
	_, _, err := c.ReadFrom(make([]byte, 10))
	wantClosed(t, err)
	_, err = c.WriteTo([]byte("x"), peer.LocalAddr())
	wantClosed(t, err)
	wantClosed(t, c.Close())
	wantClosed(t, c.SetReadDeadline(time.Now()))
	wantClosed(t, c.SetWriteDeadline(time.Now()))
	if c.SetDeadline(time.Now()) == nil || c.LocalAddr() == nil {
		t.Error("no error, or no address")
	}
}

// What does not fit is gone, as ever.
func shortRead(t *testing.T, c, peer net.PacketConn) {
	if runtime.GOOS == "windows" {
		t.Skip("it makes that an error, except under faults")
	}
	c.SetDeadline(time.Now().Add(patience))
	peer.WriteTo([]byte("long"), c.LocalAddr())
	peer.WriteTo([]byte("next"), c.LocalAddr())
	b := make([]byte, 2)
	for _, want := range []string{"lo", "ne"} {
		if n, _, err := c.ReadFrom(b); string(b[:n]) != want || err != nil {
			t.Errorf("%q, %v; want %q", b[:n], err, want)
		}
	}
}

// All methods at the same time; the race detector looks on.
func concurrentCalls(t *testing.T, c, peer net.PacketConn) {
	var calls, drain sync.WaitGroup
	for _, sock := range []net.PacketConn{c, peer} { // a full Unix socket makes its senders wait
		drain.Go(func() {
			for {
				if _, _, err := sock.ReadFrom(make([]byte, 10)); errors.Is(err, net.ErrClosed) {
					return
				}
			}
		})
	}
	for range 4 {
		calls.Go(func() {
			for range 50 {
				c.WriteTo([]byte("x"), peer.LocalAddr())
			}
		})
		calls.Go(func() {
			for range 50 {
				c.SetReadDeadline(time.Now().Add(ms))
				c.ReadFrom(make([]byte, 10))
				c.LocalAddr()
			}
		})
		calls.Go(func() {
			for range 50 {
				peer.WriteTo([]byte("y"), c.LocalAddr())
				c.SetWriteDeadline(time.Now().Add(time.Hour))
			}
		})
	}
	calls.Wait()
	c.Close()
	peer.Close()
	drain.Wait()
}

// Plans change, sockets come and go, in no order at all; nothing hangs or is left, and
// every datagram is accounted for.
func TestPacketStorm(t *testing.T) {
	leak.Check(t)
	faults := fault.New(fault.Plan{Seed: 1})
	peer := bind(t, "udp", "127.0.0.1:0")
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 20 {
				var c io.Closer
				if i%2 == 0 {
					conn, err := net.Dial("udp", peer.LocalAddr().String())
					if err != nil {
						t.Error(err)
						return
					}
					conn = faults.Conn(conn)
					for range 20 {
						conn.Write([]byte("to the peer"))
					}
					c = conn
				} else {
					sock, err := net.ListenPacket("udp", "127.0.0.1:0")
					if err != nil {
						t.Error(err)
						return
					}
					sock = faults.PacketConn(sock)
					sock.SetReadDeadline(time.Now().Add(5 * ms))
					for range 20 {
						sock.WriteTo([]byte("to myself"), sock.LocalAddr())
						sock.ReadFrom(make([]byte, 100))
					}
					c = sock
				}
				c.Close()
			}
		})
	}
	all.Go(func() {
		bad := fault.Link{Latency: ms, Jitter: ms, Buffer: 4096, Packets: fault.Packets{
			Loss: 0.1, Burst: fault.Burst{Gap: 10, Length: 3}, Duplicate: 0.3, Reorder: 0.3, Corrupt: 0.3, Truncate: 0.3,
		}}
		for i := range 200 {
			switch i % 4 {
			case 0:
				faults.Set(fault.Plan{Up: bad})
			case 1:
				faults.Set(fault.Plan{Down: bad})
			case 2:
				faults.Set(fault.Plan{Up: bad, Down: fault.Link{Then: fault.BlackHole}})
			case 3:
				faults.Set(fault.Plan{})
			}
			runtime.Gosched()
			faults.Stats()
		}
	})
	all.Wait()
	faults.Close()
	got := faults.Stats()
	if got.Open != 0 || got.Conns != 160 {
		t.Errorf("%+v", got)
	}
	balanced(t, "up", got.UpPackets)
	balanced(t, "down", got.DownPackets)
}

// On a real socket too an answer of ICMP reaches the user.
func TestPacketRefusedByKernel(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("others say it otherwise")
	}
	for name, plan := range harmless {
		leak.Check(t)
		faults := fault.New(plan)
		gone := bind(t, "udp", "127.0.0.1:0")
		gone.Close()
		c, err := faults.Dial(nil)(t.Context(), "udp", gone.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte("anyone?")); err != nil {
			t.Error(name, err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", name, err)
		}
		faults.Close()
	}
}

// Somebody closes the socket underneath.
func TestPacketClosedUnderneath(t *testing.T) {
	leak.Check(t)
	faults := fault.New(fault.Plan{Down: fault.Link{Latency: ms}, Up: fault.Link{Latency: ms}})
	defer faults.Close()
	below := bind(t, "udp", "127.0.0.1:0")
	c := faults.PacketConn(below)
	below.Close()
	for range 2 {
		_, _, err := c.ReadFrom(make([]byte, 1))
		wantClosed(t, err)
	}
	c.Close()
}

// A socket may be a net.PacketConn, a net.Conn, or both, and stays what it is. A Unix
// stream has the methods of a net.PacketConn and is none.
func TestWhatIsAPacketConn(t *testing.T) {
	leak.Check(t)
	faults := fault.New(fault.Plan{Down: fault.Link{Packets: fault.Packets{Duplicate: 1}}})
	defer faults.Close()
	sock := bind(t, "udp", "127.0.0.1:0")
	dial := func() net.Conn {
		c, err := net.Dial("udp", sock.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var both, conn any = faults.Conn(dial()), faults.Conn(struct{ net.Conn }{dial()})
	if _, ok := both.(net.PacketConn); !ok {
		t.Error("both: no net.PacketConn")
	}
	if _, ok := conn.(net.PacketConn); ok {
		t.Error("conn: a net.PacketConn")
	}
	var full, bare any = faults.PacketConn(sock), faults.PacketConn(struct{ net.PacketConn }{bind(t, "udp", "127.0.0.1:0")})
	if _, ok := full.(net.Conn); !ok {
		t.Error("full: no net.Conn")
	}
	if _, ok := bare.(net.Conn); ok {
		t.Error("bare: a net.Conn")
	}
	if _, err := full.(net.Conn).Write([]byte("x")); err == nil {
		t.Error("full: wrote to nobody")
	}
	if _, err := full.(net.PacketConn).WriteTo([]byte("x"), nil); err == nil {
		t.Error("full: wrote to nil")
	}
	conn.(net.Conn).Write([]byte("twice"))
	b := make([]byte, 10)
	_, from, err := full.(net.PacketConn).ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	full.(net.PacketConn).WriteTo([]byte("back"), from)
	for range 2 {
		if n, err := conn.(net.Conn).Read(b); string(b[:n]) != "back" || err != nil {
			t.Error(n, err)
		}
	}

	if runtime.GOOS == "windows" {
		return
	}
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	stream, err := faults.Dial(nil)(t.Context(), "unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := stream.(net.PacketConn); ok {
		t.Error("a stream has become a net.PacketConn")
	}
}

func BenchmarkPacketWrite(b *testing.B) {
	run := func(b *testing.B, c net.PacketConn) {
		data, to := make([]byte, 64), &net.UDPAddr{}
		b.ReportAllocs()
		for b.Loop() {
			c.WriteTo(data, to)
		}
	}
	lossy := fault.Plan{Up: fault.Link{Packets: fault.Packets{Loss: 0.01}}}
	b.Run("bare", func(b *testing.B) { run(b, &sink{}) })
	b.Run("clean", func(b *testing.B) { run(b, fault.New(fault.Plan{}).PacketConn(&sink{})) })
	b.Run("lossy", func(b *testing.B) { run(b, fault.New(lossy).PacketConn(&sink{})) })
}
