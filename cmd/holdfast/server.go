package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
	"github.com/spf13/cobra"
)

// demoServerVerb is how the demo starts its servers: the same binary again.
const demoServerVerb = "demo-server"

func (p *program) demoServerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    demoServerVerb + " ADDR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt) // Ctrl-C goes to all processes of the terminal, but the demo is in charge
			s := &demoServer{control: p.in, out: p.out}
			return s.run(cmd.Context(), args[0])
		},
	}
}

// demoServer is one server of the demo, which can be restarted: this runs in its
// supervisor and in every worker. It takes commands from control and ends when that
// does: when the demo ends, however it ends.
type demoServer struct {
	control io.Reader
	out     io.Writer

	delay  atomic.Int64 // a time.Duration, before each reply
	doomed atomic.Bool  // the successor is to fail
}

const (
	demoConfirm = 200 * time.Millisecond
	demoDrain   = 2 * time.Second
)

func (s *demoServer) run(ctx context.Context, addr string) error {
	format, err := frame.Length{Max: maxMessage}.Format()
	if err != nil {
		return err
	}
	begin := func(context.Context) error { return nil }
	if strings.HasPrefix(addr, "udp://") {
		return s.lead(ctx, begin, restart.BindPacket(s.packets(addr), addr))
	}
	return s.lead(ctx, begin, restart.Bind(&serve.Server{Handler: serve.Frames(format, s.echo)}, addr))
}

// lead runs what the demo starts and restarts; begin is for workers.
func (s *demoServer) lead(ctx context.Context, begin func(context.Context) error, binds ...restart.Binding) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return restart.Run(ctx, restart.Config{
		Admin:    "none",
		Timeouts: restart.Timeouts{Confirm: demoConfirm, Drain: demoDrain},
		Signals:  restart.Signals{Restart: demoRestart, Stop: []os.Signal{}},
		State:    restart.State{Save: s.save, Load: s.load},
		Observe:  s.report,
		Start: func(ctx context.Context) error {
			go s.obey(cancel) // to the end of the process
			return errors.Join(dieWithParent(), begin(ctx))
		},
	}, binds...)
}

// echo sends a message back, late if the server was told to be slow.
func (s *demoServer) echo(ctx context.Context, c *serve.Conn, message []byte) error {
	if err := s.tarry(ctx); err != nil {
		return err
	}
	return c.Send(message)
}

// tarry makes a reply late.
func (s *demoServer) tarry(ctx context.Context) error {
	d := time.Duration(s.delay.Load())
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// obey carries out commands, a line each: "delay" and how long, or "doom": the next
// generation shall fail.
func (s *demoServer) obey(end func()) {
	defer end()
	for in := bufio.NewScanner(s.control); in.Scan(); {
		word, arg, _ := strings.Cut(in.Text(), " ")
		d, err := time.ParseDuration(arg)
		switch {
		case word == "doom":
			s.doomed.Store(true)
		case word == "delay" && err == nil:
			s.delay.Store(int64(d))
		default:
			return
		}
	}
}

// save and load pass on what the successor has to know: that is how one is made to
// fail.
func (s *demoServer) save(context.Context) ([]byte, error) {
	if s.doomed.Swap(false) {
		return []byte("doomed"), nil
	}
	return nil, nil
}

func (s *demoServer) load(_ context.Context, state []byte) error {
	if string(state) == "doomed" {
		return errors.New("a bad build: it cannot start")
	}
	return nil
}

// report tells the demo what became of a generation, a line each.
func (s *demoServer) report(e restart.Event) {
	switch e.Kind {
	case restart.Committed:
		fmt.Fprintf(s.out, "%s %d\n", e.Kind, e.PID)
	case restart.RolledBack:
		fmt.Fprintf(s.out, "rolled-back %d\n", e.PID)
	}
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
