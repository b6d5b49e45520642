package health_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
)

type probe = func(context.Context, net.Conn) error

// judged is what a probe says of a server: "" or a part of its error, and when. Every
// check has a second.
type judged struct {
	name   string
	server func(net.Conn)
	probe  probe
	want   string
	after  time.Duration
}

func (row judged) check(t *testing.T) {
	t.Run(row.name, func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.serve("10.0.0.1:7000", row.server)
			conn := w.dial("tcp", "10.0.0.1:7000")
			defer conn.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			wantError(t, row.probe(ctx, conn), row.want)
			if took := time.Since(start); took != row.after {
				t.Errorf("the verdict took %v, want %v", took, row.after)
			}
		})
	})
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("unhealthy: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("said %v, want %q", err, want)
	}
}

const timeout = "i/o timeout"

func TestHTTPProbe(t *testing.T) {
	var head string
	note := func(h string) { head = h }
	for _, row := range []judged{
		{"a good status", page("200 OK", note), health.HTTP{}.Probe, "", 0},
		{"any of the range", page("204 No Content", nil), health.HTTP{Path: "/status"}.Probe, "", 0},
		{"without a reason", page("200", nil), health.HTTP{}.Probe, "", 0},
		{"a redirect", page("302 Found", nil), health.HTTP{}.Probe, "status 302, want 200 to 299", 0},
		{"a redirect that is good", page("302 Found", nil), health.HTTP{To: 399}.Probe, "", 0},
		{"one status alone", page("401 Unauthorized", nil), health.HTTP{From: 401, To: 401}.Probe, "", 0},
		{"from one on", page("404 Not Found", nil), health.HTTP{From: 404}.Probe, "", 0},
		{"any status", page("599 Oops", nil), health.HTTP{From: -1, To: -1}.Probe, "", 0},
		{"an error", page("503 Service Unavailable", nil), health.HTTP{}.Probe, "status 503", 0},
		{"words in the reason do not count", page("500 200 OK", nil), health.HTTP{}.Probe, "status 500", 0},
		{"another protocol", saying("220 mail.example ESMTP\r\n"), health.HTTP{}.Probe, "not a status line", 0},
		{"not a number", saying("HTTP/1.1 2x0 OK\r\n"), health.HTTP{}.Probe, "not a status line", 0},
		{"an endless status line", flood, health.HTTP{}.Probe, "more than 1024 bytes", 0},
		{"an end amid the line", hangUp("HTTP/1.1 200"), health.HTTP{}.Probe, "unexpected EOF", 0},
		{"a byte now and then", drip("HTTP/1.1 200 OK\r\n"), health.HTTP{}.Probe, timeout, time.Second},
		{"nothing", silence, health.HTTP{}.Probe, timeout, time.Second},
		{"a path that is two lines", page("200 OK", nil), health.HTTP{Path: "/\r\nX: y"}.Probe, "no spaces", 0},
		{"a path from nowhere", page("200 OK", nil), health.HTTP{Path: "status"}.Probe, "from / on", 0},
		{"a host that is two lines", page("200 OK", nil), health.HTTP{Host: "a\r\nX: y"}.Probe, "no spaces", 0},
	} {
		row.check(t)
	}
	if want := "GET / HTTP/1.1\r\nHost: 10.0.0.1:7000\r\nUser-Agent: holdfast\r\nConnection: close\r\n\r\n"; head != want {
		t.Errorf("asked %q, want %q", head, want)
	}
}

