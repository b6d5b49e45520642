package redis

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// idle reports whether the stream may end here.
func (d *decoder) idle() bool {
	return len(d.open) == 0 && len(d.held) == 0 && d.left == 0 && !d.chunked
}

// decodeAll feeds a stream in pieces, as a connection does, and returns the dumps of
// its values and why there are no more. What the decoder gets is overwritten at once,
// for it must keep nothing of it.
func decodeAll(t testing.TB, d *decoder, pieces ...[]byte) (out []string, err error) {
	t.Helper()
	var values []Value
	for _, p := range pieces {
		buf := slices.Clone(p)
		for len(buf) > 0 {
			v, n, done, err := d.Decode(buf)
			switch {
			case n < 0 || n > len(buf):
				t.Fatalf("consumed %d of %d bytes", n, len(buf))
			case !done && err == nil && n < len(buf):
				t.Fatalf("left %d bytes and wants more", len(buf)-n)
			case done && n == 0:
				t.Fatal("a value out of nothing")
			}
			for i := range n {
				buf[i] = '?'
			}
			if err != nil {
				return dumpAll(values), err
			}
			if done {
				values = append(values, v)
			}
			buf = buf[n:]
		}
	}
	return dumpAll(values), nil
}

func dumpAll(values []Value) (out []string) {
	for _, v := range values {
		out = append(out, dump(v))
	}
	return out
}

// corpus is streams and the values in them. It covers every type of both protocols.
var corpus = []struct{ stream, want string }{
	// RESP2
	{"+OK\r\n", `+"OK"`},
	{"+\r\n", `+""`},
	{"+a status\r\n", `+"a status"`},
	{"-ERR no such thing\r\n", `-"ERR no such thing"`},
	{"-BUSY\r\n", `-"BUSY"`},
	{":0\r\n", ":0"},
	{":-9223372036854775808\r\n", ":-9223372036854775808"},
	{":9223372036854775807\r\n", ":9223372036854775807"},
	{":+5\r\n", ":5"},
	{"$5\r\nhello\r\n", `$"hello"`},
	{"$0\r\n\r\n", `$""`},
	{"$4\r\n\r\n\r\n\r\n", `$"\r\n\r\n"`},
	{"$-1\r\n", "_"},
	{"*-1\r\n", "_"},
	{"*0\r\n", "*[]"},
	{"*3\r\n:1\r\n$-1\r\n-ERR x\r\n", `*[:1 _ -"ERR x"]`},
	{"*2\r\n*1\r\n*1\r\n:1\r\n*0\r\n", "*[*[*[:1]] *[]]"},

	// RESP3
	{"_\r\n", "_"},
	{"#t\r\n#f\r\n", "#1 #0"},
	{",3.141\r\n,-1e3\r\n,10\r\n,.5\r\n", ",3.141 ,-1000 ,10 ,0.5"},
	{",inf\r\n,-inf\r\n,nan\r\n,-nan\r\n", ",+Inf ,-Inf ,NaN ,NaN"},
	{",1e999\r\n,-1e999\r\n", ",+Inf ,-Inf"},
	{"(3492890328409238509324850943850943825024385\r\n", `("3492890328409238509324850943850943825024385"`},
	{"(-0\r\n", `("-0"`},
	{"!21\r\nSYNTAX invalid\nsyntax\r\n", `-"SYNTAX invalid\nsyntax"`},
	{"=15\r\ntxt:Some string\r\n", `="Some string"`},
	{"=4\r\nmkd:\r\n", `=""`},
	{"%2\r\n+a\r\n:1\r\n$1\r\nb\r\n*1\r\n#t\r\n", `%[+"a" :1 $"b" *[#1]]`},
	{"%0\r\n~0\r\n", "%[] ~[]"},
	{"~3\r\n:1\r\n_\r\n:1\r\n", "~[:1 _ :1]"},
	{">2\r\n+message\r\n:1\r\n", `>[+"message" :1]`},

	// Attributes, before a value of any depth, and of attributes.
	{"|1\r\n+ttl\r\n:3600\r\n:1\r\n", ":1"},
	{"*2\r\n:1\r\n|1\r\n+a\r\n*1\r\n+b\r\n*1\r\n|0\r\n:2\r\n", "*[:1 *[:2]]"},
	{"|1\r\n|1\r\n+a\r\n+b\r\n+c\r\n+d\r\n|1\r\n+e\r\n+f\r\n_\r\n", "_"},

	// Pushes in between, and redis#8935.
	{":1\r\n>1\r\n:2\r\n:3\r\n", ":1 >[:2] :3"},
	{"*2\r\n>2\r\n+invalidate\r\n*1\r\n+key\r\n:1\r\n:2\r\n", `>[+"invalidate" *[+"key"]] *[:1 :2]`},
	{"*2\r\n:1\r\n*1\r\n>1\r\n:9\r\n>1\r\n:8\r\n:2\r\n:3\r\n", ">[:9] >[:8] *[:1 *[:2]] :3"},
	{"%1\r\n+k\r\n>1\r\n+p\r\n+v\r\n", `>[+"p"] %[+"k" +"v"]`},
	{"|1\r\n+a\r\n>1\r\n:9\r\n:1\r\n:2\r\n", ">[:9] :2"},
	{">2\r\n:1\r\n>1\r\n:9\r\n:2\r\n", ">[:9] >[:1 :2]"},
	{">0\r\n", ">[]"},

	// What is not counted.
	{"$?\r\n;4\r\nHell\r\n;6\r\no worl\r\n;1\r\nd\r\n;0\r\n", `$"Hello world"`},
	{"$?\r\n;0\r\n", `$""`},
	{"*?\r\n:1\r\n:2\r\n.\r\n", "*[:1 :2]"},
	{"*?\r\n.\r\n~?\r\n*?\r\n$?\r\n;0\r\n.\r\n.\r\n", `*[] ~[*[$""]]`},
	{"%?\r\n+a\r\n:1\r\n>1\r\n:9\r\n.\r\n", `>[:9] %[+"a" :1]`},
}

