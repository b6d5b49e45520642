package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// What a length says, in every convention: the frame, its message, or the error.
func TestLengthConventions(t *testing.T) {
	for _, c := range []struct {
		name   string
		length Length
		frame  string
		msg    string
		want   error
	}{
		{"the zero value", Length{}, "\x00\x00\x00\x02ok", "ok", nil},
		{"no message", Length{}, "\x00\x00\x00\x00", "", nil},
		{"one byte", Length{Width: 1}, "\x02ok", "ok", nil},
		{"three bytes, little endian", Length{Width: 3, Order: binary.LittleEndian}, "\x02\x00\x00ok", "ok", nil},
		{"five bytes", Length{Width: 5}, "\x00\x00\x00\x00\x02ok", "ok", nil},
		{"the machine's order", Length{Width: 2, Order: binary.NativeEndian},
			string(binary.NativeEndian.AppendUint16(nil, 2)) + "ok", "ok", nil},
		{"counts itself", Length{Width: 2, Includes: true}, "\x00\x04ok", "ok", nil},
		{"counts itself, and is nothing else", Length{Width: 2, Includes: true}, "\x00\x02", "", nil},
		{"counts itself, and is 1", Length{Width: 2, Includes: true}, "\x00\x01", "", ErrMalformed},
		{"counts itself, and is 0", Length{Width: 2, Includes: true}, "\x00\x00", "", ErrMalformed},
		{"a type before it", Length{Width: 1, Offset: 1}, "T\x02ok", "ok", nil},
		{"a type before it, kept", Length{Width: 1, Offset: 1, Strip: -1}, "T\x02ok", "T\x02ok", nil},
		{"a type before it, stripped alone", Length{Width: 1, Offset: 1, Strip: 1}, "T\x02ok", "\x02ok", nil},
		{"a checksum it leaves out", Length{Width: 1, Adjust: 2}, "\x02okCC", "okCC", nil},
		{"a checksum before the message, stripped", Length{Width: 1, Adjust: 2, Strip: 3}, "\x02CCok", "ok", nil},
		{"counts one too much", Length{Width: 1, Adjust: -1}, "\x03ok", "ok", nil},
		{"adjusted to -1", Length{Width: 1, Adjust: -1}, "\x00", "", ErrMalformed},
		{"adjusted far below 0", Length{Width: 1, Adjust: -200}, "\x01", "", ErrMalformed},
		{"shorter than what is stripped", Length{Width: 1, Strip: 3}, "\x01.", "", ErrMalformed},
		{"just what is stripped", Length{Width: 1, Strip: 3}, "\x02..", "", nil},
		{"the longest", Length{Width: 1, Max: 3}, "\x03yes", "yes", nil},
		{"one more", Length{Width: 1, Max: 3}, "\x04", "", ErrTooLarge},
		{"the longest after strip", Length{Width: 1, Strip: 3, Max: 1}, "\x03..!", "!", nil},
		{"one more after strip", Length{Width: 1, Strip: 3, Max: 1}, "\x04", "", ErrTooLarge},
		{"the longest with its header", Length{Width: 1, Strip: -1, Max: 4}, "\x03yes", "\x03yes", nil},
		{"one more with its header", Length{Width: 1, Strip: -1, Max: 4}, "\x04", "", ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := build(t, c.length)
			got, err := f.Cut([]byte(c.frame+"rest"), 0)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err == nil && (string(got.Msg) != c.msg || got.Size != len(c.frame)) {
				t.Fatalf("got %q of %d bytes, want %q of %d", got.Msg, got.Size, c.msg, len(c.frame))
			}
		})
	}
}

// Need says how many bytes a frame waits for: its header, then all of it.
func TestLengthNeeds(t *testing.T) {
	f := build(t, Length{Width: 2, Offset: 1})
	frame := []byte("T\x00\x03yes")
	for n := range frame {
		want := len(frame)
		if n < 3 {
			want = 3
		}
		if got, err := f.Cut(frame[:n], 0); err != nil || got.Size != 0 || got.Need != want {
			t.Errorf("%d bytes: %+v, %v, want to need %d", n, got, err, want)
		}
	}
}

func TestLengthRefusesWhatCannotWork(t *testing.T) {
	for want, l := range map[string]Length{
		"1 to 8":                   {Width: 9},
		"length of -1":             {Width: -1},
		"offset -1":                {Offset: -1},
		"offset 65537":             {Offset: 64<<10 + 1},
		"offset 9223372036854":     {Offset: math.MaxInt},
		"strip of 65537":           {Strip: 64<<10 + 1},
		"cut the length at 2 to 6": {Offset: 2, Strip: 3},
		"adjust of":                {Adjust: math.MaxInt},
		"adjust of -":              {Adjust: math.MinInt},
		"max of 256":               {Width: 1, Max: 256},
		"max of 9223372036854":     {Max: math.MaxInt},
		"at most 4 bytes has":      {Strip: -1, Max: 4, Adjust: 1},
		"at most 3 bytes has":      {Strip: -1, Max: 3},
		"too narrow":               {Width: 1, Adjust: -1000},
	} {
		if f, err := l.Format(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %+v, %v, want an error with %q", l, f, err, want)
		}
	}
}

