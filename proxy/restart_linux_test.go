package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
)

// TestMain lets the test's own program be a proxy that can be restarted.
func TestMain(m *testing.M) {
	if back := os.Getenv("PROXY_TEST_BACKEND"); back != "" {
		if err := runProxy(back); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// failing is the end of the name of a file that makes the program fail.
const failing = ".fail"

func runProxy(back string) error {
	if _, err := os.Stat(os.Getenv("PROXY_TEST_ADMIN") + failing); err == nil {
		return errors.New("it was told to fail")
	}
	c, err := holdfast.New(holdfast.Static(back), holdfast.Config{})
	if err != nil {
		return err
	}
	defer c.Close()
	cfg := restart.Config{
		Admin:    os.Getenv("PROXY_TEST_ADMIN"),
		Timeouts: restart.Timeouts{Confirm: -1, Drain: 10 * time.Second},
		Log:      slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	listen := os.Getenv("PROXY_TEST_LISTEN")
	if strings.HasPrefix(listen, "udp:") {
		p, err := proxy.NewPackets(proxy.PacketConfig{Cluster: c, Limits: serve.Limits{MaxPerIP: -1}})
		if err != nil {
			return err
		}
		defer p.Close()
		return restart.Run(context.Background(), cfg, restart.BindPacket(p, listen))
	}
	p, err := proxy.New(proxy.Config{Cluster: c})
	if err != nil {
		return err
	}
	defer p.Close()
	return restart.Run(context.Background(), cfg, restart.Bind(p, listen))
}

// startProgram runs the proxy as a program of its own, and returns where it listens and
// its control socket.
func startProgram(t *testing.T, back string) (addr, admin string) {
	t.Helper()
	ln := listen(t) // a port that is free
	addr = ln.Addr().String()
	ln.Close()
	admin = filepath.Join(t.TempDir(), "proxy.sock")
	at := "tcp://" + addr
	if strings.HasPrefix(back, "udp:") {
		pc, err := net.ListenPacket("udp", ours("127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		addr = pc.LocalAddr().String()
		pc.Close()
		at = "udp://" + addr
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PROXY_TEST_BACKEND="+back, "PROXY_TEST_ADMIN="+admin, "PROXY_TEST_LISTEN="+at,
		"GORACE=atexit_sleep_ms=0") // else the race detector keeps a process that has ended for a second
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		restart.Stop(ctx, admin)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the proxy: %v", err)
		}
	})
	eventually(t, "the proxy serves", func() bool {
		s, err := restart.Ask(t.Context(), admin)
		return err == nil && s.Generation > 0
	})
	return addr, admin
}

// crowd is a load of clients who hold their connections, and of others who come and go.
// Nothing may go wrong for any of them.
type crowd struct {
	*testing.T
	addr string
	stop atomic.Bool
	wg   sync.WaitGroup
	asks atomic.Int64
	came atomic.Int64
}

func (c *crowd) gather(held, coming int) {
	var ready sync.WaitGroup
	ready.Add(held)
	for i := range held {
		c.wg.Go(func() {
			if err := c.hold(uint64(i), &ready); err != nil {
				c.Errorf("held connection %d: %v", i, err)
			}
		})
	}
	for range coming {
		c.wg.Go(func() {
			for !c.stop.Load() {
				if err := c.comeAndGo(); err != nil {
					c.Errorf("a new connection: %v", err)
					return
				}
				c.came.Add(1)
			}
		})
	}
	ready.Wait()
}

// hold asks again and again over one connection.
func (c *crowd) hold(seed uint64, ready *sync.WaitGroup) error {
	once := sync.OnceFunc(ready.Done)
	defer once()
	conn, err := net.DialTimeout("tcp", c.addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := rand.New(rand.NewPCG(seed, 7))
	answers := bufio.NewReader(conn)
	for n := 0; !c.stop.Load(); n++ {
		if err := askLine(conn, answers, fmt.Sprintf("%d %d %x\n", seed, n, r.Uint64())); err != nil {
			return fmt.Errorf("question %d: %w", n, err)
		}
		once()
		c.asks.Add(1)
		time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond) // a load that leaves the CPU to others
	}
	return nil
}

func (c *crowd) comeAndGo() error {
	conn, err := net.DialTimeout("tcp", c.addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	return askLine(conn, bufio.NewReader(conn), "hello\n")
}

func askLine(conn net.Conn, answers *bufio.Reader, question string) error {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, question); err != nil {
		return err
	}
	answer, err := answers.ReadString('\n')
	if err == nil && answer != question {
		err = errors.New("another answer than was asked for")
	}
	return err
}

func (c *crowd) leave() {
	c.stop.Store(true)
	c.wg.Wait()
}

// Mission 1, F3: restarts under load lose no connection, held or new.
func TestRestartsUnderLoad(t *testing.T) {
	leak.Check(t)
	restarts, held := 10, 500
	if soak {
		restarts, held = 100, 2000
	}
	addr, admin := startProgram(t, serveEach(t, echo))
	c := &crowd{T: t, addr: addr}
	c.gather(held, 4)
	var slowest time.Duration
	for i := range restarts {
		r, err := restart.Restart(t.Context(), admin)
		if err != nil || !r.OK {
			t.Fatalf("restart %d: %+v, %v", i, r, err)
		}
		committed := time.Now()
		eventually(t, "the old process is gone", func() bool {
			s, err := restart.Ask(t.Context(), admin)
			return err == nil && len(s.Generations) == 1
		})
		slowest = max(slowest, time.Since(committed))
	}
	c.leave()
	if slowest > 10*time.Second {
		t.Errorf("an old process was there for %v after its successor", slowest)
	}
	eventually(t, "it is told that every connection was handed over", func() bool { // a worker tells once a second
		s, err := restart.Ask(t.Context(), admin)
		return err == nil && s.Totals["moved_in"] >= int64(restarts*held)
	})
	t.Logf("%d restarts, %d questions, %d new connections; an old process lasted %v at most", restarts, c.asks.Load(), c.came.Load(), slowest)
}

// A change of the configuration touches no connection.
func TestUpdatesUnderLoad(t *testing.T) {
	leak.Check(t)
	updates, held := 10, 500
	if soak {
		updates, held = 100, 2000
	}
	backs := []*holdfast.Cluster{cluster(t, holdfast.Config{}, serveEach(t, echo)), cluster(t, holdfast.Config{}, serveEach(t, echo))}
	p, addr := start(t, proxy.Config{Cluster: backs[0]}, paths["loops"])
	c := &crowd{T: t, addr: addr}
	c.gather(held, 4)
	for i := range updates {
		cfg := proxy.Config{Cluster: backs[(i+1)%2]}
		cfg.Limits.MaxPerIP = 4000 + i
		cfg.Timeouts.Idle = time.Duration(i+1) * time.Minute
		if err := p.Update(cfg); err != nil {
			t.Fatal(err)
		}
		came := c.came.Load()
		eventually(t, "new connections came", func() bool { return c.came.Load() > came+20 })
	}
	if err := p.Update(proxy.Config{}); err == nil {
		t.Error("a configuration without backends was taken")
	}
	if open := p.Stats().Open; open < held {
		t.Errorf("%d connections are open, %d are held", open, held)
	}
	c.leave()
	for i, back := range backs {
		if back.Stats().Nodes[0].Dials == 0 {
			t.Errorf("backend %d was never chosen", i)
		}
	}
}
