//go:build linux

package restart_test

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// refuses waits until nobody listens any more.
func (s *service) refuses(addr string) {
	s.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return
		}
		conn.Close()
		if time.Now().After(end) {
			s.Fatal("connections are not refused")
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// U18, U20: TERM and INT refuse who comes, wait for who is there, and exit with 0 at
// once when the last has gone.
func TestTermDrains(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "tcp://"+addr)
			s.PIDFile = filepath.Join(s.dir, "pid")
			s.start()
			c := dial(t, "tcp", addr)
			c.ask("PING")
			s.signal(sig)
			s.refuses(addr)
			if _, _, text := c.ask("PING still"); text != "PONG still" {
				t.Errorf("answer %q", text)
			}
			select {
			case <-s.end:
				t.Error("it ended before its connections did")
			default:
			}
			c.conn.Close()
			left := time.Now()
			if err := s.exited(); err != nil {
				t.Error(err)
			}
			if d := time.Since(left); d > 2*time.Second {
				t.Errorf("it exited %v after its last connection", d)
			}
			s.nothingLeft()
		})
	}
}

// U19: the second one exits at once, with 1.
func TestSecondTermExitsAtOnce(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.PIDFile = filepath.Join(s.dir, "pid")
	s.Drain = time.Minute
	s.start()
	c := dial(t, "tcp", addr)
	c.ask("PING")
	s.signal(syscall.SIGTERM)
	s.refuses(addr)
	s.signal(syscall.SIGINT)
	s.exited()
	if code := s.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit status %d", code)
	}
	if err := c.gone(); err == nil {
		t.Error("the connection lives on")
	}
	s.nothingLeft()
}

// A program that also ends its context by a signal, as many do, still drains at the
// first one.
func TestContextOfTheSameSignal(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.NotifyContext = true
	s.start()
	for range 3 { // a race of two channels
		c := dial(t, "tcp", addr)
		c.ask("PING")
		defer c.conn.Close()
	}
	c := dial(t, "tcp", addr)
	c.ask("PING")
	s.signal(syscall.SIGTERM)
	s.refuses(addr)
	if _, _, text := c.ask("PING still"); text != "PONG still" {
		t.Errorf("answer %q", text)
	}
}

// Fault 79: who does not leave within the drain is cut, and the service still ends well
// for everyone else.
func TestDrainDeadlineCuts(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Drain = 300 * time.Millisecond
	s.start()
	c := dial(t, "tcp", addr)
	c.ask("PING")
	s.signal(syscall.SIGTERM)
	if err := c.gone(); !errors.Is(err, io.EOF) {
		t.Errorf("the client saw %v, not the end", err)
	}
	s.exited()
	s.nothingLeft()
}

// A worker that does not even leave when its drain is over is killed.
func TestStuckWorkerIsKilled(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Drain, s.Stop = 200*time.Millisecond, 300*time.Millisecond
	s.start()
	stuck := s.worker()
	syscall.Kill(stuck, syscall.SIGSTOP)
	s.mustRestart()
	s.alone()
	if w := s.worker(); w == stuck {
		t.Error("the stuck one serves")
	}
	s.until("the log tells of it", func() bool { return s.log.count("msg=\"restart: cut\"") == 1 })

	syscall.Kill(s.worker(), syscall.SIGSTOP) // and who asked for a drain is told that it was none
	if err := restart.Drain(t.Context(), s.Admin); err == nil || !strings.Contains(err.Error(), "1 of its processes") {
		t.Errorf("the drain ended with %v", err)
	}
	s.exited()
}

// Fault 79: TERM while a successor starts, and while it is on probation, ends both.
func TestTermDuringRestart(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"starting", "ready"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "tcp://"+addr)
			s.Confirm, s.Drain = 10*time.Second, 10*time.Second
			s.start()
			if when == "starting" {
				s.behave(mode{Fail: "hang"})
			}
			c := dial(t, "tcp", addr)
			c.ask("PING")
			answer := make(chan restart.Result, 1)
			go func() {
				r, _ := restart.Restart(t.Context(), s.Admin)
				answer <- r
			}()
			s.until("there are two", func() bool {
				g := s.status().Generations
				return len(g) == 2 && g[1].Phase == when
			})
			s.signal(syscall.SIGTERM)
			s.refuses(addr)
			c.ask("PING")
			c.conn.Close()
			if err := s.exited(); err != nil {
				t.Error(err)
			}
			if r := <-answer; r.OK || !strings.Contains(r.Err, "stopping") {
				t.Errorf("who asked for the restart was told %+v", r)
			}
			s.nothingLeft()
		})
	}
}

// Fault 79: there is no way back from a drain.
func TestRestartDuringDrain(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	c := dial(t, "tcp", addr)
	c.ask("PING")
	s.signal(syscall.SIGTERM)
	s.refuses(addr)
	s.signal(syscall.SIGHUP)
	s.signal(syscall.SIGUSR1)
	if r := s.restart(); r.OK || r.Err != "the service is stopping" {
		t.Errorf("%+v", r)
	}
	c.ask("PING")
	c.conn.Close()
	if err := s.exited(); err != nil {
		t.Error(err)
	}
	if n := s.log.count(`msg="restart: spawned"`); n != 1 {
		t.Errorf("%d workers were started", n)
	}
	s.nothingLeft()
}

