//go:build linux

package restart_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// Fault 81: a socket is known by its name and its address. What a new version adds is
// bound, what it drops is closed when it is committed, and what moves does both.
func TestSocketsChangeBetweenVersions(t *testing.T) {
	t.Parallel()
	stays, goes, comes := freeAddr(t), freeAddr(t), freeAddr(t)
	s := newService(t, "tcp://"+stays, "web=tcp://"+goes)
	sock := filepath.Join(s.dir, "sock")
	s.start()
	before := s.files()
	l := drive(t, 2, "tcp", stays)

	s.behave(mode{Addrs: []string{"web=tcp://" + comes, "unix:" + sock, "tcp://" + stays}}) // and another order
	s.mustRestart()
	for _, addr := range []string{stays, comes} {
		askAt(t, "tcp", addr, "PING")
	}
	askAt(t, "unix", sock, "PING")
	s.refuses(goes)
	if got := fmt.Sprint(s.status().Sockets); strings.Contains(got, goes) || !strings.Contains(got, "web=tcp://"+comes) {
		t.Errorf("status: sockets %s", got)
	}

	s.behave(mode{})
	s.mustRestart()
	askAt(t, "tcp", goes, "PING")
	s.refuses(comes)
	if _, err := os.Lstat(sock); !os.IsNotExist(err) {
		t.Errorf("the file of the socket that went: %v", err)
	}
	l.spotless()
	s.alone()
	s.sameFiles(before)
	s.stop()
}

// An address that is held is passed on under another name and with another mode; the old
// ones hold until the commit.
func TestSocketsAreRenamed(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "admin=unix:"+sock+"?mode=0660")
	s.Confirm = 300 * time.Millisecond
	s.start()
	before := s.files()
	perm := func() os.FileMode {
		info, err := os.Stat(sock)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	tcp, unix := drive(t, 2, "tcp", addr), drive(t, 1, "unix", sock)
	renamed := []string{"web=tcp://" + addr, "api=unix:" + sock + "?mode=0600"}

	s.behave(mode{Addrs: renamed, Fail: "error in start"})
	if r := s.restart(); r.OK {
		t.Errorf("%+v", r)
	}
	if got := fmt.Sprint(s.status().Sockets); perm() != 0o660 || strings.Contains(got, "web") {
		t.Errorf("rolled back: mode %v, sockets %s", perm(), got)
	}
	s.behave(mode{Addrs: renamed})
	s.mustRestart()
	if got := fmt.Sprint(s.status().Sockets); perm() != 0o600 || got != fmt.Sprint(renamed) {
		t.Errorf("committed: mode %v, sockets %s", perm(), got)
	}
	s.behave(mode{Addrs: []string{"api=tcp://" + addr, "web=unix:" + sock}}) // they swap their names
	s.mustRestart()
	tcp.spotless()
	unix.spotless()
	s.alone()
	s.sameFiles(before)
	s.stop()
}

// A socket that only a failed successor wanted is not left bound.
func TestRolledBackSocketsAreClosed(t *testing.T) {
	t.Parallel()
	addr, extra := freeAddr(t), freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Confirm = time.Second
	s.start()
	before := s.files()
	for _, fail := range []string{"error in start", "exit after ready"} {
		s.behave(mode{Fail: fail, Addrs: []string{"tcp://" + addr, "tcp://" + extra, "unix:" + sock}})
		if r := s.restart(); r.OK {
			t.Errorf("%+v", r)
		}
		s.refuses(extra)
		if _, err := os.Lstat(sock); !os.IsNotExist(err) {
			t.Errorf("the file of a socket: %v", err)
		}
	}
	s.sameFiles(before)
	s.ask("PING")
	s.stop()
}

// Fault 82: who else has the address is named, at the start and in a restart, which is
// rolled back; nothing of what did get bound stays.
func TestAddressInUse(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr, free, taken := freeAddr(t), freeAddr(t), ln.Addr().String()
	owner := fmt.Sprintf("(by process %d)", os.Getpid())
	tells := func(text string) bool {
		return strings.Contains(text, taken) && strings.Contains(text, "address already in use") && strings.Contains(text, owner)
	}

	s := newService(t, "tcp://"+addr).start()
	sock := filepath.Join(s.dir, "sock")
	s.behave(mode{Addrs: []string{"tcp://" + addr, "tcp://" + free, "unix:" + sock, "tcp://" + taken}})
	if r := s.restart(); r.OK || !tells(r.Err) {
		t.Errorf("%+v", r)
	}
	s.refuses(free)
	s.ask("PING")
	s.stop()

	first := newService(t, "tcp://"+taken)
	first.launch()
	if err := first.exited(); err == nil || !tells(first.log.String()) {
		t.Errorf("it ended with %v", err)
	}
	first.nothingLeft()
}

