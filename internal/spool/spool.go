// Package spool keeps a log from holding up those who write to it: a full disk slows it
// down, and a pipe that nobody reads stops it for ever.
//
//	log, end := spool.New(cfg.Log)
//	defer end(time.Second)
//	log.Info("…") // returns at once
//
// Records are queued, and one goroutine writes them in their order. When too many wait,
// further ones are dropped, and their number is written once there is room.
package spool

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// room is how many records may wait.
const room = 1024

// New returns a logger that writes where to does. end writes what waits, for as long as
// it is given; what is logged after it is dropped. A logger that discards needs neither.
func New(to *slog.Logger) (log *slog.Logger, end func(time.Duration)) {
	if to == nil || to.Handler() == slog.DiscardHandler {
		return slog.New(slog.DiscardHandler), func(time.Duration) {}
	}
	q := &queue{records: make(chan record, room), stop: make(chan struct{}), done: make(chan struct{})}
	go q.write()
	return slog.New(handler{q, to.Handler()}), q.end
}

type record struct {
	to slog.Handler
	r  slog.Record
}

type queue struct {
	records chan record
	dropped atomic.Int64
	once    sync.Once
	stop    chan struct{}
	done    chan struct{}
}

// put never waits.
func (q *queue) put(r record) {
	select {
	case q.records <- r:
	default:
		q.dropped.Add(1)
	}
}

func (q *queue) write() {
	defer close(q.done)
	for {
		select {
		case r := <-q.records:
			q.pass(r)
		case <-q.stop:
			for {
				select {
				case r := <-q.records:
					q.pass(r)
				default:
					return
				}
			}
		}
	}
}

func (q *queue) pass(r record) {
	if n := q.dropped.Swap(0); n > 0 {
		lost := slog.NewRecord(time.Now(), slog.LevelWarn, "log records were dropped: the log is too slow", 0)
		lost.AddAttrs(slog.Int64("dropped", n))
		r.to.Handle(context.Background(), lost)
	}
	r.to.Handle(context.Background(), r.r)
}

// end waits for the writer, but not for one that is stuck.
func (q *queue) end(patience time.Duration) {
	q.once.Do(func() { close(q.stop) })
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-q.done:
	case <-t.C:
	}
}

// handler queues what another one is to handle.
type handler struct {
	q  *queue
	to slog.Handler
}

func (h handler) Enabled(ctx context.Context, level slog.Level) bool { return h.to.Enabled(ctx, level) }

func (h handler) Handle(_ context.Context, r slog.Record) error {
	h.q.put(record{h.to, r.Clone()})
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.q, h.to.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.q, h.to.WithGroup(name)} }
