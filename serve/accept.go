package serve

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/certs"
)

// listening is one listener that is served.
type listening struct {
	net.Listener
	tls *certs.Server // nil is plaintext
}

// newListening reads what the listener needs, so that a wrong file is an error
// before anybody is accepted.
func (s *Server) newListening(ln net.Listener) (*listening, error) {
	l := &listening{Listener: ln}
	if s.TLS.off() {
		return l, nil
	}
	name := ""
	if ln != nil {
		name = ln.Addr().String()
	}
	var err error
	if l.tls, err = s.TLS.files(s.log).Server(name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys != nil {
		l.tls.SetTickets(s.keys)
	}
	return l, nil
}

// Serve accepts connections from ln and serves them, until Shutdown or Close; it then
// returns [ErrServerClosed]. It may be called for several listeners. No error of an
// accept ends it unless ln is closed. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	s.begin()
	l, err := s.newListening(ln)
	if err != nil {
		ln.Close()
		return err
	}
	if !s.listen(l) {
		ln.Close()
		return ErrServerClosed
	}
	defer s.unlisten(l)
	a := &acceptor{s: s, ln: l}
	a.spare.open()
	defer a.spare.close()
	if s.Workers <= 0 {
		return a.run(func(c *Conn) {
			c.rests = s.rests()
			go s.serveConn(c) // which serving waits for
		})
	}
	var workers sync.WaitGroup
	var last error
	for range s.Workers {
		workers.Go(func() {
			if err := a.run(func(c *Conn) { s.serveConn(c) }); !errors.Is(err, ErrServerClosed) {
				s.mu.Lock()
				last = err
				s.mu.Unlock()
			}
		})
	}
	workers.Wait()
	if last != nil {
		return last
	}
	return ErrServerClosed
}

func (s *Server) listen(l *listening) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDrained || s.isClosed || isClosed(s.closed) {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) unlisten(l *listening) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	l.Close()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// acceptor is the accept loop of one listener.
type acceptor struct {
	s     *Server
	ln    *listening
	spare spare

	failed   atomic.Bool // the last accept did
	mu       sync.Mutex
	failures int       // in a row
	silent   uint64    // not logged since
	logged   time.Time // the last line
}

// run accepts until the listener is closed.
func (a *acceptor) run(serve func(*Conn)) error {
	s := a.s
	for {
		s.gate.wait(s.closed)
		if !s.mayAccept() {
			return ErrServerClosed
		}
		c, err := a.accept()
		s.accepted()
		switch {
		case err == nil:
			if c != nil {
				serve(c)
			}
		case isClosed(s.closed):
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			a.pause(err)
		}
	}
}

// accept returns the next connection, nil for one that was refused.
func (a *acceptor) accept() (*Conn, error) {
	raw, err := a.ln.Accept()
	if err != nil {
		return nil, err
	}
	if a.failed.Swap(false) {
		a.mu.Lock()
		a.failures = 0
		a.mu.Unlock()
	}
	c, _ := a.s.admit(a.ln, raw)
	return c, nil
}

const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
	logEvery   = time.Second
)

// pause waits after an error of accept, ever longer. Which errors pass is not asked:
// all but a closed listener do, or the pause makes them harmless. (Package net calls
// ENOBUFS, ENOMEM, EPROTO and EPERM lasting, and a loop that believed it would end.)
func (a *acceptor) pause(err error) {
	s := a.s
	s.counts.acceptErrors.Add(1)
	if errors.Is(err, syscall.ECONNABORTED) {
		return // the client went away before it was accepted
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		a.spare.relieve(a.ln)
	}
	pause := a.note(err)
	select {
	case <-time.After(pause):
	case <-s.closed:
	}
}

// note logs an error, though not more than once a second.
func (a *acceptor) note(err error) (pause time.Duration) {
	a.mu.Lock()
	pause = min(firstPause<<min(a.failures, 16), lastPause)
	a.failures++
	a.failed.Store(true)
	now := time.Now()
	if now.Sub(a.logged) < logEvery {
		a.silent++
		a.mu.Unlock()
		return pause
	}
	silent := a.silent
	a.silent, a.logged = 0, now
	a.mu.Unlock()
	a.s.log.Error("serve: accept", "addr", a.ln.Addr(), "err", err, slog.Uint64("unlogged", silent))
	a.s.event(Event{Kind: AcceptFailed, Err: err})
	return pause
}

// spare is a file that is open for nothing: when no more may be opened, it makes
// room to accept one connection and close it, so that its client learns at once.
type spare struct {
	mu sync.Mutex
	fd interface{ Close() error }
}

func (p *spare) open() {
	if f, err := openNothing(); err == nil {
		p.fd = f
	}
}

func (p *spare) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd != nil {
		p.fd.Close()
		p.fd = nil
	}
}

func (p *spare) relieve(ln net.Listener) {
	if !p.mu.TryLock() { // another worker is at it
		return
	}
	defer p.mu.Unlock()
	if p.fd == nil {
		return
	}
	limited, ok := ln.(*listening).Listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return // Accept could wait for ever, with the lock held
	}
	p.fd.Close()
	p.fd = nil
	limited.SetDeadline(time.Now().Add(firstPause))
	if conn, err := ln.Accept(); err == nil {
		conn.Close()
	}
	limited.SetDeadline(time.Time{})
	p.open()
}

func openNothing() (*os.File, error) { return os.Open(os.DevNull) }
