//go:build linux

package restart_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// load is clients that connect, ask one thing and go, as fast as they can. What can go
// wrong is counted by its kind.
type load struct {
	testing.TB
	network, addr string

	ok                                      atomic.Int64
	refused, reset, eof, slow, wrong, other atomic.Int64
	first                                   atomic.Pointer[string]

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func drive(t testing.TB, clients int, network, addr string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{TB: t, network: network, addr: addr, cancel: cancel}
	for i := range clients {
		l.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.count(l.once(fmt.Sprintf("%d-%d", i, n)))
			}
		})
	}
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	for begun := time.Now(); l.ok.Load()+l.failed() == 0 && time.Since(begun) < 10*time.Second; {
		time.Sleep(time.Millisecond) // what is over before they begin would prove nothing
	}
	return l
}

var errWrong = errors.New("a wrong answer")

func (l *load) once(what string) error {
	conn, err := net.DialTimeout(l.network, l.addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0) // no TIME_WAIT: there are only so many ports
	}
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(conn, "PING %s\n", what); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasSuffix(answer, " PONG "+what+"\n") {
		return fmt.Errorf("%w: %q", errWrong, answer)
	}
	return nil
}

func (l *load) count(err error) {
	var t interface{ Timeout() bool }
	switch {
	case err == nil:
		l.ok.Add(1)
		return
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		l.refused.Add(1)
		time.Sleep(time.Millisecond) // or the log would be of nothing else
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		l.reset.Add(1)
	case errors.Is(err, io.EOF):
		l.eof.Add(1)
	case errors.Is(err, syscall.EAGAIN): // a Unix socket's queue is full: no error of the server's
		time.Sleep(time.Millisecond)
		return
	case errors.As(err, &t) && t.Timeout():
		l.slow.Add(1)
	case errors.Is(err, errWrong):
		l.wrong.Add(1)
	default:
		l.other.Add(1)
	}
	text := err.Error()
	l.first.CompareAndSwap(nil, &text)
}

// finish ends the load.
func (l *load) finish() *load { l.cancel(); l.wg.Wait(); return l }

func (l *load) failed() int64 {
	return l.refused.Load() + l.reset.Load() + l.eof.Load() + l.slow.Load() + l.wrong.Load() + l.other.Load()
}

func (l *load) String() string {
	s := fmt.Sprintf("%s: %d ok, %d refused, %d reset, %d EOF, %d timeouts, %d wrong, %d other",
		l.network, l.ok.Load(), l.refused.Load(), l.reset.Load(), l.eof.Load(), l.slow.Load(), l.wrong.Load(), l.other.Load())
	if first := l.first.Load(); first != nil {
		s += "; the first: " + *first
	}
	return s
}

// spotless ends the load, of which nothing may have failed.
func (l *load) spotless() {
	l.Helper()
	l.finish()
	if l.failed() > 0 || l.ok.Load() == 0 {
		l.Error(l)
	}
}

// losses ends the load, of which nothing may have been refused, and no more may have
// been lost than were in flight.
func (l *load) losses(most int64) {
	l.Helper()
	l.finish()
	if lost := l.reset.Load() + l.eof.Load(); lost > most || l.failed() != lost || l.ok.Load() == 0 {
		l.Errorf("at most %d may be lost, and nothing else may happen: %s", most, l)
	}
}
