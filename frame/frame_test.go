package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

// known is a format, and some messages it can carry.
type known struct {
	name     string
	format   Format
	messages []string
}

func knownFormats(t testing.TB) []known {
	text := []string{"", "a", "\r", "\x00", "two\nlines", "\xff\xff\xff\xff", "longer than that"}
	lines := []string{"", "a", "\ra", "\x00", "a line", "\xff\xff\xff\xff", "longer\rthan that"}
	return []known{
		{"prefix 1", Prefix(1), text},
		{"prefix 4", Prefix(4), text},
		{"prefix 8", Prefix(8), text},
		{"3 bytes little endian", build(t, Length{Width: 3, Order: binary.LittleEndian}), text},
		{"includes the header", build(t, Length{Width: 2, Includes: true}), text},
		{"stripped too far", build(t, Length{Width: 2, Offset: 1, Strip: 5, Adjust: -1}), text},
		{"postgres", build(t, Length{Offset: 1, Adjust: -4, Strip: -1}),
			[]string{"Q\x00\x00\x00\x0aselect", "S\x00\x00\x00\x04", "d\x00\x00\x00\x05\n"}},
		{"part of the header kept", build(t, Length{Width: 2, Offset: 3, Adjust: 1, Strip: 1}),
			[]string{"id\x00\x00.", "id\x00\x05.text\n"}},
		{"varint", Varint(0), append(text, strings.Repeat("a", 128))},
		{"netstring", Netstring(0), append(text, ",", "3:abc,")},
		{"fixed", Fixed(3), []string{"abc", "\x00\x00\x00", "\r\n."}},
		{"lines", Lines(), lines},
		{"lines with CR LF", build(t, crlf), append(lines, "\r", "a\r")},
		{"lines with their end", build(t, Delimited{Keep: true}), []string{"\n", "\r\n", "a\n", "a\r\n", "a\r\r\n"}},
		{"a long delimiter", build(t, Delimited{By: []string{"aab"}}), []string{"", "a", "aa", "b", "ab", "ba", "aaxab"}},
		{"several delimiters", build(t, Delimited{By: []string{"--", "\n", ";;;"}}), []string{"", ";;", ";", "a-b", "-a;"}},
		{"several delimiters kept", build(t, Delimited{By: []string{"--", "\n"}, Keep: true}),
			[]string{"--", "\n", "a\n", "-\n", "a-a--"}},
	}
}

// crlf is lines that are sent as mail and HTTP have them.
var crlf = Delimited{By: []string{"\r\n", "\n"}}

// build returns the format of a Length or Delimited that is right.
func build(t testing.TB, of interface{ Format() (Format, error) }) Format {
	t.Helper()
	f, err := of.Format()
	if err != nil {
		t.Fatalf("%+v: %v", of, err)
	}
	return f
}

// smallFormats are one format of each kind, for messages of 64 bytes.
func smallFormats(t testing.TB) []Format {
	several := build(t, Delimited{By: []string{"\r\n", "\x00", "--boundary--"}})
	return []Format{Prefix(4), Varint(0), Netstring(0), Fixed(64), Lines(), several}
}

// stream is all messages in one piece.
func stream(t testing.TB, f Format, messages []string) (b []byte) {
	t.Helper()
	for _, m := range messages {
		var err error
		if b, err = f.Append(b, []byte(m)); err != nil {
			t.Fatalf("append %q: %v", m, err)
		}
	}
	return b
}

// readAll returns copies of the messages that r has, and why there are no more.
func readAll(r *Reader) (messages []string, err error) {
	for {
		msg, err := r.Next()
		if err != nil {
			return messages, err
		}
		messages = append(messages, string(msg))
	}
}

// pieces is a stream that arrives in these pieces, empty ones too, and then ends.
type pieces [][]byte

func (p *pieces) Read(b []byte) (int, error) {
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	if (*p)[0] = (*p)[0][n:]; len((*p)[0]) == 0 {
		*p = (*p)[1:]
	}
	return n, nil
}

// arrivals are the ways in which a stream may come.
var arrivals = map[string]func(io.Reader) io.Reader{
	"as it is":                  func(r io.Reader) io.Reader { return r },
	"byte by byte":              iotest.OneByteReader,
	"the last bytes and an EOF": iotest.DataErrReader,
	"half of what was asked":    iotest.HalfReader,
	"a byte at a time, the last with EOF": func(r io.Reader) io.Reader {
		return iotest.DataErrReader(iotest.OneByteReader(r))
	},
}

