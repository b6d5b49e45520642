package proxy

import (
	"net/netip"
	"syscall"

	"github.com/holdfast-net/holdfast"
	"golang.org/x/sys/unix"
)

// readers are what the system reads into, and writes from.
type readers struct {
	heads []unix.Mmsghdr // of the rooms
	iovs  []unix.Iovec   // theirs
	runs  []unix.Iovec   // of a run
}

// turn waits, and sees to what has come. What belongs to one turn leaves together.
func (h *hub) turn() {
	n := h.wait(false)
	h.now, h.set = h.p.clock(), h.p.set.Load()
	for i := range n {
		ev := &h.events[i]
		switch {
		case h.own(ev):
		case ev.Fd == frontEvent:
			h.hear()
		default:
			if s := h.find(ref{ev.Fd, ev.Pad}); s != nil {
				h.hearBack(s)
			}
		}
	}
}

// hear takes what has come from clients.
func (h *hub) hear() {
	if !h.heard {
		return
	}
	n, err := h.conn.Poll(h.in)
	if err != nil {
		h.readFailed(err)
		return
	}
	h.pause = 0
	h.arrive(h.in[:n])
}

// readAtOnce is how many datagrams of a node are taken with one call, so that they leave
// as a run. If there are more, that is another event.
const readAtOnce = 8

// furnish prepares the reading of nodes: a header for each room.
func (h *hub) furnish() {
	h.iovs = make([]unix.Iovec, packetBatch)
	h.heads = make([]unix.Mmsghdr, packetBatch)
	for i := range h.heads {
		h.iovs[i] = iovec(h.rooms[i])
		h.heads[i].Hdr.Iov = &h.iovs[i]
		h.heads[i].Hdr.SetIovlen(1)
	}
}

// hearBack takes what a node has sent.
func (h *hub) hearBack(s *session) {
	first := h.take(readAtOnce)
	n, e := sysReadAll(s.way.fd, h.heads[first:first+readAtOnce])
	h.used = first + max(n, 0)
	switch e {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		return
	case unix.EMSGSIZE: // of a router, that the way takes less: what comes next is fragmented
		h.tally[dropTooLong]++
		return
	default:
		h.refused(s, e, nil)
		return
	}
	r := s.ref()
	for i := first; i < first+n && h.find(r) != nil; i++ {
		h.reply(s, i, int(h.heads[i].Len))
	}
}

// listen begins to read the socket in front.
func (h *hub) listen() {
	if h.heard {
		return
	}
	h.heard = true
	if !h.conn.Polls() {
		h.readBy.Go(h.readFront)
		return
	}
	if err := h.watchFront(unix.EPOLL_CTL_ADD); err != nil {
		h.readFailed(err)
	}
}

// deafen ends that.
func (h *hub) deafen() {
	if !h.heard {
		return
	}
	h.heard = false
	if !h.conn.Polls() {
		h.pc.SetReadDeadline(longAgo)
		return
	}
	h.watchFront(unix.EPOLL_CTL_DEL)
}

// watchFront holds the descriptor meanwhile: another file may be in its place when the
// socket is closed.
func (h *hub) watchFront(op int) error {
	return h.control(func(fd uintptr) error {
		if e := sysWatch(h.ep, op, int32(fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: frontEvent}); e != 0 {
			return e
		}
		return nil
	})
}

// frontError is net.ErrClosed if somebody has closed the socket in front, which is no
// event.
func (h *hub) frontError() error {
	if h.pc == nil || !h.conn.Polls() {
		return nil
	}
	return h.control(func(uintptr) error { return nil })
}

func (h *hub) control(do func(fd uintptr) error) error {
	raw, err := h.pc.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	if closed := raw.Control(func(fd uintptr) { err = do(fd) }); closed != nil {
		return closed
	}
	return err
}

// datagramTarget is nil of a node that takes more than a connect.
func datagramTarget(lease holdfast.Lease) *target {
	opts, plain := lease.Plain()
	ap, err := netip.ParseAddrPort(lease.Node().Addr())
	if !plain || err != nil || ap.Addr().Zone() != "" {
		return nil
	}
	t := &target{opts: opts}
	t.family = t.addr.setIP(ap, 0)
	return t
}

// connect makes a way to a node.
func (h *hub) connect(s *session, lease holdfast.Lease, pl *place) error {
	t := pl.target
	if t == nil {
		h.dial(s, lease)
		return nil
	}
	fd, e := sysSocket(t.family, unix.SOCK_DGRAM)
	if e != 0 {
		return e
	}
	if t.opts.RecvBuf > 0 {
		sysSet(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, int32(t.opts.RecvBuf))
	}
	if t.opts.SendBuf > 0 {
		sysSet(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, int32(t.opts.SendBuf))
	}
	if e = sysConnect(fd, &t.addr); e != 0 {
		sysClose(fd)
		if e == unix.EAGAIN { // no port is left: as TCP has it
			e = unix.EADDRNOTAVAIL
		}
		return e
	}
	s.way.fd = fd
	h.number(s)
	return h.watch(s)
}

// watch asks for the events of a way, for as long as there is something to read.
func (h *hub) watch(s *session) error {
	if s.way.fd < 0 {
		return nil
	}
	e := sysWatch(h.ep, unix.EPOLL_CTL_ADD, s.way.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: s.index, Pad: s.gen})
	if e != 0 { // no memory, or fs.epoll.max_user_watches: no fault of the node
		h.complain("proxy: cannot watch a session", e)
		h.hang(s)
		return unix.ENOBUFS
	}
	return nil
}

// write sends to the node.
func (h *hub) write(s *session, data []byte) error {
	if s.way.fd < 0 {
		return s.writeConn(data)
	}
	for {
		_, e := sysWrite(s.way.fd, data)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return e
		}
	}
}

// hang closes the way.
func (h *hub) hang(s *session) {
	switch {
	case s.way.fd >= 0:
		if s.stays { // a successor may have it too: its events would go on
			h.unwatch(s)
		}
		sysClose(s.way.fd)
		s.way = noWay
		h.unnumber(s)
	default:
		h.hangConn(s)
	}
}
