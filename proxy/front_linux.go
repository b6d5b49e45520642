package proxy

import (
	"cmp"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// front is a listener that the event loops accept from.
type front struct {
	ln    net.Listener
	fd    int32 // a duplicate: closing ln must not put another file in its place
	index int
	unix  bool

	may   atomic.Bool  // accept: the process is not being succeeded
	pause atomic.Int64 // after the last failed accept; 0 when it went well
	looks atomic.Bool  // somebody is parked, and it is looked from time to time whether there is room

	mu     sync.Mutex
	holder *loop    // the one that accepts; nil while none does
	parked []parked // accepted, and there is no room for them yet
	logged time.Time
	silent int
	spare  *os.File // open for nothing: room for one accept when there are no files
}

// parked is a connection that waits for the policy serve.Wait.
type parked struct {
	fd   int32
	from netip.AddrPort
}

// front makes a listener one of the loops', if it can be.
func (ls *loops) front(ln net.Listener) (*front, bool) {
	if len(ls.all) == 0 {
		return nil, false
	}
	fd, ok := socketOf(ln)
	if !ok {
		return nil, false
	}
	f := &front{ln: ln, fd: int32(fd), unix: ln.Addr().Network() == "unix"}
	f.spare, _ = os.Open(os.DevNull)
	f.tune(ls.p.set.Load().Socket)
	ls.mu.Lock()
	defer ls.mu.Unlock()
	f.index = len(ls.fronts)
	ls.fronts = append(ls.fronts, f)
	return f, true
}

// notSent bounds what the kernel keeps for a peer that does not read, over what is under
// way to it: it would grow to several megabytes for each, and the memory is all connections'
// own. It also says when a socket takes more, which is when half of it has left: one that is
// read slower than that in Timeouts.Write (17 KB/s by default) seems to take nothing. With
// less, large streams pay for it: 0.40 s of CPU for a gigabyte with 128 KiB, where it is
// 0.29 with this, and 0.24 without. A listener does not hand it down.
const notSent = 1 << 20

func boundNotSent(fd int32) { sysSet(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSent) }

// tune sets the options that connections inherit from their listener.
func (f *front) tune(o serve.Socket) {
	if f.unix {
		return
	}
	sysSet(f.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, btoi(!o.Nagle))
	watchOver(f.fd, o.KeepAlive, o.KeepAliveInterval, o.KeepAliveCount, o.UserTimeout)
	if o.RecvBuf > 0 {
		sysSet(f.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, int32(o.RecvBuf))
	}
	if o.SendBuf > 0 {
		sysSet(f.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, int32(o.SendBuf))
	}
}

// watchOver sets what finds a peer that is gone, or takes nothing: 0 is the default,
// negative leaves it to the system, and without idle there is no keepalive.
func watchOver(fd int32, idle, interval time.Duration, count int, user time.Duration) {
	sysSet(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, btoi(idle >= 0))
	if idle >= 0 {
		sysSet(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds(cmp.Or(idle, 15*time.Second)))
		if d := cmp.Or(interval, 5*time.Second); d > 0 {
			sysSet(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, seconds(d))
		}
		if n := cmp.Or(count, 3); n > 0 {
			sysSet(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, int32(n))
		}
	}
	if d := cmp.Or(user, 30*time.Second); d > 0 {
		sysSet(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int32(d.Milliseconds()))
	}
}

// tune applies options that were changed: connections that come from now on have them.
func (ls *loops) tune(o serve.Socket) {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	for _, f := range ls.fronts {
		f.mu.Lock()
		if f.fd >= 0 {
			f.tune(o)
		}
		f.mu.Unlock()
	}
}

func btoi(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

// seconds rounds up: 0 would be an error.
func seconds(d time.Duration) int32 { return int32((d + time.Second - 1) / time.Second) }

func (ls *loops) frontAt(i int) *front {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	if i >= len(ls.fronts) {
		return nil
	}
	return ls.fronts[i]
}

// stopAccepting returns when no loop accepts any more.
func (ls *loops) stopAccepting() {
	ls.mu.RLock()
	fronts := slices.Clone(ls.fronts)
	ls.mu.RUnlock()
	for _, f := range fronts {
		f.accepting(ls, false)
	}
}

// accepting lets the loops accept, or sees to it that none does.
func (f *front) accepting(ls *loops, may bool) {
	f.may.Store(may)
	if may {
		f.grant(ls.least())
		return
	}
	f.grant(nil)
	ls.each(func(*loop) {}) // whatever turn it was in is over
}

// serve accepts from a front until the Proxy is closed, or its listener.
func (ls *loops) serve(f *front) error {
	accepting := func(may bool) { f.accepting(ls, may) }
	if ln, ok := f.ln.(interface{ Accepting(func(bool)) }); ok {
		ln.Accepting(accepting)
	} else {
		accepting(true)
	}
	err := f.wait(ls.p.closed)
	accepting(false)
	f.end(ls)
	f.ln.Close()
	return err
}

// wait returns when the Proxy is closed, or somebody else has closed the listener.
func (f *front) wait(closed <-chan struct{}) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-closed:
			return ErrClosed
		case <-tick.C:
			if isClosed(f.ln) {
				return &net.OpError{Op: "accept", Net: f.ln.Addr().Network(), Addr: f.ln.Addr(), Err: net.ErrClosed}
			}
		}
	}
}

