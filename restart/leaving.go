//go:build unix

package restart

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How a worker leaves, and how its successor takes what it passes on.

// linkTo is the link to another generation that came with a message, if one did.
// Without it, what could move drains.
func (w *underling) linkTo(whom string, m message) (l *link) {
	if !m.lost && len(m.files) != 1 {
		closeFiles(m.files)
		return nil
	}
	err := errLost
	if !m.lost {
		l, err = newLink(os.NewFile(uintptr(m.files[0]), whom))
	}
	if err != nil {
		w.log.Warn("restart: no connection can move", "link", whom, "err", err)
	}
	return l
}

func (w *underling) leaveTerms(m message) (time.Duration, *link) {
	drain := w.cfg.Timeouts.Drain
	if terms, err := decode[leave](m); err == nil {
		drain = time.Duration(terms.Drain)
	}
	return drain, w.linkTo("successor", m)
}

// leave passes on what can be passed on, drains the rest and ends every server.
func (w *underling) leave(ctx context.Context, drain time.Duration, to *link, arriving <-chan struct{}) error {
	w.pause()
	w.closeListeners()
	if to != nil {
		select { // what is still arriving goes on with the rest
		case <-arriving:
		case <-time.After(drain / 4):
		case <-ctx.Done():
		}
		w.handOver(ctx, drain/2, to)
	}
	return w.shutdown(ctx)
}

// handOver lets every server pass its connections on, for a part of the drain: a
// connection that is busy for longer says goodbye instead.
func (w *underling) handOver(ctx context.Context, limit time.Duration, to *link) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s := newSender(to)
	start := time.Now()
	var wg sync.WaitGroup
	for _, b := range w.servers() {
		m, ok := b.shutter().(Mover)
		if !ok {
			continue
		}
		name := b.name
		wg.Go(func() {
			err := m.HandOver(ctx, func(state []byte, conns ...syscall.Conn) error { return s.send(name, state, conns) })
			s.moved(name)
			if err != nil {
				w.log.Warn("restart: hand over", "server", name, "err", err)
			}
		})
	}
	stop := context.AfterFunc(ctx, s.giveUp)
	wg.Wait()
	stop()
	s.close()
	w.log.Info("restart: handed over", "connections", s.taken.Load(), "took", time.Since(start))
}

// takeOver takes what the predecessor passes on, if there is one.
func (w *underling) takeOver(from *link) {
	defer w.begin(nil)
	if from == nil {
		return
	}
	taken, err := receiveConns(from, func(name string, state []byte, fds []int) error {
		b := w.boundOf(name)
		if b == nil {
			return fmt.Errorf("restart: there is no %q", name)
		}
		m, ok := b.shutter().(Mover)
		if !ok {
			return fmt.Errorf("restart: there is no %q that takes connections", name)
		}
		for _, fd := range fds {
			unix.SetNonblock(fd, true)
		}
		return m.TakeOver(state, fds)
	}, func(name string) {
		if b := w.boundOf(name); b != nil {
			w.begin(b)
		}
	})
	if err != nil {
		w.log.Warn("restart: take over", "err", err)
	}
	w.log.Info("restart: took over", "connections", taken)
}
