package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/record"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// movingAtOnce bounds how many connections of a loop stand still for the move: enough to
// fill batches, few enough that each stands still for moments only.
const movingAtOnce = 128

// HandOver passes the live plaintext connections to the successor, by send, as
// restart.Mover says: both sockets, and what one side has sent and the other has not
// taken. One that has no backend yet is passed on without. It returns when all have moved
// that can, or ctx ends; those that stay are drained by the Shutdown that must follow.
func (p *Proxy) HandOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) error {
	if n := atOnce(p.loops.all, func(l *loop) int { return l.handOver(ctx, send) }); n > 0 {
		return fmt.Errorf("proxy: %d connections could not be handed over", n)
	}
	return nil
}

// atOnce has all hand over, and returns how many connections or sessions stay.
func atOnce[T any](all []T, handOver func(T) (left int)) int {
	var wg sync.WaitGroup
	var left atomic.Int64
	for _, one := range all {
		wg.Go(func() { left.Add(int64(handOver(one))) })
	}
	wg.Wait()
	return int(left.Load())
}

// handOver moves what a loop has, and returns how many stay.
func (l *loop) handOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) (left int) {
	places := make(chan struct{}, movingAtOnce)
	var wg sync.WaitGroup
	var last sync.Mutex // who has the table when the loop has ended
	for wait := true; wait && ctx.Err() == nil; {
		var frozen []passenger
		wait = false
		l.do(func() { frozen, wait = l.freeze(movingAtOnce - len(places)) })
		for _, f := range frozen {
			places <- struct{}{}
			wg.Go(func() {
				err := send(f.state, f.conns...)
				<-places
				if !l.post(func() { l.settle(f.ref, err) }) {
					<-l.done
					last.Lock()
					defer last.Unlock()
					l.settle(f.ref, err)
				}
			})
		}
		switch {
		case len(frozen) > 0:
			wait = true
		case wait: // for places, or for those who are about to end
			time.Sleep(time.Millisecond)
		}
	}
	wg.Wait()
	l.do(func() { left = l.table.used })
	return left
}

// passenger is a connection on its way.
type passenger struct {
	ref   ref
	state []byte
	conns []syscall.Conn
}

// freeze takes up to n connections out of the loop; wait says that others may move later.
func (l *loop) freeze(n int) (frozen []passenger, wait bool) {
	l.table.all(func(s *slot) {
		switch {
		case s.stays:
		case s.stage == moving || s.stage == lingering || len(frozen) >= n:
			wait = true
		case !l.halt(s):
			s.stays = true
		default:
			frozen = append(frozen, passenger{s.ref(), s.save(l), s.conns()})
		}
	})
	return frozen, wait
}

// halt stops a connection, and forgets what a successor does anew. false is that it
// cannot be stopped here.
func (l *loop) halt(s *slot) bool {
	for _, from := range [...]side{client, backend} {
		if p := s.pipe[from]; p != nil {
			if !p.read(&s.pend[from]) {
				return false
			}
			l.demote(s, from)
		}
	}
	switch s.stage {
	case queueing:
		l.unqueue(s)
	case dialing:
		l.hangUp(s)
	}
	for _, which := range [...]side{client, backend} {
		if s.fd[which] >= 0 {
			l.unwatch(s, which)
		}
	}
	l.wheel.drop(s)
	s.stage = moving
	return true
}

// read takes out what is in a pipe.
func (p *pipe) read(into *[]byte) bool {
	for p.n > 0 {
		b := make([]byte, p.n)
		n, e := sysRead(p.r, b)
		if e != 0 || n == 0 {
			return false
		}
		*into = append(*into, b[:n]...)
		p.n -= n
	}
	return true
}

// settle takes note of how the move of a connection went.
func (l *loop) settle(r ref, err error) {
	s := l.find(r)
	if s == nil {
		return
	}
	if err == nil {
		l.counts.movedOut.Add(1)
		for _, fd := range s.fd {
			if fd >= 0 {
				sysClose(fd) // without a word: the successor has it too
			}
		}
		l.forget(s)
		return
	}
	if l.over { // nobody goes on with it
		l.end(s, Cut, true)
		return
	}
	s.stays = true
	l.resume(s)
}

