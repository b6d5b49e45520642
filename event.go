package holdfast

import (
	"cmp"
	"context"
	"log/slog"
	"time"
)

// EventKind says what an [Event] is about.
type EventKind string

const (
	EventState   EventKind = "state"   // a node went From one State To another because of Cause
	EventDial    EventKind = "dial"    // a connect attempt to Node ended after Duration
	EventClose   EventKind = "close"   // a connection to Node was closed because of Cause
	EventRetry   EventKind = "retry"   // an operation that failed on Node will run again after Duration
	EventResolve EventKind = "resolve" // the set of nodes changed, or a source failed with Err
	EventPanic   EventKind = "panic"   // too few usable nodes: ejected ones are used too; Cause "over" ends it
	EventCheck   EventKind = "check"   // an active check of Node ended after Duration
)

// Event is one thing that happened in a Cluster. Unused fields are zero.
type Event struct {
	Kind     EventKind
	Time     time.Time
	Node     *Node
	From, To State
	Cause    string
	Attempt  int
	Duration time.Duration
	Err      error
}

// events is the queue between the lock, under which things happen, and Observe
// and Log, which must not be called there. Whoever finds it idle delivers for
// all, so events keep their order and are never delivered twice at once.
type events struct {
	queue      []Event
	delivering bool
	dropped    uint64
}

const maxEvents = 4096

// emitLocked queues an event; flush delivers it once the lock is gone.
func (c *Cluster) emitLocked(e Event) {
	if c.unseen {
		return
	}
	if len(c.events.queue) >= maxEvents {
		c.events.dropped++
		return
	}
	e.Time = time.Now()
	c.events.queue = append(c.events.queue, e)
}

func (c *Cluster) emit(e Event) {
	c.mu.Lock()
	c.emitLocked(e)
	c.mu.Unlock()
	c.flush()
}

// flush delivers what is queued. Call it after every unlock that may follow an
// emitLocked.
func (c *Cluster) flush() {
	c.mu.Lock()
	if c.events.delivering {
		c.mu.Unlock()
		return
	}
	c.events.delivering = true
	for len(c.events.queue) > 0 {
		batch := c.events.queue
		c.events.queue = nil
		c.mu.Unlock()
		for _, e := range batch {
			c.deliver(e)
		}
		c.mu.Lock()
	}
	c.events.delivering = false
	c.mu.Unlock()
}

func (c *Cluster) deliver(e Event) {
	c.log(e)
	if c.cfg.Observe != nil {
		c.cfg.Observe(e)
	}
}

// log writes an event with the keys endpoint (as configured), addr (resolved),
// attempt, duration, class and err. Texts that came from outside are escaped by
// the handler and cut here.
func (c *Cluster) log(e Event) {
	level := e.level()
	if !c.cfg.Log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 8)
	if e.Node != nil {
		attrs = append(attrs, slog.String("endpoint", cmp.Or(e.Node.name, e.Node.Endpoint().String())), slog.String("addr", e.Node.addr))
	}
	if e.Kind == EventState {
		attrs = append(attrs, slog.String("from", e.From.String()), slog.String("to", e.To.String()))
	}
	if e.Cause != "" {
		attrs = append(attrs, slog.String("cause", clip(e.Cause)))
	}
	if e.Attempt > 0 {
		attrs = append(attrs, slog.Int("attempt", e.Attempt))
	}
	if e.Duration > 0 {
		attrs = append(attrs, slog.Duration("duration", e.Duration))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("class", c.cfg.Retry.Classify(e.Err).String()), slog.String("err", clip(e.Err.Error())))
	}
	c.cfg.Log.LogAttrs(context.Background(), level, "holdfast "+string(e.Kind), attrs...)
}

func (e Event) level() slog.Level {
	switch {
	case e.Kind == EventCheck, e.Kind == EventClose:
		return slog.LevelDebug
	case e.Err != nil, e.Kind == EventRetry, e.Kind == EventPanic:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// clip bounds a text that a peer may have written.
func clip(s string) string {
	const limit = 512
	if len(s) <= limit {
		return s
	}
	return s[:limit] + "…"
}
