package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// config is a format as the fuzzer writes it, small enough that what is accepted can be
// filled to its limit.
type config struct {
	kind                 byte
	width, offset, strip int16
	adjust               int32
	max                  int16
	flags                byte
	by                   string // delimiters, with | between them
}

const (
	kindLength = iota
	kindDelimited
	kindVarint
	kindNetstring
	kindFixed
	kinds
)

const (
	isLittle = 1 << iota
	includes
	keep
)

func (c config) length() Length {
	l := Length{
		Width: int(c.width), Offset: int(c.offset), Strip: int(c.strip), Adjust: int(c.adjust), Max: int(c.max),
		Includes: c.flags&includes != 0,
	}
	if c.flags&isLittle != 0 {
		l.Order = binary.LittleEndian
	}
	return l
}

func (c config) delimited() Delimited {
	d := Delimited{Max: int(c.max), Keep: c.flags&keep != 0}
	if c.by != "" {
		d.By = strings.Split(c.by, "|")
	}
	return d
}

func (c config) format() (Format, error) {
	switch c.kind % kinds {
	case kindDelimited:
		return c.delimited().Format()
	case kindVarint:
		return Varint(int(c.max)), nil
	case kindNetstring:
		return Netstring(int(c.max)), nil
	case kindFixed:
		if c.max < 1 {
			return nil, errors.New("panics, as TestFixedPanicsOnASizeThatIsNone says")
		}
		return Fixed(int(c.max)), nil
	}
	return c.length().Format()
}

var seeds = []config{
	{},
	{width: 1},
	{width: 3, flags: isLittle},
	{width: 2, flags: includes},
	{width: 8, max: -1},
	{width: 1, offset: 2, strip: 1, adjust: -3},
	{width: 2, strip: 5, adjust: 3, max: 100},
	{offset: 1, adjust: -4, strip: -1},
	{width: 1, max: 3},
	{kind: kindDelimited},
	{kind: kindDelimited, max: 5},
	{kind: kindDelimited, max: 1, by: "\r\n|\n"},
	{kind: kindDelimited, max: 2, flags: keep},
	{kind: kindDelimited, max: 3, by: "aab"},
	{kind: kindDelimited, max: 3, by: "--+|\n|\x00"},
	{kind: kindDelimited, max: 4, by: "abcd|xab|d", flags: keep},
	{kind: kindDelimited, max: 3, by: "\xda\xb80", flags: keep},
	{kind: kindVarint},
	{kind: kindVarint, max: 3},
	{kind: kindNetstring},
	{kind: kindNetstring, max: 3},
	{kind: kindFixed, max: 3},
}

var someBytes = []string{
	"", "ok", "\x02ok\x01a\x04more\x02ok", "\x00\x00\x00\x02ok\x01a\r\nb\n", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
	"a line\r\nand\n", "abcd\r", "aaab--+ab\x00aabcdxabcd", "2:ok,0:,4:more,3:abc,", "99999999999999999999", "\x80\x00",
	"\xda\xb8",
}

// fuzzing runs test with every format that is one, and bytes, and how to cut them. The
// seeds are the corpus, each with some bytes.
func fuzzing(f *testing.F, some []string, test func(t *testing.T, c config, format Format, b, splits []byte)) {
	for _, c := range seeds {
		for _, b := range some {
			f.Add(c.kind, c.width, c.offset, c.strip, c.adjust, c.max, c.flags, c.by, []byte(b), []byte{1, 0, 3})
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, width, offset, strip int16, adjust int32, most int16, flags byte, by string, b, splits []byte) {
		c := config{kind, width, offset, strip, adjust, most, flags, by}
		if format, err := c.format(); err == nil {
			test(t, c, format, b, splits)
		}
	})
}

// verdict is what a reference says of the start of a stream.
type verdict struct {
	msg  []byte
	size int // 0: incomplete, or an error
	err  error
	skip *big.Int // the frame's size where it is too large; nil: its end is not there
}

// naive is the differential: the same rules written down without a thought for speed or
// memory.
func naive(c config, limit int, b []byte) verdict {
	switch c.kind % kinds {
	case kindDelimited:
		return naiveDelimited(c.delimited(), limit, b)
	case kindVarint:
		return naiveVarint(limit, b)
	case kindNetstring:
		return naiveNetstring(limit, b)
	case kindFixed:
		if len(b) < limit {
			return verdict{}
		}
		return verdict{msg: b[:limit], size: limit}
	}
	return naiveLength(c.length(), limit, b)
}

