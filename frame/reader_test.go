package frame

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// A reader that returns nothing now and then is patient, one that returns nothing for
// ever is not.
func TestReadsOfNothingAreBounded(t *testing.T) {
	var some pieces
	for _, piece := range []string{"\x00", "\x02", "o", "k"} {
		some = append(some, make([][]byte, emptyReads-1)...)
		some = append(some, []byte(piece))
	}
	r := NewReader(io.MultiReader(&some, nothing{}), Prefix(2))
	if msg, err := r.Next(); err != nil || string(msg) != "ok" {
		t.Errorf("got %q, %v", msg, err)
	}
	for range 2 {
		if _, err := r.Next(); err != io.ErrNoProgress {
			t.Errorf("after reads of nothing: %v, want io.ErrNoProgress", err)
		}
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

// A stream that says it has read more than there was room for would have us return bytes
// of another message.
func TestStreamThatLiesPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it did not")
		}
	}()
	NewReader(liar{}, Lines()).Next()
}

type liar struct{}

func (liar) Read(b []byte) (int, error) { return len(b) + 1, nil }

// Messages that came with an error are returned before it, and it stays: the stream is
// not read again, though it would have more.
func TestErrorsAreFinalAndLast(t *testing.T) {
	stream := &failing{data: "\x02ok\x02is\x05par", err: os.ErrDeadlineExceeded}
	r := NewReader(stream, Prefix(1))
	got, err := readAll(r)
	if strings.Join(got, " ") != "ok is" || err != os.ErrDeadlineExceeded {
		t.Errorf("got %q, %v", got, err)
	}
	for range 3 {
		if _, err := r.Next(); err != os.ErrDeadlineExceeded {
			t.Errorf("later: %v", err)
		}
	}
	if stream.reads != 1 {
		t.Errorf("read %d times", stream.reads)
	}
	if b := r.Buffered(); string(b) != "\x05par" || cap(b) != len(b) {
		t.Errorf("buffered %q with capacity %d", b, cap(b))
	}
}

// failing returns data and err at once.
type failing struct {
	data  string
	err   error
	reads int
}

func (f *failing) Read(b []byte) (int, error) {
	f.reads++
	return copy(b, f.data), f.err
}

// However far a reader came, what it has buffered and what is left of the stream is what
// another one needs to go on.
func TestBufferedHandsOver(t *testing.T) {
	for _, k := range knownFormats(t) {
		b := stream(t, k.format, k.messages)
		for n := range len(k.messages) + 1 {
			rest := iotest.HalfReader(bytes.NewReader(b))
			first := NewReader(rest, k.format)
			for i := range n {
				if msg, err := first.Next(); err != nil || string(msg) != k.messages[i] {
					t.Fatalf("%s: message %d is %q, %v", k.name, i, msg, err)
				}
			}
			unread := bytes.Clone(first.Buffered())
			wantMessages(t, NewReader(io.MultiReader(bytes.NewReader(unread), rest), k.format), k.messages[n:])
		}
	}
}

func TestMessageIsBorrowedUntilTheNext(t *testing.T) {
	r := NewReader(iotest.OneByteReader(strings.NewReader("first\nsecond\n")), Lines())
	msg, _ := r.Next()
	r.Next()
	if string(msg) == "first" {
		t.Error("the buffer was not used again: where did the memory come from?")
	}
}

// A header announces 1 GiB, which is allowed, and a part of it comes.
func TestMemoryGrowsAsBytesArrive(t *testing.T) {
	f := build(t, Length{Max: 1 << 30})
	for _, sent := range []int{4, 5, 5_000, 100_000, 3_000_000} {
		b := append([]byte{0x40, 0, 0, 0}, make([]byte, sent-4)...)
		r := NewReader(bytes.NewReader(b), f)
		if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d bytes of 1 GiB: %v", sent, err)
		}
		if limit := max(2*sent, smallBuffer); len(r.buf) > limit {
			t.Errorf("%d bytes of 1 GiB took %d bytes of memory, want at most %d", sent, len(r.buf), limit)
		}
	}
}

