package fault_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"

	"github.com/holdfast-net/holdfast/fault"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

const (
	ms   = time.Millisecond
	addr = "10.0.0.1:7000"
)

// A world is a client with faults and a server without, on an instant network.
type world struct {
	*testing.T
	net    *simnet.Net
	faults *fault.Injector
	c      net.Conn     // wrapped
	s      *simnet.Conn // its peer
	start  time.Time
}

// bubble runs a story on a clock of its own.
func bubble(t *testing.T, plan fault.Plan, story func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: simnet.New(1), faults: fault.New(plan), start: time.Now()}
		w.c, w.s = w.connect()
		story(w)
		w.faults.Close()
		if open := w.faults.Stats().Open; open != 0 {
			t.Errorf("after Close, %d connections are open", open)
		}
		w.net.Close()
	})
}

// connect returns a wrapped connection and its peer.
func (w *world) connect() (net.Conn, *simnet.Conn) {
	w.Helper()
	ln, err := w.net.Listen("tcp", addr)
	if err != nil {
		w.Fatal(err)
	}
	defer ln.Close()
	c, err := w.net.Host("10.0.0.9").DialContext(w.Context(), "tcp", addr)
	if err != nil {
		w.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		w.Fatal(err)
	}
	return w.faults.Conn(abortable{c.(*simnet.Conn)}), s.(*simnet.Conn)
}

// abortable has what a *net.TCPConn has to be closed with a RST.
type abortable struct{ *simnet.Conn }

func (a abortable) SetLinger(int) error { a.Conn.Reset(); return nil }

// at waits until that time of the story.
func (w *world) at(d time.Duration) { time.Sleep(time.Until(w.start.Add(d))) }

// now wants it to be that time of the story.
func (w *world) now(want time.Duration) {
	w.Helper()
	if d := time.Since(w.start); d != want {
		w.Fatalf("it is %v, want %v", d, want)
	}
}

func (w *world) write(c io.Writer, s string) {
	w.Helper()
	if n, err := io.WriteString(c, s); err != nil || n != len(s) {
		w.Fatalf("write %q: %d, %v", s, n, err)
	}
}

// reads wants one Read to return exactly this.
func (w *world) reads(c io.Reader, want string) {
	w.Helper()
	b := make([]byte, 1<<10)
	if n, err := c.Read(b); err != nil || string(b[:n]) != want {
		w.Fatalf("read %q, %v; want %q", b[:n], err, want)
	}
}

func (w *world) readsEOF(c io.Reader) {
	w.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		w.Fatalf("read %d, %v; want EOF", n, err)
	}
}

// fails wants err to be want, in a *net.OpError for op.
func (w *world) fails(err error, op string, want error) {
	w.Helper()
	var oe *net.OpError
	if !errors.As(err, &oe) || oe.Op != op || !errors.Is(err, want) {
		w.Fatalf("error %v; want %s: … %v", err, op, want)
	}
}

func (w *world) readFails(c io.Reader, want error) {
	w.Helper()
	_, err := c.Read(make([]byte, 1))
	w.fails(err, "read", want)
}

func (w *world) writeFails(c io.Writer, want error) {
	w.Helper()
	_, err := c.Write([]byte("x"))
	w.fails(err, "write", want)
}

func (w *world) stats(want fault.Stats) {
	w.Helper()
	if got := w.faults.Stats(); got != want {
		w.Fatalf("stats %+v, want %+v", got, want)
	}
}

func closeWrite(c net.Conn) error { return c.(interface{ CloseWrite() error }).CloseWrite() }

// Both ends are wrapped, each by an injector of its own.
func TestConn(t *testing.T) {
	us := time.Microsecond
	slow := fault.Link{Latency: 100 * us, Jitter: 50 * us, Slice: 700, Bandwidth: 200 << 20}
	for name, plan := range map[string]fault.Plan{
		"clean": {},
		"slow":  {Up: slow, Down: slow},
		"up":    {Up: fault.Link{Latency: 100 * us}},
		"down":  {Down: fault.Link{Latency: 100 * us, Slice: 100}},
	} {
		for below, dial := range map[string]func() (net.Conn, net.Conn, error){"tcp": tcp, "pipe": inMemory} {
			t.Run(name+" "+below, func(t *testing.T) {
				t.Parallel() // they wait most of the time
				nettest.TestConn(t, pipe(plan, dial))
			})
		}
	}
}

func pipe(plan fault.Plan, dial func() (net.Conn, net.Conn, error)) nettest.MakePipe {
	return func() (c1, c2 net.Conn, stop func(), err error) {
		one, two := fault.New(plan), fault.New(plan)
		a, b, err := dial()
		if err != nil {
			return nil, nil, nil, err
		}
		return one.Conn(a), two.Conn(b), func() { one.Close(); two.Close() }, nil
	}
}

func inMemory() (net.Conn, net.Conn, error) {
	a, b := net.Pipe()
	return a, b, nil
}

// tcp returns the ends of a connection over loopback.
func tcp() (c, s net.Conn, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if c, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	s, err = ln.Accept()
	return c, s, err
}
