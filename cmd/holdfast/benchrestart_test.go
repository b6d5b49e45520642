//go:build unix

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// short is a bench that is over soon.
var short = []string{"bench", "restart", "--json", "--settle", "50ms", "--every", "10ms", "--fresh", "2", "--kept", "2", "--held", "8"}

// benchService puts load on addr while a service is restarted.
func benchService(s *service, addr, command string, more ...string) (r lossReport, errs string, code int) {
	s.t.Helper()
	args := append(append(short[:len(short):len(short)], "--restart-command", command), more...)
	out, errs, code := s.ask(append(args, addr)...)
	if out != "" {
		decodeOne(s.t, out, &r)
	}
	return r, errs, code
}

func TestBenchRestartFindsNothing(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startEcho(t, "-l", "tcp://"+addr)
	r, errs, code := benchService(s, addr, "holdfast restart --wait echo", "-n", "5")
	if code != 0 || r.Schema != "holdfast/bench-restart/v1" || r.Restarts != 5 || r.Failed != 0 || r.Lost != 0 || len(r.Loads) != 3 {
		t.Fatalf("exit %d: %s%+v", code, errs, r)
	}
	for i, name := range []string{"fresh", "kept", "held"} {
		if l := r.Loads[i]; l.Name != name || l.Requests == 0 {
			t.Errorf("the load is %+v, want some requests of %q", l, name)
		}
	}
	if state := s.status("echo"); state.Restarts != 5 {
		t.Errorf("%d restarts, want 5", state.Restarts)
	}
}

// The bench can tell: a stop and a start loses what a restart does not. The server
// that the command starts holds its output open, which must not hold the bench.
func TestBenchRestartCountsLosses(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startEcho(t, "-l", "tcp://"+addr)
	t.Cleanup(func() { s.ask("stop", "echo") })
	start := "holdfast echo -l tcp://" + addr + ` & until holdfast ping -c 1 --send 'PING\n' ` + addr + "; do :; done"
	r, errs, code := benchService(s, addr, "holdfast stop echo; "+start, "-n", "1")
	if code != exitFailed || errs != "" || len(r.Loads) != 3 {
		t.Fatalf("exit %d: %s%+v", code, errs, r)
	}
	fresh, kept, held := r.Loads[0], r.Loads[1], r.Loads[2]
	if fresh.Refused == 0 || kept.Refused == 0 || held.EOF+held.Reset != 8 || r.Lost < fresh.Refused+kept.Refused+8 {
		t.Errorf("lost %d; fresh %+v, kept %+v, held %+v", r.Lost, fresh, kept, held)
	}
}

func TestBenchRestartProtocols(t *testing.T) {
	t.Parallel()
	s := newService(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	t.Cleanup(web.Close)
	lines := serveAt(t, nil, eachLine(func(line string) string { return line }))
	for _, row := range []struct {
		protocol, addr string
		want           int
	}{
		{"http", web.Listener.Addr().String(), 0},
		{"echo", lines, 0},
		{"ping", lines, exitFailed}, // PING is not what it should be answered by
	} {
		if r, errs, code := benchService(s, row.addr, "true", "-n", "1", "--protocol", row.protocol); code != row.want {
			t.Errorf("%s: exit %d, want %d: %s%+v", row.protocol, code, row.want, errs, r)
		}
	}
	if _, errs, code := benchService(s, lines, "echo no such luck; exit 3", "--protocol", "echo"); code != exitFailed || !strings.Contains(errs, "no such luck") {
		t.Errorf("a command that fails: exit %d: %s", code, errs)
	}
}

// What would measure nothing is a mistake, and not a server without a loss.
func TestBenchRestartOfNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, flags := range [][]string{{"-n", "0"}, {"-n", "-1"}, {"--fresh", "-1"}, {"--timeout", "0"}, {"--fresh", "0", "--kept", "0", "--held", "0"}} {
		args := append([]string{"bench", "restart", "--restart-command", "true", "127.0.0.1:1"}, flags...)
		if _, errs, code := s.ask(args...); code != exitUsage {
			t.Errorf("%q: exit %d: %s", flags, code, errs)
		}
	}
}
