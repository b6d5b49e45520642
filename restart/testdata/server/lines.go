package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// server answers lines: "pid build LINE".
type server struct {
	mu    sync.Mutex
	lns   []net.Listener
	conns map[net.Conn]bool
	down  bool
	wg    sync.WaitGroup

	served atomic.Int64
	keys   atomic.Pointer[string]
}

func (s *server) Serve(ln net.Listener) error {
	s.mu.Lock()
	s.lns = append(s.lns, ln)
	s.mu.Unlock()
	if worker && now.Fail == "never accept" {
		select {}
	}
	if worker && now.Fail == "serve fails" {
		return errors.New("no licence\nat all")
	}
	if worker {
		soon(now.Fail)
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		s.adopt(conn, nil)
	}
}

// adopt serves a connection, of which something may have been read already.
func (s *server) adopt(conn net.Conn, read []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[net.Conn]bool{}
	}
	s.conns[conn] = true
	s.wg.Go(func() { s.serveConn(conn, read) })
	return true
}

func (s *server) serveConn(conn net.Conn, read []byte) {
	in := bufio.NewReader(io.MultiReader(strings.NewReader(string(read)), conn))
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			break
		}
		s.served.Add(1)
		if _, err := io.WriteString(conn, s.answer(strings.TrimSpace(line))); err != nil {
			break
		}
	}
	s.forget(conn)
	conn.Close()
}

func (s *server) forget(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
}

func (s *server) answer(line string) string {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "PING":
		line = "PONG " + rest
	case "KEYS":
		line = "none"
		if k := s.keys.Load(); k != nil {
			line = *k
		}
	case "LIVES":
		line = fmt.Sprint(lives.Load())
	case "ENV":
		line = fmt.Sprintf("%q", os.Getenv(rest))
	case "SLOW":
		time.Sleep(300 * time.Millisecond)
	case "ORPHAN": // a process that outlives the one that started it
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "sleep 0.1 & exit 0"}, &os.ProcAttr{})
		if err == nil {
			p.Wait()
		}
	}
	build := now.Build
	if build == "" {
		build = "-"
	}
	return fmt.Sprintf("%d %s %s\n", os.Getpid(), build, line)
}

func (s *server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	for _, ln := range s.lns {
		ln.Close()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	<-done
	return ctx.Err()
}

func (s *server) Totals() map[string]int64 {
	return map[string]int64{"served": s.served.Load()}
}

func (s *server) TicketKeys(keys [][32]byte) {
	text := fmt.Sprintf("%d:%x", len(keys), sha256.Sum256(keys[0][:]))
	s.keys.Store(&text)
}

// mover passes on every connection that waits for a line; what it has of one is the
// state.
type mover struct{ *server }

func (m *mover) Serve(ln net.Listener) error {
	if worker {
		soon(now.Fail)
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		m.take(conn, nil)
	}
}

func (m *mover) take(conn net.Conn, part []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conns == nil {
		m.conns = map[net.Conn]bool{}
	}
	m.conns[conn] = true
	m.wg.Go(func() { m.serveConn(conn, part) })
	if m.down {
		conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// moveVia is how a connection leaves; nil while none does.
var moveVia atomic.Pointer[func(state []byte, conns ...syscall.Conn) error]

func (m *mover) serveConn(conn net.Conn, part []byte) {
	defer conn.Close()
	defer m.forget(conn)
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		part = append(part, buf[:n]...)
		for {
			line, rest, whole := strings.Cut(string(part), "\n")
			if !whole {
				break
			}
			part = []byte(rest)
			m.served.Add(1)
			if _, err := io.WriteString(conn, m.answer(strings.TrimSpace(line))); err != nil {
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if send := moveVia.Load(); send != nil && (*send)(part, conn.(syscall.Conn)) == nil {
				return
			}
			conn.SetReadDeadline(time.Time{})
			continue
		}
		if err != nil {
			return
		}
	}
}

func (m *mover) HandOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) error {
	moveVia.Store(&send)
	m.mu.Lock()
	m.down = true
	for conn := range m.conns {
		conn.SetReadDeadline(time.Unix(1, 0))
	}
	m.mu.Unlock()
	done := make(chan struct{})
	go func() { m.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return nil
}

func (m *mover) TakeOver(state []byte, fds []int) error {
	f := os.NewFile(uintptr(fds[0]), "conn")
	conn, err := net.FileConn(f)
	f.Close() // and with it the descriptor: it is ours either way here
	if err != nil {
		return nil
	}
	m.take(conn, state)
	return nil
}
