package mmsg_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/mmsg"
)

var timeless time.Time

// plain hides what a *net.UDPConn can do: what is left is the portable way.
type plain struct{ net.PacketConn }

// eachWay runs a test with batches and without.
func eachWay(t *testing.T, test func(t *testing.T, open func(addr string, o mmsg.Options) (*mmsg.Conn, *net.UDPConn))) {
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprintf("portable=%t", portable), func(t *testing.T) {
			leak.Check(t)
			test(t, func(addr string, o mmsg.Options) (*mmsg.Conn, *net.UDPConn) {
				udp := listen(t, addr)
				var pc net.PacketConn = udp
				if portable {
					pc = plain{udp}
				}
				return mmsg.New(pc, o), udp
			})
		})
	}
}

func listen(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { pc.Close() })
	pc.SetDeadline(time.Now().Add(20 * time.Second))
	return pc.(*net.UDPConn)
}

func buffers(c *mmsg.Conn, n, size int) []mmsg.Message {
	ms := make([]mmsg.Message, c.Batch(n))
	for i := range ms {
		ms[i].Buf = make([]byte, size)
	}
	return ms
}

// collect receives until it has n datagrams, a run being several.
func collect(t testing.TB, c *mmsg.Conn, n, size int) (got []string) {
	t.Helper()
	in := buffers(c, 16, size)
	for len(got) < n {
		k, err := c.Receive(in)
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(got), n, err)
		}
		for _, m := range in[:k] {
			data := m.Buf[:m.N]
			for m.Segment > 0 && len(data) > m.Segment {
				got = append(got, string(data[:m.Segment]))
				data = data[m.Segment:]
			}
			got = append(got, string(data))
		}
	}
	return got
}

func addrOf(c *net.UDPConn) netip.AddrPort {
	ap := c.LocalAddr().(*net.UDPAddr).AddrPort()
	addr := ap.Addr().Unmap()
	if addr == netip.IPv6Unspecified() || addr == netip.IPv4Unspecified() {
		addr = netip.MustParseAddr("127.0.0.1")
	}
	return netip.AddrPortFrom(addr, ap.Port())
}

func TestSendAndReceive(t *testing.T) {
	sizes := []int{0, 1, 1000, 1000, 1000, 1000, 400, 1000, 0, 0, 1452, 1453, 1453, 9000, 9000, 65507, 7}
	for _, o := range []mmsg.Options{{}, {NoGSO: true}, {GRO: true}} {
		eachWay(t, func(t *testing.T, open func(string, mmsg.Options) (*mmsg.Conn, *net.UDPConn)) {
			a, _ := open("127.0.0.1:0", o)
			b, at := open("127.0.0.1:0", o)
			at.SetReadBuffer(1 << 20)
			var out []mmsg.Message
			var want []string
			for i, size := range sizes {
				text := bytes.Repeat([]byte{byte('a' + i)}, size)
				want = append(want, string(text))
				out = append(out, mmsg.Message{Buf: text, Peer: addrOf(at)})
			}
			if failed, err := a.Send(out); err != nil {
				t.Fatal(failed, err)
			}
			got := collect(t, b, len(want), 1<<16)
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("datagram %d has %d bytes %.3q…, not %d", i, len(got[i]), got[i], len(want[i]))
				}
			}
		})
	}
}

// What leaves as one comes as one, to who can take it.
func TestRunsStayTogether(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("no runs")
	}
	sender, receiver := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	b := mmsg.New(receiver, mmsg.Options{GRO: true})
	for _, noGSO := range []bool{false, true} {
		a := mmsg.New(sender, mmsg.Options{NoGSO: noGSO})
		var out []mmsg.Message
		for _, size := range []int{1000, 1000, 1000, 400} {
			out = append(out, mmsg.Message{Buf: make([]byte, size), Peer: addrOf(receiver)})
		}
		if _, err := a.Send(out); err != nil {
			t.Fatal(err)
		}
		in := buffers(b, 1, 1<<16)
		if _, err := b.Receive(in); err != nil {
			t.Fatal(err)
		}
		if noGSO {
			if in[0].N != 1000 {
				t.Errorf("alone, %d bytes came", in[0].N)
			}
		} else if in[0].N != 3400 || in[0].Segment != 1000 {
			t.Errorf("%d bytes came, in pieces of %d", in[0].N, in[0].Segment)
		}
	}
}

