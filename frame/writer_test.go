package frame

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// writes records every write, and fails once there were as many as it may take.
type writes struct {
	sizes  []int
	stream bytes.Buffer
	may    int // 0 for any number
	err    error
}

func (w *writes) Write(b []byte) (int, error) {
	if w.may > 0 && len(w.sizes) == w.may {
		n := len(b)/2 + 1 // within a frame
		w.stream.Write(b[:n])
		return n, w.err
	}
	w.sizes = append(w.sizes, len(b))
	return w.stream.Write(b)
}

func TestManyMessagesOneWrite(t *testing.T) {
	for _, k := range knownFormats(t) {
		var out writes
		w := NewWriter(&out, k.format)
		for _, msg := range k.messages {
			if err := w.Send([]byte(msg)); err != nil {
				t.Fatal(err)
			}
		}
		if len(out.sizes) != 0 {
			t.Errorf("%s: wrote before Flush", k.name)
		}
		if err := w.Flush(); err != nil || len(out.sizes) != 1 {
			t.Errorf("%s: Flush wrote %d times, %v", k.name, len(out.sizes), err)
		}
		if w.Flush(); len(out.sizes) != 1 {
			t.Errorf("%s: a Flush of nothing wrote", k.name)
		}
		wantMessages(t, NewReader(&out.stream, k.format), k.messages)
	}
}

// What is buffered is bounded, however much is sent before Flush.
func TestSendWritesWhenMuchIsBuffered(t *testing.T) {
	for _, size := range []int{100, 10_000, 60_000, 1 << 20} {
		var out writes
		w := NewWriter(&out, Prefix(4))
		for range 3<<20/size + 1 {
			if err := w.Send(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if cap(w.buf) > 2*largeBuffer {
				t.Fatalf("messages of %d bytes: a buffer of %d", size, cap(w.buf))
			}
		}
		for i, n := range out.sizes {
			if n < largeBuffer {
				t.Errorf("messages of %d bytes: write %d has %d", size, i, n)
			}
		}
	}
}

// One write fails in the middle of many messages: the error stays, nothing is written
// behind half a frame, and what the peer got is whole messages and an end within one.
func TestWriterErrorMidBatch(t *testing.T) {
	broken := errors.New("broken")
	for name, err := range map[string]error{"broken": broken, "short": nil} {
		t.Run(name, func(t *testing.T) {
			want := err
			if err == nil {
				want = io.ErrShortWrite
			}
			out := &writes{may: 2, err: err}
			w := NewWriter(out, Prefix(2))
			var failed error
			for sent := 0; failed == nil; sent++ {
				if failed = w.Send(make([]byte, 1000)); sent > 1000 {
					t.Fatal("no write failed")
				}
			}
			after := out.stream.Len()
			for _, again := range []error{failed, w.Send(nil), w.Send(make([]byte, 20_000)), w.Flush()} {
				if again != want {
					t.Errorf("got %v, want %v", again, want)
				}
			}
			if out.stream.Len() != after {
				t.Error("wrote after the error")
			}
			if _, err := readAll(NewReader(&out.stream, Prefix(2))); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the peer sees %v", err)
			}
		})
	}
}

// The same in the middle of a message that is larger than any write.
func TestWriterErrorMidMessage(t *testing.T) {
	broken := errors.New("broken")
	out := &writes{may: 2, err: broken}
	w := NewWriter(out, Netstring(0))
	for range 2 {
		if err := w.Send(make([]byte, 5*largeBuffer)); err != broken {
			t.Errorf("got %v, want %v", err, broken)
		}
	}
	if len(out.sizes) != 2 {
		t.Errorf("wrote %d times", len(out.sizes))
	}
}

// What cannot be sent, small or large, is not there afterwards, and what was sent before
// and behind it is.
func TestRefusedMessageLeavesNoTrace(t *testing.T) {
	for _, f := range []Format{Fixed(5), Varint(5), Netstring(5), build(t, Delimited{Max: 5}), build(t, Length{Max: 5})} {
		var out bytes.Buffer
		w := NewWriter(&out, f)
		for _, msg := range []string{"first", "larger", "aftr!", string(make([]byte, copyBelow)), "other"} {
			if err := w.Send([]byte(msg)); errors.Is(err, ErrTooLarge) != (len(msg) > 5) {
				t.Errorf("%T: %d bytes: %v", f, len(msg), err)
			}
		}
		w.Flush()
		wantMessages(t, NewReader(&out, f), []string{"first", "aftr!", "other"})
	}
}

