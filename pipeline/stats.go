package pipeline

import "sync/atomic"

type counters struct {
	requests, failures, retries, replies, dropped, unasked atomic.Uint64
	writes, stalls, connects, connectFailures, lost        atomic.Uint64
	pushes, pushesDropped                                  atomic.Uint64
}

// Stats is what a Client has done, and what is under way.
type Stats struct {
	Conns    int `json:"conns"`
	InFlight int `json:"in_flight"` // queued or sent, and not answered
	Waiting  int `json:"waiting"`   // for a connection, or for room

	Requests      uint64 `json:"requests"`
	Failures      uint64 `json:"failures"`
	Retries       uint64 `json:"retries"`
	Replies       uint64 `json:"replies"`
	Dropped       uint64 `json:"dropped"` // replies whose callers had left
	Unasked       uint64 `json:"unasked"` // replies with a number that nobody waited for
	Writes        uint64 `json:"writes"`  // to connections: Requests/Writes is how well they coalesce
	Pushes        uint64 `json:"pushes"`
	PushesDropped uint64 `json:"pushes_dropped"`

	Connects        uint64 `json:"connects"`
	ConnectFailures uint64 `json:"connect_failures"`
	Lost            uint64 `json:"lost"`   // connections, for whatever reason
	Stalls          uint64 `json:"stalls"` // of them, given up because of Config.Stall
}

// Stats returns the counters as they are now.
func (p *Client[R]) Stats() Stats {
	c := &p.stats
	s := Stats{
		Requests: c.requests.Load(), Failures: c.failures.Load(), Retries: c.retries.Load(),
		Replies: c.replies.Load(), Dropped: c.dropped.Load(), Unasked: c.unasked.Load(), Writes: c.writes.Load(),
		Pushes: c.pushes.Load(), PushesDropped: c.pushesDropped.Load(),
		Connects: c.connects.Load(), ConnectFailures: c.connectFailures.Load(), Lost: c.lost.Load(), Stalls: c.stalls.Load(),
	}
	p.mu.Lock()
	links := append([]*link[R](nil), p.links...)
	s.Conns, s.Waiting = len(links), len(p.lobby)
	p.mu.Unlock()
	for _, l := range links {
		l.mu.Lock()
		s.InFlight += l.count
		s.Waiting += len(l.line)
		l.mu.Unlock()
	}
	return s
}
