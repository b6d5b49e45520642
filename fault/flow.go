package fault

import (
	"container/heap"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"
)

const (
	packetBuffer = 1 << 20 // default of Link.Buffer
	packetWeight = 512     // of a datagram beside its data, about what it costs us
	holdBack     = 100 * time.Millisecond
)

// A flow is what a line is for streams: the datagrams of one direction that are under
// way, or wait to be read. It is told the time, and its owner's mutex guards it.
//
// What becomes of a datagram is settled when it enters, save for one that is held back
// until another goes first.
type flow struct {
	link   Link
	rng    *rand.Rand
	counts *packetCounts
	bytes  *atomic.Int64 // handed on
	holes  *atomic.Int64

	queue  queue
	weight int       // of the queue
	last   uint64    // order of the newest in it
	held   *datagram // in the queue, to be overtaken
	bad    bool      // in a burst
	busy   time.Time // until when a link with a Bandwidth transmits what has entered
	taken  int64     // bytes since the link was set
	struck bool      // the black hole has begun
}

type datagram struct {
	data []byte
	addr net.Addr // where to, or where from; nil on a connected socket's way up

	at    time.Time // of arrival
	due   time.Time // the same, if it had not been held back
	order uint64    // among those of one instant
	index int       // in the queue
}

func (d *datagram) weight() int { return len(d.data) + packetWeight }

func (f *flow) set(link Link) {
	if link.Buffer == 0 {
		link.Buffer = packetBuffer
	}
	link.Slice = 0
	if link.Then != BlackHole {
		link.Then, link.After = 0, 0
	}
	f.link, f.taken, f.struck, f.bad, f.busy = link, 0, false, false, time.Time{}
	f.swallows(0) // which counts a hole that begins at once
}

// enter takes in a datagram. It returns nil if that is lost.
func (f *flow) enter(now time.Time, data []byte, addr net.Addr) *datagram {
	f.counts.sent.Add(1)
	var fate fate
	if !f.link.clean() {
		f.bad = f.link.Packets.Burst.turns(f.bad, f.rng) != f.bad
		fate = drawFate(f.rng, f.link.Packets, f.bad)
	}
	if f.swallows(len(data)) || fate.lost {
		f.counts.lost.Add(1)
		return nil
	}
	d := &datagram{data: fate.change(data, f.counts), addr: addr}
	if !f.fits(d) {
		return nil
	}
	sent := f.transmitted(now, len(d.data))
	f.push(d, f.arrival(sent, fate.jitter[0]))
	if fate.twice {
		f.counts.duplicated.Add(1)
		if twin := (&datagram{data: d.data, addr: addr}); f.fits(twin) {
			f.push(twin, f.arrival(sent, fate.jitter[1]))
		}
	}
	switch {
	case f.held != nil:
		f.overtake(d)
	case fate.late:
		f.held = d
		f.move(d, d.due.Add(holdBack))
	}
	if d.at.After(now) {
		f.counts.delayed.Add(1)
	}
	return d
}

// swallows reports whether a black hole takes a datagram of n bytes.
func (f *flow) swallows(n int) bool {
	if f.link.Then != BlackHole {
		return false
	}
	after := f.link.After
	if !f.struck && f.taken < after && f.taken+int64(n) <= after {
		f.taken += int64(n)
		return false
	}
	if !f.struck {
		f.struck = true
		f.holes.Add(1)
	}
	return true
}

// fits drops d if there is no room.
func (f *flow) fits(d *datagram) bool {
	if d.weight() > f.link.Buffer-f.weight {
		f.counts.dropped.Add(1)
		return false
	}
	return true
}

// transmitted is when the last of n bytes is on its way.
func (f *flow) transmitted(now time.Time, n int) time.Time {
	if f.link.Bandwidth <= 0 {
		return now
	}
	f.busy = later(f.busy, now).Add(time.Duration(n) * time.Second / time.Duration(f.link.Bandwidth))
	return f.busy
}

func (f *flow) arrival(sent time.Time, jitter float64) time.Time {
	return sent.Add(f.link.Latency + time.Duration(jitter*float64(f.link.Jitter)))
}

func (f *flow) push(d *datagram, at time.Time) {
	f.last++
	d.at, d.due, d.order = at, at, f.last
	f.weight += d.weight()
	heap.Push(&f.queue, d)
}

// overtake lets the one that is held back arrive behind d.
func (f *flow) overtake(d *datagram) {
	held := f.held
	f.held = nil
	f.last++
	held.order = f.last
	f.move(held, later(held.due, d.at))
	f.counts.reordered.Add(1)
}

func (f *flow) move(d *datagram, at time.Time) {
	d.at = at
	heap.Fix(&f.queue, d.index)
}

// next takes out what has arrived first, nil if there is nothing yet; then it says how
// long the next one takes, if there is one.
func (f *flow) next(now time.Time) (d *datagram, wait time.Duration) {
	if len(f.queue) == 0 {
		return nil, never
	}
	if wait := f.queue[0].at.Sub(now); wait > 0 {
		return nil, wait
	}
	d = heap.Pop(&f.queue).(*datagram)
	f.weight -= d.weight()
	if f.held == d {
		f.held = nil
	}
	return d, 0
}

// passed counts n bytes of a datagram that has been handed on.
func (f *flow) passed(n int) {
	f.counts.passed.Add(1)
	f.bytes.Add(int64(n))
}

// purge loses what is under way.
func (f *flow) purge() {
	f.counts.dropped.Add(int64(len(f.queue)))
	f.queue, f.weight, f.held = nil, 0, nil
}

// A queue is a heap, by time of arrival.
type queue []*datagram

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].order < q[j].order
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(d any) {
	d.(*datagram).index = len(*q)
	*q = append(*q, d.(*datagram))
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	d := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return d
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