func corpusStream() (stream []byte, want []string) {
	for _, c := range corpus {
		stream = append(stream, c.stream...)
		out, _ := decodeAll(new(testing.T), new(decoder), []byte(c.stream))
		want = append(want, out...)
	}
	return stream, want
}

func TestDecodeEveryType(t *testing.T) {
	for _, c := range corpus {
		d := new(decoder)
		got, err := decodeAll(t, d, []byte(c.stream))
		if strings.Join(got, " ") != c.want || err != nil || !d.idle() {
			t.Errorf("%q: %s, error %v, idle %v; want %s", c.stream, got, err, d.idle(), c.want)
		}
		ref, err := (&reference{rest: []byte(c.stream)}).parseAll()
		if err == errNone {
			err = nil
		}
		if err != nil || !slices.Equal(ref, got) {
			t.Errorf("%q: the reference says %s, %v", c.stream, ref, err)
		}
	}
}

// Every value of the corpus at every two splits, and the end of the stream anywhere.
func TestDecodeSurvivesEverySplit(t *testing.T) {
	for _, c := range corpus {
		b := []byte(c.stream)
		for i := range len(b) + 1 {
			for j := i; j <= len(b); j++ {
				got, err := decodeAll(t, new(decoder), b[:i], b[i:j], b[j:])
				if strings.Join(got, " ") != c.want || err != nil {
					t.Fatalf("%q split at %d and %d: %s, %v", b, i, j, got, err)
				}
			}
			d := new(decoder)
			got, _ := decodeAll(t, d, b[:i])
			whole, _ := (&reference{rest: b[:i]}).parseAll()
			if !slices.Equal(got, whole) {
				t.Fatalf("%q: %s, want %s", b[:i], got, whole)
			}
			// An attribute that annotates nothing is no part of a value.
			if i > 0 && i < len(b) && len(got) == 0 && d.idle() && b[0] != '|' {
				t.Fatalf("%q: the stream may not end here", b[:i])
			}
		}
	}
}

