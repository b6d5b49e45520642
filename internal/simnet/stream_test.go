package simnet_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/internal/simnet"
)

const ms = time.Millisecond

func TestLatencyPerDirection(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink(client, server, simnet.Link{Latency: 10 * ms})
		n.SetLink(server, client, simnet.Link{Latency: 30 * ms})

		start := time.Now()
		write(t, c, "ping")
		took(t, start, 0)
		expect(t, s, "ping")
		took(t, start, 10*ms)
		write(t, s, "pong")
		expect(t, c, "pong")
		took(t, start, 40*ms)
	})
}

func TestJitterNeverReordersAStream(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms, Jitter: 50 * ms})
		sent := []byte(strings.Repeat("0123456789abcdef", 2000))

		start := time.Now()
		for part := range bytes.Lines(bytes.ReplaceAll(sent, []byte("f"), []byte("\n"))) {
			c.Write(part)
		}
		c.CloseWrite()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, bytes.ReplaceAll(sent, []byte("f"), []byte("\n"))) {
			t.Fatalf("%d bytes differ, %v", len(got), err)
		}
		if d := time.Since(start); d < 10*ms || d >= 60*ms {
			t.Errorf("took %v, want 10ms to 60ms", d)
		}
	})
}

func TestBandwidthIsSharedByAHostPair(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c1, s1 := connect(t, n)
		c2, s2 := connect(t, n)
		n.SetLink(client, server, simnet.Link{Bandwidth: 1000, Latency: 10 * ms})

		start := time.Now()
		write(t, c1, strings.Repeat("a", 2000)) // segments of 1460 and 540
		write(t, c2, strings.Repeat("b", 500))
		expect(t, s1, "a")
		took(t, start, 1470*ms)
		expect(t, s1, strings.Repeat("a", 1999))
		took(t, start, 2010*ms)
		expect(t, s2, strings.Repeat("b", 500))
		took(t, start, 2510*ms)
	})
}

// lossy measures how long 20 kB take over a link with that loss.
func lossy(t *testing.T, seed uint64, loss float64) (total time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(seed)
		defer n.Close()
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Loss: loss})
		sent := strings.Repeat("0123456789", 2000)
		start := time.Now()
		write(t, c, sent)
		expect(t, s, sent)
		total = time.Since(start)
	})
	return total
}

func TestLossDelaysAStreamAndSparesItsBytes(t *testing.T) {
	first := lossy(t, 1, 0.3)
	if first < 200*ms || first%(200*ms) != 0 {
		t.Errorf("took %v, want retransmission timeouts", first)
	}
	if again := lossy(t, 1, 0.3); again != first {
		t.Errorf("same seed: %v, then %v", first, again)
	}
	if worst := lossy(t, 1, 1); worst != (1+2+4+8+16+32)*200*ms {
		t.Errorf("six retransmissions took %v", worst)
	}
}

func TestReadDeadline(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		start := time.Now()
		c.SetReadDeadline(start.Add(time.Hour))
		readFails(t, c, os.ErrDeadlineExceeded)
		took(t, start, time.Hour)

		// A deadline that has passed hides bytes; taking it away shows them.
		write(t, s, "late")
		readFails(t, c, os.ErrDeadlineExceeded)
		c.SetReadDeadline(time.Time{})
		expect(t, c, "late")

		// Moving the deadline reaches a call under way.
		time.AfterFunc(time.Second, func() { c.SetDeadline(time.Now()) })
		start = time.Now()
		readFails(t, c, os.ErrDeadlineExceeded)
		took(t, start, time.Second)

		// At one instant the deadline goes before the data.
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		write(t, s, "tie")
		c.SetReadDeadline(time.Now().Add(10 * ms))
		readFails(t, c, os.ErrDeadlineExceeded)
		c.SetReadDeadline(time.Time{})
		expect(t, c, "tie")
	})
}

