package proxy

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-net/holdfast/internal/proxyproto"
	"github.com/holdfast-net/holdfast/internal/sockopt"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// begin takes a connection that was let in.
func (l *loop) begin(f *front, fd int32, from netip.AddrPort, pass serve.Pass) {
	s := l.table.take()
	s.set, s.front, s.pass = l.p.set.Load(), f, pass
	s.fd[client] = fd
	s.from.Addr = from
	s.began = l.now
	s.ready[client] = canRead | canWrite // nobody has said that it is not
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

// tune sets the options that matter to connections that last.
func (l *loop) tune(s *slot) {
	if s.tuned || s.stage != relaying || l.now < s.opened+tuneAfter {
		return
	}
	s.tuned = true
	l.bound(s, client)
	l.bound(s, backend)
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

// bound limits what the kernel keeps for a side, once there is reason to: much comes for
// it at once, or it stays.
func (l *loop) bound(s *slot, which side) {
	if !s.bounded[which] {
		s.bounded[which] = true
		boundNotSent(s.fd[which])
	}
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
	s.ready[backend] |= canWrite // what it says first is an event
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
			l.bound(s, to)
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
