package redis

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Nil is that there is no such value: the null of both protocols. Match it with
// errors.Is.
//
//lint:ignore ST1012 every Go user of Redis looks for it by this name.
var Nil = errors.New("redis: nil")

// Error is what a server said instead of an answer.
type Error struct {
	Code string // its first word, such as WRONGTYPE or ERR; "" where that is no code
	Msg  string // the rest
}

func (e *Error) Error() string { return "redis: " + clip(strings.TrimLeft(e.Code+" "+e.Msg, " ")) }

// parseError reads the line of an error.
func parseError(line string) *Error {
	code, msg, _ := strings.Cut(line, " ")
	if code == "" || strings.ToUpper(code) != code {
		return &Error{"", line}
	}
	return &Error{code, msg}
}

// clip makes what a server wrote fit for a line of a log.
func clip(s string) string {
	const most = 512
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Kind is what a Value is.
type Kind uint8

const (
	KindNil      Kind = iota
	KindString        // simple or bulk
	KindInt           //
	KindFloat         // of RESP3; RESP2 has a string
	KindBool          // of RESP3; RESP2 has 0 and 1
	KindBig           // an integer of any length
	KindVerbatim      // text with a format, which is dropped
	KindError         //
	KindArray         //
	KindMap           // keys and values in turn
	KindSet           //
	KindPush          // what a server sends by itself
)

func (k Kind) String() string {
	names := [...]string{"nil", "string", "int", "float", "bool", "big number", "verbatim text", "error", "array", "map", "set", "push"}
	if int(k) < len(names) {
		return names[k]
	}
	return "kind " + strconv.Itoa(int(k))
}

// Value is what a server sent: one scalar, or a tree of them. The zero Value is nil. It
// is immutable and safe for concurrent use.
type Value struct {
	kind  Kind
	n     int64   // an int or a bool, the bits of a float
	s     string  // a string, a number of any length, an error
	elems []Value // of an aggregate
}

// Kind returns what it is.
func (v Value) Kind() Kind { return v.kind }

// Err returns the error that it is, else nil.
func (v Value) Err() error {
	if v.kind != KindError {
		return nil
	}
	return parseError(v.s)
}

// String writes a Value for people, and not all of a large one.
func (v Value) String() string {
	switch v.kind {
	case KindNil:
		return "nil"
	case KindArray, KindMap, KindSet, KindPush:
		return fmt.Sprintf("%s of %d", v.kind, len(v.elems))
	}
	s, _ := v.text()
	if v.kind == KindInt || v.kind == KindFloat {
		return s
	}
	if len(s) > 64 {
		return fmt.Sprintf("%q… (%d bytes)", s[:64], len(s))
	}
	return strconv.Quote(s)
}

func (v Value) float() float64 { return math.Float64frombits(uint64(v.n)) }

// text is a scalar as RESP2 would write it.
func (v Value) text() (string, bool) {
	switch v.kind {
	case KindString, KindVerbatim, KindBig, KindError:
		return v.s, true
	case KindInt, KindBool:
		return strconv.FormatInt(v.n, 10), true
	case KindFloat:
		return formatFloat(v.float()), true
	}
	return "", false
}

func formatFloat(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

// Reply is the answer to a command, or why there is none. Its conversions return that
// reason, the server's own [*Error], [Nil] for a null, or a [*ConvertError]. They take
// what RESP2 and RESP3 say for the same thing.
type Reply struct {
	v   Value
	err error
}

// ConvertError is that a value is not what it was asked for as.
type ConvertError struct {
	Kind Kind   // what it is
	Want string // what it was to be
}

func (e *ConvertError) Error() string {
	return fmt.Sprintf("redis: the reply is a %s, and not %s", e.Kind, e.Want)
}

func (r Reply) not(want string) error { return &ConvertError{r.v.kind, want} }

// Err returns why there is no value: the transport's reason, the server's error, or Nil.
func (r Reply) Err() error {
	switch {
	case r.err != nil:
		return r.err
	case r.v.kind == KindError:
		return parseError(r.v.s)
	case r.v.kind == KindNil:
		return Nil
	}
	return nil
}

// Value returns the value as it came, nil and errors included; err is the transport's.
func (r Reply) Value() (Value, error) { return r.v, r.err }

// Text returns a scalar as a string.
func (r Reply) Text() (string, error) {
	if err := r.Err(); err != nil {
		return "", err
	}
	s, ok := r.v.text()
	if !ok {
		return "", r.not("a text")
	}
	return s, nil
}

// Bytes returns a scalar as bytes of the caller's own.
func (r Reply) Bytes() ([]byte, error) {
	s, err := r.Text()
	if err != nil {
		return nil, err
	}
	return []byte(s), nil
}

// Int returns an integer, or a string that is one.
func (r Reply) Int() (int64, error) {
	if err := r.Err(); err != nil {
		return 0, err
	}
	switch r.v.kind {
	case KindInt, KindBool:
		return r.v.n, nil
	case KindString, KindBig, KindVerbatim:
		if n, err := strconv.ParseInt(r.v.s, 10, 64); err == nil {
			return n, nil
		}
	}
	return 0, r.not("an integer of 64 bits")
}

// Float returns a number, or a string that is one.
func (r Reply) Float() (float64, error) {
	if err := r.Err(); err != nil {
		return 0, err
	}
	switch r.v.kind {
	case KindFloat:
		return r.v.float(), nil
	case KindInt:
		return float64(r.v.n), nil
	case KindString, KindBig, KindVerbatim:
		if f, ok := parseFloat(r.v.s); ok {
			return f, nil
		}
	}
	return 0, r.not("a number")
}

// Bool returns a boolean, a 1 or a 0, or true for OK.
func (r Reply) Bool() (bool, error) {
	if err := r.Err(); err != nil {
		return false, err
	}
	switch {
	case (r.v.kind == KindBool || r.v.kind == KindInt) && (r.v.n == 0 || r.v.n == 1):
		return r.v.n == 1, nil
	case r.v.kind == KindString && (r.v.s == "1" || r.v.s == "OK"):
		return true, nil
	case r.v.kind == KindString && r.v.s == "0":
		return false, nil
	}
	return false, r.not("a boolean")
}

// Values returns the elements of an aggregate, each as a reply of its own: those of a
// map are keys and values in turn.
func (r Reply) Values() ([]Value, error) {
	if err := r.Err(); err != nil {
		return nil, err
	}
	if !r.v.kind.aggregate() {
		return nil, r.not("an array")
	}
	return r.v.elems, nil
}

func (k Kind) aggregate() bool {
	return k == KindArray || k == KindMap || k == KindSet || k == KindPush
}

// Reply makes a reply of a value, to convert it.
func (v Value) Reply() Reply { return Reply{v: v} }

// Strings returns the elements of an aggregate of scalars; a nil among them is "".
func (r Reply) Strings() ([]string, error) {
	elems, err := r.Values()
	if err != nil {
		return nil, err
	}
	out := make([]string, len(elems))
	for i, v := range elems {
		s, ok := v.text()
		if v.kind == KindError {
			return nil, v.Err()
		}
		if !ok && v.kind != KindNil {
			return nil, v.Reply().not("a text, as an element")
		}
		out[i] = s
	}
	return out, nil
}

// Map returns a map of scalars, or an array that has keys and values in turn.
func (r Reply) Map() (map[string]string, error) {
	flat, err := r.Strings()
	if err != nil {
		return nil, err
	}
	if r.v.kind == KindSet || len(flat)%2 != 0 {
		return nil, r.not("a map")
	}
	out := make(map[string]string, len(flat)/2)
	for i := 0; i < len(flat); i += 2 {
		out[flat[i]] = flat[i+1]
	}
	return out, nil
}

// String is for people: the value, or the error.
func (r Reply) String() string {
	if r.err != nil {
		return r.err.Error()
	}
	return r.v.String()
}
