package restart

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
)

// counting counts what comes out of the queue.
type counting struct {
	*net.TCPListener
	accepted atomic.Int64
}

func (c *counting) Accept() (net.Conn, error) {
	conn, err := c.TCPListener.Accept()
	if err == nil {
		c.accepted.Add(1)
	}
	return conn, err
}

func listening(t testing.TB) *listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(&counting{TCPListener: ln.(*net.TCPListener)})
	t.Cleanup(func() { l.Close() })
	return l
}

// However often it is paused, each connection is accepted once, and none between the
// return of pause and resume.
func TestPausedListenerLosesNothing(t *testing.T) {
	leak.Check(t)
	l := listening(t)
	accepted := &l.Listener.(*counting).accepted
	var servers sync.WaitGroup
	for range 4 {
		servers.Go(func() {
			for {
				conn, err := l.Accept()
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					t.Errorf("accept: %v", err)
					return
				}
				conn.Write([]byte("x"))
				conn.Close()
			}
		})
	}
	<-l.armed
	const clients, each = 4, 100
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					t.Errorf("read: %v", err)
				}
				conn.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	pauses := 0
	for over := false; !over; pauses++ {
		select {
		case <-done:
			over = true
		default:
		}
		l.pause()
		n := accepted.Load()
		for range 100 {
			if now := accepted.Load(); now != n {
				t.Fatalf("%d were accepted during a pause", now-n)
			}
		}
		l.resume()
	}
	if accepted.Load() != clients*each {
		t.Errorf("%d connections were accepted", accepted.Load())
	}
	l.Close()
	servers.Wait()
	t.Logf("%d pauses", pauses)
}

// What connects during a pause waits in the queue.
func TestPausedListenerQueues(t *testing.T) {
	leak.Check(t)
	l := listening(t)
	l.pause()
	l.pause() // twice is once
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		got <- err
	}()
	<-l.armed
	select {
	case err := <-got:
		t.Fatalf("accept returned during a pause: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	l.resume()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// Close ends an Accept that waits, paused or not, and a pause that waits for Accept.
func TestPausedListenerCloses(t *testing.T) {
	leak.Check(t)
	for _, paused := range []bool{false, true} {
		l := listening(t)
		if paused {
			l.pause()
		}
		got := make(chan error, 3)
		for range cap(got) {
			go func() { _, err := l.Accept(); got <- err }()
		}
		<-l.armed
		go l.pause()
		for range 2 {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		for range cap(got) {
			if err := <-got; !errors.Is(err, net.ErrClosed) {
				t.Errorf("paused %v: %v", paused, err)
			}
		}
		l.resume()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// A server's deadline never ends a pause, and holds again after it.
func TestDeadlineDuringAPause(t *testing.T) {
	leak.Check(t)
	l := listening(t)
	l.SetDeadline(time.Now().Add(time.Hour))
	l.pause()
	l.SetDeadline(time.Unix(1, 0)) // as a server does that is out of descriptors
	got := make(chan error, 1)
	go func() { _, err := l.Accept(); got <- err }()
	<-l.armed
	select {
	case err := <-got:
		t.Fatalf("accept returned during a pause: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	l.resume()
	if err := <-got; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}

	l.SetDeadline(time.Time{})
	go func() { _, err := l.Accept(); got <- err }()
	for range 1000 { // it must not undo a pause that has just begun: that would wait for ever
		set := make(chan struct{})
		go func() { l.SetDeadline(time.Time{}); close(set) }()
		l.pause()
		<-set
		l.resume()
	}
	l.Close()
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A deadline that is not ours is the server's business.
func TestOthersDeadlineIsReturned(t *testing.T) {
	l := listening(t)
	l.SetDeadline(time.Unix(1, 0))
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// A server that accepts from the socket itself is told when it may.
func TestAcceptingFollowsPauses(t *testing.T) {
	leak.Check(t)
	l := listening(t)
	var told []bool
	select {
	case <-l.armed:
		t.Fatal("armed before anybody accepts")
	default:
	}
	l.Accepting(func(may bool) { told = append(told, may) })
	<-l.armed
	l.pause()
	if len(told) != 2 || told[1] {
		t.Errorf("when pause returns the server was told %v", told)
	}
	l.resume()
	if len(told) != 3 || !told[2] {
		t.Errorf("after resume: %v", told)
	}
}
