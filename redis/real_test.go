package redis

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// hotline is a connection of the least that there is: one command at a time.
type hotline struct {
	t    *testing.T
	conn net.Conn
	dec  decoder
	rest []byte
}

func (s *Server) connect(t *testing.T, protocol int) *hotline {
	t.Helper()
	conn, err := net.Dial("unix", s.Sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	l := &hotline{t: t, conn: conn}
	if err := l.do("HELLO", protocol).Err(); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *hotline) do(args ...any) Value {
	l.t.Helper()
	b, err := appendCommand(nil, args)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.conn.Write(b); err != nil {
		l.t.Fatal(err)
	}
	return l.next()
}

func (l *hotline) next() Value {
	l.t.Helper()
	for {
		v, n, done, err := l.dec.Decode(l.rest)
		l.rest = l.rest[n:]
		if err != nil {
			l.t.Fatal(err)
		}
		if done {
			return v
		}
		buf := make([]byte, 16<<10)
		n, err = l.conn.Read(buf)
		if err != nil {
			l.t.Fatal(err)
		}
		l.rest = buf[:n]
	}
}

// All that a server can say, by its own DEBUG PROTOCOL, in both protocols.
func TestServerSpeaksEveryType(t *testing.T) {
	s := StartServer(t)
	for protocol, want := range map[int]map[string]string{
		2: {
			"string": `$"Hello World"`, "integer": ":12345", "double": `$"3.141"`, "null": "_", "array": "*[:0 :1 :2]",
			"set": "*[:0 :1 :2]", "map": "*[:0 :0 :1 :1 :2 :0]", "attrib": `$"Some real reply following the attribute"`,
			"verbatim": `$"This is a verbatim\nstring"`, "true": ":1", "false": ":0",
			"push": `-"ERR RESP2 is not supported by this command"`, "bignum": `$"1234567999999999999999999999999999999"`,
		},
		3: {
			"string": `$"Hello World"`, "integer": ":12345", "double": ",3.141", "null": "_", "array": "*[:0 :1 :2]",
			"set": "~[:0 :1 :2]", "map": "%[:0 #0 :1 #1 :2 #0]", "attrib": `$"Some real reply following the attribute"`,
			"verbatim": `="This is a verbatim\nstring"`, "true": "#1", "false": "#0",
			"push": `>[$"server-cpu-usage" :42]`, "bignum": `("1234567999999999999999999999999999999"`,
		},
	} {
		l := s.connect(t, protocol)
		for what, want := range want {
			got := dump(l.do("DEBUG", "PROTOCOL", what))
			if strings.HasPrefix(want, `-"ERR RESP2`) && strings.HasPrefix(got, "-") {
				continue // the words are the server's
			}
			if got != want {
				t.Errorf("%s in RESP%d: %s, want %s", what, protocol, got, want)
			}
			if strings.HasPrefix(got, ">") {
				if got := dump(l.next()); got != `$"Some real reply following the push reply"` {
					t.Errorf("behind the push: %s", got)
				}
			}
		}
	}
}

// The same question has the same answer in both protocols, whatever they look like.
func TestServerConversionsAgree(t *testing.T) {
	s := StartServer(t)
	for _, protocol := range []int{2, 3} {
		l := s.connect(t, protocol)
		check := func(what string, got any, err error, want string) {
			t.Helper()
			if fmt.Sprint(got) != want || err != nil {
				t.Errorf("RESP%d: %s: %v, %v; want %s", protocol, what, got, err, want)
			}
		}
		l.do("FLUSHALL")
		binary := "\r\n\x00\xff$-1\r\n"
		l.do("SET", binary, []byte(binary))
		text, err := l.do("GET", binary).Text()
		check("GET", fmt.Sprintf("%q", text), err, fmt.Sprintf("%q", binary))
		l.do("HSET", "h", "a", 1, "b", 2.5)
		m, err := l.do("HGETALL", "h").Map()
		check("HGETALL", m, err, "map[a:1 b:2.5]")
		m, err = l.do("HGETALL", "none").Map()
		check("HGETALL of nothing", m, err, "map[]")
		m, err = l.do("CONFIG", "GET", "databases").Map()
		check("CONFIG GET", m, err, "map[databases:16]")
		l.do("SADD", "s", "x")
		list, err := l.do("SMEMBERS", "s").Strings()
		check("SMEMBERS", list, err, "[x]")
		yes, err := l.do("SISMEMBER", "s", "x").Bool()
		check("SISMEMBER", yes, err, "true")
		yes, err = l.do("EXISTS", "s", "h").Bool()
		check("EXISTS", yes, err, "true")
		l.do("ZADD", "z", 0.1, "low", "inf", "high")
		x, err := l.do("ZSCORE", "z", "low").Float()
		check("ZSCORE", x, err, "0.1")
		x, err = l.do("ZSCORE", "z", "high").Float()
		check("ZSCORE", x, err, "+Inf")
		pairs, err := l.do("ZRANGE", "z", 0, -1, "WITHSCORES").Pairs()
		var order []string
		for member, score := range pairs {
			name, _ := member.Text()
			x, _ := score.Float()
			order = append(order, fmt.Sprint(name, "=", x))
		}
		check("ZRANGE", order, err, "[low=0.1 high=+Inf]")
		l.do("XADD", "st", "1-1", "f", "v")
		streams, err := l.do("XREAD", "STREAMS", "st", 0).Pairs()
		for name, entries := range streams {
			all, err := entries.Pairs()
			for id, fields := range all {
				name, _ := name.Text()
				id, _ := id.Text()
				m, _ := fields.Map()
				check("XREAD", fmt.Sprint(name, id, m), err, "st1-1map[f:v]")
			}
		}
		check("XREAD", "", err, "")
		n, err := l.do("INCRBY", "n", int64(1)<<62).Int()
		check("INCRBY", n, err, "4611686018427387904")
		err = l.do("GET", "none").Err()
		check("GET of nothing", err, nil, "redis: nil")
		err = l.do("INCR", "h").Err()
		check("INCR of a hash", err, nil, "redis: WRONGTYPE Operation against a key holding the wrong kind of value")
	}
}

// What a script says halfway is no refusal, for what came before has happened.
func TestServerScriptsAreNotRefused(t *testing.T) {
	l := StartServer(t).connect(t, 3)
	l.do("CONFIG", "SET", "min-replicas-to-write", 1)
	if err := l.do("SET", "k", "v").Err(); !notRun(err) {
		t.Errorf("%v was not run", err)
	}
	if err := l.do("EVAL", "redis.call('PUBLISH', 'c', 'm') return redis.call('SET', 'k', 'v')", 0).Err(); err == nil || notRun(err) {
		t.Errorf("%v has published", err)
	}
}

// The table of commands against what the server says of its own.
func TestServerKnowsTheCommands(t *testing.T) {
	l := StartServer(t).connect(t, 3)
	all, err := l.do("COMMAND").Values()
	if err != nil || len(all) < 200 {
		t.Fatal(len(all), err)
	}
	var checked int
	var check func(about Value)
	check = func(about Value) {
		parts, _ := about.Values()
		name, _ := parts[0].Text()
		flags, _ := parts[2].Strings()
		subcommands, _ := parts[9].Values()
		for _, sub := range subcommands {
			check(sub)
		}
		if len(subcommands) > 0 {
			return
		}
		checked++
		words := []any{}
		for _, w := range strings.Split(name, "|") {
			words = append(words, w)
		}
		if slices.Contains(flags, "blocking") {
			words = append(words, "BLOCK")
		}
		got := traitsOf(words)
		if slices.Contains(flags, "readonly") && got&reads == 0 {
			t.Errorf("%s only reads", name)
		}
		if slices.Contains(flags, "write") && got&reads != 0 {
			t.Errorf("%s writes", name)
		}
		if slices.Contains(flags, "blocking") && !got.blocks() {
			t.Errorf("%s blocks", name)
		}
		if slices.Contains(flags, "pubsub") && strings.Contains(name, "subscribe") && !got.changesState() {
			t.Errorf("%s changes the connection", name)
		}
	}
	for _, about := range all {
		check(about)
	}
	t.Logf("%d commands", checked)
}
