package simnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
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

func TestPartitionStallsAndHealDelivers(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		start := time.Now()
		write(t, c, "under way,")
		time.Sleep(5 * ms)
		n.Partition(client, server)
		write(t, c, "held")
		c.CloseWrite()
		s.SetReadDeadline(time.Now().Add(time.Hour))
		readFails(t, s, os.ErrDeadlineExceeded)

		s.SetReadDeadline(time.Time{})
		n.Heal(client, server)
		expect(t, s, "under way,held")
		readsEOF(t, s)
		took(t, start, time.Hour+15*ms)
	})
}

func TestHealSpacesWhatWasHeldByTheBandwidth(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Bandwidth: 1460})
		write(t, c, strings.Repeat("a", 10*1460))
		expect(t, s, strings.Repeat("a", 2*1460))
		n.Partition(server, "")
		time.Sleep(2 * time.Second) // the rest was booked on the link for 8
		n.Heal(server, "")
		start := time.Now()
		expect(t, s, strings.Repeat("a", 8*1460))
		took(t, start, 8*time.Second)
	})
}

func TestResetIsLostInAPartition(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.Partition(client, server)
		write(t, s, "held")
		s.Reset()
		n.Heal(client, server)
		if err := c.Alive(); err != nil {
			t.Error("half-open conn:", err)
		}
		write(t, c, "x") // meets nobody, and learns it
		readFails(t, c, syscall.ECONNRESET)
	})
}

func TestResetUnderWayIsLostInAPartition(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		write(t, s, "gone with its sender")
		s.ResetAfter(0)
		time.Sleep(5 * ms)
		n.Partition(client, server)
		time.Sleep(time.Second)
		n.Heal(client, server)
		time.Sleep(time.Second)
		if err := c.Alive(); err != nil {
			t.Error("half-open conn:", err)
		}
	})
}

func TestDialThroughAPartitionWaitsForCtxOrARetry(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		listen(t, n, "tcp", addr)
		n.Partition(client, "")
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := n.Host(client).DialContext(ctx, "tcp", addr)
		fails(t, err, "dial", context.DeadlineExceeded)
		if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
			t.Error("not a timeout:", err)
		}
		took(t, start, 2*time.Second)

		// SYNs leave at 0, 1, 3, 7 … s: healed at 2 s, the third gets through.
		start = time.Now()
		time.AfterFunc(2*time.Second, func() { n.Heal(client, "") })
		dial(t, n, "tcp", addr)
		took(t, start, 3*time.Second)

		n.Partition(client, "")
		start = time.Now()
		_, err = n.Host(client).DialContext(t.Context(), "tcp", addr)
		fails(t, err, "dial", syscall.ETIMEDOUT)
		took(t, start, 127*time.Second)
	})
}

func TestResetOvertakesWhatIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		write(t, s, "arrived")
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		write(t, s, "dropped")
		start := time.Now()
		s.Reset()
		expect(t, c, "arrived")
		readFails(t, c, syscall.ECONNRESET)
		took(t, start, 10*ms)
		writeFails(t, c, syscall.ECONNRESET)
		readFails(t, s, net.ErrClosed)
	})
}

func TestResetWakesAFullWriter(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		time.AfterFunc(time.Second, s.Reset)
		start := time.Now()
		_, err := c.Write(make([]byte, 1<<20))
		fails(t, err, "write", syscall.ECONNRESET)
		took(t, start, time.Second)
	})
}

// A writer that waits for room learns of the RST it missed as a window probe
// would tell it.
func TestFullWriterLearnsOfALostReset(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Buffer = 1000
		c, s := connect(t, n)
		time.AfterFunc(time.Second, func() {
			n.Partition(client, server)
			s.Close()
		})
		time.AfterFunc(2*time.Second, func() { n.Heal(client, server) })
		start := time.Now()
		_, err := c.Write(make([]byte, 5000))
		fails(t, err, "write", syscall.ECONNRESET)
		took(t, start, 2*time.Second)
	})
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Buffer = 1000
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		s.Close() // its RST leaves when the first bytes come, at 10 ms
		time.AfterFunc(15*ms, func() { n.Partition(client, server) })
		time.AfterFunc(time.Second, func() { n.Heal(client, server) })
		start := time.Now()
		_, err := c.Write(make([]byte, 5000))
		fails(t, err, "write", syscall.EPIPE)
		took(t, start, time.Second+20*ms)
	})
}