// The host asked for is the one that was configured, with its port unless that is usual.
func TestHTTPProbeNamesTheHost(t *testing.T) {
	for addr, want := range map[string]string{
		"tcp://web.example:80":               "web.example",
		"tcp://web.example:8080":             "web.example:8080",
		"tcp://10.0.0.1:80":                  "10.0.0.1",
		"tcp://[fd00::1]:80":                 "[fd00::1]",
		"tcp://[fd00::1]:81":                 "[fd00::1]:81",
		"tls://web.example:443":              "web.example",
		"tls://10.0.0.1:443?sni=web.example": "web.example",
		"tls://web.example:8443":             "web.example:8443",
		"unix:/run/web.sock":                 "localhost",
	} {
		t.Run(addr, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				var heads []string
				serve := page("200 OK", func(h string) { heads = append(heads, h) })
				secure, pool := certificate(t, "web.example", time.Hour)
				e, err := holdfast.ParseEndpoint(addr)
				if err != nil {
					t.Fatal(err)
				}
				s := w.service(addr, "http")
				s.Config.TLS = &tls.Config{RootCAs: pool}
				ln, err := w.net.Listen("tcp", "10.0.0.9:1")
				if err != nil {
					t.Fatal(err)
				}
				if e.TLS {
					ln = tls.NewListener(ln, secure)
				}
				w.accept(ln, serve)
				s.Config.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
					return w.client.DialContext(ctx, "tcp", "10.0.0.9:1")
				}
				m := newMonitor(t, health.Config{Services: map[string]health.Service{"web": s}})
				if r := m.CheckAll(t.Context())["web"]; !r.Healthy || r.Layer != "answer" {
					t.Errorf("%+v", r)
				}
				if got := strings.Join(heads, ""); !strings.Contains(got, "\r\nHost: "+want+"\r\n") {
					t.Errorf("asked %q, want the host %s", got, want)
				}
			})
		})
	}
}

// redisServer answers commands by their names, upon the line that ends each.
func redisServer(say map[string]string) func(net.Conn) {
	return hear(func(line string) string {
		return say[strings.TrimSpace(line)]
	})
}

func TestRedisProbe(t *testing.T) {
	role := func(name string) string { return fmt.Sprintf("*3\r\n$%d\r\n%s\r\n:1\r\n*0\r\n", len(name), name) }
	for _, row := range []judged{
		{"a pong", redisServer(map[string]string{"PING": "+PONG\r\n"}), health.Redis{}.Probe, "", 0},
		{"loading", redisServer(map[string]string{"PING": "-LOADING Redis is loading the dataset in memory\r\n"}), health.Redis{}.Probe, "LOADING", 0},
		{"a password is missing", redisServer(map[string]string{"PING": "-NOAUTH Authentication required.\r\n"}), health.Redis{}.Probe, "NOAUTH", 0},
		{"a password is right", redisServer(map[string]string{"secret": "+OK\r\n", "PING": "+PONG\r\n"}), health.Redis{Password: "secret"}.Probe, "", 0},
		{"a user too", redisServer(map[string]string{"secret": "+OK\r\n", "PING": "+PONG\r\n"}), health.Redis{User: "me", Password: "secret"}.Probe, "", 0},
		{"a password is wrong", redisServer(map[string]string{"secret": "-WRONGPASS invalid\r\n"}), health.Redis{Password: "secret"}.Probe, "AUTH: the server said \"-WRONGPASS", 0},
		{"a master", redisServer(map[string]string{"PING": "+PONG\r\n", "ROLE": role("master")}), health.Redis{Role: "master"}.Probe, "", 0},
		{"not a master", redisServer(map[string]string{"PING": "+PONG\r\n", "ROLE": role("slave")}), health.Redis{Role: "master"}.Probe, `the server is a "slave"`, 0},
		{"a role that is none", redisServer(map[string]string{"PING": "+PONG\r\n", "ROLE": "-ERR unknown command\r\n"}), health.Redis{Role: "master"}.Probe, "ERR unknown", 0},
		{"a role of great length", redisServer(map[string]string{"PING": "+PONG\r\n", "ROLE": "*1\r\n$99999999999\r\n"}), health.Redis{Role: "master"}.Probe, "$99999999999", 0},
		{"another protocol", page("400 Bad Request", nil), health.Redis{}.Probe, timeout, time.Second},
		{"an endless line", flood, health.Redis{}.Probe, "more than 512 bytes", 0},
		{"a byte now and then", drip("+PONG\r\n+PONG\r\n+PONG"), health.Redis{Role: "master"}.Probe, timeout, time.Second},
		{"an end", hangUp(""), health.Redis{}.Probe, "EOF", 0},
	} {
		row.check(t)
	}
}

func pgError(code string) string {
	body := "SFATAL\x00C" + code + "\x00Mthe text\x00\x00"
	return "E" + string([]byte{0, 0, 0, byte(4 + len(body))}) + body
}

