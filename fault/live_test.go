package fault_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/fault"
)

var hole = fault.Link{Then: fault.BlackHole}

// Calls that wait in the connection itself meet the new plan at once.
func TestSetMeetsWaitingCalls(t *testing.T) {
	bubble(t, fault.Plan{}, func(w *world) {
		type result struct {
			n   int
			err error
		}
		written, read := make(chan result, 1), make(chan result, 1)
		go func() { n, err := w.c.Write(make([]byte, 100_000)); written <- result{n, err} }()
		go func() { n, err := w.c.Read(make([]byte, 10)); read <- result{n, err} }()
		synctest.Wait() // 64 KiB of the Write are in the network

		w.faults.Set(fault.Plan{Up: hole, Down: fault.Link{Latency: 100 * ms}})
		if r := <-written; r.n != 100_000 || r.err != nil {
			t.Error("write:", r)
		}
		w.now(0)
		w.write(w.s, "late")
		if r := <-read; r.n != 4 || r.err != nil {
			t.Error("read:", r)
		}
		w.now(100 * ms)

		if n, _ := io.CopyN(io.Discard, w.s, 64<<10); n != 64<<10 {
			t.Error(n)
		}
		w.s.SetReadDeadline(time.Now().Add(time.Second))
		w.readFails(w.s, os.ErrDeadlineExceeded)
		w.s.SetReadDeadline(time.Time{})
		w.faults.Set(fault.Plan{})
		if n, _ := io.CopyN(io.Discard, w.s, 100_000-64<<10); n != 100_000-64<<10 {
			t.Error(n)
		}
		w.now(1100 * ms)
	})
}

// A part of what has arrived together was read when the plan says how much is left.
func TestSetInTheMiddleOfAPiece(t *testing.T) {
	bubble(t, fault.Plan{Down: fault.Link{Latency: ms}}, func(w *world) {
		w.write(w.s, "abcdef")
		io.ReadFull(w.c, make([]byte, 1))
		w.faults.Set(fault.Plan{Down: fault.Link{After: 2, Then: fault.Cut}})
		w.reads(w.c, "bc")
		w.readsEOF(w.c)
	})
}

// Deadlines set before the first fault hold on, those set during it too.
func TestSetKeepsDeadlines(t *testing.T) {
	bubble(t, fault.Plan{}, func(w *world) {
		w.c.SetDeadline(time.Now().Add(100 * ms))
		time.AfterFunc(50*ms, func() { w.faults.Set(fault.Plan{Up: hole, Down: hole}) })
		w.readFails(w.c, os.ErrDeadlineExceeded)
		w.now(100 * ms)
		w.writeFails(w.c, os.ErrDeadlineExceeded)
		w.c.SetDeadline(time.Time{})
		w.write(w.c, "x")
	})
}

func TestSetHoldsForWhatIsUnderWay(t *testing.T) {
	slow := fault.Link{Latency: time.Hour}
	bubble(t, fault.Plan{Up: slow, Down: slow}, func(w *world) {
		w.write(w.c, "up")
		w.write(w.s, "down")
		w.at(time.Second)
		w.faults.Set(fault.Plan{Up: fault.Link{Latency: 3 * time.Second}})
		w.reads(w.c, "down")
		w.now(time.Second)
		w.reads(w.s, "up")
		w.now(3 * time.Second)
	})
}

// deliver is inside the connection's Write when the black hole opens.
func TestBlackHoleUnderADeliveryUnderWay(t *testing.T) {
	bubble(t, fault.Plan{Up: fault.Link{Latency: ms, Buffer: -1}}, func(w *world) {
		w.write(w.c, strings.Repeat("x", 100_000))
		w.at(10 * ms)
		w.faults.Set(fault.Plan{Up: hole})
		synctest.Wait()
		io.CopyN(io.Discard, w.s, 64<<10)
		w.s.SetReadDeadline(time.Now().Add(time.Second))
		w.readFails(w.s, os.ErrDeadlineExceeded)
		w.s.SetReadDeadline(time.Time{})
		w.faults.Set(fault.Plan{Up: fault.Link{Slice: 1000}})
		if n, _ := io.CopyN(io.Discard, w.s, 100_000-64<<10); n != 100_000-64<<10 {
			t.Error(n)
		}
	})
}

// After counts from Set on, and ends that have struck stay.
func TestSetCountsAnew(t *testing.T) {
	bubble(t, fault.Plan{}, func(w *world) {
		w.write(w.s, "handshake")
		w.reads(w.c, "handshake")
		w.faults.Set(fault.Plan{Down: fault.Link{After: 3, Then: fault.Cut}})
		w.write(w.s, "reply")
		w.reads(w.c, "rep")
		w.readsEOF(w.c)
		w.faults.Set(fault.Plan{})
		w.readsEOF(w.c)
		w.faults.Set(fault.Plan{Down: fault.Link{Then: fault.Cut}})
		w.stats(fault.Stats{Conns: 1, Open: 1, Down: 12, Cuts: 1})
	})
}

