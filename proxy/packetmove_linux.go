package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/record"
	"golang.org/x/sys/unix"
)

// sessionsAtOnce is how many sessions move with one record: few enough for the
// descriptors of one message.
const sessionsAtOnce = 100

// HandOver passes the sessions to the successor, by send, as restart.Mover says. It stops
// reading first: what arrives waits in the sockets, and is the successor's. Those that
// cannot move get what is still sent to them until they are quiet.
func (p *Packets) HandOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	p.handing.Add(1)
	defer p.handing.Done()
	p.mu.Unlock()
	p.leaves.Store(true)
	hubs := p.all()
	for _, h := range hubs {
		h.do(h.deafen)
		h.readBy.Wait() // what it has read goes its way before the sessions do
	}
	if n := atOnce(hubs, func(h *hub) int { return h.handOver(ctx, send) }); n > 0 {
		return fmt.Errorf("proxy: %d sessions could not be handed over", n)
	}
	return nil
}

// handOver moves what a hub has, and returns how many sessions stay.
func (h *hub) handOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) (left int) {
	for {
		var moving []*session
		h.do(func() { moving, left = h.freeze() })
		if len(moving) == 0 {
			return left
		}
		state, conns := h.pack(moving)
		err := ctx.Err()
		if err == nil {
			err = send(state, conns...)
		}
		h.do(func() { h.settled(moving, err) })
	}
}

// freeze takes sessions out of the hub's sight: their ways are closed by nobody else
// meanwhile. left are those that stay.
func (h *hub) freeze() (moving []*session, left int) {
	h.each(func(s *session) {
		switch {
		case s.lane, s.place == nil && s.way.fd < 0: // the successor begins anew
			h.forget(s)
		case s.way.fd < 0 || s.stays:
			left++
		case len(moving) < sessionsAtOnce:
			h.unwatch(s)
			h.unnumber(s)          // what this turn has yet to tell is the successor's
			h.queueOf(s).remove(s) // nor is it idle now
			moving = append(moving, s)
		}
	})
	h.away += len(moving) // the hub waits for them, whatever happens
	return moving, left
}

// settled takes note of how a move went.
func (h *hub) settled(moving []*session, err error) {
	h.away -= len(moving)
	for _, s := range moving {
		h.queueOf(s).add(s)
		if err != nil {
			s.stays = true
			if h.number(s); h.watch(s) != nil {
				h.end(s, Cut)
			}
			continue
		}
		h.tally[sessionsOut]++
		h.forget(s)
	}
}

func (h *hub) unwatch(s *session) {
	sysWatch(h.ep, unix.EPOLL_CTL_DEL, s.way.fd, &unix.EpollEvent{})
}

// The record of sessions: a version and how many, then the address in front and each
// session; a newer version may add fields to a session, at the end.
const (
	sessionsVersion = 1
	sessionFields   = 5
)

// pack is what the successor must know of sessions besides their sockets.
func (h *hub) pack(moving []*session) (state []byte, conns []syscall.Conn) {
	fields := [][]byte{[]byte(h.addr)}
	for _, s := range moving {
		fields = append(fields, s.save(h.p.clock()))
		conns = append(conns, rawSocket(s.way.fd))
	}
	state = binary.AppendUvarint([]byte{sessionsVersion}, uint64(len(moving)))
	return record.Append(state, fields...), conns
}

func (s *session) save(now time.Duration) []byte {
	var numbers []byte
	for _, n := range [...]uint64{
		uint64(btoi(s.assured)), uint64(now - s.began), uint64(now - s.active), uint64(s.owed),
		s.datagrams[client], s.datagrams[backend], s.bytes[client], s.bytes[backend],
	} {
		numbers = binary.AppendUvarint(numbers, n)
	}
	peer, _ := s.key.peer.MarshalText()
	local, _ := s.key.local.MarshalText()
	from, _ := s.key.client.MarshalText()
	node := ""
	if s.place != nil {
		node = s.place.node.Addr()
	}
	return record.Append(nil, numbers, peer, local, from, []byte(node))
}

