package redis

import (
	"math"
	"strconv"
	"unsafe"
)

// A Value is what a server said to a command, or why it said nothing: a string, a
// number, a list of Values, an error … The zero Value is null. Values are immutable,
// small, and safe for concurrent use; they are not comparable.
//
// A Value is converted to what the caller expects: [Value.Text], [Value.Int],
// [Value.Map] and so on. All conversions follow the same rules:
//
//   - A failed command fails them, with the error that [Value.Err] returns. Null is such
//     an error, [Nil], so that what is not there is never an empty string or 0.
//   - They take what RESP2 and RESP3 say for the same thing: a map is also a flat array
//     of keys and values, a set is an array, a number may be written as a string, true
//     is 1.
//   - What does not fit is a [*TypeError]. It concerns this Value alone: the connection
//     has long gone on.
type Value struct {
	_    [0]func()      // == would compare addresses
	ptr  unsafe.Pointer // to the bytes, to the elements, or to the error
	num  int64          // how many there are; an integer; the bits of a double
	kind Kind           // 0 is null
}

// Kind is the type of a Value: the character that announces it in RESP.
type Kind byte

const (
	KindNull      Kind = '_' // also $-1 and *-1
	KindStatus    Kind = '+' // a string without line breaks, such as OK
	KindString    Kind = '$' // any bytes
	KindError     Kind = '-' // and !; also a Value that is there instead of a reply
	KindInt       Kind = ':'
	KindDouble    Kind = ','
	KindBool      Kind = '#'
	KindBigNumber Kind = '(' // an integer of any size; its Text is what math/big reads
	KindVerbatim  Kind = '=' // a string to be shown; its format, txt or mkd, is not kept
	KindArray     Kind = '*'
	KindSet       Kind = '~'
	KindMap       Kind = '%'
	KindPush      Kind = '>' // what the server says unasked

	// failed is an error that is not a server's.
	failed Kind = 'x'
)

// String is the name of the type.
func (k Kind) String() string {
	switch k {
	case KindNull:
		return "null"
	case KindStatus:
		return "status"
	case KindString:
		return "string"
	case KindError:
		return "error"
	case KindInt:
		return "integer"
	case KindDouble:
		return "double"
	case KindBool:
		return "boolean"
	case KindBigNumber:
		return "big number"
	case KindVerbatim:
		return "verbatim string"
	case KindArray:
		return "array"
	case KindSet:
		return "set"
	case KindMap:
		return "map"
	case KindPush:
		return "push"
	}
	return strconv.QuoteRune(rune(k))
}

// Kind returns the type that the server gave the Value. It depends on the protocol:
// what is a map in RESP3 is an array in RESP2.
func (v Value) Kind() Kind {
	switch v.kind {
	case 0:
		return KindNull
	case failed:
		return KindError
	}
	return v.kind
}

func intOf(n int64) Value { return Value{kind: KindInt, num: n} }

func doubleOf(f float64) Value { return Value{kind: KindDouble, num: int64(math.Float64bits(f))} }

func boolOf(b bool) Value {
	if b {
		return Value{kind: KindBool, num: 1}
	}
	return Value{kind: KindBool}
}

// textOf is a Value of a kind whose content is a string.
func textOf(kind Kind, s string) Value {
	return Value{kind: kind, ptr: unsafe.Pointer(unsafe.StringData(s)), num: int64(len(s))}
}

// aggregateOf is a Value with elements; a map has keys and values in turn. They are the
// Value's from now on.
func aggregateOf(kind Kind, elements []Value) Value {
	return Value{kind: kind, ptr: unsafe.Pointer(unsafe.SliceData(elements)), num: int64(len(elements))}
}

// errorValue is what a server sent as an error.
func errorValue(s string) Value { return Value{kind: KindError, ptr: unsafe.Pointer(parseError(s))} }

// failure is the Value of a command that has no reply, and why: err, which is not nil.
func failure(err error) Value { return Value{kind: failed, ptr: unsafe.Pointer(&err)} }

// The content of a Value, each for the kinds that have it.
func (v Value) text() string      { return unsafe.String((*byte)(v.ptr), v.num) }
func (v Value) elements() []Value { return unsafe.Slice((*Value)(v.ptr), v.num) }
func (v Value) double() float64   { return math.Float64frombits(uint64(v.num)) }

// Err returns why there is nothing to convert: an [*Error] of the server, what became of
// a command that has no reply, or [Nil]. It is nil where there is a value.
func (v Value) Err() error {
	switch v.kind {
	case 0:
		return Nil
	case KindError:
		return (*Error)(v.ptr)
	case failed:
		return *(*error)(v.ptr)
	}
	return nil
}

// What String shows of a Value at most: the bytes of a string, and of all.
const (
	previewText = 48
	previewAll  = 256
)

// String shows the start of a Value, for logs and tests: at most 48 bytes of a string,
// and 256 or so of all. It is no conversion; see [Value.Text].
func (v Value) String() string { return string(v.preview(nil)) }

// GoString is String: a Value is not shown in full by any verb.
func (v Value) GoString() string { return "redis.Value(" + v.String() + ")" }

// preview goes as deep as the decoder does, 64 levels at most.
func (v Value) preview(b []byte) []byte {
	switch v.kind {
	case 0:
		return append(b, "null"...)
	case KindError, failed:
		text := v.Err().Error()
		b = append(b, "error("...)
		return append(quotePreview(b, text), ')')
	case KindInt:
		return strconv.AppendInt(b, v.num, 10)
	case KindDouble:
		return appendFloat(b, v.double(), 64)
	case KindBool:
		return strconv.AppendBool(b, v.num == 1)
	case KindBigNumber:
		if v.num <= previewText {
			return append(b, v.text()...)
		}
	case KindArray, KindSet, KindMap, KindPush:
		return v.previewElements(b)
	}
	return quotePreview(b, v.text())
}

func (v Value) previewElements(b []byte) []byte {
	if v.kind != KindArray {
		b = append(b, v.kind.String()...)
	}
	b = append(b, '[')
	for i, e := range v.elements() {
		switch {
		case i > 0 && v.kind == KindMap && i%2 == 1:
			b = append(b, ':')
		case i > 0:
			b = append(b, ' ')
		}
		if len(b) > previewAll {
			b = append(b, "… "...)
			b = strconv.AppendInt(b, v.num-int64(i), 10)
			b = append(b, " more"...)
			break
		}
		b = e.preview(b)
	}
	return append(b, ']')
}

func quotePreview(b []byte, s string) []byte {
	if len(s) <= previewText {
		return strconv.AppendQuote(b, s)
	}
	b = append(strconv.AppendQuote(b, s[:previewText]), "…("...)
	b = strconv.AppendInt(b, int64(len(s)), 10)
	return append(b, " bytes)"...)
}