func naiveDelimited(d Delimited, limit int, b []byte) verdict {
	if len(d.By) == 0 {
		d.By = []string{"\n", "\r\n"}
	}
	msg, size := naiveEnd(d, b)
	switch {
	case size == 0:
		// It can still be right if a delimiter now, or the rest of one, makes it so.
		for _, by := range d.By {
			for i := range len(by) {
				if msg, size := naiveEnd(d, append(bytes.Clone(b), by[i:]...)); size > 0 && len(msg) <= limit {
					return verdict{}
				}
			}
		}
		return verdict{err: ErrTooLarge}
	case len(msg) > limit:
		return verdict{err: ErrTooLarge, skip: big.NewInt(int64(size))}
	}
	return verdict{msg: msg, size: size}
}

// naiveEnd is the first frame, its message as short as can be.
func naiveEnd(d Delimited, b []byte) (msg []byte, size int) {
	for end := range len(b) + 1 {
		for _, by := range d.By {
			if text, ok := bytes.CutSuffix(b[:end], []byte(by)); ok && (size == 0 || len(text) < len(msg)) {
				msg, size = text, end
			}
		}
		if size > 0 && d.Keep {
			msg = b[:size]
		}
		if size > 0 {
			return msg, size
		}
	}
	return nil, 0
}

func naiveVarint(limit int, b []byte) verdict {
	n := new(big.Int)
	for i, c := range b {
		n.Add(n, new(big.Int).Lsh(big.NewInt(int64(c&0x7f)), uint(7*i)))
		switch {
		case i == 9 && c > 1:
			return verdict{err: ErrMalformed}
		case c == 0 && i > 0:
			return verdict{err: ErrMalformed}
		case c < 0x80:
			return naiveAnnounced(b, i+1, n, 0, limit)
		}
	}
	return verdict{}
}

func naiveNetstring(limit int, b []byte) verdict {
	digits := b
	if i := bytes.IndexFunc(b, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = b[:i]
	}
	head := len(digits) + 1
	n, _ := new(big.Int).SetString("0"+string(digits), 10)
	switch {
	case len(digits) > 1 && digits[0] == '0':
		return verdict{err: ErrMalformed}
	case len(digits) >= 20:
		return verdict{err: ErrTooLarge, skip: n}
	case len(digits) == len(b):
		return verdict{}
	case len(digits) == 0 || b[head-1] != ':':
		return verdict{err: ErrMalformed}
	}
	v := naiveAnnounced(b, head, n, 1, limit)
	if v.size > 0 && b[v.size-1] != ',' {
		return verdict{err: ErrMalformed}
	}
	return v
}

func naiveAnnounced(b []byte, head int, n *big.Int, tail, limit int) verdict {
	size := new(big.Int).Add(n, big.NewInt(int64(head+tail)))
	switch {
	case n.Cmp(big.NewInt(int64(limit))) > 0:
		return verdict{err: ErrTooLarge, skip: size}
	case size.Cmp(big.NewInt(int64(len(b)))) > 0:
		return verdict{}
	}
	return verdict{msg: b[head : size.Int64()-int64(tail)], size: int(size.Int64())}
}

func naiveLength(l Length, limit int, b []byte) verdict {
	width := l.Width
	if width == 0 {
		width = 4
	}
	header := l.Offset + width
	strip := max(l.Strip, 0)
	if l.Strip == 0 {
		strip = header
	}
	if len(b) < header {
		return verdict{}
	}
	field := bytes.Clone(b[l.Offset:header])
	if l.Order == binary.LittleEndian {
		slices.Reverse(field)
	}
	size := new(big.Int).SetBytes(field)
	size.Add(size, big.NewInt(int64(l.Adjust)))
	if !l.Includes {
		size.Add(size, big.NewInt(int64(header)))
	}
	switch {
	case size.Cmp(big.NewInt(int64(max(header, strip)))) < 0:
		return verdict{err: ErrMalformed}
	case new(big.Int).Sub(size, big.NewInt(int64(strip))).Cmp(big.NewInt(int64(limit))) > 0:
		return verdict{err: ErrTooLarge, skip: size}
	case size.Cmp(big.NewInt(int64(len(b)))) > 0:
		return verdict{}
	}
	return verdict{msg: b[strip:size.Int64()], size: int(size.Int64())}
}