// savedSession is a session that was read.
type savedSession struct {
	key             sessionKey
	node            string
	assured         bool
	began, active   time.Duration // ago
	owed            int
	datagrams, size [2]uint64
}

var errRecord = errors.New("proxy: not the record of sessions")

func readSessions(b []byte) (addr string, all []savedSession, err error) {
	if len(b) == 0 || b[0] < sessionsVersion {
		return "", nil, errRecord
	}
	n, size := binary.Uvarint(b[1:])
	if size <= 0 || n > sessionsAtOnce {
		return "", nil, errRecord
	}
	fields, err := record.Split(b[1+size:], int(n)+1)
	if err != nil {
		return "", nil, errors.Join(errRecord, err)
	}
	for _, f := range fields[1:] {
		s, err := readSession(f)
		if err != nil {
			return "", nil, errors.Join(errRecord, err)
		}
		all = append(all, s)
	}
	return string(fields[0]), all, nil
}

func readSession(b []byte) (s savedSession, err error) {
	f, err := record.Split(b, sessionFields)
	if err != nil {
		return s, err
	}
	var numbers [8]uint64
	for i := range numbers {
		n, size := binary.Uvarint(f[0])
		if size <= 0 {
			return s, errRecord
		}
		numbers[i], f[0] = n, f[0][size:]
	}
	s.assured = numbers[0]&1 != 0
	s.began, s.active = age(numbers[1]), age(numbers[2])
	s.owed = int(min(numbers[3], 1<<30))
	s.datagrams, s.size = [2]uint64(numbers[4:6]), [2]uint64(numbers[6:8])
	s.node = string(f[4])
	err = errors.Join(s.key.peer.UnmarshalText(f[1]), s.key.local.UnmarshalText(f[2]), s.key.client.UnmarshalText(f[3]))
	if err == nil && (!s.key.peer.IsValid() || !s.key.client.IsValid()) {
		err = errRecord
	}
	return s, err
}

// age is a time ago, a hundred years at most.
func age(n uint64) time.Duration { return time.Duration(min(n, 100*365*24*uint64(time.Hour))) }

// TakeOver goes on with sessions of the predecessor, as restart.Mover says. Their
// replies wait until ServePacket is called with their socket.
func (p *Packets) TakeOver(state []byte, fds []int) error {
	addr, all, err := readSessions(state)
	if err != nil {
		return err
	}
	if len(all) != len(fds) {
		return fmt.Errorf("proxy: %d sessions came with %d descriptors", len(all), len(fds))
	}
	h, err := p.hubOf(addr, false)
	if err != nil {
		return err
	}
	if !h.post(func() {
		for i, s := range all {
			h.adopt(s, fds[i])
		}
	}) {
		return ErrClosed
	}
	return nil
}

// adopt enters a session of the predecessor. One whose node is not known here goes to
// another with its next datagram, and hears of the old one until then.
func (h *hub) adopt(r savedSession, fd int) {
	s := &session{
		h: h, key: r.key, set: h.set, way: way{fd: int32(fd)}, header: h.headerOf(r.key), assured: r.assured,
		began: h.now - r.began, active: h.now - r.active, owed: r.owed, datagrams: r.datagrams, bytes: r.size,
		asked: h.now - r.active, answered: r.datagrams[backend] > 0, // the predecessor told how fast
	}
	unix.SetNonblock(fd, true)
	h.p.gate.EnterAnyway(&s.pass, r.key.client.Addr())
	if lease, ok := h.set.Cluster.PickAddr(r.node, "udp"); ok {
		s.lease, s.place = lease, h.placeOf(lease)
		s.place.sessions++
	}
	if old := h.table[s.key]; old != nil && !s.isSpent() {
		h.end(old, Evicted)
	}
	h.number(s)
	h.enlist(s)
	if !s.isSpent() {
		h.table[s.key] = s
	}
	h.tally[sessionsIn]++
	if h.pc != nil && h.watch(s) != nil {
		h.end(s, Cut)
	}
}
