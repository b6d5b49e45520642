package pipeline_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/pipeline"
)

// world is a few servers in memory and clients of them, on a clock of its own. Ends
// that a test leaves behind are found by the bubble.
type world struct {
	*testing.T
	net     *simnet.Net
	client  *simnet.Host
	servers []*server
}

// server answers one line by one line, in order: "re " and what was asked. Of lines
// that begin with a number it repeats that first. What it acts on it counts.
type server struct {
	addr string
	host *simnet.Host
	ln   net.Listener

	mu     sync.Mutex
	ran    map[string]int
	order  []string
	answer func(c net.Conn, line string) // nil is the plain one
}

func inWorld(t *testing.T, n int, story func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, net: simnet.New(1)}
		w.client = w.net.Host("10.0.1.1")
		for i := range n {
			w.servers = append(w.servers, w.start(fmt.Sprintf("10.0.0.%d:7000", i+1)))
		}
		defer time.Sleep(time.Minute) // for servers that think
		defer w.net.Close()
		story(w)
	})
}

func (w *world) start(addr string) *server {
	host, _, _ := net.SplitHostPort(addr)
	s := &server{addr: addr, host: w.net.Host(host), ran: map[string]int{}}
	s.listen(w)
	return s
}

func (s *server) listen(w *world) {
	ln, err := w.net.Listen("tcp", s.addr)
	if err != nil {
		w.Fatal(err)
	}
	s.ln = ln
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
}

func (s *server) serve(c net.Conn) {
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return // a part of a line is nothing to act on
		}
		line = strings.TrimSuffix(line, "\n")
		s.mu.Lock()
		s.ran[line]++
		s.order = append(s.order, line)
		answer := s.answer
		s.mu.Unlock()
		if answer != nil {
			answer(c, line)
			continue
		}
		if _, err := fmt.Fprintf(c, "re %s\n", line); err != nil {
			return
		}
	}
}

func (s *server) does(answer func(c net.Conn, line string)) {
	s.mu.Lock()
	s.answer = answer
	s.mu.Unlock()
}

func (s *server) times(line string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ran[line]
}

func (s *server) saw() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.order...)
}

// cluster is one over all servers. It ends with the test.
func (w *world) cluster(cfg holdfast.Config) *holdfast.Cluster {
	var addrs []string
	for _, s := range w.servers {
		addrs = append(addrs, s.addr)
	}
	if cfg.Dial == nil {
		cfg.Dial = w.client.DialContext
	}
	c, err := holdfast.New(holdfast.Static(addrs...), cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return c
}

type config = pipeline.Config[string]

// lines makes a client of the line servers.
func (w *world) lines(cfg config) *pipeline.Client[string] {
	return w.over(w.cluster(holdfast.Config{}), cfg)
}

func (w *world) over(c *holdfast.Cluster, cfg config) *pipeline.Client[string] {
	w.Helper()
	if cfg.Decoder == nil {
		cfg.Decoder = texts
	}
	p, err := pipeline.New(c, cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { p.Close() })
	return p
}

var texts = pipeline.Frames(frame.Lines(), func(line []byte) (string, error) { return string(line), nil })

// ready makes the client ready.
func (w *world) ready(p *pipeline.Client[string]) *pipeline.Client[string] {
	w.Helper()
	if err := p.WaitReady(w.Context()); err != nil {
		w.Fatal(err)
	}
	return p
}

// line is a request of one line.
func line(format string, args ...any) pipeline.Request {
	text := fmt.Sprintf(format, args...)
	return pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) {
		return append(append(dst, text...), '\n'), nil
	}}
}

func idempotent(r pipeline.Request) pipeline.Request { r.Safety = holdfast.Idempotent; return r }

// ask is a request that must be answered rightly.
func (w *world) ask(p *pipeline.Client[string], text string) {
	w.Helper()
	if got, err := p.Do(w.Context(), line("%s", text)); err != nil || got != "re "+text {
		w.Errorf("%s: %q, %v", text, got, err)
	}
}

// within is a context with a deadline.
func (w *world) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(w.Context(), d)
	w.Cleanup(cancel)
	return ctx
}

// numbered makes a client of servers that repeat the number before each line.
func numbered(cfg config) config {
	cfg.ID = func(reply string) (id uint64, ok bool) {
		n, err := fmt.Sscanf(strings.TrimPrefix(reply, "re "), "%d ", &id)
		return id, n == 1 && err == nil
	}
	return cfg
}

func numberedLine(text string) pipeline.Request {
	return pipeline.Request{Encode: func(dst []byte, id uint64) ([]byte, error) {
		return fmt.Appendf(dst, "%d %s\n", id, text), nil
	}}
}
