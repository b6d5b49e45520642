package spool

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is a pipe that nobody reads until it is let go.
type stuck struct {
	free  chan struct{}
	wrote bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.free
	return s.wrote.Write(p)
}

func TestABlockedLogHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{free: make(chan struct{})}
		log, end := New(slog.New(slog.NewTextHandler(out, nil)))
		log = log.With("who", "we")
		for i := range 3 * room {
			log.Info("line", "n", i) // a hang here is a deadlock of the bubble
		}
		end(time.Second) // gives up
		close(out.free)
		synctest.Wait()
		text := out.wrote.String()
		if got := strings.Count(text, "msg=line"); got < room || got > room+2 {
			t.Errorf("%d lines were written, want what fits the queue", got)
		}
		if !strings.Contains(text, "who=we") || !strings.Contains(text, "dropped=") {
			t.Errorf("attributes or the number of dropped lines are missing:\n%.300s", text)
		}
	})
}

func TestTheLogIsWrittenToItsEndInOrder(t *testing.T) {
	var out bytes.Buffer
	log, end := New(slog.New(slog.NewTextHandler(&out, nil)))
	for range 100 {
		log.Info("a")
		log.WithGroup("g").Info("b", "k", "v")
	}
	end(time.Minute)
	log.Info("after")
	if got := strings.Count(out.String(), "msg=a"); got != 100 {
		t.Errorf("%d of 100 lines were written", got)
	}
	if !strings.Contains(out.String(), "g.k=v") || strings.Contains(out.String(), "after") {
		t.Errorf("got %.300s", out.String())
	}
}

func TestADiscardedLogNeedsNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // whose end waits for goroutines
		for _, to := range []*slog.Logger{nil, slog.New(slog.DiscardHandler)} {
			log, _ := New(to)
			log.Error("nobody hears this")
		}
	})
}
