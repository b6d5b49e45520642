package holdfast

import (
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/hist"
)

// Histogram is a distribution of durations: Count, Sum, Min, Max, Quantile(q),
// Mean and Merge, with at most 3 % error. It is a plain value.
type Histogram = hist.Snapshot

// Stats is a snapshot of a Cluster's counters since its start.
type Stats struct {
	Operations   uint64 `json:"operations"` // calls of Do and Exchange
	Successes    uint64 `json:"successes"`
	Failures     uint64 `json:"failures"`      // errors that their callers saw
	Hidden       uint64 `json:"hidden"`        // failures that no caller saw: it went well elsewhere
	Retries      uint64 `json:"retries"`       // further attempts of these
	BudgetDenied uint64 `json:"budget_denied"` // retries the budget refused

	Forged uint64 `json:"forged"` // datagrams that answer nothing: wrong source, number or content
	Late   uint64 `json:"late"`   // replies to what had its reply or was given up

	Errors map[Class]uint64 `json:"errors"` // failures held against nodes, by class

	Conns   int `json:"conns"`   // open, pooled or not
	Idle    int `json:"idle"`    // at rest in the pool
	Dialing int `json:"dialing"` // being made for the pool
	Waiting int `json:"waiting"` // callers waiting for one

	Latency Histogram `json:"latency"` // of whole operations
	Wait    Histogram `json:"wait"`    // of callers who found no connection at rest

	Panic         bool   `json:"panic"`
	EventsDropped uint64 `json:"events_dropped"`

	Nodes []NodeStats `json:"nodes"`
}

// NodeStats is the part of one node.
type NodeStats struct {
	Node         string        `json:"node"` // "name[address]:port"
	Endpoint     string        `json:"endpoint"`
	State        State         `json:"state"`
	Err          string        `json:"err,omitempty"` // why it is not usable
	InFlight     int           `json:"in_flight"`
	Conns        int           `json:"conns"`
	Idle         int           `json:"idle"`
	Dials        uint64        `json:"dials"`
	DialFailures uint64        `json:"dial_failures"`
	Successes    uint64        `json:"successes"`
	Failures     uint64        `json:"failures"`
	Ejections    int           `json:"ejections"` // counted down while healthy
	BytesWritten uint64        `json:"bytes_written"`
	BytesRead    uint64        `json:"bytes_read"`
	Latency      time.Duration `json:"latency_ns"` // moving average
	DialTime     Histogram     `json:"dial_time"`
}

type counters struct {
	operations, successes, failures, hidden, retries, budgetDenied atomic.Uint64
	forged, late                                                   atomic.Uint64

	errors        [numClasses]atomic.Uint64
	latency, wait hist.Histogram
}

// Stats returns the counters as they are now.
func (c *Cluster) Stats() Stats {
	k := &c.stats
	s := Stats{
		Operations: k.operations.Load(), Successes: k.successes.Load(), Failures: k.failures.Load(),
		Hidden: k.hidden.Load(), Retries: k.retries.Load(), BudgetDenied: k.budgetDenied.Load(),
		Forged: k.forged.Load(), Late: k.late.Load(),
		Latency: k.latency.Snapshot(), Wait: k.wait.Snapshot(), Errors: map[Class]uint64{},
	}
	for class := range k.errors {
		if n := k.errors[class].Load(); n > 0 {
			s.Errors[Class(class)] = n
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Dialing, s.Waiting, s.Panic, s.EventsDropped = c.dialing, c.callers, c.panicking, c.events.dropped
	for _, n := range c.nodes {
		node := n.statsLocked()
		s.Conns += node.Conns
		s.Idle += node.Idle
		s.Nodes = append(s.Nodes, node)
	}
	return s
}

func (n *Node) statsLocked() NodeStats {
	t := &n.totals
	s := NodeStats{
		Node: n.String(), Endpoint: n.Endpoint().String(), State: n.deriveLocked(), InFlight: n.InFlight(),
		Conns: len(n.conns), Idle: len(n.pool.idle), Ejections: n.ejects,
		Dials: t.dials.Load(), DialFailures: t.dialFailures.Load(), Successes: t.successes.Load(), Failures: t.failures.Load(),
		BytesWritten: t.written.Load(), BytesRead: t.read.Load(), Latency: n.Latency(), DialTime: n.dialTimes.Snapshot(),
	}
	for conn := range n.conns { // closed ones are in the totals
		s.BytesWritten += uint64(conn.written.Load())
		s.BytesRead += uint64(conn.read.Load())
	}
	if n.lastErr != nil && !s.State.Usable() {
		s.Err = clip(n.lastErr.Error())
	}
	return s
}
