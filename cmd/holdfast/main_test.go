package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The test binary is the program too: under the name holdfast it runs main, so
// that tests start real processes, and the demo its servers.
func TestMain(m *testing.M) {
	os.Setenv("GORACE", noRaceSleep)
	testscript.Main(m, map[string]func(){"holdfast": main})
}

// Under the race detector every process would sleep a second at its end.
const noRaceSleep = "atexit_sleep_ms=0"

func TestScripts(t *testing.T) {
	t.Parallel()
	env := startServers(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, append(env, "GORACE="+noRaceSleep, "XDG_RUNTIME_DIR="+e.WorkDir)...)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "pings": pings},
	})
}

// exits CODE PROGRAM ARGS… runs a program that must end with an exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCode(ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("%q exited with %d, want %d", args[1:], got, want)
	}
}

// pings SOCKET waits until a line server answers there.
func pings(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: pings SOCKET")
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-tick.C {
		if err = pingOnce(ts.MkAbs(args[0])); err == nil {
			return
		}
	}
	ts.Fatalf("no answer at %s: %v", args[0], err)
}

func pingOnce(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "PING\n"); err != nil {
		return err
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "PONG\n" {
		return fmt.Errorf("read %q, %v", line, err)
	}
	return nil
}

// exitCode is that of a command that was waited for, −1 if it did not exit.
func exitCode(err error) int {
	var ee *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ee):
		return ee.ExitCode()
	}
	return -1
}

func TestClipKeepsEscapes(t *testing.T) {
	for _, row := range []struct {
		line  string
		width int
		want  string
	}{
		{"plain", 3, "pla"},
		{"▁▂▃▄", 2, "▁▂"},
		{"\x1b[31mred\x1b[0m and more", 2, "\x1b[31mre\x1b[0m"},
		{"short", 80, "short"},
	} {
		if got := clip(row.line, row.width); got != row.want {
			t.Errorf("clip(%q, %d) = %q, want %q", row.line, row.width, got, row.want)
		}
	}
}

func TestCountHasCommas(t *testing.T) {
	var got []string
	for _, n := range []int{0, 999, 1000, 1234567} {
		got = append(got, count(n))
	}
	if want := []string{"0", "999", "1,000", "1,234,567"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