// All of the corpus as one stream: at once, by the byte, and in random pieces.
func TestDecodeManyFromOneRead(t *testing.T) {
	stream, want := corpusStream()
	stream = append(stream, fmt.Sprintf("$%d\r\n%s\r\n", 70_000, strings.Repeat("x", 70_000))...)
	want = append(want, fmt.Sprintf("$%q", strings.Repeat("x", 70_000)))
	check := func(how string, pieces ...[]byte) {
		t.Helper()
		if got, err := decodeAll(t, new(decoder), pieces...); !slices.Equal(got, want) || err != nil {
			t.Fatalf("%s: %d values, want %d; error %v", how, len(got), len(want), err)
		}
	}
	check("at once", stream)
	check("by the byte", slices.Collect(slices.Chunk(stream, 1))...)
	for seed := range uint64(40) {
		check(fmt.Sprint("seed ", seed), randomPieces(rand.New(rand.NewPCG(seed, 0)), stream)...)
	}
}

func randomPieces(r *rand.Rand, b []byte) (pieces [][]byte) {
	most := 1 << r.IntN(16)
	for len(b) > 0 {
		n := min(len(b), r.IntN(most)+1)
		pieces, b = append(pieces, b[:n]), b[n:]
	}
	return pieces
}

// What is wrong is found at the byte that makes it so, wherever the stream is split, and
// said without more of it than the start.
func TestDecodeRefuses(t *testing.T) {
	long := strings.Repeat("9", maxLine+1)
	for _, c := range []struct{ stream, says string }{
		{"HTTP/1.1 400 Bad Request\r\n", `type 'H'`},
		{"\r\n", "type '\\r'"},
		{"\x00", "type"},
		{"+a\n", "without CR"},
		{"+\n", "without CR"},
		{"+a\rb\r\n", `"a\rb"`},
		{"-a\rb\r\n", `"a\rb"`},
		{":\r\n", "':'"},
		{":1x\r\n", `"1x"`},
		{":--1\r\n", "':'"},
		{":9223372036854775808\r\n", "':'"},
		{":-9223372036854775809\r\n", "':'"},
		{":99999999999999999999\r\n", "':'"},
		{":" + long[:600], "no end"},
		{"+" + long + "99", "no end"},
		{"(" + long + "\r\n", "no end"},
		{"(\r\n", "'('"},
		{"(1.5\r\n", "'('"},
		{"_x\r\n", "'_'"},
		{"#\r\n", "'#'"},
		{"#true\r\n", "'#'"},
		{",\r\n", "','"},
		{",0x1p4\r\n", "','"},
		{",infinity\r\n", "','"},
		{",1_000\r\n", "','"},
		{",1e\r\n", "','"},
		{"$\r\n", "'$'"},
		{"$-2\r\n", "'$'"},
		{"$+1\r\n", "'$'"},
		{"$ 1\r\n", "'$'"},
		{"$1a\r\n", "'$'"},
		{"$536870913\r\n", "536870913 bytes"},
		{"$99999999999999999999\r\n", "'$'"},
		{"$3\r\nabcd", "longer than its length"},
		{"$3\r\nabc\rx", "longer than its length"},
		{"$0\r\nx", "longer than its length"},
		{"!-1\r\n", "'!'"},
		{"=-1\r\n", "'='"},
		{"=3\r\n", "'='"},
		{"=7\r\ntxtabcd\r\n", "verbatim"},
		{"*-2\r\n", "'*'"},
		{"*\r\n", "'*'"},
		{"*1000000000\r\n", "1000000000 elements"},
		{"%999999999999999999\r\n", "more than a value"},
		{"%-1\r\n", "'%'"},
		{"~-1\r\n", "'~'"},
		{">-1\r\n", "'>'"},
		{">?\r\n", "'>'"},
		{"|?\r\n", "'|'"},
		{"|-1\r\n", "'|'"},
		{".\r\n", "'.'"},
		{"*1\r\n.\r\n", "missing"},
		{"*?\r\n.x\r\n", "'.'"},
		{"%?\r\n:1\r\n.\r\n", "a key"},
		{";1\r\na\r\n", "wrong place"},
		{"$?\r\n:1\r\n", "wrong place"},
		{"$?\r\n;x\r\n", "';'"},
		{"$?\r\n;1\r\nab", "longer than its length"},
		{strings.Repeat("*1\r\n", maxDepth+1), "within one another"},
		{strings.Repeat("|1\r\n", maxDepth+1), "within one another"},
	} {
		for _, good := range []string{"", "+OK\r\n", "*3\r\n:1\r\n"} {
			b := []byte(good + c.stream)
			_, whole := decodeAll(t, new(decoder), b)
			if !errors.Is(whole, ErrProtocol) || !strings.Contains(whole.Error(), c.says) && good == "" {
				t.Errorf("%.40q: %v, want %q", b, whole, c.says)
				continue
			}
			if len(whole.Error()) > 160 {
				t.Errorf("%.40q: %d bytes of error", b, len(whole.Error()))
			}
			if len(b) > 1000 {
				continue
			}
			if _, err := decodeAll(t, new(decoder), slices.Collect(slices.Chunk(b, 1))...); fmt.Sprint(err) != whole.Error() {
				t.Errorf("%.40q by the byte: %v, whole: %v", b, err, whole)
			}
		}
	}
}

