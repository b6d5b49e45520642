package frame

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// NextOwned is [Reader.Next] with a message that is the caller's, whatever the Reader does
// meanwhile, until it calls release: to answer in another goroutine, or to wait in a queue.
// It costs a copy. Up to 1 MiB the memory is used again once it is released, and is at
// most twice the message (256 bytes if that is more); a larger one is the garbage
// collector's, and so is one that is never released, which is no leak.
//
// Any goroutine may call release, once; msg is not to be touched any more then. A second
// call panics unless somebody else owns the memory by then, and then takes it from them:
// put it in one place, a defer of whoever is done last. With an error release is nil.
func (r *Reader) NextOwned() (msg []byte, release func(), err error) {
	borrowed, err := r.Next()
	if err != nil {
		return nil, nil, err
	}
	msg, release = own(borrowed)
	return msg, release, nil
}

const (
	smallestOwned = 256
	largestOwned  = defaultMax
)

// ownedPools are by size, in powers of two, so that a small message pins no large memory.
// What nobody wanted between two garbage collections goes, as sync.Pool has it.
var ownedPools [13]sync.Pool // of *owned

// owned is the memory of one message, or is in its pool.
type owned struct {
	buf     []byte
	pool    *sync.Pool
	taken   atomic.Bool
	release func() // put; bound once, for binding it allocates
}

func own(borrowed []byte) (msg []byte, release func()) {
	class := classOf(len(borrowed))
	if class < 0 {
		return append([]byte(nil), borrowed...), func() {}
	}
	pool := &ownedPools[class]
	o, ok := pool.Get().(*owned)
	if !ok {
		o = &owned{buf: make([]byte, smallestOwned<<class), pool: pool}
		o.release = o.put
	}
	o.taken.Store(true)
	n := copy(o.buf, borrowed)
	return o.buf[:n:n], o.release
}

// classOf is the pool of messages of size bytes, -1 if there is none.
func classOf(size int) int {
	if size > largestOwned {
		return -1
	}
	return bits.Len(uint(max(size, 1)-1) / smallestOwned)
}

func (o *owned) put() {
	if !o.taken.CompareAndSwap(true, false) {
		panic("frame: a message was released twice")
	}
	o.pool.Put(o)
}
