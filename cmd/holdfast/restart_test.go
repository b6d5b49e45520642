//go:build unix

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A bad successor is the cause in one line, and changes nothing for clients.
func TestBadSuccessorIsRolledBack(t *testing.T) {
	t.Parallel()
	cert, key, roots := identityFiles(t)
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t, "127.0.0.1")
	s := newService(t)
	s.launch("echo", "-l", "tcp://"+addr, "--cert", cert, "--key", key, "--confirm", "50ms")
	s.log.await(t, "restart: committed")
	live := dialTLS(t, addr, &tls.Config{RootCAs: roots})
	for fault, spoil := range map[string]func() error{
		"missing": func() error { return os.Remove(cert) },
		"garbage": func() error { return os.WriteFile(cert, []byte("not a certificate\n"), 0o600) },
		"empty":   func() error { return os.WriteFile(cert, nil, 0o600) },
	} {
		t.Run(fault, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			out, errs, code := s.ask("restart", "--wait", "echo")
			if code != exitFailed || out != "" || strings.Count(errs, "\n") != 1 ||
				!strings.HasPrefix(errs, "holdfast: rolled back: ") || !strings.Contains(errs, filepath.Base(cert)) {
				t.Errorf("exit %d: %q %q, want 1 and the cause in one line", code, out, errs)
			}
			live.exchange("PING\n", "PONG\n")
			dialTLS(t, addr, &tls.Config{RootCAs: roots}).exchange("PING\n", "PONG\n")
		})
	}
	out, _, code := s.ask("restart", "--wait", "--json", "echo")
	var answer restartDone
	decodeOne(t, out, &answer)
	if code != exitFailed || answer.OK || answer.Err == "" || answer.Generation != 0 {
		t.Errorf("exit %d: %+v", code, answer)
	}
	if text := s.must("status", "echo"); !strings.Contains(text, "rolled back 4") || !strings.Contains(text, "last error, ") {
		t.Errorf("the status is %s", text)
	}
	if err := os.WriteFile(cert, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("restart", "--wait", "echo")
	live.wantEnd() // TLS cannot move, it drains
	dialTLS(t, addr, &tls.Config{RootCAs: roots}).exchange("PING\n", "PONG\n")
	s.must("stop", "echo")
	s.wantGone()
}

// What is said to a live connection is answered by the next generation.
func TestRestartKeepsConnections(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startEcho(t, "-l", "tcp://"+addr)
	tcp, unix := dialTo(t, "tcp", addr), dialTo(t, "unix", s.sock())
	for range 3 {
		tcp.exchange("PING\nPI", "PONG\n")
		unix.exchange("PING\n", "PONG\n")
		s.must("restart", "--wait", "echo")
		tcp.exchange("NG\n", "PONG\n")
		unix.exchange("STATUS\n", "CONNECTIONS: 2\n")
	}
	if state := s.status("echo"); state.Restarts != 3 || state.Generation != 4 || state.Totals["accepted"] != 2 {
		t.Errorf("the status is %+v", state)
	}
	s.must("drain", "echo")
	s.wantGone()
}

// Only its user may lead a service; the pid in the file stays the same.
func TestServiceFiles(t *testing.T) {
	t.Parallel()
	pidFile := filepath.Join(t.TempDir(), "pid")
	s := startEcho(t, "--pid-file", pidFile)
	socket := filepath.Join(s.dir, "holdfast", "echo.sock")
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	for range 2 {
		if text, err := os.ReadFile(pidFile); string(text) != pidLine(s.cmd.Process.Pid) || err != nil {
			t.Errorf("the pid file says %q, %v, want %d", text, err, s.cmd.Process.Pid)
		}
		s.must("restart", "--wait", "echo")
	}
	if state := s.status("echo"); state.PID != s.cmd.Process.Pid {
		t.Errorf("the status says pid %d, want %d", state.PID, s.cmd.Process.Pid)
	}
	s.must("stop", "echo")
	s.wantGone()
	if _, err := os.Stat(pidFile); !os.IsNotExist(err) {
		t.Errorf("the pid file is left behind: %v", err)
	}
}