// resume goes on with a connection that stood still.
func (l *loop) resume(s *slot) {
	s.limit = 0
	s.ready[client] |= canRead | canWrite // what was said meanwhile is not said again
	if s.fd[backend] >= 0 {
		s.ready[backend] |= canRead | canWrite
		s.stage = relaying
		l.watch(s, client)
		l.watch(s, backend)
		r := s.ref()
		if l.pump(s); l.find(r) != nil {
			l.schedule(s)
		}
		return
	}
	s.search.again(l.p.maxEach())
	s.waiter = nil
	switch {
	case !s.headerRead || s.set.sniffs:
		l.awaitHello(s)
	default:
		l.route(s, hello{})
	}
}

// rawSocket lends a descriptor of a loop to who sends it on.
type rawSocket int32

func (r rawSocket) SyscallConn() (syscall.RawConn, error) { return r, nil }

func (r rawSocket) Control(f func(fd uintptr)) error {
	f(uintptr(r))
	return nil
}

func (r rawSocket) Read(func(uintptr) bool) error  { return errors.ErrUnsupported }
func (r rawSocket) Write(func(uintptr) bool) error { return errors.ErrUnsupported }

func (s *slot) conns() []syscall.Conn {
	conns := []syscall.Conn{rawSocket(s.fd[client])}
	if s.fd[backend] >= 0 {
		conns = append(conns, rawSocket(s.fd[backend]))
	}
	return conns
}

// The record of a connection: a version, numbers, then texts and the bytes under way. A
// newer version may add fields at the end.
const (
	recordVersion = 1
	recordTexts   = 6
)

// save is what the successor must know of a connection besides its sockets.
func (s *slot) save(l *loop) []byte {
	now := l.now
	flags := uint64(s.flows[client]) | uint64(s.flows[backend])<<2
	for i, set := range [...]bool{s.headerRead, s.reset[client], s.reset[backend]} {
		if set {
			flags |= 1 << (4 + i)
		}
	}
	var numbers []byte
	for _, n := range [...]uint64{
		flags, uint64(now - s.began), uint64(max(now-s.opened, 0)), uint64(max(now-s.active, 0)),
		uint64(s.bytes[client]), uint64(s.bytes[backend]), uint64(s.why),
	} {
		numbers = binary.AppendUvarint(numbers, n)
	}
	node := ""
	if n := s.lease.Node(); n != nil {
		node = n.Addr()
	}
	from, _ := s.from.Addr.MarshalText()
	to, _ := s.to.MarshalText()
	b := append(make([]byte, 0, 128+len(s.pend[client])+len(s.pend[backend])), recordVersion)
	return record.Append(b, numbers, from, to, record.Append(nil, []byte(s.from.ServerName), []byte(node)), s.pend[client], s.pend[backend])
}

// saved is a record that was read.
type saved struct {
	flows                 [2]flow
	reset                 [2]bool
	why                   Reason
	headerRead            bool
	began, opened, active time.Duration // ago
	bytes                 [2]int64
	from, to              netip.AddrPort
	name, node            string
	pend                  [2][]byte
}