func wantMessages(t *testing.T, r *Reader, want []string) {
	t.Helper()
	got, err := readAll(r)
	if err != io.EOF {
		t.Errorf("ended with %v, want io.EOF", err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// All splits in three pieces, the empty ones included.
func TestFramesSurviveEverySplit(t *testing.T) {
	for _, k := range knownFormats(t) {
		t.Run(k.name, func(t *testing.T) {
			b := stream(t, k.format, k.messages)
			for i := range len(b) + 1 {
				for j := i; j <= len(b) && !t.Failed(); j++ {
					wantMessages(t, NewReader(&pieces{b[:i], b[i:j], b[j:]}, k.format), k.messages)
				}
			}
		})
	}
}

// Fault 18: byte by byte, and other ways to arrive.
func TestByteAtATime(t *testing.T) {
	for _, k := range knownFormats(t) {
		b := stream(t, k.format, k.messages)
		for name, arrive := range arrivals {
			t.Run(k.name+", "+name, func(t *testing.T) {
				wantMessages(t, NewReader(arrive(bytes.NewReader(b)), k.format), k.messages)
			})
		}
	}
}

// Fault 19: 1 MiB of frames of 5 bytes, many times the largest buffer, and no multiple of one.
func TestCoalescedFrames(t *testing.T) {
	for _, f := range []Format{Prefix(1), Varint(0), Netstring(0), Fixed(4), Lines()} {
		var b []byte
		count := 0
		for ; len(b) < 1<<20; count++ {
			b, _ = f.Append(b, binary.BigEndian.AppendUint32(nil, spread(count)))
		}
		r := NewReader(bytes.NewReader(b), f)
		for i := range count {
			msg, err := r.Next()
			if err != nil || len(msg) != 4 || binary.BigEndian.Uint32(msg) != spread(i) {
				t.Fatalf("message %d is %x, %v, want %x", i, msg, err, spread(i))
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("after the last message: %v", err)
		}
	}
}

// spread gives four bytes none of which ends a line.
func spread(i int) uint32 {
	return 0x80808080 | uint32(i&0x7f) | uint32(i>>7&0x7f)<<8 | uint32(i>>14&0x7f)<<16
}

// A stream that is cut anywhere but between two messages says so, and returns all
// messages before it.
func TestEndOfStreamAtEveryByte(t *testing.T) {
	for _, k := range knownFormats(t) {
		t.Run(k.name, func(t *testing.T) {
			b := stream(t, k.format, k.messages)
			ends := map[int]int{0: 0} // where messages end: how many
			for i := range k.messages {
				ends[len(stream(t, k.format, k.messages[:i+1]))] = i + 1
			}
			whole := 0
			for cut := range len(b) + 1 {
				n, between := ends[cut]
				if between {
					whole = n
				}
				for name, arrive := range arrivals {
					r := NewReader(arrive(bytes.NewReader(b[:cut])), k.format)
					got, err := readAll(r)
					if !slices.Equal(got, k.messages[:whole]) {
						t.Fatalf("cut at %d, %s: got %q", cut, name, got)
					}
					if between && err != io.EOF || !between && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatalf("cut at %d, %s, between messages %v: %v", cut, name, between, err)
					}
				}
			}
		})
	}
}

func TestAppendFailsWithNothingAppended(t *testing.T) {
	narrow := Prefix(1)
	for _, c := range []struct {
		format Format
		msg    []byte
		want   error
	}{
		{narrow, make([]byte, 256), ErrTooLarge},
		{Lines(), []byte("a\nb"), ErrMalformed},
		{Lines(), []byte("a\r"), ErrMalformed},
		{Lines(), make([]byte, 64<<10+1), ErrTooLarge},
		{build(t, crlf), []byte("a\r\nb"), ErrMalformed},
		{build(t, Delimited{Keep: true}), []byte("a"), ErrMalformed},
		{build(t, Delimited{Keep: true}), nil, ErrMalformed},
		{build(t, Delimited{Keep: true}), []byte("a\nb\n"), ErrMalformed},
		{build(t, Delimited{Keep: true, Max: 2}), []byte("ab\n"), ErrTooLarge},
		{Varint(3), []byte("four"), ErrTooLarge},
		{Netstring(3), []byte("four"), ErrTooLarge},
		{Fixed(3), []byte("four"), ErrTooLarge},
		{Fixed(3), []byte("2."), ErrMalformed},
		{build(t, Length{Strip: -1}), []byte("abc"), ErrMalformed}, // no room for its length
		{build(t, Length{Adjust: 3}), []byte("ab"), ErrMalformed},  // its length would be -1
	} {
		room := append(make([]byte, 0, 100), "before"...)
		got, err := c.format.Append(room, c.msg)
		if !errors.Is(err, c.want) || string(got) != "before" {
			t.Errorf("%+v: append of %.10q: %q, %v, want %v", c.format, c.msg, got, err, c.want)
		}
	}
}

// The message can be appended to without writing over what comes after it.
func TestMessageEndsWithItsCapacity(t *testing.T) {
	for _, k := range knownFormats(t) {
		b := stream(t, k.format, k.messages)
		f, err := k.format.Cut(b, 0)
		if err != nil || f.Msg == nil || cap(f.Msg) != len(f.Msg) {
			t.Errorf("%s: %+v, %v: want a message that ends with its capacity", k.name, f, err)
		}
	}
}

// One format serves all connections of a server: for the race detector.
func TestFormatIsShared(t *testing.T) {
	for _, k := range knownFormats(t) {
		b := stream(t, k.format, k.messages)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				wantMessages(t, NewReader(iotest.HalfReader(bytes.NewReader(b)), k.format), k.messages)
				first, err := k.format.Append(nil, []byte(k.messages[0]))
				if err != nil || !bytes.HasPrefix(b, first) {
					t.Errorf("%s: appended %q, %v", k.name, first, err)
				}
			})
		}
		wg.Wait()
	}
}
