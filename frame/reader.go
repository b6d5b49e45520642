package frame

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

const (
	smallBuffer = 4 << 10  // what a Reader begins with and returns to
	largeBuffer = 64 << 10 // the most that is used to move many small messages at once
	emptyReads  = 100      // in a row, as in bufio
)

// A Reader returns the messages of a stream one by one. Create it with [NewReader]; one
// goroutine uses it. It never closes the stream.
//
// Whatever length the peer announces, the buffer has at most twice the bytes that have
// arrived of a message, or 64 KiB if that is more. What a large message took is kept while
// others follow closely; while it waits between messages the buffer has 64 KiB at most, and
// 4 KiB on a quiet stream. A Reader that has nothing [Reader.Buffered] can be dropped and
// another one created later: so a connection waits with no buffer at all.
type Reader struct {
	// SkipTooLarge makes ErrTooLarge the end of a message and not of the stream: it
	// is returned once, and the next call passes over the message as it arrives,
	// without keeping any of it, to the one behind it. What cannot be passed over,
	// a length beyond any int or a Format that does not know how, is ErrMalformed
	// then: so after ErrTooLarge the stream can be read on, and after all else it
	// cannot. Set it before the first call.
	SkipTooLarge bool

	r      io.Reader
	format Format

	buf        []byte // nil before the first read
	start, end int    // of what was read and not returned
	need, from int    // what the frame at start waits for; 0 when it was not looked at
	skip       int    // bytes to drop before it
	err        error  // of the stream; due when everything before it was returned

	idle idle
}

// NewReader returns a reader of the messages of r, which are in the format f. To go on
// where another reader stopped, put what it had [Reader.Buffered] before the stream:
//
//	NewReader(io.MultiReader(bytes.NewReader(unread), conn), f)
func NewReader(r io.Reader, f Format) *Reader {
	return &Reader{r: r, format: f}
}

// Next returns the next message, borrowed until the next call. At the end of the stream
// the error is io.EOF between messages, and matches [io.ErrUnexpectedEOF] within one.
// What is not a message is [ErrTooLarge] or [ErrMalformed]. Every error is final, a
// timeout included, but for ErrTooLarge with SkipTooLarge; all messages that arrived
// before it are returned first.
func (r *Reader) Next() ([]byte, error) {
	for {
		if r.skip > 0 {
			r.drop()
		}
		if held := r.end - r.start; held >= max(r.need, 1) {
			f, err := r.format.Cut(r.buf[r.start:r.end], r.from)
			switch {
			case err != nil:
				return nil, r.refuse(f, err)
			case f.Size > 0:
				r.start += f.Size
				r.need, r.from = 0, 0
				return f.Msg, nil
			case f.Skip > 0:
				r.skip, r.need, r.from = f.Skip, f.Need, f.From
				continue
			}
			r.need, r.from = max(f.Need, held+1), f.From
		}
		if r.err != nil {
			return nil, r.ended()
		}
		r.makeRoom()
		r.read()
	}
}

// All returns the messages that are left, each as [Reader.Next] returns it. io.EOF ends
// them without a word; any other error comes with the last turn of the loop, or with
// SkipTooLarge in the place of a message that is too large.
func (r *Reader) All() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			msg, err := r.Next()
			if err == io.EOF || !yield(msg, err) {
				return
			}
			if err != nil && !(r.SkipTooLarge && errors.Is(err, ErrTooLarge)) {
				return
			}
		}
	}
}

// Buffered returns what was read from the stream and not returned as a message, borrowed
// until the next call of Next: what must travel when the stream is handed over. An error
// does not take it away. Only while a message that is too large is passed over it is not
// all that there is to know.
func (r *Reader) Buffered() []byte { return r.buf[r.start:r.end:r.end] }

// refuse is about a frame that is none: with it the stream ends, or goes on behind it.
func (r *Reader) refuse(f Frame, err error) error {
	if r.SkipTooLarge && errors.Is(err, ErrTooLarge) {
		if f.Skip > 0 {
			r.skip, r.need, r.from = f.Skip, f.Need, f.From
			return err
		}
		err = fmt.Errorf("%w: cannot be skipped: %v", ErrMalformed, err)
	}
	r.err, r.need = err, math.MaxInt // not to be looked at again
	return err
}

func (r *Reader) drop() {
	n := min(r.skip, r.end-r.start)
	r.start += n
	r.skip -= n
}

func (r *Reader) ended() error {
	held := r.end - r.start
	switch {
	case r.err != io.EOF:
	case r.skip > 0 || r.from < 0:
		r.err = fmt.Errorf("frame: end of stream within a message that was too large: %w", io.ErrUnexpectedEOF)
	case held > 0:
		r.err = fmt.Errorf("frame: end of stream %d bytes into a message, at least %d missing: %w",
			held, r.need-held, io.ErrUnexpectedEOF)
	}
	return r.err
}

// makeRoom makes room for at least one byte. Whatever is moved is moved once to the
// front and then only when the buffer doubles, so that all moves together are linear in
// the bytes read.
func (r *Reader) makeRoom() {
	held, size := r.end-r.start, len(r.buf)
	switch {
	case held == 0:
		size = r.restSize()
	case r.end < size:
		return
	case held == size || size < largeBuffer: // one large message, or many at once
		size *= 2
	}
	unread := r.Buffered()
	if size != len(r.buf) {
		r.buf = make([]byte, size)
	}
	r.start, r.end = 0, copy(r.buf, unread)
}

// restSize is the size of the buffer for what comes next, when nothing is held. That of a
// large message goes at once: the stream may be silent from now on, as may thousands of
// others, and keeping it until they speak is more than allocating it again.
func (r *Reader) restSize() int {
	size, used := len(r.buf), r.end
	switch {
	case size == 0 || size > largeBuffer:
		return smallBuffer
	case used == size && size < largeBuffer:
		return 2 * size
	case size > smallBuffer && r.idle.shrink(used, size):
		return size / 2
	}
	return size
}

func (r *Reader) read() {
	for range emptyReads {
		n, err := r.r.Read(r.buf[r.end:])
		if n < 0 || n > len(r.buf)-r.end {
			panic("frame: the stream read more than there was room for") // or we would return old bytes
		}
		r.end += n
		r.err = err
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}

// idle counts how often in a row a buffer was used for a quarter or less.
type idle int

// shrink reports that the buffer is too large for what it is used for: one quiet moment
// in a busy stream is no reason to allocate it anew.
func (i *idle) shrink(used, size int) bool {
	*i++
	if used > size/4 {
		*i = 0
	}
	if *i < 16 {
		return false
	}
	*i = 0
	return true
}
