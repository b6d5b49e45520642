package simnet

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

const (
	mss             = 1460                   // bytes in a segment: what loss delays and bandwidth spaces
	retransmitAfter = 200 * time.Millisecond // Linux's TCP_RTO_MIN, doubled by each loss
	maxRetransmits  = 6
)

// A pipe is one direction of a stream: what src has sent and the program at
// dst has not read. It is a queue in the order of sending, so that nothing
// overtakes: one event stands for the arrival of its head.
type pipe struct {
	src, dst *Conn
	rng      *rand.Rand
	wire     []segment // sent, not arrived
	buf      []byte    // arrived, not read
	size     int       // bytes in both
	limit    int
	head     *event // wire[0] arriving; nil when wire is empty or stuck
	stalled  bool   // listed in Net.stalled
}

type segment struct {
	kind kind
	data []byte
	at   time.Time // of arrival, unless it has to wait for those before it; zero while held back
}

type kind uint8

const (
	none kind = iota
	ack       // the last third of the handshake
	payload
	fin
	rst
)

// send puts a segment on the wire. A RST that meets a partition is lost and
// what was held before it goes too: its sender is no longer there to repeat.
func (p *pipe) send(k kind, data []byte) {
	if k == rst && p.net().cut(p.src.host, p.dst.host) {
		p.purge()
		return
	}
	p.size += len(data)
	p.wire = append(p.wire, segment{k, data, p.arrival(k, len(data))})
	p.arm()
}

// write sends a copy of b, cut into segments.
func (p *pipe) write(b []byte) {
	for part := range slices.Chunk(slices.Clone(b), mss) {
		p.send(payload, part)
	}
}

// arrival is when a segment sent now gets there: zero if it is held back, in a
// partition or because the program that sends is frozen. A kernel's ACK is not.
func (p *pipe) arrival(k kind, size int) time.Time {
	n, from, to := p.net(), p.src.host, p.dst.host
	if from.frozen && k != ack || n.cut(from, to) {
		p.stall()
		return time.Time{}
	}
	t, wait := n.arrival(from, to, size, p.rng), retransmitAfter
	for tries := 0; tries < maxRetransmits && chance(p.rng, n.link(from, to).Loss); tries++ {
		t = t.Add(wait)
		wait *= 2
	}
	return t
}

// arm waits for the first segment's arrival, unless it is held back.
func (p *pipe) arm() {
	if p.head == nil && len(p.wire) > 0 && !p.wire[0].at.IsZero() {
		p.head = p.net().at(p.wire[0].at, p.arrive)
	}
}

// arrive hands what has arrived to dst.
func (p *pipe) arrive() {
	p.head = nil
	n := p.net()
	if n.cut(p.src.host, p.dst.host) {
		p.hold()
		return
	}
	for len(p.wire) > 0 && !p.wire[0].at.IsZero() && !p.wire[0].at.After(n.clock.now) {
		s := p.wire[0]
		p.wire[0] = segment{}
		p.wire = p.wire[1:]
		p.dst.take(s)
	}
	p.arm()
}

// hold takes back all that is on the wire, to be sent again after the
// partition, together with the time it had booked on the link.
func (p *pipe) hold() {
	if p.wire[len(p.wire)-1].kind == rst {
		p.purge()
		return
	}
	for i := range p.wire {
		p.wire[i].at = time.Time{}
	}
	delete(p.net().busy, route{p.src.host.name, p.dst.host.name})
	p.stall()
}

func (p *pipe) stall() {
	if !p.stalled {
		p.stalled = true
		p.net().stalled = append(p.net().stalled, p)
	}
}

// retransmit sends what was held back, or finds that it is stuck still.
func (p *pipe) retransmit() {
	for i := range p.wire {
		if s := &p.wire[i]; s.at.IsZero() {
			s.at = p.arrival(s.kind, len(s.data))
		}
	}
	p.arm()
}

// purge drops what has not arrived.
func (p *pipe) purge() {
	p.net().cancel(p.head)
	p.head, p.wire, p.size = nil, nil, len(p.buf)
}

func (p *pipe) read(b []byte) int {
	n := copy(b, p.buf)
	p.buf = p.buf[n:]
	p.free(n)
	return n
}

// free makes room for src, whose Write may wait for it.
func (p *pipe) free(n int) {
	p.size -= n
	p.src.changed.Broadcast()
}

// room is how many of want bytes fit; EAGAIN when none does.
func (p *pipe) room(want int) (int, error) {
	if p.size >= p.limit {
		return 0, syscall.EAGAIN
	}
	return min(want, p.limit-p.size), nil
}

func (p *pipe) net() *Net { return p.dst.net }
