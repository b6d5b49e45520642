package redis_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/pipeline"
	"github.com/holdfast-net/holdfast/redis"
)

// startSentinels starts three sentinels of one service, and waits until they know of
// its replica and of each other.
func startSentinels(t *testing.T, primary *redis.Server) (addrs []string) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		dir := t.TempDir()
		port := redis.FreePort(t)
		conf := filepath.Join(dir, "sentinel.conf")
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor cache 127.0.0.1 %s 2\n"+
			"sentinel down-after-milliseconds cache 500\nsentinel failover-timeout cache 3000\n", port, dir, primary.Port)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, conf, "--sentinel")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		addrs = append(addrs, "127.0.0.1:"+port)
	}
	for _, addr := range addrs {
		r := clientOf(t, redis.Config{}, addr)
		eventually(t, "a sentinel knows everybody", func() bool {
			m, err := r.Do(t.Context(), "SENTINEL", "master", "cache").Map()
			return err == nil && m["num-slaves"] == "1" && m["num-other-sentinels"] == "2"
		})
	}
	return addrs
}

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if so() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("not within 30 s: %s", what)
}

// It must show 5: the primary dies under load, the sentinels choose another one, and
// writes go on there. No reply is wrong, and what failed after it was sent says that it
// may have run.
func TestSentinelFailover(t *testing.T) {
	primary := redis.StartServer(t)
	replica := redis.StartServer(t, "--replicaof", "127.0.0.1 "+primary.Port, "--repl-diskless-load", "swapdb")
	sentinels := startSentinels(t, primary)
	r, err := redis.Open("sentinel://" + strings.Join(sentinels, ",") + "/cache")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	l := &load{r: r, stop: make(chan struct{})}
	l.run(8)
	eventually(t, "the load flows", func() bool { return l.ok.Load() > 500 })
	before := l.ok.Load()
	primary.Kill()
	eventually(t, "writes go on", func() bool { return l.ok.Load() > before+2000 })
	close(l.stop)
	l.wg.Wait()
	if l.wrong.Load() > 0 || l.other.Load() != nil {
		t.Errorf("%d wrong replies, %v", l.wrong.Load(), l.other.Load())
	}
	direct := clientOf(t, redis.Config{}, replica.Addr)
	if role, err := direct.Do(t.Context(), "ROLE").Values(); err != nil || len(role) == 0 {
		t.Errorf("%v, %v", role, err)
	}
	t.Logf("%d ok, %d unknown, %d not sent", l.ok.Load(), l.unknown.Load(), l.unsent.Load())
}

// load is goroutines that each write and read back a key of their own.
type load struct {
	r                          *redis.Client
	stop                       chan struct{}
	wg                         sync.WaitGroup
	ok, unknown, unsent, wrong atomic.Int64
	other                      atomic.Pointer[error]
}

func (l *load) run(n int) {
	for i := range n {
		l.wg.Go(func() {
			key, last := fmt.Sprint("key", i), ""
			for j := 0; ; j++ {
				select {
				case <-l.stop:
					return
				default:
				}
				last = l.once(key, fmt.Sprint(i, "-", j), last)
			}
		})
	}
}

// once writes a value; what comes back is its echo, so that a reply of somebody else
// shows.
func (l *load) once(key, value, last string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := l.r.Do(ctx, "SET", key, value).Err()
	if l.count(err) {
		return last
	}
	got, err := l.r.Do(ctx, "ECHO", value).Text()
	if l.count(err) {
		return last
	}
	if got != value {
		l.wrong.Add(1)
	}
	l.ok.Add(1)
	return value
}

func (l *load) count(err error) (failed bool) {
	e, typed := errors.AsType[*pipeline.Error](err)
	_, said := errors.AsType[*redis.Error](err)
	switch {
	case err == nil:
		return false
	case typed && e.Outcome == pipeline.Unknown:
		l.unknown.Add(1)
	case typed && e.Outcome == pipeline.NotSent, said:
		l.unsent.Add(1)
	default:
		l.other.CompareAndSwap(nil, &err)
	}
	return true
}

// Replicas are another role, and their own set of endpoints.
func TestSentinelReplicas(t *testing.T) {
	primary := redis.StartServer(t)
	replica := redis.StartServer(t, "--replicaof", "127.0.0.1 "+primary.Port)
	sentinels := startSentinels(t, primary)
	c, err := holdfast.New(&redis.Sentinel{Addrs: sentinels, Service: "cache", Role: redis.Replica}, holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := redis.New(c, redis.Config{Role: redis.Replica})
	defer r.Close()
	eventually(t, "the replica answers", func() bool {
		role, err := r.Do(t.Context(), "INFO", "replication").Text()
		return err == nil && strings.Contains(role, "role:slave")
	})
	if nodes := c.Stats().Nodes; len(nodes) != 1 || !strings.HasSuffix(nodes[0].Node, ":"+replica.Port) {
		t.Errorf("nodes: %+v", nodes)
	}
	if _, err := redis.Open("sentinel://" + sentinels[0] + "/nosuchservice"); err != nil {
		t.Error(err)
	}
}
