package restart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
)

// worker is the process that serves, under a supervisor or alone.
type worker struct {
	cfg   Config
	binds []*bound
	log   *slog.Logger

	serving sync.WaitGroup // the goroutines of serve
}

// notifyContext ends with one of the signals; none, unlike for package signal, are
// none.
func notifyContext(ctx context.Context, signals []os.Signal) (context.Context, context.CancelFunc) {
	if len(signals) == 0 {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, signals...)
}

// ended is what a Serve returned, and of what.
type ended struct {
	name string
	err  error
}

func (e ended) Error() string {
	if e.err == nil {
		return fmt.Sprintf("restart: %s: the server stopped serving", e.name)
	}
	return fmt.Sprintf("restart: %s: %v", e.name, e.err)
}

func (e ended) Unwrap() error { return e.err }

// serve starts every server on every socket. The channel gives the first end of one.
func (w *worker) serve() <-chan error {
	failed := make(chan error, len(w.binds))
	for _, b := range w.binds {
		var run func() error
		switch b.kind {
		case kindStream:
			run = func() error { return b.server.Serve(b.ln) }
		case kindPacket:
			run = func() error { return b.packet.ServePacket(b.pc) }
		default:
			continue
		}
		w.serving.Go(func() { failed <- ended{b.name, run()} })
	}
	return failed
}

// armed returns when every accept loop waits, or ctx ends.
func (w *worker) armed(ctx context.Context) error {
	for _, b := range w.binds {
		if b.ln == nil {
			continue
		}
		select {
		case <-b.ln.armed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// shutdown ends every server, all at once, and waits for them.
func (w *worker) shutdown(ctx context.Context) error {
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(w.binds))
	)
	for i, s := range w.shutters() {
		wg.Go(func() { errs[i] = s.Shutdown(ctx) })
	}
	wg.Wait()
	err := closeAll(w.binds)
	w.serving.Wait() // with its listener closed, Serve returns
	return errors.Join(append(errs, err)...)
}

type shutter interface{ Shutdown(context.Context) error }

// shutters returns each server once, whatever it is bound to.
func (w *worker) shutters() (all []shutter) {
	seen := map[shutter]bool{}
	for _, b := range w.binds {
		var s shutter
		switch b.kind {
		case kindStream:
			s = b.server
		case kindPacket:
			s = b.packet
		default:
			continue
		}
		if !seen[s] {
			seen[s] = true
			all = append(all, s)
		}
	}
	return all
}

// serverOf finds a server by the name of one of its bindings.
func (w *worker) serverOf(name string) shutter {
	for _, b := range w.binds {
		switch {
		case b.name != name:
		case b.kind == kindStream:
			return b.server
		case b.kind == kindPacket:
			return b.packet
		}
	}
	return nil
}

// nameOf is the name of a server: that of its first binding.
func (w *worker) nameOf(s shutter) string {
	for _, b := range w.binds {
		if (b.kind == kindStream && shutter(b.server) == s) || (b.kind == kindPacket && shutter(b.packet) == s) {
			return b.name
		}
	}
	return ""
}

// totals sums the counters of all servers that have some.
func (w *worker) totals() map[string]int64 {
	sum := map[string]int64{}
	for _, s := range w.shutters() {
		if t, ok := s.(interface{ Totals() map[string]int64 }); ok {
			for name, n := range t.Totals() {
				sum[name] += n
			}
		}
	}
	return sum
}

// ticketKeys gives the keys to all servers that want them.
func (w *worker) ticketKeys(keys [][32]byte) {
	for _, s := range w.shutters() {
		if t, ok := s.(interface{ TicketKeys([][32]byte) }); ok {
			t.TicketKeys(keys)
		}
	}
}
