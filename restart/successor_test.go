//go:build linux

package restart_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// bad is one misfortune of a successor.
type bad struct {
	fail   string
	bin    string // what is installed, if not the program; in the service's folder
	mode   mode
	cause  string
	losses int64
}

const clients = 3

// G3, fault 76: a successor that fails changes nothing for clients. Whoever asked is
// told why, in one line.
func TestBadSuccessor(t *testing.T) {
	t.Parallel()
	for name, all := range map[string][]bad{
		"at the start": {
			{fail: "missing", bin: "nothing", cause: "no such file"},
			{fail: "not executable", bin: "plain", cause: "permission denied"},
			{fail: "wrong architecture", bin: "foreign", cause: "exec format error"},
			{fail: "exit 3", cause: "exit status 3"},
			{fail: "hang", cause: "not ready within 3s"},
			{fail: "error in start", cause: "the database is away and the cache too"},
			{fail: "wrong protocol", mode: mode{Protocol: 99}, cause: "protocol"},
		},
		"on the way": {
			{fail: "never accept", cause: "not ready within 3s"},
			{fail: "hang in start", cause: "not ready within 3s"},
			{fail: "serve fails", cause: "no licence at all"},
		},
		"on the link": {
			{fail: "garbage", cause: "link"},
			{fail: "half a message", cause: "not ready within 3s"},
			{fail: "oversize message", cause: "link"},
			{fail: "bad hello", cause: "message 1"},
			{fail: "unknown message", cause: "unknown message of kind 99"},
			{fail: "link closed before hello", cause: "link"},
		},
		// What was in flight inside one that served is lost, and nothing else.
		"while it serves": {
			{fail: "panic after ready", cause: "exit status 2", losses: clients},
			{fail: "killed after ready", cause: "signal: killed", losses: clients},
			{fail: "exit after ready", cause: "exit status 4", losses: clients},
			{fail: "link closed after ready", cause: "ended", losses: clients},
			{fail: "garbage after ready", cause: "link", losses: clients},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testBadSuccessors(t, all)
		})
	}
}

func testBadSuccessors(t *testing.T, all []bad) {
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.State = true
	s.Ready = 3 * time.Second
	s.Confirm = time.Second // however slow the machine, what goes wrong soon goes wrong within it
	s.start()
	first, before := s.worker(), s.files()
	os.WriteFile(filepath.Join(s.dir, "foreign"), []byte("\x7fELF of another architecture"), 0o755)
	os.WriteFile(filepath.Join(s.dir, "plain"), []byte("#!/bin/sh\n"), 0o644)
	s.ownFiles = append(s.ownFiles, "foreign", "plain")
	for _, b := range all {
		t.Run(b.fail, func(t *testing.T) {
			s.TB = t
			s.survives(b, first, before)
		})
	}
	s.TB = t
	s.mustRestart() // and a good one is as good as ever
	s.alone()
	s.sameFiles(before)
	s.stop()
}

// survives tries a bad successor under load.
func (s *service) survives(b bad, first int, before []string) {
	if b.bin != "" {
		s.install(filepath.Join(s.dir, b.bin))
		defer s.install(program)
	}
	b.mode.Fail = b.fail
	s.behave(b.mode)
	defer s.behave(mode{})
	said := s.log.count(`msg="restart: rolled back"`)

	l := drive(s, clients, "tcp", strings.TrimPrefix(s.Addrs[0], "tcp://"))
	r := s.restart()
	switch {
	case r.OK:
		s.Errorf("it went well: %+v", r)
	case !strings.Contains(r.Err, b.cause):
		s.Errorf("cause %q, want one with %q", r.Err, b.cause)
	case strings.Contains(r.Err, "\n"):
		s.Errorf("the cause has several lines: %q", r.Err)
	}
	l.losses(b.losses)
	s.until("the log tells of it", func() bool { return s.log.count(`msg="restart: rolled back"`) == said+1 })
	if pid, _, _ := s.ask("PING"); pid != first {
		s.Errorf("%d serves, not %d", pid, first)
	}
	if status := s.status(); status.LastError != r.Err {
		s.Errorf("status: last error %q", status.LastError)
	}
	s.alone()
	s.until("no zombie is left", func() bool { return len(s.zombies()) == 0 })
	s.sameFiles(before)
}

// What is odd but harmless does not fail a restart.
func TestOddSuccessor(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	before := s.files()
	l := drive(t, 3, "tcp", addr)
	for _, odd := range []string{"ready twice", "unknown optional message", "files"} {
		s.behave(mode{Fail: odd})
		s.mustRestart()
		s.alone()
		s.sameFiles(before)
	}
	s.behave(mode{})
	s.mustRestart()
	l.spotless()
	s.alone()
	s.stop()
}