func TestResetAfter(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		c.Peer().ResetAfter(5)
		write(t, s, "abc")
		wrote, err := s.Write([]byte("defgh"))
		fails(t, err, "write", syscall.ECONNRESET)
		if wrote != 2 {
			t.Errorf("wrote %d, want 2", wrote)
		}
		readFails(t, s, syscall.ECONNRESET)

		start := time.Now()
		expect(t, c, "abcde")
		readFails(t, c, syscall.ECONNRESET)
		took(t, start, 10*ms)
		writeFails(t, c, syscall.ECONNRESET)
	})
}

func TestResetAfterDropsTheOtherDirection(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		write(t, c, "under way")
		s.ResetAfter(0)
		time.Sleep(time.Second)
		fails(t, s.Alive(), "read", syscall.ECONNRESET)
		fails(t, c.CloseWrite(), "close", syscall.ENOTCONN)
	})
}

func TestCutAfter(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		s.CutAfter(5)
		write(t, s, "abcde")
		writeFails(t, s, syscall.EPIPE)
		expect(t, c, "abcde")
		readsEOF(t, c)
		write(t, c, "the other direction")
		expect(t, s, "the other direction")

		c.CutAfter(0)
		readsEOF(t, s)
	})
}

func TestKill(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		ln := listen(t, n, "tcp", addr)
		c := dial(t, n, "tcp", addr)
		s := accept(t, ln)
		queued := dial(t, n, "tcp", addr)
		if held := n.Host(client).Conns(); len(held) != 2 || held[0] != c {
			t.Errorf("client holds %v", held)
		}
		time.Sleep(time.Second)

		start := time.Now()
		n.Host(server).Kill()
		readFails(t, c, syscall.ECONNRESET)
		readFails(t, queued, syscall.ECONNRESET)
		writeFails(t, c, syscall.ECONNRESET)
		took(t, start, 10*ms)
		readFails(t, s, net.ErrClosed)
		_, err := ln.Accept()
		fails(t, err, "accept", net.ErrClosed)
		_, err = n.Host(client).DialContext(t.Context(), "tcp", addr)
		fails(t, err, "dial", syscall.ECONNREFUSED)

		listen(t, n, "tcp", addr) // the next program on the host
		dial(t, n, "tcp", addr)
	})
}

func TestKillOfAFrozenHost(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.Host(server).Freeze()
		time.AfterFunc(time.Second, n.Host(server).Kill)
		readFails(t, s, net.ErrClosed)
		readFails(t, c, syscall.ECONNRESET)
	})
}

func TestKillEndsDialsOfTheHost(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Partition(client, "")
		time.AfterFunc(500*ms, n.Host(client).Kill)
		_, err := n.Host(client).DialContext(t.Context(), "tcp", addr)
		fails(t, err, "dial", net.ErrClosed)
	})
}

func TestFreezeStopsTheProgramNotTheKernel(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		ln := listen(t, n, "tcp", addr)
		c := dial(t, n, "tcp", addr)
		s := accept(t, ln)
		write(t, s, "sent before")
		start := time.Now()
		n.Host(server).Freeze()

		expect(t, c, "sent before")
		took(t, start, 10*ms)
		dial(t, n, "tcp", addr)
		took(t, start, 30*ms)
		c.SetWriteDeadline(start.Add(time.Second))
		wrote, err := c.Write(make([]byte, 1<<20))
		fails(t, err, "write", os.ErrDeadlineExceeded)
		if wrote != 64<<10 {
			t.Errorf("buffered %d bytes", wrote)
		}

		done := make(chan string, 4)
		go func() { ln.Accept(); done <- "accept" }()
		go func() { expect(t, s, "\x00"); done <- "read" }()
		go func() { write(t, s, "sent after"); done <- "write" }()
		go func() { s.SetReadDeadline(time.Now()); done <- "not a wait" }()
		time.Sleep(time.Hour)
		if len(done) != 1 {
			t.Errorf("%d calls returned on a frozen host", len(done))
		}
		s.SetReadDeadline(time.Time{})
		n.Host(server).Thaw()
		start = time.Now()
		expect(t, c, "sent after")
		took(t, start, 10*ms)
		synctest.Wait()
		if len(done) != 4 {
			t.Errorf("%d calls returned after Thaw", len(done))
		}
	})
}

