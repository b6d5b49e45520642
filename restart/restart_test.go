//go:build linux

package restart_test

import (
	"path/filepath"
	"testing"
)

// G1: who connects while the server is replaced does not notice.
func TestFreshConnectionsSurviveRestarts(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "unix:"+sock+"?mode=0600")
	s.start()
	before := s.files()

	tcp, unix := drive(t, 4, "tcp", addr), drive(t, 2, "unix", sock)
	for i := range times(10, 1000) {
		if r := s.mustRestart(); r.Generation != i+2 || r.PID == s.pid() {
			t.Fatalf("restart %d: %+v", i, r)
		}
	}
	tcp.spotless()
	unix.spotless()
	t.Log(tcp, unix)

	s.alone()
	s.sameFiles(before)
	if status := s.status(); status.PID != s.pid() || status.Restarts != times(10, 1000) || status.RolledBack+status.Crashed != 0 {
		t.Errorf("status: %+v", status)
	}
	s.stop()
}

// The link that was started is what is run again, wherever it points by then.
func TestUpgradeRunsWhatIsInstalledNow(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.behave(mode{Build: "v1"})
	s.start()
	if _, build, _ := s.ask("PING"); build != "v1" {
		t.Errorf("build %s", build)
	}
	copied := copyProgram(t, filepath.Join(s.dir, "v2"))
	s.ownFiles = append(s.ownFiles, "v2")
	s.install(copied)
	s.behave(mode{Build: "v2"})
	r := s.mustRestart()
	if pid, build, _ := s.ask("PING"); build != "v2" || pid != r.PID {
		t.Errorf("pid %d build %s, want %d v2", pid, build, r.PID)
	}
	if exe := exeOf(t, r.PID); exe != copied {
		t.Errorf("the worker runs %s", exe)
	}
	s.stop()
}

// A connection that is under way at the restart is served to its end by the
// generation that accepted it.
func TestLiveConnectionsFinish(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	c := dial(t, "tcp", addr)
	first, _, _ := c.ask("PING")
	r := s.mustRestart()
	if pid, _, _ := c.ask("SLOW"); pid != first {
		t.Errorf("the connection went from %d to %d", first, pid)
	}
	if pid, _, _ := s.ask("PING"); pid != r.PID {
		t.Errorf("a fresh one is served by %d, not %d", pid, r.PID)
	}
	c.conn.Close()
	s.alone()
	s.stop()
}
