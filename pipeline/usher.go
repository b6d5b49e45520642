package pipeline

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-net/holdfast"
)

// stagger is the head start of one connection over the next while somebody waits, as
// RFC 8305 has it.
const stagger = 250 * time.Millisecond

// maxPause is the most between two dials to a node, when the Cluster does not hold it
// back because the failure was not the node's but this host's. It begins with a 32nd.
const maxPause = time.Second

// usherLocked sees to it that there is a connection, and that those in the lobby get
// on it.
func (p *Client[R]) usherLocked() {
	if !p.ushering && p.closing == nil && (len(p.lobby) > 0 || len(p.links) == 0) {
		p.ushering = true
		p.tasks.Go(p.usher)
	}
}

func (p *Client[R]) usher() {
	for p.wanted() {
		p.mu.Lock()
		busy := p.dialingLocked()
		p.mu.Unlock()
		lease, err := p.cluster.Pick(0, busy)
		switch {
		case err == nil:
			if l, full := p.peerOf(lease.Node()).best(); l != nil {
				p.seat(l)
			} else if !full {
				p.connect(lease)
			}
			lease.Done()
			p.sleep(stagger)
		case len(busy) > 0:
			p.sleep(stagger)
		default:
			p.noNode(err)
		}
	}
}

// wanted reports whether the usher is; without anybody waiting it is not in a hurry,
// so that those who lost the same server do not all come back at once.
func (p *Client[R]) wanted() bool {
	p.mu.Lock()
	again := len(p.lobby) == 0 && p.made.Load() > 0
	p.mu.Unlock()
	if again {
		p.sleep(rand.N(time.Second))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ushering = p.closing == nil && (len(p.lobby) > 0 || len(p.links) == 0)
	return p.ushering
}

// dialingLocked are the nodes that are being connected to.
func (p *Client[R]) dialingLocked() (busy []*holdfast.Node) {
	for n, pr := range *p.peers.Load() {
		if pr.dialing > 0 {
			busy = append(busy, n)
		}
	}
	return busy
}

// sleep ends early when something has changed.
func (p *Client[R]) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-p.changed:
	case <-p.ctx.Done():
	}
}

// noNode waits until the Cluster has one.
func (p *Client[R]) noNode(why error) {
	p.mu.Lock()
	p.lastErr = why
	p.mu.Unlock()
	if p.cluster.WaitUsable(p.ctx) == nil {
		p.sleep(rand.N(10 * time.Millisecond)) // it may be for no reason
		return
	}
	if p.ctx.Err() == nil { // the Cluster is closed
		p.mu.Lock()
		p.closing = holdfast.ErrClosed
		p.failLobbyLocked(holdfast.ErrClosed)
		p.mu.Unlock()
	}
}

// connect makes a link to the node of a lease in the background, if one is missing.
func (p *Client[R]) connect(lease holdfast.Lease) {
	pr := p.peerOf(lease.Node())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing != nil || pr.dialing >= pr.missing() || pr.failures > 0 && now() < pr.notBefore {
		return
	}
	pr.dialing++
	lost := pr.lost
	p.tasks.Go(func() { p.dial(lease, pr, lost) })
}

func (pr *peer[R]) missing() (n int) {
	for i := range pr.links {
		if l := pr.links[i].Load(); l == nil || l.over.Load() {
			n++
		}
	}
	return n
}

func (p *Client[R]) dial(lease holdfast.Lease, pr *peer[R], lost error) {
	var s *stream[R]
	_, err := lease.Dial(p.ctx, func(ctx context.Context, conn *holdfast.Conn) (err error) {
		s, err = p.prepare(ctx, conn, lost)
		return err
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	defer signal(p.changed)
	pr.dialing--
	if err != nil {
		pr.failures++
		pr.notBefore = now() + rand.N(maxPause>>max(0, 6-pr.failures))
		p.dialFailedLocked(err)
		return
	}
	if p.closing != nil {
		s.conn.Close()
		return
	}
	l := newLink(p, pr, lease, s)
	for i := range pr.links {
		if old := pr.links[i].Load(); old == nil || old.over.Load() {
			pr.links[i].Store(l)
			break
		}
	}
	p.links = append(p.links, l)
	p.made.Add(1)
	p.lastErr, pr.failures = nil, 0
	p.stats.connects.Add(1)
	p.tasks.Go(func() { l.run(); p.ended(l) })
	p.seatLocked(l)
}

// dialFailedLocked remembers why. What is permanent is told to those who wait at once.
func (p *Client[R]) dialFailedLocked(err error) {
	if p.closing != nil {
		return
	}
	p.lastErr = err
	p.stats.connectFailures.Add(1)
	if permanent(err) {
		p.failLobbyLocked(errors.Join(ErrDown, err))
	}
}

// seat lets those in the lobby onto a link, in the order they came.
func (p *Client[R]) seat(l *link[R]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seatLocked(l)
}

func (p *Client[R]) seatLocked(l *link[R]) {
	elsewhere := len(p.dialingLocked()) > 0
	stay := p.lobby[:0]
	for _, c := range p.lobby {
		if elsewhere && slices.Contains(c.avoid, l.peer.node) {
			stay = append(stay, c)
			continue
		}
		c.waiting.Store(nowhere)
		if err := l.admit(c); err != nil && !c.finish(queued, &Error{NotSent, l.peer.name, err}) {
			p.recycle(c)
		}
	}
	clear(p.lobby[len(stay):])
	p.lobby = stay
}

// ended is called when a link is over.
func (p *Client[R]) ended(l *link[R]) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.links {
		if other == l {
			p.links = append(p.links[:i:i], p.links[i+1:]...)
			break
		}
	}
	for i := range l.peer.links {
		l.peer.links[i].CompareAndSwap(l, nil)
	}
	l.peer.lost = l.err
	p.stats.lost.Add(1)
	p.emptiedLocked()
	p.usherLocked()
}
