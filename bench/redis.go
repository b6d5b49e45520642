package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/holdfast-net/holdfast"
	ours "github.com/holdfast-net/holdfast/redis"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// redisRows compare clients of one redis-server, half of what they ask being GET and
// half SET of 16 bytes, by so many goroutines at once.
func redisRows() []row {
	rows := []row{}
	for _, peer := range []string{"rueidis, 1 connection", "rueidis, 4 connections", "go-redis", "redigo"} {
		rows = append(rows, redisRow(1, peer, 1/0.95, 0))
	}
	rows = append(rows, redisRow(16, "rueidis, 1 connection", 1, 0))
	for _, callers := range []int{32, 64, 128, 256} {
		rows = append(rows, redisRow(callers, "rueidis, 1 connection", 1/1.8, 0.6))
	}
	for _, peer := range []string{"rueidis, 4 connections", "go-redis", "redigo"} {
		rows = append(rows, redisRow(64, peer, 0, 0))
	}
	return rows
}

func redisRow(callers int, peer string, bar, cpuBar float64) row {
	n := 20_000
	if callers >= 16 {
		n = 150_000
	}
	return row{
		name: fmt.Sprintf("redis: GET and SET, %d callers", callers), peer: peer, n: n, bar: bar, cpuBar: cpuBar,
		fewerAllocs: peer == "rueidis, 1 connection",
		start: func() (side, side, func(), error) {
			addr, stop, err := redisServer()
			if err != nil {
				return nil, nil, nil, err
			}
			a, closeA, err := redisClient("ours", addr)
			if err != nil {
				stop()
				return nil, nil, nil, err
			}
			b, closeB, err := redisClient(peer, addr)
			if err != nil {
				stop()
				return nil, nil, nil, err
			}
			return asked(a, callers), asked(b, callers), func() { closeA(); closeB(); stop() }, nil
		},
	}
}

// asking is one GET or SET.
type asking func(ctx context.Context, set bool) error

const (
	benchKey   = "key:000001"
	benchValue = "0123456789abcdef"
)

// asked spreads n requests over so many callers.
func asked(ask asking, callers int) side {
	return func(n int) int {
		var failed atomic.Int64
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for j := range n / callers {
					if ask(context.Background(), (i+j)%2 == 0) != nil {
						failed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		return int(failed.Load())
	}
}

var errWrongValue = errors.New("a wrong value")

func checked(got string, err error) error {
	if err == nil && got != benchValue {
		return errWrongValue
	}
	return err
}

func redisClient(kind, addr string) (ask asking, end func(), err error) {
	switch kind {
	case "ours":
		return oursOf(addr)
	case "rueidis, 1 connection":
		return rueidisOf(addr, -1)
	case "rueidis, 4 connections":
		return rueidisOf(addr, 2)
	case "go-redis":
		c := goredis.NewClient(&goredis.Options{Addr: addr, PoolSize: 64})
		return func(ctx context.Context, set bool) error {
			if set {
				return c.Set(ctx, benchKey, benchValue, 0).Err()
			}
			return checked(c.Get(ctx, benchKey).Result())
		}, func() { c.Close() }, nil
	}
	p := &redis.Pool{MaxIdle: 64, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", addr) }}
	return func(ctx context.Context, set bool) error {
		c := p.Get()
		defer c.Close()
		if set {
			_, err := c.Do("SET", benchKey, benchValue)
			return err
		}
		return checked(redis.String(c.Do("GET", benchKey)))
	}, func() { p.Close() }, nil
}

func oursOf(addr string) (asking, func(), error) {
	c, err := holdfast.New(holdfast.Static(addr), holdfast.Config{})
	if err != nil {
		return nil, nil, err
	}
	r := ours.New(c, ours.Config{})
	ask := func(ctx context.Context, set bool) error {
		if set {
			return r.Do(ctx, "SET", benchKey, benchValue).Err()
		}
		return checked(r.Do(ctx, "GET", benchKey).Text())
	}
	return ask, func() { r.Close(); c.Close() }, ask(context.Background(), true)
}

// rueidisOf has 2^multiplex connections; −1 is one.
func rueidisOf(addr string, multiplex int) (asking, func(), error) {
	c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, PipelineMultiplex: multiplex, DisableCache: true})
	if err != nil {
		return nil, nil, err
	}
	return func(ctx context.Context, set bool) error {
		if set {
			return c.Do(ctx, c.B().Set().Key(benchKey).Value(benchValue).Build()).Error()
		}
		return checked(c.Do(ctx, c.B().Get().Key(benchKey).Build()).ToString())
	}, c.Close, nil
}

// redisServer starts one of its own.
func redisServer() (addr string, stop func(), err error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = ln.Addr().String()
	ln.Close()
	port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	cmd := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--logfile", filepath.Join(dir, "log"))
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { cmd.Process.Kill(); cmd.Wait(); os.RemoveAll(dir) }
	for range 500 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr, stop, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	return "", nil, errors.New("redis-server does not answer")
}

// lateness is what callers with a deadline of 50 ms see of a server that has stalled:
// how much later than that the slowest comes back. Bare timers are beside it, for this
// machine's own lateness.
func lateness() ([]figure, error) {
	const callers, deadline = 3000, 50 * time.Millisecond
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	go hello(ln)
	worst := map[string]time.Duration{}
	kinds := []string{"timers", "ours", "rueidis, 1 connection", "go-redis"}
	for _, kind := range kinds {
		ask := func(ctx context.Context, _ bool) error { <-ctx.Done(); return ctx.Err() }
		end := func() {}
		if kind != "timers" {
			if ask, end, err = stalledClient(kind, ln.Addr().String()); err != nil {
				return nil, err
			}
		}
		for range 5 {
			worst[kind] = max(worst[kind], slowest(ask, callers, deadline))
		}
		go end() // some wait for the server
	}
	late := worst["ours"] - worst["timers"]
	f := figure{name: "pipeline: latest of 3,000 callers with 50 ms on a stalled server", ours: worst["ours"].Round(time.Millisecond).String(),
		bar: "≤ 20 ms more than timers", verdict: "met"}
	f.peer = fmt.Sprintf("timers %v, rueidis %s, go-redis %s", worst["timers"].Round(time.Millisecond),
		lateOrGone(worst["rueidis, 1 connection"]), lateOrGone(worst["go-redis"]))
	if late > 20*time.Millisecond {
		f.verdict = "missed"
	}
	return []figure{f}, nil
}

// lateOrGone tells a client whose callers all came back before their deadline: it has
// given the connection up, which is no answer to the question.
func lateOrGone(worst time.Duration) string {
	if worst == 0 {
		return "failed before the deadline"
	}
	return worst.Round(time.Millisecond).String()
}

func slowest(ask asking, callers int, deadline time.Duration) time.Duration {
	var worst atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			begin := time.Now()
			ask(ctx, false)
			late := int64(time.Since(begin) - deadline)
			for old := worst.Load(); late > old && !worst.CompareAndSwap(old, late); old = worst.Load() {
			}
		})
	}
	wg.Wait()
	return time.Duration(worst.Load())
}

