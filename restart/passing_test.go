//go:build linux

package restart_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// G9, fault 84: the build of the protocol before this one, and this one, succeed each
// other both ways under load. It has no features, so its connections drain.
func TestOlderProtocol(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.State, s.Mover = true, true
	s.start()
	l := drive(t, 3, "tcp", addr)
	for i := range times(10, 100) {
		c := dial(t, "tcp", addr)
		c.ask("PING")
		s.behave(mode{Protocol: 1 - i%2}) // 1 is the older one, 0 is this build's own
		s.mustRestart()
		if _, _, text := c.ask("PING still"); text != "PONG still" {
			t.Errorf("a live connection was answered %q", text)
		}
		c.conn.Close()
	}
	// Two generations of the older one, too.
	s.behave(mode{Protocol: 1})
	s.mustRestart()
	s.mustRestart()
	l.spotless()
	s.alone()
	s.stop()
}

// What a generation knows is told to the next, and only to that.
func TestStatePasses(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.State = true
	s.start()
	lives := func() string { _, _, n := s.ask("LIVES"); return n }
	for i := range 3 {
		if n := lives(); n != strconv.Itoa(i) {
			t.Errorf("generation %d knows of %s lives", i+1, n)
		}
		s.mustRestart()
	}
	s.behave(mode{Fail: "error in start"}) // it was told, and is gone
	s.restart()
	s.behave(mode{})
	s.mustRestart()
	if n := lives(); n != "4" {
		t.Errorf("%s lives", n)
	}
	// What cannot be saved is logged, and there is nothing to load then.
	for _, how := range []string{"fail", "huge", "empty"} {
		s.behave(mode{Save: how})
		s.mustRestart()
		s.behave(mode{})
		s.mustRestart()
		if n := lives(); n != "0" {
			t.Errorf("after a save that went %s: %s lives", how, n)
		}
	}
	if n := s.log.count("save the state"); n != 2 {
		t.Errorf("the log tells of %d failures to save", n)
	}
	s.stop()
}

// What was saved for a successor that is gone is not for the next: it is old by then.
func TestStateIsForWhoAskedForIt(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	s.State = true
	s.behave(mode{Save: "late"})
	s.start()
	s.behave(mode{})
	answer := make(chan restart.Result, 1)
	go func() { answer <- s.restart() }()
	s.until("the state is saved", func() bool { return s.log.count("save 1") == 1 })
	gens := s.status().Generations
	syscall.Kill(gens[len(gens)-1].PID, syscall.SIGKILL)
	if r := <-answer; r.OK {
		t.Errorf("%+v", r)
	}
	s.mustRestart() // while the first Save goes on
	if _, _, n := s.ask("LIVES"); n != "200" {
		t.Errorf("it was told of %s, want the second answer, 200", n)
	}
	s.stop()
}

// A file of the user's is opened once, and is the same in all generations.
func TestFilesPass(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	s.Keep = filepath.Join(s.dir, "journal")
	s.ownFiles = append(s.ownFiles, "journal")
	s.start()
	pids := []string{fmt.Sprint(s.worker())}
	for range 3 {
		pids = append(pids, fmt.Sprint(s.mustRestart().PID))
	}
	crashed := s.worker()
	syscall.Kill(crashed, syscall.SIGKILL)
	s.until("another one serves", func() bool { w := s.worker(); return w != 0 && w != crashed })
	pids = append(pids, fmt.Sprint(s.worker()))
	text, _ := os.ReadFile(s.Keep)
	if got := strings.Fields(string(text)); fmt.Sprint(got) != fmt.Sprint(pids) {
		t.Errorf("the journal has %v, not %v", got, pids)
	}
	s.stop()
}

