package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

const (
	defaultMax = 1 << 20  // a message behind a length
	maxHeader  = 64 << 10 // Offset and Strip: a header is buffered before anything can be checked
)

// Length describes frames that begin with a header, of which Width bytes at Offset are
// the length. The zero value is four bytes, big endian, then so many bytes of message,
// 1 MiB at most. The terms are Netty's LengthFieldBasedFrameDecoder's and tokio-util's
// LengthDelimitedCodec's; the frame is
//
//	Offset + Width + length + Adjust    bytes long, or
//	length + Adjust                     where the length Includes the header
//
// and the message is all of it but its first Strip bytes.
//
//	Length{}                                      the length of the message, then the message
//	Length{Width: 3, Order: binary.LittleEndian}  the same with another length
//	Length{Includes: true}                        the length counts its own four bytes
//	Length{Offset: 1, Adjust: -4, Strip: -1}      PostgreSQL: a type, a length that counts itself but
//	                                              not the type; messages begin with their type
//	Length{Offset: 2, Adjust: 6, Strip: -1}       six more header bytes, which the length leaves out
type Length struct {
	Width  int              // of the length in bytes, 1 to 8; 0 is 4
	Offset int              // bytes of the frame before the length, at most 64 KiB
	Order  binary.ByteOrder // nil is big endian

	Includes bool // the length counts the header, all up to the end of the length itself
	Adjust   int  // bytes the length leaves out; negative: bytes it counts too much

	// Strip is how many bytes at the start of a frame are not part of its message:
	// 0 strips the header, Offset + Width, a negative value nothing. It may not cut
	// the length in two. What is stripped is sent as zeros, but for the length; a
	// length that is not stripped is filled in when the message is sent.
	Strip int

	// Max is the longest message in bytes, after Strip. 0 is 1 MiB, or what Width can
	// express; negative leaves only the latter.
	Max int
}

// Prefix returns the format of messages behind their length, big endian and width bytes
// wide, 1 to 8: [Length] with nothing else set. Messages have up to 1 MiB, or what the
// width can express. Any other width panics.
func Prefix(width int) Format {
	if width < 1 || width > 8 {
		panic(fmt.Sprintf("frame: a length prefix of %d bytes", width))
	}
	f, err := Length{Width: width}.Format()
	if err != nil {
		panic(err) // every width can express a byte
	}
	return f
}

// Format checks l as a whole: every length is computed without overflow, and a message
// of Max bytes can be sent and will be read.
func (l Length) Format() (Format, error) {
	f := &length{offset: l.Offset, width: l.Width, strip: l.Strip}
	if f.width == 0 {
		f.width = 4
	}
	f.header = f.offset + f.width
	if l.Strip == 0 {
		f.strip = f.header
	}
	f.strip = max(f.strip, 0)
	f.little = l.Order != nil && l.Order.Uint16([]byte{1, 0}) == 1
	f.base = int64(l.Adjust)
	if !l.Includes {
		f.base += int64(f.header)
	}
	if err := l.check(f); err != nil {
		return nil, err
	}
	if err := f.bound(l.Max); err != nil {
		return nil, err
	}
	return f, nil
}

// check refuses what needs no arithmetic, and by that keeps the arithmetic in int64.
func (l Length) check(f *length) error {
	switch {
	case f.width < 1 || f.width > 8:
		return fmt.Errorf("frame: a length of %d bytes; it has 1 to 8", l.Width)
	case l.Offset < 0 || l.Offset > maxHeader:
		return fmt.Errorf("frame: length at offset %d; a header has at most %d bytes", l.Offset, maxHeader)
	case l.Strip > maxHeader:
		return fmt.Errorf("frame: strip of %d bytes; at most %d", l.Strip, maxHeader)
	case f.strip > f.offset && f.strip < f.header:
		return fmt.Errorf("frame: strip of %d bytes would cut the length at %d to %d in two", l.Strip, f.offset, f.header)
	case int64(l.Adjust) > math.MaxInt32 || int64(l.Adjust) < -math.MaxInt32:
		return fmt.Errorf("frame: adjust of %d bytes", l.Adjust)
	}
	return nil
}

