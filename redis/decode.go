package redis

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// What a server may send. An aggregate costs memory only as its elements come: about
// 60 bytes each, and a few times that while it grows.
const (
	maxBulk  = 512 << 20 // bytes of a string: the server's own limit (proto-max-bulk-len)
	maxLine  = 64 << 10  // bytes of a simple string, an error, or a header
	maxElems = 1 << 31   // of an aggregate
	maxDepth = 128       // of aggregates in each other
	firstFew = 64        // elements there is room for before they come
)

var errProtocol = errors.New("redis: protocol error")

// decoder reads RESP2 and RESP3. It keeps what is unfinished, so that no byte is looked
// at twice, and it keeps its own stack, so that no nesting exhausts the goroutine's.
// Attributes are read and dropped. A push inside an aggregate, as Redis 6 sends them, is
// a value of its own, and the aggregate goes on.
type decoder struct {
	stack []level
	seen  int  // bytes of an unfinished line that hold no line feed
	bulk  bulk // while the bytes of a string are read
}

// level is an aggregate that is being read.
type level struct {
	v    Value
	want int64 // elements; −1 until an end is announced
	drop bool  // it is an attribute
}

// bulk is a string that is being read.
type bulk struct {
	kind   byte // as it was announced; 0 is none
	want   int  // bytes that are missing, with CR LF
	buf    []byte
	chunks bool // it comes in pieces, until an empty one
}

func newDecoder() *decoder { return &decoder{} }

// Decode implements pipeline.Decoder.
func (d *decoder) Decode(b []byte) (v Value, n int, done bool, err error) {
	for n < len(b) {
		var whole bool
		var used int
		if d.bulk.kind != 0 && d.bulk.want > 0 {
			v, used, whole, err = d.readBulk(b[n:])
		} else {
			v, used, whole, err = d.readLine(b[n:])
		}
		n += used
		if err != nil || used == 0 && !whole {
			return Value{}, n, false, err
		}
		if !whole {
			continue
		}
		if v, done = d.place(v); done {
			return v, n, true, nil
		}
	}
	return Value{}, n, false, nil
}

// readLine reads a header, or a value that is one line.
func (d *decoder) readLine(b []byte) (v Value, used int, whole bool, err error) {
	i := bytes.IndexByte(b[d.seen:], '\n')
	if i < 0 {
		if d.seen = len(b); d.seen > maxLine {
			return v, 0, false, malformed("a line of more than %d bytes", maxLine)
		}
		return v, 0, false, nil
	}
	i += d.seen
	d.seen = 0
	if i < 2 || b[i-1] != '\r' || i > maxLine {
		return v, 0, false, malformed("a line that is not one: %s", quote(b[:i]))
	}
	v, whole, err = d.header(b[0], b[1:i-1])
	if err == nil && d.bulk.want > 0 { // mostly all of it is there
		var more int
		v, more, whole, err = d.readBulk(b[i+1:])
		return v, i + 1 + more, whole, err
	}
	return v, i + 1, whole, err
}

// header understands a line: a value, or the beginning of one.
func (d *decoder) header(kind byte, line []byte) (v Value, whole bool, err error) {
	if d.bulk.chunks && kind != ';' {
		return v, false, malformed("%s within a string", quote([]byte{kind}))
	}
	switch kind {
	case '+':
		return Value{kind: KindString, s: intern(line)}, true, nil
	case '-':
		return Value{kind: KindError, s: string(line)}, true, nil
	case ':':
		n, ok := parseInt(line)
		if !ok {
			return v, false, malformed("the integer %s", quote(line))
		}
		return Value{kind: KindInt, n: n}, true, nil
	case '$', '!', '=', ';':
		return d.startBulk(kind, line)
	case '*', '~', '>', '%', '|':
		return d.startLevel(kind, line)
	case '.':
		return d.endLevel(line)
	}
	return d.scalar3(kind, line)
}

