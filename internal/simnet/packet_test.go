package simnet_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/internal/simnet"
)

func listenPacket(t *testing.T, n *simnet.Net, addr string) *simnet.PacketConn {
	t.Helper()
	p, err := n.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*simnet.PacketConn)
}

func TestDatagramsGoBothWays(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		s := listenPacket(t, n, addr)
		c := dial(t, n, "udp", addr)
		start := time.Now()
		write(t, c, "question")
		b := make([]byte, 100)
		got, from, err := s.ReadFrom(b)
		if err != nil || string(b[:got]) != "question" || from.String() != c.LocalAddr().String() {
			t.Fatalf("%q from %v, %v", b[:got], from, err)
		}
		s.WriteTo([]byte("answer"), from)
		expect(t, c, "answer")
		took(t, start, 20*ms)

		// A connected socket hears its peer only.
		listenPacket(t, n, "10.0.0.2:7000").WriteTo([]byte("spoof"), from)
		c.SetReadDeadline(time.Now().Add(time.Second))
		readFails(t, c, os.ErrDeadlineExceeded)
	})
}

func TestSameInstantKeepsTheOrder(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		s := listenPacket(t, n, addr)
		c := dial(t, n, "udp", addr)
		for i := range 20 {
			write(t, c, fmt.Sprint("number ", i))
		}
		for i := range 20 {
			expect(t, s, fmt.Sprint("number ", i))
		}
	})
}

func TestDatagramSizes(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		s := listenPacket(t, n, addr)
		c := dial(t, n, "udp", addr)
		_, err := c.Write(make([]byte, 65508))
		fails(t, err, "write", syscall.EMSGSIZE)
		write(t, c, "cut off")
		write(t, c, "")
		for _, want := range []string{"cut", ""} {
			b := make([]byte, 3)
			if got, _, err := s.ReadFrom(b); err != nil || string(b[:got]) != want {
				t.Errorf("%q, %v; want %q", b[:got], err, want)
			}
		}
		s.SetDeadline(time.Now().Add(time.Second))
		readFails(t, s, os.ErrDeadlineExceeded)
		for range 4 { // 208 KiB hold three of them
			c.Write(make([]byte, 65507))
		}
		if lost := n.Stats().Lost; lost != 1 {
			t.Errorf("%d lost to the full buffer, want 1", lost)
		}
		s.SetReadBuffer(300_000)
		c.Write(make([]byte, 65507))
		if lost := n.Stats().Lost; lost != 1 {
			t.Errorf("%d lost to the larger buffer, want 1", lost)
		}
	})
}

func TestRefusedDatagramFailsTheNextCallOnce(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		c := dial(t, n, "udp", addr)
		start := time.Now()
		write(t, c, "anyone?")
		readFails(t, c, syscall.ECONNREFUSED)
		took(t, start, 20*ms)

		write(t, c, "anyone?")
		time.Sleep(20 * ms)
		writeFails(t, c, syscall.ECONNREFUSED)

		n.SetLink("", server, simnet.Link{Reject: syscall.EHOSTUNREACH})
		write(t, c, "anyone?")
		readFails(t, c, syscall.EHOSTUNREACH)

		// An unconnected socket never hears of it.
		p := listenPacket(t, n, "10.0.0.3:0")
		p.WriteTo([]byte("anyone?"), c.RemoteAddr())
		p.SetReadDeadline(time.Now().Add(time.Second))
		readFails(t, p, os.ErrDeadlineExceeded)
	})
}

// arrivals sends 200 numbered datagrams, one a millisecond, and lists what
// arrives when.
func arrivals(t *testing.T, seed uint64, l simnet.Link) (log []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(seed)
		defer n.Close()
		n.SetLink(client, server, l)
		s := listenPacket(t, n, addr)
		c := dial(t, n, "udp", addr)
		go func() {
			for i := range 200 {
				fmt.Fprint(c, i)
				time.Sleep(ms)
			}
		}()
		start := time.Now()
		s.SetReadDeadline(start.Add(time.Second))
		for b := make([]byte, 10); ; {
			got, _, err := s.ReadFrom(b)
			if err != nil {
				return
			}
			log = append(log, fmt.Sprintf("%s at %v", b[:got], time.Since(start)))
		}
	})
	return log
}

func TestDatagramLossDuplicationAndOrder(t *testing.T) {
	if got := arrivals(t, 1, simnet.Link{}); len(got) != 200 || got[7] != "7 at 7ms" {
		t.Errorf("perfect link: %d arrived, %v", len(got), got[7])
	}
	if got := arrivals(t, 1, simnet.Link{Loss: 0.5}); len(got) < 60 || len(got) > 140 {
		t.Errorf("half lost: %d of 200 arrived", len(got))
	}
	if got := arrivals(t, 1, simnet.Link{Loss: 1}); len(got) != 0 {
		t.Errorf("all lost: %d arrived", len(got))
	}
	if got := arrivals(t, 1, simnet.Link{Duplicate: 1}); len(got) != 400 || got[0] != got[1] {
		t.Errorf("all twice: %d arrived", len(got))
	}
	got := arrivals(t, 1, simnet.Link{Jitter: 5 * ms})
	if len(got) != 200 || slices.IsSortedFunc(got, func(a, b string) int { return number(a) - number(b) }) {
		t.Errorf("jitter five times the spacing: %d arrived, in order", len(got))
	}
}

func number(s string) (n int) {
	fmt.Sscan(s, &n)
	return n
}

func TestSameSeedSameSchedule(t *testing.T) {
	l := simnet.Link{Latency: 3 * ms, Jitter: 10 * ms, Loss: 0.1, Duplicate: 0.1, Bandwidth: 10_000}
	first := arrivals(t, 1, l)
	if again := arrivals(t, 1, l); !slices.Equal(first, again) {
		t.Error("same seed, another schedule")
	}
	if other := arrivals(t, 2, l); slices.Equal(first, other) {
		t.Error("another seed, same schedule")
	}
}

func TestPartitionDropsDatagrams(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		s := listenPacket(t, n, addr)
		c := dial(t, n, "udp", addr)
		write(t, c, "caught under way")
		n.Partition(client, server)
		write(t, c, "sent into it")
		time.Sleep(time.Second)
		n.Heal(client, server)
		write(t, c, "after")
		expect(t, s, "after")
	})
}

func TestFrozenSocketKeepsWhatArrives(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		s := listenPacket(t, n, addr)
		c := dial(t, n, "udp", addr)
		n.Host(server).Freeze()
		write(t, c, "kept")
		start := time.Now()
		time.AfterFunc(time.Second, n.Host(server).Thaw)
		expect(t, s, "kept")
		took(t, start, time.Second)

		n.Host(server).Kill()
		readFails(t, s, net.ErrClosed)
		write(t, c, "x")
		readFails(t, c, syscall.ECONNREFUSED)
	})
}

func TestPacketConnMisuse(t *testing.T) {
	n := simnet.New(1)
	defer n.Close()
	c, p := dial(t, n, "udp", addr).(*simnet.PacketConn), listenPacket(t, n, "10.0.0.3:0")
	_, err := c.WriteTo([]byte("x"), p.LocalAddr())
	fails(t, err, "write", net.ErrWriteToConnected)
	writeFails(t, p, syscall.EDESTADDRREQ)
	_, err = p.WriteTo(nil, &net.TCPAddr{})
	fails(t, err, "write", syscall.EINVAL)
	if p.RemoteAddr() != nil {
		t.Error("unconnected, yet a peer:", p.RemoteAddr())
	}
	p.Close()
	fails(t, p.Close(), "close", net.ErrClosed)
}
