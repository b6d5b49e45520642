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
	for i := range h.in[:n] {
		h.arrive(&h.in[i])
	}
	h.shipAll()
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
	switch e {
	case 0:
	case unix.EAGAIN, unix.EINTR:
		h.used = first
		return
	default:
		h.used = first
		h.refused(s, e, nil)
		return
	}
	h.used = first + n
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
	if h.fd < 0 && h.conn.Polls() {
		if raw, err := h.pc.(syscall.Conn).SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { // a duplicate: whoever closes pc must not put another file in its place
				if h.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
					h.fd = -1
				}
			})
		}
	}
	if h.fd < 0 {
		h.readBy.Go(h.readFront)
		return
	}
	if e := sysWatch(h.ep, unix.EPOLL_CTL_ADD, int32(h.fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: frontEvent}); e != 0 {
		h.readFailed(e)
	}
}

// deafen ends that.
func (h *hub) deafen() {
	if !h.heard {
		return
	}
	h.heard = false
	if h.fd < 0 {
		h.pc.SetReadDeadline(longAgo)
		return
	}
	sysWatch(h.ep, unix.EPOLL_CTL_DEL, int32(h.fd), &unix.EpollEvent{})
}

// closeFront lets go of what listen opened.
func (h *hub) closeFront() {
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
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
	if e != 0 { // no memory, or fs.epoll.max_user_watches
		h.complain("proxy: cannot watch a session", e)
		h.hang(s)
		return e
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
		sysClose(s.way.fd)
	case s.way.conn != nil:
		s.way.conn.Close()
	case !s.way.dialing:
		return
	}
	s.way = noWay
	h.unnumber(s)
}
