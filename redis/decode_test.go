package redis

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// decodeAll feeds the pieces one after the other, as a connection would: what is not
// consumed comes again with more behind it.
func decodeAll(t testing.TB, pieces ...string) (values []Value, err error) {
	d := newDecoder()
	var window []byte
	for _, piece := range pieces {
		window = append(window, piece...)
		for len(window) > 0 {
			v, n, done, err := d.Decode(window)
			if n < 0 || n > len(window) || done && n == 0 {
				t.Fatalf("it consumed %d of %d, done %v", n, len(window), done)
			}
			window = window[n:]
			if err != nil {
				return values, err
			}
			if !done {
				break
			}
			values = append(values, v)
		}
	}
	return values, nil
}

// show writes a value out in full, for comparisons.
func show(v Value) string {
	switch v.kind {
	case KindArray, KindMap, KindSet, KindPush:
		var parts []string
		for _, e := range v.elems {
			parts = append(parts, show(e))
		}
		return fmt.Sprintf("%s[%s]", v.kind, strings.Join(parts, " "))
	case KindFloat:
		return "float(" + formatFloat(v.float()) + ")"
	case KindInt, KindBool:
		return fmt.Sprintf("%s(%d)", v.kind, v.n)
	case KindNil:
		return "nil"
	}
	return fmt.Sprintf("%s(%q)", v.kind, v.s)
}

func showAll(values []Value) string {
	var out []string
	for _, v := range values {
		out = append(out, show(v))
	}
	return strings.Join(out, "; ")
}

// corpus is a value of each type, alone and in each other, and what it is.
var corpus = []struct{ wire, is string }{
	{"+OK\r\n", `string("OK")`},
	{"+\r\n", `string("")`},
	{"-ERR no\r\n", `error("ERR no")`},
	{":-9223372036854775808\r\n", "int(-9223372036854775808)"},
	{":+5\r\n", "int(5)"},
	{"$5\r\nhe\r\no\r\n", `string("he\r\no")`},
	{"$0\r\n\r\n", `string("")`},
	{"$-1\r\n", "nil"}, {"*-1\r\n", "nil"}, {"_\r\n", "nil"},
	{"*0\r\n", "array[]"},
	{"*3\r\n:1\r\n$-1\r\n*1\r\n+x\r\n", `array[int(1) nil array[string("x")]]`},
	{"#t\r\n", "bool(1)"}, {"#f\r\n", "bool(0)"},
	{",3.25\r\n", "float(3.25)"}, {",inf\r\n", "float(inf)"}, {",-inf\r\n", "float(-inf)"}, {",nan\r\n", "float(nan)"}, {",1e3\r\n", "float(1000)"},
	{"(-3492890328409238509324850943850943825024385\r\n", `big number("-3492890328409238509324850943850943825024385")`},
	{"!10\r\nSYNTAX bad\r\n", `error("SYNTAX bad")`},
	{"=8\r\ntxt:some\r\n", `verbatim text("some")`},
	{"%2\r\n+a\r\n:1\r\n+b\r\n%0\r\n", `map[string("a") int(1) string("b") map[]]`},
	{"~2\r\n:1\r\n:2\r\n", "set[int(1) int(2)]"},
	{">2\r\n+message\r\n+x\r\n", `push[string("message") string("x")]`},
	{"|1\r\n+ttl\r\n:3600\r\n+value\r\n", `string("value")`},
	{"*2\r\n|1\r\n+a\r\n*1\r\n|1\r\n+b\r\n:1\r\n:2\r\n:3\r\n:4\r\n", "array[int(3) int(4)]"},
	{"|0\r\n:1\r\n", "int(1)"},
	{"*2\r\n:1\r\n>1\r\n+push\r\n:2\r\n", `push[string("push")]; array[int(1) int(2)]`},
	{"*1\r\n>2\r\n+a\r\n*1\r\n:9\r\n:2\r\n", `push[string("a") array[int(9)]]; array[int(2)]`},
	{"$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n", `string("Hello")`},
	{"$?\r\n;0\r\n", `string("")`},
	{"*?\r\n:1\r\n*?\r\n.\r\n.\r\n", "array[int(1) array[]]"},
	{"%?\r\n+a\r\n:1\r\n.\r\n", `map[string("a") int(1)]`},
}

