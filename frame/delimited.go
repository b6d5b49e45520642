package frame

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

const (
	defaultText  = 64 << 10 // a message that nothing announces
	maxDelimiter = 128      // MIME's are the longest in use, 76 with what is around a boundary
)

// Delimited describes messages that end with a delimiter, of one byte or of several. The
// zero value is lines: what [Lines] returns.
//
// A frame ends with the first byte that completes a delimiter. Where this completes
// several, the longest is the delimiter and the message is the shortest: lines that end
// with CR LF have no CR. All else is bytes like any other: a NUL, a CR within a line,
// what is not UTF-8, a part of a delimiter.
//
//	Delimited{}                                 LF or CR LF read, LF sent
//	Delimited{By: []string{"\r\n", "\n"}}       the same, and CR LF sent
//	Delimited{By: []string{"\x00"}, Max: 4096}  C strings
type Delimited struct {
	// By is what ends a message, the first of them when it is sent: any number of up
	// to 128 bytes each. One that contains another before its own end would never be
	// found, and is refused. None is LF and CR LF.
	By []string

	Max  int  // longest message in bytes; 0 is 64 KiB, negative unlimited
	Keep bool // messages carry the delimiter that ends them, as it came, and count it
}

// Lines returns the format of lines of at most 64 KiB, ended by LF or CR LF when they
// are read and by LF when they are sent. A message with an LF in it, or a CR at its end,
// would not be read as it was sent and is refused.
func Lines() Format {
	f, err := Delimited{}.Format()
	if err != nil {
		panic(err) // it says nothing to be wrong about
	}
	return f
}

