package restart

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// errInUse is an address that somebody else has.
const errInUse = syscall.EADDRINUSE

// listener is what a server accepts from. It can be paused: Accept then waits,
// without a connection being lost, and goes on when it is resumed. A server does
// not notice, so any server can be resumed.
type listener struct {
	net.Listener
	limited deadliner

	armed     chan struct{} // closed when Accept is called for the first time
	closed    chan struct{}
	arm, shut sync.Once

	mu        sync.Mutex
	deadline  time.Time     // the server's
	paused    chan struct{} // closed on resume; nil while not paused
	accepting int           // calls that may return a connection
	tell      func(bool)    // of a server that accepts by itself, from the socket
	telling   sync.Mutex    // one call of it at a time, and with what holds then
	quiet     chan struct{} // closed when none may; nil unless a pause waits for that
}

type deadliner interface{ SetDeadline(time.Time) error }

func newListener(ln net.Listener) *listener {
	return &listener{
		Listener: ln,
		limited:  ln.(deadliner), // TCP and Unix listeners have it
		armed:    make(chan struct{}),
		closed:   make(chan struct{}),
	}
}

func (l *listener) Accept() (net.Conn, error) {
	l.arm.Do(func() { close(l.armed) })
	for {
		if err := l.enter(); err != nil {
			return nil, err
		}
		conn, err := l.Listener.Accept()
		pausing := l.leave()
		if err != nil && pausing && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return conn, err
	}
}

// enter waits until the listener is not paused.
func (l *listener) enter() error {
	for {
		l.mu.Lock()
		paused := l.paused
		if paused == nil {
			l.accepting++
			l.mu.Unlock()
			return nil
		}
		l.mu.Unlock()
		select {
		case <-paused:
		case <-l.closed:
			return &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
		}
	}
}

func (l *listener) leave() (pausing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepting--
	if l.accepting == 0 && l.quiet != nil {
		close(l.quiet)
		l.quiet = nil
	}
	return l.paused != nil
}

// pause returns when every connection that was accepted has been returned by
// Accept, and no more will be.
func (l *listener) pause() {
	l.mu.Lock()
	if l.paused == nil {
		l.paused = make(chan struct{})
	}
	var quiet chan struct{}
	if l.accepting > 0 {
		if l.quiet == nil {
			l.quiet = make(chan struct{})
		}
		quiet = l.quiet
	}
	l.limited.SetDeadline(time.Unix(1, 0)) // a deadline is this process's, not the socket's
	l.mu.Unlock()
	l.tellNow()
	if quiet != nil {
		<-quiet // Accept returns at once
	}
}

func (l *listener) resume() {
	l.mu.Lock()
	l.limited.SetDeadline(l.deadline)
	if l.paused != nil {
		close(l.paused)
		l.paused = nil
	}
	l.mu.Unlock()
	l.tellNow()
}

func (l *listener) tellNow() {
	l.telling.Lock()
	defer l.telling.Unlock()
	l.mu.Lock()
	tell, may := l.tell, l.paused == nil
	l.mu.Unlock()
	if tell != nil {
		tell(may)
	}
}

// Accepting is for servers that accept from the socket itself instead of calling
// Accept: tell is called with true when they may, and with false when they must not,
// which holds once it returns. It is called at once, and never by two goroutines.
func (l *listener) Accepting(tell func(may bool)) {
	l.mu.Lock()
	l.tell = tell
	l.mu.Unlock()
	l.tellNow()
	l.arm.Do(func() { close(l.armed) })
}

// SetDeadline is for servers that bound an Accept, as serve does when it is out of
// descriptors. During a pause the deadline is the pause's, and the server's waits.
func (l *listener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	if l.paused != nil {
		return nil
	}
	return l.limited.SetDeadline(t)
}

// Close ends Accept here; the socket lives on where else it is held. Both the worker
// and the server close it, and for the second of them all is well.
func (l *listener) Close() (err error) {
	l.shut.Do(func() {
		close(l.closed)
		err = l.Listener.Close()
	})
	return err
}

// SyscallConn gives access to the socket, for those who set options.
func (l *listener) SyscallConn() (syscall.RawConn, error) {
	return l.Listener.(syscall.Conn).SyscallConn()
}