// P11, P12, P18: every type, in every split, and one after the other in one piece.
func TestDecode(t *testing.T) {
	var wire, want []string
	for _, c := range corpus {
		wire, want = append(wire, c.wire), append(want, c.is)
		for at := 0; at <= len(c.wire); at++ {
			if got, err := decodeAll(t, c.wire[:at], c.wire[at:]); err != nil || showAll(got) != c.is {
				t.Errorf("%q cut at %d: %s, %v; want %s", c.wire, at, showAll(got), err, c.is)
			}
		}
		if got, err := decodeAll(t, strings.Split(c.wire, "")...); err != nil || showAll(got) != c.is {
			t.Errorf("%q byte by byte: %s, %v", c.wire, showAll(got), err)
		}
	}
	if got, err := decodeAll(t, strings.Join(wire, "")); err != nil || showAll(got) != strings.Join(want, "; ") {
		t.Errorf("all in one: %v\n%s", err, showAll(got))
	}
}

// P13: what is not the protocol is an error, shown in short.
func TestDecodeNonsense(t *testing.T) {
	for _, wire := range []string{
		"\r\n", "x\r\n", "+OK\n", "HTTP/1.1 400 Bad Request\r\n", ":\r\n", ":1x\r\n", ":9223372036854775808\r\n", ":--1\r\n",
		"$-2\r\n", "$x\r\n", "$536870913\r\n", "$99999999999999999999\r\n", "$2\r\nabc\r\n", "$1\r\na\n\r\n",
		"*-2\r\n", "*99999999999\r\n", "%-1\r\n", "~-1\r\n", ">?\r\n", "_x\r\n", "#x\r\n", "#\r\n", ",x\r\n", ",0x1p-2\r\n", ",\r\n", "(\r\n", "(1x\r\n", "(--1\r\n",
		"=2\r\nab\r\n", "=4\r\nabcd\r\n", ";1\r\n", ".\r\n", "*1\r\n.\r\n", "%?\r\n:1\r\n.\r\n", "$?\r\n:1\r\n", "$?\r\n;2\r\nabc\r\n", "*?\r\n.x\r\n",
		strings.Repeat("*1\r\n", maxDepth+1), "+" + strings.Repeat("x", 2*maxLine), "\x00\x00\r\n",
	} {
		got, err := decodeAll(t, wire)
		if !errors.Is(err, errProtocol) {
			t.Errorf("%.40q: %s, %v", wire, showAll(got), err)
		}
		if err != nil && (len(err.Error()) > 200 || strings.ContainsAny(err.Error(), "\r\n\x00")) {
			t.Errorf("%.40q: the error is %q", wire, err)
		}
	}
}

// What is announced costs nothing until it comes.
func TestAnnouncementsAllocateNothing(t *testing.T) {
	for _, wire := range []string{"*1000000000\r\n", "%1000000000\r\n", "~2147483648\r\n", "$536870912\r\n", "|1000000000\r\n", "!500000000\r\nERR"} {
		if grown := heapOf(func() any { d := newDecoder(); d.Decode([]byte(wire)); return d }); grown > 64<<10 {
			t.Errorf("%q costs %d bytes", wire, grown)
		}
	}
	nested := strings.Repeat("*1000000000\r\n", maxDepth)
	if grown := heapOf(func() any { d := newDecoder(); d.Decode([]byte(nested)); return d }); grown > 1<<20 {
		t.Errorf("%d levels cost %d bytes", maxDepth, grown)
	}
	body := "*100000\r\n" + strings.Repeat(":1\r\n", 99_999)
	if grown := heapOf(func() any { d := newDecoder(); d.Decode([]byte(body)); return d }); grown > 40*len(body) {
		t.Errorf("%d bytes cost %d", len(body), grown)
	}
}

// heapOf is what stays of what make makes.
func heapOf(make func() any) int {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	kept := make()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	return int(after.HeapAlloc) - int(before.HeapAlloc)
}

// What is asked for most costs no allocation but the value's own bytes.
func TestDecodeAllocations(t *testing.T) {
	for wire, want := range map[string]float64{"+OK\r\n": 0, ":1000\r\n": 0, "$-1\r\n": 0, "_\r\n": 0, "#t\r\n": 0, "$16\r\n0123456789abcdef\r\n": 1} {
		d, b := newDecoder(), []byte(wire)
		if got := testing.AllocsPerRun(100, func() {
			if _, n, done, err := d.Decode(b); n != len(b) || !done || err != nil {
				t.Fatal(n, done, err)
			}
		}); got > want {
			t.Errorf("%q: %v allocations", wire, got)
		}
	}
	buf := make([]byte, 0, 1024)
	key, value := strings.Repeat("k", 20), []byte("value")
	if got := testing.AllocsPerRun(100, func() {
		buf, _ = appendCommand(buf[:0], []any{"SET", key, value, "EX", 60, 1.5, true, uint8(3)})
	}); got > 0 {
		t.Errorf("a command: %v allocations", got)
	}
}