func TestPostgresProbe(t *testing.T) {
	for _, row := range []judged{
		{"asks for a password", saying("R\x00\x00\x00\x0c\x00\x00\x00\x05salt"), health.Postgres{}.Probe, "", 0},
		{"lets in", saying("R\x00\x00\x00\x08\x00\x00\x00\x00"), health.Postgres{User: "app", Database: "orders"}.Probe, "", 0},
		{"refuses the user", saying(pgError("28000")), health.Postgres{}.Probe, "", 0},
		{"has no such database", saying(pgError("3D000")), health.Postgres{}.Probe, "", 0},
		{"starts up", saying(pgError("57P03")), health.Postgres{}.Probe, `"57P03": "the text"`, 0},
		{"shuts down", saying(pgError("57P01")), health.Postgres{}.Probe, "57P01", 0},
		{"an error without a code", saying("E\x00\x00\x00\x08Mno\x00"), health.Postgres{}.Probe, "without a code", 0},
		{"an old server that cannot fork", saying("Ecould not fork\n\x00"), health.Postgres{}.Probe, "not PostgreSQL", 0},
		{"another message", saying("Z\x00\x00\x00\x05I"), health.Postgres{}.Probe, "not what PostgreSQL answers", 0},
		{"another protocol", saying("HTTP/1.1 400 Bad Request\r\n\r\n"), health.Postgres{}.Probe, "not PostgreSQL", 0},
		{"a flood", flood, health.Postgres{}.Probe, "not PostgreSQL", 0},
		{"half an error", hangUp("E\x00\x00\x00\xffC57"), health.Postgres{}.Probe, "unexpected EOF", 0},
		{"a byte now and then", drip(pgError("57P03")), health.Postgres{}.Probe, timeout, time.Second},
		{"nothing", silence, health.Postgres{}.Probe, timeout, time.Second},
		{"a user that is two", silence, health.Postgres{User: "a\x00database"}.Probe, "zero byte", 0},
	} {
		row.check(t)
	}
}

func TestExchangeProbe(t *testing.T) {
	smtp := func(conn net.Conn) {
		io.WriteString(conn, "220 mail.example ")
		time.Sleep(200 * time.Millisecond)
		io.WriteString(conn, "ESMTP\r\n")
		hear(func(line string) string {
			if line == "QUIT\r\n" {
				return "221 bye\r\n"
			}
			return "250-mail.example\r\n250 PIPELINING\r\n"
		})(conn)
	}
	talk := health.Exchange{
		{Match: regexp.MustCompile(`^220 .*\r\n`)},
		{Send: []byte("EHLO me\r\n"), Expect: []byte("250 ")},
		{Expect: []byte("PIPELINING\r\n")}, // came with the last answer
		{Send: []byte("QUIT\r\n"), Expect: []byte("221")},
	}
	pong := health.Exchange{{Send: []byte("PING\n"), Expect: []byte("PONG")}}
	for _, row := range []judged{
		{"step by step", smtp, talk.Probe, "", 200 * time.Millisecond},
		{"in pieces", drip("xPONG"), pong.Probe, "", 400 * time.Millisecond},
		{"what was found is gone", saying("PONG"), health.Exchange{pong[0], pong[0]}.Probe, "step 2 of 2", time.Second},
		{"all of what is expected", saying("a PONG, b"), health.Exchange{{Expect: []byte("PONG"), Match: regexp.MustCompile("b$")}}.Probe, "", 0},
		{"only sending", silence, health.Exchange{{Send: []byte("x")}}.Probe, "", 0},
		{"nothing at all", silence, health.Exchange{}.Probe, "", 0},
		{"a wrong answer", saying("NO"), pong.Probe, `"PONG" did not come, but "NO"`, time.Second},
		{"a wrong answer and an end", hangUp("NO"), pong.Probe, `"NO": unexpected EOF`, 0},
		{"a flood", flood, pong.Probe, "not in the first 4096 bytes", 0},
		{"a byte now and then", drip(strings.Repeat("PON ", 10)), pong.Probe, timeout, time.Second},
	} {
		row.check(t)
	}
}

