package frame

import (
	"bytes"
	"errors"
	"fmt"
	"math"
)

const defaultLine = 64 << 10

// Line describes messages that are lines: they end with LF or CR LF, which are not part
// of the message. A CR anywhere else, a NUL and whatever is not UTF-8 are bytes like any
// other. The zero value is what [Lines] returns.
type Line struct {
	Max  int  // longest message in bytes; 0 is 64 KiB, negative unlimited
	CRLF bool // send CR LF; both are read in any case
	Keep bool // messages carry the LF or CR LF that ends them, as it came, and count it
}

// Lines returns the format of lines of at most 64 KiB, ended by LF or CR LF when they
// are read and by LF when they are sent. A message with an LF in it, or a CR at its end,
// would not be read as it was sent and is refused.
func Lines() Format { return &line{max: defaultLine, end: "\n"} }

// Format checks l.
func (l Line) Format() (Format, error) {
	f := &line{max: l.Max, end: "\n", keep: l.Keep}
	switch {
	case l.Keep && l.CRLF:
		return nil, errors.New("frame: lines that keep their end are sent with it, and not with CRLF")
	case l.CRLF:
		f.end = "\r\n"
	}
	switch {
	case l.Max == 0:
		f.max = defaultLine
	case l.Max < 0 || l.Max > math.MaxInt-2:
		f.max = math.MaxInt - 2 // and the CR LF behind it
	}
	return f, nil
}

// line is a checked Line.
type line struct {
	max  int
	end  string // of what is sent; of no use with keep
	keep bool
}

func (f *line) Max() int { return f.max }

func (f *line) Cut(b []byte, from int) (Frame, error) {
	most := f.max + len("\r\n")
	if f.keep {
		most = f.max
	}
	seen := min(len(b), most)
	if i := bytes.IndexByte(b[from:seen], '\n'); i >= 0 {
		return f.frame(b[:from+i+1])
	}
	// One byte over is still right where it is a CR before the LF.
	if seen == most || seen > f.max && !f.keep && b[f.max] != '\r' {
		return Frame{}, f.tooLarge()
	}
	return Frame{Need: len(b) + 1, From: len(b)}, nil
}

// frame is b, which ends with its only LF.
func (f *line) frame(b []byte) (Frame, error) {
	end := len(b)
	if !f.keep {
		end--
		if end > 0 && b[end-1] == '\r' {
			end--
		}
	}
	if end > f.max {
		return Frame{}, f.tooLarge()
	}
	return Frame{Msg: b[:end:end], Size: len(b)}, nil
}

func (f *line) tooLarge() error {
	return fmt.Errorf("%w: a line of more than %d bytes", ErrTooLarge, f.max)
}

func (f *line) Append(dst, msg []byte) ([]byte, error) { return appendParts(f, dst, msg) }

func (f *line) parts(dst, msg []byte) (head, body []byte, tail string, err error) {
	tail = f.end
	text := msg
	if f.keep {
		var ended bool
		if text, ended = bytes.CutSuffix(msg, []byte("\n")); !ended {
			return dst, nil, "", fmt.Errorf("%w: the line to send has no end", ErrMalformed)
		}
		tail = ""
	}
	switch {
	case len(msg) > f.max:
		return dst, nil, "", f.tooLarge()
	case bytes.IndexByte(text, '\n') >= 0:
		return dst, nil, "", fmt.Errorf("%w: the line to send has an LF in it", ErrMalformed)
	case tail == "\n" && bytes.HasSuffix(msg, []byte("\r")):
		return dst, nil, "", fmt.Errorf("%w: the CR at the end of the line to send would be read as its end", ErrMalformed)
	}
	return dst, msg, tail, nil
}
