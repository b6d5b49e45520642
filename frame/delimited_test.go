package frame

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// Fault 28: a line that never ends is refused at the limit.
func TestNoDelimiterEver(t *testing.T) {
	for _, l := range []Delimited{{}, {Max: 10}, crlf, {Keep: true}, {Max: 1}, {Keep: true, Max: 2},
		{By: []string{"yn"}, Max: 10}, {By: []string{"yyyyn", "x"}, Max: 1}} {
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
	b[0] = 'y'
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
	e.read += len(b)
	return len(b), nil
}

// Fault 29. Each stream arrives byte by byte, too, so that every delimiter is split.
func TestDelimiterSplitAndMixed(t *testing.T) {
	kept := build(t, Delimited{Keep: true})
	boundary := build(t, Delimited{By: []string{"\r\n--b", "\x00"}})
	again := build(t, Delimited{By: []string{"aab"}})
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
		{boundary, "a\r\n--b\r\n\x00\x00", []string{"a", "\r\n", ""}, io.EOF},
		{boundary, "\r\n--\r\n--b", []string{"\r\n--"}, io.EOF},
		{boundary, "a\r\n--", nil, io.ErrUnexpectedEOF},
		{again, "aaab" + "aaaab" + "aaaab"[2:], []string{"a", "aa", ""}, io.EOF},
	} {
		for name, arrive := range arrivals {
			got, err := readAll(NewReader(arrive(strings.NewReader(c.stream)), c.format))
			if strings.Join(got, "|") != strings.Join(c.want, "|") || len(got) != len(c.want) || !errors.Is(err, c.end) {
				t.Errorf("%q %s: %q, %v, want %q, %v", c.stream, name, got, err, c.want, c.end)
			}
		}
	}
}

