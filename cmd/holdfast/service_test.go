//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what takes a moment.
const patience = 30 * time.Second

// service is a running holdfast echo or holdfast run in a folder of its own, where its
// control socket and its Unix socket are.
type service struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	log  logbook
	gone chan struct{} // closed when it was waited for
	err  error         // of the wait
}

// newService prepares a service; launch starts it.
func newService(t *testing.T) *service {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // the path of a Unix socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &service{t: t, dir: dir, gone: make(chan struct{})}
}

// startEcho starts a line server on a Unix socket and what args say.
func startEcho(t *testing.T, args ...string) *service {
	t.Helper()
	s := newService(t)
	s.launch(append([]string{"echo", "-l", "unix:" + s.sock(), "--confirm", "50ms"}, args...)...)
	s.log.await(t, "restart: committed")
	return s
}

func (s *service) sock() string { return filepath.Join(s.dir, "sock") }

func (s *service) command(args ...string) *exec.Cmd {
	cmd := exec.Command("holdfast", args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+s.dir)
	return cmd
}

func (s *service) launch(args ...string) {
	s.t.Helper()
	s.cmd = s.command(args...)
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = diesWithParent()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.gone)
	}()
	s.t.Cleanup(s.end)
}

// end sees to it that nothing is left: a second TERM cuts.
func (s *service) end() {
	if s.t.Failed() {
		s.t.Logf("the log:\n%s", s.log.String())
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.gone:
	case <-time.After(patience):
		s.cmd.Process.Kill()
		<-s.gone
		s.t.Error("the service did not end")
	}
}

// wantGone waits for the end of the service, which must be a good one.
func (s *service) wantGone() {
	s.t.Helper()
	select {
	case <-s.gone:
		if s.err != nil {
			s.t.Errorf("the service ended with %v", s.err)
		}
	case <-time.After(patience):
		s.t.Fatal("the service goes on")
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "*")); len(left) > 1 { // the folder of the control socket
		s.t.Errorf("left behind: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "holdfast", "*")); len(left) > 0 {
		s.t.Errorf("left behind: %q", left)
	}
}

// ask runs a verb to its end.
func (s *service) ask(args ...string) (out, errs string, code int) {
	s.t.Helper()
	cmd := s.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return stdout.String(), stderr.String(), exitCode(err)
}

// must runs a verb that must succeed, and returns what it printed.
func (s *service) must(args ...string) string {
	s.t.Helper()
	out, errs, code := s.ask(args...)
	if code != 0 {
		s.t.Fatalf("%q: exit %d: %s%s", args, code, out, errs)
	}
	return out
}

func (s *service) status(name string) (state serviceState) {
	s.t.Helper()
	decodeOne(s.t, s.must("status", "--json", name), &state)
	return state
}

// decodeOne reads the one object of a verb, in which all must be known.
func decodeOne(t *testing.T, text string, v any) {
	t.Helper()
	in := json.NewDecoder(strings.NewReader(text))
	in.DisallowUnknownFields()
	if err := in.Decode(v); err != nil || in.More() {
		t.Fatalf("want one JSON object, got %v: %s", err, text)
	}
}

// logbook is what a process writes to its standard error, and can be waited for.
type logbook struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logbook) await(t *testing.T, words string) {
	t.Helper()
	limit := time.After(patience)
	for {
		l.mu.Lock()
		found := strings.Contains(l.text.String(), words)
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		if found {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("the log never said %q:\n%s", words, l.String())
		}
	}
}

// talk is a connection that is asked and answers, line by line.
type talk struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dialTo(t *testing.T, network, addr string) *talk {
	t.Helper()
	conn, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	return talkOn(t, conn)
}

func talkOn(t *testing.T, conn net.Conn) *talk {
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &talk{t, conn, bufio.NewReader(conn)}
}

func (c *talk) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// wants reads exactly these bytes.
func (c *talk) wants(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.r, got); string(got[:n]) != want {
		c.t.Fatalf("read %q, %v, want %q", got[:n], err, want)
	}
}

func (c *talk) line() string {
	c.t.Helper()
	line, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

func (c *talk) exchange(say, want string) {
	c.t.Helper()
	c.say(say)
	c.wants(want)
}

// wantEnd wants the peer to hang up without another word.
func (c *talk) wantEnd() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if ne, ok := err.(net.Error); len(rest) > 0 || ok && ne.Timeout() {
		c.t.Fatalf("read %q, %v, want the end", rest, err)
	}
}

// freeAddr is an address that nobody listens on now.
func freeAddr(t *testing.T, host string) string {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func port(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

func pidLine(pid int) string { return fmt.Sprintf("%d\n", pid) }
