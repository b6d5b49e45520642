package main

import (
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Each line is one datagram as it is, without the newline, and each datagram is printed as
// it is, also those that come after the end of the input.
func TestDialDatagrams(t *testing.T) {
	t.Parallel()
	var (
		mu   sync.Mutex
		sent []string
		got  = make(chan bool, 8)
	)
	addr := packetsAt(t, func(m []byte) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, string(m))
		got <- true
		if string(m) == "last" {
			return [][]byte{[]byte("\x00\xff\nsecond line\n"), nil, []byte("bye")}
		}
		return nil
	})
	n := startDial(t, "--linger", "1m", "udp://"+addr)
	for _, line := range []string{"first\r\n", "\n", "\x00\xfe\n", "last"} {
		io.WriteString(n.in, line)
		if line == "last" {
			n.in.Close()
		}
		<-got
	}
	for _, want := range []string{"\x00\xff\n", "second line\n", "\n", "bye\n"} {
		n.wantLine(t, want)
	}
	n.Process.Signal(os.Interrupt)
	n.wantExit(t, exitSignal)
	if want := []string{"first\r", "", "\x00\xfe", "last"}; !slices.Equal(sent, want) {
		t.Errorf("the server received %q, want %q", sent, want)
	}
}

func TestDialDatagramsLingers(t *testing.T) {
	t.Parallel()
	addr := packetsAt(t, func([]byte) [][]byte { return nil })
	const linger = 300 * time.Millisecond
	n := startDial(t, "--linger", linger.String(), "udp://"+addr)
	start := time.Now()
	n.in.Close()
	n.wantExit(t, 0)
	if took := time.Since(start); took < linger || took > 20*linger {
		t.Errorf("it ended %v after its input, want %v", took, linger)
	}
}

// While it waits for input it hears that the server is gone.
func TestDialDatagramsReportARefusal(t *testing.T) {
	t.Parallel()
	n := startDial(t, "udp://127.0.0.1:1")
	io.WriteString(n.in, "hello\n")
	n.wantExit(t, exitFailed)
	if !strings.Contains(n.err.String(), "refused") {
		t.Errorf("it said %q", &n.err)
	}
}

// A line without a reply goes again, to the next address.
func TestDialLinesOverDatagramsFailOver(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 8)
	first := packetsAt(t, func(m []byte) [][]byte {
		asked <- string(m)
		return nil
	})
	second := packetsAt(t, func(m []byte) [][]byte { return [][]byte{append([]byte("re: "), m...)} })
	n := startDial(t, "--line", "--idempotent", "udp://"+first+",udp://"+second)
	io.WriteString(n.in, "1\n")
	n.wantLine(t, "re: 1\n")
	n.in.Close()
	n.wantExit(t, 0)
	if got := <-asked; got != "1" || len(asked) > 0 {
		t.Errorf("the first server was asked %q and %d more times", got, len(asked))
	}
}
