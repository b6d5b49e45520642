package integrations

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what takes a moment.
const patience = 20 * time.Second

// service is a holdfast echo or holdfast run, with a folder of its own.
type service struct {
	*process
	t      *testing.T
	binary string
	admin  string
}

// startService runs a verb that serves addr.
func startService(t *testing.T, addr, verb string, args ...string) *service {
	t.Helper()
	s := &service{t: t, binary: holdfastProgram(t), admin: filepath.Join(shortDir(t), "admin")}
	line := append([]string{verb, "-l", "tcp://" + addr, "--admin", s.admin, "--confirm", "100ms"}, args...)
	s.process = run(t, addr, nil, s.binary, line...)
	t.Cleanup(s.end)
	return s
}

// end lets the service go, and sees to it that it does: only so its command goes too.
func (s *service) end() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.dead:
	case <-time.After(patience):
		s.t.Error("the service did not end")
	}
	s.kill()
	if strings.Contains(s.out.String(), "restart: cut") {
		s.t.Error("a generation did not leave in time")
	}
	if s.t.Failed() {
		s.t.Logf("the log:\n%s", s.out.String())
	}
}

// restart replaces the server by its successor and waits until that is committed.
func (s *service) restart() {
	s.t.Helper()
	if out, err := exec.Command(s.binary, "restart", "--wait", "--admin", s.admin).CombinedOutput(); err != nil {
		s.t.Fatalf("restart: %v: %s", err, out)
	}
}

// shortDir is a folder in which the path of a Unix socket is not too long.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// load is clients that connect, ask once and leave, again and again.
type load struct {
	t       *testing.T
	stop    chan struct{}
	clients sync.WaitGroup
	done    atomic.Int64
	mu      sync.Mutex
	lost    []error
}

// pour puts load on an address: each connection asks, and wants the answer.
func pour(t *testing.T, addr, ask, want string) *load {
	l := &load{t: t, stop: make(chan struct{})}
	for range 2 {
		l.clients.Go(func() {
			for l.goesOn() {
				l.note(askOnce(addr, ask, want))
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) goesOn() bool {
	select {
	case <-l.stop:
		return false
	default:
		return true
	}
}

func (l *load) note(err error) {
	if err == nil {
		l.done.Add(1)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = append(l.lost, err)
}

func (l *load) end() {
	if l.goesOn() {
		close(l.stop)
	}
	l.clients.Wait()
}

// flow waits until the clients have been answered some more.
func (l *load) flow() {
	l.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	from := l.done.Load()
	for end := time.Now().Add(patience); l.done.Load() < from+40; <-tick.C {
		if time.Now().After(end) {
			l.t.Fatalf("the clients are stuck at %d answers", l.done.Load())
		}
	}
}

// spotless ends the load and wants nothing lost.
func (l *load) spotless() {
	l.t.Helper()
	l.end()
	for i, err := range l.lost {
		if l.t.Errorf("lost: %v", err); i == 5 {
			break
		}
	}
	l.t.Logf("%d answers, %d lost", l.done.Load(), len(l.lost))
}

// askOnce is one connection, which begins with want when it was asked.
func askOnce(addr, ask, want string) error {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	return askOn(conn, ask, want)
}

func askOn(conn net.Conn, ask, want string) error {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte(ask)); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("answered %q, want %q", got, want)
	}
	return nil
}