// A second copy of the service is told so, and takes nothing away from the first.
func TestSecondCopy(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "unix:"+sock)
	s.PIDFile = filepath.Join(s.dir, "pid")
	s.start()
	l := drive(t, 2, "unix", sock)

	for _, admin := range []string{s.Admin, filepath.Join(s.dir, "other")} {
		second := *s
		second.Admin = admin
		second.Addrs = s.Addrs[1:]
		copied := second.again()
		if err := copied.exited(); err == nil {
			t.Error("the second copy ended well")
		}
		if out := copied.log.String(); !strings.Contains(out, fmt.Sprintf("(by process %d)", s.pid())) {
			t.Errorf("it does not tell who has the socket: %s", out)
		}
	}
	l.spotless()
	if text, _ := os.ReadFile(s.PIDFile); strings.TrimSpace(string(text)) != fmt.Sprint(s.pid()) {
		t.Errorf("pid file: %q", text)
	}
	s.stop()
}

// The files of a service that was killed are in nobody's way.
func TestStaleFilesAreReplaced(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "unix:"+sock)
	s.PIDFile = filepath.Join(s.dir, "pid")
	s.start()
	s.cmd.Process.Kill()
	<-s.end
	s.killAll()
	if left := s.leftovers(); len(left) != 3 {
		t.Errorf("left: %q", left)
	}
	next := s.again()
	next.until("it serves", func() bool { st, err := restart.Ask(t.Context(), s.Admin); return err == nil && st.Generation == 1 })
	askAt(t, "unix", sock, "PING")
	next.stop()
}

// Fault 83, U8: the pid file is there when the service is ready, and not before; its
// folder never sees half of one; the service takes away what is its own.
func TestPIDFile(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.PIDFile = filepath.Join(s.dir, "pid")
	target := filepath.Join(s.dir, "precious")
	os.WriteFile(target, []byte("precious"), 0o600)
	os.Symlink(target, s.PIDFile)
	s.ownFiles = append(s.ownFiles, "precious")
	s.behave(mode{Fail: "hang"})
	s.Ready = 300 * time.Millisecond
	s.launch()
	s.exited()
	if to, err := os.Readlink(s.PIDFile); err != nil || to != target {
		t.Errorf("the pid file was touched by a service that was never ready: %v", err)
	}

	s.behave(mode{})
	s.Ready = 10 * time.Second
	n := s.again()
	n.until("the pid file is there", func() bool {
		text, _ := os.ReadFile(s.PIDFile)
		return string(text) == fmt.Sprintln(n.pid())
	})
	if info, err := os.Lstat(s.PIDFile); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o644 {
		t.Errorf("the pid file: %v, %v", info, err)
	}
	if text, _ := os.ReadFile(target); string(text) != "precious" {
		t.Errorf("what the link pointed to was written: %q", text)
	}
	n.until("it serves", func() bool { _, err := restart.Ask(t.Context(), s.Admin); return err == nil })
	n.mustRestart()
	if text, _ := os.ReadFile(s.PIDFile); string(text) != fmt.Sprintln(n.pid()) {
		t.Errorf("after a restart it says %q", text)
	}
	n.stop()
}

// Somebody else's pid file stays, and one that cannot be written is a failure to start.
func TestPIDFileOfOthers(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	s.PIDFile = filepath.Join(s.dir, "pid")
	s.ownFiles = append(s.ownFiles, "pid")
	s.start()
	s.until("it is written", func() bool { _, err := os.Stat(s.PIDFile); return err == nil })
	os.WriteFile(s.PIDFile, []byte("1\n"), 0o600) // another service has taken the name
	s.stop()
	if text, _ := os.ReadFile(s.PIDFile); string(text) != "1\n" {
		t.Errorf("the pid file of another service: %q", text)
	}

	u := newService(t, "tcp://"+freeAddr(t))
	u.PIDFile = filepath.Join(u.dir, "no", "such", "folder")
	u.launch()
	if err := u.exited(); err == nil || u.log.count("no such file") == 0 {
		t.Errorf("with a pid file that cannot be written it ended with %v", err)
	}
}

// Where it cannot run itself again the program serves all the same, and drains.
func TestWithoutSuccession(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "unix:"+sock)
	s.argv = []string{"/bin/bash", "-c", "exec -a no-such-program-anywhere " + s.bin}
	s.launch()
	s.until("it serves", func() bool {
		conn, err := net.Dial("unix", sock)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	c := dial(t, "unix", sock)
	if pid, _, _ := c.ask("PING"); pid != s.pid() {
		t.Errorf("%d serves, not %d", pid, s.pid())
	}
	s.until("it says so", func() bool { return s.log.count("cannot be run again") == 1 })
	s.signal(syscall.SIGTERM)
	s.refuses(addr)
	c.ask("PING")
	c.conn.Close()
	if err := s.exited(); err != nil {
		t.Error(err)
	}
	s.nothingLeft()

	impatient := newService(t, "tcp://"+addr)
	impatient.argv = []string{"/bin/bash", "-c", "exec -a no-such-program-anywhere " + impatient.bin}
	impatient.Drain = time.Minute
	impatient.launch()
	impatient.until("it serves", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	stay := dial(t, "tcp", addr)
	stay.ask("PING")
	impatient.signal(syscall.SIGTERM)
	impatient.refuses(addr)
	impatient.signal(syscall.SIGTERM)
	if err := impatient.exited(); err == nil {
		t.Error("the second signal was heeded like the first")
	}
}