// A packet socket has one queue, from which both generations read for a moment: no
// datagram is lost.
func TestPacketSocketsPass(t *testing.T) {
	t.Parallel()
	udp := freeAddr(t)
	s := newService(t, "tcp://"+freeAddr(t))
	sock := filepath.Join(s.dir, "dgram")
	s.Packet = []string{"udp://" + udp, "unix:" + sock + "?type=dgram&mode=0600"}
	s.start()
	if info, err := os.Stat(sock); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's file: %v, %v", info, err)
	}

	var sent, lost atomic.Int64
	servers := sync.Map{}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			conn, err := net.Dial("udp", udp)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			buf := make([]byte, 100)
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				what := fmt.Sprintf("d%d-%d", i, n)
				sent.Add(1)
				conn.Write([]byte(what))
				conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				size, err := conn.Read(buf)
				pid, text, _ := strings.Cut(string(buf[:size]), " ")
				if err != nil || text != strings.ToUpper(what) {
					lost.Add(1)
				}
				servers.Store(pid, true)
			}
		})
	}
	for range times(10, 100) {
		s.mustRestart()
		time.Sleep(10 * time.Millisecond)
	}
	close(done)
	wg.Wait()
	different := 0
	servers.Range(func(any, any) bool { different++; return true })
	if lost.Load() > 0 || different < 5 {
		t.Errorf("of %d datagrams %d were lost, and %d generations answered", sent.Load(), lost.Load(), different)
	}
	s.stop()
}

// Counters are of the service, not of a worker: they never go back.
func TestTotalsAddUp(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	var last, asked int64
	look := func() int64 {
		now := s.status().Totals["served"]
		if now < last {
			t.Errorf("from %d to %d", last, now)
		}
		last = now
		return now
	}
	for range 5 {
		for range 10 {
			s.ask("PING")
			asked++
			look()
		}
		s.mustRestart()
		look()
	}
	s.until("all generations have told", func() bool { return look() == asked })
	s.stop()
}

// G5: tickets are good everywhere, because every generation has the same keys.
func TestTicketKeysPass(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	_, _, first := s.ask("KEYS")
	if !strings.HasPrefix(first, "1:") {
		t.Errorf("the first generation has the keys %q", first)
	}
	s.mustRestart()
	if _, _, keys := s.ask("KEYS"); keys != first {
		t.Errorf("the second generation has %q, not %q", keys, first)
	}
	s.stop()
}

// Live connections move with what they had sent of a line, and answer in the order in
// which they were asked.
func TestLiveConnectionsMove(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "unix:"+sock)
	s.Mover = true
	s.start()
	clients := make([]*client, times(300, 1000))
	for i := range clients {
		if i%2 > 0 {
			clients[i] = dial(t, "unix", sock)
		} else {
			clients[i] = dial(t, "tcp", addr)
		}
		clients[i].ask("PING")
	}
	l := drive(t, 2, "tcp", addr)
	for n := range times(5, 60) {
		for i, c := range clients {
			fmt.Fprintf(c.conn, "PING %d-", i) // and the rest when it has moved
		}
		r := s.mustRestart()
		s.alone()
		for i, c := range clients {
			pid, _, text := c.ask(strconv.Itoa(n))
			if want := fmt.Sprintf("PONG %d-%d", i, n); text != want || pid != r.PID {
				t.Fatalf("client %d: %q of %d, want %q of %d", i, text, pid, want, r.PID)
			}
		}
	}
	l.spotless()
	for _, c := range clients {
		c.conn.Close()
	}
	s.stop()
}

// Restarts that follow each other at once carry a kept-alive connection along.
func TestBusyConnectionsMoveThroughManyRestarts(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Mover = true
	s.start()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		c := dial(t, "tcp", addr)
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				want := fmt.Sprintf("PONG %d", n)
				if answer, err := c.try(fmt.Sprintf("PING %d", n)); err != nil || !strings.HasSuffix(answer, want) {
					t.Errorf("request %d: %q, %v", n, answer, err)
					return
				}
			}
		})
	}
	for range times(10, 60) {
		s.mustRestart()
	}
	close(done)
	wg.Wait()
	s.alone()
}
