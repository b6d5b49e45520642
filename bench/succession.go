package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// figure is a comparison that is not a time per unit.
type figure struct {
	name, ours, peer, bar string
	verdict               string
}

func (f figure) String() string {
	return fmt.Sprintf("%-44s ours %s  peer %s  bar %s: %s", f.name, f.ours, f.peer, f.bar, f.verdict)
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

// figures measures them, those whose name contains only.
func figures(only string) (all []figure, err error) {
	for _, f := range []struct {
		name    string
		measure func() ([]figure, error)
	}{
		{"serve: idle memory", idleMemory},
		{"serve: UDP CPU and loss", datagramFigures},
		{"restart: handing over", handingOver},
		{"restart: lost", lostPerRestart},
		{"stream: buffers", buffers},
		{"pipeline: lateness", lateness},
		{"redis: busy", busy},
	} {
		if !strings.Contains(f.name, only) {
			continue
		}
		got, err := f.measure()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		for _, one := range got {
			fmt.Println(one)
		}
		all = append(all, got...)
	}
	return all, nil
}

// idleMemory is what the heap and the stacks of a process grow by for each connection
// that has been used once and was idle since. The clients are bare descriptors in the
// same process, of which Go knows nothing.
func idleMemory() ([]figure, error) {
	const conns = 4000
	var perConn [2]float64
	for i, serve := range []func(net.Listener) error{newServer().Serve, bareServer} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		go serve(ln)
		before := userMemory()
		for range conns {
			fd, err := useOnce(ln.Addr().(*net.TCPAddr).Port)
			if err != nil {
				return nil, err
			}
			defer syscall.Close(fd)
		}
		time.Sleep(7 * time.Second) // after 5 s a connection of ours rests
		perConn[i] = float64(userMemory()-before) / conns
	}
	return []figure{{
		name: fmt.Sprintf("serve: heap and stack of an idle connection (of %d)", conns),
		ours: fmt.Sprintf("%.1f KiB", perConn[0]/1024), peer: fmt.Sprintf("%.1f KiB (a bare net server)", perConn[1]/1024),
		bar: "≤ 4 KiB", verdict: verdict(perConn[0] <= 4096),
	}}, nil
}

func userMemory() int64 {
	runtime.GC()
	runtime.GC() // pools let go at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// useOnce connects and has one line echoed.
func useOnce(port int) (fd int, err error) {
	if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0); err != nil {
		return 0, err
	}
	if err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	buf := line()
	if _, err = syscall.Write(fd, buf); err != nil {
		return 0, err
	}
	_, err = syscall.Read(fd, buf)
	return fd, err
}

// beRestartable is a server under restart, whose log goes to stdout as JSON.
func beRestartable() error {
	srv := newServer()
	return runRestartable(srv, restart.Bind(srv, os.Getenv("ADDR")))
}

// runRestartable serves until standard input ends, which closes what is served.
func runRestartable(srv io.Closer, b restart.Binding) error {
	return restart.Run(context.Background(), restart.Config{
		Admin:    os.Getenv("ADMIN"),
		Timeouts: restart.Timeouts{Confirm: 100 * time.Millisecond},
		Log:      slog.New(slog.NewJSONHandler(os.Stdout, nil)),
		Start: func(context.Context) error {
			go func() {
				io.Copy(io.Discard, os.Stdin)
				srv.Close() // which ends the worker, and so the service
				os.Exit(0)
			}()
			return nil
		},
	}, b)
}

const handed = 9000

