package fault

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// Packets say what becomes of datagrams, in one direction. Shares are chances from 0 to
// 1, drawn for each datagram and each fault by itself; zero or less means never.
//
// For each datagram of a link with faults the same number of choices is drawn, whatever
// the link: who is lost at 1 % is lost at 5 % too, and more Corrupt changes no Loss.
type Packets struct {
	// Loss is the share that gets lost, outside of bursts.
	Loss  float64
	Burst Burst

	// Duplicate is the share that arrives twice, with a Jitter for each.
	Duplicate float64

	// Reorder is the share that lets the next datagram of its direction go first: that
	// one arrives, then this one. If none follows within 100 ms it arrives so much later.
	// Who overtakes is not held back itself, so 1 swaps pairs.
	Reorder float64

	// Corrupt is the share in which one bit is wrong, any with the same chance.
	Corrupt float64

	// Truncate is the share that loses its end, drawn evenly from a byte to all of it.
	Truncate float64
}

// A Burst is loss in a row, after Gilbert and Elliott: a link is good or bad by turns, and
// each turn is as long as chance makes it. The part of the time that it is bad is
// Length / (Gap + Length).
type Burst struct {
	Gap    float64 // datagrams from the end of one burst to the next, in the mean; 0: no bursts
	Length float64 // datagrams in a burst, in the mean; at least 1
	Loss   float64 // share that gets lost in a burst; 0 means all
}

// PacketStats counts the datagrams of one direction. At rest
//
//	Sent + Duplicated = Passed + Lost + Dropped
//
// and until then the difference is under way, or has arrived and is unread.
type PacketStats struct {
	Sent   int64 // by the side where the direction begins
	Passed int64 // handed on, to the socket or a Read

	Lost       int64 // by Loss, a Burst or a BlackHole
	Duplicated int64
	Reordered  int64 // by Reorder: let another one go first
	Corrupted  int64
	Truncated  int64
	Delayed    int64 // arrived later than they were sent

	// Dropped by no chance: there was no room in the Buffer, the socket refused them
	// when their time came, or it was closed before.
	Dropped int64
}

type packetCounts struct {
	sent, passed, lost, duplicated, reordered, corrupted, truncated, delayed, dropped atomic.Int64
}

func (c *packetCounts) stats() PacketStats {
	return PacketStats{
		Sent: c.sent.Load(), Passed: c.passed.Load(),
		Lost: c.lost.Load(), Duplicated: c.duplicated.Load(), Reordered: c.reordered.Load(),
		Corrupted: c.corrupted.Load(), Truncated: c.truncated.Load(), Delayed: c.delayed.Load(),
		Dropped: c.dropped.Load(),
	}
}

func (p Packets) settled() Packets {
	for _, share := range []*float64{&p.Loss, &p.Duplicate, &p.Reorder, &p.Corrupt, &p.Truncate} {
		*share = max(*share, 0)
	}
	if p.Burst.Gap <= 0 {
		p.Burst = Burst{}
		return p
	}
	p.Burst.Gap, p.Burst.Length = max(p.Burst.Gap, 1), max(p.Burst.Length, 1)
	if p.Burst.Loss <= 0 {
		p.Burst.Loss = 1
	}
	return p
}

// turns reports whether a good link becomes bad, or a bad one good.
func (b Burst) turns(bad bool, rng *rand.Rand) bool {
	dice := rng.Float64()
	if bad {
		return dice*b.Length < 1
	}
	return dice*b.Gap < 1 && b.Gap > 0
}

// A fate is what chance has in store for a datagram.
type fate struct {
	lost, twice, late bool
	corrupt, truncate hit
	jitter            [2]float64 // shares of link.Jitter, of the datagram and of its copy
}

// A hit is whether a fault happens, and where: a share of what there is.
type hit struct {
	happens bool
	at      float64
}

func draw(rng *rand.Rand, chance float64) hit {
	return hit{happens: rng.Float64() < chance, at: rng.Float64()}
}

// drawFate always takes the same number of choices off rng.
func drawFate(rng *rand.Rand, p Packets, bad bool) fate {
	loss := p.Loss
	if bad {
		loss = p.Burst.Loss
	}
	return fate{
		lost:     rng.Float64() < loss,
		twice:    rng.Float64() < p.Duplicate,
		late:     rng.Float64() < p.Reorder,
		corrupt:  draw(rng, p.Corrupt),
		truncate: draw(rng, p.Truncate),
		jitter:   [2]float64{rng.Float64(), rng.Float64()},
	}
}

// change returns what arrives of data, in memory of its own.
func (f fate) change(data []byte, counts *packetCounts) []byte {
	if f.truncate.happens && len(data) > 0 {
		data = data[:int(f.truncate.at*float64(len(data)))]
		counts.truncated.Add(1)
	}
	data = slices.Clone(data)
	if f.corrupt.happens && len(data) > 0 {
		bit := int(f.corrupt.at * float64(8*len(data)))
		data[bit/8] ^= 1 << (bit % 8)
		counts.corrupted.Add(1)
	}
	return data
}
