package proxy

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// loop is an event loop: one goroutine that relays the plain streams it accepted. All
// that is its own is touched by nobody else; others post.
type loop struct {
	poller
	p      *Proxy
	now    time.Duration
	table  table
	wheel  wheel
	buf    []byte
	again  []ref         // slots that had more to do than their turn allows
	dying  []ref         // slots that wait for the last bytes to be taken
	buried time.Duration // when those were looked at
	pipes  pipes
	nodes  map[*holdfast.Node]*target
	counts counters
	open   atomic.Int64
	over   bool
	done   chan struct{}
}

// slot is a connection of an event loop.
type slot struct {
	relay
	visit
	index, gen int32
	fd         [2]int32
	to         netip.AddrPort // of the client's connection, if somebody wants to know
	stage      stage
	ready      [2]uint8
	watched    [2]bool
	full       [2]uint8  // reads in a row that filled the buffer
	pend       [2][]byte // what a side sent and the other has not taken
	pipe       [2]*pipe  // the same, while it is spliced
	front      *front
	pass       serve.Pass
	waiter     *waiter
	limit      time.Duration // when this stage is over; 0 is never
	whole      time.Duration // when connecting is over
	waitEnd    time.Duration // when queueing is over
	dialed     time.Duration // when this connect began
	headerRead bool
	stays      bool // the successor could not take it
	again      bool // it is in the loop's list
	tuned      bool // rare socket options are set
	bounded    [2]bool

	// In the wheel.
	due           time.Duration // 0 is not in it
	list          int16
	after, before int32
}

// stage is what a slot waits for.
type stage uint8

const (
	free      stage = iota
	greeting        // a PROXY header, or a ClientHello
	queueing        // a place at a backend
	dialing         // a connect
	relaying        //
	lingering       // the last bytes before a reset
	moving          // the answer of the successor; others lend its sockets
)

// What a socket is ready for.
const (
	canRead uint8 = 1 << iota
	canWrite
	ending // a short read is not the last: what is behind it comes without an event
)

func (s *slot) ref() ref { return ref{s.index, s.gen} }

// find is nil if the slot is another's by now.
func (l *loop) find(r ref) *slot {
	if s := l.table.at(r.index); s.gen == r.gen && s.stage != free {
		return s
	}
	return nil
}

func newLoop(p *Proxy) (*loop, error) {
	l := &loop{p: p, buf: make([]byte, bufferSize), nodes: map[*holdfast.Node]*target{}, done: make(chan struct{})}
	l.wheel.table = &l.table
	if err := l.poller.open(p.clock, l.due); err != nil {
		return nil, err
	}
	return l, nil
}

// Fronts carry these in place of an index, and those that follow below.
const frontEvent = -3

// run is the loop.
func (l *loop) run() {
	defer close(l.done)
	for !l.over {
		n := l.wait(len(l.again) > 0)
		l.now = l.p.clock()
		for i := range n {
			l.handle(&l.events[i])
		}
		l.goOn()
		l.bury()
		l.wheel.turn(l.now, l.fire)
	}
	l.endAll()
	l.pipes.close()
	l.shut()
}

// due is when something is to be done next; negative is never.
func (l *loop) due() time.Duration {
	if len(l.dying) > 0 {
		return l.p.clock() + lookAgain
	}
	return l.wheel.due()
}

