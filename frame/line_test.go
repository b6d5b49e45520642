package frame

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// Fault 28: a line that never ends is refused at the limit.
func TestNoDelimiterEver(t *testing.T) {
	for _, l := range []Line{{}, {Max: 10}, {CRLF: true}, {Keep: true}, {Max: 1}, {Keep: true, Max: 1}} {
		f := build(t, l)
		var endless endless
		if _, err := NewReader(&endless, f).Next(); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%+v: %v, want ErrTooLarge", l, err)
		}
		if limit := 2*f.Max() + smallBuffer; endless.read > limit {
			t.Errorf("%+v: read %d bytes for lines of at most %d", l, endless.read, f.Max())
		}
	}
}

// endless is yes | tr -d '\n'.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'y'
	}
	e.read += len(b)
	return len(b), nil
}

// Fault 29. Each stream arrives byte by byte, so that every delimiter is split.
func TestDelimiterSplitAndMixed(t *testing.T) {
	kept := build(t, Line{Keep: true})
	for _, c := range []struct {
		format Format
		stream string
		want   []string
		end    error
	}{
		{Lines(), "a\nb\r\nc\n", []string{"a", "b", "c"}, io.EOF},
		{Lines(), "\n\r\n\n", []string{"", "", ""}, io.EOF},
		{Lines(), "a\r\r\nb\rc\n\rd\n", []string{"a\r", "b\rc", "\rd"}, io.EOF},
		{Lines(), "\x00\n\xff\x00\r\n", []string{"\x00", "\xff\x00"}, io.EOF},
		{Lines(), "a\nb", []string{"a"}, io.ErrUnexpectedEOF},
		{Lines(), "a\nb\r", []string{"a"}, io.ErrUnexpectedEOF},
		{Lines(), "\r", nil, io.ErrUnexpectedEOF},
		{kept, "a\nb\r\n\n", []string{"a\n", "b\r\n", "\n"}, io.EOF},
	} {
		for name, arrive := range arrivals {
			got, err := readAll(NewReader(arrive(strings.NewReader(c.stream)), c.format))
			if strings.Join(got, "|") != strings.Join(c.want, "|") || len(got) != len(c.want) || !errors.Is(err, c.end) {
				t.Errorf("%q %s: %q, %v, want %q, %v", c.stream, name, got, err, c.want, c.end)
			}
		}
	}
}

// The limit is that of the message: what ends it does not count unless it is kept.
func TestLongestLine(t *testing.T) {
	for _, c := range []struct {
		line   Line
		stream string
		want   error
	}{
		{Line{Max: 3}, "abc\n", nil},
		{Line{Max: 3}, "abc\r\n", nil},
		{Line{Max: 3}, "abc\r\r\n", ErrTooLarge},
		{Line{Max: 3}, "abcd\n", ErrTooLarge},
		{Line{Max: 3}, "abcd", ErrTooLarge},   // before its end
		{Line{Max: 3}, "abc\rd", ErrTooLarge}, // so the CR was of the message
		{Line{Max: 3}, "abc\r", io.ErrUnexpectedEOF},
		{Line{Max: 3}, "abc", io.ErrUnexpectedEOF},
		{Line{Max: 3, Keep: true}, "ab\n", nil},
		{Line{Max: 3, Keep: true}, "a\r\n", nil},
		{Line{Max: 3, Keep: true}, "abc", ErrTooLarge},
		{Line{Max: 3, Keep: true}, "ab\r", ErrTooLarge},
		{Line{Max: -1}, strings.Repeat("a", 1<<20) + "\n", nil},
		{Line{}, strings.Repeat("a", 64<<10) + "\r\n", nil},
		{Line{}, strings.Repeat("a", 64<<10+1), ErrTooLarge},
	} {
		for name, arrive := range arrivals {
			_, err := NewReader(arrive(strings.NewReader(c.stream)), build(t, c.line)).Next()
			if !errors.Is(err, c.want) {
				t.Errorf("%+v, %.9q %s: %v, want %v", c.line, c.stream, name, err, c.want)
			}
		}
	}
}

func TestLineRefusesToKeepAndReplaceItsEnd(t *testing.T) {
	if f, err := (Line{Keep: true, CRLF: true}).Format(); err == nil {
		t.Errorf("got %+v", f)
	}
}