func TestDecodeAfterAnErrorIsTheError(t *testing.T) {
	d := new(decoder)
	_, first := decodeAll(t, d, []byte("*5\r\n$100\r\nhalf"), []byte(strings.Repeat("x", 200)))
	_, n, done, err := d.Decode([]byte("+OK\r\n"))
	if first == nil || err != first || done || n != 0 {
		t.Errorf("%v, then %d %v %v", first, n, done, err)
	}
	if d.body != nil || d.open != nil || d.values != nil {
		t.Error("a broken decoder keeps what it had")
	}
}

// The deepest nesting that is allowed, in both directions.
func TestDecodeDepth(t *testing.T) {
	b := strings.Repeat("*1\r\n", maxDepth) + ":7\r\n"
	got, err := decodeAll(t, new(decoder), []byte(b))
	want := strings.Repeat("*[", maxDepth) + ":7" + strings.Repeat("]", maxDepth)
	if err != nil || got[0] != want {
		t.Fatalf("%v, %v", got, err)
	}
}

// allocated is what f allocates, garbage included.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// What is announced costs nothing until it comes.
func TestDecodeBombs(t *testing.T) {
	for name, c := range map[string]struct {
		stream string
		most   uint64
	}{
		"a string of 512 MiB":      {"$536870912\r\nx", 70 << 10},
		"a string of 500 MB":       {"$500000000\r\n", 1 << 10},
		"a long array":             {"*40000000\r\n:1\r\n", 2 << 10},
		"long arrays in arrays":    {strings.Repeat("*600000\r\n", maxDepth), 8 << 10},
		"maps of errors":           {strings.Repeat("%200000\r\n-x\r\n", maxDepth), 16 << 10},
		"a long error":             {"!536870912\r\nERR ", 70 << 10},
		"one chunk of much":        {"$?\r\n;536870912\r\nx", 1 << 10},
		"a status without end":     {"+" + strings.Repeat("x", 1000), 4 << 10},
		"strings, one after other": {"*9000\r\n" + strings.Repeat("$1\r\nx\r\n", 1000), 200 << 10},
	} {
		var err error
		got := uint64(math.MaxUint64)
		for range 5 { // the least: now and then the runtime allocates too, as for a thread
			got = min(got, allocated(func() { _, _, _, err = new(decoder).Decode([]byte(c.stream)) }))
		}
		if got > c.most+uint64(len(c.stream)) || err != nil {
			t.Errorf("%s: %d bytes allocated for %d received, want at most %d; error %v", name, got, len(c.stream), c.most, err)
		}
	}
}

// A large string in small pieces is copied a bounded number of times, and takes at most
// twice what came.
func TestDecodeGrowsWithTheBytes(t *testing.T) {
	const size = 8 << 20
	d := new(decoder)
	d.Decode(fmt.Appendf(nil, "$%d\r\n", size))
	piece := make([]byte, 4<<10)
	var came int
	total := allocated(func() {
		for came < size {
			d.Decode(piece)
			came += len(piece)
			if have := cap(d.body); have > max(smallString, 2*came)+8<<10 || have > size+8<<10 {
				t.Fatalf("%d bytes of memory for %d that came", have, came)
			}
		}
	})
	v, n, done, err := d.Decode([]byte("\r\n"))
	if s, _ := v.Text(); !done || n != 2 || err != nil || len(s) != size {
		t.Fatalf("%d bytes, %d %v %v", len(s), n, done, err)
	}
	if total > 3*size {
		t.Errorf("%d bytes allocated for a string of %d", total, size)
	}
}