func TestUDPProbe(t *testing.T) {
	ask := health.UDP{Send: []byte("who"), Expect: []byte("me")}
	for _, row := range []struct {
		name, reply string // "-" has nobody listen
		probe       probe
		want        string
		after       time.Duration
	}{
		{"an answer", "it is me", ask.Probe, "", 0},
		{"any answer", "x", health.UDP{Send: []byte("who")}.Probe, "", 0},
		{"a wrong answer", "x", ask.Probe, `want "me", got "x"`, 0},
		{"a refusal", "-", ask.Probe, "refused", 0},
		{"silence proves nothing", "", ask.Probe, "", 500 * time.Millisecond},
		{"an exchange wants an answer", "", health.Exchange{health.Step(ask)}.Probe, timeout, time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				if row.reply != "-" {
					w.answer("10.0.0.1:53", row.reply)
				}
				conn := w.dial("udp", "10.0.0.1:53")
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start := time.Now()
				wantError(t, row.probe(ctx, conn), row.want)
				if took := time.Since(start); took != row.after {
					t.Errorf("the verdict took %v, want %v", took, row.after)
				}
			})
		})
	}
}

func TestTLSProbe(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		secure, pool := certificate(t, "10.0.0.1", 10*24*time.Hour)
		w.serve("10.0.0.1:443", func(conn net.Conn) {
			server := tls.Server(conn, secure)
			if server.Handshake() == nil {
				io.Copy(io.Discard, server)
			}
		})
		w.serve("10.0.0.2:443", flood)
		w.serve("10.0.0.3:443", silence)
		trust := &tls.Config{RootCAs: pool}
		named := &tls.Config{RootCAs: pool, ServerName: "elsewhere.example"}
		for _, row := range []struct {
			name, addr string
			probe      health.TLS
			want       string
			after      time.Duration
		}{
			{"valid", "10.0.0.1:443", health.TLS{Config: trust}, "", 0},
			{"valid for long enough", "10.0.0.1:443", health.TLS{Config: trust, MinDays: 9}, "", 0},
			{"not for long enough", "10.0.0.1:443", health.TLS{Config: trust, MinDays: 11}, "expires on 2000-01-11, within 11 days", 0},
			{"of an unknown authority", "10.0.0.1:443", health.TLS{}, "unknown authority", 0},
			{"for another name", "10.0.0.1:443", health.TLS{Config: named}, "elsewhere.example", 0},
			{"no TLS", "10.0.0.2:443", health.TLS{Config: trust}, "does not look like a TLS handshake", 0},
			{"nothing", "10.0.0.3:443", health.TLS{Config: trust}, "", time.Second},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			err := row.probe.Probe(ctx, w.dial("tcp", row.addr))
			cancel()
			if took := time.Since(start); took != row.after {
				t.Errorf("%s: the verdict took %v, want %v", row.name, took, row.after)
			}
			if row.after > 0 {
				if holdfast.Classify(err) != holdfast.ClassTimeout {
					t.Errorf("%s: %v", row.name, err)
				}
				continue
			}
			wantError(t, err, row.want)
		}

		// One that is TLS already is not asked again.
		conn := tls.Client(w.dial("tcp", "10.0.0.1:443"), &tls.Config{RootCAs: pool, ServerName: "10.0.0.1"})
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		wantError(t, health.TLS{}.Probe(t.Context(), conn), "")
		wantError(t, health.TLS{MinDays: 30}.Probe(t.Context(), conn), "within 30 days")
	})
}

// The end of its context ends any probe at once, with the reason, even where no
// deadline was set.
func TestProbesEndWithTheirContext(t *testing.T) {
	reason := errors.New("enough")
	for name, p := range everyProbe {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.serve("10.0.0.1:7000", silence)
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(700*time.Millisecond, func() { cancel(reason) })
				start := time.Now()
				if err := p(ctx, w.dial("tcp", "10.0.0.1:7000")); !errors.Is(err, reason) {
					t.Errorf("returned %v", err)
				}
				if took := time.Since(start); took != 700*time.Millisecond {
					t.Errorf("ended after %v", took)
				}
			})
		})
	}
}

