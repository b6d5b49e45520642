//go:build unix

package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// startProxy starts a proxy on a Unix socket, and whatever else args say.
func startProxy(t *testing.T, args ...string) *service {
	t.Helper()
	s := newService(t)
	s.launch(append([]string{"proxy", "-l", "unix:" + s.sock(), "--confirm", "50ms"}, args...)...)
	s.log.await(t, "restart: committed")
	return s
}

// named is a backend that says its name in front of every line.
func named(t *testing.T, name string) (addr string) {
	return serveAt(t, nil, eachLine(func(line string) string { return name + " " + line }))
}

// served asks over new connections and returns how often each backend answered.
func (s *service) served(times int) map[string]int {
	s.t.Helper()
	by := map[string]int{}
	for range times {
		c := dialTo(s.t, "unix", s.sock())
		c.say("hello\n")
		name, rest, _ := strings.Cut(c.line(), " ")
		if rest != "hello" {
			s.t.Fatalf("the reply is %q", rest)
		}
		by[name]++
		c.Close()
	}
	return by
}

func (s *service) wantServed(times int, want map[string]int) {
	s.t.Helper()
	if got := s.served(times); fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("served by %v, want %v", got, want)
	}
}

func (s *service) backends() map[string]backendState {
	s.t.Helper()
	all := map[string]backendState{}
	for _, b := range s.status("proxy").Proxy.Backends {
		all[strings.TrimPrefix(b.Name, "tcp://")] = b
	}
	return all
}

// The set of backends is edited while it runs; what was edited outlives a restart, and so
// do the connections.
func TestBackendsAreEdited(t *testing.T) {
	t.Parallel()
	a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
	s := startProxy(t, "-u", a+","+b, "--balance", "rr")
	held := dialTo(t, "unix", s.sock())
	held.say("stay\n")
	holder := held.line()[:1]
	s.wantServed(4, map[string]int{"a": 2, "b": 2})

	if out := s.must("backend", "drain", a); !strings.Contains(out, "tcp://"+a+": draining, weight 1, ") {
		t.Errorf("drain says %q", out)
	}
	s.wantServed(3, map[string]int{"b": 3})
	s.must("restart", "--wait", "proxy")
	held.exchange("still\n", holder+" still\n")
	s.wantServed(3, map[string]int{"b": 3})
	if state := s.backends()[a].State; state != "draining" {
		t.Errorf("after the restart it is %s", state)
	}

	s.must("backend", "ready", "tcp://"+a)
	s.must("backend", "weight", b, "3")
	s.wantServed(4, map[string]int{"a": 1, "b": 3})
	s.must("backend", "add", c+"?weight=2")
	s.must("backend", "rm", b)
	s.must("restart", "--wait", "proxy")
	held.exchange("on\n", holder+" on\n")
	s.wantServed(3, map[string]int{"a": 1, "c": 2})
	if got := s.backends(); got[c].Weight != 2 || got[a].Weight != 1 {
		t.Errorf("the backends are %+v", got)
	}

	s.must("backend", "rm", a)
	for _, bad := range [][]string{{"rm", c}, {"drain", "10.9.9.8:1"}, {"weight", "10.9.9.9:1", "2"}, {"why", "10.9.9.9:1"}, {"add", "--route", "no", b}, {"drain", "--route", "no", c}} {
		if _, errs, code := s.ask(append([]string{"backend"}, bad...)...); code != exitFailed || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit %d: %q, want 1 and the cause in one line", bad, code, errs)
		}
	}
	var done backendChanged
	decodeOne(t, s.must("backend", "drain", "--json", c), &done)
	if done.Schema != "holdfast/backend/v1" || !done.Changed || len(done.Backends) != 1 || done.Backends[0].State != "draining" {
		t.Errorf("drain --json says %+v", done)
	}
	decodeOne(t, s.must("backend", "drain", "--json", c), &done)
	if done.Changed {
		t.Error("what was so already has changed")
	}
	s.log.await(t, fmt.Sprintf(`msg="backend weight" backend=%s uid=%d weight=3`, b, os.Getuid()))
	held.Close()
	s.must("drain", "proxy")
	s.wantGone()
}

