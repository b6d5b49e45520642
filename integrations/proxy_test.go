package integrations

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// duringRestarts runs a load through a proxy that is restarted until the load is over,
// and at least some times.
func duringRestarts(t *testing.T, s *service, name string, args ...string) string {
	t.Helper()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := exec.Command(need(t, name), args...).CombinedOutput()
		done <- result{out, err}
	}()
	for n := 0; ; n++ {
		select {
		case r := <-done:
			if r.err != nil {
				t.Errorf("%s: %v\n%s", name, r.err, r.out)
			}
			if n < restarts {
				t.Errorf("the load was over after %d restarts", n)
			}
			return string(r.out)
		default:
			s.restart()
		}
	}
}

// Each transaction has a connection of its own: one that is refused, reset or cut short
// is a failure.
func TestPgbenchThroughRestarts(t *testing.T) {
	t.Parallel()
	as := postgresUser(t)
	db := startPostgres(t, as, newDatabase(t, as))
	_, port, _ := strings.Cut(db.addr, ":")
	common := []string{"-h", "127.0.0.1", "-U", "app", "postgres"}
	if out, err := exec.Command(need(t, "pgbench"), append([]string{"-i", "-q", "-p", port}, common...)...).CombinedOutput(); err != nil {
		t.Fatalf("pgbench -i: %v\n%s", err, out)
	}
	addr, own := freeAddr(t)
	s := startService(t, addr, "proxy", "-u", db.addr)
	out := duringRestarts(t, s, "pgbench", append([]string{"-S", "-C", "-c", "4", "-T", "6", "-p", strconv.Itoa(own)}, common...)...)
	if !strings.Contains(out, "number of failed transactions: 0 ") {
		t.Errorf("failed transactions:\n%s", out)
	}
	if m := regexp.MustCompile(`actually processed: (\d+)`).FindStringSubmatch(out); m == nil || m[1] == "0" {
		t.Errorf("no transactions:\n%s", out)
	}
}

// 50 connections with 16 requests under way on each, all the while: every one moves.
func TestRedisBenchmarkThroughRestarts(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	addr, port := freeAddr(t)
	s := startService(t, addr, "proxy", "-u", server.addr)
	out := duringRestarts(t, s, "redis-benchmark", "-p", strconv.Itoa(port), "-P", "16", "-t", "get,set", "-n", "1500000", "--csv")
	if strings.Contains(strings.ToLower(out), "error") || strings.Count(out, "\n\"") < 2 {
		t.Errorf("redis-benchmark:\n%s", out)
	}
}

// Each query is one datagram that nobody sends again, from a port of its own: what a
// restart loses is a query without an answer.
func TestDigThroughRestarts(t *testing.T) {
	t.Parallel()
	times, queries := 8, int64(100)
	if os.Getenv("HOLDFAST_SOAK") != "" {
		times, queries = 60, 2000
	}
	a, b := startNameServer(t, 7), startNameServer(t, 8)
	addr, port := freeAddr(t)
	s := startService(t, addr, "proxy", "-l", "udp://"+addr, "-u", "tcp://"+a.addr+",udp://"+a.addr+",udp://"+b.addr, "--responses", "1")
	f := forwarder{need(t, "dig"), strconv.Itoa(port)}
	var asked atomic.Int64
	var over atomic.Bool // no more restarts
	var digs sync.WaitGroup
	for range 4 {
		digs.Go(func() {
			for !over.Load() || asked.Load() < queries {
				name := fmt.Sprintf("name%d.example", asked.Add(1))
				answer, err := f.once(name)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				has(t, answer, "status: NOERROR", name+".", "192.0.2.")
			}
		})
	}
	func() {
		defer digs.Wait()
		defer over.Store(true)
		for range times {
			s.restart()
		}
	}()
	if a.asked.Load() == 0 || b.asked.Load() == 0 {
		t.Errorf("the name servers were asked %d and %d times", a.asked.Load(), b.asked.Load())
	}
	t.Logf("%d restarts, %d queries", times, asked.Load())
}