// naiveAll is what readOn has to return for all of b.
func naiveAll(c config, limit int, b []byte) (events []string, err error) {
	for len(b) > 0 {
		v := naive(c, limit, b)
		switch {
		case v.err == ErrTooLarge:
			if v.skip != nil && !fitsInt(v.skip) {
				return events, ErrMalformed
			}
			events = append(events, "too large")
			if v.skip == nil || v.skip.Cmp(big.NewInt(int64(len(b)))) > 0 {
				return events, io.ErrUnexpectedEOF
			}
			b = b[v.skip.Int64():]
		case v.err != nil:
			return events, v.err
		case v.size == 0:
			return events, io.ErrUnexpectedEOF
		default:
			events = append(events, string(v.msg))
			b = b[v.size:]
		}
	}
	return events, io.EOF
}

func fitsInt(n *big.Int) bool { return n.Cmp(big.NewInt(math.MaxInt)) <= 0 }

// Any bytes in any format: no panic, nothing beyond the bytes, and what the naive
// reference says.
func FuzzCut(f *testing.F) {
	fuzzing(f, someBytes, func(t *testing.T, c config, format Format, b, _ []byte) {
		got, err := format.Cut(b, 0)
		want := naive(c, format.Max(), b)
		switch {
		case !errors.Is(err, want.err):
			t.Fatalf("%+v: error %v, want %v", c, err, want.err)
		case got.Size != want.size || !bytes.Equal(got.Msg, want.msg):
			t.Fatalf("%+v: %+v, want %q of %d bytes", c, got, want.msg, want.size)
		case got.Size > 0 && (got.Msg == nil || len(got.Msg) > format.Max()):
			t.Fatalf("%+v: message of %d bytes, nil %v", c, len(got.Msg), got.Msg == nil)
		case err == nil && got.Size == 0 && (got.Need <= len(b) || got.From > len(b) || got.From < 0 || got.Skip != 0):
			t.Fatalf("%+v: incomplete without progress: %+v of %d bytes", c, got, len(b))
		case want.skip != nil && fitsInt(want.skip) != (got.Skip > 0):
			t.Fatalf("%+v: to skip %d of %v bytes", c, got.Skip, want.skip)
		case want.skip != nil && got.Skip > 0 && got.From == 0 && want.skip.Cmp(big.NewInt(int64(got.Skip))) != 0:
			t.Fatalf("%+v: to skip %d of %v bytes", c, got.Skip, want.skip)
		}
	})
}

// Any bytes through a Reader that skips what is too large: the messages of the naive
// reference, and no more memory than the bytes are worth.
func FuzzRead(f *testing.F) {
	fuzzing(f, someBytes, func(t *testing.T, c config, format Format, b, splits []byte) {
		want, end := naiveAll(c, format.Max(), b)
		r := NewReader(inPieces(b, splits), format)
		r.SkipTooLarge = true
		got, err := readOn(r)
		if errors.Is(err, io.ErrNoProgress) { // an endless row of empty pieces is another matter
			return
		}
		if !slices.Equal(got, want) || !errors.Is(err, end) {
			t.Fatalf("%+v: %q, %v, want %q, %v", c, got, err, want, end)
		}
		if limit := max(smallBuffer, min(2*len(b), 2*largeBuffer+2*format.Max())); len(r.buf) > limit {
			t.Fatalf("%+v: a buffer of %d bytes for %d", c, len(r.buf), len(b))
		}
	})
}

// inPieces is b, read in pieces of the sizes that the bytes of splits are.
func inPieces(b, splits []byte) io.Reader {
	var parts pieces
	for _, n := range splits {
		n := min(int(n), len(b))
		parts, b = append(parts, b[:n]), b[n:]
	}
	return io.MultiReader(&parts, bytes.NewReader(b))
}

