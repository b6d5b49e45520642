package frame

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
)

// Varint returns the format of messages behind their length as a varint: seven bits to a
// byte, the lowest first, as protocol buffers delimit messages. A message has at most max
// bytes; 0 is 1 MiB, negative unlimited. A length that could be shorter, or has more than
// 64 bits, is malformed: every message has one form.
func Varint(max int) Format { return &varint{limit(max)} }

// Netstring returns the format of netstrings: the length in decimal, a colon, the message,
// a comma. A message has at most max bytes; 0 is 1 MiB, negative unlimited. A length with
// a zero before it is malformed, and so is a message without its comma, which gives away
// a stream that came apart.
//
// See https://cr.yp.to/proto/netstrings.txt.
func Netstring(max int) Format { return &netstring{limit(max)} }

// Fixed returns the format of messages of size bytes with nothing around them: records,
// samples, MPEG's packets of 188. A size below 1 panics.
func Fixed(size int) Format {
	if size < 1 {
		panic(fmt.Sprintf("frame: messages of %d bytes", size))
	}
	return fixed(size)
}

// maxAround is more than Varint and Netstring put around a message.
const maxAround = 32

func limit(max int) int {
	switch {
	case max == 0:
		return defaultMax
	case max < 0 || max > math.MaxInt-maxAround:
		return math.MaxInt - maxAround
	}
	return max
}

type varint struct{ max int }

func (f *varint) Max() int { return f.max }

func (f *varint) Cut(b []byte, _ int) (Frame, error) {
	n, head := binary.Uvarint(b)
	switch {
	case head == 0 && len(b) < binary.MaxVarintLen64:
		return Frame{Need: len(b) + 1}, nil
	case head <= 0:
		return Frame{}, fmt.Errorf("%w: a varint of more than 64 bits", ErrMalformed)
	case head > 1 && b[head-1] == 0:
		return Frame{}, fmt.Errorf("%w: a varint of %d bytes that could be shorter", ErrMalformed, head)
	}
	return announced(b, head, n, 0, f.max)
}

func (f *varint) Append(dst, msg []byte) ([]byte, error) { return appendParts(f, dst, msg) }

func (f *varint) parts(dst, msg []byte) (head, body []byte, tail string, err error) {
	if len(msg) > f.max {
		return dst, nil, "", errTooLong(len(msg), f.max)
	}
	return binary.AppendUvarint(dst, uint64(len(msg))), msg, "", nil
}

type netstring struct{ max int }

func (f *netstring) Max() int { return f.max }

func (f *netstring) Cut(b []byte, _ int) (Frame, error) {
	const maxDigits = 19 // never overflow; 20 are more than any int
	var n uint64
	for i, c := range b {
		switch {
		case c == ':' && i > 0:
			fr, err := announced(b, i+1, n, 1, f.max)
			if fr.Size > 0 && b[fr.Size-1] != ',' {
				return Frame{}, fmt.Errorf("%w: no comma behind a netstring of %d bytes", ErrMalformed, n)
			}
			return fr, err
		case c < '0' || c > '9':
			return Frame{}, fmt.Errorf("%w: the length of a netstring has a byte that is no digit", ErrMalformed)
		case i > 0 && n == 0:
			return Frame{}, fmt.Errorf("%w: the length of a netstring begins with a zero", ErrMalformed)
		case i == maxDigits:
			return Frame{}, fmt.Errorf("%w: a length of more than %d digits", ErrTooLarge, maxDigits)
		}
		n = 10*n + uint64(c-'0')
	}
	return Frame{Need: len(b) + 1}, nil
}

func (f *netstring) Append(dst, msg []byte) ([]byte, error) { return appendParts(f, dst, msg) }

func (f *netstring) parts(dst, msg []byte) (head, body []byte, tail string, err error) {
	if len(msg) > f.max {
		return dst, nil, "", errTooLong(len(msg), f.max)
	}
	return append(strconv.AppendInt(dst, int64(len(msg)), 10), ':'), msg, ",", nil
}

// announced is the frame of a message of n bytes, with head bytes before it, which are
// there, and tail bytes behind it.
func announced(b []byte, head int, n uint64, tail, limit int) (Frame, error) {
	if n > uint64(limit) {
		return refuseAnnounced(n, head+tail, limit)
	}
	end := head + int(n)
	if len(b) < end+tail {
		return Frame{Need: end + tail}, nil
	}
	return Frame{Msg: b[head:end:end], Size: end + tail}, nil
}

func refuseAnnounced(n uint64, around, limit int) (Frame, error) {
	var skip int
	if n <= uint64(math.MaxInt-around) {
		skip = int(n) + around
	}
	return Frame{Skip: skip}, fmt.Errorf("%w: length %d where %d is the most", ErrTooLarge, n, limit)
}

// errTooLong is of a message that we were to send.
func errTooLong(size, limit int) error {
	return fmt.Errorf("%w: %d bytes to send where %d are the most", ErrTooLarge, size, limit)
}

// fixed is the size of every message.
type fixed int

func (f fixed) Max() int { return int(f) }

func (f fixed) Cut(b []byte, _ int) (Frame, error) {
	if len(b) < int(f) {
		return Frame{Need: int(f)}, nil
	}
	return Frame{Msg: b[:f:f], Size: int(f)}, nil
}

func (f fixed) Append(dst, msg []byte) ([]byte, error) { return appendParts(f, dst, msg) }

func (f fixed) parts(dst, msg []byte) (head, body []byte, tail string, err error) {
	switch {
	case len(msg) > int(f):
		return dst, nil, "", errTooLong(len(msg), int(f))
	case len(msg) < int(f):
		return dst, nil, "", fmt.Errorf("%w: a message of %d bytes where all have %d", ErrMalformed, len(msg), int(f))
	}
	return dst, msg, "", nil
}
