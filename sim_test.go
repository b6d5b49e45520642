package holdfast_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// world is a simulated network with line servers on it, and what is dialed there.
// Everything in it lives in a synctest bubble, so times are exact.
type world struct {
	t       *testing.T
	net     *simnet.Net
	client  *simnet.Host
	servers []*server
	mu      sync.Mutex // guards events
	events  []holdfast.Event
	news    chan struct{} // there is one more
}

// inWorld runs a story in a bubble with n servers at 10.0.0.1:7000, 10.0.0.2:7000 …
func inWorld(t *testing.T, n int, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: simnet.New(1), news: make(chan struct{}, 1)}
		w.client = w.net.Host("10.0.1.1")
		for i := range n {
			w.servers = append(w.servers, w.start(fmt.Sprintf("10.0.0.%d:7000", i+1)))
		}
		defer func() {
			for _, s := range w.servers {
				s.stop()
			}
			w.net.Close()
			synctest.Wait()
		}()
		story(t, w)
	})
}

// cluster makes a Cluster over the world's servers and closes it at the end.
func (w *world) cluster(cfg holdfast.Config) *holdfast.Cluster {
	w.t.Helper()
	var addrs []string
	for _, s := range w.servers {
		addrs = append(addrs, s.addr)
	}
	return w.clusterOf(cfg, addrs...)
}

func (w *world) clusterOf(cfg holdfast.Config, addrs ...string) *holdfast.Cluster {
	w.t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = w.client.DialContext
	}
	if cfg.Observe == nil {
		cfg.Observe = func(e holdfast.Event) {
			w.mu.Lock()
			w.events = append(w.events, e)
			w.mu.Unlock()
			select {
			case w.news <- struct{}{}:
			default:
			}
		}
	}
	c, err := holdfast.New(holdfast.Static(addrs...), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// seen returns the events of one kind so far: also those that are just being told.
func (w *world) seen(kind holdfast.EventKind) []holdfast.Event {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []holdfast.Event
	for _, e := range w.events {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// server answers each line with the line, or with what its script says.
type server struct {
	w    *world
	addr string
	ln   net.Listener
	wg   sync.WaitGroup

	mu       sync.Mutex // guards the rest
	script   func(conn net.Conn, line string) bool
	greet    func(conn net.Conn) bool
	accepted int
	lines    []string
	conns    map[net.Conn]bool
}

func (w *world) start(addr string) *server {
	w.t.Helper()
	s := &server{w: w, addr: addr}
	s.listen()
	return s
}

func (s *server) listen() {
	ln, err := s.w.net.Listen("tcp", s.addr)
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.ln = ln
	s.conns = map[net.Conn]bool{}
	s.wg.Go(s.serve)
}

func (s *server) serve() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.accepted++
		s.conns[conn] = true
		greet := s.greet
		s.mu.Unlock()
		s.wg.Go(func() {
			defer conn.Close()
			if greet != nil && !greet(conn) {
				return
			}
			s.talk(conn)
		})
	}
}

func (s *server) talk(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		s.mu.Lock()
		s.lines = append(s.lines, strings.TrimSpace(line))
		script := s.script
		s.mu.Unlock()
		if script == nil {
			script = reply
		}
		if !script(conn, line) {
			return
		}
	}
}

func reply(conn net.Conn, line string) bool {
	_, err := io.WriteString(conn, line)
	return err == nil
}

// does makes the server answer by a script from now on; false hangs up.
func (s *server) does(script func(conn net.Conn, line string) bool) {
	s.mu.Lock()
	s.script = script
	s.mu.Unlock()
}

// greets makes the server begin each connection so; false hangs up.
func (s *server) greets(greet func(conn net.Conn) bool) {
	s.mu.Lock()
	s.greet = greet
	s.mu.Unlock()
}

func (s *server) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

func (s *server) dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// hangUp closes the server's connections, in peace.
func (s *server) hangUp() {
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	clear(s.conns)
	s.mu.Unlock()
}

// crash resets everything and stops listening; listen brings the server back.
func (s *server) crash() {
	s.ln.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.(*simnet.Conn).Reset()
	}
	clear(s.conns)
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *server) stop() {
	s.ln.Close()
	s.hangUp()
	s.wg.Wait()
}

func (s *server) ip() string {
	host, _, _ := net.SplitHostPort(s.addr)
	return host
}

// say is an operation: one line there, the same line back.
func say(line string) func(context.Context, *holdfast.Conn) error {
	return func(_ context.Context, conn *holdfast.Conn) error { return exchange(conn, line) }
}

func exchange(conn io.ReadWriter, line string) error {
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return err
	}
	got := make([]byte, len(line)+1)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != line+"\n" {
		return errWrongReply
	}
	return nil
}

var errWrongReply = errors.New("a reply to somebody else's request")

// took runs f and returns how long it took on the bubble's clock.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func within(t *testing.T, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("took %v, want %v to %v", got, least, most)
	}
}

func asError(t *testing.T, err error) *holdfast.Error {
	t.Helper()
	var e *holdfast.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want a *holdfast.Error", err, err)
	}
	return e
}
