package redis

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// value is what a stream of one value says.
func value(t testing.TB, stream string) Value {
	t.Helper()
	v, n, done, err := new(decoder).Decode([]byte(stream))
	if err != nil || !done || n != len(stream) {
		t.Fatalf("%q: %v %v, %d bytes", stream, done, err, n)
	}
	return v
}

// wants are a conversion, and what it gives for streams: a result, or an error's text.
type wants map[string]any

func checkAll[T any](t *testing.T, name string, convert func(Value) (T, error), w wants) {
	t.Helper()
	for stream, want := range w {
		got, err := convert(value(t, stream))
		if want, ok := want.(error); ok {
			if err == nil || err.Error() != want.Error() {
				t.Errorf("%s of %q: %v, %v; want %v", name, stream, got, err, want)
			}
			continue
		}
		if err != nil || fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
			t.Errorf("%s of %q: %#v, %v; want %#v", name, stream, got, err, want)
		}
	}
}

func no(text string) error { return errors.New("redis: " + text) }

func TestConversions(t *testing.T) {
	checkAll(t, "Text", Value.Text, wants{
		"$5\r\na\x00b\r\n\r\n": "a\x00b\r\n", "+OK\r\n": "OK", "$0\r\n\r\n": "",
		"=7\r\ntxt:abc\r\n": "abc", "(123456789012345678901\r\n": "123456789012345678901",
		":-12\r\n": "-12", "#t\r\n": "1", "#f\r\n": "0",
		",1.5\r\n": "1.5", ",inf\r\n": "inf", ",-inf\r\n": "-inf", ",nan\r\n": "nan", ",1e30\r\n": "1e+30",
		"_\r\n": Nil, "$-1\r\n": Nil, "*-1\r\n": Nil,
		"-ERR x\r\n": no("ERR x"), "*0\r\n": no("the array is no string"), "%0\r\n": no("the map is no string"),
	})
	checkAll(t, "Bytes", Value.Bytes, wants{
		"$2\r\nab\r\n": []byte("ab"), "$0\r\n\r\n": []byte{}, "+OK\r\n": []byte("OK"), "+\r\n": []byte{},
		":7\r\n": []byte("7"), "=4\r\ntxt:\r\n": []byte{},
		"_\r\n": Nil, "~0\r\n": no("the set is no []byte"),
	})
	checkAll(t, "Int", Value.Int, wants{
		":7\r\n": int64(7), "$2\r\n-7\r\n": int64(-7), "+8\r\n": int64(8), "#t\r\n": int64(1),
		",3\r\n": int64(3), ",-9223372036854775808\r\n": int64(math.MinInt64), "(42\r\n": int64(42),
		"$19\r\n9223372036854775807\r\n": int64(math.MaxInt64),
		",9223372036854775807\r\n":       no("the double is no int64"), // 2^63
		",1.5\r\n":                       no("the double is no int64"),
		",nan\r\n":                       no("the double is no int64"),
		",inf\r\n":                       no("the double is no int64"),
		"(9223372036854775808\r\n":       no("the big number is no int64"),
		"$3\r\n1.0\r\n":                  no("the string is no int64"),
		"$0\r\n\r\n":                     no("the string is no int64"),
		"$2\r\n 1\r\n":                   no("the string is no int64"),
		"_\r\n":                          Nil, "*1\r\n:1\r\n": no("the array is no int64"),
	})
	checkAll(t, "Float", Value.Float, wants{
		",1.5\r\n": 1.5, "$3\r\n1.5\r\n": 1.5, ":2\r\n": 2.0, "$3\r\ninf\r\n": math.Inf(1), "$4\r\n-inf\r\n": math.Inf(-1),
		"$4\r\n+Inf\r\n": math.Inf(1), "$3\r\nnan\r\n": math.NaN(), "(1" + strings.Repeat("0", 30) + "\r\n": 1e30,
		"$4\r\n0x1p\r\n": no("the string is no float64"), "$0\r\n\r\n": no("the string is no float64"),
		"$1\r\n \r\n": no("the string is no float64"), "_\r\n": Nil, "~0\r\n": no("the set is no float64"),
	})
	checkAll(t, "Bool", Value.Bool, wants{
		"#t\r\n": true, "#f\r\n": false, ":1\r\n": true, ":0\r\n": false, ":2\r\n": true,
		"$1\r\n1\r\n": true, "$1\r\n0\r\n": false,
		"+OK\r\n": no("the status is no bool"), "$4\r\ntrue\r\n": no("the string is no bool"), "_\r\n": Nil,
	})
	checkAll(t, "Strings", Value.Strings, wants{
		"*2\r\n$1\r\na\r\n:1\r\n": []string{"a", "1"}, "~1\r\n+a\r\n": []string{"a"}, "*0\r\n": []string{}, "~?\r\n.\r\n": []string{},
		"%1\r\n+k\r\n+v\r\n":       []string{"k", "v"},
		">1\r\n+a\r\n":             []string{"a"},
		"*-1\r\n":                  Nil,
		"*2\r\n+a\r\n$-1\r\n":      no("nil (in element 1)"),
		"*1\r\n-ERR x\r\n":         no("ERR x (in element 0)"),
		"*2\r\n+a\r\n*1\r\n:1\r\n": no("the array is no string (in element 1)"),
		"$1\r\na\r\n":              no("the string is no []string"),
	})
	checkAll(t, "Map", Value.Map, wants{
		"%2\r\n+a\r\n:1\r\n+b\r\n,2.5\r\n":                     map[string]string{"a": "1", "b": "2.5"},
		"*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$3\r\n2.5\r\n": map[string]string{"a": "1", "b": "2.5"},
		"*2\r\n*2\r\n+a\r\n,1\r\n*2\r\n+b\r\n,2.5\r\n":         map[string]string{"a": "1", "b": "2.5"},
		"*0\r\n":                         map[string]string{},
		"%0\r\n":                         map[string]string{},
		"%2\r\n+a\r\n+1\r\n+a\r\n+2\r\n": map[string]string{"a": "2"},
		"*3\r\n+a\r\n+b\r\n+c\r\n":       no("the array is no map[string]string"),
		"*2\r\n+a\r\n_\r\n":              no("nil (in element 1)"),
		"*2\r\n*2\r\n+a\r\n+b\r\n*2\r\n+c\r\n*0\r\n": no("the array is no string (in element 1)"),
		"%1\r\n*2\r\n+a\r\n+b\r\n*2\r\n+a\r\n+b\r\n": no("the array is no string (in element 0)"),
		"*2\r\n*2\r\n+a\r\n+b\r\n*1\r\n+c\r\n":       no("the array is no string (in element 0)"),
		"_\r\n":                                      Nil,
		":1\r\n":                                     no("the integer is no map[string]string"),
		"-WRONGTYPE Operation against a key\r\n":     no("WRONGTYPE Operation against a key"),
	})
	checkAll(t, "Values", func(v Value) (string, error) { all, err := v.Values(); return fmt.Sprint(all), err }, wants{
		"*3\r\n:1\r\n_\r\n-ERR x\r\n": `[1 null error("redis: ERR x")]`, "%1\r\n+a\r\n:1\r\n": `["a" 1]`, "*0\r\n": "[]",
		"_\r\n": Nil, "+a\r\n": no("the status is no []Value"),
	})
}

