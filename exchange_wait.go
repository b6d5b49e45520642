package holdfast

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// exchange is one request on its way. Its caller runs it. The readers of the ports that
// it was sent from hold it while they look at a reply: whoever lets go last recycles it,
// so that what a reader compares is never somebody else's.
type exchange struct {
	op      operation // the story, as that of Do
	holders atomic.Int32
	request []byte  // a copy, with the number it goes by
	own, id uint64  // the number its caller gave it, and the one it goes by
	random  [8]byte // for drawing that
	draws   int
	sticky  bool          // no node but the one that may have got it
	asks    []ask         // the nodes it was sent to
	wake    chan struct{} // a reply or a refusal is there
	timer   *time.Timer

	mu      sync.Mutex // guards the rest, which the ports' readers write
	over    bool       // replied, or left by its caller
	replied bool
	reply   []byte
	cut     bool
	from    int // index into asks
	at      time.Duration
	refused *port // the kernel said so since the last look
	why     error
}

// ask is a node's part in an exchange.
type ask struct {
	lease Lease
	port  *port
	place place         // where the reply is awaited there
	began time.Duration // clock() of the first send
	sent  time.Duration // and of the last
	sends int
}

// keepBuffer is the largest buffer that an exchange keeps for the next.
const keepBuffer = 4 << 10

