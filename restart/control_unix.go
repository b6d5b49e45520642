//go:build unix

package restart

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/listen"
	"github.com/holdfast-net/holdfast/internal/sockopt"
)

// controlSocket is where the supervisor is asked. Only its user may: the file is
// 0600 from the moment it is there.
type controlSocket struct {
	path   string
	ln     net.Listener
	file   listen.File
	cancel context.CancelFunc
	ended  chan struct{}
}

// orderTime is how long somebody who has connected may take to say what they want.
const orderTime = 5 * time.Second

// listenControl listens for orders. A nil socket is none.
func listenControl(cfg Config, handle func(context.Context, order) any) (*controlSocket, error) {
	path := cfg.Admin
	if path == "none" {
		return nil, nil
	}
	if path == "" {
		path = AdminPath(cfg.Name)
		os.MkdirAll(filepath.Dir(path), 0o700) // that it failed, the socket says
	}
	var ln net.Listener
	var file listen.File
	err := patiently(context.Background(), func() (err error) {
		ln, file, err = listen.Stream(context.Background(), "unix", path, listen.Options{Mode: 0o600})
		return err
	})
	if err != nil && cfg.Admin == "" && !errors.Is(err, syscall.EADDRINUSE) {
		cfg.Log.Warn("restart: no control socket: choose a path with Config.Admin, or set XDG_RUNTIME_DIR", "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("restart: the control socket: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &controlSocket{path: path, ln: ln, file: file, cancel: cancel, ended: make(chan struct{})}
	go c.serve(ctx, handle)
	return c, nil
}

func (c *controlSocket) where() string {
	if c == nil {
		return ""
	}
	return c.path
}

func (c *controlSocket) close() {
	if c == nil {
		return
	}
	c.file.Remove()
	c.cancel()
	c.ln.Close()
	<-c.ended
}

// serve answers one order a connection, a few at a time.
func (c *controlSocket) serve(ctx context.Context, handle func(context.Context, order) any) {
	defer close(c.ended)
	room := make(chan struct{}, 256)
	for {
		conn, err := c.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil { // out of descriptors: who asks again finds us
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		room <- struct{}{}
		go func() {
			defer func() { <-room }()
			answerOrder(ctx, conn, handle)
		}()
	}
	for range cap(room) {
		room <- struct{}{} // all have ended
	}
}

func answerOrder(ctx context.Context, conn net.Conn, handle func(context.Context, order) any) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(orderTime))
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) }) // the end waits for nobody
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(conn, maxOrder)).ReadBytes('\n')
	var o order
	if err == nil {
		err = json.Unmarshal(line, &o)
	}
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if sc, ok := conn.(syscall.Conn); ok {
		o.uid = sockopt.PeerUID(sc)
	}
	answer := handle(ctx, o)
	if answer == nil {
		return
	}
	conn.SetDeadline(time.Now().Add(orderTime))
	json.NewEncoder(conn).Encode(answer)
}

// handle does what is asked. It runs beside the loop.
func (s *supervisor) handle(ctx context.Context, o order) any {
	switch verb := o.Verb; verb {
	case "restart":
		r := &request{answer: make(chan Result, 1)}
		s.post(func() { s.ask(r) })
		select {
		case result := <-r.answer:
			return result
		case <-s.done:
			return s.lateAnswer(r)
		}
	case "begin":
		r, taken := &request{answer: make(chan Result, 1)}, make(chan Result, 1)
		s.post(func() {
			s.ask(r)
			select {
			case failed := <-r.answer:
				taken <- failed
			default:
				taken <- Result{OK: true}
			}
		})
		select {
		case result := <-taken:
			return result
		case <-s.done:
			return Result{Err: "the service is stopping"}
		}
	case "status":
		answer := make(chan Status, 1)
		s.post(func() { answer <- s.report() })
		select {
		case status := <-answer:
			return status
		case <-s.done:
			return nil
		}
	case "call":
		return s.call(ctx, o)
	case "reopen":
		if err := s.cfg.reopen(); err != nil {
			return Result{Err: oneLine(err.Error())}
		}
		s.post(func() {
			for _, g := range s.gens {
				if !g.command {
					g.send(message{kind: msgReopen, optional: true})
				}
			}
		})
		return Result{OK: true}
	case "drain", "stop":
		drain := s.cfg.Timeouts.Drain
		if verb == "stop" {
			drain = 0
		}
		s.post(func() { s.leaveAll(drain, nil) })
		<-ctx.Done() // by the end of all: what s says then is final
		if s.cuts > 0 {
			return Result{Err: fmt.Sprintf("the service has ended, but %d of its processes did not leave in time and were killed", s.cuts)}
		}
		return Result{OK: true}
	}
	return Result{Err: fmt.Sprintf("unknown verb %q", clip(o.Verb))}
}

func (s *supervisor) lateAnswer(r *request) Result {
	select {
	case result := <-r.answer:
		return result
	default:
		return Result{Err: "the service is stopping"}
	}
}

// report is the Status.
func (s *supervisor) report() Status {
	out := Status{
		Name: s.cfg.Name, PID: os.Getpid(), Started: s.history.started,
		Restarts: s.history.restarts, RolledBack: s.history.rolledBack, Crashed: s.history.crashed,
		LastError: s.history.lastError, LastErrorAt: s.history.lastErrorAt, Totals: s.sum(),
		Sockets: s.sockets.names(),
	}
	if s.current != nil {
		out.Generation, out.Calls = s.current.id, s.current.calls
	}
	for _, g := range s.gens {
		out.Generations = append(out.Generations, GenerationStatus{g.id, g.pid(), string(g.phase), time.Since(g.started).Seconds()})
	}
	return out
}
