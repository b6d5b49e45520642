package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/serve"
)

// visit is what is known of a connection besides its sockets.
type visit struct {
	set    *settings
	search search
	lease  holdfast.Lease
	from   Client
	began  time.Duration // clock()
}

// pair is a connection that is relayed by two goroutines.
type pair struct {
	p *Proxy
	visit
	ends    [2]end
	to      netip.AddrPort       // where the client connected to
	tls     *tls.ConnectionState // of the client; nil is plaintext
	cluster *holdfast.Cluster
	early   []byte // what the client sent before a backend was chosen
	header  []byte // what backends are told of it

	mu    sync.Mutex
	relay relay
	over  order // why both ends were stopped; carryOn while they are not
	timer *time.Timer

	finished bool // there is nothing to look after
}

// end is one end of a pair.
type end struct {
	net.Conn          // what is read and written
	socket   net.Conn // below TLS
}

// serveConn is the life of a connection that has goroutines.
func (p *Proxy) serveConn(ctx context.Context, c *serve.Conn) error {
	pr := &pair{p: p, visit: visit{set: p.set.Load(), began: p.clock(), from: Client{Addr: addrPort(c.RemoteAddr())}}}
	pr.ends[client], pr.to = end{c, c.NetConn()}, addrPort(c.LocalAddr())
	if state, ok := c.ConnectionState(); ok {
		pr.tls = &state
	}
	pr.serve(ctx)
	return nil
}

// adopt serves a connection that an event loop could not: its backend takes more than a
// socket. It was admitted, and what it had to say first is read.
func (p *Proxy) adopt(conn net.Conn, v visit, early []byte, to netip.AddrPort, pass serve.Pass) {
	if !to.IsValid() {
		to = addrPort(conn.LocalAddr())
	}
	pr := &pair{p: p, visit: v, early: early, to: to, cluster: v.search.cluster}
	pr.ends[client] = end{conn, conn}
	p.guests.Add(1)
	p.adopted.Go(func() {
		defer p.guests.Add(-1)
		defer pass.Leave()
		defer conn.Close()
		p.guarded(func() { pr.serve(p.base) })
	})
}

func (pr *pair) serve(ctx context.Context) {
	why := pr.run(ctx)
	pr.p.ended(&pr.visit, why, pr.relay.bytes)
}

func (pr *pair) run(ctx context.Context) Reason {
	if pr.cluster == nil {
		if why := pr.route(); why != Open {
			pr.abort(client)
			return why
		}
		pr.search = pr.set.search(pr.cluster, pr.from)
	}
	if v := pr.set.Backends.Header; v != 0 { // now: that it has none is not a backend's fault
		var err error
		if pr.header, err = header(v, pr.from.Addr, pr.to, pr.tls, pr.from.ServerName); err != nil {
			pr.abort(client)
			return BadHello
		}
	}
	conn, why := pr.connect(ctx)
	if why != Open {
		pr.abort(client)
		return why
	}
	defer pr.p.release(pr.set, pr.cluster, pr.lease)
	pr.ends[backend] = end{conn, conn.NetConn()}
	defer conn.Close()
	return pr.carry()
}

// route finds where the connection goes. It reads what the client's TLS asks for, if
// that matters.
func (pr *pair) route() Reason {
	var h hello
	if pr.tls != nil {
		h.name = pr.tls.ServerName
		if pr.tls.NegotiatedProtocol != "" {
			h.protocols = []string{pr.tls.NegotiatedProtocol}
		}
	} else if pr.set.sniffs {
		var err error
		if h, err = pr.sniff(); err != nil {
			return BadHello
		}
	}
	pr.from.ServerName = h.name
	if pr.cluster = pr.set.route(h.name, h.protocols); pr.cluster == nil {
		return NoRoute
	}
	return Open
}