// length is a checked Length.
type length struct {
	width, offset, header int    // header is where the length ends
	strip, max            int    // the message is frame[strip:]
	base                  int64  // the frame has length+base bytes
	low, high             uint64 // lengths of the smallest frame and of the largest
	little                bool
}

// bound computes the lengths that are right. A frame is at least its header and what is
// stripped of it, at most strip+max.
func (f *length) bound(limit int) error {
	least := int64(max(f.header, f.strip))
	most := int64(math.MaxInt)
	switch {
	case limit == 0:
		most = int64(f.strip) + defaultMax
	case limit > 0 && int64(limit) > most-int64(f.strip):
		return fmt.Errorf("frame: max of %d bytes", limit)
	case limit > 0:
		most = int64(f.strip) + int64(limit)
	}
	// From here on differences are taken the right way around and in uint64: exact,
	// for base is within 33 bits of 0.
	widest := ^uint64(0) >> (64 - 8*f.width)
	if most < least || most < f.base {
		return fmt.Errorf("frame: no frame of at most %d bytes has a valid length", most)
	}
	if f.high = uint64(most) - uint64(f.base); f.high > widest {
		if limit > 0 {
			return fmt.Errorf("frame: max of %d bytes does not fit a length of %d bytes", limit, f.width)
		}
		f.high = widest
		most = int64(widest + uint64(f.base))
	}
	if most < least {
		return errors.New("frame: the length is too narrow for the smallest frame")
	}
	if least > f.base {
		f.low = uint64(least) - uint64(f.base)
	}
	f.max = int(most - int64(f.strip))
	return nil
}

func (f *length) Max() int { return f.max }

func (f *length) Cut(b []byte, _ int) (Frame, error) {
	if len(b) < f.header {
		return Frame{Need: f.header}, nil
	}
	n := f.length(b[f.offset:f.header])
	if n < f.low || n > f.high {
		return f.refuse(n)
	}
	size := int(n + uint64(f.base)) // wraps as it should where base is negative
	if len(b) < size {
		return Frame{Need: size}, nil
	}
	return Frame{Msg: b[f.strip:size:size], Size: size}, nil
}

func (f *length) refuse(n uint64) (Frame, error) {
	if n < f.low {
		return Frame{}, fmt.Errorf("%w: length %d where %d is the least", ErrMalformed, n, f.low)
	}
	var skip int
	if n <= uint64(math.MaxInt)-uint64(f.base) {
		skip = int(n + uint64(f.base))
	}
	return Frame{Skip: skip}, fmt.Errorf("%w: length %d where %d is the most", ErrTooLarge, n, f.high)
}

func (f *length) Append(dst, msg []byte) ([]byte, error) { return appendParts(f, dst, msg) }

func (f *length) parts(dst, msg []byte) (head, body []byte, tail string, err error) {
	size := int64(f.strip) + int64(len(msg))
	switch {
	case len(msg) > f.max:
		return dst, nil, "", errTooLong(len(msg), f.max)
	case size < int64(f.header) || size < f.base:
		return dst, nil, "", fmt.Errorf("%w: a message of %d bytes is too short for its header", ErrMalformed, len(msg))
	}
	// Of the header, the message itself has what is not stripped.
	own := max(f.header-f.strip, 0)
	start := len(dst)
	head = append(dst, make([]byte, f.strip)...)
	head = append(head, msg[:own]...)
	f.putLength(head[start+f.offset:start+f.header], uint64(size)-uint64(f.base))
	return head, msg[own:], "", nil
}

func (f *length) length(b []byte) (n uint64) {
	if f.little {
		for i := len(b) - 1; i >= 0; i-- {
			n = n<<8 | uint64(b[i])
		}
		return n
	}
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}

func (f *length) putLength(b []byte, n uint64) {
	for i := range b {
		at := len(b) - 1 - i
		if f.little {
			at = i
		}
		b[at] = byte(n >> (8 * i))
	}
}