// The memory of a large message goes before the next one is waited for, and that of a
// burst after some quiet.
func TestMemoryShrinks(t *testing.T) {
	var b pieces
	send := func(size int) {
		frame, _ := Prefix(4).Append(nil, make([]byte, size))
		b = append(b, frame)
	}
	sizes := []int{1 << 20, 10, 60_000}
	for range 100 {
		sizes = append(sizes, 10)
	}
	for _, size := range sizes {
		send(size)
	}
	r := NewReader(&b, Prefix(4))
	for i, size := range sizes {
		msg, err := r.Next()
		if err != nil || len(msg) != size {
			t.Fatalf("message %d of %d bytes, %v, want %d", i, len(msg), err, size)
		}
		if size == 10 && len(r.buf) > largeBuffer {
			t.Fatalf("a message of 10 bytes in a buffer of %d", len(r.buf))
		}
	}
	if len(r.buf) != smallBuffer {
		t.Errorf("after 100 small messages the buffer has %d bytes", len(r.buf))
	}
}

// Many small messages at once are read in pieces of 64 KiB, not more, whether or not they
// fill the buffer to the last byte.
func TestBurstIsReadInLargePieces(t *testing.T) {
	for _, size := range []int{60, 61} {
		frame, _ := Prefix(4).Append(nil, make([]byte, size))
		count := 1 << 20 / len(frame)
		reads := &countedReads{Reader: bytes.NewReader(bytes.Repeat(frame, count))}
		r := NewReader(reads, Prefix(4))
		for range count {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
		if reads.n > 16+5 || len(r.buf) != largeBuffer { // 5 until the buffer has its size
			t.Errorf("messages of %d bytes: %d reads for 1 MiB, a buffer of %d", size, reads.n, len(r.buf))
		}
	}
}

type countedReads struct {
	io.Reader
	n int
}

func (c *countedReads) Read(b []byte) (int, error) {
	c.n++
	return c.Reader.Read(b)
}

// counted counts how often Cut looks at how many bytes it has not seen.
type counted struct {
	Format
	calls, bytes int
}

func (c *counted) Cut(b []byte, from int) (Frame, error) {
	c.calls++
	c.bytes += len(b) - max(from, ^from) // the complement where it skips
	return c.Format.Cut(b, from)
}

// A peer that sends byte by byte costs a read each, and nothing that grows with what it
// has sent before.
func TestTrickleIsNotQuadratic(t *testing.T) {
	const size = 64 << 10
	for _, c := range []struct {
		format Format
		calls  int // for one message
	}{
		{Prefix(4), 3}, // at the first byte, the header and the end
		{Varint(0), 4},
		{Netstring(0), 7},
		{Fixed(size), 2},
		{Lines(), size + 1},
		{build(t, Delimited{By: []string{"\n\n", "ab"}}), size + 2},
	} {
		counting := &counted{Format: c.format}
		b := stream(t, c.format, []string{strings.Repeat("a", size)})
		var r *Reader
		allocs := testing.AllocsPerRun(1, func() {
			*counting = counted{Format: c.format}
			r = NewReader(iotest.OneByteReader(bytes.NewReader(b)), counting)
			if msg, err := r.Next(); err != nil || len(msg) != size {
				t.Fatalf("message of %d bytes, %v", len(msg), err)
			}
		})
		if counting.calls > c.calls || counting.bytes > len(b)+30 { // a header again and again
			t.Errorf("%T: %d calls of Cut looked at %d bytes for a frame of %d", c.format, counting.calls, counting.bytes, len(b))
		}
		if allocs > 12 { // the buffer doubles five times, and with it all that is moved
			t.Errorf("%T: %v allocations", c.format, allocs)
		}
	}
}

func TestReadingAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("counts the race detector's allocations")
	}
	for _, f := range smallFormats(t) {
		frame := stream(t, f, []string{strings.Repeat("a", 64)})
		r := NewReader(&endlessly{data: bytes.Repeat(frame, 100)}, f)
		next := func() {
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
		}
		for range 10_000 {
			next() // until the buffer has its size
		}
		if n := testing.AllocsPerRun(1000, next); n != 0 {
			t.Errorf("%T: %v allocations per message", f, n)
		}
	}
}

