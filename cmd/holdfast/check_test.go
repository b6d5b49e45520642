package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/health"
)

// A line for each change, as it happens, and the code of a signal at the end.
func TestMonitorTellsOfChanges(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	cmd := exec.Command("holdfast", "monitor", "--json", "--interval", "20ms", "--timeout", "10s", addr)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(out)
	wantChange := func(healthy bool) {
		t.Helper()
		var line monitorLine
		if !lines.Scan() {
			t.Fatal("the monitor has ended")
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Schema != "holdfast/monitor/v1" || line.Healthy != healthy || line.Service != "tcp://"+addr || (line.Error == "") != healthy {
			t.Errorf("told %s, want healthy %t", lines.Bytes(), healthy)
		}
	}
	wantChange(true)
	ln.Close()
	wantChange(false)
	if ln, err = net.Listen("tcp", addr); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	wantChange(true)
	cmd.Process.Signal(os.Interrupt)
	if lines.Scan() {
		t.Errorf("told %s, and nothing had changed", lines.Bytes())
	}
	if got := exitCode(cmd.Wait()); got != exitSignal {
		t.Errorf("exit %d, want %d", got, exitSignal)
	}
}

func TestMonitorTable(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	now := time.Now()
	found := map[string]health.Result{
		"a": {Healthy: true, Layer: "answer", Response: 3 * time.Millisecond, Checked: now, Expires: now.Add(50 * time.Hour), Addrs: 1, Up: 1},
		"b": {Healthy: true, Layer: "connect", Addrs: 3, Up: 2},
		"c": {Layer: "answer", Err: fmt.Errorf("health: not\nit"), Addrs: 1},
	}
	want := []string{
		"Holdfast monitor  4 services, 2 up, 1 down",
		"",
		"service    response  certificate",
		"c                 –            –  down  answer  other: not, it",
		"a           3.00 ms       2 days  up  answer",
		"b                 –            –  up  connect  2/3 addresses",
	}
	if got := monitorLines(found, names, false, 24); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := monitorLines(found, names, false, 5); len(got) != 5 || got[4] != "… and 2 more" {
		t.Errorf("in 5 lines %q", got)
	}
}

// Changes that nobody can hear of end it.
func TestMonitorEndsWithItsOutput(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, form := range []string{"--json=false", "--json"} {
		var errs strings.Builder
		cmd := exec.Command("holdfast", "monitor", form, "127.0.0.1:1")
		cmd.Stdout, cmd.Stderr = full, &errs
		if code := exitCode(cmd.Run()); code != exitFailed || !strings.Contains(errs.String(), "no space left") {
			t.Errorf("%s: exit %d: %s", form, code, &errs)
		}
	}
}