func TestSetEndsAtOnce(t *testing.T) {
	for name, row := range map[string]struct {
		plan        fault.Plan
		read, write error // ours
		peerRead    error
	}{
		"reset":    {plan: fault.Plan{Down: fault.Link{Then: fault.Reset}}, read: syscall.ECONNRESET, write: syscall.ECONNRESET, peerRead: syscall.ECONNRESET},
		"cut down": {plan: fault.Plan{Down: fault.Link{Then: fault.Cut}}, read: io.EOF},
		"cut up":   {plan: fault.Plan{Up: fault.Link{Then: fault.Cut}}, write: syscall.EPIPE, peerRead: io.EOF},
	} {
		for _, before := range []fault.Plan{{}, {Up: hole, Down: hole}} {
			t.Run(name, func(t *testing.T) {
				bubble(t, before, func(w *world) {
					read := make(chan error, 1)
					go func() { _, err := w.c.Read(make([]byte, 1)); read <- err }()
					w.at(ms)
					w.faults.Set(row.plan)
					synctest.Wait()
					select {
					case err := <-read:
						if !errors.Is(err, row.read) {
							t.Error("read:", err)
						}
					default:
						if row.read != nil {
							t.Error("read waits")
						}
					}
					if _, err := w.c.Write([]byte("x")); !errors.Is(err, row.write) {
						t.Error("write:", err)
					}
					if row.peerRead != nil {
						if _, err := w.s.Read(make([]byte, 1)); !errors.Is(err, row.peerRead) {
							t.Error("peer:", err)
						}
					}
				})
			})
		}
	}
}

func TestCutAndResetAll(t *testing.T) {
	for _, plan := range []fault.Plan{{}, {Up: hole, Down: hole}} {
		bubble(t, plan, func(w *world) {
			c2, s2 := w.connect()
			read := make(chan error, 1)
			go func() { _, err := c2.Read(make([]byte, 1)); read <- err }()
			synctest.Wait()
			w.faults.Cut()
			if err := <-read; err != io.EOF {
				t.Error(err)
			}
			for _, c := range []io.ReadWriter{w.c, c2} {
				w.readsEOF(c)
				w.writeFails(c, syscall.EPIPE)
			}
			w.readsEOF(w.s)
			w.readsEOF(s2)
			synctest.Wait()
			w.stats(fault.Stats{Conns: 2, Cuts: 2, BlackHoles: w.faults.Stats().BlackHoles})

			c3, s3 := w.connect()
			go func() { _, err := c3.Read(make([]byte, 1)); read <- err }()
			synctest.Wait()
			w.faults.Reset()
			w.fails(<-read, "read", syscall.ECONNRESET)
			w.writeFails(c3, syscall.ECONNRESET)
			w.readFails(s3, syscall.ECONNRESET)
			if err := errors.Join(w.c.Close(), c2.Close(), c3.Close()); err != nil {
				t.Error(err)
			}
			w.now(0)
		})
	}
}

func TestClosedInjector(t *testing.T) {
	bubble(t, fault.Plan{}, func(w *world) {
		w.faults.Close()
		c, s := w.connect()
		w.readFails(c, syscall.ECONNRESET)
		w.readFails(s, syscall.ECONNRESET)
	})
}

func TestListenerAndDial(t *testing.T) {
	bubble(t, fault.Plan{Up: fault.Link{Latency: 10 * ms}}, func(w *world) {
		inner, _ := w.net.Listen("tcp", "10.0.0.2:7000")
		ln := w.faults.Listener(inner)
		dial := w.faults.Dial(w.net.Host("10.0.0.9").DialContext)
		c, err := dial(context.Background(), "tcp", "10.0.0.2:7000")
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		w.write(c, "ping")
		w.reads(s, "ping")
		w.write(s, "pong")
		w.reads(c, "pong")
		w.now(20 * ms)
		w.stats(fault.Stats{Conns: 3, Open: 3, Up: 8, Down: 8})

		if ln.Addr() != inner.Addr() && ln.Addr().String() != "10.0.0.2:7000" {
			t.Error(ln.Addr())
		}
		ln.Close()
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if _, err := dial(context.Background(), "tcp", "10.0.0.2:7000"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
	})
}

// A pool sees what has arrived, not what is under way.
func TestAlive(t *testing.T) {
	alive := func(c net.Conn) error { return c.(interface{ Alive() error }).Alive() }
	bubble(t, fault.Plan{}, func(w *world) {
		if err := alive(w.c); err != nil {
			t.Error(err)
		}
		w.faults.Set(fault.Plan{Down: fault.Link{Latency: 10 * ms}})
		w.write(w.s, "x")
		w.s.CloseWrite()
		w.at(10*ms - 1)
		if err := alive(w.c); err != nil {
			t.Error("before it can know:", err)
		}
		w.at(10 * ms)
		if err := alive(w.c); err == nil || err == io.EOF {
			t.Error("unread byte:", err)
		}
		w.reads(w.c, "x")
		if err := alive(w.c); err != io.EOF {
			t.Error("closed by peer:", err)
		}
		w.faults.Reset()
		w.fails(alive(w.c), "read", syscall.ECONNRESET)
		w.c.Close()
		w.fails(alive(w.c), "read", net.ErrClosed)
	})
}