// A value that would take more than 1 GiB is refused, however it is put together. To
// spare the memory the count starts near the end.
func TestDecodeTotalLimit(t *testing.T) {
	for _, stream := range []string{
		"*2\r\n$300000000\r\n",
		"*?\r\n" + strings.Repeat(":1\r\n", 1000),
		"*?\r\n*100000\r\n",
		"*?\r\n$?\r\n;10000\r\n",
		"*?\r\n" + strings.Repeat("+"+strings.Repeat("x", 1000)+"\r\n", 10),
	} {
		d := new(decoder)
		d.spent = maxValue - 5000
		if _, err := decodeAll(t, d, []byte(stream)); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%.30q: %v", stream, err)
		}
	}
	// What is delivered or dropped is no part of the value around it.
	d := new(decoder)
	stream := "*2\r\n" + strings.Repeat(">1\r\n$2\r\nxx\r\n|1\r\n+a\r\n+b\r\n", 3)
	decodeAll(t, d, []byte(stream))
	if d.spent != 0 {
		t.Errorf("%d bytes spent on pushes and attributes", d.spent)
	}
	decodeAll(t, d, []byte(":1\r\n:2\r\n"))
	if d.spent != 0 || !d.idle() {
		t.Errorf("%d bytes spent on nothing", d.spent)
	}
}

// Between values a decoder keeps little, whatever came.
func TestDecodeGivesMemoryBack(t *testing.T) {
	d := new(decoder)
	stream := "*1000\r\n" + strings.Repeat("+"+strings.Repeat("x", 2000)+"\r\n", 1000)
	if got, err := decodeAll(t, d, slices.Collect(slices.Chunk([]byte(stream), 777))...); err != nil || len(got) != 1 {
		t.Fatal(err)
	}
	if cap(d.values) > keepValues || cap(d.held) > keepLine || d.body != nil || cap(d.open) > maxDepth {
		t.Errorf("it keeps %d values, %d bytes of line", cap(d.values), cap(d.held))
	}
	for _, v := range d.values[:cap(d.values)] {
		if v.ptr != nil {
			t.Fatal("it keeps a value that was delivered")
		}
	}
}

// The elements are the value's own, whether they were copied or handed over.
func TestDecodeElementsStay(t *testing.T) {
	for _, n := range []int{1, 10, keepValues, 5 * keepValues} {
		d := new(decoder)
		var values []Value
		for i := range 3 {
			b := fmt.Appendf(nil, "*%d\r\n%s", n, strings.Repeat(fmt.Sprintf(":%d\r\n", i), n))
			v, _, done, err := d.Decode(b)
			if !done || err != nil {
				t.Fatal(done, err)
			}
			values = append(values, v)
		}
		for i, v := range values {
			all, _ := v.Values()
			if len(all) != n || cap(all) != n || all[0].num != int64(i) || all[n-1].num != int64(i) {
				t.Errorf("array %d of %d: %v", i, n, v)
			}
		}
	}
}

func TestDecodeAllocations(t *testing.T) {
	for stream, want := range map[string]float64{
		"+OK\r\n": 0, "+QUEUED\r\n": 0, ":12345\r\n": 0, "$-1\r\n": 0, "_\r\n": 0, "#t\r\n": 0, ",1.5\r\n": 0,
		"*0\r\n": 0, "$0\r\n\r\n": 0,
		"$16\r\n0123456789abcdef\r\n":       1,
		"+other\r\n":                        1,
		"*2\r\n:1\r\n:2\r\n":                1,
		"*2\r\n$1\r\na\r\n$2\r\nbb\r\n":     2, // one byte is not allocated
		"*2\r\n$2\r\naa\r\n$2\r\nbb\r\n":    3,
		"|1\r\n:1\r\n:2\r\n:3\r\n":          0,
		"-ERR the code and the message\r\n": 2,
	} {
		d, b := new(decoder), []byte(stream)
		got := testing.AllocsPerRun(100, func() {
			if _, _, done, _ := d.Decode(b); !done {
				t.Fatal(stream)
			}
		})
		if got != want {
			t.Errorf("%q: %v allocations, want %v", stream, got, want)
		}
	}
}
