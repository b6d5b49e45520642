package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startPacketProxy starts a proxy of datagrams, and returns where it takes them.
func startPacketProxy(t *testing.T, args ...string) (s *service, addr string) {
	t.Helper()
	addr = freePacketAddr(t)
	s = newService(t)
	s.launch(append([]string{"proxy", "-l", "udp://" + addr, "--confirm", "50ms"}, args...)...)
	s.log.await(t, "restart: committed")
	return s, addr
}

func freePacketAddr(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return pc.LocalAddr().String()
}

// namedPackets is a backend that says its name in front of every datagram.
func namedPackets(t *testing.T, name string) string {
	return packetsAt(t, func(m []byte) [][]byte { return [][]byte{append([]byte(name+" "), m...)} })
}

// client is one socket, and so one session.
type client struct {
	t *testing.T
	net.Conn
}

func newClient(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &client{t, conn}
}

func (c *client) ask(text string) string {
	c.t.Helper()
	buf := make([]byte, 1000)
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
	n, err := c.Read(buf)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(buf[:n])
}

func (c *client) wants(text, want string) {
	c.t.Helper()
	if got := c.ask(text); got != want {
		c.t.Errorf("%q is answered by %q, want %q", text, got, want)
	}
}

// wantSessions begins sessions, and wants each name to answer so many.
func wantSessions(t *testing.T, addr string, sessions int, want string) {
	t.Helper()
	by := map[string]int{}
	for range sessions {
		name, _, _ := strings.Cut(newClient(t, addr).ask("x"), " ")
		by[name]++
	}
	if got := fmt.Sprint(by); got != want {
		t.Errorf("new sessions are at %s, want %s", got, want)
	}
}

// Lines of a dial go through the proxy to an echo and back, in one session over a restart,
// and status tells.
func TestProxyPassesDatagramsOn(t *testing.T) {
	t.Parallel()
	behind := freePacketAddr(t)
	startEcho(t, "-l", "udp://"+behind, "--mode", "echo")
	log := filepath.Join(t.TempDir(), "access")
	s, addr := startPacketProxy(t, "-u", "udp://"+behind, "--access-log", log)
	n := startDial(t, "--linger", "10ms", "udp://"+addr)
	fmt.Fprint(n.in, "before\n")
	n.wantLine(t, "before\n")
	s.must("restart", "--wait", "proxy")
	s.log.await(t, "restart: took over")
	fmt.Fprint(n.in, "after\n")
	n.wantLine(t, "after\n")
	state := s.status("proxy").Proxy
	if p := state.Packets; state.Stats != nil || p == nil || p.Open != 1 || p.MovedIn != 1 || p.Sessions != 0 || p.FromClients != 1 || p.FromBackendsBytes != 5 {
		t.Errorf("the status is %+v of streams, %+v of datagrams", state.Stats, p)
	}
	out := s.must("status", "proxy")
	for _, want := range []string{"listens on udp://" + addr, "sessions     1 open, 0 begun, 0 denied", "datagrams    1 from clients (5 B), 1 from backends (5 B); refused 0, dropped 0", "udp://" + behind + "  idle"} {
		if !strings.Contains(out, want) {
			t.Errorf("the status has no %q: %s", want, out)
		}
	}
	if strings.Contains(out, "connections") {
		t.Errorf("the status speaks of connections: %s", out)
	}
	n.in.Close()
	n.wantExit(t, 0)
	s.must("drain", "proxy")
	s.wantGone()
	awaitText(t, log, "why=drained")
	awaitText(t, log, "from_client=2")
	awaitText(t, log, "backend="+behind)
}

// Edits are about backends of datagrams as about others, and outlive a restart. A session
// stays where it is.
func TestPacketBackendsAreEdited(t *testing.T) {
	t.Parallel()
	a, b, c := namedPackets(t, "a"), namedPackets(t, "b"), namedPackets(t, "c")
	s, addr := startPacketProxy(t, "-u", "udp://"+a+",udp://"+b, "--balance", "ordered")
	held := newClient(t, addr)
	held.wants("x", "a x")
	if out := s.must("backend", "drain", a); out != "udp://"+a+": draining, weight 1, 1 session\n" {
		t.Errorf("drain says %q", out)
	}
	wantSessions(t, addr, 2, "map[b:2]")
	s.must("restart", "--wait", "proxy")
	s.log.await(t, "restart: took over")
	held.wants("y", "a y")
	wantSessions(t, addr, 2, "map[b:2]")
	s.must("backend", "ready", "udp://"+a)
	wantSessions(t, addr, 2, "map[a:2]")

	s.must("backend", "add", "udp://"+c+"?priority=2")
	s.must("backend", "rm", a)
	s.must("backend", "rm", "udp://"+b)
	wantSessions(t, addr, 2, "map[c:2]")
	s.must("restart", "--wait", "proxy")
	wantSessions(t, addr, 2, "map[c:2]")
	for _, bad := range [][]string{{"rm", c}, {"add", b}, {"add", "tcp://" + b}, {"drain", "tcp://" + c}, {"weight", a, "2"}, {"add", "--route", "x", "udp://" + b}} {
		if _, errs, code := s.ask(append([]string{"backend"}, bad...)...); code != exitFailed || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit %d: %q, want 1 and the cause in one line", bad, code, errs)
		}
	}
	if out := s.must("backend", "why", c); !strings.HasPrefix(out, "udp://"+c) || !strings.Contains(out, "4 sessions, weight 1") {
		t.Errorf("why says %s", out)
	}
}