// sniff reads the ClientHello and keeps it.
func (pr *pair) sniff() (hello, error) {
	c := pr.ends[client]
	if d := pr.set.limits.Hello; d > 0 {
		c.SetReadDeadline(time.Now().Add(d))
		defer c.SetReadDeadline(time.Time{})
	}
	for {
		if h, done, err := parseHello(pr.early); done || err != nil {
			return h, err
		}
		if len(pr.early) >= maxHello {
			return hello{}, errHello
		}
		pr.early = slices.Grow(pr.early, 512)
		n, err := c.Read(pr.early[len(pr.early):min(cap(pr.early), maxHello)])
		pr.early = pr.early[:len(pr.early)+n]
		if err != nil && n == 0 {
			return hello{}, err
		}
	}
}

// connect finds a backend. The time in the queue is not that of connecting.
func (pr *pair) connect(base context.Context) (*holdfast.Conn, Reason) {
	ctx, cancel := pr.limitConnect(base)
	defer func() { cancel() }()
	var queueEnd time.Time
	for {
		lease, err := pr.p.inTurn(&pr.search)
		if errors.Is(err, errFull) {
			if queueEnd.IsZero() {
				queueEnd = pr.set.queueEnd()
			}
			var why Reason
			if lease, why = pr.queue(base, queueEnd); why != Open {
				return nil, why
			}
			err = nil
			cancel()
			ctx, cancel = pr.limitConnect(base)
		}
		if err != nil {
			return nil, NoBackend
		}
		conn, err := pr.try(ctx, lease)
		if err == nil {
			pr.lease = lease
			pr.p.counts.hidden.Add(uint64(len(pr.search.down)))
			return conn, Open
		}
		pr.p.counts.connectFailures.Add(1)
		pr.search.failed(lease.Node())
		pr.p.release(pr.set, pr.cluster, lease)
		if ctx.Err() != nil {
			return nil, NoBackend
		}
	}
}

func (pr *pair) limitConnect(ctx context.Context) (context.Context, context.CancelFunc) {
	if d := pr.set.limits.Connect; d > 0 {
		return context.WithTimeout(ctx, d)
	}
	return context.WithCancel(ctx)
}

// try connects to one node, and not for long if there is another.
func (pr *pair) try(ctx context.Context, lease holdfast.Lease) (*holdfast.Conn, error) {
	pr.p.counts.connects.Add(1)
	whole, start := ctx, pr.p.clock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	others := pr.search // as it is now: the timer may still ask when this one has failed
	others.tried = slices.Clone(others.tried)
	late := time.AfterFunc(headStart, func() {
		pr.p.guarded(func() {
			if others.more(lease.Node()) { // asked only now, for that is a turn of the policy
				cancel()
			}
		})
	})
	defer late.Stop()
	conn, err := lease.Dial(ctx, pr.greet)
	if err != nil && whole.Err() == nil && ctx.Err() != nil {
		lease.Dialed(pr.p.clock()-start, context.DeadlineExceeded) // it had its time
	}
	if err == nil {
		conn.Retire() // how it ends is the client's doing too: the node is not to blame
	}
	return conn, err
}

// greet sends the PROXY header.
func (pr *pair) greet(_ context.Context, conn *holdfast.Conn) error {
	if len(pr.header) == 0 {
		return nil
	}
	_, err := conn.Write(pr.header)
	return err
}

// queue waits for a place.
func (pr *pair) queue(ctx context.Context, end time.Time) (holdfast.Lease, Reason) {
	if !end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	q, woken := pr.p.queueOf(pr.cluster), make(chan struct{}, 1)
	w := &waiter{wake: func() { woken <- struct{}{} }}
	pr.p.counts.queued.Add(1)
	defer pr.p.counts.queued.Add(-1)
	for {
		if !q.enter(w, pr.set.Backends.Queue) {
			return holdfast.Lease{}, QueueFull
		}
		pr.search.again(pr.p.maxEach())
		lease, err := pr.search.next()
		q.looked(w, &pr.search, err)
		if !errors.Is(err, errFull) {
			if !q.leave(w) {
				q.next() // it was called for this one
			}
			if err != nil {
				return lease, NoBackend
			}
			return lease, Open
		}
		select {
		case <-woken:
		case <-ctx.Done():
			if !q.leave(w) {
				q.next()
			}
			return holdfast.Lease{}, QueueTimeout
		}
	}
}