// A probe that passed leaves a connection without its deadline.
func TestProbesLeaveNoDeadline(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("10.0.0.1:7000", hear(func(string) string { return "PONG" }))
		conn := w.dial("tcp", "10.0.0.1:7000")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ask := health.Exchange{{Send: []byte("PING\n"), Expect: []byte("PONG")}}
		wantError(t, ask.Probe(ctx, conn), "")
		time.Sleep(2 * time.Second)
		if err := ask.Probe(t.Context(), conn); errors.Is(err, os.ErrDeadlineExceeded) || err != nil {
			t.Errorf("the second use: %v", err)
		}
	})
}

var everyProbe = map[string]probe{
	"tls":      health.TLS{}.Probe,
	"http":     health.HTTP{}.Probe,
	"redis":    health.Redis{Password: "secret", Role: "master"}.Probe,
	"postgres": health.Postgres{}.Probe,
	"exchange": health.Exchange{{Send: []byte("a"), Expect: []byte("b")}, {Match: regexp.MustCompile("c+d")}}.Probe,
	"udp":      health.UDP{Send: []byte("a"), Expect: []byte("b")}.Probe,
}

func TestParseProbe(t *testing.T) {
	for text, want := range map[string]string{
		"connect":                    "",
		"tls":                        "",
		"tls 14":                     "",
		"http":                       "",
		"http /status":               "",
		"http /status 204":           "",
		"  http  / 200-399 ":         "",
		"redis":                      "",
		"redis master":               "",
		"postgres":                   "",
		"postgres app orders":        "",
		`send PING\r\n expect +PONG`: "",
		`send "PING with spaces\r\n" expect "+PO\""`: "",
		`expect 220 send QUIT\n match ^2\d\d`:        "",
		"match `^a b` sendhex 00ff expecthex 0d0A":   "",
		`udp send x`:              "",
		`udp sendhex 00 match ^.`: "",

		"":                        "empty",
		"  ":                      "empty",
		"ftp":                     "want connect, tls",
		"connect now":             "at most 0 words",
		"tls soon":                "number of days",
		"tls -1":                  "number of days",
		"http status":             "from / on",
		"http / 2xx":              "200-399",
		"http / 300-200":          "200-399",
		"http / 200 OK":           "at most 2 words",
		"redis leader":            "master, slave",
		"postgres a b c":          "at most 2",
		"send":                    "wants something after it",
		`send ""`:                 "empty",
		`send "PING`:              "quotes that do not end",
		`send \q`:                 "invalid syntax",
		"sendhex 0":               "odd length",
		"match (":                 "missing closing",
		"send a receive b":        `"receive": want send`,
		"udp":                     "one thing to send",
		"udp expect x":            "one thing to send",
		"udp send a send b":       "one thing to send",
		"udp send a expect b foo": "wants something after it",
	} {
		_, err := health.ParseProbe(text)
		wantError(t, err, want)
		if t.Failed() {
			t.Fatalf("that was %q", text)
		}
	}
	if p, err := health.ParseProbe("connect"); p != nil || err != nil {
		t.Errorf("connect is %v, %v, want nil: connecting is proof enough", p != nil, err)
	}
}

// The text form does what it says.
func TestParsedProbesAsk(t *testing.T) {
	for _, row := range []struct{ text, says, want string }{
		{`send PING\r\n expect +PONG`, "+PONG", ""},
		{`send PING\r\n expect "+PONG"`, "+PENG", "did not come"},
		{"match `^a b` sendhex 00ff expecthex 6364", "a bcd", ""},
		{`match ^2\d\d`, "220 hello", ""},
		{"http / 404", "HTTP/1.0 404 Not Found\n", ""},
		{"postgres", "R\x00\x00\x00\x08\x00\x00\x00\x00", ""},
		{"redis", "+PONG\r\n", ""},
		{"redis master", "+PONG\r\n*1\r\n$6\r\nmaster\r\n", ""},
		{"redis slave", "+PONG\r\n*1\r\n$6\r\nmaster\r\n", "want \"slave\""},
	} {
		p, err := health.ParseProbe(row.text)
		if err != nil {
			t.Fatal(err)
		}
		after := time.Duration(0)
		if row.want == "did not come" {
			after = time.Second
		}
		judged{row.text, saying(row.says), p, row.want, after}.check(t)
	}
}
