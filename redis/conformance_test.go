package redis_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-net/holdfast/redis"
)

// It must show 3: every type that a real server can send, in both protocols.
func TestEveryTypeOfARealServer(t *testing.T) {
	s := startServer(t)
	for protocol, want := range map[int]map[string]string{
		3: {
			"string": `"Hello World"`, "integer": "12345", "double": "3.141", "null": "nil", "array": "array of 3", "set": "set of 3",
			"map": "map of 6", "attrib": `"Some real reply following the attribute"`, "verbatim": `"This is a verbatim\nstring"`,
			"true": `"1"`, "false": `"0"`, "push": `"Some real reply following the push reply"`, "bignum": `"1234567999999999999999999999999999999"`,
		},
		2: {
			"string": `"Hello World"`, "integer": "12345", "double": `"3.141"`, "null": "nil", "array": "array of 3", "set": "array of 3",
			"map": "array of 6", "attrib": "", "verbatim": `"This is a verbatim\nstring"`,
			"true": "1", "false": "0", "push": "", "bignum": `"1234567999999999999999999999999999999"`,
		},
	} {
		r := clientOf(t, redis.Config{Protocol: protocol}, s.addr)
		for kind, is := range want {
			rep := r.Do(t.Context(), "DEBUG", "PROTOCOL", kind)
			if is == "" { // RESP2 has nothing like it, and the server says so or sends what follows
				if e, ok := errors.AsType[*redis.Error](rep.Err()); rep.Err() != nil && !ok {
					t.Errorf("RESP2 %s: %v", kind, e)
				}
				continue
			}
			if v, err := rep.Value(); err != nil || v.String() != is {
				t.Errorf("RESP%d %s: %s, %v; want %s", protocol, kind, v, err, is)
			}
		}
		if err := r.Do(t.Context(), "PING").Err(); err != nil || r.Stats().Lost > 0 {
			t.Errorf("RESP%d: out of step: %v, %+v", protocol, err, r.Stats())
		}
	}
}

// What we take for a command that only reads is what a server flags so, and what blocks
// is known to us.
func TestCommandsAreWhatTheServerSays(t *testing.T) {
	r := clientOf(t, redis.Config{Protocol: 2}, startServer(t).addr)
	all, err := r.Do(t.Context(), "COMMAND").Values()
	if err != nil || len(all) < 200 {
		t.Fatalf("%d commands, %v", len(all), err)
	}
	ours := map[string]bool{}
	for _, one := range all {
		about, err := one.Reply().Values()
		if err != nil || len(about) < 3 {
			t.Fatal(err)
		}
		name, _ := about[0].Reply().Text()
		flags, err := about[2].Reply().Strings()
		if err != nil {
			t.Fatal(err)
		}
		name = strings.ToUpper(name)
		reads, blocks, _ := redis.KindOf(name)
		ours[name] = true
		if reads && !slices.Contains(flags, "readonly") && !slices.Contains([]string{"PING", "ECHO", "TIME", "INFO", "ROLE", "LASTSAVE"}, name) {
			t.Errorf("%s is run twice, and it is %v", name, flags)
		}
		if slices.Contains(flags, "blocking") && !blocks && !strings.HasPrefix(name, "XREAD") {
			t.Errorf("%s blocks", name)
		}
		if slices.Contains(flags, "readonly") && !reads {
			t.Errorf("%s only reads", name)
		}
	}
	for _, args := range [][]any{{"XREAD", "COUNT", 1, "BLOCK", 0, "STREAMS", "s", "$"}, {"xreadgroup", "GROUP", "g", "c", "block", 5, "STREAMS", "s", ">"}, {"DEBUG", "SLEEP", 1}} {
		if _, blocks, _ := redis.KindOf(args...); !blocks {
			t.Errorf("%v blocks", args)
		}
	}
	for _, args := range [][]any{{"XREAD", "STREAMS", "BLOCK", "$"}, {"GET", "BLOCK"}, {"DEBUG", "OBJECT", "x"}, {"CLIENT", "LIST"}, {strings.Repeat("x", 100)}, {}, {5}} {
		if _, blocks, states := redis.KindOf(args...); blocks || states {
			t.Errorf("%v: blocks %v, states %v", args, blocks, states)
		}
	}
	if n := testing.AllocsPerRun(100, func() { redis.KindOf("zrangebyscore", "key") }); n > 0 {
		t.Errorf("looking a command up costs %v allocations", n)
	}
}

// A server of old, or a proxy, that has never heard of RESP3 is spoken to in RESP2.
func TestHelloFallsBack(t *testing.T) {
	for name, args := range map[string][]string{
		"no HELLO":           {"--rename-command", "HELLO", ""},
		"no HELLO, password": {"--rename-command", "HELLO", "", "--requirepass", "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, args...)
			cfg := redis.Config{Name: "me", DB: 2}
			if len(args) > 3 {
				cfg.Credentials = password("", "secret")
			}
			r := clientOf(t, cfg, s.addr)
			if err := r.Do(t.Context(), "HSET", "h", "a", 1).Err(); err != nil {
				t.Fatal(err)
			}
			if v, err := r.Do(t.Context(), "HGETALL", "h").Value(); err != nil || v.Kind() != redis.KindArray {
				t.Errorf("%v, %v: want RESP2", v, err)
			}
			if list, err := r.Do(t.Context(), "CLIENT", "LIST").Text(); err != nil || !strings.Contains(list, "name=me") || !strings.Contains(list, "db=2") {
				t.Errorf("%q, %v", list, err)
			}
		})
	}
}

func ExampleOpen() {
	if _, err := redis.Open("redis://:secret@localhost?colour=blue"); err != nil {
		fmt.Println(err)
	}
	// Output: redis: redis://:xxxxx@localhost?colour=blue: there is no parameter "colour"
}