// carry relays until both ends are done.
func (pr *pair) carry() Reason {
	p := pr.p
	pr.mu.Lock()
	for _, e := range pr.ends {
		bounded(e.socket)
	}
	pr.relay.begin(&pr.set.limits, p.clock())
	pr.timer = time.AfterFunc(pr.wait(), pr.tick)
	pr.mu.Unlock()
	p.enlist(pr)
	var answers sync.WaitGroup
	answers.Go(func() { pr.pump(backend) })
	pr.pump(client)
	answers.Wait()
	p.delist(pr)

	pr.mu.Lock()
	pr.finished = true
	pr.timer.Stop()
	r, over := pr.relay, pr.over
	pr.mu.Unlock()
	switch {
	case over == resetBoth || r.reset[client] && r.reset[backend]:
		pr.abort(client)
		pr.abort(backend)
	case r.reset[client]:
		pr.abortInPeace(backend)
	case r.reset[backend]:
		pr.abortInPeace(client)
	}
	return r.why
}

// pump carries what one side sends.
func (pr *pair) pump(from side) {
	if from == client && len(pr.early) > 0 {
		early := pr.early
		pr.early = nil
		if !pr.pass(from, early) {
			return
		}
	}
	src := newSource(pr.ends[from].Conn)
	defer src.done(0)
	for {
		b, err := src.read()
		if src.raw != nil && from == backend {
			pr.lease.Transferred(0, int64(len(b))) // its Conn did not see them
		}
		ok := len(b) == 0 || pr.pass(from, b)
		src.done(len(b))
		switch {
		case !ok:
			return
		case err == nil:
			continue
		case pr.unwanted(from):
		case isEnd(err):
			pr.endFlow(from)
		default:
			pr.fail(from, err)
		}
		return
	}
}

// unwanted reports whether there is nobody for what a side sends.
func (pr *pair) unwanted(from side) bool {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.over != carryOn || pr.relay.flows[from] == broken && !pr.relay.reset[from]
}

// pass gives the other side what one has sent.
func (pr *pair) pass(from side, b []byte) bool {
	pr.mu.Lock()
	if pr.relay.flows[from] != flowing {
		pr.mu.Unlock()
		return false
	}
	pr.relay.waits(from, true, pr.p.clock())
	pr.mu.Unlock()
	to := from.other()
	n, err := pr.ends[to].Write(b)
	pr.mu.Lock()
	pr.relay.moved(from, n, pr.p.clock())
	pr.relay.waits(from, false, 0)
	pr.mu.Unlock()
	pr.p.counts.bytes[from].Add(uint64(n))
	if err != nil {
		pr.refuse(to, err)
		return false
	}
	return true
}

// endFlow passes the end of a stream on.
func (pr *pair) endFlow(from side) {
	pr.mu.Lock()
	if pr.over != carryOn {
		pr.mu.Unlock()
		return
	}
	pr.relay.eof(from)
	pass := pr.relay.next(from) == shutWrite
	if pass {
		pr.relay.passedOn(from)
	}
	pr.rearmLocked()
	pr.mu.Unlock()
	if !pass {
		return
	}
	half, ok := pr.ends[from.other()].Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		pr.stop(closeBoth, Open) // what has no half-close ends whole
	}
}

// fail notes a broken side. What the other sends is for nobody.
func (pr *pair) fail(s side, err error) {
	if pr.noteFailure(func() { pr.relay.readFailed(s, err) }) {
		pr.ends[s.other()].SetReadDeadline(time.Unix(1, 0))
	}
}

