package proxy

import (
	"cmp"
	"errors"
	"slices"
	"sync"

	"github.com/holdfast-net/holdfast"
)

// queue is who waits for a place at the nodes of a Cluster, in the order they came.
type queue struct {
	mu      sync.Mutex
	waiting []*waiter // by their turns
	turns   uint64
}

// waiter is called when it may look again, once; then it must enter anew, and has the
// turn that it had.
type waiter struct {
	wake func()
	turn uint64 // 0 is that it has not waited yet
}

// enter joins the queue; false is that it is full.
func (q *queue) enter(w *waiter, max int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.turn == 0 {
		if len(q.waiting) >= max {
			return false
		}
		q.turns++
		w.turn = q.turns
	}
	q.waiting = slices.Insert(q.waiting, q.behindLocked(w.turn-1), w)
	return true
}

// behindLocked is the index of the first whose turn comes after that one.
func (q *queue) behindLocked(turn uint64) int {
	i, _ := slices.BinarySearchFunc(q.waiting, turn+1, func(w *waiter, t uint64) int { return cmp.Compare(w.turn, t) })
	return i
}

// leave reports whether the waiter was still there.
func (q *queue) leave(w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, w)
	if i >= 0 {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	return i >= 0
}

// next wakes the first.
func (q *queue) next() { q.after(0) }

// after wakes the first whose turn comes after that one.
func (q *queue) after(turn uint64) {
	q.mu.Lock()
	i := q.behindLocked(turn)
	if i == len(q.waiting) {
		q.mu.Unlock()
		return
	}
	w := q.waiting[i]
	q.waiting = slices.Delete(q.waiting, i, i+1)
	q.mu.Unlock()
	w.wake()
}

// looked passes on that there was a reason to look, by one who was woken: who got a place
// does not know that there is no other, and one who is barred from some nodes, for it
// failed there, does not know that there is none for those behind it.
func (q *queue) looked(w *waiter, s *search, err error) {
	if err == nil || errors.Is(err, errFull) && len(s.down) > 0 {
		q.after(w.turn)
	}
}

func (p *Proxy) queueOf(c *holdfast.Cluster) *queue {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.queues[c]
	if q == nil {
		q = &queue{}
		p.queues[c] = q
	}
	return q
}

// inTurn is search.next for who has not waited: those who wait come first.
func (p *Proxy) inTurn(s *search) (holdfast.Lease, error) {
	if s.max > 0 && p.queueOf(s.cluster).isThere() {
		return holdfast.Lease{}, errFull
	}
	return s.next()
}

func (q *queue) isThere() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) > 0
}

// maxEach is Backends.Max as it is in force, which those who wait heed too: else they
// would be in the way of who comes after an Update.
func (p *Proxy) maxEach() int { return p.set.Load().maxEach() }

// release gives the place of a connection at its node back.
func (p *Proxy) release(set *settings, c *holdfast.Cluster, l holdfast.Lease) {
	l.Done()
	if set.Backends.Max > 0 {
		p.queueOf(c).next()
	}
}

// wakeQueues lets the first of each queue look: a node may be usable again.
func (p *Proxy) wakeQueues() {
	p.mu.Lock()
	all := make([]*queue, 0, len(p.queues))
	for _, q := range p.queues {
		all = append(all, q)
	}
	p.mu.Unlock()
	for _, q := range all {
		q.next()
	}
}