func (l *loop) handle(ev *unix.EpollEvent) {
	if l.own(ev) {
		return
	}
	if ev.Fd < 0 {
		if f := l.p.loops.frontAt(int(frontEvent - ev.Fd)); f != nil {
			l.accept(f)
		}
		return
	}
	s := l.find(ref{ev.Fd, ev.Pad >> 1})
	if s == nil {
		return
	}
	which := side(ev.Pad & 1)
	if ev.Events&unix.EPOLLIN != 0 {
		s.ready[which] |= canRead
	}
	if ev.Events&unix.EPOLLOUT != 0 {
		s.ready[which] |= canWrite
	}
	if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.ready[which] |= canRead | canWrite | ending
	}
	if ev.Events&unix.EPOLLPRI != 0 { // a read stops short at urgent data, and a splice is stuck there
		s.ready[which] |= canRead | ending
	}
	switch s.stage {
	case greeting:
		l.greet(s)
	case queueing:
		if ev.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			l.end(s, ClientReset, false)
		}
	case dialing:
		if which == backend {
			l.dialed(s, ev.Events)
		}
	case relaying:
		if ev.Events&unix.EPOLLERR != 0 && s.flows[which] != flowing { // nobody reads there any more
			if e := sysError(s.fd[which]); e != 0 {
				s.readFailed(which, e)
			}
		}
		l.pump(s)
	case lingering:
		if ev.Events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
			l.end(s, s.why, true)
		}
	}
}

// watch asks for the events of one side: each change once, for as long as it is open.
func (l *loop) watch(s *slot, which side) {
	if s.watched[which] {
		return
	}
	s.watched[which] = true
	e := sysWatch(l.ep, unix.EPOLL_CTL_ADD, s.fd[which], &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET,
		Fd:     s.index, Pad: s.gen<<1 | int32(which),
	})
	if e != 0 { // no memory, or fs.epoll.max_user_watches
		l.p.log.Error("proxy: cannot watch a connection", "err", e)
		r := s.ref()
		l.post(func() {
			if s := l.find(r); s != nil && s.stage != moving {
				l.end(s, Cut, true)
			}
		})
	}
}

func (l *loop) unwatch(s *slot, which side) {
	if s.watched[which] {
		s.watched[which] = false
		sysWatch(l.ep, unix.EPOLL_CTL_DEL, s.fd[which], &unix.EpollEvent{})
	}
}

// goOn gives those another turn who had more to do.
func (l *loop) goOn() {
	turn := l.again
	l.again = nil
	for _, r := range turn {
		s := l.find(r)
		if s == nil {
			continue
		}
		s.again = false
		if s.stage == relaying {
			l.pump(s)
		}
	}
	if l.again == nil {
		l.again = turn[:0]
	}
}

// schedule makes sure that the slot is looked at when its next limit comes.
func (l *loop) schedule(s *slot) {
	due := s.limit
	sooner := func(at time.Duration) {
		if at != 0 && (due == 0 || at < due) {
			due = at
		}
	}
	sooner(s.leaveAt)
	if s.stage == relaying || s.stage == lingering {
		sooner(s.relay.due())
		if !s.tuned {
			sooner(s.opened + tuneAfter)
		}
	}
	if due != 0 {
		l.wheel.file(s, due)
	}
}

// tuneAfter is when the socket options are set that matter to long connections only:
// short ones are spared the system calls.
const tuneAfter = time.Second

// fire is called when a slot is due.
func (l *loop) fire(s *slot) {
	switch s.stage {
	case greeting:
		if s.limit != 0 && l.now >= s.limit {
			l.end(s, BadHello, true)
			return
		}
	case queueing:
		if s.limit != 0 && l.now >= s.limit {
			l.end(s, QueueTimeout, true)
			return
		}
	case dialing:
		if s.limit != 0 && l.now >= s.limit {
			l.late(s)
			return
		}
	case moving: // whoever sends it on has its sockets
		return
	case relaying, lingering:
		l.tune(s)
		if o := s.relay.expire(l.now); o != carryOn {
			l.end(s, s.why, o == resetBoth)
			return
		}
	}
	if s.stage != relaying && s.stage != lingering && s.leaveAt != 0 && l.now >= s.leaveAt {
		l.end(s, s.leaveWhy, true)
		return
	}
	l.schedule(s)
}