// isClosed takes no file to find out: there may be none left.
func isClosed(ln net.Listener) bool {
	raw, err := ln.(syscall.Conn).SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}

// grant makes one loop the one that hears of connections; nil is none. Were it all of
// them, all would wake for each.
func (f *front) grant(l *loop) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.may.Load() {
		l = nil
	}
	if f.holder == l || f.fd < 0 {
		return
	}
	if f.holder != nil {
		sysWatch(f.holder.ep, unix.EPOLL_CTL_DEL, f.fd, &unix.EpollEvent{})
	}
	if f.holder = l; l == nil {
		return
	}
	unix.SetNonblock(int(f.fd), true) // whoever shares the socket can change that, and a loop must not wait
	if e := sysWatch(l.ep, unix.EPOLL_CTL_ADD, f.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(frontEvent - f.index)}); e != 0 {
		l.p.log.Error("proxy: cannot watch a listener", "addr", f.ln.Addr(), "err", e)
		f.holder = nil
		l.afterwards(lastPause, func() { f.grant(l) })
	}
}

// end closes the front. Who waits for room is let in: the listener's next owner does not
// know it, but can take it over.
func (f *front) end(ls *loops) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.parked {
		if l := ls.least(); !l.post(func() { l.letIn(f, c) }) {
			sysClose(c.fd)
		}
	}
	f.parked = nil
	sysClose(f.fd)
	f.fd = -1
	if f.spare != nil {
		f.spare.Close()
	}
}

// acceptBatch bounds what is accepted in one turn, so that those who are there are
// served too.
const acceptBatch = 64

// accept takes what has come.
func (l *loop) accept(f *front) {
	for range acceptBatch {
		if !f.may.Load() {
			return
		}
		var from sockaddr
		fd, e := sysAccept(f.fd, &from)
		switch e {
		case 0:
			if f.pause.Load() != 0 {
				f.pause.Store(0)
			}
			l.counts.accepted.Add(1)
			if !l.place(f, fd, from.addrPort()) {
				return
			}
			if least := l.p.loops.least(); l.ahead(least) {
				f.grant(least)
				return
			}
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED:
		default:
			l.acceptFailed(f, e)
			return
		}
	}
}