func TestFrozenDialCompletesForTheServer(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		ln := listen(t, n, "tcp", addr)
		start := time.Now()
		time.AfterFunc(5*ms, n.Host(client).Freeze)
		time.AfterFunc(time.Second, n.Host(client).Thaw)
		dialed := make(chan time.Duration)
		go func() {
			dial(t, n, "tcp", addr)
			dialed <- time.Since(start)
		}()
		accept(t, ln)
		took(t, start, 30*ms)
		if d := <-dialed; d != time.Second {
			t.Errorf("dialed after %v", d)
		}
	})
}

func TestCloseOnAFrozenHostIsSentAfterThaw(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		n.Host(server).Freeze()
		s.Close()
		start := time.Now()
		time.AfterFunc(time.Second, n.Host(server).Thaw)
		readsEOF(t, c)
		took(t, start, time.Second)
	})
}

// TestNoFaultCorruptsAStream plays a minute of random partitions, freezes and
// links over eight streams; what was written is what is read.
func TestNoFaultCorruptsAStream(t *testing.T) {
	for seed := range uint64(5) {
		bubble(t, func(t *testing.T, n *simnet.Net) {
			ln := listen(t, n, "tcp", addr)
			var streams sync.WaitGroup
			for i := range uint64(8) {
				c := dial(t, n, "tcp", addr)
				s := accept(t, ln)
				sent := make([]byte, 100_000)
				rand.NewChaCha8([32]byte{byte(seed), byte(i)}).Read(sent)
				streams.Go(func() { c.Write(sent); c.Close() })
				streams.Go(func() {
					if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, sent) {
						t.Errorf("seed %d, stream %d: %d of %d bytes, %v", seed, i, len(got), len(sent), err)
					}
				})
			}
			torment(n, rand.New(rand.NewPCG(seed, 0)))
			streams.Wait()
		})
	}
}

func torment(n *simnet.Net, rng *rand.Rand) {
	hosts := []*simnet.Host{n.Host(client), n.Host(server)}
	for range 600 {
		switch h := hosts[rng.IntN(2)]; rng.IntN(5) {
		case 0:
			n.Partition(client, server)
		case 1:
			n.Heal(client, server)
		case 2:
			h.Freeze()
		case 3:
			h.Thaw()
		case 4:
			n.SetLink("", "", simnet.Link{Bandwidth: 20_000, Loss: 0.1,
				Latency: time.Duration(rng.IntN(100)) * ms, Jitter: time.Duration(rng.IntN(100)) * ms})
		}
		time.Sleep(100 * ms)
	}
	n.Heal(client, server)
	hosts[0].Thaw()
	hosts[1].Thaw()
}

func TestRejectAnswersDials(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		listen(t, n, "tcp", addr)
		n.SetLink("", server, simnet.Link{Latency: 10 * ms, Reject: syscall.EHOSTUNREACH})
		start := time.Now()
		_, err := n.Host(client).DialContext(t.Context(), "tcp", addr)
		fails(t, err, "dial", syscall.EHOSTUNREACH)
		took(t, start, 10*ms)

		write(t, c, "established streams do not feel it")
		expect(t, s, "established")
	})
}

func TestLinkPrecedence(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		flight := func() time.Duration {
			start := time.Now()
			write(t, c, "x")
			expect(t, s, "x")
			return time.Since(start)
		}
		n.SetLink("", "", simnet.Link{Latency: 1})
		if d := flight(); d != 1 {
			t.Error("any to any:", d)
		}
		n.SetLink("", server, simnet.Link{Latency: 2})
		if d := flight(); d != 2 {
			t.Error("any to server:", d)
		}
		n.SetLink(client, "", simnet.Link{Latency: 3})
		if d := flight(); d != 3 {
			t.Error("client to any:", d)
		}
		n.SetLink(client, server, simnet.Link{Latency: 4})
		if d := flight(); d != 4 {
			t.Error("client to server:", d)
		}
	})
}