// The frame that ends first is it; of delimiters that end together, the longest.
func TestTheShortestFrameWins(t *testing.T) {
	for _, c := range []struct {
		by     []string
		stream string
		msg    string
		size   int
	}{
		{[]string{"b", "aab"}, "caab", "c", 4},
		{[]string{"aab", "b"}, "cab", "ca", 3},
		{[]string{"abcd", "bx"}, "abcabx", "abca", 6},
		{[]string{"aa"}, "aaa", "", 2},
		{[]string{"x", "y", "yx"}, "ayx", "a", 2},
	} {
		f, err := Delimited{By: c.by}.Format()
		if c.msg == "a" && c.size == 2 { // "yx" ends where "y" did
			if err == nil || !strings.Contains(err.Error(), `"yx" will never be found`) {
				t.Errorf("%q: %v", c.by, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Cut([]byte(c.stream), 0); err != nil || string(got.Msg) != c.msg || got.Size != c.size {
			t.Errorf("%q in %q: %+v, %v, want %q of %d bytes", c.by, c.stream, got, err, c.msg, c.size)
		}
	}
}

// The limit is that of the message: what ends it does not count unless it is kept.
func TestLongestLine(t *testing.T) {
	ten := Delimited{By: []string{"0123456789", "\n"}, Max: 3}
	tenKept := Delimited{By: ten.By, Max: 12, Keep: true}
	for _, c := range []struct {
		line   Delimited
		stream string
		want   error
	}{
		{Delimited{Max: 3}, "abc\n", nil},
		{Delimited{Max: 3}, "abc\r\n", nil},
		{Delimited{Max: 3}, "abc\r\r\n", ErrTooLarge},
		{Delimited{Max: 3}, "abcd\n", ErrTooLarge},
		{Delimited{Max: 3}, "abcd", ErrTooLarge},   // before its end
		{Delimited{Max: 3}, "abc\rd", ErrTooLarge}, // so the CR was of the message
		{Delimited{Max: 3}, "abc\r", io.ErrUnexpectedEOF},
		{Delimited{Max: 3}, "abc", io.ErrUnexpectedEOF},
		{Delimited{Max: 3, Keep: true}, "ab\n", nil},
		{Delimited{Max: 3, Keep: true}, "a\r\n", nil},
		{Delimited{Max: 3, Keep: true}, "abc", ErrTooLarge},
		{Delimited{Max: 3, Keep: true}, "ab\r", ErrTooLarge},
		{Delimited{Max: -1}, strings.Repeat("a", 1<<18) + "\n", nil},
		{Delimited{}, strings.Repeat("a", 64<<10) + "\r\n", nil},
		{Delimited{}, strings.Repeat("a", 64<<10+1), ErrTooLarge},
		{ten, "abc0123456789", nil},
		{ten, "abc012345678", io.ErrUnexpectedEOF},
		{ten, "abc0123456788", ErrTooLarge},
		{ten, "abc012\n", ErrTooLarge},
		{ten, "abc00", ErrTooLarge},
		{tenKept, "ab0123456789", nil},
		{tenKept, "abc0123", io.ErrUnexpectedEOF}, // and LF may be next
		{tenKept, "abc012345678", ErrTooLarge},
		{tenKept, "abc01234567\n", nil},
	} {
		for name, arrive := range arrivals {
			_, err := NewReader(arrive(strings.NewReader(c.stream)), build(t, c.line)).Next()
			if !errors.Is(err, c.want) {
				t.Errorf("%+v, %.9q %s: %v, want %v", c.line, c.stream, name, err, c.want)
			}
		}
	}
}

// P24: what would be read otherwise than it was sent is not sent: a delimiter in it, and
// one that its end makes with the beginning of the delimiter behind it.
func TestDelimiterWithinAMessageIsRefused(t *testing.T) {
	for _, c := range []struct {
		by  []string
		msg string
		ok  bool
	}{
		{[]string{"\n"}, "a\r", true},
		{[]string{"\n", "\r\n"}, "a\r", false},
		{[]string{"\r\n", "\n"}, "a\r", true},
		{[]string{"\r\n", "\n"}, "a\nb", false},
		{[]string{"\r\n"}, "a\nb\rc\n\r", true},
		{[]string{"aba"}, "ab", false}, // "ab|aba": found at once
		{[]string{"aba"}, "b", true},
		{[]string{"aba"}, "a", true},
		{[]string{"aab"}, "aaaa", true},
		{[]string{"abcd", "xab"}, "x", false}, // "x|abcd"
		{[]string{"abcd", "xab"}, "xa", true},
		{[]string{"d", "xd"}, "x", false},
		{[]string{"--"}, "a-", false},
		{[]string{"--"}, "a-b", true},
	} {
		f := build(t, Delimited{By: c.by})
		b, err := f.Append(nil, []byte(c.msg))
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrMalformed) {
			t.Errorf("%q by %q: %v", c.msg, c.by, err)
		}
		if err != nil {
			continue
		}
		if got, err := f.Cut(b, 0); err != nil || string(got.Msg) != c.msg || got.Size != len(b) {
			t.Errorf("%q by %q came as %+v, %v", c.msg, c.by, got, err)
		}
	}
}

func TestDelimitedRefusesWhatCannotWork(t *testing.T) {
	for want, d := range map[string]Delimited{
		"empty delimiter":                {By: []string{"\n", ""}},
		"129 bytes":                      {By: []string{strings.Repeat("a", 129)}},
		`"ab" will never be found: "a"`:  {By: []string{"ab", "a"}},
		`"abc" will never be found: "b"`: {By: []string{"b", "abc"}},
		"max of 1 bytes":                 {Keep: true, Max: 1}, // "\r\n" has two
	} {
		if f, err := d.Format(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %+v, %v, want an error with %q", d, f, err, want)
		}
	}
}

func TestDelimitedKeepsItsOwnCopy(t *testing.T) {
	by := []string{"\n"}
	f := build(t, Delimited{By: by})
	by[0] = "x"
	b, err := f.Append(nil, []byte("x"))
	if err != nil || string(b) != "x\n" {
		t.Errorf("appended %q, %v", b, err)
	}
	if got, err := f.Cut(b, 0); err != nil || string(got.Msg) != "x" {
		t.Errorf("cut %+v, %v", got, err)
	}
}