func TestMessageIsTheCallersAgain(t *testing.T) {
	for _, size := range []int{10, copyBelow, 3 * largeBuffer} {
		var out bytes.Buffer
		w := NewWriter(&out, Prefix(4))
		msg := bytes.Repeat([]byte("a"), size)
		if err := w.Send(msg); err != nil {
			t.Fatal(err)
		}
		clear(msg)
		w.Flush()
		if bytes.IndexByte(out.Bytes()[4:], 0) >= 0 {
			t.Errorf("%d bytes changed after Send", size)
		}
	}
}

// largeFormats are formats whose frames have something before the message, within it and
// behind it.
func largeFormats(t *testing.T) []Format {
	return []Format{
		Prefix(4),
		build(t, Length{Width: 3, Offset: 1, Strip: -1}),
		build(t, Length{Offset: 60 << 10}),
		build(t, Delimited{Max: 1 << 20, By: crlf.By}),
		Varint(0),
		Netstring(0),
		struct{ Format }{Prefix(4)}, // somebody else's: there are no parts to it
	}
}

// Small and large in turns; message i consists of the letter 'a'+i, so that its end shows
// it.
var mixedSizes = []int{5, copyBelow - 1, copyBelow, 6, 7, 1 << 19, 8, 3 * largeBuffer, copyBelow + 1}

func sendMixed(w *Writer) error {
	for i, size := range mixedSizes {
		msg := bytes.Repeat([]byte{byte('a' + i)}, size)
		if err := w.Send(msg); err != nil {
			return err
		}
		clear(msg)
	}
	return w.Flush()
}

func wantMixed(t *testing.T, r *Reader) {
	t.Helper()
	for i, size := range mixedSizes {
		msg, err := r.Next()
		if err != nil || len(msg) != size || msg[size-1] != byte('a'+i) {
			t.Fatalf("message %d has %d bytes, %v, want %d of %c", i, len(msg), err, size, 'a'+i)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after all messages: %v", err)
	}
}

func TestLargeMessagesOverAnyWriter(t *testing.T) {
	for _, f := range largeFormats(t) {
		var out bytes.Buffer
		w := NewWriter(&out, f)
		if err := sendMixed(w); err != nil {
			t.Fatal(err)
		}
		if cap(w.buf) > 2*largeBuffer {
			t.Errorf("%+v: a buffer of %d bytes remains", f, cap(w.buf))
		}
		wantMixed(t, NewReader(&out, f))
	}
}

// Over real sockets large messages go with writev.
func TestLargeMessagesOverSockets(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, f := range largeFormats(t) {
			client, server := socketPair(t, network)
			sent := make(chan error, 1)
			go func() {
				defer client.Close()
				sent <- sendMixed(NewWriter(client, f))
			}()
			wantMixed(t, NewReader(server, f))
			if err := <-sent; err != nil {
				t.Error(err)
			}
		}
	}
}

func socketPair(t *testing.T, network string) (client, server net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// A closed socket fails the writev, and the error stays.
func TestWritevErrorIsFinal(t *testing.T) {
	client, _ := socketPair(t, "tcp")
	client.Close()
	w := NewWriter(client, Prefix(4))
	for range 2 {
		if err := w.Send(make([]byte, copyBelow)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want net.ErrClosed", err)
		}
	}
	if w.parts[1] != nil {
		t.Error("the caller's message is still held")
	}
}

func TestSendAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("counts the race detector's allocations")
	}
	for _, f := range smallFormats(t) {
		w := NewWriter(io.Discard, f)
		msg := bytes.Repeat([]byte("a"), 64)
		send := func() {
			for range 16 {
				w.Send(msg)
			}
			w.Flush()
		}
		send()
		if n := testing.AllocsPerRun(100, send); n != 0 {
			t.Errorf("%T: %v allocations", f, n)
		}
	}
}

// After a burst the buffer is given up once it was too large for a while.
func TestWriterMemoryShrinks(t *testing.T) {
	w := NewWriter(io.Discard, Prefix(4))
	for range 60 {
		w.Send(make([]byte, 1000))
	}
	w.Flush()
	if cap(w.buf) < 60_000 {
		t.Fatal("the buffer was not kept for the next burst")
	}
	for range 20 {
		w.Send([]byte("small"))
		w.Flush()
	}
	if cap(w.buf) > smallBuffer {
		t.Errorf("after 20 small messages the buffer has %d bytes", cap(w.buf))
	}
}
