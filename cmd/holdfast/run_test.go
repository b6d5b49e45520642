//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startPython runs the server of testdata under holdfast run, as "py".
func startPython(t *testing.T, listen string, args ...string) *service {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		missing(t, "there is no python3 here; .ci/setup installs it")
	}
	script, err := filepath.Abs(filepath.Join("testdata", "server.py"))
	if err != nil {
		t.Fatal(err)
	}
	s := newService(t)
	line := append([]string{"run", "--name", "py", "--confirm", "50ms", "-l", listen}, args...)
	s.launch(append(line, "--", python, script)...)
	s.log.await(t, "restart: committed")
	return s
}

// missing skips a test that lacks something; with CI=true it fails.
func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// pidAt asks the server of testdata which process serves.
func pidAt(t *testing.T, addr string) int {
	t.Helper()
	c := dialTo(t, "tcp", addr)
	defer c.Close()
	c.say("PID\n")
	pid, err := strconv.Atoi(c.line())
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A server that knows nothing of us is restarted, however it tells that it is ready.
func TestRunRestartsPython(t *testing.T) {
	t.Parallel()
	for _, ready := range []string{"notify", "timer=100ms", "port", "http=http://ADDR/"} {
		how, _, _ := strings.Cut(ready, "=")
		t.Run(how, func(t *testing.T) {
			addr := freeAddr(t, "127.0.0.1")
			s := startPython(t, "tcp://"+addr, "--ready", strings.ReplaceAll(ready, "ADDR", addr))
			before := pidAt(t, addr)
			var answer restartDone
			decodeOne(t, s.must("restart", "--wait", "--json", "py"), &answer)
			s.log.await(t, `"restart: exited" generation=1`)
			if after := pidAt(t, addr); after == before || after != answer.PID {
				t.Errorf("process %d serves, the restart said %d, and before it was %d", after, answer.PID, before)
			}
		})
	}
}

// The sockets are told of as systemd and einhorn do, and nothing of ours is.
func TestRunEnvironment(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	startPython(t, "line=tcp://"+addr+",udp=udp://"+freeAddr(t, "127.0.0.1"), "--ready", "notify")
	c := dialTo(t, "tcp", addr)
	for name, want := range map[string]string{
		"LISTEN_FDS": "2", "LISTEN_FDNAMES": "line:udp", "LISTEN_PID": strconv.Itoa(pidAt(t, addr)),
		"EINHORN_FD_COUNT": "2", "EINHORN_FD_0": "3", "EINHORN_FD_1": "4", "HOLDFAST_LINK": "unset",
	} {
		c.exchange("ENV "+name+"\n", want+"\n")
	}
}

// A successor that cannot start is rolled back; one that crashes later comes back, and
// who has connected meanwhile was only kept waiting.
func TestRunSurvivesItsCommand(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startPython(t, "tcp://"+addr, "--ready", "notify")
	first := pidAt(t, addr)
	bad := filepath.Join(s.dir, "bad")
	if err := os.WriteFile(bad, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs, code := s.ask("restart", "--wait", "py")
	if code != exitFailed || !strings.Contains(errs, "exit status 7") || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit %d: %s", code, errs)
	}
	if pid := pidAt(t, addr); pid != first {
		t.Errorf("process %d serves, want %d still", pid, first)
	}
	// The socket is the same for both: who comes must not make it block again.
	dialTo(t, "tcp", addr).exchange("BLOCKS\n", "False\n")
	os.Remove(bad)

	doomed := dialTo(t, "tcp", addr)
	doomed.say("DIE\n")
	doomed.wantEnd()
	if pid := pidAt(t, addr); pid == first {
		t.Error("the dead serve")
	}
	if state := s.status("py"); state.Crashed != 1 || state.RolledBack != 1 || !strings.Contains(state.LastError, "exit status 3") {
		t.Errorf("the status is %+v", state)
	}
	s.must("stop", "py")
	s.wantGone()
}

// TERM reaches the command, which lets its connections end.
func TestRunDrains(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startPython(t, "tcp://"+addr, "--ready", "notify")
	busy := dialTo(t, "tcp", addr)
	busy.exchange("PING\n", "PONG\n")
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.log.await(t, "restart: stopping")
	busy.exchange("PING\n", "PONG\n")
	busy.Close()
	s.wantGone()
}

// A command that ends at once ends the whole, if nothing has served before.
func TestRunFailsWithItsCommand(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, errs, code := s.ask("run", "-l", "unix:"+s.sock(), "--", "sh", "-c", "exit 9")
	if code != exitFailed || !strings.Contains(errs, "exit status 9") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if _, err := os.Stat(s.sock()); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// A service whose log nobody reads any more goes on, through restarts too.
func TestServicesOutliveTheirLogs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = s.command("echo", "-l", "unix:"+s.sock(), "--confirm", "50ms")
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.SysProcAttr = w, w, diesWithParent()
	err = s.cmd.Start()
	w.Close()
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.gone)
	}()
	t.Cleanup(s.end)
	for end := time.Now().Add(patience); pingOnce(s.sock()) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not serve")
		}
	}
	held := dialTo(t, "unix", s.sock())
	s.must("restart", "--wait", "echo")
	held.exchange("PING\n", "PONG\n")
	held.Close()
	s.must("drain", "echo")
	s.wantGone()
}

// Sockets block, as from systemd, unless the command is said to want others.
func TestRunNonBlocking(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/fdinfo"); err != nil {
		t.Skip(err)
	}
	for flag, want := range map[string]bool{"--non-blocking=false": false, "--non-blocking": true} {
		s := newService(t)
		s.launch("run", "-l", "tcp://127.0.0.1:0", "--name", "sh", "--confirm", "0", flag, "--ready", "timer=50ms", "--",
			"sh", "-c", "cat /proc/self/fdinfo/3 >flags; exec sleep 60")
		s.log.await(t, "restart: committed")
		text, err := os.ReadFile(filepath.Join(s.dir, "flags"))
		if err != nil {
			t.Fatal(err)
		}
		flags := strings.Fields(string(text))[3] // pos: 0 flags: 02004002
		if n, err := strconv.ParseInt(flags, 8, 64); err != nil || (n&syscall.O_NONBLOCK != 0) != want {
			t.Errorf("%s: the flags are %s", flag, flags)
		}
	}
}