func (c *Cluster) newExchange(ctx context.Context, s Safety, request []byte) *exchange {
	x, ok := c.exchanges.Get().(*exchange)
	if !ok {
		x = &exchange{wake: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
	}
	x.holders.Store(1)
	x.sticky = s != Idempotent && c.cfg.Datagrams.Deduplicates
	if x.sticky {
		s = Idempotent // at the one node
	}
	x.op = operation{c: c, ctx: ctx, safety: s, tried: x.op.tried[:0]}
	x.request, x.draws = append(x.request[:0], request...), 0
	x.over, x.replied, x.refused, x.why = false, false, nil, nil
	return x
}

// leave ends what the caller has to do with it.
func (x *exchange) leave() {
	x.timer.Stop()
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
	for i := range x.asks {
		x.asks[i].end()
	}
	clear(x.asks)
	x.asks = x.asks[:0]
	x.release()
}

func (a *ask) end() {
	a.port.leave(a.place)
	a.lease.Done()
}

// release lets go of the exchange.
func (x *exchange) release() {
	if x.holders.Add(-1) > 0 {
		return
	}
	select {
	case <-x.wake:
	default:
	}
	if cap(x.request) > keepBuffer {
		x.request = nil
	}
	if cap(x.reply) > keepBuffer {
		x.reply = nil
	}
	c := x.op.c
	x.op = operation{tried: x.op.tried[:0]}
	c.exchanges.Put(x)
}

// attempt sends the request once and waits as long as that is worth it.
func (x *exchange) attempt() error {
	if err := x.op.c.firstResolved(x.op.ctx); err != nil {
		return err
	}
	i, err := x.choose()
	if err != nil {
		return err
	}
	a := &x.asks[i]
	n := a.lease.n
	sent := clock()
	x.look(nil) // what was refused before is no word on this one
	if err := a.port.send(x.request, n, x); err != nil {
		a.lease.Report(-1, err)
		x.op.tried = append(x.op.tried, n)
		return x.failed(a, PhaseWrite, 0, err)
	}
	a.sent = sent
	if a.sends++; a.sends == 1 {
		a.began = sent
	}
	rto := n.roundTrip.timeout(&x.op.c.cfg.Datagrams, a.sends)
	x.timer.Reset(rto + time.Duration(randv2.Int64N(int64(float64(rto)*(randomFactor-1))+1)))
	return x.wait(i)
}

// choose makes ready to send: to another node, if that is as good, else to the same.
func (x *exchange) choose() (int, error) {
	if last := len(x.asks) - 1; x.sticky && last >= 0 && x.asks[last].sends > 0 {
		return last, nil
	}
	c, op := x.op.c, &x.op
	lease, err := c.pickDatagram(&op.tried)
	if err != nil && len(op.tried) > 0 {
		op.tried = op.tried[:0] // all were tried: the pass begins anew
		lease, err = c.pickDatagram(&op.tried)
	}
	if err != nil {
		if slices.ContainsFunc(op.tried, func(n *Node) bool { return n.network != "udp" }) {
			err = &Error{Phase: PhaseAcquire, Class: ClassNoEndpoint, Err: errors.Join(err, errNoDatagrams)}
		}
		return 0, err
	}
	i := slices.IndexFunc(x.asks, func(a ask) bool { return a.lease.n == lease.n })
	switch {
	case i < 0:
		i = len(x.asks)
	case !x.asks[i].port.dead.Load():
		lease.Done()
		return i, nil
	}
	p, at, err := c.portsOf(lease.n).take(op.ctx, lease.n, x, i)
	if err != nil {
		op.tried = append(op.tried, lease.n)
		lease.Done()
		return 0, err
	}
	fresh := ask{lease: lease, port: p, place: at}
	if i == len(x.asks) {
		x.asks = append(x.asks, fresh)
	} else { // the port died, and with it whatever came late
		x.asks[i].end()
		x.asks[i] = fresh
	}
	return i, nil
}

// wait waits for a reply, from whichever node, or for what makes another send worth it.
func (x *exchange) wait(i int) error {
	a := &x.asks[i]
	c := x.op.c
	for {
		select {
		case <-x.wake:
			if done, why := x.look(a.port); done {
				return nil
			} else if why != nil {
				x.op.tried = append(x.op.tried, a.lease.n)
				return x.failed(a, PhaseRead, 1, why)
			}
		case <-x.timer.C:
			return x.silent(a, errNoReply)
		case <-x.op.ctx.Done():
			return x.silent(a, ended(x.op.ctx))
		case <-c.ctx.Done():
			return x.failed(a, PhaseRead, 1, ErrClosed)
		}
	}
}

var errNoReply = fmt.Errorf("holdfast: no reply: %w", os.ErrDeadlineExceeded)

// look takes what the readers left: a reply, or that the port's node refuses.
func (x *exchange) look(p *port) (done bool, why error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.refused == p {
		why = x.why
	}
	x.refused = nil
	return x.replied, why
}

// silent is a send without a reply. It is held against the node if that was silent
// altogether: else the datagram was lost on its way.
func (x *exchange) silent(a *ask, cause error) error {
	n := a.lease.n
	err := x.failed(a, PhaseRead, 1, cause)
	if time.Duration(n.heard.Load()) <= a.sent {
		a.lease.Report(clock()-a.sent, err)
	}
	x.op.tried = append(x.op.tried, n)
	return err
}

// failed describes one send. An empty datagram counts as a byte: it was sent.
func (x *exchange) failed(a *ask, phase Phase, sent int, cause error) *Error {
	n := a.lease.n
	if n.c.ctx.Err() != nil {
		cause = ErrClosed // whatever came of it
	}
	e := n.dialError(phase, cause)
	e.Written = int64(sent * max(1, len(x.request)))
	e.Attempt, e.Reused = x.op.attempt, n.heard.Load() != 0
	return e
}

// again decides whether to send again, and waits until there is a node to send to. What
// has waited for a reply need not wait more.
func (x *exchange) again(err error) bool {
	var shared *Error
	if !errors.As(err, &shared) {
		return false
	}
	own, op := *shared, &x.op
	worthwhile := op.worthwhile(&own)
	op.hidden++
	op.note(&own)
	if !worthwhile || op.attempt >= op.c.cfg.Datagrams.Sends {
		x.arrived()
		return false
	}
	if unsent := own.Written == 0; unsent && !op.free {
		op.free = true
	} else if !op.c.cfg.Retry.Budget.Withdraw() {
		op.c.stats.budgetDenied.Add(1)
		own.Err = errors.Join(ErrRetryBudget, own.Err)
		x.arrived()
		return false
	}
	wait := time.Duration(0)
	if x.sticky && own.Class != ClassTimeout { // it refuses: nobody else may be asked
		wait = op.c.cfg.Retry.Backoff.delay(op.attempt - 1)
	}
	more := op.pause(&own, wait)
	return !x.arrived() && more
}

// arrived looks once more for a reply, to a send that was given up, before the exchange
// fails or sends again, and makes it a success.
func (x *exchange) arrived() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.replied {
		x.op.result = nil
	}
	return x.replied
}

