package integrations

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/serve"
)

// nameServer answers every query by 192.0.2.NUMBER, or none if that is 0. Names that
// begin with "big" have more than fits, which it marks, "huge" is more than the forwarder
// takes, and before it answers "forged" it answers something else, twice.
type nameServer struct {
	addr  string
	asked atomic.Int64
	srv   serve.Packets
}

func startNameServer(t *testing.T, number byte) *nameServer {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{addr: pc.LocalAddr().String()}
	s.srv.Limits.Amplification = -1
	s.srv.Handler = func(_ context.Context, p *serve.Packet) error {
		s.asked.Add(1)
		if number == 0 {
			return nil
		}
		if bytes.HasPrefix(p.Data[13:], []byte("forged")) {
			p.Reply(forgery(p.Data, 1))
			p.Reply(forgery(p.Data, 13))
		}
		return p.Reply(dnsReply(p.Data, number))
	}
	go s.srv.ServePacket(pc)
	t.Cleanup(s.stop)
	return s
}

func (s *nameServer) stop() { s.srv.Close() }

// dnsReply is a reply of one address record. A query that is not as dig writes it panics,
// which is no reply.
func dnsReply(query []byte, number byte) []byte {
	end := 12 + bytes.IndexByte(query[12:], 0) + 5
	m := bytes.Clone(query[:end])
	m[2], m[3] = 0x81, 0x80
	binary.BigEndian.PutUint16(m[6:], 1)
	clear(m[8:12])
	m = append(m, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, number)
	switch {
	case bytes.HasPrefix(query[13:], []byte("big")):
		m[2] |= 2
	case bytes.HasPrefix(query[13:], []byte("huge")):
		m = append(m, make([]byte, 5000)...)
	}
	return m
}

// forgery is a reply to something else, by one byte.
func forgery(query []byte, at int) []byte {
	m := dnsReply(query, 66)
	m[at] ^= 1
	return m
}

// refusingAddr is one that nobody is at.
func refusingAddr(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return pc.LocalAddr().String()
}

// forwarder is a running dnsforward, asked with dig.
type forwarder struct{ dig, port string }

func startForwarder(t *testing.T, limit time.Duration, upstreams ...string) forwarder {
	t.Helper()
	f := forwarder{dig: need(t, "dig")}
	addr := refusingAddr(t)
	_, f.port, _ = net.SplitHostPort(addr)
	cmd := exec.Command(program(t, "dnsforward", "dnsforward"), "-l", addr, "-u", strings.Join(upstreams, ","), "-t", limit.String())
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || said.Len() > 0 {
			t.Errorf("dnsforward ended with %v: %s", err, &said)
		}
	})
	return f
}

// ask returns what dig prints. It asks again while the forwarder has yet to start.
func (f forwarder) ask(name string, args ...string) string {
	for end := time.Now().Add(20 * time.Second); ; {
		out, err := f.once(name, args...)
		if err == nil || !strings.Contains(out, "connection refused") || time.Now().After(end) {
			return out
		}
	}
}

// once asks by one datagram, which nobody sends again.
func (f forwarder) once(name string, args ...string) (string, error) {
	args = append([]string{"@127.0.0.1", "-p", f.port, "+notcp", "+ignore", "+tries=1", "+timeout=10"}, append(args, name)...)
	out, err := exec.Command(f.dig, args...).CombinedOutput()
	return string(out), err
}

// has reports what an answer lacks: dig checks the number itself, and the question.
func has(t *testing.T, answer string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(answer, want) {
			t.Errorf("the answer has no %q: %s", want, answer)
		}
	}
	if strings.Contains(answer, "WARNING") {
		t.Errorf("dig warns: %s", answer)
	}
}

// One upstream is there, and one refuses: dig does not notice.
func TestForwarderHidesARefusingUpstream(t *testing.T) {
	t.Parallel()
	f := startForwarder(t, 9*time.Second, refusingAddr(t), startNameServer(t, 7).addr)
	for range 4 {
		has(t, f.ask("name.example"), "status: NOERROR", "192.0.2.7")
	}
}

// What a silent upstream was asked goes to the other.
func TestForwarderHidesASilentUpstream(t *testing.T) {
	t.Parallel()
	silent := startNameServer(t, 0)
	f := startForwarder(t, 9*time.Second, silent.addr, startNameServer(t, 7).addr)
	for i := 0; silent.asked.Load() == 0; i++ {
		if i == 50 {
			t.Fatalf("the silent upstream was not asked in %d queries", i)
		}
		has(t, f.ask("name.example"), "status: NOERROR", "192.0.2.7")
	}
}

func TestForwarderSpeaksForUpstreamsThatAreDown(t *testing.T) {
	t.Parallel()
	for _, down := range []string{refusingAddr(t), startNameServer(t, 0).addr} {
		f := startForwarder(t, 500*time.Millisecond, down, refusingAddr(t))
		start := time.Now()
		has(t, f.ask("name.example"), "status: SERVFAIL", "name.example.", "QUERY: 1, ANSWER: 0, AUTHORITY: 0, ADDITIONAL: 0")
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("it took %v", took)
		}
	}
}

// A reply that is marked as truncated comes as it is; one that the forwarder has no room
// for becomes one.
func TestForwarderPassesTruncationOn(t *testing.T) {
	t.Parallel()
	f := startForwarder(t, 9*time.Second, startNameServer(t, 7).addr)
	has(t, f.ask("big.example"), "flags: qr tc rd ra;", "192.0.2.7")
	has(t, f.ask("huge.example"), "status: NOERROR", "flags: qr tc rd ra;", "ANSWER: 0")
}

func TestForwarderMatchesReplies(t *testing.T) {
	t.Parallel()
	f := startForwarder(t, 9*time.Second, startNameServer(t, 7).addr)
	has(t, f.ask("forged.example", "+qid=4711"), "id: 4711", "flags: qr rd ra;", "192.0.2.7")
}

// Fifty at once, all with the same number, share two upstreams; each gets its own reply.
func TestForwarderServesManyAtOnce(t *testing.T) {
	t.Parallel()
	a, b := startNameServer(t, 7), startNameServer(t, 8)
	f := startForwarder(t, 9*time.Second, a.addr, b.addr)
	var digs sync.WaitGroup
	for i := range 50 {
		digs.Go(func() {
			name := fmt.Sprintf("name%d.example", i)
			has(t, f.ask(name, "+qid=4711"), "status: NOERROR", "id: 4711", name+".", "192.0.2.")
		})
	}
	digs.Wait()
	if a.asked.Load() == 0 || b.asked.Load() == 0 {
		t.Errorf("the upstreams were asked %d and %d times", a.asked.Load(), b.asked.Load())
	}
}
