package redis

import (
	"bytes"
	"fmt"
	"slices"
	"unsafe"
)

// What a server may ask of us. All of it is far beyond what Redis sends, and there so
// that no server can have our stack or our memory.
const (
	maxDepth  = 64        // of aggregates within one another; hiredis, which redis-cli uses, allows 9
	maxLine   = 64 << 10  // a status, an error or a big number, in bytes
	maxNumber = 512       // any other line; 1e308 has 309 digits when it is written out
	maxString = 512 << 20 // Redis: proto-max-bulk-len
	maxValue  = 1 << 30   // a whole value with all that is in it, by what spent counts

	sizeOfValue = int64(unsafe.Sizeof(Value{}))
	smallString = 64 << 10 // is allocated when it is announced
	keepValues  = 256      // and keepLine: what a decoder keeps between values
	keepLine    = 512
)

// decoder cuts the stream of one connection into values. It is a stack machine that can
// stop anywhere: a byte is looked at once, and what is not yet complete is in here, not
// in the caller's buffer. The zero value is at the start of a stream. The stream is
// RESP2, RESP3 or both; every type of either is known everywhere.
//
// Memory follows the bytes that came, not those that were announced: elements are
// gathered on one stack and copied when their aggregate is complete, and a string of
// more than 64 KiB grows as it comes. An attribute is read and dropped: servers send
// none unless they debug.
type decoder struct {
	open   []level // aggregates that are not complete, outermost first
	values []Value // their elements so far, those of the innermost last
	spent  int64   // bytes that the value under way takes
	held   []byte  // the start of a line

	// A string under way.
	kind    Kind   // its type
	left    int    // bytes that have not come, with the CR LF; 0: there is none
	body    []byte // what came
	chunked bool   // it comes in chunks, and ends with an empty one

	err error // the stream is broken
}

// level is an aggregate that is not complete.
type level struct {
	left  int64 // elements that have not come; negative: a period ends them, and it is ^ of those that came
	spent int64 // before it
	base  int   // where in values its elements are
	kind  Kind
}

// attribute is the type of what annotates the next value.
const attribute Kind = '|'

// Decode consumes n bytes of b, all of them unless a value ends earlier. With done v is
// a whole value, which has nothing of b. err breaks the stream for good.
//
// A push is a value of its own wherever it comes: Redis 6 sends them in the middle of
// an array (redis#8935), which goes on after it as if nothing had happened.
func (d *decoder) Decode(b []byte) (v Value, n int, done bool, err error) {
	for n < len(b) && d.err == nil {
		v, used, whole := d.next(b[n:])
		n += used
		if whole {
			if v, done = d.place(v); done {
				return v, n, true, nil
			}
		}
	}
	return Value{}, n, false, d.err
}

// next consumes a line or some of a string. With whole they were a value: a scalar, or
// an aggregate that is empty or was ended.
func (d *decoder) next(b []byte) (v Value, n int, whole bool) {
	if d.left > 0 {
		return d.readString(b)
	}
	line, n, ok := d.readLine(b)
	if !ok {
		return Value{}, n, false
	}
	v, whole = d.parse(Kind(line[0]), line[1:len(line)-2])
	if d.left > 0 { // most strings come with their length
		var more int
		v, more, whole = d.readString(b[n:])
		n += more
	}
	return v, n, whole
}

// place puts a value where it belongs: into the aggregate around it, which it may
// complete, and that one another. With done it is in none.
func (d *decoder) place(v Value) (_ Value, done bool) {
	for v.kind != KindPush && len(d.open) > 0 {
		if !d.spend(sizeOfValue) {
			return Value{}, false
		}
		if len(d.values) == cap(d.values) {
			d.values = slices.Grow(d.values, max(8, len(d.values)))
		}
		d.values = append(d.values, v)
		top := &d.open[len(d.open)-1]
		if top.left--; top.left != 0 {
			return Value{}, false
		}
		kind := top.kind
		if v = d.close(); kind == attribute {
			return Value{}, false
		}
	}
	if len(d.open) == 0 {
		d.spent = 0
	}
	return v, true
}

// close ends the innermost aggregate.
func (d *decoder) close() (v Value) {
	top := d.open[len(d.open)-1]
	d.open = d.open[:len(d.open)-1]
	if top.kind == attribute || top.kind == KindPush {
		d.spent = top.spent // it is no part of what is around it
	}
	own := d.values[top.base:]
	large := len(d.open) == 0 && cap(d.values) > keepValues
	if large && len(own) > cap(d.values)/4*3 { // nearly all there is: it need not be copied
		d.values = nil
		return aggregateOf(top.kind, own)
	}
	if top.kind != attribute {
		v = aggregateOf(top.kind, append(make([]Value, 0, len(own)), own...))
	}
	clear(own)
	if d.values = d.values[:top.base]; large {
		d.values = nil
	}
	return v
}