// An edit while a restart is under way is not lost with the generation that made it.
func TestBackendIsEditedDuringARestart(t *testing.T) {
	t.Parallel()
	a, b := named(t, "a"), named(t, "b")
	s := newService(t)
	s.launch("proxy", "-l", "unix:"+s.sock(), "--confirm", "1s", "-u", a+","+b)
	s.log.await(t, "restart: committed")
	s.must("restart", "proxy")
	s.log.await(t, `msg="restart: ready" generation=2`)
	s.must("backend", "drain", a)
	s.log.await(t, `msg="restart: committed" generation=2`)
	if state := s.backends()[a].State; state != "draining" {
		t.Errorf("after the restart it is %s", state)
	}
	s.wantServed(4, map[string]int{"b": 4})
}

// A backend that is down is nobody's trouble, and why says all about it.
func TestProxyHidesADeadBackend(t *testing.T) {
	t.Parallel()
	a, dead := named(t, "a"), freeAddr(t, "127.0.0.1")
	s := startProxy(t, "-u", dead+","+a, "--balance", "ordered")
	s.wantServed(3, map[string]int{"a": 3})
	state := s.status("proxy")
	if st := state.Proxy.Stats; st.Hidden == 0 || st.ClientErrors != 0 || st.Accepted != 3 || st.Listeners != 1 {
		t.Errorf("the status is %+v", st)
	}
	var why backendWhy
	decodeOne(t, s.must("backend", "why", "--json", dead), &why)
	if d := why.Backends[0]; d.LastErr == nil || !strings.Contains(d.LastErr.Err, "refused") || len(d.History) == 0 || d.Failures == 0 {
		t.Errorf("why says %+v", d)
	}
	for _, want := range []string{"last error", "refused", "load", "0 connections, weight 1", "ejections"} {
		if out := s.must("backend", "why", dead); !strings.Contains(out, want) {
			t.Errorf("why says nothing of %q: %s", want, out)
		}
	}
	out := s.must("status", "--color", "always", "proxy")
	for _, want := range []string{"failures " + fmt.Sprint(state.Proxy.Stats.Hidden) + " hidden, 0 seen by clients", "\x1b[32m", "listens on unix:", "tcp://" + dead} {
		if !strings.Contains(out, want) {
			t.Errorf("the status has no %q: %s", want, out)
		}
	}
	s.log.await(t, `msg="backend down" backend=`+dead)
}

// A check takes a backend out before a client finds it bad.
func TestProxyChecksBackends(t *testing.T) {
	t.Parallel()
	a, mute := named(t, "a"), serveAt(t, nil, eachLine(func(string) string { return "" }))
	s := startProxy(t, "-u", a+","+mute, "--check", `send "PING\n" expect PING`, "--check-interval", "50ms", "--json")
	s.log.await(t, `"msg":"backend down","backend":"`+mute+`"`)
	s.wantServed(3, map[string]int{"a": 3})
	if out := s.must("backend", "why", mute); !strings.Contains(out, "checks") || !strings.Contains(out, "0 passed") {
		t.Errorf("why says %s", out)
	}
}

// TLS ends at the proxy, and begins again behind it.
func TestProxyTLSOnBothSides(t *testing.T) {
	t.Parallel()
	cert, key, roots := identityFiles(t)
	ca, identity := selfSigned(t)
	secure := serveAt(t, &tls.Config{Certificates: []tls.Certificate{identity}}, eachLine(func(line string) string { return "safe " + line }))
	addr := freeAddr(t, "127.0.0.1")
	s := startProxy(t, "-l", "tcp://"+addr, "-u", "tls://"+secure, "--cert", cert, "--key", key, "--ca", ca)
	dialTLS(t, addr, &tls.Config{RootCAs: roots}).exchange("hello\n", "safe hello\n")
	s.must("restart", "--wait", "proxy")
	dialTLS(t, addr, &tls.Config{RootCAs: roots}).exchange("again\n", "safe again\n")
}

