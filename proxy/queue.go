package proxy

import (
	"slices"
	"sync"

	"github.com/holdfast-net/holdfast"
)

// queue is who waits for a place at the nodes of a Cluster, in the order they came.
type queue struct {
	mu      sync.Mutex
	waiting []*waiter
}

// waiter is called when it may look again, once; then it must enter anew, in front.
type waiter struct{ wake func() }

// enter joins the queue; false is that it is full.
func (q *queue) enter(w *waiter, max int, first bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if first { // it has waited already
		q.waiting = slices.Insert(q.waiting, 0, w)
		return true
	}
	if len(q.waiting) >= max {
		return false
	}
	q.waiting = append(q.waiting, w)
	return true
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
func (q *queue) next() {
	q.mu.Lock()
	if len(q.waiting) == 0 {
		q.mu.Unlock()
		return
	}
	w := q.waiting[0]
	q.waiting = slices.Delete(q.waiting, 0, 1)
	q.mu.Unlock()
	w.wake()
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
