package serve_test

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/serve"
)

// failing is a listener whose next accepts fail.
type failing struct {
	net.Listener

	mu    sync.Mutex
	err   error // of every accept, until it is nil
	times []time.Time
}

func (l *failing) Accept() (net.Conn, error) {
	l.mu.Lock()
	err := l.err
	if err != nil {
		l.times = append(l.times, time.Now())
	}
	l.mu.Unlock()
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
	}
	return l.Listener.Accept()
}

func (l *failing) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err, l.times = err, nil
}

func (l *failing) failures() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.times
}

// A4, fault 68.
func TestAcceptErrorsNeverEndTheLoop(t *testing.T) {
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPROTO, syscall.EPERM, syscall.ENETDOWN,
	} {
		t.Run(errno.Error(), func(t *testing.T) {
			srv := echoes()
			inWorld(t, srv, func(t *testing.T, w *world) {
				second, _ := w.net.Listen("tcp", "10.0.0.1:7001")
				ln := &failing{Listener: second}
				ln.fail(errno)
				begin := time.Now()
				go srv.Serve(ln)
				time.Sleep(10 * time.Second)
				tries := ln.failures()
				var gaps []time.Duration
				for i := range tries[1:] {
					gaps = append(gaps, tries[i+1].Sub(tries[i]))
				}
				pause := 5 * time.Millisecond
				for i, gap := range gaps {
					if gap != pause {
						t.Errorf("pause %d was %v, want %v", i, gap, pause)
					}
					pause = min(2*pause, time.Second)
				}
				if lines := w.logged("serve: accept"); len(lines) == 0 || len(lines) > 11 {
					t.Errorf("%d lines in 10 s, want at most one a second:\n%s", len(lines), lines)
				}
				if events := w.seen(serve.AcceptFailed); len(events) == 0 || len(events) > 11 || !errors.Is(events[0].Err, errno) {
					t.Errorf("%d events, the first %v", len(events), events[0].Err)
				}
				if n := srv.Stats().AcceptErrors; n != uint64(len(tries)) {
					t.Errorf("%d errors counted of %d", n, len(tries))
				}
				ln.fail(nil)
				conn, err := w.net.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7001")
				if err != nil {
					t.Fatal(err)
				}
				newClient(t, conn).ask("the loop goes on")
				within(t, time.Since(begin), 10*time.Second, 11*time.Second)
			})
		})
	}
	t.Run("ECONNABORTED", func(t *testing.T) { // one client's, and no reason to pause
		srv := echoes()
		inWorld(t, srv, func(t *testing.T, w *world) {
			second, _ := w.net.Listen("tcp", "10.0.0.1:7001")
			ln := &aborted{Listener: second}
			begin := time.Now()
			go srv.Serve(ln)
			conn, _ := w.net.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7001")
			newClient(t, conn).ask("hello")
			within(t, time.Since(begin), 0, 0)
			if n := srv.Stats().AcceptErrors; n != 100 {
				t.Errorf("%d errors counted", n)
			}
		})
	})
	t.Run("closed by somebody else", func(t *testing.T) {
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			second, _ := w.net.Listen("tcp", "10.0.0.1:7001")
			ended := make(chan error)
			go func() { ended <- w.srv.Serve(second) }()
			synctest.Wait()
			second.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) || errors.Is(err, serve.ErrServerClosed) {
				t.Errorf("Serve: %v", err)
			}
		})
	})
}

// aborted is a listener whose first 100 clients have gone before they are accepted.
type aborted struct {
	net.Listener
	n int
}

func (l *aborted) Accept() (net.Conn, error) {
	if l.n++; l.n <= 100 {
		return nil, &net.OpError{Op: "accept", Err: syscall.ECONNABORTED}
	}
	return l.Listener.Accept()
}
