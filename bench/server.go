package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/serve"
)

// serverRows are the comparisons of the server, each with a server in a process of its
// own, against what one writes with package net: a goroutine for each connection that
// reads into a buffer of 4 KiB and writes back.
func serverRows() []row {
	echo := func(conns int) func() (side, side, func(), error) {
		return versus(func(addr string) (side, func(), error) { return echoSide(addr, conns) })
	}
	const peer = "a bare net server"
	return []row{
		{name: "serve: echo 64 B, 16 connections", peer: peer, n: 60_000, bar: 1 / 0.90, start: echo(16)},
		{name: "serve: echo 64 B, 256 connections", peer: peer, n: 60_000, bar: 1 / 0.95, start: echo(256)},
		{name: "serve: echo 64 B, 4,000 connections", peer: peer, n: 160_000, bar: 1 / 0.95, start: echo(4000)},
		{name: "serve: accept, echo, close, 16 clients", peer: peer, n: 6_000, bar: 1 / 0.90,
			start: versus(func(addr string) (side, func(), error) { return acceptSide(addr, 16), func() {}, nil })},
	}
}

const message = 64 // bytes, with its length or newline

// versus starts both servers and makes a side of each.
func versus(load func(addr string) (side, func(), error)) func() (side, side, func(), error) {
	return func() (ours, peer side, end func(), err error) {
		var ends []func()
		end = func() {
			for _, f := range ends {
				f()
			}
		}
		var sides []side
		for _, kind := range []string{"serve", "net"} {
			c, err := startChild(kind)
			if err != nil {
				end()
				return nil, nil, nil, err
			}
			ends = append(ends, c.stop)
			s, stop, err := load(c.addr)
			if err != nil {
				end()
				return nil, nil, nil, err
			}
			ends = append(ends, stop)
			sides = append(sides, s)
		}
		return sides[0], sides[1], end, nil
	}
}

// echoSide keeps conns connections and shares the requests between them.
func echoSide(addr string, conns int) (side, func(), error) {
	all := make([]net.Conn, conns)
	stop := func() {
		for _, c := range all {
			if c != nil {
				c.Close()
			}
		}
	}
	for i := range all {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			stop()
			return nil, nil, err
		}
		all[i] = c
	}
	return func(n int) int {
		var failed counter
		var wg sync.WaitGroup
		for _, c := range all {
			wg.Go(func() {
				buf := line()
				for range n / conns {
					if err := exchange(c, buf); err != nil {
						failed.add(1)
						return
					}
				}
			})
		}
		wg.Wait()
		return failed.n
	}, stop, nil
}

func acceptSide(addr string, clients int) side {
	return func(n int) int {
		var failed counter
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				buf := line()
				for range n / clients {
					c, err := net.Dial("tcp", addr)
					if err == nil {
						err = exchange(c, buf)
						c.Close()
					}
					if err != nil {
						failed.add(1)
					}
				}
			})
		}
		wg.Wait()
		return failed.n
	}
}

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) add(n int) {
	c.mu.Lock()
	c.n += n
	c.mu.Unlock()
}

func line() []byte { return []byte(strings.Repeat("x", message-1) + "\n") }

func exchange(c net.Conn, buf []byte) error {
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf)
	return err
}

// child is a server in a process of its own: this program under another name. It
// ends with its standard input.
type child struct {
	cmd  *exec.Cmd
	in   io.Closer
	addr string
}

const childVar = "HOLDFAST_BENCH_CHILD"

func startChild(kind string, env ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), childVar+"="+kind), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, in: in}
	first, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.stop()
		return nil, errors.New("the child ended before it served")
	}
	c.addr = strings.TrimSpace(first)
	return c, nil
}

func (c *child) stop() {
	c.in.Close()
	t := time.AfterFunc(5*time.Second, func() { c.cmd.Process.Kill() })
	defer t.Stop()
	c.cmd.Wait()
}

// beChild is main in a child.
func beChild(kind string) error {
	switch kind {
	case "restart":
		return beRestartable()
	case "proxy":
		return beProxy()
	case "proxy-restart":
		return beRestartableProxy()
	case "proxy-backend":
		return beBackend()
	case "proxy-load":
		return beLoad()
	case "proxy-suite":
		return beProxySuite()
	}
	if strings.HasPrefix(kind, "packet") {
		return bePackets(kind)
	}
	ln, err := listenAs(kind)
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if kind == "net" {
		return bareServer(ln)
	}
	return newServer().Serve(ln)
}

// listenAs listens as one does with either.
func listenAs(kind string) (net.Listener, error) {
	if kind == "net" {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	return serve.Listen(context.Background(), "tcp://127.0.0.1:0")
}

// newServer has limits and counts on, as it is shipped.
func newServer() *serve.Server {
	return &serve.Server{
		Limits: serve.Limits{MaxPerIP: 1 << 20},
		Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, msg []byte) error {
			return c.Send(msg)
		}),
	}
}

func bareServer(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				if _, err := conn.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}
