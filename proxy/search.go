package proxy

import (
	"errors"
	"time"

	"github.com/holdfast-net/holdfast"
)

// search looks for a backend for one connection: every usable node once, in the order
// of the Cluster's policy. A node that failed is in backoff at once, so an outage is not
// multiplied by those who suffer it, and no budget is needed. When all are in backoff now
// and then a connection finds out for all whether that is still so: none can wait for it.
type search struct {
	cluster *holdfast.Cluster
	key     uint64
	max     int // connections of a node
	tried   []*holdfast.Node
	down    []*holdfast.Node // of them, those that failed; the others were full
}

// errFull is that every usable node has as many connections as it may.
var errFull = errors.New("proxy: every backend is full")

// next chooses the node to try now.
func (s *search) next() (holdfast.Lease, error) {
	for {
		lease, err := s.cluster.Pick(s.key, s.tried)
		if err != nil && len(s.tried) > len(s.down) {
			return lease, errFull
		}
		if err != nil {
			var ok bool
			if lease, ok = s.cluster.PickDown(s.tried); !ok {
				return lease, err
			}
		}
		stream := lease.Node().Endpoint().Network != "udp"
		if stream && (s.max <= 0 || lease.Node().InFlight() <= s.max) {
			return lease, nil
		}
		if !stream {
			s.down = append(s.down, lease.Node()) // for us
		}
		s.tried = append(s.tried, lease.Node())
		lease.Done()
	}
}

// failed notes that a node could not be connected.
func (s *search) failed(n *holdfast.Node) {
	s.tried = append(s.tried, n)
	s.down = append(s.down, n)
}

// more reports whether there is another node to try.
func (s *search) more(n *holdfast.Node) bool {
	lease, err := s.cluster.Pick(s.key, append(s.tried[:len(s.tried):len(s.tried)], n))
	if err != nil {
		return false
	}
	lease.Done()
	return true
}

// again forgets what was full: a place is free, or a node may have more of them.
func (s *search) again(max int) {
	s.tried = append(s.tried[:0], s.down...)
	s.max = max
}

// headStart is how long a connect may take while there is another node to try: a lost
// SYN is sent again after a second (RFC 6298).
const headStart = time.Second
