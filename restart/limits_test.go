//go:build linux

package restart_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// G3: a supervisor that has no descriptor left cannot start a successor; the old one
// serves on, and when there are some again all is as before.
func TestNoDescriptorsLeft(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Mover = true
	s.argv = []string{"/bin/sh", "-c", "ulimit -n 40; exec " + s.bin}
	s.start()
	first, before := s.worker(), s.files()
	var idle []net.Conn
	for range 60 {
		conn, err := net.Dial("unix", s.Admin)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	s.until("it has no more", func() bool { return len(s.files()) >= 39 })
	s.signal(syscall.SIGHUP)
	s.until("the restart failed", func() bool { return s.log.count(`msg="restart: rolled back"`) > 0 })
	if !strings.Contains(s.log.String(), "too many open files") {
		t.Error("the cause is not told")
	}
	if pid, _, _ := s.ask("PING"); pid != first {
		t.Errorf("%d serves, not %d", pid, first)
	}
	for _, conn := range idle {
		conn.Close()
	}
	s.status() // behind those that it had no files to accept: they would take them still
	s.sameFiles(before)
	c := dial(t, "tcp", addr)
	c.ask("PING")
	r := s.mustRestart()
	s.alone()
	if pid, _, _ := c.ask("PING"); pid != r.PID {
		t.Errorf("the live connection did not move")
	}
	c.conn.Close()
	s.stop()
}

// A worker that may open no more files cannot take the link over which connections move:
// they drain, and nothing worse comes of it.
func TestWorkersWithoutDescriptors(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"predecessor", "successor"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "tcp://"+addr)
			s.argv = []string{"/bin/sh", "-c", "ulimit -n 64; exec " + s.bin}
			s.Confirm = 500 * time.Millisecond // it has eaten by then
			if who == "predecessor" {
				s.behave(mode{Fail: "eat files"})
			}
			s.start()
			hungry := s.worker()
			if who == "successor" {
				s.behave(mode{Fail: "eat files"})
				answer := make(chan restart.Result, 1)
				go func() { answer <- s.restart() }()
				s.until("it is ready", func() bool { return s.log.count(`msg="restart: ready"`) == 2 })
				gens := s.status().Generations
				hungry = gens[len(gens)-1].PID
				s.full(hungry)
				if r := <-answer; !r.OK {
					t.Errorf("%+v", r)
				}
			} else {
				s.full(hungry)
				s.behave(mode{})
				s.mustRestart()
			}
			s.until("it is told", func() bool { return s.log.count("no connection can move") == 1 })
			s.until("one has left", func() bool { return len(s.status().Generations) == 1 })
			if status := s.status(); status.Generation != 2 || status.Crashed > 0 || s.log.count("restart: stopping") > 0 {
				t.Errorf("%+v", status)
			}
			s.stop()
		})
	}
}

// full waits until a process has as many files open as it may.
func (s *service) full(pid int) {
	s.Helper()
	s.until("it has no more files", func() bool {
		open, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return len(open) >= 64
	})
}

// Nothing grows with the number of restarts.
func TestRestartsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	if !soak {
		t.Skip("with HOLDFAST_SOAK=1")
	}
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Mover, s.State, s.Confirm = true, true, -1
	s.start()
	for range 50 {
		s.mustRestart()
	}
	s.alone()
	files, size := s.files(), rss(t, s.pid())
	for range 500 {
		s.mustRestart()
	}
	s.alone()
	s.sameFiles(files)
	if now := rss(t, s.pid()); now > size*3/2 {
		t.Errorf("from %d to %d KiB", size, now)
	}
	s.stop()
}
