package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// demoServerVerb is how the demo starts its servers: the same binary again.
const demoServerVerb = "demo-server"

func (p *program) demoServerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    demoServerVerb + " [ADDR]",
		Hidden: true,
		Args:   cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt) // Ctrl-C goes to all processes of the terminal, but the demo is in charge
			return serveDemo(strings.Join(args, ""), p.in, p.out)
		},
	}
}

// serveDemo is one server of the demo. It says its address on out, takes commands
// from control, and ends when control does: when the demo ends, however it ends.
func serveDemo(addr string, control io.Reader, out io.Writer) error {
	ln, err := listen(addr)
	if err != nil {
		return err
	}
	s := &echoServer{ln: ln, conns: map[net.Conn]bool{}, stopping: make(chan struct{})}
	s.wg.Go(s.serve)
	defer s.close()
	if _, err := fmt.Fprintln(out, ln.Addr()); err != nil {
		return err
	}
	return s.obey(control)
}

// Ports from this range are not handed to outgoing connections by any common
// system, so nobody takes the port of a server while it is dead.
const firstPort, ports = 20000, 10000

// listen takes addr, for which it waits a little, or any free port.
func listen(addr string) (ln net.Listener, err error) {
	for range 50 {
		at := addr
		if at == "" {
			at = fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(ports))
		}
		ln, err = net.Listen("tcp", at)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		if addr != "" {
			time.Sleep(50 * time.Millisecond)
		}
	}
	return ln, err
}

// echoServer sends every message back, late if it was told to be slow.
type echoServer struct {
	ln       net.Listener
	delay    atomic.Int64 // a time.Duration, before each reply
	stopping chan struct{}
	wg       sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[net.Conn]bool
}

func (s *echoServer) serve() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.mu.Unlock()
		s.wg.Go(func() { s.echo(conn) })
	}
}

func (s *echoServer) echo(conn net.Conn) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		conn.Close()
	}()
	r := bufio.NewReader(conn)
	for {
		message, err := readMessage(r)
		if err != nil || !s.sleep() || writeMessage(conn, message) != nil {
			return
		}
	}
}

// sleep waits for as long as the server is to be slow; false means it stops.
func (s *echoServer) sleep() bool {
	d := time.Duration(s.delay.Load())
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stopping:
		return false
	}
}

// obey carries out commands, a line each, until there are no more. The one
// command is "delay" and how long.
func (s *echoServer) obey(control io.Reader) error {
	in := bufio.NewScanner(control)
	for in.Scan() {
		word, arg, _ := strings.Cut(in.Text(), " ")
		d, err := time.ParseDuration(arg)
		if word != "delay" || err != nil {
			return fmt.Errorf("demo-server: what is %q?", in.Text())
		}
		s.delay.Store(int64(d))
	}
	return in.Err()
}

func (s *echoServer) close() {
	close(s.stopping)
	s.ln.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// A message of the demo's protocol is its length in four bytes and then itself.
const maxMessage = 4096

func writeMessage(w io.Writer, message []byte) error {
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(message)), uint32(len(message)))
	_, err := w.Write(append(frame, message...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxMessage {
		return nil, fmt.Errorf("a message of %d bytes, the limit is %d", length, maxMessage)
	}
	message := make([]byte, length)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	return message, nil
}
