//go:build linux

package restart_test

import (
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// Fault 77: a successor that is killed while it takes over keeps what it has claimed,
// into its death; the others are served on by their owner. Nobody is left hanging.
func TestKilledWhileConnectionsMove(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"successor", "predecessor"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "tcp://"+addr)
			s.Mover, s.Confirm = true, -1
			s.start()
			all := make([]*client, 200)
			for i := range all {
				all[i] = dial(t, "tcp", addr)
				all[i].ask("PING")
			}
			l := drive(t, 2, "tcp", addr)
			for i := range times(3, 30) {
				old := s.worker()
				r := s.mustRestart()
				victim := r.PID
				if who == "predecessor" {
					victim = old
				}
				syscall.Kill(victim, syscall.SIGKILL)
				var kept []*client
				for _, c := range all {
					switch _, err := c.try("PING"); {
					case err == nil:
						kept = append(kept, c)
					case isTimeout(err):
						t.Fatalf("a connection is served by nobody: %v", err)
					}
				}
				all = kept
				s.until("somebody serves", func() bool { return s.worker() != 0 && s.worker() != victim })
				rest(i)
			}
			l.losses(2 * int64(times(3, 30)))
			for _, c := range all {
				c.conn.Close()
			}
			s.stop()
		})
	}
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// Whatever happens in whatever order, nobody is refused, no answer is wrong, the pid
// stays, and in the end all is as it was.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Mover, s.State = true, true
	s.Ready, s.Drain, s.Stop = 3*time.Second, time.Second, 500*time.Millisecond
	s.start()
	pid, before := s.pid(), s.files()
	const clients = 3
	l := drive(t, clients, "tcp", addr)
	fails := []string{"", "", "", "exit 3", "garbage", "error in start", "panic after ready", "killed after ready", "unknown message", "ready twice", "files"}
	var asked sync.WaitGroup
	var story []string
	kills, losses := 0, int64(0)
	for range times(60, 1000) {
		var what string
		switch n := r.IntN(10); {
		case n < 3:
			what = "restart"
			asked.Go(func() {
				if _, err := restart.Restart(t.Context(), s.Admin); err != nil {
					t.Errorf("restart: %v", err)
				}
			})
		case n < 5:
			what = "signal"
			s.signal(syscall.SIGHUP)
		case n < 8:
			f := fails[r.IntN(len(fails))]
			what = "install " + f
			s.behave(mode{Fail: f, Protocol: r.IntN(2)})
		case kills < 5:
			gens := s.status().Generations
			if len(gens) == 0 {
				continue
			}
			g := gens[r.IntN(len(gens))]
			what = "kill " + g.Phase
			kills++
			syscall.Kill(g.PID, syscall.SIGKILL)
		}
		story = append(story, what)
		if n := len(s.status().Generations); n > 3 {
			t.Errorf("%d generations", n)
		}
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
	}
	s.behave(mode{})
	asked.Wait()
	s.mustRestart()
	ok := l.ok.Load()
	s.until("the load flows", func() bool { return l.ok.Load() > ok+20 })
	losses = int64(clients * (kills + s.log.count(`msg="restart: rolled back"`) + s.log.count(`msg="restart: crashed"`)))
	l.losses(losses)
	s.alone()
	s.sameFiles(before)
	if s.status().PID != pid {
		t.Error("the pid has changed")
	}
	s.stop()
	if t.Failed() {
		t.Logf("seed %d: %q", seed, story)
	}
}