// Format checks d.
func (d Delimited) Format() (Format, error) {
	f := &delimited{by: slices.Clone(d.By), max: d.Max, keep: d.Keep}
	if len(f.by) == 0 {
		f.by = []string{"\n", "\r\n"}
	}
	f.end = f.by[0]
	if err := f.check(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(f.by, func(a, b string) int { return len(b) - len(a) })
	f.longest = len(f.by[0])
	switch {
	case d.Max == 0:
		f.max = defaultText
	case d.Max < 0 || d.Max > math.MaxInt-maxDelimiter:
		f.max = math.MaxInt - maxDelimiter
	case d.Keep && d.Max < f.longest:
		return nil, fmt.Errorf("frame: max of %d bytes, which the delimiter %q exceeds", d.Max, f.by[0])
	}
	f.sure, f.most = f.max, f.max+f.longest
	if f.keep {
		f.sure, f.most = f.max-f.longest, f.max
	}
	f.prepare()
	return f, nil
}

func (f *delimited) check() error {
	if slices.Contains(f.by, "") {
		return errors.New("frame: an empty delimiter")
	}
	for _, d := range f.by {
		if len(d) > maxDelimiter {
			return fmt.Errorf("frame: a delimiter of %d bytes; at most %d", len(d), maxDelimiter)
		}
		for _, other := range f.by {
			if strings.Contains(d[:len(d)-1], other) {
				return fmt.Errorf("frame: delimiter %q will never be found: %q ends the message before", d, other)
			}
		}
	}
	return nil
}

// delimited is a checked Delimited.
type delimited struct {
	by   []string // the longest first
	end  string   // of what is sent; with keep the message has it
	max  int
	keep bool

	longest    int       // delimiter
	sure, most int       // so many bytes are within max whatever follows; of a frame at most
	last       byte      // of all delimiters, if they have the same
	several    bool      // they have not
	lasts      [256]bool // the last bytes then
}

// prepare finds what to search for: with one last byte for all delimiters that is
// bytes.IndexByte, and so for lines.
func (f *delimited) prepare() {
	f.last = f.end[len(f.end)-1]
	for _, d := range f.by {
		c := d[len(d)-1]
		f.lasts[c] = true
		f.several = f.several || c != f.last
	}
}

func (f *delimited) Max() int { return f.max }

// A negative from is the complement of what was looked at within a message that is too
// large.
func (f *delimited) Cut(b []byte, from int) (Frame, error) {
	if from < 0 {
		return f.skip(b, ^from), nil
	}
	seen := b[:min(len(b), f.most)]
	if end, size := f.find(seen, from); end > 0 {
		return f.frame(b[:end], size)
	}
	if len(seen) > f.sure && f.least(seen) > f.max {
		return f.skip(seen, len(seen)), f.tooLarge()
	}
	return Frame{Need: len(b) + 1, From: len(b)}, nil
}

// frame is b, which ends with a delimiter of size bytes.
func (f *delimited) frame(b []byte, size int) (Frame, error) {
	end := len(b) - size
	if f.keep {
		end = len(b)
	}
	if end > f.max {
		return Frame{Skip: len(b)}, f.tooLarge()
	}
	return Frame{Msg: b[:end:end], Size: len(b)}, nil
}

// skip is what to drop of b, which begins within a message that is too large: all up to
// its end, or to what may be the start of a delimiter.
func (f *delimited) skip(b []byte, from int) Frame {
	if end, _ := f.find(b, from); end > 0 {
		return Frame{Skip: end}
	}
	begun := f.begun(b)
	return Frame{Skip: len(b) - begun, Need: begun + 1, From: ^begun}
}

// find returns where the first delimiter ends that does so behind b[:from], and its size;
// 0 if there is none.
func (f *delimited) find(b []byte, from int) (end, size int) {
	for {
		i := 0
		if f.several {
			i = f.indexLast(b[from:])
		} else {
			i = bytes.IndexByte(b[from:], f.last)
		}
		if i < 0 {
			return 0, 0
		}
		from += i + 1
		for _, d := range f.by {
			at := from - len(d)
			if at >= 0 && b[at] == d[0] && (len(d) == 1 || string(b[at:from]) == d) {
				return from, len(d)
			}
		}
	}
}

// indexLast is bytes.IndexByte of any of the last bytes.
func (f *delimited) indexLast(b []byte) int {
	for i, c := range b {
		if f.lasts[c] {
			return i
		}
	}
	return -1
}

// least is the size of the smallest message that may come of b, which has no delimiter.
func (f *delimited) least(b []byte) int {
	least := math.MaxInt
	for _, d := range f.by {
		n := len(b) - begunAtEnd(b, d)
		if f.keep {
			n += len(d)
		}
		least = min(least, n)
	}
	return least
}

// begun is how many bytes at the end of b may belong to a delimiter that goes on.
func (f *delimited) begun(b []byte) (n int) {
	for _, d := range f.by {
		n = max(n, begunAtEnd(b, d))
	}
	return n
}

func begunAtEnd(b []byte, d string) int {
	n := min(len(d)-1, len(b))
	for n > 0 && (b[len(b)-n] != d[0] || string(b[len(b)-n:]) != d[:n]) {
		n--
	}
	return n
}

func (f *delimited) tooLarge() error {
	return fmt.Errorf("%w: more than %d bytes before a delimiter", ErrTooLarge, f.max)
}

func (f *delimited) Append(dst, msg []byte) ([]byte, error) { return appendParts(f, dst, msg) }

func (f *delimited) parts(dst, msg []byte) (head, body []byte, tail string, err error) {
	if len(msg) > f.max {
		return dst, nil, "", f.tooLarge()
	}
	end, size := f.find(msg, 0)
	if f.keep {
		if end == 0 {
			return dst, nil, "", fmt.Errorf("%w: the message to send has no delimiter at its end", ErrMalformed)
		}
		if end == len(msg) {
			return dst, msg, "", nil
		}
	}
	if end > 0 {
		return dst, nil, "", fmt.Errorf("%w: the message to send has the delimiter %q in it", ErrMalformed, msg[end-size:end])
	}
	if begun := f.begun(msg); begun > 0 && !f.endsAsSent(msg, begun) {
		return dst, nil, "", fmt.Errorf("%w: the end of the message to send would be read as one with the delimiter %q behind it",
			ErrMalformed, f.end)
	}
	return dst, msg, f.end, nil
}

// endsAsSent reports that of the last begun bytes of msg, which has no delimiter in it,
// and the one behind it nothing but this will be read as a delimiter.
func (f *delimited) endsAsSent(msg []byte, begun int) bool {
	var room [2 * maxDelimiter]byte
	joint := append(append(room[:0], msg[len(msg)-begun:]...), f.end...)
	end, size := f.find(joint, begun)
	return end == len(joint) && size == len(f.end)
}
