package simnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/holdfast-net/holdfast/internal/simnet"
)

const (
	client = "10.0.0.9"
	server = "10.0.0.1"
	addr   = server + ":7000"
)

// bubble runs a story on a network and a clock of its own.
func bubble(t *testing.T, story func(t *testing.T, n *simnet.Net)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		defer n.Close()
		story(t, n)
	})
}

func listen(t *testing.T, n *simnet.Net, network, addr string) net.Listener {
	t.Helper()
	ln, err := n.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func dial(t *testing.T, n *simnet.Net, network, addr string) net.Conn {
	t.Helper()
	c, err := n.Host(client).DialContext(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func accept(t *testing.T, ln net.Listener) *simnet.Conn {
	t.Helper()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*simnet.Conn)
}

// connect returns the client's and the server's end of a new stream.
func connect(t *testing.T, n *simnet.Net) (c, s *simnet.Conn) {
	t.Helper()
	ln := listen(t, n, "tcp", addr)
	defer ln.Close()
	c = dial(t, n, "tcp", addr).(*simnet.Conn)
	return c, accept(t, ln)
}

func write(t *testing.T, w io.Writer, s string) {
	t.Helper()
	if n, err := io.WriteString(w, s); err != nil {
		t.Errorf("write: %d of %d bytes, %v", n, len(s), err)
	}
}

// expect reads exactly want.
func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Errorf("read %q, %v; want %q", b[:n], err, want)
	}
}

// fails wants err to be want, in a [net.OpError] for op.
func fails(t *testing.T, err error, op string, want error) {
	t.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || !errors.Is(err, want) {
		t.Fatalf("error %v; want %s: … %v", err, op, want)
	}
}

func readFails(t *testing.T, r io.Reader, want error) {
	t.Helper()
	_, err := r.Read(make([]byte, 1))
	fails(t, err, "read", want)
}

func writeFails(t *testing.T, w io.Writer, want error) {
	t.Helper()
	_, err := w.Write([]byte("x"))
	fails(t, err, "write", want)
}

func readsEOF(t *testing.T, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d, %v; want EOF", n, err)
	}
}

// took wants exactly this long to have passed.
func took(t *testing.T, since time.Time, want time.Duration) {
	t.Helper()
	if d := time.Since(since); d != want {
		t.Errorf("took %v, want %v", d, want)
	}
}

func TestConn(t *testing.T) {
	slow := simnet.Link{Latency: 100 * time.Microsecond, Jitter: 100 * time.Microsecond, Bandwidth: 100 << 20}
	for name, with := range map[string]struct {
		network, addr string
		link          simnet.Link
	}{
		"tcp":          {"tcp", addr, simnet.Link{}},
		"tcp over WAN": {"tcp", addr, slow},
		"unix":         {"unix", "/run/app.sock", simnet.Link{}},
	} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				n := simnet.New(1)
				n.SetLink("", "", with.link)
				ln := listen(t, n, with.network, with.addr)
				return dial(t, n, with.network, with.addr), accept(t, ln), func() { n.Close() }, nil
			})
		})
	}
}

func TestCloseEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		c, s := connect(t, n)
		ln := listen(t, n, "tcp", addr)
		p, _ := n.ListenPacket("udp", addr)
		n.Partition(server, "10.0.0.8")
		n.Host(server).Freeze()

		ended := make(chan error)
		for _, wait := range []func() error{
			func() error { _, err := c.Read(make([]byte, 1)); return err },
			func() error { _, err := c.Write(make([]byte, 1<<20)); return err },
			func() error { _, err := s.Read(make([]byte, 1)); return err },
			func() error { _, err := ln.Accept(); return err },
			func() error { _, _, err := p.ReadFrom(nil); return err },
			func() error { _, err := n.Host("10.0.0.8").DialContext(t.Context(), "tcp", addr); return err },
		} {
			go func() { ended <- wait() }()
		}
		synctest.Wait()
		n.Close()
		for range 6 {
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
		_, err := n.Listen("tcp", addr)
		fails(t, err, "listen", net.ErrClosed)
		_, err = n.Host(client).DialContext(t.Context(), "udp", addr)
		fails(t, err, "dial", net.ErrClosed)
	})
}

func TestHTTPTakesTwoRoundTrips(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		n.SetLink("", "", simnet.Link{Latency: 10 * ms})
		go http.Serve(listen(t, n, "tcp", addr), http.NotFoundHandler())
		h := http.Client{Transport: &http.Transport{DialContext: n.Host(client).DialContext}}
		start := time.Now()
		r, err := h.Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		took(t, start, 40*ms)
	})
}

func TestStats(t *testing.T) {
	bubble(t, func(t *testing.T, n *simnet.Net) {
		c, s := connect(t, n)
		write(t, c, "12345")
		s.Reset()
		n.Host(client).DialContext(t.Context(), "tcp", addr)
		write(t, dial(t, n, "udp", addr), "1")

		want := simnet.Stats{Dials: 2, Refused: 1, Resets: 1, Bytes: 5, Datagrams: 1}
		if got := n.Stats(); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

func Example() {
	n := simnet.New(1)
	defer n.Close()

	ln, _ := n.Listen("tcp", "10.0.0.1:7000")
	go func() {
		conn, _ := ln.Accept()
		io.Copy(conn, conn)
		conn.Close()
	}()

	conn, _ := n.Host("10.0.0.9").DialContext(context.Background(), "tcp", "10.0.0.1:7000")
	fmt.Fprint(conn, "hello")
	b := make([]byte, 5)
	io.ReadFull(conn, b)
	fmt.Printf("%s from %v\n", b, conn.RemoteAddr())

	conn.(*simnet.Conn).Peer().Reset()
	_, err := conn.Read(b)
	fmt.Println(err)

	n.SetLink("", "10.0.0.2", simnet.Link{Reject: syscall.EHOSTUNREACH})
	_, err = n.Host("10.0.0.9").DialContext(context.Background(), "tcp", "10.0.0.2:7000")
	fmt.Println(err)

	// Output:
	// hello from 10.0.0.1:7000
	// read tcp 10.0.0.9:32768->10.0.0.1:7000: read: connection reset by peer
	// dial tcp 10.0.0.2:7000: connect: no route to host
}