// readLine returns a line with its CR LF, from d.held if its start came earlier. It is
// valid until the next one.
func (d *decoder) readLine(b []byte) (line []byte, n int, ok bool) {
	first := b[0]
	if len(d.held) > 0 {
		first = d.held[0]
	}
	most := longest(first)
	if most == 0 {
		d.fail("there is no type %q", first)
		return nil, 0, false
	}
	most += 3 - len(d.held) // the type and CR LF
	end := bytes.IndexByte(b[:min(len(b), most)], '\n')
	switch {
	case end < 0 && len(b) >= most:
		d.fail("a line of type %q has no end", first)
		return nil, 0, false
	case end < 0:
		d.held = append(d.held, b...)
		return nil, len(b), false
	}
	line = b[:end+1]
	if len(d.held) > 0 {
		line = append(d.held, line...)
		if d.held = line[:0]; cap(line) > keepLine {
			d.held = nil
		}
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		d.fail("a line ends without CR: %s", quote(line))
		return nil, end + 1, false
	}
	return line, end + 1, true
}

// longest is how long a line of this type may be, 0 for a type that there is not.
func longest(first byte) int {
	switch Kind(first) {
	case KindStatus, KindError, KindBigNumber:
		return maxLine
	case KindInt, KindString, KindArray, KindNull, KindBool, KindDouble, KindVerbatim,
		KindMap, KindSet, KindPush, attribute, '!', ';', '.':
		return maxNumber
	}
	return 0
}

// readString consumes some of a string and of the CR LF behind it.
func (d *decoder) readString(b []byte) (v Value, n int, whole bool) {
	if end := d.left - 2; end >= 0 && len(b) >= d.left && len(d.body) == 0 && !d.chunked {
		if b[end] != '\r' || b[end+1] != '\n' {
			d.failEnd()
			return Value{}, 0, false
		}
		d.left = 0
		v, whole = d.stringOf(string(b[:end]))
		return v, end + 2, whole
	}
	if d.left > 2 {
		n = min(len(b), d.left-2)
		d.grow(n)
		d.body = append(d.body, b[:n]...)
		d.left -= n
	}
	for ; n < len(b) && d.left > 0 && d.left <= 2; n++ {
		if b[n] != "\r\n"[2-d.left] {
			d.failEnd()
			return Value{}, n, false
		}
		d.left--
	}
	if d.left > 0 || d.chunked {
		return Value{}, n, false
	}
	v, whole = d.stringOf(unsafe.String(unsafe.SliceData(d.body), len(d.body)))
	d.body = nil
	return v, n, whole
}

// grow makes room for n more bytes of a string: for all that are to come if they are
// few, else for as many as have come. What is chunked is grown by append, and copied in
// the end: a chunk may be a single byte.
func (d *decoder) grow(n int) {
	had := len(d.body)
	if d.chunked || had+n <= cap(d.body) {
		return
	}
	size := min(had+d.left-2, max(smallString, 2*(had+n)))
	d.body = append(make([]byte, 0, size), d.body...)
}

// stringOf makes a value of a string that is complete. s is the value's own.
func (d *decoder) stringOf(s string) (Value, bool) {
	switch d.kind {
	case '!':
		return errorValue(s), true
	case KindVerbatim:
		if s[3] != ':' {
			return d.fail("a verbatim string begins with %s", quote(s[:4]))
		}
		s = s[4:]
	}
	return textOf(d.kind, s), true
}

// spend counts n bytes of memory, and refuses a value that takes too many.
func (d *decoder) spend(n int64) bool {
	if d.spent += n; d.spent > maxValue {
		d.fail("a value of more than %d bytes", maxValue)
		return false
	}
	return true
}

// fail breaks the stream and lets go of what was under way.
func (d *decoder) fail(format string, args ...any) (Value, bool) {
	*d = decoder{err: fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)}
	return Value{}, false
}

func (d *decoder) failEnd() { d.fail("a string is longer than its length") }

// quote shows the start of what is wrong and no more, for it may be anybody's data.
func quote[S string | []byte](b S) string {
	if len(b) > 16 {
		return fmt.Sprintf("%q…", b[:16])
	}
	return fmt.Sprintf("%q", b)
}