// Who the client is passes through: from a header in front to one behind.
func TestProxyHeaders(t *testing.T) {
	t.Parallel()
	first := serveAt(t, nil, func(conn net.Conn) {
		line, _ := bufio.NewReader(conn).ReadString('\n')
		io.WriteString(conn, line)
	})
	addr := freeAddr(t, "127.0.0.1")
	log := filepath.Join(t.TempDir(), "access")
	s := startProxy(t, "-l", "tcp://"+addr, "-u", first, "--accept-proxy", "127.0.0.0/8,unix", "--send-proxy", "1", "--access-log", log)
	c := dialTo(t, "tcp", addr)
	c.exchange("PROXY TCP4 192.0.2.7 192.0.2.8 1111 2222\r\n", "PROXY TCP4 192.0.2.7 192.0.2.8 1111 2222\r\n")
	c.Close()
	awaitText(t, log, "client=192.0.2.7:1111")
	awaitText(t, log, "backend="+first)
	dialTo(t, "unix", s.sock()).exchange("PROXY TCP4 192.0.2.9 192.0.2.8 1 2\r\n", "PROXY TCP4 192.0.2.9 192.0.2.8 1 2\r\n")
	bad := dialTo(t, "tcp", addr)
	bad.say("GET / HTTP/1.0\r\n\r\n")
	bad.wantEnd()
}

