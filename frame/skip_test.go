package frame

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// readOn returns copies of what r has, "too large" for what it skips, and why there is
// no more.
func readOn(r *Reader) (events []string, err error) {
	for {
		msg, err := r.Next()
		switch {
		case errors.Is(err, ErrTooLarge):
			events = append(events, "too large")
		case err != nil:
			return events, err
		default:
			events = append(events, string(msg))
		}
	}
}

// skipping are formats whose messages have three bytes at most, and a format that sends
// them whatever they have.
func skipping(t testing.TB) []known {
	text := []string{"abc", "", "abcd", "a", "0123456789", "01234567890", "abc"}
	lines := []string{"abc", "", "abcd", "a\r", strings.Repeat("\r", 9), "a\rb\rc\rd\r", "ab"}
	kept := []string{"ab\n", "--", "abcd--", "a--", "0123456789\n", "-a-a-a-\n", "\n"}
	return []known{
		{"prefix", build(t, Length{Max: 3}), text},
		{"little endian", build(t, Length{Width: 3, Order: binary.LittleEndian, Max: 3}), text},
		{"adjusted", build(t, Length{Width: 1, Adjust: -2, Offset: 2, Strip: 3, Max: 3}), text},
		{"varint", Varint(3), text},
		{"netstring", Netstring(3), text},
		{"delimiter", build(t, Delimited{By: crlf.By, Max: 3}), lines},
		{"long delimiter", build(t, Delimited{By: []string{"-----x"}, Max: 3}), append(lines, "----", "-----", "---- -x")},
		{"several delimiters", build(t, Delimited{By: []string{"--+", "\n", "\x00"}, Max: 3}), append(lines, "a--", "--a--")},
		{"delimiters kept", build(t, Delimited{By: []string{"--", "\n"}, Max: 3, Keep: true}), kept},
	}
}

// unlimited is the same format, and sends anything.
func unlimited(f Format) Format {
	switch f := f.(type) {
	case *length:
		wide := *f
		wide.max, wide.high = 200, 200
		return &wide
	case *varint:
		return Varint(200)
	case *netstring:
		return Netstring(200)
	case *delimited:
		wide := *f
		wide.max = 200
		return &wide
	}
	panic("no such format")
}

// Messages that are too large, among others, in all splits in three pieces: each is said
// once, and all others come as they were sent.
func TestSkipAndGoOn(t *testing.T) {
	for _, k := range skipping(t) {
		t.Run(k.name, func(t *testing.T) {
			b := stream(t, unlimited(k.format), k.messages)
			var want []string
			for _, m := range k.messages {
				if len(m) > k.format.Max() {
					m = "too large"
				}
				want = append(want, m)
			}
			for i := range len(b) + 1 {
				for j := i; j <= len(b) && !t.Failed(); j++ {
					r := NewReader(&pieces{b[:i], b[i:j], b[j:]}, k.format)
					r.SkipTooLarge = true
					got, err := readOn(r)
					if err != io.EOF || !slices.Equal(got, want) {
						t.Errorf("split at %d and %d: %q, %v, want %q", i, j, got, err, want)
					}
				}
			}
			for name, arrive := range arrivals {
				r := NewReader(arrive(bytes.NewReader(b)), k.format)
				r.SkipTooLarge = true
				if got, err := readOn(r); err != io.EOF || !slices.Equal(got, want) {
					t.Errorf("%s: %q, %v, want %q", name, got, err, want)
				}
			}
		})
	}
}

// Without SkipTooLarge the first of them is the end.
func TestTooLargeIsFinalByDefault(t *testing.T) {
	for _, k := range skipping(t) {
		r := NewReader(bytes.NewReader(stream(t, unlimited(k.format), k.messages)), k.format)
		got, err := readAll(r)
		if !errors.Is(err, ErrTooLarge) || len(got) != 2 {
			t.Errorf("%s: %q, %v", k.name, got, err)
		}
		if _, again := r.Next(); again != err {
			t.Errorf("%s: then %v", k.name, again)
		}
	}
}

// The end of the stream within what is skipped is no clean end, wherever it is.
func TestEndOfStreamWithinWhatIsSkipped(t *testing.T) {
	for _, k := range skipping(t) {
		b := stream(t, unlimited(k.format), k.messages[4:5])
		for n := range b[1:] {
			for name, arrive := range arrivals {
				r := NewReader(arrive(bytes.NewReader(b[:n+1])), k.format)
				r.SkipTooLarge = true
				got, err := readOn(r)
				if !errors.Is(err, io.ErrUnexpectedEOF) || len(got) > 1 {
					t.Fatalf("%s, %s: %d of %d bytes: %q, %v", k.name, name, n+1, len(b), got, err)
				}
			}
		}
	}
}

const few = 100

