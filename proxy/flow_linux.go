package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/proxyproto"
	"github.com/holdfast-net/holdfast/internal/sockopt"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// target is a node as the kernel knows it.
type target struct {
	family int
	addr   sockaddr
	opts   holdfast.Socket
}

// begin takes a connection that was let in.
func (l *loop) begin(f *front, fd int32, from netip.AddrPort, pass serve.Pass) {
	s := l.table.take()
	s.set, s.front, s.pass = l.p.set.Load(), f, pass
	s.fd[client] = fd
	s.from.Addr = from
	s.began = l.now
	s.ready[client] = canRead | canWrite // nobody has said that it is not
	if !f.unix {
		boundNotSent(fd)
	}
	if end := time.Duration(l.p.ending.Load()); end != 0 {
		l.leaveWithin(s, end-l.now)
	}
	trusted := s.set.readsHeader() && s.set.Proxy.Trusts(from.Addr())
	switch {
	case trusted:
		l.awaitHello(s)
	case s.set.readsHeader() && s.set.Proxy.Only:
		l.end(s, Denied, true)
	default:
		l.admit(s)
	}
}

// admit checks the client, whoever it is by now.
func (l *loop) admit(s *slot) {
	s.headerRead = true
	err := s.pass.Admit(s.from.Addr.Addr())
	if err == nil && s.front != nil && s.front.unix {
		err = s.pass.AdmitUser(func() (int, bool) {
			return sockopt.PeerUID(rawSocket(s.fd[client])), true // -1 is nobody
		})
	}
	if err != nil {
		last := s.set.Limits.RejectWith
		if errors.Is(err, serve.ErrTooMany) && len(last) > 0 {
			sysWrite(s.fd[client], last)
		}
		l.end(s, Denied, len(last) == 0)
		return
	}
	if s.set.sniffs {
		l.awaitHello(s)
		return
	}
	l.route(s, hello{})
}

// awaitHello waits for what a client, or the proxy before it, says first.
func (l *loop) awaitHello(s *slot) {
	s.stage = greeting
	if d := s.set.limits.Hello; d > 0 {
		s.limit = l.now + d
	}
	l.watch(s, client)
	l.schedule(s)
	if len(s.pend[client]) > 0 {
		l.greetWith(s)
	}
}

// greet reads a PROXY header or a ClientHello, which may come in any number of pieces.
func (l *loop) greet(s *slot) {
	for s.stage == greeting && s.ready[client]&canRead != 0 {
		b := s.pend[client]
		if len(b) >= maxHello {
			l.end(s, BadHello, true)
			return
		}
		b = slices.Grow(b, 512)
		n, e := sysRead(s.fd[client], b[len(b):min(cap(b), maxHello)])
		switch {
		case e == unix.EAGAIN:
			s.ready[client] &^= canRead
			return
		case e == unix.EINTR:
			continue
		case e != 0 || n == 0:
			l.end(s, BadHello, false)
			return
		}
		s.pend[client] = b[:len(b)+n]
		l.greetWith(s)
	}
}

func (l *loop) greetWith(s *slot) {
	if !s.headerRead {
		h, n, err := proxyproto.Parse(s.pend[client])
		switch {
		case err != nil, n > 0 && s.set.Proxy.Version != 0 && h.Version != s.set.Proxy.Version:
			l.end(s, BadHello, true)
		case n > 0:
			switch {
			case h.Local: // the connection is the proxy's own
			case h.Source.IsValid():
				s.from.Addr, s.to = h.Source, h.Destination
			default: // of a Unix socket
				s.from.Addr = netip.AddrPort{}
			}
			s.pend[client] = s.pend[client][n:]
			s.limit = 0
			l.admit(s)
		}
		return
	}
	h, done, err := parseHello(s.pend[client])
	switch {
	case err != nil:
		l.end(s, BadHello, true)
	case done:
		s.from.ServerName = h.name
		l.route(s, h)
	}
}

// route finds where a connection goes.
func (l *loop) route(s *slot, h hello) {
	s.limit = 0
	cluster := s.set.route(h.name, h.protocols)
	if cluster == nil {
		l.end(s, NoRoute, true)
		return
	}
	if !l.p.guarded(func() { s.search = s.set.search(cluster, s.from) }) {
		l.end(s, NoRoute, true)
		return
	}
	if d := s.set.limits.Connect; d > 0 {
		s.whole = l.now + d
	}
	l.dial(s)
}