func TestPairsInOrder(t *testing.T) {
	for _, stream := range []string{
		"%2\r\n+b\r\n:1\r\n+a\r\n:2\r\n",
		"*4\r\n+b\r\n:1\r\n+a\r\n:2\r\n",
		"*2\r\n*2\r\n+b\r\n:1\r\n*2\r\n+a\r\n:2\r\n",
	} {
		all, err := value(t, stream).Pairs()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for k, v := range all {
			got = append(got, k.String(), v.String())
		}
		if want := []string{`"b"`, "1", `"a"`, "2"}; !slices.Equal(got, want) {
			t.Errorf("%q: %s", stream, got)
		}
		for range all {
			break
		}
	}
	if _, err := value(t, ":1\r\n").Pairs(); err == nil {
		t.Error("an integer has pairs")
	}
}

// What is not there, what is empty and what failed are three things.
func TestNilEmptyAndErrorAreDistinct(t *testing.T) {
	for _, stream := range []string{"$-1\r\n", "*-1\r\n", "_\r\n"} {
		v := value(t, stream)
		if _, err := v.Text(); !errors.Is(err, Nil) || !errors.Is(v.Err(), Nil) || v.Kind() != KindNull {
			t.Errorf("%q: %v of kind %s", stream, err, v.Kind())
		}
	}
	if v := (Value{}); !errors.Is(v.Err(), Nil) || v.Kind() != KindNull || v.String() != "null" {
		t.Errorf("the zero Value: %v", v)
	}
	if s, err := value(t, "$0\r\n\r\n").Text(); s != "" || err != nil {
		t.Error(s, err)
	}
	v := value(t, "-WRONGTYPE Operation against a key\r\n")
	_, err := v.Int()
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != "WRONGTYPE" || e.Msg != "Operation against a key" || errors.Is(err, Nil) {
		t.Errorf("%#v", err)
	}
	_, err = value(t, "*1\r\n_\r\n").Strings()
	if !errors.Is(err, Nil) {
		t.Error(err)
	}
	_, err = value(t, "*1\r\n*0\r\n").Strings()
	if e, ok := errors.AsType[*TypeError](err); !ok || e.Kind != KindArray || e.Want != "string" {
		t.Errorf("%#v", err)
	}
}

