package frame

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
)

// Messages that are owned stay as they were, whatever is read and released meanwhile, and
// on any goroutine: for the race detector, too.
func TestOwnedMessagesStay(t *testing.T) {
	sizes := []int{0, 1, 255, 256, 257, 4096, 64 << 10, 64<<10 + 1, 1 << 20, 1<<20 + 1, 3}
	var b []byte
	for i := range 3 * len(sizes) {
		b, _ = build(t, Length{Max: -1}).Append(b, bytes.Repeat([]byte{byte(i)}, sizes[i%len(sizes)]))
	}
	r := NewReader(bytes.NewReader(b), build(t, Length{Max: -1}))
	var wg sync.WaitGroup
	for i := 0; ; i++ {
		msg, release, err := r.NextOwned()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(msg) != sizes[i%len(sizes)] || msg == nil || cap(msg) != len(msg) && len(msg) <= largestOwned {
			t.Errorf("message %d has %d bytes, capacity %d", i, len(msg), cap(msg))
		}
		wg.Go(func() {
			defer release()
			if n := bytes.Count(msg, []byte{byte(i)}); n != len(msg) {
				t.Errorf("message %d has %d bytes of another", i, len(msg)-n)
			}
			clear(msg)
		})
	}
	wg.Wait()
}

func TestReleaseTwicePanics(t *testing.T) {
	_, release, err := NewReader(strings.NewReader("a\n"), Lines()).NextOwned()
	if err != nil {
		t.Fatal(err)
	}
	release()
	defer func() {
		if recover() == nil {
			t.Error("it did not")
		}
	}()
	release()
}

func TestOwnedErrors(t *testing.T) {
	r := NewReader(strings.NewReader("abcd\nab"), build(t, Delimited{Max: 3}))
	r.SkipTooLarge = true
	for _, want := range []error{ErrTooLarge, io.ErrUnexpectedEOF, io.ErrUnexpectedEOF} {
		if msg, release, err := r.NextOwned(); msg != nil || release != nil || !errors.Is(err, want) {
			t.Errorf("%q, %v, want %v", msg, err, want)
		}
	}
}

// The memory of a message is at most twice its size, and what is pooled has 1 MiB: one
// large message pins nothing.
func TestOwnedMemoryFits(t *testing.T) {
	for _, size := range []int{0, 1, 255, 256, 257, 511, 512, 513, 1000, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20} {
		if got := smallestOwned << classOf(size); got < size || got > max(2*size, smallestOwned) {
			t.Errorf("%d bytes take %d", size, got)
		}
	}
	if last := classOf(1 << 20); last != len(ownedPools)-1 {
		t.Errorf("1 MiB is of class %d of %d", last, len(ownedPools))
	}
	if class := classOf(1<<20 + 1); class >= 0 {
		t.Errorf("one byte more is of class %d", class)
	}
}

func TestOwningAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector a sync.Pool forgets on purpose")
	}
	for _, size := range []int{0, 64, 5000, largeBuffer - 4} {
		frame, _ := Prefix(4).Append(nil, make([]byte, size))
		r := NewReader(&endlessly{data: frame}, Prefix(4))
		next := func() {
			_, release, err := r.NextOwned()
			if err != nil {
				t.Fatal(err)
			}
			release()
		}
		for range 1000 {
			next() // until the buffer has its size
		}
		if n := testing.AllocsPerRun(1000, next); n != 0 {
			t.Errorf("%d bytes: %v allocations per message", size, n)
		}
	}
}