// dial connects to the next node, until there is one to wait for.
func (l *loop) dial(s *slot) {
	for {
		lease, err := l.choose(s)
		switch {
		case errors.Is(err, errFull):
			l.queue(s)
			return
		case err != nil:
			l.end(s, NoBackend, true)
			return
		}
		t := l.target(lease)
		if t == nil { // it takes more than a connect
			lease.Done()
			l.giveAway(s)
			return
		}
		s.lease = lease
		l.counts.connects.Add(1)
		s.dialed = l.now
		fd, e := sysSocket(t.family, unix.SOCK_STREAM)
		if e == 0 {
			s.fd[backend] = fd
			t.prepare(fd)
			e = sysConnect(fd, &t.addr)
		}
		switch e {
		case 0:
			l.connected(s)
			return
		case unix.EINPROGRESS:
			l.awaitConnect(s)
			return
		}
		if !l.dialFailed(s, e) {
			return
		}
	}
}

// choose lets those who wait for a place come first.
func (l *loop) choose(s *slot) (lease holdfast.Lease, err error) {
	err = errNoAnswer
	l.p.guarded(func() {
		if s.waiter == nil {
			lease, err = l.p.inTurn(&s.search)
			return
		}
		lease, err = s.search.next()
		l.p.queueOf(s.search.cluster).looked(s.waiter, &s.search, err)
	})
	return lease, err
}

var errNoAnswer = errors.New("proxy: the policy panicked")

// target is how to connect to a node; nil is that it takes more than that.
func (l *loop) target(lease holdfast.Lease) *target {
	opts, plain := lease.Plain()
	if !plain {
		return nil
	}
	n := lease.Node()
	if t, ok := l.nodes[n]; ok {
		return t
	}
	if len(l.nodes) > 4096 {
		clear(l.nodes) // of nodes that are gone
	}
	t := newTarget(n, opts)
	l.nodes[n] = t
	return t
}

func newTarget(n *holdfast.Node, opts holdfast.Socket) *target {
	t := &target{opts: opts}
	switch network := n.Endpoint().Network; {
	case network == "unix":
		t.family = unix.AF_UNIX
		if !t.addr.setPath(n.Addr()) {
			return nil
		}
	case strings.HasPrefix(network, "tcp"):
		ap, err := netip.ParseAddrPort(n.Addr())
		if err != nil || ap.Addr().Zone() != "" {
			return nil
		}
		t.family = t.addr.setIP(ap, 0)
	default:
		return nil
	}
	return t
}

