package redis

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
)

func TestCommandEncoding(t *testing.T) {
	for _, c := range []struct {
		args []any
		want string
	}{
		{[]any{"SET", "mykey", 1}, "*3\r\n$3\r\nSET\r\n$5\r\nmykey\r\n$1\r\n1\r\n"},
		{[]any{"GET", ""}, "*2\r\n$3\r\nGET\r\n$0\r\n\r\n"},
		{[]any{"SET", []byte("a\r\n\x00\xff"), []byte(nil)}, "*3\r\n$3\r\nSET\r\n$5\r\na\r\n\x00\xff\r\n$0\r\n\r\n"},
		{[]any{"X", true, false}, "*3\r\n$1\r\nX\r\n$1\r\n1\r\n$1\r\n0\r\n"},
		{[]any{"X", 9, 10, -1, int8(-128), int16(-32768), int32(math.MinInt32), int64(math.MinInt64)},
			"*8\r\n$1\r\nX\r\n$1\r\n9\r\n$2\r\n10\r\n$2\r\n-1\r\n$4\r\n-128\r\n$6\r\n-32768\r\n$11\r\n-2147483648\r\n$20\r\n-9223372036854775808\r\n"},
		{[]any{"X", uint(7), uint8(255), uint16(65535), uint32(math.MaxUint32), uint64(math.MaxUint64)},
			"*6\r\n$1\r\nX\r\n$1\r\n7\r\n$3\r\n255\r\n$5\r\n65535\r\n$10\r\n4294967295\r\n$20\r\n18446744073709551615\r\n"},
		{[]any{"X", 1.0, 0.1, float32(0.1), 1e21, -2.5e-7}, "*6\r\n$1\r\nX\r\n$1\r\n1\r\n$3\r\n0.1\r\n$3\r\n0.1\r\n$5\r\n1e+21\r\n$8\r\n-2.5e-07\r\n"},
		{[]any{"X", math.Inf(1), math.Inf(-1), math.NaN(), float32(math.Inf(1))}, "*5\r\n$1\r\nX\r\n$3\r\ninf\r\n$4\r\n-inf\r\n$3\r\nnan\r\n$3\r\ninf\r\n"},
		{append([]any{"DEL"}, make([]any, 0)...), "*1\r\n$3\r\nDEL\r\n"},
	} {
		got, err := appendCommand([]byte("x"), c.args)
		if err != nil || string(got) != "x"+c.want {
			t.Errorf("%v: %q, %v; want %q", c.args, got, err, c.want)
		}
	}
	many := []any{"DEL"}
	for range 12345 {
		many = append(many, "k")
	}
	if got, err := appendCommand(nil, many); err != nil || !strings.HasPrefix(string(got), "*12346\r\n$3\r\nDEL\r\n$1\r\nk\r\n") {
		t.Errorf("%.30q, %v", got, err)
	}
}

// key is a type that is a string and may be anything.
type key string

func (key) String() string { panic("an argument's method was called") }

// What cannot be sent is said by its type, not its content, and leaves nothing behind.
func TestCommandRefuses(t *testing.T) {
	one := 1
	for _, c := range []struct {
		args []any
		says string
	}{
		{nil, "without a name"},
		{[]any{1}, "a command is a int and must be a string"},
		{[]any{nil}, "nil"},
		{[]any{[]byte("GET")}, "[]uint8"},
		{[]any{"SET", "k", nil}, "argument 2 of SET is a nil"},
		{[]any{"EXPIRE", "k", time.Second}, "argument 2 of EXPIRE is a time.Duration"},
		{[]any{"SET", "k", &one}, "is a *int"},
		{[]any{"SET", key("secret")}, "is a redis.key"},
		{[]any{"SET", struct{ p string }{"secret"}}, "is a struct"},
		{[]any{"DEL", []string{"a"}}, "is a []string"},
		{[]any{"SET", errors.New("secret")}, "is a *errors.errorString"},
		{[]any{"X", 'x', uintptr(1)}, "is a uintptr"},
		{[]any{strings.Repeat("N", 1000), nil}, "of NNNN"},
		{make([]any, maxArgs+1), "must be a string"},
		{append([]any{"DEL"}, make([]any, maxArgs)...), "1048577 arguments of DEL"},
	} {
		got, err := appendCommand([]byte("before"), c.args)
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret") || string(got) != "before" || len(err.Error()) > 200 {
			t.Errorf("%q: %q, %v", c.says, got, err)
		}
	}
}

