package restart

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// reapOrphans waits for the processes that nobody else waits for, when this is the
// first process of a container. Our own workers are left to those who wait for them.
func (s *supervisor) reapOrphans() (stop func()) {
	if os.Getpid() != 1 {
		return func() {}
	}
	exits := make(chan os.Signal, 1)
	signal.Notify(exits, syscall.SIGCHLD)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-exits:
				for _, pid := range orphans() {
					if !s.isWorker(pid) {
						unix.Wait4(pid, nil, unix.WNOHANG, nil)
					}
				}
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(exits); close(done); <-ended }
}

// orphans are the dead children of this process that nobody has waited for yet.
func orphans() (pids []int) {
	self := strconv.Itoa(os.Getpid())
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// "pid (name) state ppid …", and a name may contain anything.
		_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		if state, rest, _ := strings.Cut(rest, " "); state == "Z" && strings.HasPrefix(rest, self+" ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *supervisor) isWorker(pid int) bool {
	answer := make(chan bool, 1)
	s.post(func() {
		for _, g := range s.gens {
			if g.pid() == pid {
				answer <- true
				return
			}
		}
		answer <- false
	})
	select {
	case is := <-answer:
		return is
	case <-s.done:
		return true
	}
}