// acceptFailed lets a front rest, ever longer. Which errors pass is not asked: all do, or
// the pause makes them harmless. Without files it closes the next connection, so that its
// client learns at once.
func (l *loop) acceptFailed(f *front, e unix.Errno) {
	f.mu.Lock()
	pause := min(max(2*time.Duration(f.pause.Load()), firstPause), lastPause)
	f.pause.Store(int64(pause))
	if now := time.Now(); now.Sub(f.logged) >= time.Second {
		l.p.log.Error("proxy: accept", "addr", f.ln.Addr(), "err", e, "unlogged", f.silent)
		f.logged, f.silent = now, 0
	} else {
		f.silent++
	}
	if (e == unix.EMFILE || e == unix.ENFILE) && f.spare != nil {
		f.spare.Close()
		var from sockaddr
		if fd, e := sysAccept(f.fd, &from); e == 0 {
			sysClose(fd)
		}
		f.spare, _ = os.Open(os.DevNull)
	} else if f.spare == nil {
		f.spare, _ = os.Open(os.DevNull)
	}
	f.mu.Unlock()
	f.grant(nil)
	l.afterwards(pause, func() { f.grant(l) })
}

// afterwards posts f in a while.
func (l *loop) afterwards(d time.Duration, f func()) {
	time.AfterFunc(d, func() { l.post(f) })
}

// place begins a connection. It is false if there is no room and the policy is to wait.
func (l *loop) place(f *front, fd int32, from netip.AddrPort) bool {
	var pass serve.Pass
	if err := l.p.gate.Enter(&pass); err != nil {
		if l.p.set.Load().Limits.Over == serve.Wait {
			f.park(l, parked{fd, from})
			return false
		}
		l.refuse(fd)
		return true
	}
	l.open.Add(1)
	l.begin(f, fd, from, pass)
	return true
}

// letIn begins a connection for which there is no room.
func (l *loop) letIn(f *front, c parked) {
	var pass serve.Pass
	l.p.gate.EnterAnyway(&pass, netip.Addr{}) // under its address it is admitted as any other
	l.open.Add(1)
	l.begin(f, c.fd, c.from, pass)
}

// ahead reports whether l has so many connections more than another that the next is for
// that one. Of a few each counts; of many a part may differ, for whoever is to accept
// next comes to it after what it is at, and those who connect wait as long.
func (l *loop) ahead(least *loop) bool {
	mine, theirs := l.open.Load(), least.open.Load()
	return mine-theirs > (mine+theirs)/8
}

// least is the loop that has the fewest connections.
func (ls *loops) least() *loop {
	return slices.MinFunc(ls.all, func(a, b *loop) int { return int(a.open.Load() - b.open.Load()) })
}

// refuse closes a connection that is one too many.
func (l *loop) refuse(fd int32) {
	if last := l.p.set.Load().Limits.RejectWith; len(last) > 0 {
		sysWrite(fd, last)
		sysShutdown(fd)
	} else {
		sysNoLinger(fd)
	}
	sysClose(fd)
	l.counts.ends[Denied].Add(1)
}

// park keeps a connection until there is room; no other is accepted meanwhile.
func (f *front) park(l *loop, c parked) {
	f.mu.Lock()
	if f.fd < 0 { // it has ended
		f.mu.Unlock()
		l.letIn(f, c)
		return
	}
	f.parked = append(f.parked, c)
	looked := f.looks.Swap(true)
	f.mu.Unlock()
	f.grant(nil)
	if !looked {
		l.afterwards(every, func() { f.unpark(l) })
	}
}

// unpark accepts again, or looks again later.
func (f *front) unpark(l *loop) {
	f.retry(l)
	f.mu.Lock()
	looks := len(f.parked) > 0
	f.looks.Store(looks)
	f.mu.Unlock()
	if looks {
		l.afterwards(every, func() { f.unpark(l) })
	} else {
		f.grant(l)
	}
}

// retry lets in who is parked, if there is room, and accepts again when nobody is.
func (f *front) retry(l *loop) {
	f.mu.Lock()
	if len(f.parked) == 0 {
		idle := f.holder == nil
		f.mu.Unlock()
		if idle {
			f.grant(l)
		}
		return
	}
	c := f.parked[0]
	f.parked = f.parked[1:]
	f.mu.Unlock()
	l.place(f, c.fd, c.from)
}
