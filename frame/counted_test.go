package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

// A frame, its message, or the error, in the formats that have a size and no options.
func TestCountedConventions(t *testing.T) {
	for _, c := range []struct {
		name   string
		format Format
		frame  string
		msg    string
		want   error
	}{
		{"varint", Varint(0), "\x02ok", "ok", nil},
		{"varint, no message", Varint(0), "\x00", "", nil},
		{"varint, two bytes", Varint(0), "\x80\x01" + strings.Repeat("a", 128), strings.Repeat("a", 128), nil},
		{"varint, the longest", Varint(3), "\x03yes", "yes", nil},
		{"varint, one more", Varint(3), "\x04", "", ErrTooLarge},
		{"varint, all that 64 bits can say", Varint(-1), "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "", ErrTooLarge},
		{"varint of 65 bits", Varint(-1), "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "", ErrMalformed},
		{"varint of 11 bytes", Varint(-1), "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x81\x00", "", ErrMalformed},
		{"varint that goes on", Varint(-1), strings.Repeat("\x80", 10), "", ErrMalformed},
		{"varint of 0 in two bytes", Varint(0), "\x80\x00", "", ErrMalformed},
		{"varint of 2 in two bytes", Varint(0), "\x82\x00ok", "", ErrMalformed},
		{"varint of 0 in ten bytes", Varint(0), strings.Repeat("\x80", 9) + "\x00", "", ErrMalformed},
		{"netstring", Netstring(0), "2:ok,", "ok", nil},
		{"netstring, no message", Netstring(0), "0:,", "", nil},
		{"netstring in a netstring", Netstring(0), "5:2:ok,,", "2:ok,", nil},
		{"netstring, the longest", Netstring(10), "10:0123456789,", "0123456789", nil},
		{"netstring, one more", Netstring(10), "11:", "", ErrTooLarge},
		{"netstring without its comma", Netstring(0), "2:okk,", "", ErrMalformed},
		{"netstring without a length", Netstring(0), ":,", "", ErrMalformed},
		{"netstring with a zero before it", Netstring(0), "02:ok,", "", ErrMalformed},
		{"netstring of zeros", Netstring(0), "00:,", "", ErrMalformed},
		{"netstring of minus one", Netstring(0), "-1:,", "", ErrMalformed},
		{"netstring with a space", Netstring(0), "1 :a,", "", ErrMalformed},
		{"netstring, more than an int", Netstring(-1), "9223372036854775808:", "", ErrTooLarge},
		{"netstring, more than 64 bits", Netstring(-1), "18446744073709551616", "", ErrTooLarge},
		{"netstring that goes on", Netstring(-1), strings.Repeat("9", 100), "", ErrTooLarge},
		{"fixed", Fixed(2), "ok", "ok", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.format.Cut([]byte(c.frame+"rest"), 0)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err == nil && (string(got.Msg) != c.msg || got.Size != len(c.frame)) {
				t.Fatalf("got %q of %d bytes, want %q of %d", got.Msg, got.Size, c.msg, len(c.frame))
			}
		})
	}
}

// What is wrong with a length is said with the first byte that tells, and not before.
func TestCountedErrorsComeAtOnce(t *testing.T) {
	for _, c := range []struct {
		format Format
		frame  string
	}{
		{Varint(0), "\x80\x00"},
		{Varint(0), "\x80\x80\x80\x01"},
		{Varint(-1), strings.Repeat("\x80", 10)},
		{Netstring(0), "01"},
		{Netstring(0), "a"},
		{Netstring(3), "4:"},
		{Netstring(3), "3:abc."},
		{Netstring(3), strings.Repeat("9", 20)},
	} {
		for n := range len(c.frame) + 1 {
			got, err := c.format.Cut([]byte(c.frame[:n]), 0)
			if n < len(c.frame) && (err != nil || n < got.Need != true || got.Size != 0) || n == len(c.frame) && err == nil {
				t.Errorf("%d bytes of %q: %+v, %v", n, c.frame, got, err)
			}
		}
	}
}

func TestCountedMax(t *testing.T) {
	for _, f := range []func(int) Format{Varint, Netstring} {
		for max, want := range map[int]int{0: 1 << 20, 1: 1, -1: math.MaxInt - maxAround, math.MaxInt: math.MaxInt - maxAround} {
			if got := f(max).Max(); got != want {
				t.Errorf("max %d is %d, want %d", max, got, want)
			}
		}
		// The largest of all has a size that an int can express.
		most := f(-1)
		b := binary.AppendUvarint(nil, uint64(most.Max()))
		if _, ok := most.(*netstring); ok {
			b = fmt.Append(nil, most.Max(), ":")
		}
		if got, err := most.Cut(b, 0); err != nil || got.Need < most.Max() {
			t.Errorf("%T, its longest message: %+v, %v", most, got, err)
		}
	}
	if got := Fixed(188).Max(); got != 188 {
		t.Errorf("max of messages of 188 bytes is %d", got)
	}
}

func TestFixedPanicsOnASizeThatIsNone(t *testing.T) {
	for _, size := range []int{0, -1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Fixed(%d) did not panic", size)
				}
			}()
			Fixed(size)
		}()
	}
}

// The header of google.protobuf's writeDelimitedTo.
func TestVarintIsProtobufs(t *testing.T) {
	msg := bytes.Repeat([]byte("p"), 300)
	got, err := Varint(0).Append(nil, msg)
	if err != nil || !bytes.Equal(got, append([]byte{0xac, 0x02}, msg...)) {
		t.Errorf("appended %.5q, %v", got, err)
	}
}
