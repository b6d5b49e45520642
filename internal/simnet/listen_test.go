package simnet_test

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/simnet"
)

func TestDialTakesOneRoundTrip(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink(client, server, simnet.Link{Latency: 10 * ms})
		n.SetLink(server, client, simnet.Link{Latency: 30 * ms})
		ln := listen(t, n, "tcp", addr)
		start := time.Now()
		dial(t, n, "tcp", addr)
		took(t, start, 40*ms)
		accept(t, ln) // the ACK is still to come
		took(t, start, 50*ms)

		ln.Close()
		start = time.Now()
		_, err := n.Host(client).DialContext(t.Context(), "tcp", addr)
		fails(t, err, "dial", syscall.ECONNREFUSED)
		took(t, start, 40*ms)
	})
}

func TestDialEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		ln := listen(t, n, "tcp", addr)
		for _, after := range []time.Duration{0, 5 * ms, 15 * ms} {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), after)
			_, err := n.Host(client).DialContext(ctx, "tcp", addr)
			cancel()
			fails(t, err, "dial", context.DeadlineExceeded)
			took(t, start, after)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*ms, cancel)
		_, err := n.Host(client).DialContext(ctx, "tcp", addr)
		fails(t, err, "dial", context.Canceled)

		time.Sleep(time.Second)
		ln.(*simnet.Listener).SetDeadline(time.Now())
		_, err = ln.Accept()
		fails(t, err, "accept", os.ErrDeadlineExceeded) // nothing came of them
		if held := n.Host(server).Conns(); len(held) != 0 {
			t.Errorf("%d connections remain", len(held))
		}
	})
}

func TestLossDelaysADial(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Backlog = 1 // four SYNs of one dial need one place
		listen(t, n, "tcp", addr)
		n.SetLink(server, "", simnet.Link{Loss: 1}) // the answer, not the SYN
		time.AfterFunc(5*time.Second, func() { n.SetLink(server, "", simnet.Link{}) })
		start := time.Now()
		dial(t, n, "tcp", addr)
		took(t, start, 7*time.Second)
	})
}

func TestListenerCloseRefusesADialWhoseAnswerWasLost(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		ln := listen(t, n, "tcp", addr)
		n.SetLink(server, "", simnet.Link{Loss: 1, Latency: 10 * ms})
		time.AfterFunc(500*ms, func() {
			n.SetLink(server, "", simnet.Link{Latency: 10 * ms})
			ln.Close()
		})
		start := time.Now()
		_, err := n.Host(client).DialContext(t.Context(), "tcp", addr)
		fails(t, err, "dial", syscall.ECONNREFUSED)
		took(t, start, 510*ms)
	})
}

func TestFullBacklogDropsSYNs(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Backlog = 2
		ln := listen(t, n, "tcp", addr)
		dial(t, n, "tcp", addr)
		gone := dial(t, n, "tcp", addr)
		gone.Close() // keeps its place in the queue

		start := time.Now()
		time.AfterFunc(500*ms, func() { accept(t, ln) })
		dial(t, n, "tcp", addr)
		took(t, start, time.Second) // the second SYN found room

		ctx, cancel := context.WithTimeout(t.Context(), 500*ms)
		defer cancel()
		_, err := n.Host(client).DialContext(ctx, "tcp", addr)
		fails(t, err, "dial", context.DeadlineExceeded)
		readsEOF(t, accept(t, ln))
	})
}

func TestAbandonedHandshakeFreesTheBacklog(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.Backlog = 1
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		listen(t, n, "tcp", addr)
		ctx, cancel := context.WithTimeout(t.Context(), 15*ms) // the SYN-ACK is under way
		defer cancel()
		_, err := n.Host(client).DialContext(ctx, "tcp", addr)
		fails(t, err, "dial", context.DeadlineExceeded)
		time.Sleep(10 * ms)

		start := time.Now()
		dial(t, n, "tcp", addr)
		took(t, start, 20*ms)
	})
}