// prepare sets what must be set before the connect, or matters from the first byte.
func (t *target) prepare(fd int32) {
	if t.family == unix.AF_UNIX {
		return
	}
	boundNotSent(fd)
	if !t.opts.Nagle {
		sysSet(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if t.opts.RecvBuf > 0 {
		sysSet(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, int32(t.opts.RecvBuf))
	}
	if t.opts.SendBuf > 0 {
		sysSet(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, int32(t.opts.SendBuf))
	}
}

// tune sets the options that matter to connections that last.
func (l *loop) tune(s *slot) {
	if s.tuned || s.stage != relaying || l.now < s.opened+tuneAfter {
		return
	}
	s.tuned = true
	if s.lease.Node() == nil {
		return
	}
	t := l.target(s.lease)
	if t == nil || t.family == unix.AF_UNIX {
		return
	}
	k := t.opts.KeepAlive
	watchOver(s.fd[backend], k.Idle, k.Interval, k.Count, t.opts.UserTimeout)
}

func (l *loop) awaitConnect(s *slot) {
	s.stage = dialing
	s.watched[backend] = false
	l.watch(s, backend)
	s.limit = l.now + headStart
	if s.whole != 0 {
		s.limit = min(s.limit, s.whole)
	}
	l.schedule(s)
}

// late is called when a connect has had its head start, or its time.
func (l *loop) late(s *slot) {
	more := false
	over := s.whole != 0 && l.now >= s.whole
	if !over {
		l.p.guarded(func() { more = s.search.more(s.lease.Node()) })
	}
	if !over && !more {
		s.limit = s.whole // there is nobody else
		l.schedule(s)
		return
	}
	if l.dialFailed(s, unix.ETIMEDOUT) {
		l.dial(s)
	}
}

// dialed is called when a connect has come to something.
func (l *loop) dialed(s *slot, events uint32) {
	e := unix.Errno(0)
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		e = sysError(s.fd[backend])
	}
	switch {
	case e != 0:
		if l.dialFailed(s, e) {
			l.dial(s)
		}
	case events&unix.EPOLLOUT == 0:
	case l.toItself(s):
		if l.dialFailed(s, unix.ECONNREFUSED) {
			l.dial(s)
		}
	default:
		l.connected(s)
	}
}

// toItself reports whether a connect to a port of this host that nobody listens on has
// met itself: the kernel may choose that very port for it.
func (l *loop) toItself(s *slot) bool {
	t := l.nodes[s.lease.Node()]
	if t == nil || t.family == unix.AF_UNIX {
		return false
	}
	there := t.addr.addrPort()
	if there.Port() < lowestPort() || !there.Addr().IsLoopback() {
		return false
	}
	var here sockaddr
	return sysName(s.fd[backend], &here) == 0 && here.addrPort() == there
}

// lowestPort is the first that the kernel gives to who connects.
var lowestPort = sync.OnceValue(func() uint16 {
	var low, high uint16
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if n, _ := fmt.Sscan(string(b), &low, &high); err != nil || n < 1 {
		return 1024
	}
	return low
})

// dialFailed gives a node up; false is that it was the last one that there was time for.
func (l *loop) dialFailed(s *slot, e unix.Errno) bool {
	n := s.lease.Node()
	s.lease.Dialed(l.now-s.dialed, &net.OpError{Op: "dial", Net: n.Endpoint().Network, Err: os.NewSyscallError("connect", e)})
	l.counts.connectFailures.Add(1)
	s.search.failed(n)
	l.hangUp(s)
	s.limit = 0
	if s.whole != 0 && l.now >= s.whole {
		l.end(s, NoBackend, true)
		return false
	}
	return true
}

// hangUp gives up a connect, and the place at its node.
func (l *loop) hangUp(s *slot) {
	if s.fd[backend] >= 0 {
		sysClose(s.fd[backend])
		s.fd[backend], s.watched[backend], s.ready[backend] = -1, false, 0
	}
	lease := s.lease
	s.lease = holdfast.Lease{}
	l.p.release(s.set, s.search.cluster, lease)
}

// connected begins the relay.
func (l *loop) connected(s *slot) {
	s.lease.Dialed(l.now-s.dialed, nil)
	if n := len(s.search.down); n > 0 {
		l.counts.hidden.Add(uint64(n))
	}
	if s.set.Backends.Header != 0 {
		h, err := l.header(s)
		if err != nil {
			l.end(s, BadHello, true)
			return
		}
		s.pend[client] = append(h, s.pend[client]...)
	}
	s.stage, s.limit = relaying, 0
	s.relay.begin(&s.set.limits, l.now)
	if len(s.pend[client]) > 0 {
		s.waits(client, true, l.now)
	}
	s.ready[backend] |= canRead | canWrite
	l.watch(s, backend)
	l.watch(s, client)
	r := s.ref()
	if l.pump(s); l.find(r) != nil {
		l.schedule(s)
	}
}

func (l *loop) header(s *slot) ([]byte, error) {
	if !s.to.IsValid() {
		var a sockaddr
		if sysName(s.fd[client], &a) == 0 {
			s.to = a.addrPort()
		}
	}
	return header(s.set.Backends.Header, s.from.Addr, s.to, nil, s.from.ServerName)
}

// turns bounds what one direction may do before others have theirs.
const turns = 8

// pump carries what can be carried, both ways, and sees what that has come to.
func (l *loop) pump(s *slot) {
	pending := s.pending
	more := l.carry(s, client)
	if l.carry(s, backend) || s.reset[client] && s.flows[client] == flowing && !s.pending[client] {
		more = true
	}
	for _, from := range [...]side{client, backend, client} {
		switch s.next(from) {
		case shutWrite:
			sysShutdown(s.fd[from.other()])
			s.passedOn(from)
			l.schedule(s)
		case lingerReset:
			l.linger(s, from.other())
			return
		case closeBoth:
			l.end(s, s.why, false)
			return
		case resetBoth:
			l.end(s, s.why, true)
			return
		}
	}
	if pending != s.pending {
		l.schedule(s)
	}
	if more && !s.again {
		s.again = true
		l.again = append(l.again, s.ref())
	}
}

// carry moves what one side sends; true is that there is more.
func (l *loop) carry(s *slot, from side) (more bool) {
	to := from.other()
	if !l.flush(s, from) {
		return false
	}
	for turn := 0; s.flows[from] == flowing && s.ready[from]&canRead != 0; turn++ {
		if turn == turns {
			return true
		}
		if s.full[from] >= promoteAfter && l.promote(s, from) {
			if !l.splice(s, from) {
				return false
			}
			continue
		}
		n, e := sysRead(s.fd[from], l.buf)
		switch {
		case e == unix.EAGAIN:
			s.ready[from] &^= canRead
			s.full[from] = 0
			return false
		case e == unix.EINTR:
			continue
		case e != 0:
			s.readFailed(from, e)
			return false
		case n == 0:
			s.eof(from)
			return false
		case n == len(l.buf):
			s.full[from] = min(s.full[from]+1, promoteAfter)
		default:
			s.full[from] = 0
			if s.ready[from]&ending == 0 {
				s.ready[from] &^= canRead // what comes later is another event
			}
		}
		m, e := sysWrite(s.fd[to], l.buf[:n])
		if e != 0 {
			m = 0
			if e != unix.EAGAIN && e != unix.EINTR {
				l.writeFailed(s, to, e)
				return false
			}
		}
		l.took(s, from, m)
		if m < n {
			s.ready[to] &^= canWrite
			s.pend[from] = append(make([]byte, 0, n-m), l.buf[m:n]...)
			s.waits(from, true, l.now)
			return false
		}
	}
	return false
}

// writeFailed notes that a side takes nothing any more, and reads on what it said before.
func (l *loop) writeFailed(s *slot, to side, e unix.Errno) {
	s.writeFailed(to, e)
	s.ready[to] |= canRead | ending
}

func (l *loop) took(s *slot, from side, n int) {
	s.moved(from, n, l.now)
	l.counts.bytes[from].Add(uint64(n))
	if s.lease.Node() == nil {
		return
	}
	if from == client {
		s.lease.Transferred(int64(n), 0)
	} else {
		s.lease.Transferred(0, int64(n))
	}
}

// flush writes what is pending; true is that nothing is left.
func (l *loop) flush(s *slot, from side) bool {
	to := from.other()
	if s.flows[from] == broken && !s.reset[from] {
		l.discard(s, from)
		return true
	}
	for len(s.pend[from]) > 0 && s.ready[to]&canWrite != 0 {
		n, e := sysWrite(s.fd[to], s.pend[from])
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			s.ready[to] &^= canWrite
			return false
		case e != 0:
			l.writeFailed(s, to, e)
			l.discard(s, from)
			return false
		}
		l.took(s, from, n)
		s.pend[from] = s.pend[from][n:]
	}
	if len(s.pend[from]) > 0 {
		return false
	}
	s.pend[from] = nil
	if s.pipe[from] != nil && !l.spliceOut(s, from) {
		return false
	}
	s.waits(from, false, l.now)
	return true
}