// Where an address takes both, host:port is the backend of connections, as everywhere.
func TestProxyOfBoth(t *testing.T) {
	t.Parallel()
	addr, behind := freeAddr(t, "127.0.0.1"), freeAddr(t, "127.0.0.1")
	startEcho(t, "-l", "tcp://"+behind, "--udp", "--mode", "echo")
	s := newService(t)
	s.launch("proxy", "-l", "tcp://"+addr+",udp://"+addr, "-u", behind+",udp://"+behind, "--confirm", "50ms", "--check", "connect", "--check-udp", "send x expect x")
	s.log.await(t, "restart: committed")
	stream, session := dialTo(t, "tcp", addr), newClient(t, addr)
	for _, text := range []string{"one\n", "two\n"} {
		stream.exchange(text, text)
		session.wants(text, text)
		s.must("restart", "--wait", "proxy")
	}
	if out := s.must("backend", "drain", behind); !strings.HasPrefix(out, "tcp://"+behind+": draining") || strings.Count(out, "\n") != 1 {
		t.Errorf("drain says %q", out)
	}
	if out := s.must("backend", "weight", "udp://"+behind, "3"); out != "udp://"+behind+": idle, weight 3, 1 session\n" {
		t.Errorf("weight says %q", out)
	}
	state := s.status("proxy").Proxy
	if state.Stats == nil || state.Packets == nil || state.Stats.Open != 1 || state.Packets.Open != 1 {
		t.Errorf("the status is %+v and %+v", state.Stats, state.Packets)
	}
	for _, b := range state.Backends {
		if (b.State == "draining") != strings.HasPrefix(b.Name, "tcp://") {
			t.Errorf("%s is %s", b.Name, b.State)
		}
	}
}

// Flags are those of sessions: who is over a limit gets nothing, and what answers ends.
func TestPacketProxyFlags(t *testing.T) {
	t.Parallel()
	mute := packetsAt(t, func([]byte) [][]byte { return nil })
	s, addr := startPacketProxy(t, "-u", "udp://"+mute+",udp://"+namedPackets(t, "a"), "--balance", "ordered",
		"--check", `send "x" expect x`, "--check-interval", "50ms", "--rise", "1", "--fall", "1",
		"--send-proxy", "2", "--max-per-ip", "1", "--responses", "2")
	s.log.await(t, `msg="backend down" network=udp backend=`+mute)
	first := newClient(t, addr)
	if got := first.ask("hello"); !strings.HasPrefix(got, "a \r\n\r\n\x00\r\nQUIT\n") || !strings.HasSuffix(got, "hello") {
		t.Errorf("the backend was sent %q", got)
	}
	newClient(t, addr).Write([]byte("too many"))
	for s.status("proxy").Proxy.Packets.Denied["max_per_ip"] != 1 {
	}
	out := s.must("status", "proxy")
	if !strings.Contains(out, "1 denied;") || !strings.Contains(out, "dropped 1: denied 1\n") {
		t.Errorf("the status is %s", out)
	}

	once, at := startPacketProxy(t, "-u", "udp://"+namedPackets(t, "a")+",udp://"+namedPackets(t, "b"), "--balance", "rr", "--requests", "1", "--responses", "1")
	c := newClient(t, at)
	if one, two := c.ask("x"), c.ask("x"); one == two {
		t.Errorf("one backend answers both: %q, %q", one, two)
	}
	if p := once.status("proxy").Proxy.Packets; p.Open != 0 || p.Ends["answered"] != 2 {
		t.Errorf("the status is %+v", p)
	}
}

// The demo of datagrams keeps its promise, and counts.
func TestDemoOfDatagrams(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var r report
	decodeOne(t, s.must("demo", "--udp", "--json", "--duration", "6s", "--seed", "7"), &r)
	if !r.OK || r.Network != "udp" || r.Requests == 0 || r.HiddenFailures == 0 || r.HeldExchanges == 0 || r.Unanswered != 0 {
		t.Errorf("got %+v", r)
	}
	if r.Restarts == 0 || r.RolledBack == 0 || r.ProxyRestarts == 0 {
		t.Errorf("%d servers and %d times the proxy were restarted, %d rolled back", r.Restarts, r.ProxyRestarts, r.RolledBack)
	}
}

// The demo can tell what a session has lost.
func TestDemoTellsWhatASessionLost(t *testing.T) {
	type reply struct {
		to   int    // which message
		port uint16 // seen at the server
		seen uint64
	}
	for want, replies := range map[string][]reply{
		"":                                    {{0, 1, 1}, {1, 1, 2}},
		"1 of 2 datagrams were not answered":  {{0, 1, 1}},
		"the server saw it come from 2 ports": {{0, 1, 1}, {1, 2, 2}},
		"the server counted 1 datagrams of 2": {{0, 1, 1}, {1, 1, 1}},
		"the server counted 3 datagrams of 2": {{0, 1, 1}, {1, 1, 3}},
		errWrongReply.Error():                 {{0, 1, 1}, {0, 1, 1}},
	} {
		s, rnd := newHeldSession(), rand.New(rand.NewPCG(1, 1))
		var messages [][]byte
		for n := range uint64(2) {
			messages = append(messages, newRequest(rnd, 5, n))
			s.sent[binary.BigEndian.Uint64(messages[n])] = messages[n]
		}
		var err error
		for _, r := range replies {
			b := binary.BigEndian.AppendUint16(bytes.Clone(messages[r.to]), r.port)
			_, e := s.replied(binary.BigEndian.AppendUint64(b, r.seen))
			err = errors.Join(err, e)
		}
		if err == nil {
			err = s.verdict(2)
		}
		if got := fmt.Sprint(err); got != want && (err != nil || want != "") {
			t.Errorf("it says %q, want %q", got, want)
		}
	}
}