func TestListenerCloseResetsTheQueue(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		ln := listen(t, n, "tcp", addr)
		accepted := dial(t, n, "tcp", addr)
		s := accept(t, ln)
		queued := dial(t, n, "tcp", addr)
		if held := n.Host(server).Conns(); len(held) != 2 || held[0] != s {
			t.Errorf("server holds %v", held)
		}
		ln.Close()
		readFails(t, queued, syscall.ECONNRESET)
		write(t, s, "accepted ones live")
		expect(t, accepted, "accepted ones live")
		_, err := ln.Accept()
		fails(t, err, "accept", net.ErrClosed)
		fails(t, ln.Close(), "close", net.ErrClosed)
	})
}

func TestListenerCloseEndsAccept(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		ln := listen(t, n, "tcp", addr)
		time.AfterFunc(time.Second, func() { ln.Close() })
		_, err := ln.Accept()
		fails(t, err, "accept", net.ErrClosed)
		listen(t, n, "tcp", addr) // the address is free
	})
}

func TestListenErrors(t *testing.T) {
	n := simnet.New(1)
	defer n.Close()
	ln := listen(t, n, "tcp", "[fd00::1]:0")
	_, err := n.Listen("tcp", ln.Addr().String())
	fails(t, err, "listen", syscall.EADDRINUSE)
	_, err = n.Listen("tcp4", ln.Addr().String())
	fails(t, err, "listen", err.(*net.OpError).Err)
	_, err = n.Listen("tcp", ":7000")
	fails(t, err, "listen", syscall.EADDRNOTAVAIL)
	if _, err = n.Listen("udp", addr); err == nil {
		t.Error("a stream listener on udp")
	}
	if _, err = n.ListenPacket("tcp", addr); err == nil {
		t.Error("a datagram socket on tcp")
	}
}

func TestDialErrors(t *testing.T) {
	n := simnet.New(1)
	defer n.Close()
	h := n.Host(client)
	_, err := h.DialContext(t.Context(), "tcp", "db.example:5432")
	if dns := (*net.DNSError)(nil); !errors.As(err, &dns) || !dns.IsNotFound {
		t.Error("names do not resolve:", err)
	}
	_, err = h.DialContext(t.Context(), "sctp", addr)
	fails(t, err, "dial", net.UnknownNetworkError("sctp"))
	for _, wrong := range []string{"10.0.0.1", "10.0.0.1:http", "10.0.0.1:70000"} {
		if _, err = h.DialContext(t.Context(), "tcp", wrong); err == nil {
			t.Error(wrong, "was dialed")
		}
	}
}

func TestHostNameMustBeAnAddress(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("10.0.0 is a host")
		}
	}()
	simnet.New(1).Host("10.0.0")
}

func TestLocalPortsRunOut(t *testing.T) {
	n := simnet.New(1)
	defer n.Close()
	h := n.Host(client)
	var last net.Conn
	for range 60999 - 32768 + 1 {
		last, _ = h.DialContext(t.Context(), "udp", addr)
	}
	_, err := h.DialContext(t.Context(), "udp", addr)
	fails(t, err, "dial", syscall.EADDRNOTAVAIL)
	last.Close()
	if c := dial(t, n, "udp", addr); c.LocalAddr().String() != client+":60999" {
		t.Error("picked", c.LocalAddr())
	}
}

func TestUnixPathIsAHost(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		const path = "/run/app.sock"
		n.SetLink("", "", simnet.Link{Latency: time.Hour})
		_, err := n.Host(client).DialContext(t.Context(), "unix", path)
		fails(t, err, "dial", syscall.ENOENT)

		start := time.Now()
		ln := listen(t, n, "unix", path)
		c := dial(t, n, "unix", path)
		s := accept(t, ln)
		write(t, c, "x")
		expect(t, s, "x")
		took(t, start, 0)
		if c.RemoteAddr().String() != path || s.RemoteAddr().String() != "@" {
			t.Errorf("addresses %v, %v", c.RemoteAddr(), s.RemoteAddr())
		}
		n.Host(path).Kill()
		readFails(t, c, syscall.ECONNRESET)
	})
}