// What can be sent is received as it was, and what cannot is not sent at all. A length
// within the message is filled in.
func FuzzRoundTrip(f *testing.F) {
	fuzzing(f, someBytes, func(t *testing.T, c config, format Format, msg, _ []byte) {
		sent := roundTrip(t, c, format, msg)
		if c.kind%kinds != kindDelimited {
			return
		}
		frame, d := bytes.Clone(msg), c.delimited()
		if !d.Keep {
			frame = append(frame, format.(*delimited).end...)
		}
		v := naive(c, format.Max(), frame)
		if can := v.size > 0 && v.size == len(frame) && len(v.msg) == len(msg); can != sent {
			t.Fatalf("%+v: %q was sent: %v, could be sent: %v", c, msg, sent, can)
		}
	})
}

func roundTrip(t *testing.T, c config, format Format, msg []byte) (sent bool) {
	t.Helper()
	frame, err := format.Append([]byte("x"), msg)
	if err != nil {
		if string(frame) != "x" || !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrMalformed) {
			t.Fatalf("%+v: append of %d bytes: %q, %v", c, len(msg), frame, err)
		}
		return false
	}
	frame = frame[1:]
	got, err := format.Cut(append(bytes.Clone(frame), "next"...), 0)
	if err != nil || got.Size != len(frame) {
		t.Fatalf("%+v: cut of %q: %+v, %v", c, frame, got, err)
	}
	want := bytes.Clone(msg)
	if l := c.length(); c.kind%kinds == kindLength && (l.Strip < 0 || l.Strip > 0 && l.Strip <= l.Offset) {
		at := l.Offset - max(l.Strip, 0)
		end := len(got.Msg) - (got.Size - format.(*length).header)
		copy(want[at:end], got.Msg[at:end])
	}
	if !bytes.Equal(got.Msg, want) {
		t.Fatalf("%+v: sent %q, received %q", c, want, got.Msg)
	}
	if again, err := format.Append(nil, got.Msg); err != nil {
		t.Fatalf("%+v: what was received cannot be sent: %q, %v", c, again, err)
	}
	return true
}

// However a stream is cut into reads, the messages and the end are the same. Every byte
// of splits is the size of a read.
func FuzzSplits(f *testing.F) {
	fuzzing(f, someBytes, func(t *testing.T, c config, format Format, b, splits []byte) {
		whole, end := readAll(NewReader(bytes.NewReader(b), format))
		got, err := readAll(NewReader(inPieces(b, splits), format))
		if !errors.Is(err, io.ErrNoProgress) && (!slices.Equal(got, whole) || !sameEnd(err, end)) {
			t.Fatalf("%+v: in pieces %q, %v; whole %q, %v", c, got, err, whole, end)
		}
	})
}

func sameEnd(a, b error) bool {
	for _, err := range []error{io.EOF, io.ErrUnexpectedEOF, ErrTooLarge, ErrMalformed} {
		if errors.Is(a, err) != errors.Is(b, err) {
			return false
		}
	}
	return true
}

// Whatever format is accepted, its longest message can be sent and is received, and one
// more byte cannot be sent.
func FuzzConfig(f *testing.F) {
	fuzzing(f, []string{""}, func(t *testing.T, c config, format Format, _, _ []byte) {
		longest := format.Max()
		if longest < 0 || c.max > 0 && longest != int(c.max) {
			t.Fatalf("%+v: max %d", c, longest)
		}
		if longest > 1<<25 { // "unlimited"
			return
		}
		fill, end := filler(c)
		if fill == nil {
			return
		}
		message := func(size int) []byte {
			return append(bytes.Repeat(fill, size-len(end)), end...)
		}
		if !roundTrip(t, c, format, message(longest)) {
			t.Fatalf("%+v: a message of %d bytes, the longest, cannot be sent", c, longest)
		}
		if roundTrip(t, c, format, message(longest+1)) {
			t.Fatalf("%+v: a message of %d bytes was sent, one more than the longest", c, longest+1)
		}
	})
}

// filler is a byte that messages may consist of, if there is one, and how they must end.
func filler(c config) (fill []byte, end string) {
	if c.kind%kinds != kindDelimited {
		return []byte{0}, ""
	}
	d := c.delimited()
	if len(d.By) == 0 {
		d.By = []string{"\n", "\r\n"}
	}
	if d.Keep {
		end = slices.MinFunc(d.By, func(a, b string) int { return len(a) - len(b) })
	}
	for i := range 256 {
		if fill = []byte{byte(i)}; !strings.Contains(strings.Join(d.By, ""), string(fill)) {
			return fill, end
		}
	}
	return nil, ""
}