func stalledClient(kind, addr string) (asking, func(), error) {
	if kind != "ours" {
		return redisClient(kind, addr)
	}
	c, err := holdfast.New(holdfast.Static(addr), holdfast.Config{})
	if err != nil {
		return nil, nil, err
	}
	r := ours.New(c, ours.Config{})
	return func(ctx context.Context, _ bool) error { return r.Do(ctx, "GET", benchKey).Err() },
		func() { r.Close(); c.Close() }, r.WaitReady(context.Background())
}

// hello is a server that greets, and then answers nothing for a while: what comes at
// once is taken for the greeting of a client.
func hello(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					break
				}
				for command := range bytes.SplitSeq(bytes.TrimPrefix(buf[:n], []byte("*")), []byte("\n*")) {
					if bytes.Contains(command, []byte("HELLO")) || bytes.Contains(command, []byte("hello")) {
						conn.Write([]byte("%2\r\n$5\r\nproto\r\n:3\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n"))
						continue
					}
					conn.Write([]byte("+OK\r\n"))
				}
			}
			time.Sleep(time.Minute)
		}()
	}
}

// busy is what a lone caller waits for a reply while all processors are busy with
// something else in the same process.
func busy() ([]figure, error) {
	addr, stop, err := redisServer()
	if err != nil {
		return nil, err
	}
	defer stop()
	median := map[string]time.Duration{}
	for _, kind := range []string{"ours", "rueidis, 1 connection"} {
		ask, end, err := redisClient(kind, addr)
		if err != nil {
			return nil, err
		}
		median[kind] = amongSpinners(ask)
		end()
	}
	return []figure{{name: "redis: a lone GET beside 4 busy goroutines, median", ours: median["ours"].String(),
		peer: "rueidis " + median["rueidis, 1 connection"].String(), bar: "–", verdict: "reported"}}, nil
}

func amongSpinners(ask asking) time.Duration {
	var spinning atomic.Bool
	spinning.Store(true)
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for spinning.Load() {
			}
		})
	}
	var all []time.Duration
	for range 300 {
		begin := time.Now()
		ask(context.Background(), false)
		all = append(all, time.Since(begin))
	}
	spinning.Store(false)
	wg.Wait()
	slices.Sort(all)
	return all[len(all)/2].Round(100 * time.Nanosecond)
}
