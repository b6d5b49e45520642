package fault

import (
	"math"
	"math/rand/v2"
	"time"
)

// A line is the bytes of one direction that are under way, oldest first. It knows what
// arrives when, and nothing of connections: it is told the time, and its owner's mutex
// guards it.
//
// Times of arrival follow from when bytes entered and from the link as it is now, the
// first piece's only, and are worked out when somebody looks. So a new link holds for
// all that is under way, order is kept, and who looks late does not delay what follows.
type line struct {
	link   Link
	rng    *rand.Rand
	wire   []piece
	size   int       // bytes on the wire
	passed int64     // bytes handed on since the link was set
	struck bool      // link.Then has been dealt with
	clear  time.Time // when the last portion arrived: the next one comes behind it

	slice   int // size of the next slice; 0 until it is drawn
	arrived int // bytes of wire[0] that have arrived
}

// A piece is what entered at once: bytes, or an end.
type piece struct {
	at     time.Time
	data   []byte
	end    end
	err    error   // with failed
	jitter float64 // share of link.Jitter, negative until it is drawn
}

type end uint8

const (
	open     end = iota // no end: bytes
	finished            // the writer sends no more
	closed              // and does not read either
	failed              // the reader gets err
)

const never = time.Duration(-1)

func (l *line) set(link Link) {
	if link.Buffer == 0 {
		link.Buffer = defaultBuffer
	}
	link.Packets = Packets{}
	l.link, l.passed, l.struck, l.slice = link, 0, false, 0
}

func (l *line) push(p piece) {
	p.jitter = -1
	l.wire = append(l.wire, p)
	l.size += len(p.data)
}

// purge loses what is under way.
func (l *line) purge() { l.wire, l.size, l.slice, l.arrived = nil, 0, 0, 0 }

func (l *line) room() int { return l.link.Buffer - l.size }

// look tells whether there is something to hand on: n bytes of the first piece, or the
// end which that is; else how long that takes, if it is known.
func (l *line) look(now time.Time) (n int, ready bool, wait time.Duration) {
	if len(l.wire) == 0 || l.held() {
		return 0, false, never
	}
	p := &l.wire[0]
	if l.arrived == 0 {
		portion := l.portion(len(p.data))
		at := l.arrival(p, portion)
		if wait := at.Sub(now); wait > 0 {
			return 0, false, wait
		}
		l.clear, l.arrived = at, portion
	}
	return int(min(int64(l.arrived), l.left())), true, 0
}

// portion is how many of size bytes arrive together.
func (l *line) portion(size int) int {
	switch {
	case l.link.Slice > 0:
		if l.slice == 0 {
			l.slice = 1 + l.rng.IntN(l.link.Slice)
		}
		size = min(size, l.slice)
	case l.link.Bandwidth > 0:
		size = min(size, max(1, l.link.Bandwidth/int(time.Second/tick)))
	}
	return int(min(int64(size), l.left(), 1<<30)) // which is no overflow in arrival
}

// arrival is when the first size bytes of p, the first piece, are all there.
func (l *line) arrival(p *piece, size int) time.Time {
	if p.jitter < 0 && l.link.Jitter > 0 {
		p.jitter = l.rng.Float64()
	}
	at := p.at.Add(l.link.Latency + time.Duration(max(p.jitter, 0)*float64(l.link.Jitter)))
	if at.Before(l.clear) {
		at = l.clear
	}
	if l.link.Bandwidth > 0 {
		at = at.Add(time.Duration(size) * time.Second / time.Duration(l.link.Bandwidth))
	}
	return at
}

// take removes n bytes that look has offered.
func (l *line) take(n int) {
	if n = min(n, l.arrived); n == 0 {
		return // purged meanwhile
	}
	l.passed += int64(n)
	l.size -= n
	if l.arrived -= n; l.arrived == 0 {
		l.slice = 0
	}
	if p := &l.wire[0]; n < len(p.data) {
		p.data = p.data[n:]
	} else {
		l.pop()
	}
}

func (l *line) pop() piece {
	p := l.wire[0]
	l.wire[0] = piece{}
	l.wire = l.wire[1:]
	return p
}

// read copies to b what has arrived, at most one slice of it.
func (l *line) read(b []byte, now time.Time) (total int) {
	for total < len(b) {
		n, _, _ := l.look(now)
		if n == 0 {
			break
		}
		n = copy(b[total:], l.wire[0].data[:n])
		l.take(n)
		total += n
		if l.link.Slice > 0 {
			break
		}
	}
	return total
}

// left is how many bytes there are to the end of the link.
func (l *line) left() int64 {
	if l.link.Then == 0 {
		return math.MaxInt64
	}
	return max(l.link.After-l.passed, 0)
}

func (l *line) held() bool { return l.link.Then == BlackHole && l.left() == 0 }

// strike reports, once, that the end of the link has come.
func (l *line) strike() bool {
	if l.struck || l.left() > 0 {
		return false
	}
	l.struck = true
	return true
}