// handingOver compares moving connections to the successor with making them anew, and
// holds how long one stands still meanwhile.
func handingOver() ([]figure, error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	admin, addr := filepath.Join(dir, "admin.sock"), freeAddr()
	service, err := startService(admin, addr)
	if err != nil {
		return nil, err
	}
	defer service.stop()

	conns, _, err := dialMany(addr, handed)
	if err != nil {
		return nil, err
	}
	defer closeConns(conns)
	for _, c := range conns {
		if err := exchange(c, line()); err != nil {
			return nil, err
		}
	}
	var ratios, took []float64
	var pauses []time.Duration
	for range 9 {
		again, dialed, err := dialMany(addr, handed) // the peer of this round
		if err != nil {
			return nil, err
		}
		closeConns(again)
		time.Sleep(time.Second) // until the server has closed them, too
		stop, done := make(chan struct{}), make(chan []time.Duration, 1)
		go func() { done <- pace(conns[:500], stop) }()
		time.Sleep(200 * time.Millisecond)
		moved, err := service.restart(admin)
		time.Sleep(200 * time.Millisecond)
		close(stop)
		longest := <-done
		if err != nil {
			return nil, err
		}
		ratios = append(ratios, float64(moved)/float64(dialed))
		took = append(took, moved.Seconds()*1000)
		pauses = append(pauses, longest...)
	}
	broken := 0
	for _, c := range conns {
		if exchange(c, line()) != nil {
			broken++
		}
	}
	q1, ratio, q3 := quartiles(ratios[1:])
	_, ms, _ := quartiles(took[1:])
	p99 := percentile(pauses, 0.99)
	return []figure{
		{fmt.Sprintf("restart: handing over %d connections", handed), fmt.Sprintf("%.0f ms, %d broken in 9 restarts", ms, broken),
			fmt.Sprintf("dialing as many: ratio %.2f× (%.2f–%.2f)", ratio, q1, q3), "≤ 0.75×, 0 broken", verdict(ratio <= 0.75 && broken == 0)},
		{"restart: longest pause of a connection in use, p99", p99.Round(100 * time.Microsecond).String(), "500 connections, a request each 50 ms",
			"≤ 50 ms", verdict(p99 <= 50*time.Millisecond)},
	}, nil
}

func freeAddr() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// dialMany makes n connections, 64 at a time.
func dialMany(addr string, n int) (conns []net.Conn, took time.Duration, err error) {
	conns = make([]net.Conn, n)
	errs := make([]error, 64)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				conns[i], errs[w] = net.Dial("tcp", addr)
			}
		})
	}
	wg.Wait()
	took = time.Since(start)
	if err := errors.Join(errs...); err != nil {
		closeConns(conns)
		return nil, 0, err
	}
	return conns, took, nil
}

func closeConns(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// pace sends a request on each connection every 50 ms, and returns the longest that
// each of them waited.
func pace(conns []net.Conn, stop <-chan struct{}) []time.Duration {
	longest := make([]time.Duration, len(conns))
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			buf := line()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				start := time.Now()
				if exchange(c, buf) != nil {
					longest[i] = time.Hour
					return
				}
				longest[i] = max(longest[i], time.Since(start))
			}
		})
	}
	wg.Wait()
	return longest
}

func percentile(d []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// service is a restartable server whose log is read.
type service struct {
	cmd *exec.Cmd
	in  io.Closer
	log chan map[string]any
}

func startService(admin, addr string) (*service, error) {
	return startServiceAs("restart", -1, admin, addr)
}

func startServiceAs(kind string, cpu int, admin, addr string, env ...string) (*service, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), childVar+"="+kind, "ADMIN="+admin, "ADDR=tcp://"+addr), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := startOn(cpu, cmd); err != nil {
		return nil, err
	}
	s := &service{cmd: cmd, in: in, log: make(chan map[string]any, 1000)}
	go func() {
		defer close(s.log)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var entry map[string]any
			if json.Unmarshal(lines.Bytes(), &entry) == nil {
				s.log <- entry
			}
		}
	}()
	_, err = s.await("restart: committed")
	return s, err
}

func (s *service) await(msg string) (map[string]any, error) {
	limit := time.After(time.Minute)
	for {
		select {
		case entry, ok := <-s.log:
			if !ok {
				return nil, errors.New("the service ended")
			}
			if entry["msg"] == msg {
				return entry, nil
			}
		case <-limit:
			return nil, fmt.Errorf("no %q within a minute", msg)
		}
	}
}

// restart returns how long the connections took to move.
func (s *service) restart(admin string) (time.Duration, error) {
	r, err := restart.Restart(context.Background(), admin)
	if err != nil || !r.OK {
		return 0, fmt.Errorf("restart: %v %s", err, r.Err)
	}
	entry, err := s.await("restart: handed over")
	if err != nil {
		return 0, err
	}
	if n, _ := entry["connections"].(float64); n < handed {
		return 0, fmt.Errorf("%v connections moved, not %d", n, handed)
	}
	took, _ := entry["took"].(float64)
	_, err = s.await("restart: exited")
	return time.Duration(took), err
}

func (s *service) stop() {
	s.cmd.Process.Signal(os.Interrupt)
	t := time.AfterFunc(5*time.Second, func() { s.cmd.Process.Kill() })
	defer t.Stop()
	for range s.log {
	}
	s.cmd.Wait()
}
