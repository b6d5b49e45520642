package fault

import (
	"math"
	"strconv"
	"time"
)

// A Plan says how connections fare. The zero Plan changes nothing. Plans are values:
// compare them, copy them, keep them in tables.
type Plan struct {
	Up   Link // what the wrapped side writes
	Down Link // what it reads

	// Seed is where all chance comes from, together with the number of the connection or
	// socket, counted from 1. 0 is a seed like any other. A connection keeps the seed of the
	// plan it was wrapped under.
	Seed uint64
}

// A Link says how one direction of a connection fares. In every field zero or less
// means that this does not happen, except as said; the fields work together. They speak
// of streams; what they mean for datagrams is under [Injector.PacketConn].
type Link struct {
	// Latency is how long bytes travel. Jitter adds something below itself, drawn evenly
	// for what was written at once. Bytes never overtake each other.
	Latency, Jitter time.Duration

	// Bandwidth is in bytes per second. Bytes arrive every 10 ms, or by slices.
	Bandwidth int

	// Slice is the most that is handed on at once: to the connection underneath in one
	// Write, to a Read of the wrapped side. Sizes are drawn evenly from 1 to Slice. The
	// slices follow each other at once unless Bandwidth spaces them.
	Slice int

	// Buffer is how many bytes may be under way: 0 means 64 KiB, negative any number.
	// Without another fault it has no effect.
	Buffer int

	// After so many bytes, handed on since the plan was set, Then happens: at 0 at
	// once, also to a connection on which nothing moves. Not a byte more gets through.
	After int64
	Then  End

	// Packets is what happens to datagrams besides.
	Packets Packets
}

// An End is what becomes of a direction when its time has come. The zero End is none.
type End uint8

const (
	_ End = iota

	// Cut ends this direction cleanly, as a FIN does: its reader sees [io.EOF] and its
	// writer a broken pipe, while the other direction goes on. A connection that
	// cannot do that (it has no CloseWrite) is closed.
	Cut

	// Reset ends the connection as a RST does: the wrapped side fails with ECONNRESET,
	// and so does its peer if a *net.TCPConn is to be found underneath, through methods
	// NetConn. Any other connection is closed.
	Reset

	// BlackHole holds everything, the end of the stream too. Writes succeed until the
	// Buffer is full, reads wait, there is no error. The next plan may end it.
	BlackHole
)

// String returns "Cut", "Reset" or "BlackHole".
func (e End) String() string {
	switch e {
	case 0:
		return "none"
	case Cut:
		return "Cut"
	case Reset:
		return "Reset"
	case BlackHole:
		return "BlackHole"
	}
	return "End(" + strconv.Itoa(int(e)) + ")"
}

const (
	defaultBuffer = 64 << 10
	tick          = 10 * time.Millisecond // between arrivals on a link with a Bandwidth

	// linger is how long a closed connection keeps what is under way: Linux gives one
	// that it can finish no longer than that (tcp_fin_timeout).
	linger = time.Minute
)

// settled is p in the terms that a line computes with: no negative numbers, nothing
// that has no effect.
func (p Plan) settled() Plan {
	p.Up, p.Down = p.Up.settled(), p.Down.settled()
	return p
}

func (l Link) settled() Link {
	if l.Then > BlackHole {
		panic("fault: no such End: " + l.Then.String())
	}
	l.Latency, l.Jitter = max(l.Latency, 0), max(l.Jitter, 0)
	l.Bandwidth, l.Slice = max(l.Bandwidth, 0), max(l.Slice, 0)
	if l.Buffer < 0 {
		l.Buffer = math.MaxInt
	}
	l.Packets = l.Packets.settled()
	if l.After < 0 || l.Then == 0 {
		l.After = 0
	}
	return l
}

// clean reports whether a settled link changes nothing.
func (l Link) clean() bool { return l == Link{Buffer: l.Buffer} }
