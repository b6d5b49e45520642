//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// benchUDP runs a short bench of a server that answers as it does.
func benchUDP(t *testing.T, answer func(m []byte) [][]byte, more ...string) (r udpReport, errs string, code int) {
	t.Helper()
	return benchUDPAt(t, packetsAt(t, answer), more...)
}

func benchUDPAt(t *testing.T, addr string, more ...string) (r udpReport, errs string, code int) {
	t.Helper()
	args := append([]string{"bench", "udp", "--json", "-d", "100ms", "-c", "3", "-q", "4"}, more...)
	cmd := exec.Command("holdfast", append(args, addr)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	code = exitCode(cmd.Run())
	decodeOne(t, stdout.String(), &r)
	if r.Sent != r.Answered+r.Lost {
		t.Errorf("sent is not answered and lost: %+v", r)
	}
	return r, stderr.String(), code
}

func echoed(m []byte) [][]byte { return [][]byte{m} }

func TestBenchUDP(t *testing.T) {
	t.Parallel()
	for _, more := range [][]string{nil, {"-z", "16"}, {"-z", "1201", "-q", "1"}, {"-z", "9000", "-c", "1"}} {
		r, errs, code := benchUDP(t, echoed, append(more, "--timeout", "30s")...)
		ordered := 0 < r.P50 && r.P50 <= r.P90 && r.P90 <= r.P99 && r.P99 <= r.P999 && r.P999 <= r.Max*1.02
		if code != 0 || errs != "" || r.Schema != "holdfast/bench-udp/v1" || r.Answered == 0 || r.Lost+r.Late+r.Wrong+r.Errors > 0 || r.Rate == 0 || !ordered {
			t.Errorf("%q: exit %d: %s%+v", more, code, errs, r)
		}
	}
}

// What the server drops is lost, and no more than that unless it was late.
func TestBenchUDPCountsLosses(t *testing.T) {
	t.Parallel()
	var n, dropped atomic.Uint64
	r, _, code := benchUDP(t, func(m []byte) [][]byte {
		if n.Add(1)%10 == 0 {
			dropped.Add(1)
			return nil
		}
		return echoed(m)
	}, "--timeout", "150ms")
	if d := dropped.Load(); code != 0 || d == 0 || r.Lost < d || r.Answered == 0 || r.Wrong > 0 {
		t.Errorf("dropped %d, exit %d: %+v", d, code, r)
	}
}

// Every answer is looked at: which it is of, and all of its bytes.
func TestBenchUDPFindsWrongAnswers(t *testing.T) {
	t.Parallel()
	var kept []byte
	for name, spoil := range map[string]func(m []byte) []byte{
		"last byte":    func(m []byte) []byte { m[len(m)-1]++; return m },
		"first byte":   func(m []byte) []byte { m[0]++; return m },
		"other number": func(m []byte) []byte { m[7]++; return m },
		"too short":    func(m []byte) []byte { return m[:len(m)-1] },
		"too long":     func(m []byte) []byte { return append(m, 0) },
		"empty":        func([]byte) []byte { return nil },
		"another's": func(m []byte) []byte { // the first socket's first: another socket has it too, with other bytes
			if kept == nil {
				kept = m
			}
			return kept
		},
	} {
		i := 0
		r, _, code := benchUDP(t, func(m []byte) [][]byte {
			if i++; i%5 == 1 {
				m = spoil(m)
			}
			return echoed(m)
		}, "--timeout", "100ms")
		if code != exitFailed || r.Wrong == 0 || r.Answered == 0 {
			t.Errorf("%s: exit %d: %+v", name, code, r)
		}
	}
}

// An answer again is not a wrong one, and is counted once.
func TestBenchUDPCountsCopies(t *testing.T) {
	t.Parallel()
	r, _, code := benchUDP(t, func(m []byte) [][]byte { return [][]byte{m, m} }, "--timeout", "30s")
	if code != 0 || r.Late == 0 || r.Lost+r.Wrong > 0 {
		t.Errorf("exit %d: %+v", code, r)
	}
}

// Nobody there, or nobody who answers, is a failure with a hint. A refusal does not
// have the bench spin.
func TestBenchUDPWithoutAnswers(t *testing.T) {
	t.Parallel()
	r, errs, code := benchUDPAt(t, "127.0.0.1:1")
	if code != exitFailed || r.Errors == 0 || !strings.Contains(r.Error, "refused") || r.Sent > 100*12 || !strings.Contains(errs, "hint: ") {
		t.Errorf("refused: exit %d: %s%+v", code, errs, r)
	}
	r, errs, code = benchUDP(t, func([]byte) [][]byte { return nil }, "--timeout", "1s")
	if code != exitFailed || r.Lost != 12 || r.Sent != 12 || !strings.Contains(errs, "nothing was answered") {
		t.Errorf("silent: exit %d: %s%+v", code, errs, r)
	}
}

// A signal ends it early, with the report.
func TestBenchUDPEndsBySignal(t *testing.T) {
	t.Parallel()
	asked := make(chan bool, 1)
	addr := packetsAt(t, func(m []byte) [][]byte {
		select {
		case asked <- true:
		default:
		}
		return echoed(m)
	})
	cmd := exec.Command("holdfast", "bench", "udp", "-d", "1h", addr)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	cmd.Process.Signal(os.Interrupt)
	kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if code := exitCode(cmd.Wait()); code != exitSignal || !strings.Contains(out.String(), "answered/s") {
		t.Errorf("exit %d: %s", code, &out)
	}
}
