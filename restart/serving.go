package restart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
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
			run = func() error { b.turn.wait(); return b.packet.ServePacket(b.pc) }
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

// shutdown ends every server, all at once, and waits for them. A packet socket is let
// go of with its server: others may want its address while the rest still drains.
func (w *worker) shutdown(ctx context.Context) error {
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(w.binds))
	)
	for i, first := range w.servers() {
		wg.Go(func() {
			errs[i] = first.shutter().Shutdown(ctx)
			w.begin(first)
			for _, b := range w.binds {
				if b.pc != nil && b.shares(first) {
					b.pc.Close()
				}
			}
		})
	}
	wg.Wait()
	err := closeAll(w.binds)
	w.serving.Wait() // with its listener closed, Serve returns
	return errors.Join(append(errs, err)...)
}

// hold has packet servers wait that are to be given something before they begin.
func (w *worker) hold() {
	for _, b := range w.binds {
		if _, moves := b.shutter().(Mover); moves && b.kind == kindPacket {
			b.turn = &turn{come: make(chan struct{})}
		}
	}
}

// begin ends the wait of the server of a binding; nil is of all.
func (w *worker) begin(of *bound) {
	for _, b := range w.binds {
		if b.kind == kindPacket && (of == nil || b.shares(of)) {
			b.turn.begin()
		}
	}
}

// servers are the servers, each by the first of its bindings, whatever else it is bound
// to.
func (w *worker) servers() (all []*bound) {
	for _, b := range w.binds {
		if b.kind != kindFile && !slices.ContainsFunc(all, b.shares) {
			all = append(all, b)
		}
	}
	return all
}

type shutter interface{ Shutdown(context.Context) error }

// shutter is the server of a socket.
func (b *bound) shutter() shutter {
	if b.kind == kindPacket {
		return b.packet
	}
	return b.server
}

// shares reports whether two sockets have the same server: from one Bind, or one that
// can be compared. A func, say, can not.
func (b *bound) shares(o *bound) bool {
	return b.first == o.first || reflect.ValueOf(b.shutter()).Comparable() && b.shutter() == o.shutter()
}

// boundOf finds a server's binding by its name.
func (w *worker) boundOf(name string) *bound {
	for _, b := range w.binds {
		if b.name == name && b.kind != kindFile {
			return b
		}
	}
	return nil
}

// totals sums the counters of all servers that have some.
func (w *worker) totals() map[string]int64 {
	sum := map[string]int64{}
	for _, b := range w.servers() {
		if t, ok := b.shutter().(interface{ Totals() map[string]int64 }); ok {
			for name, n := range t.Totals() {
				sum[name] += n
			}
		}
	}
	return sum
}

// ticketKeys gives the keys to all servers that want them.
func (w *worker) ticketKeys(keys [][32]byte) {
	for _, b := range w.servers() {
		if t, ok := b.shutter().(interface{ TicketKeys([][32]byte) }); ok {
			t.TicketKeys(keys)
		}
	}
}
