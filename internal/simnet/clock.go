package simnet

import (
	"container/heap"
	"sync"
	"syscall"
	"time"
)

// A clock is a Net's queue of coming events and the one timer that wakes it.
// now is the instant of the call in progress: read once on entry, so that all
// that one call causes happens at one time.
type clock struct {
	now    time.Time
	queue  queue
	seq    uint64
	timer  *time.Timer // made by the first wait, thus in the bubble that waits
	wakeAt time.Time   // what timer is set to; zero when it is not set
}

// An event is something that happens at a time. do runs under the Net's lock.
type event struct {
	at    time.Time
	seq   uint64
	index int // in the queue, -1 when out of it
	do    func()
}

// at arranges for do to happen at t. A t that is now, or past, means before
// the current call gives up the lock: no event runs inside another.
func (n *Net) at(t time.Time, do func()) *event {
	n.clock.seq++
	e := &event{at: t, seq: n.clock.seq, do: do}
	heap.Push(&n.clock.queue, e)
	return e
}

// cancel takes e back; nil, and one that has happened, are fine.
func (n *Net) cancel(e *event) {
	if e != nil && e.index >= 0 {
		heap.Remove(&n.clock.queue, e.index)
	}
}

// lock enters the Net and brings it up to date.
func (n *Net) lock() {
	n.mu.Lock()
	n.advance()
}

// unlock lets happen what the caller has caused for this instant, and leaves.
func (n *Net) unlock() {
	n.advance()
	n.mu.Unlock()
}

// park gives up the lock until changed is signalled. Events due now go first,
// and one of them may be what the caller is about to wait for: its signal
// would be lost, so then park returns at once and the caller looks again.
func (n *Net) park(changed *sync.Cond) {
	if n.advance() {
		return
	}
	changed.Wait()
	n.advance()
}

// try calls op until it says something else than EAGAIN, parking in between:
// the blocking call every socket makes of its non-blocking one.
func try[T any](n *Net, changed *sync.Cond, op func() (T, error)) (T, error) {
	for {
		v, err := op()
		if err != syscall.EAGAIN {
			return v, err
		}
		n.park(changed)
	}
}

// advance runs the events that are due, including those they cause for the
// same instant, sets the timer to the next, and says whether any ran.
func (n *Net) advance() (ran bool) {
	c := &n.clock
	c.now = time.Now()
	for len(c.queue) > 0 && !c.queue[0].at.After(c.now) {
		heap.Pop(&c.queue).(*event).do()
		ran = true
	}
	c.arm(n.tick)
	return ran
}

func (n *Net) tick() {
	n.lock()
	n.unlock()
}

// arm sets the timer to the first event. It leaves no timer running without
// one: in a bubble it would move time where nothing happens.
func (c *clock) arm(tick func()) {
	if len(c.queue) == 0 {
		if !c.wakeAt.IsZero() {
			c.timer.Stop()
			c.wakeAt = time.Time{}
		}
		return
	}
	if c.wakeAt.Equal(c.queue[0].at) {
		return
	}
	c.wakeAt = c.queue[0].at
	if wait := c.wakeAt.Sub(c.now); c.timer == nil {
		c.timer = time.AfterFunc(wait, tick)
	} else {
		c.timer.Reset(wait)
	}
}

func (c *clock) clear() {
	for _, e := range c.queue {
		e.index = -1
	}
	c.queue = nil
}

// A deadline is one of a socket's: a time, and the event that signals the
// calls waiting on the socket when it has come.
type deadline struct {
	at   time.Time
	wake *event
}

// set moves the deadline; zero removes it. The time is kept as a distance from
// now, which survives a wall clock that is set meanwhile.
func (d *deadline) set(n *Net, t time.Time, changed *sync.Cond) {
	n.cancel(d.wake)
	*d = deadline{}
	if !t.IsZero() {
		d.at = n.clock.now.Add(t.Sub(n.clock.now))
		d.wake = n.at(d.at, changed.Broadcast)
	}
}

func (d *deadline) passed(n *Net) bool {
	return !d.at.IsZero() && !d.at.After(n.clock.now)
}

// queue is a heap of events by time, then by age.
type queue []*event

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(e any) {
	e.(*event).index = len(*q)
	*q = append(*q, e.(*event))
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	e.index = -1
	return e
}
