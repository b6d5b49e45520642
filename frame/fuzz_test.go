package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"slices"
	"testing"
)

// config is a Length or a Line as the fuzzer writes it, small enough that what is
// accepted can be filled to its limit.
type config struct {
	width, offset, strip int16
	adjust               int32
	max                  int16
	flags                byte
}

const (
	isLine = 1 << iota
	isLittle
	includes
	crlf
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

func (c config) line() Line {
	return Line{Max: int(c.max), CRLF: c.flags&crlf != 0, Keep: c.flags&keep != 0}
}

func (c config) format() (Format, error) {
	if c.flags&isLine != 0 {
		return c.line().Format()
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
	{flags: isLine},
	{flags: isLine, max: 5},
	{flags: isLine | crlf, max: 1},
	{flags: isLine | keep, max: 1},
}

func addSeeds(f *testing.F, data ...string) {
	for _, c := range seeds {
		for _, b := range data {
			f.Add(c.width, c.offset, c.strip, c.adjust, c.max, c.flags, []byte(b))
		}
	}
}

// verdict is what a reference says of the start of a stream.
type verdict struct {
	msg  []byte
	size int // 0: incomplete, or an error
	err  error
}

// naive is the differential: the same rules written down without a thought for speed or
// memory.
func naive(c config, limit int, b []byte) verdict {
	if c.flags&isLine != 0 {
		return naiveLine(c.line(), limit, b)
	}
	return naiveLength(c.length(), limit, b)
}

func naiveLine(l Line, limit int, b []byte) verdict {
	text, _, found := bytes.Cut(b, []byte("\n"))
	msg := bytes.TrimSuffix(text, []byte("\r"))
	if !found {
		// It can still be right if a line feed now, or whatever comes next, makes it so.
		for _, next := range []string{"\n", "\r\n"} {
			if v := naiveLine(l, limit, append(bytes.Clone(b), next...)); v.err == nil {
				return verdict{}
			}
		}
		return verdict{err: ErrTooLarge}
	}
	if l.Keep {
		msg = b[:len(text)+1]
	}
	if len(msg) > limit {
		return verdict{err: ErrTooLarge}
	}
	return verdict{msg: msg, size: len(text) + 1}
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
		return verdict{err: ErrTooLarge}
	case size.Cmp(big.NewInt(int64(len(b)))) > 0:
		return verdict{}
	}
	return verdict{msg: b[strip:size.Int64()], size: int(size.Int64())}
}

// Any bytes in any format: no panic, nothing beyond the bytes, and what the naive
// reference says.
func FuzzCut(f *testing.F) {
	addSeeds(f, "", "\x00\x00\x00\x02ok", "\xff\xff\xff\xff\xff\xff\xff\xff", "a line\r\nand\n", "abcd\r")
	f.Fuzz(func(t *testing.T, width, offset, strip int16, adjust int32, most int16, flags byte, b []byte) {
		c := config{width, offset, strip, adjust, most, flags}
		format, err := c.format()
		if err != nil {
			return
		}
		got, err := format.Cut(b, 0)
		want := naive(c, format.Max(), b)
		switch {
		case !errors.Is(err, want.err):
			t.Fatalf("%+v: error %v, want %v", c, err, want.err)
		case got.Size != want.size || !bytes.Equal(got.Msg, want.msg):
			t.Fatalf("%+v: %+v, want %q of %d bytes", c, got, want.msg, want.size)
		case got.Size > 0 && (got.Msg == nil || len(got.Msg) > format.Max()):
			t.Fatalf("%+v: message of %d bytes, nil %v", c, len(got.Msg), got.Msg == nil)
		case err == nil && got.Size == 0 && (got.Need <= len(b) || got.From > len(b) || got.From < 0):
			t.Fatalf("%+v: incomplete without progress: %+v of %d bytes", c, got, len(b))
		}
	})
}

// What can be sent is received as it was, and what cannot is not sent at all. A length
// within the message is filled in.
func FuzzRoundTrip(f *testing.F) {
	addSeeds(f, "", "ok", "a line", "a line\r\n", "Q....select")
	f.Fuzz(func(t *testing.T, width, offset, strip int16, adjust int32, most int16, flags byte, msg []byte) {
		c := config{width, offset, strip, adjust, most, flags}
		if format, err := c.format(); err == nil {
			roundTrip(t, c, format, msg)
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
	if l := c.length(); c.flags&isLine == 0 && (l.Strip < 0 || l.Strip > 0 && l.Strip <= l.Offset) {
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
	for _, c := range seeds {
		f.Add(c.width, c.offset, c.strip, c.adjust, c.max, c.flags, []byte("\x00\x00\x00\x02ok\x01a\r\nb\n"), []byte{1, 0, 3})
	}
	f.Fuzz(func(t *testing.T, width, offset, strip int16, adjust int32, most int16, flags byte, b, splits []byte) {
		c := config{width, offset, strip, adjust, most, flags}
		format, err := c.format()
		if err != nil {
			return
		}
		whole, end := readAll(NewReader(bytes.NewReader(b), format))
		var parts pieces
		rest := b
		for _, n := range splits {
			n := min(int(n), len(rest))
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		got, err := readAll(NewReader(io.MultiReader(&parts, bytes.NewReader(rest)), format))
		// An endless row of empty pieces is another matter.
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
	addSeeds(f, "")
	f.Fuzz(func(t *testing.T, width, offset, strip int16, adjust int32, most int16, flags byte, _ []byte) {
		c := config{width, offset, strip, adjust, most, flags}
		format, err := c.format()
		if err != nil {
			return
		}
		longest := format.Max()
		if longest < 0 || most > 0 && longest != int(most) {
			t.Fatalf("%+v: max %d", c, longest)
		}
		if longest > 1<<25 { // "unlimited"
			return
		}
		msg := make([]byte, longest+1)
		if c.flags&isLine != 0 && c.flags&keep != 0 {
			msg[longest-1], msg[longest] = '\n', '\n'
		}
		if !roundTrip(t, c, format, msg[:longest]) {
			t.Fatalf("%+v: a message of %d bytes, the longest, cannot be sent", c, longest)
		}
		if roundTrip(t, c, format, msg) {
			t.Fatalf("%+v: a message of %d bytes was sent, one more than the longest", c, len(msg))
		}
	})
}