func TestFullBufferMakesWritesWait(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Buffer = 1000
		c, s := connect(t, n)
		start := time.Now()
		c.SetWriteDeadline(start.Add(5 * time.Second))
		wrote, err := c.Write(make([]byte, 1500))
		fails(t, err, "write", os.ErrDeadlineExceeded)
		if wrote != 1000 {
			t.Errorf("wrote %d, want 1000", wrote)
		}
		took(t, start, 5*time.Second)

		c.SetWriteDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { expect(t, s, strings.Repeat("\x00", 400)) })
		start = time.Now()
		write(t, c, strings.Repeat("x", 400))
		took(t, start, time.Second)

		s.SetReadBuffer(1001)
		write(t, c, "y")
		c.SetWriteBuffer(1002)
		write(t, c, "y")
		took(t, start, time.Second)
	})
}

func TestNegativeBufferIsUnbounded(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Buffer = -1
		c, _ := connect(t, n)
		write(t, c, strings.Repeat("x", 1<<20))
	})
}

func TestConcurrentWritesDoNotMix(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Buffer = 7
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: ms}) // all are parked before the first goes on
		var writers sync.WaitGroup
		for _, letter := range []string{"a", "b", "c", "d", "e"} {
			writers.Go(func() { write(t, c, strings.Repeat(letter, 500)+"\n") })
		}
		go func() { writers.Wait(); c.Close() }()
		all, _ := io.ReadAll(s)
		for line := range bytes.Lines(all) {
			if len(bytes.Trim(line, string(line[:1]))) != 1 {
				t.Errorf("mixed: %q", line)
			}
		}
	})
}

func TestHalfCloseFollowsTheData(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		start := time.Now()
		write(t, c, "request")
		c.CloseWrite()
		writeFails(t, c, syscall.EPIPE)

		expect(t, s, "request")
		readsEOF(t, s)
		took(t, start, 10*ms)
		write(t, s, "reply")
		s.Close()
		expect(t, c, "reply")
		readsEOF(t, c)
		took(t, start, 20*ms)
	})
}

func TestWriteToAClosedPeer(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		c, s := connect(t, n)
		write(t, s, "bye")
		s.Close()
		write(t, c, "x") // before the FIN is here
		time.Sleep(15 * ms)
		write(t, c, "x") // after it, and before the RST
		time.Sleep(5 * ms)
		writeFails(t, c, syscall.EPIPE)
		expect(t, c, "bye")
		readsEOF(t, c)
	})
}

func TestCloseWithUnreadBytesResets(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		write(t, c, "unread")
		write(t, s, "error")
		s.Close()
		expect(t, c, "error") // what arrived before a RST stays readable
		readFails(t, c, syscall.ECONNRESET)
		writeFails(t, c, syscall.ECONNRESET)
	})
}

func TestCloseEndsCallsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, _ := connect(t, n)
		time.AfterFunc(time.Second, func() { c.Close() })
		go c.Write(make([]byte, 1<<20))
		readFails(t, c, net.ErrClosed)
		writeFails(t, c, net.ErrClosed)
		fails(t, c.Close(), "close", net.ErrClosed)
		fails(t, c.CloseWrite(), "close", net.ErrClosed)
		fails(t, c.SetDeadline(time.Now()), "set", net.ErrClosed)
	})
}

func TestAlive(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		c, s := connect(t, n)
		if err := c.Alive(); err != nil {
			t.Error(err)
		}
		write(t, s, "x")
		s.CloseWrite()
		time.Sleep(10*ms - 1)
		if err := c.Alive(); err != nil {
			t.Error("before it can know:", err)
		}
		time.Sleep(time.Nanosecond)
		if err := c.Alive(); err == nil || err == io.EOF {
			t.Error("unread byte:", err)
		}
		expect(t, c, "x")
		if err := c.Alive(); err != io.EOF {
			t.Error("closed by peer:", err)
		}
		c.Reset()
		fails(t, c.Alive(), "read", net.ErrClosed)
		time.Sleep(10 * ms)
		fails(t, s.Alive(), "read", syscall.ECONNRESET)
	})
}

func TestAddresses(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		local, ok := c.LocalAddr().(*net.TCPAddr)
		if !ok || local.String() != client+":32768" || s.RemoteAddr().String() != local.String() {
			t.Errorf("client %v, seen as %v", c.LocalAddr(), s.RemoteAddr())
		}
		if c.RemoteAddr().String() != addr || s.LocalAddr().String() != addr {
			t.Errorf("server %v, seen as %v", s.LocalAddr(), c.RemoteAddr())
		}
		if c.Peer() != s || s.Peer() != c {
			t.Error("ends do not know each other")
		}
	})
}
