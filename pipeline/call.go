package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
)

// call is one request on its way. It is always somebody's: the caller's, a list's
// (the lobby, a line, a queue), the writer's or the reader's. Its state says who may
// still decide about it, and each change is one compare-and-swap:
//
//	queued ──→ sent ──→ done        the writer takes it, the reader completes it
//	   │         └────→ abandoned   the caller left: the reader drops the reply
//	   └──────────────→ canceled    the caller left: the writer drops the request
//
// Whoever completes it signals done, and then it is the caller's again; whoever finds
// it abandoned or canceled recycles it.
type call[R any] struct {
	state   atomic.Uint32
	done    chan struct{} // has room for the one signal
	buf     []byte        // the request
	replies []R           // as they come
	one     [1]R          // where the only one goes
	want    int           // replies
	id      uint64
	slow    time.Duration // Request.Slow
	end     uint64        // of its bytes in the stream, once it is sent
	err     error
	link    *link[R]         // that it was put on
	avoid   []*holdfast.Node // in the lobby: where it has failed, if there is anywhere else
	waiting atomic.Uint32    // changed under the lock of the list that it is in
}

// In which of the lists that can be left a call is.
const (
	nowhere uint32 = iota
	inLobby        // of the client, for a connection
	inLine         // of a link, for room in the window
)

const (
	queued uint32 = iota
	sent
	done
	abandoned
	canceled
)

// take is the writer's: false is that the caller has left.
func (c *call[R]) take() bool { return c.state.CompareAndSwap(queued, sent) }

// finish completes the call: true is that somebody waits for it.
func (c *call[R]) finish(from uint32, err error) bool {
	if !c.state.CompareAndSwap(from, done) {
		return false
	}
	c.err = err
	c.done <- struct{}{}
	return true
}

var epoch = time.Now()

// now is monotonic.
func now() time.Duration { return time.Since(epoch) }

func (p *Client[R]) newCall(want int) *call[R] {
	c, ok := p.calls.Get().(*call[R])
	if !ok {
		c = &call[R]{done: make(chan struct{}, 1)}
	}
	c.want = want
	return c
}

// keep is the largest buffer that a call keeps while it waits for its reply.
const keep = 2 << 10

// spare takes a larger one from the call, for another one's request.
func (p *Client[R]) spare(c *call[R]) {
	if cap(c.buf) > keep {
		p.putBuffer(c.buf)
		c.buf = nil
	}
}

func (p *Client[R]) putBuffer(b []byte) {
	if cap(b) <= largeBuffer {
		p.buffers.Put(&b)
	}
}

// recycle takes back a call that is nobody's any more.
func (p *Client[R]) recycle(c *call[R]) {
	p.spare(c)
	if c.id != 0 {
		p.numbers.release(c.id)
		c.id = 0
	}
	clear(c.replies)
	c.replies, c.err, c.link, c.avoid = nil, nil, nil, nil
	p.calls.Put(c)
}

// reset makes the call ready for its next attempt.
func (c *call[R]) reset(slow time.Duration) {
	clear(c.replies)
	c.replies, c.err, c.link, c.slow = c.one[:0], nil, nil, slow
	if c.want > 1 {
		c.replies = make([]R, 0, c.want)
	}
	c.state.Store(queued)
}