// The errors within an EXEC are values among the others.
func TestErrorsWithinAnArray(t *testing.T) {
	all, err := value(t, "*3\r\n+OK\r\n-ERR x\r\n!5\r\nA b\nc\r\n").Values()
	if err != nil || all[0].Err() != nil || all[1].Err().Error() != "redis: ERR x" || all[1].Kind() != KindError {
		t.Fatalf("%v %v", all, err)
	}
	if e, ok := errors.AsType[*Error](all[2].Err()); !ok || e.Code != "A" || e.Msg != "b\nc" || all[2].Kind() != KindError {
		t.Errorf("%v", all[2])
	}
}

func TestFailure(t *testing.T) {
	cause := fmt.Errorf("lost: %w", io.ErrUnexpectedEOF)
	v := failure(cause)
	_, err := v.Map()
	_, bytesErr := v.Bytes()
	if v.Err() != cause || err != cause || bytesErr != cause || v.Kind() != KindError {
		t.Errorf("%v of kind %s", err, v.Kind())
	}
	if got := v.String(); got != `error("lost: unexpected EOF")` {
		t.Error(got)
	}
}

func TestErrorText(t *testing.T) {
	if got := parseError("BUSY").Error(); got != "redis: BUSY" {
		t.Errorf("%q", got)
	}
	if got := parseError("").Error(); got != "redis:" {
		t.Errorf("%q", got)
	}
	long := parseError("ERR " + strings.Repeat("é", 10_000)).Error()
	if len(long) > 540 || !strings.HasSuffix(long, "é…") {
		t.Errorf("%d bytes: …%q", len(long), long[len(long)-10:])
	}
}

func TestErrorIsOneLine(t *testing.T) {
	if got := parseError("ERR a\r\nlevel=error\x1b[31m\xff").Error(); got != "redis: ERR a  level=error [31m" {
		t.Errorf("%q", got)
	}
}