// A name leads to its route, terminated or not.
func TestProxyRoutesByName(t *testing.T) {
	t.Parallel()
	_, identity := selfSigned(t)
	secure := &tls.Config{Certificates: []tls.Certificate{identity}}
	at := func(name string) string {
		return serveAt(t, secure, eachLine(func(line string) string { return name + " " + line }))
	}
	one, wild, rest := at("one"), at("wild"), at("rest")
	s := startProxy(t, "-u", rest, "--route", "one.example.com="+one, "--route", "*.example.org="+wild)
	ask := func(name string) string {
		conn := tls.Client(dialTo(t, "unix", s.sock()).Conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
		c := talkOn(t, conn)
		c.say("x\n")
		return c.line()
	}
	for name, want := range map[string]string{"one.example.com": "one x", "a.example.org": "wild x", "a.b.example.org": "rest x", "else": "rest x"} {
		if got := ask(name); got != want {
			t.Errorf("%s is answered %q, want %q", name, got, want)
		}
	}
	s.must("backend", "add", "--route", "one.example.com", wild)
	s.must("backend", "rm", one)
	if got := ask("one.example.com"); got != "wild x" {
		t.Errorf("after the edit %q", got)
	}
	s.must("backend", "drain", wild) // wherever it is
	for _, b := range s.status("proxy").Proxy.Backends {
		if (b.Node == wild) != (b.State == "draining") && b.Node != one {
			t.Errorf("%s of route %q is %s", b.Node, b.Route, b.State)
		}
	}

	cert, key, roots := identityFiles(t)
	addr := freeAddr(t, "127.0.0.1")
	a, b := named(t, "a"), named(t, "b")
	ended := newService(t)
	ended.launch("proxy", "-l", "tcp://"+addr, "-u", a, "--route", "/line="+b, "--cert", cert, "--key", key, "--confirm", "50ms")
	ended.log.await(t, "restart: committed")
	dialTLS(t, addr, &tls.Config{RootCAs: roots}).exchange("x\n", "a x\n")
	dialTLS(t, addr, &tls.Config{RootCAs: roots, NextProtos: []string{"line"}}).exchange("x\n", "b x\n")
}

// A drain waits for connections; clients beyond a limit wait, or are turned away.
func TestProxyDrainsAndLimits(t *testing.T) {
	t.Parallel()
	s := startProxy(t, "-u", named(t, "a"), "--max-conns", "2", "--max-per-backend", "1", "--drain", "20s")
	first := dialTo(t, "unix", s.sock())
	first.exchange("x\n", "a x\n")
	second := dialTo(t, "unix", s.sock())
	second.say("x\n")
	for s.status("proxy").Proxy.Stats.Queued != 1 {
	}
	dialTo(t, "unix", s.sock()).wantEnd()
	first.Close()
	second.wants("a x\n")
	ended := make(chan string, 1)
	go func() { out, errs, _ := s.ask("drain", "proxy"); ended <- out + errs }()
	s.log.await(t, "restart: stopping")
	second.exchange("y\n", "a y\n")
	second.Close()
	if out := <-ended; !strings.Contains(out, "proxy is gone") {
		t.Errorf("drain says %q", out)
	}
	s.wantGone()
}

// A backend whose name is not found, or stands for another's address, is there for all
// verbs, and no weight but those of the verb is taken.
func TestBackendsWithoutAnAddress(t *testing.T) {
	t.Parallel()
	a := named(t, "a")
	alias := "localhost:" + port(a)
	s := startProxy(t, "-u", a+","+alias+",nosuch.invalid:7")
	for _, addr := range []string{alias, "nosuch.invalid:7"} {
		if b := s.backends()[addr]; b.State != noAddress || b.Weight != 1 || b.Err == "" {
			t.Errorf("%s is %+v", addr, b)
		}
		if out := s.must("backend", "add", addr+"?weight=4"); !strings.Contains(out, addr+": "+noAddress+", weight 4, ") {
			t.Errorf("add says %q", out)
		}
		if out := s.must("backend", "why", addr); !strings.Contains(out, "its name is not found yet") {
			t.Errorf("why says %q", out)
		}
		if out := s.must("backend", "drain", addr); !strings.Contains(out, addr+": draining, weight 4, ") {
			t.Errorf("drain says %q", out)
		}
		if out := s.must("backend", "rm", addr); out != addr+": removed\n" {
			t.Errorf("rm says %q", out)
		}
	}
	s.must("backend", "weight", a, "7")
	s.must("backend", "add", a+"?weight=5")
	if b := s.backends()[a]; b.Weight != 5 {
		t.Errorf("it is %+v", b)
	}
	for _, weight := range []string{"0", "-3", "x", "1001"} {
		bad := a + "?weight=" + weight
		for _, args := range [][]string{{"backend", "add", bad}, {"proxy", "-l", "127.0.0.1:0", "-u", bad}, {"proxy", "-l", "127.0.0.1:0", "--route", "x=" + bad}} {
			if _, errs, code := s.ask(args...); code != exitUsage || !strings.Contains(errs, "want 1 to 1000") {
				t.Errorf("%q: exit %d: %s", args, code, errs)
			}
		}
	}
}

// What is wrong with a start names what it is about, and the way out.
func TestProxyStartErrors(t *testing.T) {
	t.Parallel()
	s := startProxy(t, "-u", named(t, "a"), "--deny", "127.0.0.0/8", "-l", "127.0.0.1:0")
	_, errs, code := s.ask("proxy", "-l", "127.0.0.1:0", "-u", "127.0.0.1:1")
	if code != exitFailed || !strings.Contains(errs, "hint: another service has this name") {
		t.Errorf("exit %d: %s", code, errs)
	}
	_, errs, code = s.ask("proxy", "--name", "other", "-l", "192.0.2.1:7", "-u", "127.0.0.1:1")
	if code != exitFailed || !strings.Contains(errs, "holdfast: listen tcp 192.0.2.1:7: ") {
		t.Errorf("exit %d: %s", code, errs)
	}
	_, errs, code = s.ask("status", "--admin", serveUnixAt(t))
	if code != exitUnreachable || !strings.Contains(errs, "is not the control socket of a service") {
		t.Errorf("exit %d: %s", code, errs)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	cmd := s.command("status", "proxy")
	cmd.Stdout = full
	if code := exitCode(cmd.Run()); code != exitFailed {
		t.Errorf("exit %d, and nobody has seen the status", code)
	}
}

// serveUnixAt is a Unix socket that is of another protocol.
func serveUnixAt(t *testing.T) (path string) {
	s := newService(t)
	ln, err := net.Listen("unix", s.sock())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			bufio.NewReader(conn).ReadString('\n')
			io.WriteString(conn, "UNKNOWN COMMAND\n")
			conn.Close()
		}
	}()
	return s.sock()
}

func TestStatusCountsTheDenied(t *testing.T) {
	if text := (&proxyStats{Accepted: 3}).line(false); strings.Contains(text, "denied") {
		t.Errorf("none is told of: %q", text)
	}
	st := proxyStats{Accepted: 3, Denied: map[string]uint64{"network": 1, "max_conns": 1}}
	if text := st.line(false); !strings.Contains(text, " 3 accepted, 2 denied; ") {
		t.Errorf("the line is %q", text)
	}
}
