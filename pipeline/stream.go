package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/holdfast-net/holdfast"
)

// stream is the incoming side of one connection. Whoever may read it owns it.
type stream[R any] struct {
	cfg  *Config[R]
	conn *holdfast.Conn
	dec  Decoder[R]
	buf  []byte
	r, w int // what has arrived and is not decoded is buf[r:w]
}

func newStream[R any](cfg *Config[R], conn *holdfast.Conn) *stream[R] {
	return &stream[R]{cfg: cfg, conn: conn, dec: cfg.Decoder()}
}

// badReply is the error of one reply, on a stream that is sound.
type badReply struct{ error }

func (e *badReply) Unwrap() error { return e.error }

var errDecoder = errors.New("pipeline: the Decoder consumed what it was not given, or nothing")

// have decodes one reply out of what has arrived. Without one it is for fill.
func (s *stream[R]) have() (v R, ok bool, err error) {
	if s.r == s.w {
		return v, false, nil
	}
	v, n, done, err := s.dec.Decode(s.buf[s.r:s.w])
	if n < 0 || n > s.w-s.r || (done && n == 0) {
		return v, false, errDecoder
	}
	s.r += n
	if done && err != nil {
		err = &badReply{err}
	}
	return v, done, err
}

// rescue makes an error of a panic in the user's code, where it would not be the user
// who falls.
func rescue(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("pipeline: panic: %v\n%s", p, debug.Stack())
	}
}

// fill waits for bytes.
func (s *stream[R]) fill() error {
	s.makeRoom()
	for range 100 {
		n, err := s.conn.Read(s.buf[s.w:])
		s.w += n
		if n > 0 {
			return nil // an error comes again
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// makeRoom keeps the buffer at the size of what there is to do: a Decoder that waits
// for a whole frame gets as much as it needs, but never before its bytes are there.
func (s *stream[R]) makeRoom() {
	full := s.w == len(s.buf)
	switch {
	case s.buf == nil:
		s.buf = make([]byte, smallBuffer)
	case s.r == s.w && (len(s.buf) > largeBuffer || full && len(s.buf) < largeBuffer):
		s.buf = make([]byte, largeBuffer)
	case full && s.r == 0:
		bigger := make([]byte, 2*len(s.buf))
		copy(bigger, s.buf)
		s.buf = bigger
		return
	case full && s.r < s.w:
		copy(s.buf, s.buf[s.r:s.w])
		s.r, s.w = 0, s.w-s.r
		return
	}
	if s.r == s.w {
		s.r, s.w = 0, 0
	}
}

// rest gives a large buffer back while there is nothing to read.
func (s *stream[R]) rest() {
	if s.r == s.w && len(s.buf) > smallBuffer {
		s.buf, s.r, s.w = nil, 0, 0
	}
}

// next waits for the next reply or push.
func (s *stream[R]) next() (R, error) {
	for {
		v, ok, err := s.have()
		if ok || err != nil {
			return v, err
		}
		if err := s.fill(); err != nil {
			return v, err
		}
	}
}

// isPush tells what the peer sent by itself.
func (cfg *Config[R]) isPush(v R) bool {
	if cfg.Push != nil && cfg.Push(v) {
		return true
	}
	if cfg.ID != nil {
		_, ok := cfg.ID(v)
		return !ok
	}
	return false
}

// Setup is a new connection before its first request, for Config.Handshake alone.
type Setup[R any] struct {
	// Conn is the connection; what is read of it directly is not seen by Do.
	Conn *holdfast.Conn

	// Lost is why the connection before this one to the same node ended; nil is that
	// there was none.
	Lost error

	s  *stream[R]
	id uint64
}

// Do sends a request and waits for its reply; what the peer pushes meanwhile is
// dropped. The limits are those of the handshake.
func (s *Setup[R]) Do(req Request) (v R, err error) {
	s.id++
	b, err := req.Encode(nil, s.id)
	if err != nil {
		return v, err
	}
	if _, err := s.Conn.Write(b); err != nil {
		return v, err
	}
	return s.s.reply(s.id)
}

// reply waits for the next reply, and drops what is pushed before it. On a connection of
// one's own it must have the number that was asked last.
func (s *stream[R]) reply(asked uint64) (v R, err error) {
	defer rescue(&err)
	for {
		v, err := s.next()
		if err == nil && s.cfg.isPush(v) {
			continue
		}
		if err == nil && s.cfg.ID != nil {
			if id, _ := s.cfg.ID(v); id != asked {
				return v, fmt.Errorf("%w: %d, and %d was asked", errUnasked, id, asked)
			}
		}
		return v, err
	}
}

// prepare makes the stream of a new connection.
func (p *Client[R]) prepare(ctx context.Context, conn *holdfast.Conn, lost error) (s *stream[R], err error) {
	s = newStream(&p.cfg, conn)
	if p.cfg.Handshake == nil {
		return s, nil
	}
	defer rescue(&err)
	return s, p.cfg.Handshake(ctx, &Setup[R]{Conn: conn, Lost: lost, s: s})
}
