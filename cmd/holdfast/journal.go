package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
)

// journal is what happened in the demo, line by line: what was done to the
// servers, what the Cluster made of it, what callers saw. Without a screen to show
// its end it writes every line as it comes.
type journal struct {
	start time.Time
	plain io.Writer         // nil when there is a screen
	names map[string]string // of servers, by address

	mu         sync.Mutex      // guards the rest
	lines      []string        // the last ones
	out        map[string]bool // which servers, by address, left service
	complaints int
}

const (
	journalLines  = 200 // more than any screen shows
	maxComplaints = 20
)

func newJournal(plain io.Writer, servers [len(serverNames)]*member) *journal {
	j := &journal{start: time.Now(), plain: plain, names: map[string]string{}, out: map[string]bool{}}
	for _, m := range servers {
		j.names[m.via()] = m.name
	}
	return j
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.addLocked(format, args...)
}

func (j *journal) addLocked(format string, args ...any) {
	line := fmt.Sprintf("%6.1fs  ", time.Since(j.start).Seconds()) + fmt.Sprintf(format, args...)
	if j.plain != nil {
		fmt.Fprintln(j.plain, line)
	}
	j.lines = append(j.lines, line)
	j.lines = j.lines[max(0, len(j.lines)-journalLines):]
}

// tail returns the last n lines.
func (j *journal) tail(n int) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines[max(0, len(j.lines)-n):])
}

// complain notes an error that a caller saw. There should be none, so a few tell
// all.
func (j *journal) complain(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.complaints++
	if j.complaints <= maxComplaints {
		j.addLocked("CLIENT ERROR: %s", strings.ReplaceAll(describe(err), "\n", "; "))
	}
}

// observe takes the Cluster's events. Of a node's states it notes how it left
// service and how it came back, not each attempt in between.
func (j *journal) observe(e holdfast.Event) {
	switch e.Kind {
	case holdfast.EventPanic:
		j.add("  panic mode: %s", e.Cause)
	case holdfast.EventState:
		j.mu.Lock()
		defer j.mu.Unlock()
		j.noteLocked(e)
	}
}

func (j *journal) noteLocked(e holdfast.Event) {
	addr := e.Node.Addr()
	word := ""
	switch {
	case e.To == holdfast.StateEjected, e.To == holdfast.StateBackoff && !j.out[addr]:
		word, j.out[addr] = e.To.String(), true
	case e.From == holdfast.StateEjected && e.To != holdfast.StateBackoff, e.To == holdfast.StateReady && j.out[addr]:
		word, j.out[addr] = "readmitted", false
	default:
		return
	}
	j.addLocked("  %s %s: %s", j.names[addr], word, e.Cause)
}