// result hands the reply out and keeps the books of the node that it came from.
func (x *exchange) result(buf []byte) ([]byte, error) {
	a := &x.asks[x.from]
	n, d := a.lease.n, &x.op.c.cfg.Datagrams
	n.heard.Store(int64(x.at))
	sample := x.at - a.sent
	if a.sends == 1 {
		n.roundTrip.observe(sample)
	} else { // nobody knows which send it answers (Karn's rule)
		n.roundTrip.guess(sample, x.at-a.began)
		sample = -1
	}
	if n.suspect.CompareAndSwap(true, false) {
		a.lease.Dialed(max(sample, 0), nil)
	}
	a.lease.Report(sample, nil)
	if d.SetID != nil {
		d.SetID(x.reply, x.own)
	}
	reply := append(buf[:0], x.reply...)
	if x.cut {
		err := x.failed(a, PhaseRead, 1, ErrTruncated)
		return reply, err
	}
	return reply, nil
}

// arrive is a reply, from its reader. It reports whether it is the first.
func (x *exchange) arrive(reply []byte, cut bool, from int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return false
	}
	x.over, x.replied, x.cut, x.from, x.at = true, true, cut, from, clock()
	x.reply = append(x.reply[:0], reply...)
	x.wakeLocked()
	return true
}

// refuse is what the kernel says of the node that p leads to.
func (x *exchange) refuse(p *port, why error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.over {
		x.refused, x.why = p, why
		x.wakeLocked()
	}
}

func (x *exchange) wakeLocked() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// mayDraw reports whether the request can get another number. Once one is in use it
// stays: a late reply repeats it.
func (x *exchange) mayDraw() bool {
	return x.op.c.cfg.Datagrams.SetID != nil && len(x.asks) == 0 && x.draws < maxDraws
}

const maxDraws = 64 // with half of the numbers taken they all fail once in 2⁶⁴

// draw gives the request a number that nobody can guess.
func (x *exchange) draw() {
	d := &x.op.c.cfg.Datagrams
	x.draws++
	rand.Read(x.random[:])
	d.SetID(x.request, binary.LittleEndian.Uint64(x.random[:]))
	x.id, _ = d.ID(x.request)
}

// roundTrip estimates how long a node takes to answer (RFC 6298).
type roundTrip struct {
	mu             sync.Mutex
	smooth, spread time.Duration // 0 while there is no sample
	kept           time.Duration // see guess
}

// timeout is how long to wait after the n-th send of a request.
func (r *roundTrip) timeout(d *Datagrams, n int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	rto := d.First
	if r.smooth > 0 {
		rto = max(d.Least, r.smooth+4*r.spread)
	}
	rto = max(rto, r.kept)
	for ; n > 1 && rto < d.Most; n-- {
		rto *= 2
	}
	return max(min(rto, d.Most), time.Millisecond)
}

// observe takes a sample.
func (r *roundTrip) observe(sample time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = 0
	if r.smooth == 0 {
		r.smooth, r.spread = max(sample, 1), sample/2
		return
	}
	r.spread += ((r.smooth - sample).Abs() - r.spread) / 4
	r.smooth = max(r.smooth+(sample-r.smooth)/8, 1)
}

// guess is told of a reply to a request that was repeated: no sample. If it came as long
// after the last send as replies do, datagrams were lost on the way, and nothing
// follows. Else the node is slower than its timeout. All its requests would be repeated
// and no sample ever be had, so all that time is kept for the next, until there is one.
// RFC 6298 keeps the doubled timeout either way; where many exchanges share a node that
// loses a third of them, it would never come down.
func (r *roundTrip) guess(sinceLast, sinceFirst time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.smooth == 0 || (sinceLast-r.smooth).Abs() > max(4*r.spread, r.smooth/4) {
		r.kept = sinceFirst
	}
}