// P17: a command is an array of strings with whatever is in them.
func TestEncode(t *testing.T) {
	for _, c := range []struct {
		args []any
		want string
	}{
		{[]any{"SET", "mykey", 1}, "*3\r\n$3\r\nSET\r\n$5\r\nmykey\r\n$1\r\n1\r\n"},
		{[]any{"X", "", []byte("\r\n\x00"), int64(math.MinInt64), uint64(math.MaxUint64)}, "*5\r\n$1\r\nX\r\n$0\r\n\r\n$3\r\n\r\n\x00\r\n$20\r\n-9223372036854775808\r\n$20\r\n18446744073709551615\r\n"},
		{[]any{"X", 1.5, float32(0.1), math.Inf(1), math.Inf(-1), true, false}, "*7\r\n$1\r\nX\r\n$3\r\n1.5\r\n$3\r\n0.1\r\n$3\r\ninf\r\n$4\r\n-inf\r\n$1\r\n1\r\n$1\r\n0\r\n"},
		{[]any{"X", int8(-1), int16(2), int32(3), uint(4), uint8(5), uint16(6), uint32(7)}, "*8\r\n$1\r\nX\r\n$2\r\n-1\r\n$1\r\n2\r\n$1\r\n3\r\n$1\r\n4\r\n$1\r\n5\r\n$1\r\n6\r\n$1\r\n7\r\n"},
	} {
		if got, err := appendCommand(nil, c.args); string(got) != c.want || err != nil {
			t.Errorf("%v: %q, %v", c.args, got, err)
		}
	}
	for _, arg := range []any{nil, struct{}{}, &corpus, []string{"a"}, map[string]int{}, errProtocol} {
		before := []byte("before")
		got, err := appendCommand(before, []any{"SET", "k", arg})
		if !errors.Is(err, errArgument) || string(got) != "before" || !strings.Contains(err.Error(), "number 3") {
			t.Errorf("%T: %q, %v", arg, got, err)
		}
	}
	if _, err := appendCommand(nil, nil); err == nil {
		t.Error("nothing was sent")
	}
}

// naive is another decoder of the same protocol: recursive, of a whole reply, and plain
// enough to be believed.
type naive struct {
	s      string
	pushes []Value
}

var errShort = errors.New("short")

func (p *naive) line() (string, error) {
	i := strings.IndexByte(p.s, '\n')
	if i < 0 {
		return "", errShort
	}
	line := p.s[:i]
	p.s = p.s[i+1:]
	if len(line) < 2 || !strings.HasSuffix(line, "\r") {
		return "", errProtocol
	}
	return strings.TrimSuffix(line, "\r"), nil
}

func (p *naive) value(depth int) (v Value, end bool, err error) {
	line, err := p.line()
	if err != nil {
		return v, false, err
	}
	kind, rest := line[0], line[1:]
	n, numErr := strconv.ParseInt(rest, 10, 64)
	switch kind {
	case '+':
		return Value{kind: KindString, s: rest}, false, nil
	case '-':
		return Value{kind: KindError, s: rest}, false, nil
	case ':':
		return Value{kind: KindInt, n: n}, false, numErr
	case '$', '!', '=':
		if n == -1 && kind == '$' && numErr == nil {
			return v, false, nil
		}
		if numErr != nil || n < 0 || n > maxBulk {
			return v, false, errProtocol
		}
		if int64(len(p.s)) < n+2 {
			return v, false, errShort
		}
		text := p.s[:n]
		if p.s[n:n+2] != "\r\n" {
			return v, false, errProtocol
		}
		p.s = p.s[n+2:]
		switch kind {
		case '!':
			return Value{kind: KindError, s: text}, false, nil
		case '=':
			if n < 4 || text[3] != ':' {
				return v, false, errProtocol
			}
			return Value{kind: KindVerbatim, s: text[4:]}, false, nil
		}
		return Value{kind: KindString, s: text}, false, nil
	case '*', '~', '>', '%', '|':
		if n == -1 && kind == '*' && numErr == nil {
			return v, false, nil
		}
		if numErr != nil || n < 0 || n > 1<<20 || depth >= maxDepth {
			return v, false, errProtocol
		}
		if kind == '%' || kind == '|' {
			n *= 2
		}
		v.kind, v.elems = kinds[kind], []Value{}
		for int64(len(v.elems)) < n {
			e, _, err := p.value(depth + 1)
			if err != nil {
				return v, false, err
			}
			if e.kind == KindPush {
				p.pushes = append(p.pushes, e)
				continue
			}
			v.elems = append(v.elems, e)
		}
		if kind == '|' {
			return p.value(depth)
		}
		return v, false, nil
	case '_':
		if rest == "" {
			return v, false, nil
		}
	case '#':
		if rest == "t" || rest == "f" {
			return Value{kind: KindBool, n: int64(b2i(rest == "t"))}, false, nil
		}
	case ',':
		if f, ok := parseFloat(rest); ok {
			return Value{kind: KindFloat, n: int64(math.Float64bits(f))}, false, nil
		}
	}
	return v, false, errProtocol
}