// G4: without their supervisor workers close their listeners at once and drain; its
// successor binds within its patience.
func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"lines", "http"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "tcp://"+addr)
			s.Kind = kind
			s.PIDFile = filepath.Join(s.dir, "pid")
			sock := filepath.Join(s.dir, "sock")
			s.Addrs = append(s.Addrs, "unix:"+sock)
			s.start()
			before := s.pid()
			orphan := s.worker()
			live := dial(t, "tcp", addr)
			hello := "PING"
			if kind == "http" {
				hello = "GET / HTTP/1.1\nHost: x\n"
			}
			if _, err := live.try(hello); err != nil {
				t.Fatal(err)
			}

			syscall.Kill(s.pid(), syscall.SIGKILL)
			<-s.end
			next := s.again()
			next.until("the new one serves", func() bool {
				status, err := restart.Ask(t.Context(), s.Admin)
				return err == nil && status.Generation > 0 && status.PID == next.pid()
			})
			if next.pid() == before {
				t.Error("the same pid")
			}
			if kind == "lines" {
				if pid, _, _ := live.ask("PING"); pid != orphan {
					t.Errorf("the live connection is served by %d, not %d", pid, orphan)
				}
				if pid, _, _ := next.ask("PING"); pid != next.worker() {
					t.Errorf("a fresh one is served by %d", pid)
				}
			}
			live.conn.Close()
			next.until("the orphan has gone", func() bool { return len(next.processes()) == 2 })
			next.stop()
		})
	}
}

// A packet socket of an orphan is let go of when its own server has shut down, however
// long the others drain.
func TestPacketSocketOfAnOrphan(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Packet = []string{"udp://" + freeAddr(t)}
	s.start()
	live := dial(t, "tcp", addr)
	live.ask("PING")
	orphan := s.worker()
	syscall.Kill(s.pid(), syscall.SIGKILL)
	<-s.end
	next := s.again()
	next.until("the new one serves", func() bool {
		status, err := restart.Ask(t.Context(), s.Admin)
		return err == nil && status.Generation > 0 && status.PID == next.pid()
	})
	if pid, _, _ := live.ask("PING"); pid != orphan {
		t.Errorf("the live connection is served by %d, not %d", pid, orphan)
	}
	live.conn.Close()
	next.until("the orphan has gone", func() bool { return len(next.processes()) == 2 })
	next.stop()
}

// Fault 78, I16: restarts do not wait for who never leaves, each request is answered,
// and generations do not pile up.
func TestRestartsBackToBack(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Drain, s.Stop = time.Minute, 500*time.Millisecond
	s.start()
	pid := s.pid()
	stay := dial(t, "tcp", addr)
	stay.ask("PING")
	l := drive(t, 2, "tcp", addr)

	var wg sync.WaitGroup
	var mu sync.Mutex
	ok, coalesced := 0, 0
	for range 100 {
		wg.Go(func() {
			r, err := restart.Restart(t.Context(), s.Admin)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil || !r.OK:
				t.Errorf("%+v, %v", r, err)
			case r.Coalesced:
				coalesced++
			default:
				ok++
			}
		})
	}
	wg.Wait()
	if ok+coalesced != 100 || ok < 2 {
		t.Errorf("%d were done and %d coalesced", ok, coalesced)
	}
	second := dial(t, "tcp", addr) // so that there is no room for a third, whoever is quick
	second.ask("PING")
	most := 0
	for range times(10, 100) {
		s.mustRestart()
		most = max(most, len(s.status().Generations))
	}
	if most > 3 {
		t.Errorf("there were %d generations", most)
	}
	if status := s.status(); status.PID != pid {
		t.Errorf("the pid was %d and is %d", pid, status.PID)
	}
	if err := stay.gone(); err == nil || isTimeout(err) {
		t.Error("the oldest generation was not cut")
	}
	second.conn.Close()
	l.spotless()
	s.alone()
	s.stop()
}

// Fault 78: a storm of signals is a few restarts.
func TestSignalStorm(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	before := s.files()
	l := drive(t, 2, "tcp", addr)
	for range 50 {
		s.signal(syscall.SIGUSR1)
		s.signal(syscall.SIGHUP)
		time.Sleep(time.Millisecond)
	}
	s.until("the storm is over", func() bool {
		status := s.status()
		return status.Restarts >= 2 && len(status.Generations) == 1
	})
	if n := s.status().Restarts; n > 10 {
		t.Errorf("%d restarts", n)
	}
	l.spotless()
	s.alone()
	s.sameFiles(before)
	s.stop()
}

// `pkill app` reaches the workers as well, and only the supervisor may know what it
// means.
func TestSignalsToWorkersAreIgnored(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	w := s.worker()
	l := drive(t, 2, "tcp", addr)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		for range 3 {
			syscall.Kill(w, sig)
		}
	}
	ok := l.ok.Load()
	s.until("the load flows", func() bool { return l.ok.Load() > ok+100 })
	l.spotless()
	if now := s.worker(); now != w || s.status().Restarts != 0 {
		t.Errorf("%d serves, not %d", now, w)
	}
	s.stop()
}

// A restart that waits for room is told when the service stops instead.
func TestTermWhileARestartWaits(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Generations = 2
	s.Drain, s.Stop = time.Minute, 500*time.Millisecond
	s.start()
	stuck := s.worker()
	syscall.Kill(stuck, syscall.SIGSTOP)
	s.mustRestart()
	answer := make(chan restart.Result, 1)
	go func() {
		r, _ := restart.Restart(t.Context(), s.Admin)
		answer <- r
	}()
	s.until("it waits", func() bool { return s.log.count("msg=\"restart: cut\"") == 1 })
	s.signal(syscall.SIGTERM)
	if err := s.exited(); err != nil {
		t.Error(err)
	}
	if r := <-answer; r.OK || !strings.Contains(r.Err, "stopping") {
		t.Errorf("%+v", r)
	}
	s.nothingLeft()
}