func TestNotRun(t *testing.T) {
	for text, want := range map[string]bool{
		"LOADING Redis is loading the dataset in memory":                                            true,
		"READONLY You can't write against a read only replica.":                                     true,
		"MASTERDOWN Link with MASTER is down":                                                       true,
		"NOREPLICAS Not enough good replicas to write.":                                             true,
		"MOVED 3999 127.0.0.1:6381":                                                                 false,
		"ASK 3999 127.0.0.1:6381":                                                                   false,
		"TRYAGAIN Multiple keys request during rehashing of slot":                                   true,
		"CLUSTERDOWN The cluster is down":                                                           true,
		"READONLY You can't write against a read only replica. script: 06575, on @user_script:1.":   false,
		"NOREPLICAS Not enough good replicas to write. script: myfunc, on @user_function:1.":        false,
		"ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against": false,
		"NOAUTH Authentication required.":                                                           false,
		"WRONGTYPE Operation against a key holding the wrong kind of value":                         false,
		"OOM command not allowed when used memory > 'maxmemory'.":                                   false,
		"loading": false,
		"":        false,
	} {
		err := fmt.Errorf("wrapped: %w", parseError(text))
		if got := notRun(err); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
		if got := demoted(err); got != strings.HasPrefix(text, "READONLY") {
			t.Errorf("%q: demoted %v", text, got)
		}
	}
	if notRun(nil) || notRun(Nil) || notRun(io.EOF) || demoted(nil) {
		t.Error("what no server said was not run")
	}
}

func TestValueIsSmall(t *testing.T) {
	if got := unsafe.Sizeof(Value{}); got > 24 {
		t.Errorf("%d bytes", got)
	}
}

// However large a Value is, what is printed of it is not.
func TestPreviewIsBounded(t *testing.T) {
	for stream, want := range map[string]string{
		"$2\r\n\x00a\r\n":                     `"\x00a"`,
		"+OK\r\n":                             `"OK"`,
		"#t\r\n":                              "true",
		",1.5\r\n":                            "1.5",
		"(12\r\n":                             "12",
		"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n": `map["a":1 "b":[null]]`,
		"~0\r\n":                              "set[]",
		">1\r\n+x\r\n":                        `push["x"]`,
		"=5\r\ntxt:x\r\n":                     `"x"`,
		"$60\r\n" + strings.Repeat("x", 60) + "\r\n": `"` + strings.Repeat("x", 48) + `"…(60 bytes)`,
	} {
		v := value(t, stream)
		if got := v.String(); got != want {
			t.Errorf("%q: %s, want %s", stream, got, want)
		}
		if got := fmt.Sprintf("%#v", v); got != "redis.Value("+want+")" {
			t.Errorf("%q: %s", stream, got)
		}
	}
	secret := strings.Repeat("x", 100) + "secret"
	one := fmt.Sprintf("$%d\r\n%s\r\n", len(secret), secret)
	deep := strings.Repeat("*2\r\n"+one, maxDepth) + "_\r\n"
	for _, v := range []Value{
		value(t, one), value(t, "*1000\r\n"+strings.Repeat(one, 1000)), value(t, deep),
		value(t, "-"+secret+secret+"\r\n"), value(t, "("+strings.Repeat("9", 1000)+"\r\n"),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			if got := fmt.Sprintf(verb, v); len(got) > 1500 || strings.Contains(got, "secret") {
				t.Errorf("%s: %d bytes: %s", verb, len(got), got)
			}
		}
	}
}

// Bytes and Text share the memory of a string, but never that of a constant.
func TestBytesAreTheValuesOwn(t *testing.T) {
	b, _ := value(t, "+OK\r\n").Bytes()
	b[0] = 'X'
	if s, _ := value(t, "+OK\r\n").Text(); s != "OK" {
		t.Errorf("%q", s)
	}
	b, _ = value(t, "$2\r\nab\r\n").Bytes()
	if cap(b) != len(b) {
		t.Errorf("append would write to %d bytes behind it", cap(b)-len(b))
	}
	v := value(t, "$200\r\n"+strings.Repeat("x", 200)+"\r\n")
	if n := testing.AllocsPerRun(10, func() { v.Text(); v.Bytes() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKindNames(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range []Kind{KindNull, KindStatus, KindString, KindError, KindInt, KindDouble, KindBool, KindBigNumber,
		KindVerbatim, KindArray, KindSet, KindMap, KindPush, Kind('?')} {
		seen[k.String()] = true
	}
	if len(seen) != 14 || seen[""] || !seen["'?'"] {
		t.Error(slices.Collect(maps.Keys(seen)))
	}
}
