//go:build unix

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// soak is the long form of the tests that have one.
func soak() bool { return os.Getenv("HOLDFAST_SOAK") != "" }

// The promise of succession: clients that connect for each request, clients that keep
// their connection and clients that are silent all the while lose nothing.
func TestNothingIsLostByRestarts(t *testing.T) {
	restarts, held := 10, 500
	if soak() {
		restarts, held = 60, 4500 // on each of the two sockets
	}
	addr := "tcp://" + unusedAddr(t)
	s := startEcho(t, "-l", addr, "--max-conns", "15000", "--idle", "1h")
	for _, test := range []struct{ name, network, address string }{
		{"TCP", "tcp", addr[len("tcp://"):]},
		{"Unix", "unix", s.sock()},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := restartBench{
				command:  "holdfast restart --wait --admin " + filepath.Join(s.dir, "holdfast", "echo.sock"),
				restarts: restarts, every: 20 * time.Millisecond, settle: 100 * time.Millisecond,
				fresh: 4, kept: 8, held: held, protocol: "ping", timeout: patience,
				network: test.network, address: test.address,
			}
			r, err := b.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Lost != 0 || r.Failed != 0 || r.Restarts != restarts {
				t.Errorf("%d restarts, %d failed; lost %d:\n%s", r.Restarts, r.Failed, r.Lost, r.text())
			}
			for _, l := range r.Loads {
				if l.Requests == 0 {
					t.Errorf("%s clients asked for nothing", l.Name)
				}
			}
		})
	}
}

func unusedAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// A log that was moved away is left alone once the service was told: by the
// supervisor, by the generation that serves, and by those to come.
func TestReopenAfterTheLogMoved(t *testing.T) {
	t.Parallel()
	s := newService(t)
	log, moved := filepath.Join(s.dir, "log"), filepath.Join(s.dir, "log.1")
	s.launch("echo", "-l", "unix:"+s.sock(), "--confirm", "50ms", "--log", log)
	awaitText(t, log, "restart: committed")
	if err := os.Rename(log, moved); err != nil {
		t.Fatal(err)
	}
	for _, verb := range [][]string{{"reopen", "echo"}, {"restart", "--wait", "echo"}} {
		if _, errs, code := s.ask(verb...); code != 0 {
			t.Fatalf("%q: exit %d: %s", verb, code, errs)
		}
	}
	awaitText(t, log, "generation=2") // the supervisor's
	awaitText(t, log, "handed over")  // the first worker's
	awaitText(t, log, "took over")    // the second's
	if text, err := os.ReadFile(moved); err != nil || strings.Contains(string(text), "generation=2") {
		t.Errorf("the file that was moved away has grown (%v):\n%s", err, text)
	}
}

func awaitText(t *testing.T, path, want string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), want) {
			return
		}
	}
	text, _ := os.ReadFile(path)
	t.Fatalf("%s has no %q:\n%s", path, want, text)
}
