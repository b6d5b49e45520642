package fault_test

import (
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

func TestCutAfter(t *testing.T) {
	bubble(t, fault.Plan{Down: fault.Link{After: 5, Then: fault.Cut}}, func(w *world) {
		w.write(w.s, "123")
		w.reads(w.c, "123")
		w.write(w.s, "45678")
		w.reads(w.c, "45")
		w.readsEOF(w.c)
		w.readsEOF(w.c)
		w.write(w.c, "the other direction")
		w.reads(w.s, "the other direction")
		for range 100 { // the peer notices nothing
			w.write(w.s, strings.Repeat("x", 10_000))
		}
		w.stats(fault.Stats{Conns: 1, Open: 1, Up: 19, Down: 5, Cuts: 1})
	})
	bubble(t, fault.Plan{Up: fault.Link{After: 5, Then: fault.Cut}}, func(w *world) {
		w.write(w.c, "12345678")
		w.reads(w.s, "12345")
		w.readsEOF(w.s)
		w.writeFails(w.c, syscall.EPIPE)
		w.write(w.s, "the other direction")
		w.reads(w.c, "the other direction")
		w.stats(fault.Stats{Conns: 1, Open: 1, Up: 5, Down: 19, Cuts: 1})
	})
}

func TestResetAfter(t *testing.T) {
	bubble(t, fault.Plan{Down: fault.Link{After: 5, Then: fault.Reset}}, func(w *world) {
		w.write(w.s, "12345678")
		w.reads(w.c, "12345")
		w.readFails(w.c, syscall.ECONNRESET)
		w.writeFails(w.c, syscall.ECONNRESET)
		w.readFails(w.s, syscall.ECONNRESET)
		if err := w.c.Close(); err != nil {
			t.Error(err)
		}
		w.stats(fault.Stats{Conns: 1, Down: 5, Resets: 1})
	})
	bubble(t, fault.Plan{Up: fault.Link{After: 5, Then: fault.Reset}}, func(w *world) {
		w.write(w.c, "12345678")
		synctest.Wait()
		w.reads(w.s, "12345")
		w.readFails(w.s, syscall.ECONNRESET)
		w.readFails(w.c, syscall.ECONNRESET)
		w.writeFails(w.c, syscall.ECONNRESET)
	})
}

// The bytes before the end travel as the link says, and the end right behind them.
func TestEndsComeInTime(t *testing.T) {
	link := fault.Link{Latency: 10 * ms, Bandwidth: 1000, After: 105, Then: fault.Cut}
	bubble(t, fault.Plan{Up: link}, func(w *world) {
		w.write(w.c, strings.Repeat("x", 150))
		b, err := io.ReadAll(w.s)
		w.now(115 * ms)
		if len(b) != 105 || err != nil {
			t.Error(len(b), err)
		}
	})
}

func TestHalfOpen(t *testing.T) {
	hole := fault.Link{Then: fault.BlackHole}
	bubble(t, fault.Plan{Up: hole, Down: hole}, func(w *world) {
		w.write(w.c, "are you there?")
		w.write(w.s, "yes")
		w.s.Close() // the peer's FIN is lost
		w.c.SetReadDeadline(time.Now().Add(time.Hour))
		w.readFails(w.c, os.ErrDeadlineExceeded)
		w.now(time.Hour)
		w.write(w.c, "hello?")
		w.stats(fault.Stats{Conns: 1, Open: 1, BlackHoles: 2})

		w.c.SetReadDeadline(time.Time{})
		w.faults.Set(fault.Plan{Up: fault.Link{Then: fault.Reset}})
		w.readFails(w.c, syscall.ECONNRESET)
	})
}

// Our FIN is lost too: the peer does not hear that we have closed, for a while.
func TestCloseInABlackHole(t *testing.T) {
	hole := fault.Link{Then: fault.BlackHole}
	bubble(t, fault.Plan{Up: hole, Down: hole}, func(w *world) {
		w.write(w.c, "lost")
		if err := w.c.Close(); err != nil {
			t.Error(err)
		}
		w.now(0)
		w.s.SetReadDeadline(time.Now().Add(50 * time.Second))
		w.readFails(w.s, os.ErrDeadlineExceeded)
		w.s.SetReadDeadline(time.Time{})
		w.readFails(w.s, syscall.ECONNRESET)
		w.now(time.Minute)
		synctest.Wait()
		w.stats(fault.Stats{Conns: 1, BlackHoles: 2, Resets: 1})
	})
	bubble(t, fault.Plan{Up: hole}, func(w *world) {
		w.write(w.c, "found")
		w.c.Close()
		w.at(time.Second)
		w.faults.Set(fault.Plan{})
		w.reads(w.s, "found")
		w.readsEOF(w.s)
		w.now(time.Second)
	})
}

func TestBlackHoleAfter(t *testing.T) {
	hole := fault.Link{After: 2, Then: fault.BlackHole}
	bubble(t, fault.Plan{Up: hole, Down: hole}, func(w *world) {
		w.write(w.c, "1234")
		w.write(w.s, "abcd")
		w.reads(w.s, "12")
		w.reads(w.c, "ab")
		w.at(time.Second)
		w.faults.Set(fault.Plan{}) // nothing is lost
		w.reads(w.s, "34")
		w.reads(w.c, "cd")
		w.now(time.Second)
	})
}

func TestCloseTravelsBehindTheData(t *testing.T) {
	link := fault.Link{Latency: 100 * ms}
	bubble(t, fault.Plan{Up: link, Down: link}, func(w *world) {
		w.write(w.c, "request")
		w.at(10 * ms)
		if err := closeWrite(w.c); err != nil {
			t.Error(err)
		}
		w.writeFails(w.c, syscall.EPIPE)
		w.reads(w.s, "request")
		w.now(100 * ms)
		w.readsEOF(w.s)
		w.now(110 * ms)

		w.write(w.s, "reply")
		w.s.CloseWrite()
		w.reads(w.c, "reply")
		w.readsEOF(w.c)
		w.now(210 * ms)
		w.c.Close()
		w.stats(fault.Stats{Conns: 1, Open: 1, Up: 7, Down: 5})
		time.Sleep(100 * ms)
		synctest.Wait()
		w.stats(fault.Stats{Conns: 1, Up: 7, Down: 5})
	})
	bubble(t, fault.Plan{Up: link}, func(w *world) {
		w.write(w.c, "bye")
		w.c.Close()
		w.now(0)
		w.fails(w.c.Close(), "close", net.ErrClosed)
		w.fails(closeWrite(w.c), "close", net.ErrClosed)
		w.fails(w.c.SetDeadline(time.Now()), "set", net.ErrClosed)
		w.readFails(w.c, net.ErrClosed)
		w.writeFails(w.c, net.ErrClosed)
		w.reads(w.s, "bye")
		w.readsEOF(w.s)
		w.now(100 * ms)
	})
}

// A peer that never reads does not keep a closed connection for ever, whether it is
// closed before anything was delivered or after, or with a plan that changes meanwhile.
func TestLingerIsBounded(t *testing.T) {
	slow := fault.Plan{Up: fault.Link{Latency: ms, Buffer: -1}}
	for _, row := range []struct{ closed, changed time.Duration }{
		{0, 0}, {10 * ms, 0}, {10 * ms, 30 * time.Second},
	} {
		bubble(t, slow, func(w *world) {
			w.write(w.c, strings.Repeat("x", 1<<20))
			w.at(row.closed)
			w.c.Close()
			if row.changed > 0 {
				w.at(row.changed)
				w.faults.Set(slow)
			}
			w.at(row.closed + time.Minute)
			synctest.Wait()
			w.stats(fault.Stats{Conns: 1, Up: 64 << 10, Resets: 1})
		})
	}
}

// What ends a connection ends one that is closed and has bytes under way.
func TestEndsMeetTheClosed(t *testing.T) {
	slow := fault.Link{Latency: 10 * ms}
	for name, end := range map[string]func(w *world){
		"cut":        func(w *world) { w.faults.Set(fault.Plan{Up: fault.Link{Then: fault.Cut}}) },
		"reset":      func(w *world) { w.faults.Set(fault.Plan{Down: fault.Link{Then: fault.Reset}}) },
		"by peer":    func(w *world) { w.s.Reset() },
		"cut all":    func(w *world) { w.faults.Cut() },
		"with close": func(w *world) { w.faults.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, fault.Plan{Up: slow, Down: slow}, func(w *world) {
				w.write(w.c, "never arrives")
				w.c.Close()
				w.at(ms)
				end(w)
				w.at(20 * ms)
				synctest.Wait()
				if s := w.faults.Stats(); s.Open != 0 || s.Up != 0 {
					t.Errorf("stats %+v", s)
				}
			})
		})
	}
}

