package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// target is a node as the kernel knows it.
type target struct {
	family int
	addr   sockaddr
	opts   holdfast.Socket
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
	giveUp := s.whole != 0 && l.now >= s.whole
	if !giveUp {
		l.p.guarded(func() { giveUp = s.search.more(s.lease.Node()) })
	}
	if !giveUp {
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