// Whoever is asked at one of many addresses replies from it.
func TestReplyFromTheAddressThatWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
	for _, bound := range []string{"0.0.0.0:0", "[::]:0"} {
		for _, asked := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
			server := listen(t, bound)
			ip := netip.MustParseAddr(asked)
			if bound == "0.0.0.0:0" && ip.Is6() {
				continue
			}
			c := mmsg.New(server, mmsg.Options{})
			to := netip.AddrPortFrom(ip, addrOf(server).Port())
			client, err := net.Dial("udp", to.String()) // it hears nobody else
			if err != nil {
				t.Skip(err)
			}
			defer client.Close()
			client.SetDeadline(time.Now().Add(10 * time.Second))
			client.Write([]byte("ask"))
			in := buffers(c, 4, 100)
			if n, err := c.Receive(in); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if in[0].Local != ip || in[0].Peer != client.LocalAddr().(*net.UDPAddr).AddrPort() {
				t.Errorf("bound to %s, asked at %s: from %s to %s", bound, asked, in[0].Peer, in[0].Local)
			}
			reply := mmsg.Message{Buf: []byte("reply"), Peer: in[0].Peer, Local: in[0].Local}
			if _, err := c.Send([]mmsg.Message{reply, reply, reply}); err != nil {
				t.Error(err)
			}
			for range 3 {
				b := make([]byte, 10)
				if n, err := client.Read(b); string(b[:n]) != "reply" {
					t.Errorf("bound to %s, asked at %s: %q, %v", bound, asked, b[:n], err)
				}
			}
		}
	}
}

func TestTruncated(t *testing.T) {
	eachWay(t, func(t *testing.T, open func(string, mmsg.Options) (*mmsg.Conn, *net.UDPConn)) {
		c, at := open("127.0.0.1:0", mmsg.Options{})
		client := listen(t, "127.0.0.1:0")
		in := buffers(c, 1, 100)
		for size, want := range map[int]bool{0: false, 99: false, 101: true, 5000: true} {
			client.WriteToUDPAddrPort(make([]byte, size), addrOf(at))
			if n, err := c.Receive(in); n != 1 || err != nil || in[0].Truncated != want {
				t.Errorf("%d bytes: %d, truncated %t, %v", size, in[0].N, in[0].Truncated, err)
			}
		}
	})
}

// One that cannot be sent does not keep the others back.
func TestSendGoesOnBehindAFailure(t *testing.T) {
	eachWay(t, func(t *testing.T, open func(string, mmsg.Options) (*mmsg.Conn, *net.UDPConn)) {
		a, _ := open("127.0.0.1:0", mmsg.Options{})
		b, at := open("127.0.0.1:0", mmsg.Options{})
		to := addrOf(at)
		six := netip.MustParseAddrPort("[2001:db8::1]:9")
		failed, err := a.Send([]mmsg.Message{
			{Buf: []byte("1"), Peer: six}, {Buf: []byte("2"), Peer: to}, {Buf: make([]byte, 65508), Peer: to},
			{Buf: []byte("3"), Peer: to}, {Buf: []byte("4"), Peer: six}, {Buf: []byte("5"), Peer: six}, {Buf: []byte("6"), Peer: to},
		})
		if failed != 4 || err == nil {
			t.Errorf("%d failed, %v", failed, err)
		}
		if got := collect(t, b, 3, 100); fmt.Sprint(got) != "[2 3 6]" {
			t.Error(got)
		}
	})
}

// A connected socket has one peer, and hears that nobody is there.
func TestConnected(t *testing.T) {
	server := listen(t, "127.0.0.1:0")
	conn, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := mmsg.New(conn, mmsg.Options{})
	if _, err := c.Send([]mmsg.Message{{Buf: []byte("one")}, {Buf: []byte("two")}}); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, mmsg.New(server, mmsg.Options{}), 2, 10); fmt.Sprint(got) != "[one two]" {
		t.Error(got)
	}
	if runtime.GOOS != "linux" {
		return
	}
	server.Close()
	c.Send([]mmsg.Message{{Buf: []byte("three")}})
	if _, err := c.Receive(buffers(c, 4, 100)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestDeadlineAndClose(t *testing.T) {
	eachWay(t, func(t *testing.T, open func(string, mmsg.Options) (*mmsg.Conn, *net.UDPConn)) {
		for what, end := range map[error]func(*net.UDPConn){
			os.ErrDeadlineExceeded: func(c *net.UDPConn) { c.SetReadDeadline(time.Unix(1, 0)) },
			net.ErrClosed:          func(c *net.UDPConn) { c.Close() },
		} {
			c, udp := open("127.0.0.1:0", mmsg.Options{})
			done := make(chan error, 1)
			go func() {
				_, err := c.Receive(buffers(c, 4, 100))
				done <- err
			}()
			end(udp)
			if err := <-done; !errors.Is(err, what) {
				t.Errorf("%v, want %v", err, what)
			}
		}
	})
}

func TestNothingAllocates(t *testing.T) {
	if raceDetector || runtime.GOOS != "linux" {
		t.Skip("only where it counts")
	}
	for _, addr := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		a, b := listen(t, addr), listen(t, addr)
		sender, receiver := mmsg.New(a, mmsg.Options{}), mmsg.New(b, mmsg.Options{})
		out, in := make([]mmsg.Message, 8), buffers(receiver, 8, 100)
		for i := range out {
			out[i] = mmsg.Message{Buf: []byte("some text"), Peer: addrOf(b)}
		}
		round := func() {
			if _, err := sender.Send(out); err != nil {
				t.Fatal(err)
			}
			for n := 0; n < len(out); {
				k, err := receiver.Receive(in)
				if n += k; err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := testing.AllocsPerRun(200, round); n > 0 {
			t.Errorf("%s: %v allocations for 8 datagrams", addr, n)
		}
	}
}
