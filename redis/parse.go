package redis

import (
	"bytes"
	"math"
	"strconv"
	"strings"
)

// parse reads a line without its type and its end. With whole it was a value; else it
// began something, or failed.
func (d *decoder) parse(kind Kind, line []byte) (v Value, whole bool) {
	if d.chunked != (kind == ';') {
		return d.fail("%q in the wrong place", byte(kind))
	}
	switch kind {
	case KindStatus, KindError:
		return d.parseText(kind, line)
	case KindInt:
		if n, ok := parseInt(line); ok {
			return intOf(n), true
		}
	case KindString, KindVerbatim, '!':
		return d.beginString(kind, line)
	case KindArray, KindMap, KindSet, KindPush, attribute:
		return d.beginAggregate(kind, line)
	case KindNull:
		if len(line) == 0 {
			return Value{}, true
		}
	case KindBool:
		if len(line) == 1 && (line[0] == 't' || line[0] == 'f') {
			return boolOf(line[0] == 't'), true
		}
	case KindDouble:
		if f, ok := parseDouble(line); ok {
			return doubleOf(f), true
		}
	case KindBigNumber:
		if isInteger(line) && d.spend(int64(len(line))) {
			return textOf(kind, string(line)), true
		}
	case ';':
		return d.chunk(line)
	case '.':
		return d.end(line)
	}
	if d.err != nil {
		return Value{}, false
	}
	return d.failLine(kind, line)
}

func (d *decoder) failLine(kind Kind, line []byte) (Value, bool) {
	return d.fail("%s after the type %q", quote(line), byte(kind))
}

// parseText reads a status or an error.
func (d *decoder) parseText(kind Kind, line []byte) (Value, bool) {
	if bytes.IndexByte(line, '\r') >= 0 {
		return d.failLine(kind, line)
	}
	if !d.spend(int64(len(line))) {
		return Value{}, false
	}
	if kind == KindError {
		return errorValue(string(line)), true
	}
	switch string(line) { // what is most said costs nothing
	case "OK":
		return textOf(kind, "OK"), true
	case "QUEUED":
		return textOf(kind, "QUEUED"), true
	case "PONG":
		return textOf(kind, "PONG"), true
	}
	return textOf(kind, string(line)), true
}

// beginString reads the length of a string.
func (d *decoder) beginString(kind Kind, line []byte) (Value, bool) {
	if kind == KindString && len(line) > 0 {
		switch {
		case string(line) == "-1":
			return Value{}, true
		case string(line) == "?":
			d.kind, d.chunked = kind, true
			return Value{}, false
		}
	}
	n, ok := parseLength(line)
	switch {
	case !ok, kind == KindVerbatim && n < int64(len("txt:")):
		return d.failLine(kind, line)
	case n > maxString:
		return d.fail("a string of %d bytes where %d are the most", n, maxString)
	}
	if d.spend(n) {
		d.kind, d.left = kind, int(n)+2
	}
	return Value{}, false
}

// chunk reads the length of a part of a string. An empty one ends the string.
func (d *decoder) chunk(line []byte) (Value, bool) {
	n, ok := parseLength(line)
	switch {
	case !ok:
		return d.failLine(';', line)
	case n == 0:
		s := string(d.body)
		d.body, d.chunked = nil, false
		return d.stringOf(s)
	case n > maxString-int64(len(d.body)):
		return d.fail("a string of more than %d bytes", maxString)
	}
	if d.spend(n) {
		d.left = int(n) + 2
	}
	return Value{}, false
}

// beginAggregate reads how many elements there are. An aggregate without any is whole,
// and such an attribute nothing.
func (d *decoder) beginAggregate(kind Kind, line []byte) (Value, bool) {
	if kind == KindArray && string(line) == "-1" {
		return Value{}, true
	}
	n, ok := parseLength(line)
	if string(line) == "?" && kind != KindPush && kind != attribute {
		n, ok = -1, true
	}
	each := int64(1)
	if kind == KindMap || kind == attribute {
		each = 2
	}
	switch {
	case !ok:
		return d.failLine(kind, line)
	case n == 0:
		return aggregateOf(kind, nil), kind != attribute
	case n > (maxValue-d.spent)/(each*sizeOfValue):
		return d.fail("%d elements after the type %q are more than a value may have", n, byte(kind))
	case len(d.open) == maxDepth:
		return d.fail("more than %d aggregates within one another", maxDepth)
	}
	if n > 0 {
		n *= each
	}
	d.open = append(d.open, level{left: n, spent: d.spent, base: len(d.values), kind: kind})
	return Value{}, false
}

// end completes an aggregate whose elements were not counted.
func (d *decoder) end(line []byte) (Value, bool) {
	if len(line) > 0 || len(d.open) == 0 {
		return d.failLine('.', line)
	}
	top := d.open[len(d.open)-1]
	switch {
	case top.left > 0:
		return d.fail("an aggregate ends and %d elements are missing", top.left)
	case top.kind == KindMap && ^top.left%2 != 0:
		return d.fail("a map ends with a key")
	}
	return d.close(), true
}

// parseLength reads digits.
func parseLength(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 { // which cannot overflow
		return 0, false
	}
	for _, c := range b {
		if c -= '0'; c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// parseInt reads an integer with an optional sign.
func parseInt[S string | []byte](b S) (int64, bool) {
	digits, negative := cutSign(b)
	if len(digits) == 0 || len(digits) > 19 { // which fit a uint64
		return 0, false
	}
	var n uint64
	for i := range len(digits) {
		c := digits[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + uint64(c)
	}
	if negative {
		return -int64(n), n <= 1<<63
	}
	return int64(n), n <= math.MaxInt64
}

func cutSign[S string | []byte](b S) (rest S, negative bool) {
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		return b[1:], b[0] == '-'
	}
	return b, false
}

// isInteger reports whether b is an integer of any size.
func isInteger(b []byte) bool {
	digits, _ := cutSign(b)
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(digits) > 0
}

// parseDouble reads a decimal number, inf or nan. What is too large for a float64 is
// infinite, as it is for strtod.
func parseDouble[S string | []byte](b S) (float64, bool) {
	if len(b) > maxNumber {
		return 0, false
	}
	for i := range len(b) {
		if c := b[i]; (c < '0' || c > '9') && c != '.' && c != '-' && c != '+' && c != 'e' && c != 'E' {
			return parseWord(string(b))
		}
	}
	f, err := strconv.ParseFloat(string(b), 64)
	return f, err == nil || math.IsInf(f, 0)
}

// parseWord reads what is no number: strconv knows more such words, and hexadecimals.
func parseWord(s string) (float64, bool) {
	word, negative := cutSign(s)
	switch {
	case strings.EqualFold(word, "inf") && negative:
		return math.Inf(-1), true
	case strings.EqualFold(word, "inf"):
		return math.Inf(1), true
	case strings.EqualFold(word, "nan"):
		return math.NaN(), true
	}
	return 0, false
}
