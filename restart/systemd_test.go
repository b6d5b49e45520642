//go:build linux

package restart_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// manager is a fake of systemd's notify socket.
type manager struct {
	mu   sync.Mutex
	news []string
}

func (s *service) managed() *manager {
	s.Helper()
	path := filepath.Join(s.dir, "notify")
	s.ownFiles = append(s.ownFiles, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		s.Fatal(err)
	}
	m := &manager{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.news = append(m.news, string(buf[:n]))
			m.mu.Unlock()
		}
	}()
	s.Cleanup(func() { conn.Close(); <-done })
	s.env = append(s.env, "NOTIFY_SOCKET="+path)
	return m
}

// said are the news but for the watchdog's.
func (m *manager) said() (news []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.news), func(n string) bool { return n == "WATCHDOG=1" })
}

func (m *manager) heardOfTheEnd() bool {
	return slices.ContainsFunc(m.said(), func(n string) bool { return strings.HasPrefix(n, "STOPPING=1") })
}

func (m *manager) watched() int {
	all := len(m.said())
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.news) - all
}

// systemd hears when the service is ready, when it reloads and since when, how that
// went, that it lives, and that it stops; and the workers are not told of systemd.
func TestSystemdIsNotified(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	m := s.managed()
	s.env = append(s.env, "WATCHDOG_USEC=100000", "WATCHDOG_PID=")
	s.start()
	s.mustRestart()
	s.behave(mode{Fail: "error in start"})
	s.restart()
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "HOLDFAST_LINK", "LISTEN_FDS"} {
		if _, _, text := s.ask("ENV " + name); text != `""` {
			t.Errorf("the worker has %s=%s", name, text)
		}
	}
	s.until("the watchdog was fed", func() bool { return m.watched() > 3 })
	s.stop()

	s.until("the last word came", m.heardOfTheEnd)
	news := m.said()
	want := []string{
		"READY=1\nSTATUS=generation 1 serves",
		"RELOADING=1\nMONOTONIC_USEC=",
		"READY=1\nSTATUS=generation 2 serves",
		"RELOADING=1\nMONOTONIC_USEC=",
		"READY=1\nSTATUS=the restart failed: the database is away and the cache too",
		"STOPPING=1\nEXTEND_TIMEOUT_USEC=7000000", // the drain and the time to end it
	}
	if !slices.EqualFunc(news, want, strings.HasPrefix) {
		t.Fatalf("systemd heard\n%q, want\n%q", news, want)
	}
	last := 0
	for _, n := range []string{news[1], news[3]} {
		us, err := strconv.Atoi(strings.TrimPrefix(n, "RELOADING=1\nMONOTONIC_USEC="))
		if err != nil || us <= last {
			t.Errorf("%q after %d: %v", n, last, err)
		}
		last = us
	}
}

// A restart that has to wait for room is told of as well: `systemctl reload` waits.
func TestSystemdHearsOfARestartThatWaits(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	m := s.managed()
	s.Generations = 2
	s.Drain, s.Stop = time.Minute, 200*time.Millisecond
	s.start()
	c := dial(t, "tcp", addr)
	c.ask("PING")
	s.mustRestart()
	s.mustRestart() // the first generation is cut for it
	s.stop()
	s.until("the last word came", m.heardOfTheEnd)
	var kinds []string
	for _, n := range m.said() {
		kind, _, _ := strings.Cut(n, "\n")
		kinds = append(kinds, kind)
	}
	if got := strings.Join(kinds, " "); got != "READY=1 RELOADING=1 READY=1 RELOADING=1 READY=1 STOPPING=1" {
		t.Errorf("systemd heard %s", got)
	}
}

// Nobody at the other end of NOTIFY_SOCKET is no reason to fail.
func TestSystemdIsNotThere(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	s.env = []string{"NOTIFY_SOCKET=/no/such/socket", "WATCHDOG_USEC=nonsense", "LISTEN_PID=1", "LISTEN_FDS=3"}
	s.start()
	s.mustRestart()
	s.stop()
}

// Sockets that systemd passes are taken by name, by address where they have no name,
// and are left to systemd at the end.
func TestSocketsOfSystemd(t *testing.T) {
	t.Parallel()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	addr := tcp.Addr().String()
	s := newService(t)
	sock := filepath.Join(s.dir, "sock")
	unix, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	stray, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	for _, ln := range []net.Listener{tcp, unix, stray} {
		f, err := ln.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s.fds = append(s.fds, f)
	}
	s.ownFiles = append(s.ownFiles, "sock")
	s.Addrs = []string{"tcp://" + addr, "admin=unix:" + sock}
	s.argv = []string{"/bin/sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=app.socket:admin:unknown exec " + s.bin}
	s.start()
	l, u := drive(t, 2, "tcp", addr), drive(t, 1, "unix", sock)
	for range 3 {
		s.mustRestart()
	}
	l.spotless()
	u.spotless()
	if got := s.status().Sockets; len(got) != 2 {
		t.Errorf("sockets %q", got)
	}
	s.stop()
	if _, err := os.Lstat(sock); err != nil {
		t.Errorf("the file of systemd's socket: %v", err)
	}
}

// The real systemd-socket-activate starts the service at the first connection, which is
// answered.
func TestSystemdSocketActivate(t *testing.T) {
	t.Parallel()
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip(err)
	}
	addr := freeAddr(t)
	s := newService(t, "web=tcp://"+addr)
	s.argv = []string{activate, "--listen=" + addr, "--fdname=web", "-E", "SERVER_SETTINGS", "-E", "SERVER_OF", s.bin}
	s.launch()
	var c net.Conn
	s.until("it listens", func() bool { c, err = net.Dial("tcp", addr); return err == nil })
	defer c.Close()
	fmt.Fprintln(c, "PING activated")
	buf := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(buf); !strings.HasSuffix(string(buf[:n]), "PONG activated\n") {
		t.Errorf("answer %q, %v", buf[:n], err)
	}
	c.Close()
	l := drive(t, 2, "tcp", addr)
	s.until("it answers", func() bool { _, err := restart.Ask(t.Context(), s.Admin); return err == nil })
	for range 3 {
		s.mustRestart()
	}
	l.spotless()
	s.stop()
}

// Container: as process 1 it restarts like anywhere, and buries whom nobody waits for.
func TestProcessOneOfAContainer(t *testing.T) {
	t.Parallel()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip(err)
	}
	contain := []string{"--pid", "--fork", "--mount-proc", "--kill-child"}
	if out, err := exec.Command(unshare, append(contain, "true")...).CombinedOutput(); err != nil {
		t.Skipf("no pid namespace: %v: %s", err, out)
	}
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.argv = append(append([]string{unshare}, contain...), s.bin)
	s.start()
	if pid := s.status().PID; pid != 1 {
		t.Fatalf("it has pid %d", pid)
	}
	one := childOf(t, s.pid())
	l := drive(t, 2, "tcp", addr)
	for range times(10, 100) {
		s.ask("ORPHAN")
		s.mustRestart()
	}
	l.spotless()
	s.alone()
	if status := s.status(); status.PID != 1 || status.Crashed+status.RolledBack > 0 {
		t.Errorf("%+v", status)
	}
	s.until("no zombie is left", func() bool { return len(zombiesOf(one)) == 0 })
	s.stop()
}

func childOf(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Skip(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("children %q", text)
	}
	return child
}