// end closes a slot. With reset both sides learn that something is missing.
func (l *loop) end(s *slot, why Reason, reset bool) {
	s.because(why)
	for i := range s.fd {
		if s.fd[i] < 0 {
			continue
		}
		if reset {
			sysNoLinger(s.fd[i])
		}
		sysClose(s.fd[i])
	}
	if s.stage == queueing {
		l.unqueue(s)
	}
	l.counts.ends[s.why].Add(1)
	l.p.logEnd(&s.visit, s.why, s.bytes)
	l.forget(s)
}

// forget takes a slot out of the books; its sockets are not its own any more.
func (l *loop) forget(s *slot) {
	l.wheel.drop(s)
	for i := range s.pipe {
		l.pipes.drop(s.pipe[i])
	}
	lease, set, cluster, pass, f := s.lease, s.set, s.search.cluster, s.pass, s.front
	l.table.give(s)
	l.open.Add(-1)
	pass.Leave()
	if lease.Node() != nil {
		l.p.release(set, cluster, lease)
	}
	if f != nil && f.looks.Load() {
		f.retry(l)
	}
}

// endAll resets what there is, and says how much that was.
func (l *loop) endAll() (n int) {
	l.table.all(func(s *slot) {
		if s.stage != moving {
			l.end(s, Cut, true)
			n++
		}
	})
	return n
}

// stop ends the loop, after what was posted.
func (l *loop) stop() {
	l.post(func() {
		l.last()
		l.over = true
	})
	<-l.done
}

// loops are the event loops of a Proxy.
type loops struct {
	p   *Proxy
	all []*loop

	mu     sync.RWMutex
	fronts []*front
}

func (ls *loops) open(p *Proxy, n int) error {
	ls.p = p
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	for range max(n, 0) {
		l, err := newLoop(p)
		if err != nil {
			ls.close()
			return err
		}
		ls.all = append(ls.all, l)
		go l.run() // close waits for it
	}
	return nil
}

func (ls *loops) close() {
	for _, l := range ls.all {
		l.stop()
	}
}

// each runs do in every loop, and waits.
func (ls *loops) each(do func(*loop)) {
	for _, l := range ls.all {
		l.do(func() { do(l) })
	}
}

// shutdown returns when no connection is left. When ctx ends it resets what there is.
func (ls *loops) shutdown(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok {
		within := time.Until(end)
		ls.each(func(l *loop) { l.table.all(func(s *slot) { l.leaveWithin(s, within) }) })
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ls.count() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			n := 0
			ls.each(func(l *loop) { n += l.endAll() })
			if n > 0 {
				return cutError(n, context.Cause(ctx))
			}
			return nil
		}
	}
	return nil
}

// leaveWithin lets a slot end at a random moment within d.
func (l *loop) leaveWithin(s *slot, d time.Duration) {
	s.leaveSometime(l.p.clock(), d)
	l.schedule(s)
}

func (ls *loops) count() (n int64) {
	for _, l := range ls.all {
		n += l.open.Load()
	}
	return n
}

func (ls *loops) addTo(s *Stats) {
	for _, l := range ls.all {
		s.Open += int(l.open.Load())
		l.counts.addTo(s)
	}
}

// endWhatIsDown applies Backends.Down.
func (ls *loops) endWhatIsDown(down Down) {
	nodes := downNodes{}
	ls.each(func(l *loop) {
		l.table.all(func(s *slot) {
			switch {
			case s.stage != relaying || !nodes.has(s.lease.Node()):
			case down == Sever:
				l.end(s, BackendDown, true)
			case s.leaveAt == 0:
				s.leaveBackend(l.now)
				l.schedule(s)
			}
		})
	})
}

// socketOf is the descriptor of a listener, the Proxy's own duplicate.
func socketOf(ln net.Listener) (int, bool) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	fd, err := -1, error(unix.EINVAL)
	raw.Control(func(own uintptr) {
		var kind int
		if kind, err = unix.GetsockoptInt(int(own), unix.SOL_SOCKET, unix.SO_TYPE); err == nil && kind == unix.SOCK_STREAM {
			fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	return fd, err == nil && fd >= 0
}