// An argument as large as Redis takes would be 512 MiB: what is refused is not copied.
func TestCommandRefusesTooLargeAString(t *testing.T) {
	if testing.Short() {
		t.Skip("512 MiB of zeros")
	}
	large := make([]byte, maxString+1) // never written, so never there
	got, err := appendCommand(nil, []any{"SET", "k", large})
	if err == nil || !strings.Contains(err.Error(), "536870913 bytes") || len(got) > 0 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestCommandAllocations(t *testing.T) {
	dst := make([]byte, 0, 1024)
	do := func(args ...any) { // as Client.Do passes them on
		encode := func(dst []byte, _ uint64) ([]byte, error) { return appendCommand(dst, args) }
		if _, err := encode(dst, 0); err != nil {
			t.Fatal(err)
		}
		traitsOf(args)
	}
	name, n, x, b, yes := strings.Clone("key"), 123456, 0.1, []byte("value"), true
	for what, f := range map[string]func(){
		"constants": func() { do("SET", "key", 1) },
		"variables": func() { do("SET", name, n) },
		"all types": func() { do("X", name, n, x, b, yes, uint64(n), float32(x), int8(n)) },
		"xread":     func() { do("XREAD", "COUNT", n, []byte("block"), n, "STREAMS", name) },
		"unknown":   func() { do("client", b) },
	} {
		if got := testing.AllocsPerRun(100, f); got != 0 {
			t.Errorf("%s: %v allocations", what, got)
		}
	}
}

func TestTraits(t *testing.T) {
	list := func(args ...any) []any { return args }
	for _, c := range []struct {
		args                 []any
		reads, blocks, state bool
	}{
		{list("GET", "k"), true, false, false},
		{list("get", "k"), true, false, false},
		{list("SET", "k", 1), false, false, false},
		{list("GETEX", "k"), false, false, false},
		{list("blPop", "k", 0), false, true, false},
		{list("WAITAOF", 1, 0, 0), false, true, false},
		{list("XREAD", "COUNT", 1, "STREAMS", "block", "0"), true, false, false},
		{list("XREAD", "COUNT", 1, "block", 0, "STREAMS", "s", "0"), true, true, false},
		{list("XREADGROUP", "GROUP", "block", "streams", "STREAMS", "s", ">"), false, false, false},
		{list("XREADGROUP", "GROUP", "STREAMS", "c", []byte("BLOCK"), 5, "STREAMS", "s", ">"), false, true, false},
		{list("XREADGROUP", "GROUP"), false, false, false},
		{list("SUBSCRIBE", "c"), false, false, true},
		{list("monitor"), false, true, true},
		{list("CLIENT", "reply", "OFF"), false, false, true},
		{list("CLIENT", []byte("Tracking"), "ON"), false, false, true},
		{list("CLIENT", "LIST"), true, false, false},
		{list("CLIENT", "KILL", "x"), false, false, false},
		{list("CLIENT"), false, false, false},
		{list("CLIENT", 1), false, false, false},
		{list("CLIENT", strings.Repeat("x", 100)), false, false, false},
		{list("DEBUG", "SLEEP", 1), false, true, false},
		{list("CONFIG", "GET", "*"), true, false, false},
		{list("CONFIG", "SET", "a", "b"), false, false, false},
		{list("COMMAND"), true, false, false},
		{list("COMMAND", "DOCS"), true, false, false},
		{list("SENTINEL", "get-master-addr-by-name", "x"), true, false, false},
		{list("SENTINEL", "FAILOVER", "x"), false, false, false},
		{list("OBJECT", "ENCODING", "k"), true, false, false},
		{list("EVAL", "return 1", 0), false, false, false},
		{list("EVAL_RO", "return 1", 0), true, false, false},
		{list("NO.SUCH"), false, false, false},
		{list(strings.Repeat("GET", 100)), false, false, false},
		{list(1), false, false, false},
		{list(""), false, false, false},
		{nil, false, false, false},
	} {
		got := traitsOf(c.args)
		if got&reads != 0 != c.reads || got.blocks() != c.blocks || got.changesState() != c.state || got&(has|mayBlock) != 0 {
			t.Errorf("%.100v: %05b", fmt.Sprint(c.args), got)
		}
		if c.reads != (got.safety() == holdfast.Idempotent) {
			t.Errorf("%.100v: safety %v", fmt.Sprint(c.args), got.safety())
		}
	}
}