// refuse notes a side that takes nothing any more. What it sent before is still carried.
func (pr *pair) refuse(s side, err error) {
	if !pr.noteFailure(func() { pr.relay.writeFailed(s, err) }) {
		return
	}
	pr.ends[s.other()].SetReadDeadline(time.Unix(1, 0))
	if _, tcp := pr.ends[s].socket.(*net.TCPConn); !tcp || isTLS(pr.ends[s].Conn) { // below which the socket may be well
		pr.ends[s].SetReadDeadline(time.Now().Add(pr.set.limits.Linger))
	}
}

func (pr *pair) noteFailure(note func()) bool {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if pr.over != carryOn {
		return false
	}
	note()
	return true
}

func isTLS(c net.Conn) bool {
	s, ok := c.(interface {
		ConnectionState() (tls.ConnectionState, bool)
	})
	if !ok {
		return false
	}
	_, secure := s.ConnectionState()
	return secure
}

// stop ends both sides. The first to say so says how.
func (pr *pair) stop(how order, why Reason) {
	pr.mu.Lock()
	first := pr.over == carryOn
	if first {
		pr.over = how
		if why != Open {
			pr.relay.because(why)
		}
	}
	pr.mu.Unlock()
	if first { // they may be the user's: not under the lock
		for i := range pr.ends {
			pr.ends[i].SetDeadline(time.Unix(1, 0))
		}
	}
}

// tick is called when a limit may have come.
func (pr *pair) tick() {
	pr.mu.Lock()
	o := pr.relay.expire(pr.p.clock())
	pr.rearmLocked()
	pr.mu.Unlock()
	if o == closeBoth || o == resetBoth {
		pr.stop(o, Open)
	}
}

func (pr *pair) rearmLocked() {
	if !pr.finished {
		pr.timer.Reset(pr.wait())
	}
}

// wait is how long no limit comes. It looks again at times, for what began to wait
// after the timer was set.
func (pr *pair) wait() time.Duration {
	look := pr.set.limits.Write / 4
	if look == 0 {
		look = time.Hour
	}
	if due := pr.relay.due(); due > 0 {
		look = min(look, due-pr.p.clock())
	}
	return max(look, time.Millisecond)
}

// endWithin ends the connection at a random moment within d, when it is quiet then.
func (pr *pair) endWithin(d time.Duration) {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	pr.relay.leaveSometime(pr.p.clock(), d)
	pr.rearmLocked()
}

func (pr *pair) down(d Down) {
	if d == Sever {
		pr.stop(resetBoth, BackendDown)
		return
	}
	pr.mu.Lock()
	defer pr.mu.Unlock()
	pr.relay.leaveBackend(pr.p.clock())
	pr.rearmLocked()
}

func (pr *pair) cut() { pr.stop(resetBoth, Cut) }

// abort resets one side.
func (pr *pair) abort(s side) {
	if socket, ok := pr.ends[s].socket.(interface{ SetLinger(int) error }); ok {
		socket.SetLinger(0)
	}
	pr.ends[s].socket.Close()
}

// abortInPeace resets a side when it has what was sent to it.
func (pr *pair) abortInPeace(s side) {
	limit := pr.set.limits.Linger
	end := time.Now().Add(limit)
	for wait := time.Millisecond; pr.p.base.Err() == nil && (limit == 0 || time.Now().Before(end)) && unsent(pr.ends[s].socket) > 0; wait = min(2*wait, 50*time.Millisecond) {
		time.Sleep(wait)
	}
	pr.abort(s)
}

func (p *Proxy) enlist(pr *pair) {
	p.mu.Lock()
	p.pairs[pr] = struct{}{}
	p.mu.Unlock()
	if p.base.Err() != nil {
		pr.cut()
	}
	if end := time.Duration(p.ending.Load()); end != 0 {
		pr.endWithin(end - p.clock())
	}
}

func (p *Proxy) delist(pr *pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, pr)
}

func (s *settings) search(c *holdfast.Cluster, from Client) search {
	return search{cluster: c, key: s.Key(from), max: s.maxEach()}
}

func (s *settings) maxEach() int { return max(s.Backends.Max, 0) }

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ap := tcp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