// The very first start has nothing to go back to: Run fails, with the cause.
func TestFirstWorkerFails(t *testing.T) {
	t.Parallel()
	for _, fail := range []string{"exit 3", "error in start", "wrong protocol"} {
		t.Run(fail, func(t *testing.T) {
			t.Parallel()
			s := newService(t, "tcp://"+freeAddr(t))
			s.PIDFile = filepath.Join(s.dir, "pid")
			m := mode{Fail: fail}
			if fail == "wrong protocol" {
				m.Protocol = 99
			}
			s.behave(m)
			s.launch()
			if err := s.exited(); err == nil || s.cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("it ended with %v", err)
			}
			if !strings.Contains(s.log.String(), "main: ") {
				t.Errorf("no cause")
			}
			s.nothingLeft()
		})
	}
}

// G4: while a worker that was killed is replaced, clients wait in the queue.
func TestCrashedWorkerIsRespawned(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	for i := range times(3, 50) {
		l := drive(t, clients, "tcp", addr)
		s.until("the load flows", func() bool { return l.ok.Load() > 50 })
		old := s.worker()
		syscall.Kill(old, syscall.SIGKILL)
		s.until("another worker serves", func() bool { w := s.worker(); return w != 0 && w != old })
		ok := l.ok.Load()
		s.until("the load flows again", func() bool { return l.ok.Load() > ok+50 })
		l.losses(clients)
		rest(i)
	}
	status := s.status()
	if status.Restarts != 0 || status.Crashed != times(3, 50) || time.Since(status.LastErrorAt) > time.Minute || !strings.Contains(status.LastError, "signal: killed") {
		t.Errorf("status: %+v", status)
	}
	s.stop()
}

// A worker that keeps crashing is started again with growing pauses.
func TestCrashLoopSlowsDown(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Confirm = -1
	s.start()
	s.behave(mode{Fail: "crash soon"})
	syscall.Kill(s.worker(), syscall.SIGKILL)
	c := within(t, 3*time.Second)
	<-c.Done()
	// 50 ms, doubled each time: 6 pauses fit, some more with luck, 12 can not.
	if n := s.log.count(`msg="restart: spawned"`); n < 3 || n > 12 {
		t.Errorf("%d workers were started in 3 s", n)
	}
	s.behave(mode{})
	l := drive(t, 2, "tcp", addr)
	if r := s.mustRestart(); !r.OK { // who asks need not wait for the pause
		t.Error(r)
	}
	s.until("it serves again", func() bool { return l.ok.Load() > 10 })
	l.losses(4)
	s.stop()
}

// A predecessor that dies while its successor is on probation is not missed.
func TestPredecessorDiesDuringRestart(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Confirm = 300 * time.Millisecond
	s.start()
	old := s.worker()
	answer := make(chan restart.Result, 1)
	go func() { answer <- s.restart() }()
	s.until("the successor is ready", func() bool { return s.log.count(`msg="restart: ready"`) == 2 })
	l := drive(t, 2, "tcp", addr)
	syscall.Kill(old, syscall.SIGKILL)
	if r := <-answer; !r.OK || r.PID == old {
		t.Errorf("%+v", r)
	}
	l.spotless()
	s.stop()
}

// Its state dies with a predecessor, but the successor does not wait for it.
func TestPredecessorDiesBeforeItToldItsState(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.State = true
	s.behave(mode{Save: "hang"})
	s.start()
	s.behave(mode{})
	answer := make(chan restart.Result, 1)
	began := time.Now()
	go func() { answer <- s.restart() }()
	s.until("the successor is there", func() bool { return s.log.count(`msg="restart: spawned"`) == 2 })
	time.Sleep(100 * time.Millisecond) // it waits for the state now
	syscall.Kill(s.worker(), syscall.SIGKILL)
	if r := <-answer; !r.OK {
		t.Errorf("%+v", r)
	}
	if d := time.Since(began); d > s.Ready {
		t.Errorf("it took %v", d)
	}
	s.stop()
}

// A worker that serves but has lost its link cannot be led any more, and is replaced.
func TestUnledWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.behave(mode{Fail: "garbage later"})
	s.start()
	lost := s.worker()
	s.behave(mode{})
	l := drive(t, clients, "tcp", addr)
	s.until("another one serves", func() bool { w := s.worker(); return w != 0 && w != lost })
	ok := l.ok.Load()
	s.until("the load flows", func() bool { return l.ok.Load() > ok+50 })
	l.losses(clients)
	if status := s.status(); status.Crashed != 1 || !strings.Contains(status.LastError, "link") {
		t.Errorf("%+v", status)
	}
	s.stop()
}

// What is observed tells the story, in order.
func TestEvents(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	s.mustRestart()
	s.alone()
	s.behave(mode{Fail: "exit 3"})
	s.restart()
	s.behave(mode{})
	syscall.Kill(s.worker(), syscall.SIGKILL)
	s.until("it is replaced", func() bool { return s.status().Generation == 4 })
	s.stop()
	var got []string
	for line := range strings.Lines(s.log.String()) {
		if event, ok := strings.CutPrefix(line, "event: "); ok {
			got = append(got, strings.TrimSpace(event))
		}
	}
	want := []string{
		"spawned 1", "ready 1", "committed 1",
		"spawned 2", "ready 2", "committed 2", "exited 1",
		"spawned 3", "rolled back 3",
		"crashed 2", "spawned 4", "ready 4", "committed 4",
		"stopping 0", "exited 4",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n%q, want\n%q", got, want)
	}
}
