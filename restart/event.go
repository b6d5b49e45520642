package restart

import (
	"log/slog"
	"time"
)

// Event is one step of a succession, as the supervisor sees it.
type Event struct {
	Kind       EventKind
	Generation int           // of the worker it is about
	PID        int           // of that worker
	Err        error         // why, of RolledBack, Crashed, Cut, and Stopping after a first worker that failed
	Duration   time.Duration // since that worker was started
}

// EventKind is what happened.
type EventKind string

const (
	Spawned    EventKind = "spawned"     // a worker was started
	Ready      EventKind = "ready"       // it serves; its predecessor has stopped accepting
	Committed  EventKind = "committed"   // it is the generation that serves
	RolledBack EventKind = "rolled back" // it failed, and its predecessor serves on
	Crashed    EventKind = "crashed"     // the generation that serves died; it will be respawned
	Cut        EventKind = "cut"         // it did not leave in time, and was killed
	Exited     EventKind = "exited"      // it drained and left
	Stopping   EventKind = "stopping"    // the whole service ends
)

func (e Event) level() slog.Level {
	switch e.Kind {
	case RolledBack, Crashed:
		return slog.LevelError
	case Stopping:
		if e.Err != nil {
			return slog.LevelError
		}
	case Cut:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

func (e Event) attrs() []slog.Attr {
	attrs := []slog.Attr{slog.Int("generation", e.Generation), slog.Int("pid", e.PID)}
	if e.Duration > 0 {
		attrs = append(attrs, slog.Duration("age", e.Duration))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("err", clip(e.Err.Error())))
	}
	return attrs
}

// clip bounds what others wrote.
func clip(s string) string {
	const most = 1024
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