// What is too large takes no memory and is looked at once, whether 8 MiB of it come in large
// pieces or 100 KB byte by byte.
func TestSkippingTakesNoMemory(t *testing.T) {
	for name, c := range map[string]struct {
		size   int
		arrive func(io.Reader) io.Reader
	}{
		"as it is":     {8 << 20, arrivals["as it is"]},
		"byte by byte": {100_000, arrivals["byte by byte"]},
	} {
		header := binary.BigEndian.AppendUint32(nil, uint32(c.size))
		varint := binary.AppendUvarint(nil, uint64(c.size))
		end := "yyyyyyyyyyyyyy\n" // most of it is always there
		t.Run(name, func(t *testing.T) {
			skipAmong(t, build(t, Length{Max: 50_000}), string(header), "", c.size, few, c.arrive)
			skipAmong(t, Varint(50_000), string(varint), "", c.size, few, c.arrive)
			skipAmong(t, Netstring(50_000), fmt.Sprint(c.size, ":"), ",", c.size, few, c.arrive)
			skipAmong(t, Lines(), "", "\n", c.size, c.size+2*largeBuffer, c.arrive)
			skipAmong(t, build(t, Delimited{By: []string{end, "z"}}), "", end, c.size, c.size+2*largeBuffer, c.arrive)
		})
	}
}

// skipAmong skips a message of size bytes between before and after, and counts the bytes
// that are looked at.
func skipAmong(t *testing.T, f Format, before, after string, size, most int, arrive func(io.Reader) io.Reader) {
	t.Helper()
	counting := &counted{Format: f}
	good := string(stream(t, f, []string{"good"}))
	r := NewReader(arrive(io.MultiReader(
		strings.NewReader(before), io.LimitReader(&endless{}, int64(size)), strings.NewReader(after+good))), counting)
	r.SkipTooLarge = true
	if _, err := r.Next(); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("%T: got %v, want ErrTooLarge", f, err)
	}
	if msg, err := r.Next(); err != nil || string(msg) != "good" {
		t.Fatalf("%T: behind it %q, %v", f, msg, err)
	}
	if len(r.buf) > 2*largeBuffer {
		t.Errorf("%T: a buffer of %d bytes", f, len(r.buf))
	}
	if counting.bytes > most || counting.calls > size+few {
		t.Errorf("%T: %d calls of Cut looked at %d bytes", f, counting.calls, counting.bytes)
	}
}

// A length that no int can express has no end that could be found: skipping is refused,
// with an error that does not make anybody go on.
func TestAbsurdLengthCannotBeSkipped(t *testing.T) {
	ones := strings.Repeat("\xff", 8)
	for name, c := range map[string]struct {
		format Format
		stream string
	}{
		"prefix":                 {Prefix(8), ones},
		"little endian":          {build(t, Length{Width: 8, Order: binary.LittleEndian}), ones},
		"with its header":        {Prefix(8), "\x7f\xff\xff\xff\xff\xff\xff\xf8"},
		"adjusted":               {build(t, Length{Width: 8, Adjust: 1, Includes: true}), "\x7f" + ones[1:]},
		"varint":                 {Varint(0), ones + "\xff\x01"},
		"netstring":              {Netstring(0), "9223372036854775807:"},
		"netstring of 20":        {Netstring(0), strings.Repeat("1", 20)},
		"a format that does not": {tooLarge{}, "."},
	} {
		r := NewReader(strings.NewReader(c.stream), c.format)
		r.SkipTooLarge = true
		for range 2 {
			if _, err := r.Next(); !errors.Is(err, ErrMalformed) || errors.Is(err, ErrTooLarge) {
				t.Errorf("%s: %v, want ErrMalformed", name, err)
			}
		}
	}
}

// tooLarge is somebody else's format, who does not know of Skip.
type tooLarge struct{ bangs }

func (tooLarge) Cut([]byte, int) (Frame, error) { return Frame{}, ErrTooLarge }

// The largest frame of all is skipped, which ends with the stream.
func TestHugeLengthIsSkippedToTheEnd(t *testing.T) {
	header := binary.BigEndian.AppendUint64(nil, math.MaxInt-8)
	r := NewReader(strings.NewReader(string(header)+"and some"), Prefix(8))
	r.SkipTooLarge = true
	if got, err := readOn(r); len(got) != 1 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %q, %v", got, err)
	}
}

// Until a message is passed over the stream can be handed over: whoever takes it finds
// the same message too large.
func TestTooLargeIsHandedOver(t *testing.T) {
	for _, k := range skipping(t) {
		rest := iotest.OneByteReader(bytes.NewReader(stream(t, unlimited(k.format), k.messages)))
		first := NewReader(rest, k.format)
		first.SkipTooLarge = true
		for {
			if _, err := first.Next(); errors.Is(err, ErrTooLarge) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		second := NewReader(io.MultiReader(bytes.NewReader(first.Buffered()), rest), k.format)
		second.SkipTooLarge = true
		got, err := readOn(second)
		if err != io.EOF || len(got) != len(k.messages)-2 || got[0] != "too large" {
			t.Errorf("%s: %q, %v", k.name, got, err)
		}
	}
}

// An error of the stream that comes while skipping is what it is.
func TestStreamErrorWhileSkipping(t *testing.T) {
	broken := errors.New("broken")
	r := NewReader(io.MultiReader(strings.NewReader("abcd"), iotest.ErrReader(broken)), build(t, Delimited{Max: 3}))
	r.SkipTooLarge = true
	if got, err := readOn(r); len(got) != 1 || err != broken {
		t.Errorf("got %q, %v", got, err)
	}
}
