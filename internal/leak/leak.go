// Package leak fails a test that leaves goroutines or files behind.
//
//	func TestServer(t *testing.T) {
//		leak.Check(t)
//		...
//	}
//
// It looks at the whole process, so a test that uses it must not run in parallel
// with others of its package. A testing/synctest bubble catches goroutines by
// itself; Check is for tests on real sockets and processes. Where there is no
// /proc/self/fd, files are not looked at.
package leak

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// patience is how long goroutines and files may take to go after the test: a
// closed connection's reader needs a moment to notice.
const patience = 5 * time.Second

// Check records what there is now, and fails the test if more is there some time
// after its end. Call it first: cleanups run last in, first out, and only those
// registered after it have run when it looks. A test that has failed otherwise is
// not looked at; what it left says nothing new.
//
// Only what came is reported, not what went: something an earlier test left may
// end at any time.
func Check(t testing.TB) {
	t.Helper()
	check(t, patience)
}

func check(t testing.TB, patience time.Duration) {
	t.Helper()
	wake()
	before := look()
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() {
			return
		}
		if left := wait(before, patience); !left.empty() {
			t.Errorf("leak: after %v the test still has\n%s", patience, left)
		}
	})
}

// wake makes the runtime open what it waits for sockets with, which it does once
// and keeps: the first look must see it.
func wake() {
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
}

// wait looks until nothing is left of what came since before, or patience ends.
func wait(before sight, patience time.Duration) sight {
	end := time.Now().Add(patience)
	pause := time.Millisecond
	for {
		left := look().since(before)
		if left.empty() || time.Now().After(end) {
			return left
		}
		if left.onlyPipes() {
			// io.Copy between sockets keeps its splice pipes in a sync.Pool, which
			// lets go of them at a collection. Not while a socket is left: that one
			// may be without an owner, and its finalizer would hide the leak.
			runtime.GC()
		}
		time.Sleep(pause)
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// sight is what there was at one moment.
type sight struct {
	goroutines map[string]string // stacks by id; the runtime never uses an id twice
	files      map[string]bool   // "7 -> socket:[4711]"
}

func look() sight { return sight{goroutines(), files()} }

// since returns what is in s and was not in before.
func (s sight) since(before sight) sight {
	maps.DeleteFunc(s.goroutines, func(id, _ string) bool { _, old := before.goroutines[id]; return old })
	maps.DeleteFunc(s.files, func(file string, _ bool) bool { return before.files[file] })
	return s
}

func (s sight) empty() bool { return len(s.goroutines)+len(s.files) == 0 }

func (s sight) onlyPipes() bool {
	for file := range s.files {
		if !strings.Contains(file, "-> pipe:[") {
			return false
		}
	}
	return len(s.files) > 0 && len(s.goroutines) == 0
}

func (s sight) String() string {
	var b strings.Builder
	for _, file := range slices.Sorted(maps.Keys(s.files)) {
		fmt.Fprintf(&b, "file %s\n", file)
	}
	for _, id := range slices.Sorted(maps.Keys(s.goroutines)) {
		fmt.Fprintf(&b, "\n%s\n", s.goroutines[id])
	}
	return b.String()
}

// goroutines returns the stack of every goroutine that a test may have started.
func goroutines() map[string]string {
	found := map[string]string{}
	for stack := range strings.SplitSeq(stacks(), "\n\n") {
		head, _, _ := strings.Cut(stack, " [") // "goroutine 18 [chan receive]:"
		if !foreign(stack) {
			found[head] = strings.TrimSpace(stack)
		}
	}
	return found
}

// stacks is runtime.Stack with as much room as it needs.
func stacks() string {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return string(buf[:n])
		}
	}
}

// foreign reports whether a goroutine belongs to the runtime, to package testing,
// or to a service of the standard library that starts once and never ends.
func foreign(stack string) bool {
	return strings.Contains(stack, "\nos/signal.loop(") ||
		strings.Contains(stack, "\ncreated by testing.") ||
		strings.Contains(stack, "\ncreated by runtime.") ||
		strings.Contains(stack, "\ncreated by runtime/")
}

// files returns the open files with their numbers: a duplicate of a file that was
// open before is a file of its own.
func files() map[string]bool {
	const dir = "/proc/self/fd"
	entries, _ := os.ReadDir(dir)
	found := map[string]bool{}
	for _, e := range entries {
		// The directory's own file is closed by now, and so skipped here.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			found[e.Name()+" -> "+target] = true
		}
	}
	return found
}