func TestErrorsOfTheConnectionPass(t *testing.T) {
	link := fault.Link{Latency: 10 * ms}
	bubble(t, fault.Plan{Up: link, Down: link}, func(w *world) {
		w.write(w.s, "last words")
		synctest.Wait()
		w.s.Reset()
		w.write(w.c, "x")
		w.reads(w.c, "last words")
		w.readFails(w.c, syscall.ECONNRESET)
		w.now(10 * ms)
		synctest.Wait()
		w.writeFails(w.c, syscall.ECONNRESET)
		if err := w.c.Close(); err != nil {
			t.Error(err)
		}
		w.now(10 * ms)
		w.stats(fault.Stats{Conns: 1, Down: 10})
	})
}

func TestCloseEndsEveryWait(t *testing.T) {
	hole := fault.Link{Then: fault.BlackHole}
	for name, plan := range map[string]fault.Plan{
		"clean": {}, "slow": {Up: fault.Link{Bandwidth: 1}, Down: fault.Link{Bandwidth: 1}},
		"hole": {Up: hole, Down: hole}, "up": {Up: hole}, "down": {Down: hole},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, plan, func(w *world) {
				ended := make(chan error)
				go func() { _, err := w.c.Write(make([]byte, 1<<20)); ended <- err }()
				go func() { _, err := w.c.Write(make([]byte, 1<<20)); ended <- err }()
				go func() { _, err := w.c.Read(make([]byte, 1)); ended <- err }()
				w.at(ms)
				w.c.Close()
				for range 3 {
					if err := <-ended; !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
				}
				w.now(ms)
			})
		})
	}
}

// Without CloseWrite there is no half of a connection to cut, nor to reset a socket.
func TestPlainConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t}
		faults := fault.New(fault.Plan{Up: fault.Link{After: 2, Then: fault.Cut}})
		defer faults.Close()
		a, b := net.Pipe()
		c := faults.Conn(a)
		if _, ok := c.(interface{ CloseWrite() error }); ok {
			t.Error("a pipe has got CloseWrite")
		}
		w.write(c, "123")
		w.reads(b, "12")
		w.readsEOF(b)
		w.readsEOF(c)
		w.writeFails(c, syscall.EPIPE)

		a, b = net.Pipe()
		c = faults.Conn(a)
		faults.Reset()
		w.readsEOF(b)
		w.readFails(c, syscall.ECONNRESET)
	})
}

func TestNoSuchEnd(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	fault.New(fault.Plan{Up: fault.Link{Then: fault.BlackHole + 1}})
}