func readSaved(b []byte) (r saved, err error) {
	if len(b) == 0 || b[0] < recordVersion {
		return r, errors.New("proxy: not the record of a connection")
	}
	f, err := record.Split(b[1:], recordTexts)
	if err != nil {
		return r, fmt.Errorf("proxy: the record of a connection: %w", err)
	}
	var numbers [7]uint64
	for i := range numbers {
		n, size := binary.Uvarint(f[0])
		if size <= 0 {
			return r, errors.New("proxy: the record of a connection: a number is missing")
		}
		numbers[i], f[0] = n, f[0][size:]
	}
	names, err := record.Split(f[3], 2)
	if err == nil {
		err = errors.Join(r.from.UnmarshalText(f[1]), r.to.UnmarshalText(f[2]))
	}
	if err != nil {
		return r, fmt.Errorf("proxy: the record of a connection: %w", err)
	}
	flags := numbers[0]
	r.flows = [2]flow{flow(flags & 3), flow(flags >> 2 & 3)}
	r.headerRead, r.reset = flags&(1<<4) != 0, [2]bool{flags&(1<<5) != 0, flags&(1<<6) != 0}
	r.why = Reason(min(numbers[6], uint64(reasons)-1))
	r.began, r.opened, r.active = time.Duration(numbers[1]), time.Duration(numbers[2]), time.Duration(numbers[3])
	r.bytes = [2]int64{int64(numbers[4]), int64(numbers[5])}
	r.name, r.node = string(names[0]), string(names[1])
	r.pend = [2][]byte{slices.Clone(f[4]), slices.Clone(f[5])}
	return r, nil
}

// TakeOver goes on with a connection of the predecessor, as restart.Mover says.
func (p *Proxy) TakeOver(state []byte, fds []int) error {
	r, err := readSaved(state)
	if err != nil {
		return err
	}
	set := p.set.Load()
	switch {
	case len(fds) != 1 && len(fds) != 2:
		return fmt.Errorf("proxy: %d descriptors for one connection", len(fds))
	case len(p.loops.all) == 0:
		return errors.New("proxy: no event loops to take a connection over")
	case len(fds) == 1 && set.terminates():
		return errors.New("proxy: TLS ends here now, and the connection is plaintext")
	}
	var pass serve.Pass
	counted := netip.Addr{} // one that still waits for its PROXY header is admitted after that
	if r.headerRead {
		counted = r.from.Addr()
	}
	p.gate.EnterAnyway(&pass, counted)
	cluster, lease := p.leaseOf(set, r)
	l := p.loops.least()
	l.open.Add(1) // now, or many that come together come to one
	if !l.post(func() { l.takeOver(r, fds, pass, cluster, lease) }) {
		l.open.Add(-1)
		pass.Leave()
		if lease.Node() != nil {
			p.release(set, cluster, lease)
		}
		return ErrClosed
	}
	return nil
}

// leaseOf counts a connection at its node, if that is known here.
func (p *Proxy) leaseOf(set *settings, r saved) (*holdfast.Cluster, holdfast.Lease) {
	if r.node == "" {
		return nil, holdfast.Lease{}
	}
	for _, c := range append([]*holdfast.Cluster{set.route(r.name, nil)}, set.clusters()...) {
		if c == nil {
			continue
		}
		if lease, ok := c.PickAddr(r.node, "tcp", "unix"); ok {
			return c, lease
		}
	}
	return nil, holdfast.Lease{}
}

func (l *loop) takeOver(r saved, fds []int, pass serve.Pass, cluster *holdfast.Cluster, lease holdfast.Lease) {
	s := l.table.take()
	s.set, s.pass, s.lease = l.p.set.Load(), pass, lease
	s.search.cluster = cluster
	s.from, s.to = Client{r.from, r.name}, r.to
	s.began = l.now - r.began
	s.pend, s.headerRead = r.pend, r.headerRead
	s.stage = moving
	l.counts.movedIn.Add(1)
	for i, fd := range fds {
		s.fd[i] = int32(fd)
		unix.SetNonblock(fd, true)
	}
	if end := time.Duration(l.p.ending.Load()); end != 0 {
		l.leaveWithin(s, end-l.now)
	}
	if len(fds) == 2 {
		s.relay.begin(&s.set.limits, l.now)
		s.flows, s.reset, s.why, s.bytes = r.flows, r.reset, r.why, r.bytes
		s.opened, s.active = l.now-r.opened, l.now-r.active
		for i := range s.pend {
			s.waits(side(i), len(s.pend[i]) > 0, l.now)
		}
	}
	l.resume(s)
}
