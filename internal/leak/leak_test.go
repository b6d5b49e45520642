package leak

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fake is the test that is being checked: it keeps its cleanups until end.
type fake struct {
	testing.TB // nil: what is not faked below must not be called
	cleanups   []func()
	failed     bool
	said       string
}

func (f *fake) Helper()          {}
func (f *fake) Failed() bool     { return f.failed }
func (f *fake) Cleanup(g func()) { f.cleanups = append(f.cleanups, g) }

func (f *fake) Errorf(format string, args ...any) {
	f.failed = true
	f.said += fmt.Sprintf(format, args...)
}

func (f *fake) end() {
	for len(f.cleanups) > 0 {
		last := len(f.cleanups) - 1
		g := f.cleanups[last]
		f.cleanups = f.cleanups[:last]
		g()
	}
}

// run checks a test with this body, and returns what the check said.
func run(patience time.Duration, body func(t testing.TB)) string {
	f := &fake{}
	check(f, patience)
	body(f)
	f.end()
	return f.said
}

const (
	little = 50 * time.Millisecond // for tests that leak
	plenty = patience              // for tests that do not
)

func waitForEver(c chan struct{}) { <-c }

func TestLeakedGoroutineIsCaught(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	said := run(little, func(testing.TB) { go waitForEver(release) })
	if !strings.Contains(said, "waitForEver") || !strings.Contains(said, "created by") {
		t.Errorf("the report does not show the goroutine's stack: %q", said)
	}
	if strings.Contains(said, "\nfile ") || strings.Contains(said, "testing.(*T).Run") {
		t.Errorf("the report shows what is no leak: %q", said)
	}
}

func TestLeakedFileIsCaught(t *testing.T) {
	needProc(t)
	var left io.Closer
	listen := func() io.Closer {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	open := func() io.Closer {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	pipe := func() io.Closer {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		return r
	}
	for target, leak := range map[string]func() io.Closer{
		"-> socket:[": listen, "-> /dev/null": open, "-> pipe:[": pipe,
	} {
		said := run(little, func(testing.TB) { left = leak() })
		if !strings.Contains(said, target) || strings.Contains(said, "goroutine") {
			t.Errorf("the report of a file %s says %q", target, said)
		}
		left.Close()
	}
}

// A socket without an owner is closed by a collection, some day. To wait for that
// would hide the leak.
func TestForgottenSocketIsCaught(t *testing.T) {
	needProc(t)
	defer runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	said := run(little, func(t testing.TB) {
		if _, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Errorf("%v", err)
		}
	})
	if !strings.Contains(said, "-> socket:[") {
		t.Errorf("the report says %q", said)
	}
}

// A socket on its way to another process has two files for a while.
func TestDuplicateFileIsCaught(t *testing.T) {
	needProc(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var dup *os.File
	said := run(little, func(testing.TB) {
		if dup, err = ln.(*net.TCPListener).File(); err != nil {
			t.Fatal(err)
		}
	})
	if !strings.Contains(said, "-> socket:[") {
		t.Errorf("the report says %q", said)
	}
	dup.Close()
}

func TestQuietWhenNothingIsLeft(t *testing.T) {
	said := run(plenty, func(t testing.TB) {
		a, b := socketPair(t)
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(io.Discard, b) }()
		a.Close()
		<-done
		b.Close()
	})
	if said != "" {
		t.Errorf("the check said %q", said)
	}
}

// What is about to end gets the time to, and cleanups that were registered after
// the check run before it looks.
func TestSlowEndIsNoLeak(t *testing.T) {
	said := run(plenty, func(t testing.TB) {
		release := make(chan struct{})
		go waitForEver(release)
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Errorf("%v", err)
		}
		t.Cleanup(func() {
			time.AfterFunc(20*time.Millisecond, func() { f.Close(); close(release) })
		})
	})
	if said != "" {
		t.Errorf("the check said %q", said)
	}
}

// What was there before is not this test's, and may end while it runs.
func TestOlderThingsAreIgnored(t *testing.T) {
	release := make(chan struct{})
	go waitForEver(release)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	said := run(plenty, func(testing.TB) { f.Close() })
	said += run(plenty, func(testing.TB) {})
	close(release)
	if said != "" {
		t.Errorf("the check said %q", said)
	}
}

// The runtime's own: what waits for signals, and the pipes that io.Copy between
// sockets keeps for the next one.
func TestServicesOfTheRuntimeAreIgnored(t *testing.T) {
	said := run(plenty, func(t testing.TB) {
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGHUP)
		defer signal.Stop(c)

		a, b := socketPair(t)
		x, y := socketPair(t)
		go func() { a.Write([]byte("through a pipe")); a.Close() }()
		io.Copy(x, b)
		for _, conn := range []net.Conn{b, x, y} {
			conn.Close()
		}
	})
	if said != "" {
		t.Errorf("the check said %q", said)
	}
}

// A subtest that waits for its turn is package testing's.
func TestWaitingSubtestsAreIgnored(t *testing.T) {
	said := run(little, func(testing.TB) { t.Run("waits", func(t *testing.T) { t.Parallel() }) })
	if said != "" {
		t.Errorf("the check said %q", said)
	}
}

func TestFailedTestIsLeftAlone(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	said := run(plenty, func(t testing.TB) {
		go waitForEver(release)
		t.Errorf("its own reason")
	})
	if said != "its own reason" {
		t.Errorf("the check added to it: %q", said)
	}
}

func TestStacksOfAnySize(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	before := look()
	const many = 2000
	for range many {
		go waitForEver(release)
	}
	if n := len(look().since(before).goroutines); n != many {
		t.Errorf("of %d goroutines %d were seen", many, n)
	}
}

func needProc(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there is no /proc/self/fd")
	}
}

// socketPair returns two ends of a TCP connection.
func socketPair(t testing.TB) (a, b net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Errorf("%v", err)
		return nil, nil
	}
	defer ln.Close()
	if a, err = net.Dial("tcp", ln.Addr().String()); err == nil {
		b, err = ln.Accept()
	}
	if err != nil {
		t.Errorf("%v", err)
	}
	return a, b
}

func ExampleCheck() {
	t := &fake{} // a *testing.T
	check(t, little)
	stuck := make(chan struct{})
	go waitForEver(stuck)
	t.end()
	fmt.Println(strings.Contains(t.said, "leak.waitForEver"))
	close(stuck)
	// Output: true
}
