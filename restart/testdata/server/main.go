// Command server is what the tests restart. Its behavior comes from a file that the
// tests rewrite, as an upgrade replaces a binary.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

func main() {
	cfg := restart.Config{
		Admin:    os.Getenv("ADMIN"),
		PIDFile:  os.Getenv("PIDFILE"),
		Timeouts: restart.Timeouts{Confirm: 100 * time.Millisecond, Ready: 2 * time.Second, Drain: 3 * time.Second},
		Log:      slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	err := restart.Run(context.Background(), cfg, restart.Bind(&server{}, os.Args[1:]...))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// server answers lines with its pid.
type server struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	lns []net.Listener
	cs  map[net.Conn]bool
}

func (s *server) Serve(ln net.Listener) error {
	s.mu.Lock()
	s.lns = append(s.lns, ln)
	s.mu.Unlock()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		s.wg.Go(func() {
			defer conn.Close()
			for lines := bufio.NewScanner(conn); lines.Scan(); {
				io.WriteString(conn, fmt.Sprintf("%d %s\n", os.Getpid(), strings.ToUpper(lines.Text())))
			}
		})
	}
}

func (s *server) Shutdown(ctx context.Context) error {
	for _, ln := range s.lns {
		ln.Close()
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
