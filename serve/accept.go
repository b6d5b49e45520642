package serve

import (
	"errors"
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
	return l, nil
}

func (l *listening) setTickets(keys [][32]byte) {
	if l.tls != nil && keys != nil {
		l.tls.SetTickets(keys)
	}
}

// elsewhere is where connections come from that ServeConn is given: one listener, to
// the TLS sessions of its clients.
func (s *Server) elsewhere() (*listening, error) {
	s.mu.Lock()
	own := s.own
	s.mu.Unlock()
	if own != nil {
		return own, nil
	}
	own, err := s.newListening(nil)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		own.setTickets(s.keys)
		s.own = own
	}
	return s.own, nil
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
	l.setTickets(s.keys)
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

	failures atomic.Int32 // in a row
	log      sparingly
}

// sparingly says when to log what may happen very often: once a second.
type sparingly struct {
	mu     sync.Mutex
	silent uint64 // not logged since
	logged time.Time
}

func (l *sparingly) now() (unlogged uint64, now bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := time.Now()
	if at.Sub(l.logged) < logEvery {
		l.silent++
		return 0, false
	}
	unlogged, l.silent, l.logged = l.silent, 0, at
	return unlogged, true
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
			if c := a.fail(err); c != nil {
				serve(c)
			}
		}
	}
}

// accept returns the next connection, nil for one that was refused.
func (a *acceptor) accept() (*Conn, error) {
	raw, err := a.ln.Accept()
	if err != nil {
		return nil, err
	}
	return a.admit(raw), nil
}

// admit returns nil for one that was refused.
func (a *acceptor) admit(raw net.Conn) *Conn {
	if a.failures.Load() > 0 {
		a.failures.Store(0)
		if !a.spare.regain() {
			raw.Close() // it got the place of the spare, and there is no other
			a.spare.regain()
			return nil
		}
	}
	c, _ := a.s.admit(a.ln, raw, func(p *Pass) error { return a.s.gate.enterAfter(p, a.s.closed) })
	return c
}

const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
	logEvery   = time.Second
)

// fail waits after an error of accept, ever longer. Which errors pass is not asked: all
// but a closed listener do, or the pause makes them harmless. (Package net calls
// ENOBUFS, ENOMEM, EPROTO and EPERM lasting, and a loop that believed it would end.)
// When there are no files it closes the next connection, or returns it if there are
// some again.
func (a *acceptor) fail(err error) *Conn {
	s := a.s
	if errors.Is(err, os.ErrDeadlineExceeded) {
		a.sleep(firstPause) // the deadline of another worker's relieve
		return nil
	}
	s.counts.acceptErrors.Add(1)
	if errors.Is(err, syscall.ECONNABORTED) {
		return nil // the client went away before it was accepted
	}
	pause := min(firstPause<<min(a.failures.Add(1)-1, 16), lastPause)
	if unlogged, now := a.log.now(); now {
		s.log.Error("serve: accept", "addr", a.ln.Addr(), "err", err, "unlogged", unlogged)
		s.event(Event{Kind: AcceptFailed, Err: err})
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		if raw := a.spare.relieve(a.ln.Listener); raw != nil {
			return a.admit(raw)
		}
	}
	a.sleep(pause)
	return nil
}

func (a *acceptor) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-a.s.closed:
	}
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

// regain reports whether the spare is there, after it tried to open it.
func (p *spare) regain() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd == nil {
		p.open()
	}
	return p.fd != nil
}

// relieve accepts in the place of the spare. It returns a connection if there are files
// again.
func (p *spare) relieve(ln net.Listener) net.Conn {
	if !p.mu.TryLock() { // another worker is at it
		return nil
	}
	defer p.mu.Unlock()
	limited, ok := ln.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return nil // Accept could wait for ever, with the lock held
	}
	if p.fd != nil {
		p.fd.Close()
		p.fd = nil
	}
	limited.SetDeadline(time.Now().Add(firstPause))
	conn, err := ln.Accept()
	limited.SetDeadline(time.Time{})
	if p.open(); p.fd != nil || err != nil {
		return conn
	}
	conn.Close()
	p.open()
	return nil
}

func openNothing() (*os.File, error) { return os.Open(os.DevNull) }
