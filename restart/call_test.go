//go:build linux

package restart_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// call makes a request that must be answered.
func (s *service) call(request string) string {
	s.Helper()
	answer, err := restart.Call(s.Context(), s.Admin, []byte(request))
	if err != nil {
		s.Fatalf("call %q: %v", request, err)
	}
	return string(answer)
}

// wantRefused makes a request that must fail, and for this reason.
func (s *service) wantRefused(request []byte, why string) {
	s.Helper()
	answer, err := restart.Call(s.Context(), s.Admin, request)
	if err == nil || !strings.Contains(err.Error(), why) {
		s.Errorf("call %.20q: %.20q, %v, want %q", request, answer, err, why)
	}
}

// A call is answered by the worker, byte for byte, and knows whose it is.
func TestCall(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	if got, want := s.call("who"), fmt.Sprintf("pid %d uid %d lives 0", s.worker(), os.Getuid()); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	hostile := []byte("\x00\xff\xfe\n{\"verb\":\"stop\"}\r\n\x1b[31m")
	for _, request := range [][]byte{hostile, nil, bytes.Repeat([]byte{0xff}, 1<<20)} {
		if answer, err := restart.Call(t.Context(), s.Admin, request); err != nil || !bytes.Equal(answer, request) {
			t.Errorf("%.20q came back as %.20q, %v", request, answer, err)
		}
	}
	s.wantRefused([]byte("fail"), "no such thing")
	s.wantRefused([]byte("large"), "an answer of 2097152 bytes")
	s.wantRefused(make([]byte, 1<<20+1), "the limit is 1048576")
	c := dial(t, "unix", s.Admin)
	fmt.Fprintf(c.conn, `{"verb":"call","within":10000000000,"request":"%s"}`+"\n", strings.Repeat("AAAA", 400_000))
	if line, _ := c.in.ReadString('\n'); !strings.Contains(line, "the limit is 1048576") {
		t.Errorf("a client that does not know the limit is told %.80q", line)
	}
	for _, nonsense := range []string{`{"verb":"call","request":"!"}`, `{"verb":"call","within":"long"}`, `{"verb":"call","within":-1}`} {
		c := dial(t, "unix", s.Admin)
		fmt.Fprintln(c.conn, nonsense)
		if line, err := c.in.ReadString('\n'); err == nil && !strings.Contains(line, "no answer within") {
			t.Errorf("%s is answered %q", nonsense, line)
		}
	}
	s.call("who")
	if !s.status().Calls {
		t.Error("the status does not say that it takes calls")
	}
	s.stop()
}

// Nobody there, a service without Call or of before there was one, and another program.
func TestCallsThatNobodyTakes(t *testing.T) {
	t.Parallel()
	if _, err := restart.Call(t.Context(), filepath.Join(t.TempDir(), "s"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	without := newService(t, "tcp://"+freeAddr(t))
	without.NoCalls = true
	without.start().wantRefused(nil, "takes no calls")
	command := newService(t, "tcp://"+freeAddr(t))
	command.Command = []string{program, "plain", "timer"}
	command.CommandReady = "timer=10ms"
	command.start().wantRefused(nil, "takes no calls")
}

// A worker that hangs costs who asks their patience, and nobody else anything.
func TestCallsOfAWorkerThatHangs(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	var wg sync.WaitGroup
	for range 40 { // more than may be under way at once
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := restart.Call(ctx, s.Admin, []byte("hang")); err == nil {
				t.Error("a call that hangs was answered")
			}
		})
	}
	s.ask("PING")
	s.status()
	wg.Wait()
	s.call("stuck") // it does not heed its end, but does end
	if got := s.call("who"); got == "" {
		t.Error("it answers no more")
	}
	s.mustRestart()
	s.call("who")
	s.stop()
}

// What is called while a restart is under way holds afterwards too, whether the state was
// saved before or after; and after one that failed it has held all the time.
func TestCallsDuringARestart(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	s.State, s.Confirm = true, 500*time.Millisecond
	s.start()
	before := s.worker()
	done := make(chan restart.Result, 1)
	go func() { done <- s.restart() }()
	s.until("the successor is ready", func() bool {
		return slices.ContainsFunc(s.status().Generations, func(g restart.GenerationStatus) bool { return g.Phase == "ready" })
	})
	s.call("lives 50")
	s.call("lives 60")
	s.call("lives 50") // in this order again
	if got := s.call("who"); !strings.HasPrefix(got, fmt.Sprintf("pid %d ", before)) {
		t.Errorf("%q, and %d serves", got, before)
	}
	if r := <-done; !r.OK {
		t.Fatalf("%+v", r)
	}
	if got := s.call("who"); !strings.HasSuffix(got, " lives 50") || strings.HasPrefix(got, fmt.Sprintf("pid %d ", before)) {
		t.Errorf("%q after the restart", got)
	}

	s.behave(mode{Fail: "exit after ready"})
	go func() { done <- s.restart() }()
	s.until("a successor was started", func() bool { return len(s.status().Generations) == 2 })
	s.call("lives 70")
	if r := <-done; r.OK {
		t.Fatal("it was not to succeed")
	}
	if got := s.call("who"); !strings.HasSuffix(got, " lives 70") {
		t.Errorf("%q after the restart that failed", got)
	}

	s.behave(mode{Fail: "hang"})
	go restart.Begin(t.Context(), s.Admin)
	s.until("a successor was started", func() bool { return len(s.status().Generations) == 2 })
	for i := range 32 {
		s.call(fmt.Sprint("one ", i))
		s.call(fmt.Sprint("one ", i))
	}
	s.wantRefused([]byte("one more"), "more than 32 requests while a restart")
	s.call("one 7") // again
	s.behave(mode{})
	s.stop()
}

// Who waits for a worker that dies is told so at once.
func TestCallOfAWorkerThatDies(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	s.wantRefused([]byte("exit"), "generation 1 ended before it answered")
	s.until("it answers again", func() bool {
		_, err := restart.Call(t.Context(), s.Admin, []byte("who"))
		return err == nil
	})
	s.stop()
}
