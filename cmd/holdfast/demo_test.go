package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os/exec"
	"testing"
	"time"
)

// The promise of the whole: servers die, callers do not notice.
func TestDemoHidesEveryFault(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("holdfast", "demo", "--json", "--duration", "6s", "--seed", "7")
	var progress bytes.Buffer
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if code := exitCode(err); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out, &progress)
	}
	var r report
	in := json.NewDecoder(bytes.NewReader(out))
	in.DisallowUnknownFields()
	if err := in.Decode(&r); err != nil || in.More() {
		t.Fatalf("want one JSON object, got %v: %s", err, out)
	}
	if r.Schema != "holdfast/demo/v1" || !r.OK || r.Seed != 7 || r.Interrupted {
		t.Errorf("got %+v", r)
	}
	if r.ClientErrors != 0 || r.WrongReplies != 0 || r.Requests == 0 || r.HiddenFailures == 0 {
		t.Errorf("%d client errors, %d wrong replies, %d requests, %d hidden failures",
			r.ClientErrors, r.WrongReplies, r.Requests, r.HiddenFailures)
	}
	if r.Restarts == 0 || r.RolledBack == 0 {
		t.Errorf("%d restarts were committed and %d rolled back", r.Restarts, r.RolledBack)
	}
	if r.ProxyRestarts == 0 || r.HeldExchanges == 0 || r.HeldLost != 0 {
		t.Errorf("the proxy was restarted %d times, %d held connections of %d were lost after %d exchanges",
			r.ProxyRestarts, r.HeldLost, r.HeldConns, r.HeldExchanges)
	}
	slowest := 0.0
	for _, ph := range r.Phases {
		slowest = max(slowest, ph.Latency.Max)
		if slowest >= asMillis(perTry) {
			// With this seed that is a server that was frozen, at the end, or a busy machine.
			// There tries run out of time, which is hidden too, and all callers may be held up.
			break
		}
		if (ph.Fault == restarted || ph.Fault == failed) && ph.HiddenFailures > 0 {
			t.Errorf("%d failures had to be hidden in %q", ph.HiddenFailures, ph.Name)
		}
		if ph.Requests == 0 {
			t.Errorf("nobody asked for anything in %q", ph.Name)
		}
	}
	if t.Failed() {
		t.Logf("progress:\n%s", &progress)
	}
}

// The demo can tell: a server that mixes up two replies makes it fail.
func TestDemoFailsOnAWrongReply(t *testing.T) {
	addr := serveAt(t, nil, func(conn net.Conn) {
		for {
			message, err := readMessage(conn)
			if string(message) == "mine" {
				message = []byte("yours")
			}
			if err != nil || writeMessage(conn, message) != nil {
				return
			}
		}
	})
	d := &demo{story: newScenario(1, shortestDemo), begun: time.Now(), middle: &middle{}}
	servers := [len(serverNames)]*member{{name: "a", addr: addr}, {name: "b", addr: addr}, {name: "c", addr: addr}}
	var err error
	if d.load, err = newLoad(servers, len(d.story), newJournal(nil, servers), false); err != nil {
		t.Fatal(err)
	}
	defer d.load.cluster.Close()
	d.load.enter(0)
	d.load.request([]byte("mine"))
	r := d.report()
	if r.Requests != 1 || r.WrongReplies != 1 || r.ClientErrors != 0 {
		t.Errorf("%d requests, %d wrong replies, %d client errors", r.Requests, r.WrongReplies, r.ClientErrors)
	}
	var f *failure
	if err := r.verdict(); !errors.As(err, &f) || f.code != exitFailed {
		t.Errorf("the verdict is %v", err)
	}
}