// discard drops what nobody wants any more.
func (l *loop) discard(s *slot, from side) {
	s.pend[from] = nil
	l.pipes.drop(s.pipe[from])
	s.pipe[from] = nil
	s.waits(from, false, l.now)
}

// linger resets a side when it has taken what was sent to it. The other is gone.
func (l *loop) linger(s *slot, survivor side) {
	dead := survivor.other()
	sysClose(s.fd[dead])
	s.fd[dead], s.watched[dead] = -1, false
	if sysUnsent(s.fd[survivor]) == 0 {
		l.end(s, s.why, true)
		return
	}
	s.stage, s.closing = lingering, l.now
	l.dying = append(l.dying, s.ref())
	l.schedule(s)
}

// lookAgain is how often it is asked whether the last bytes were taken.
const lookAgain = 5 * time.Millisecond

// bury ends those whose last bytes were taken.
func (l *loop) bury() {
	if len(l.dying) == 0 || l.now < l.buried+lookAgain {
		return
	}
	l.buried = l.now
	l.dying = slices.DeleteFunc(l.dying, func(r ref) bool {
		s := l.find(r)
		if s == nil || s.stage != lingering {
			return true
		}
		if sysUnsent(s.fd[client])+sysUnsent(s.fd[backend]) > 0 {
			return false
		}
		l.end(s, s.why, true)
		return true
	})
}

// queue waits for a place at a backend.
func (l *loop) queue(s *slot) {
	r := s.ref()
	if s.waiter == nil {
		s.waiter = &waiter{wake: func() {
			l.post(func() {
				if s := l.find(r); s != nil && s.stage == queueing {
					s.search.again(l.p.maxEach())
					s.stage, s.limit = dialing, 0
					l.counts.queued.Add(-1)
					if d := s.set.limits.Connect; d > 0 {
						s.whole = l.now + d
					}
					l.dial(s)
				}
			})
		}}
		if d := s.set.Backends.QueueTime; d > 0 {
			s.waitEnd = l.now + d
		}
	}
	s.limit = s.waitEnd // of all its waits
	q := l.p.queueOf(s.search.cluster)
	if !q.enter(s.waiter, s.set.Backends.Queue) {
		l.end(s, QueueFull, true)
		return
	}
	s.stage = queueing
	l.counts.queued.Add(1)
	l.watch(s, client)
	l.schedule(s)
}

func (l *loop) unqueue(s *slot) {
	l.counts.queued.Add(-1)
	if q := l.p.queueOf(s.search.cluster); !q.leave(s.waiter) {
		q.next() // it was called, and goes
	}
}

// giveAway passes a connection on to goroutines: its backend takes more than a socket.
func (l *loop) giveAway(s *slot) {
	l.unwatch(s, client)
	f := os.NewFile(uintptr(s.fd[client]), "client")
	conn, err := net.FileConn(f)
	f.Close()
	s.fd[client] = -1
	if err != nil {
		l.end(s, NoBackend, true)
		return
	}
	v, early, to, pass := s.visit, s.pend[client], s.to, s.pass
	s.pass, s.front = serve.Pass{}, nil
	l.p.adopt(conn, v, early, to, pass) // and then forget: a Shutdown must see it here or there
	l.forget(s)
}