// FuzzDecode: no bytes make it panic; splits change nothing; it says what the naive one
// says; and what it keeps is in proportion to what came.
func FuzzDecode(f *testing.F) {
	for _, c := range corpus {
		f.Add(c.wire, uint64(1))
	}
	f.Add("*1000000000\r\n:1\r\n", uint64(2))
	f.Add("*2\r\n$3\r\nfoo\r\n", uint64(3))
	f.Fuzz(func(t *testing.T, wire string, seed uint64) {
		whole, wholeErr := decodeAll(t, wire)
		r := rand.New(rand.NewPCG(seed, 1))
		var pieces []string
		for rest := wire; len(rest) > 0; {
			n := 1 + r.IntN(min(len(rest), 9))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		split, splitErr := decodeAll(t, pieces...)
		if showAll(whole) != showAll(split) || (wholeErr == nil) != (splitErr == nil) {
			t.Fatalf("whole %s, %v; split %s, %v", showAll(whole), wholeErr, showAll(split), splitErr)
		}
		for _, v := range whole {
			_ = v.String()
			for _, convert := range []func(Reply){func(r Reply) { r.Text() }, func(r Reply) { r.Int() }, func(r Reply) { r.Float() }, func(r Reply) { r.Bool() }, func(r Reply) { r.Strings() }, func(r Reply) { r.Map() }} {
				convert(v.Reply())
			}
		}
		if strings.ContainsAny(wire, "?;.(") || wholeErr != nil || strings.Contains(wire, "+") && strings.Contains(wire, ":+") {
			return // what only one of the two knows
		}
		p := &naive{s: wire}
		var want []Value
		for len(p.s) > 0 {
			v, _, err := p.value(0)
			if want = append(want, p.pushes...); err != nil {
				break
			}
			p.pushes = nil
			want = append(want, v)
		}
		if len(want) < len(whole) || !reflect.DeepEqual(normal(want[:len(whole)]), normal(whole)) {
			t.Fatalf("%q: %s; the naive one says %s", wire, showAll(whole), showAll(want))
		}
	})
}

// normal makes values comparable: NaN is not.
func normal(values []Value) []string {
	var out []string
	for _, v := range values {
		out = append(out, show(v))
	}
	return out
}

// FuzzCommand: what is encoded is read back as it was.
func FuzzCommand(f *testing.F) {
	f.Add("SET", "key", int64(1), 1.5)
	f.Add("", "\r\n$3\r\n", int64(-1), math.Inf(-1))
	f.Fuzz(func(t *testing.T, name, text string, n int64, x float64) {
		wire, err := appendCommand(nil, []any{name, text, n, x, []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeAll(t, string(wire))
		if err != nil || len(got) != 1 {
			t.Fatalf("%d values, %v", len(got), err)
		}
		want := []string{name, text, strconv.FormatInt(n, 10), formatFloat(x), text}
		if have, err := got[0].Reply().Strings(); err != nil || !reflect.DeepEqual(have, want) {
			t.Fatalf("%q, %v; want %q", have, err, want)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for name, wire := range map[string]string{"bulk": "$16\r\n0123456789abcdef\r\n", "int": ":1000\r\n", "OK": "+OK\r\n"} {
		b.Run(name, func(b *testing.B) {
			d, w := newDecoder(), []byte(wire)
			b.ReportAllocs()
			for b.Loop() {
				d.Decode(w)
			}
		})
	}
}