// scalar3 is what RESP3 has more of.
func (d *decoder) scalar3(kind byte, line []byte) (v Value, whole bool, err error) {
	switch kind {
	case '_':
		if len(line) == 0 {
			return Value{}, true, nil
		}
	case '#':
		if len(line) == 1 && (line[0] == 't' || line[0] == 'f') {
			return Value{kind: KindBool, n: int64(b2i(line[0] == 't'))}, true, nil
		}
	case ',':
		if f, ok := parseFloat(string(line)); ok {
			return Value{kind: KindFloat, n: int64(math.Float64bits(f))}, true, nil
		}
	case '(':
		if digits := bytes.TrimLeft(line, "+-"); len(line)-len(digits) <= 1 && len(digits) > 0 && len(bytes.Trim(digits, "0123456789")) == 0 {
			return Value{kind: KindBig, s: string(line)}, true, nil
		}
	}
	return v, false, malformed("%s", quote(append([]byte{kind}, line...)))
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// startBulk begins a string, an error, a text, or a piece of a string.
func (d *decoder) startBulk(kind byte, line []byte) (v Value, whole bool, err error) {
	if len(line) == 1 && line[0] == '?' && kind == '$' {
		d.bulk = bulk{kind: '$', chunks: true}
		return v, false, nil
	}
	n, ok := parseInt(line)
	switch {
	case ok && n == -1 && kind == '$':
		return Value{}, true, nil
	case !ok || n < 0 || n > maxBulk || n+int64(len(d.bulk.buf)) > maxBulk:
		return v, false, malformed("a string of %s bytes", quote(line))
	case kind == ';' && !d.bulk.chunks:
		return v, false, malformed("a piece of no string")
	case kind == ';' && n == 0:
		v = Value{kind: KindString, s: string(d.bulk.buf)}
		d.bulk = bulk{}
		return v, true, nil
	case kind == ';':
		d.bulk.want = int(n) + 2
		return v, false, nil
	}
	d.bulk = bulk{kind: kind, want: int(n) + 2}
	return v, false, nil
}

// readBulk reads the bytes of a string: at once if they are there, else as they come.
func (d *decoder) readBulk(b []byte) (v Value, used int, whole bool, err error) {
	k := &d.bulk
	used = min(k.want, len(b))
	if used == k.want && len(k.buf) == 0 && !k.chunks {
		v, err = ended(k.kind, b[:used])
		d.bulk = bulk{}
		return v, used, err == nil, err
	}
	k.buf = append(k.buf, b[:used]...)
	if k.want -= used; k.want > 0 {
		return v, used, false, nil
	}
	if k.chunks {
		if !bytes.HasSuffix(k.buf, crlf) {
			return v, used, false, malformed("a piece of a string without its end")
		}
		k.buf = k.buf[:len(k.buf)-2]
		return v, used, false, nil
	}
	v, err = ended(k.kind, k.buf)
	d.bulk = bulk{}
	return v, used, err == nil, err
}

var crlf = []byte("\r\n")

// ended makes a value of the bytes of a string, with the CR LF behind them.
func ended(kind byte, b []byte) (Value, error) {
	text := b[:len(b)-2]
	if !bytes.HasSuffix(b, crlf) {
		return Value{}, malformed("a string without its end")
	}
	switch kind {
	case '!':
		return Value{kind: KindError, s: string(text)}, nil
	case '=':
		if len(text) < 4 || text[3] != ':' {
			return Value{}, malformed("a text without its format")
		}
		return Value{kind: KindVerbatim, s: string(text[4:])}, nil
	}
	return Value{kind: KindString, s: string(text)}, nil
}

var kinds = [256]Kind{'*': KindArray, '~': KindSet, '>': KindPush, '%': KindMap, '|': KindMap}

// startLevel begins an aggregate.
func (d *decoder) startLevel(kind byte, line []byte) (v Value, whole bool, err error) {
	l := level{v: Value{kind: kinds[kind]}, drop: kind == '|'}
	n, ok := parseInt(line)
	switch {
	case ok && n == -1 && kind == '*':
		return Value{}, true, nil
	case len(line) == 1 && line[0] == '?' && kind != '>':
		n = -1
	case !ok || n < 0 || n > maxElems:
		return v, false, malformed("%s elements", quote(line))
	case len(d.stack) == maxDepth:
		return v, false, malformed("more than %d levels", maxDepth)
	case kind == '%' || kind == '|':
		n *= 2
	}
	if l.want = n; n == 0 {
		if l.v.elems = []Value{}; l.drop {
			return v, false, nil
		}
		return l.v, true, nil
	}
	l.v.elems = make([]Value, 0, min(max(n, 0), firstFew))
	d.stack = append(d.stack, l)
	return v, false, nil
}

// endLevel ends an aggregate whose length was not announced.
func (d *decoder) endLevel(line []byte) (v Value, whole bool, err error) {
	top := len(d.stack) - 1
	if len(line) > 0 || top < 0 || d.stack[top].want != -1 || d.stack[top].v.kind == KindMap && len(d.stack[top].v.elems)%2 != 0 {
		return v, false, malformed("an end of nothing")
	}
	l := d.pop()
	return l.v, !l.drop, nil
}

func (d *decoder) pop() level {
	top := len(d.stack) - 1
	l := d.stack[top]
	d.stack[top] = level{}
	d.stack = d.stack[:top]
	return l
}

// place puts a value where it belongs: done is that it belongs nowhere else.
func (d *decoder) place(v Value) (Value, bool) {
	for len(d.stack) > 0 && v.kind != KindPush {
		top := &d.stack[len(d.stack)-1]
		top.v.elems = append(top.v.elems, v)
		if int64(len(top.v.elems)) != top.want {
			return Value{}, false
		}
		l := d.pop()
		if l.drop {
			return Value{}, false
		}
		v = l.v
	}
	return v, true
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errProtocol}, args...)...)
}

// quote shows a few bytes of what a server sent.
func quote(b []byte) string {
	if len(b) > 32 {
		return strconv.Quote(string(b[:32])) + "…"
	}
	return strconv.Quote(string(b))
}

// intern saves the allocation of what servers say most.
func intern(line []byte) string {
	switch string(line) {
	case "OK":
		return "OK"
	case "QUEUED":
		return "QUEUED"
	case "PONG":
		return "PONG"
	}
	return string(line)
}

// parseInt is strict, and allocates nothing.
func parseInt(b []byte) (n int64, ok bool) {
	negative := len(b) > 0 && b[0] == '-'
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		b = b[1:]
	}
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	u := uint64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		u = u*10 + uint64(c-'0')
	}
	switch {
	case negative && u <= 1<<63:
		return -int64(u), true
	case negative || u > math.MaxInt64:
		return 0, false
	}
	return int64(u), true
}

// parseFloat takes what servers write, and not all that Go does.
func parseFloat(s string) (float64, bool) {
	if s == "" || strings.Trim(s, "0123456789+-.eEinfaINFAy") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil || errors.Is(err, strconv.ErrRange)
}