// Nor for a frame of 64 KiB, and a stream that is silent after each.
func TestReadingLargeFramesAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("counts the race detector's allocations")
	}
	for _, f := range []Format{Prefix(4), Varint(0), Netstring(0), Fixed(60_000), Lines()} {
		b := stream(t, f, []string{strings.Repeat("a", 60_000)})
		r := NewReader(&oneByOne{frame: b}, f)
		next := func() {
			if msg, err := r.Next(); err != nil || len(msg) != 60_000 {
				t.Fatal(err)
			}
		}
		next()
		if n := testing.AllocsPerRun(200, next); n != 0 {
			t.Errorf("%T: %v allocations per message", f, n)
		}
	}
}

// oneByOne repeats frame, and no read has bytes of two.
type oneByOne struct {
	frame []byte
	at    int
}

func (o *oneByOne) Read(b []byte) (int, error) {
	n := copy(b, o.frame[o.at:])
	o.at = (o.at + n) % len(o.frame)
	return n, nil
}

func TestAllEndsWithTheStream(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		stream io.Reader
		skip   bool
		want   string
		end    error
	}{
		{strings.NewReader("one\ntwo\n"), false, "one two", nil},
		{strings.NewReader("one\ntw"), false, "one", io.ErrUnexpectedEOF},
		{strings.NewReader("one\nthree\ntwo\n"), false, "one", ErrTooLarge},
		{strings.NewReader("one\nthree\ntwo\n"), true, "one two", ErrTooLarge},
		{io.MultiReader(strings.NewReader("one\n"), iotest.ErrReader(broken)), true, "one", broken},
	} {
		r := NewReader(c.stream, build(t, Delimited{Max: 3}))
		r.SkipTooLarge = c.skip
		var got []string
		var end error
		for msg, err := range r.All() {
			if err != nil {
				if end != nil {
					t.Errorf("%v after %v", err, end)
				}
				end = err
				continue
			}
			got = append(got, string(msg))
		}
		if strings.Join(got, " ") != c.want || !errors.Is(end, c.end) {
			t.Errorf("%q, %v, want %q, %v", got, end, c.want, c.end)
		}
	}
}

// Whoever leaves the loop can go on later.
func TestAllCanBeLeft(t *testing.T) {
	r := NewReader(strings.NewReader("one\ntwo\n"), Lines())
	for range r.All() {
		break
	}
	if msg, err := r.Next(); err != nil || string(msg) != "two" {
		t.Errorf("got %q, %v", msg, err)
	}
}

// endlessly repeats data.
type endlessly struct {
	data []byte
	at   int
}

func (e *endlessly) Read(b []byte) (n int, _ error) {
	for n < len(b) {
		m := copy(b[n:], e.data[e.at:])
		n += m
		e.at = (e.at + m) % len(e.data)
	}
	return n, nil
}

// A Format of somebody else's may have messages without bytes of their own, and be vague
// about what it needs.
func TestForeignFormat(t *testing.T) {
	r := NewReader(iotest.OneByteReader(strings.NewReader("..!.!")), bangs{})
	got, err := readAll(r)
	if len(got) != 2 || err != io.EOF {
		t.Errorf("got %q, %v", got, err)
	}

	_, err = NewReader(strings.NewReader("..."), bangs{}).Next()
	if err == nil || !strings.Contains(err.Error(), "3 bytes into a message, at least 1 missing") {
		t.Errorf("cut short: %v", err)
	}
}

// bangs has messages of nothing, each ended by an exclamation mark.
type bangs struct{}

func (bangs) Max() int { return 0 }

func (bangs) Cut(b []byte, _ int) (Frame, error) {
	return Frame{Size: bytes.IndexByte(b, '!') + 1}, nil
}

func (bangs) Append(dst, _ []byte) ([]byte, error) { return append(dst, '!'), nil }