func TestMaxIsWhatTheWidthCanExpress(t *testing.T) {
	for _, c := range []struct {
		length Length
		want   int
	}{
		{Length{Width: 1}, 255},
		{Length{Width: 2}, 65535},
		{Length{Width: 3}, 1 << 20},
		{Length{}, 1 << 20},
		{Length{Width: 1, Includes: true}, 254},
		{Length{Width: 1, Strip: -1}, 256},
		{Length{Width: 1, Adjust: 5}, 260},
		{Length{Width: 1, Adjust: -5}, 250},
		{Length{Width: 3, Max: -1}, 1<<24 - 1},
		{Length{Width: 8, Max: -1}, math.MaxInt - 8},
		{Length{Max: 17}, 17},
	} {
		if got := build(t, c.length).Max(); got != c.want {
			t.Errorf("%+v: max %d, want %d", c.length, got, c.want)
		}
	}
}

func TestPrefixPanicsOnAWidthThatIsNone(t *testing.T) {
	for _, width := range []int{-1, 0, 9} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Prefix(%d) did not panic", width)
				}
			}()
			Prefix(width)
		}()
	}
}

// Fault 24: a header that announces too much is refused on its own; nothing more is read and no
// memory is taken for what it announces.
func TestTooLargeBeforeAllocating(t *testing.T) {
	for width := 3; width <= 8; width++ {
		header := bytes.Repeat([]byte{0xff}, width)
		r := NewReader(io.MultiReader(bytes.NewReader(header), neverRead{t}), Prefix(width))
		if _, err := r.Next(); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes of ones: %v, want ErrTooLarge", width, err)
		}
		if len(r.buf) > smallBuffer {
			t.Errorf("%d bytes of ones took %d bytes of memory", width, len(r.buf))
		}
		if _, err := r.Next(); !errors.Is(err, ErrTooLarge) {
			t.Errorf("the error does not stay: %v", err)
		}
		if !bytes.Equal(r.Buffered(), header) {
			t.Errorf("buffered %q after the error, want the header", r.Buffered())
		}
	}
}

// neverRead is what comes after bytes that say enough.
type neverRead struct{ t *testing.T }

func (n neverRead) Read([]byte) (int, error) {
	n.t.Error("read on after a header that was wrong")
	return 0, io.EOF
}

// All ones in the widths that can be followed: 255 and 65535 bytes are messages.
func TestLongestOfANarrowWidth(t *testing.T) {
	for _, width := range []int{1, 2} {
		f := Prefix(width)
		b := append(bytes.Repeat([]byte{0xff}, width), make([]byte, f.Max())...)
		got, err := f.Cut(b, 0)
		if err != nil || len(got.Msg) != f.Max() {
			t.Errorf("width %d: message of %d bytes, %v, want %d", width, len(got.Msg), err, f.Max())
		}
	}
}

// Fault 25: lengths 0 to 3 of a protocol whose length counts its own four bytes.
func TestLengthSmallerThanItself(t *testing.T) {
	f := build(t, Length{Offset: 1, Adjust: -4, Strip: -1})
	for n := range byte(4) {
		if _, err := f.Cut([]byte{'Q', 0, 0, 0, n, 'x', 'x', 'x'}, 0); !errors.Is(err, ErrMalformed) {
			t.Errorf("length %d: %v, want ErrMalformed", n, err)
		}
	}
	if got, err := f.Cut([]byte{'S', 0, 0, 0, 4}, 0); err != nil || string(got.Msg) != "S\x00\x00\x00\x04" {
		t.Errorf("length 4: %+v, %v", got, err)
	}
}

// Fault 26: a length that is right in itself, and is not together with the header or
// what is adjusted, whatever the limit.
func TestLengthOverflow(t *testing.T) {
	for _, l := range []Length{
		{Width: 4, Max: -1},
		{Width: 8, Max: -1},
		{Width: 8, Max: -1, Adjust: math.MaxInt32},
		{Width: 8, Max: -1, Adjust: -math.MaxInt32},
		{Width: 8, Max: -1, Includes: true},
		{Width: 8, Max: -1, Strip: -1, Offset: 7},
	} {
		f := build(t, l)
		for _, n := range []uint64{math.MaxInt64 - 10, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64 - 7, math.MaxUint64} {
			b := binary.BigEndian.AppendUint64(make([]byte, l.Offset), n)[:l.Offset+l.Width]
			got, err := f.Cut(b, 0)
			if err == nil && got.Need <= len(b) {
				t.Errorf("%+v, length %d: %+v", l, n, got)
			}
		}
	}
}

// Fault 27: a message longer than its length can express is an error when it is sent, and
// nothing of it is written.
func TestSendMoreThanTheLengthCanExpress(t *testing.T) {
	var sent bytes.Buffer
	w := NewWriter(&sent, Prefix(2))
	if err := w.Send(make([]byte, 70_000)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("sent 70,000 bytes behind 16 bits: %v", err)
	}
	if err := w.Send([]byte("ok")); err != nil {
		t.Errorf("the next message: %v", err)
	}
	if err := w.Flush(); err != nil || sent.String() != "\x00\x02ok" {
		t.Errorf("wrote %q, %v", sent.String(), err)
	}
}

// A length that is part of the message is filled in, whatever the message has there.
func TestLengthWithinTheMessageIsFilledIn(t *testing.T) {
	f := build(t, Length{Offset: 1, Adjust: -4, Strip: -1})
	msg := []byte("Q....select")
	got, err := f.Append(nil, msg)
	if want := "Q\x00\x00\x00\x0aselect"; err != nil || string(got) != want {
		t.Errorf("appended %q, %v, want %q", got, err, want)
	}
	if string(msg) != "Q....select" {
		t.Errorf("the caller's message became %q", msg)
	}
}