// A limit that ends before the restart does is 124, and the restart goes on.
func TestRestartTimesOut(t *testing.T) {
	t.Parallel()
	s := startEcho(t, "--confirm", "1m")
	_, errs, code := s.ask("restart", "--wait", "--timeout", "200ms", "echo")
	if code != exitTimeout || !strings.Contains(errs, "not over within 200ms") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if state := s.status("echo"); state.Generation != 1 || len(state.Generations) != 2 {
		t.Errorf("the status is %+v", state)
	}
	dialTo(t, "unix", s.sock()).exchange("PING\n", "PONG\n")
}

// Without --wait it is asked for and not waited for.
func TestRestartIsAskedFor(t *testing.T) {
	t.Parallel()
	s := startEcho(t)
	if out := s.must("restart", "echo"); out != fmt.Sprintf("asked echo (pid %d) for a restart\n", s.cmd.Process.Pid) {
		t.Errorf("it says %q", out)
	}
	s.log.await(t, `"restart: committed" generation=2`)
	busy := dialTo(t, "unix", s.sock())
	busy.exchange("PING\nPI", "PONG\n")
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.log.await(t, "restart: stopping")
	if _, errs, code := s.ask("restart", "echo"); code != exitFailed || !strings.Contains(errs, "the service is stopping") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

// A pid that comes over the socket of a container is another's here: nobody is signaled.
func TestRestartSignalsNobody(t *testing.T) {
	t.Parallel()
	bystander := exec.Command("sleep", "60")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	s := newService(t)
	ln, err := net.Listen("unix", s.sock())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	asked := make(chan string, 2)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			order, _ := bufio.NewReader(conn).ReadString('\n')
			fmt.Fprintf(conn, `{"ok":true,"name":"boxed","pid":%d}`+"\n", bystander.Process.Pid)
			asked <- order
			conn.Close()
		}
	}()
	s.must("restart", "--admin", s.sock())
	if first, second := <-asked, <-asked; !strings.Contains(first, "status") || !strings.Contains(second, "begin") {
		t.Errorf("it was asked for %q and %q", first, second)
	}
	bystander.Process.Kill()
	bystander.Wait()
	if status := bystander.ProcessState.String(); status != "signal: killed" {
		t.Errorf("somebody else was ended: %s", status)
	}
}

// A drain lets what has begun end; who connects then is refused.
func TestDrainWaits(t *testing.T) {
	t.Parallel()
	s := startEcho(t)
	busy, idle := dialTo(t, "unix", s.sock()), dialTo(t, "unix", s.sock())
	idle.exchange("PING\n", "PONG\n")
	busy.exchange("PING\nPI", "PONG\n")
	drained := make(chan int, 1)
	go func() {
		_, _, code := s.ask("drain", "echo")
		drained <- code
	}()
	idle.wantEnd()
	select {
	case code := <-drained:
		t.Errorf("drain did not wait, exit %d", code)
	default:
	}
	if state := s.status("echo"); len(state.Generations) != 1 || state.Generations[0].Phase != "leaving" {
		t.Errorf("the status is %+v", state)
	}
	busy.exchange("NG\n", "PONG\n")
	busy.wantEnd()
	if code := <-drained; code != 0 {
		t.Errorf("drain: exit %d", code)
	}
	s.wantGone()
}

func TestStopCuts(t *testing.T) {
	t.Parallel()
	s := startEcho(t)
	busy := dialTo(t, "unix", s.sock())
	busy.exchange("PING\nPI", "PONG\n")
	s.must("stop", "echo")
	busy.wantEnd()
	s.wantGone()
}

// The signals are what the verbs are: USR1 and HUP restart, TERM drains, a second one
// ends at once.
func TestServiceHeedsSignals(t *testing.T) {
	t.Parallel()
	s := startEcho(t)
	s.cmd.Process.Signal(syscall.SIGUSR1)
	s.log.await(t, `"restart: committed" generation=2`)
	s.cmd.Process.Signal(syscall.SIGHUP)
	s.log.await(t, `"restart: committed" generation=3`)
	busy := dialTo(t, "unix", s.sock())
	busy.exchange("PING\nPI", "PONG\n")
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.log.await(t, "restart: stopping")
	s.cmd.Process.Signal(syscall.SIGTERM)
	busy.wantEnd()
	<-s.gone
	if code := exitCode(s.err); code != exitSignal {
		t.Errorf("exit %d, want %d", code, exitSignal)
	}
}
