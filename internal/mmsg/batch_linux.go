package mmsg

import (
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxRun is how many datagrams leave as one: UDP_MAX_SEGMENTS of all kernels.
	maxRun = 64
	// maxSegment is the largest datagram of a run, what an Ethernet frame takes in v6:
	// a run of what must be fragmented is refused.
	maxSegment = 1500 - 40 - 8
	maxRunSize = 1<<16 - 1 - 40 - 8

	// maxStubborn is how many destinations are remembered that take no runs.
	maxStubborn = 1024
)

type batch struct {
	raw       syscall.RawConn
	connected bool
	six       bool // an AF_INET6 socket, for which v4 is mapped
	gso       bool
	stubborn  map[netip.Addr]struct{} // their way has no UDP_SEGMENT
	in, out   ring
}

// ring is what one system call is given.
type ring struct {
	hdrs  []unix.Mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6
	ctls  [][ctlSize]byte
	first []int // the message that a header begins with
	bare  bool  // nothing comes beside a datagram
	loop  bool  // Options.Loop

	want    int // messages to ask for: each costs, even if none comes
	n, done int // headers to go, and gone
	waited  bool
	errno   unix.Errno
	try     func(fd uintptr) bool // made once: a closure for each call would allocate
	once    func(fd uintptr)      // the same, for who does not wait
}

// newBatch returns nil for a socket that cannot be reached.
func newBatch(udp *net.UDPConn, connected bool, o Options) *batch {
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil
	}
	b := &batch{raw: raw, connected: connected, stubborn: map[netip.Addr]struct{}{}}
	b.in.try, b.out.try = b.in.recv, b.out.send
	b.in.loop, b.out.loop = o.Loop, o.Loop
	b.in.once = func(fd uintptr) { b.in.recv(fd) }
	local, _ := udp.LocalAddr().(*net.UDPAddr)
	raw.Control(func(fd uintptr) {
		family, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		b.six = family == unix.AF_INET6
		_, err := unix.GetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT)
		b.gso = err == nil && !o.NoGSO
		b.in.bare = !o.GRO
		if o.GRO {
			unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1)
		}
		switch {
		case local == nil || !local.IP.IsUnspecified():
			return
		case b.six:
			unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1)
		default:
			unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_PKTINFO, 1)
		}
		b.in.bare = false
	})
	return b
}

// grow makes room for n messages.
func (r *ring) grow(n int) {
	if n <= len(r.hdrs) {
		return
	}
	r.hdrs, r.iovs = make([]unix.Mmsghdr, n), make([]unix.Iovec, n)
	r.names, r.ctls = make([]unix.RawSockaddrInet6, n), make([][ctlSize]byte, n)
	r.first = make([]int, n+1)
}

func (r *ring) recv(fd uintptr) bool {
	if r.n == 1 && r.bare {
		r.done, r.errno = sysRecvFrom(fd, &r.hdrs[0])
	} else {
		r.done, r.errno = r.sysRecv(fd)
	}
	r.waited = r.waited || r.errno == unix.EAGAIN
	return r.errno != unix.EAGAIN
}

func (r *ring) send(fd uintptr) bool {
	if h := &r.hdrs[0].Hdr; r.n == 1 && h.Iovlen == 1 && h.Control == nil {
		r.done, r.errno = sysSendTo(fd, h)
	} else {
		r.done, r.errno = r.sysSend(fd)
	}
	return r.errno != unix.EAGAIN
}

func (b *batch) receive(ms []Message) (int, error) {
	b.in.prepare(ms)
	if err := b.raw.Read(b.in.try); err != nil {
		return 0, err
	}
	return b.in.took(ms)
}

func (b *batch) poll(ms []Message) (int, error) {
	b.in.prepare(ms)
	if err := b.raw.Control(b.in.once); err != nil {
		return 0, err
	}
	if b.in.errno == unix.EAGAIN {
		return 0, nil
	}
	b.in.waited = false
	return b.in.took(ms)
}

func (r *ring) prepare(ms []Message) {
	r.grow(len(ms))
	r.n = min(max(r.want, 1), len(ms))
	for i := range ms[:r.n] {
		r.iovs[i] = iovec(ms[i].Buf)
		h := &r.hdrs[i].Hdr
		*h = unix.Msghdr{Name: nameOf(&r.names[i]), Namelen: unix.SizeofSockaddrInet6, Iov: &r.iovs[i], Control: &r.ctls[i][0]}
		h.SetIovlen(1)
		h.SetControllen(ctlSize)
	}
	r.waited = false
}

// took is what came of it.
func (r *ring) took(ms []Message) (int, error) {
	if r.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", r.errno)
	}
	r.expect()
	for i := range r.done {
		m, h := &ms[i], &r.hdrs[i]
		ctl := parseControl(r.ctls[i][:h.Hdr.Controllen])
		m.N, m.Peer, m.Addr = int(h.Len), addrPortOf(&r.names[i]), nil
		m.Local, m.Segment = ctl.local, ctl.segment
		m.Truncated = h.Hdr.Flags&unix.MSG_TRUNC != 0
	}
	return r.done, nil
}

// expect guesses how many come next: as many as came, and more when they all were there
// already.
func (r *ring) expect() {
	switch {
	case r.done < r.n:
		r.want = r.done
	case !r.waited:
		r.want = 2 * r.n
	}
}

// send goes on behind what the kernel took, or behind what it refused.
func (b *batch) send(ms []Message) (failed int, err error) {
	r := &b.out
	r.grow(len(ms))
	for len(ms) > 0 {
		b.pack(ms[:b.atOnce(ms)])
		if err := b.raw.Write(r.try); err != nil {
			return failed + len(ms), err
		}
		if r.errno == 0 {
			ms = ms[r.first[r.done]:]
			continue
		}
		n := r.first[1]
		if b.relent(&ms[0], n, r.errno) {
			continue
		}
		ms = ms[n:]
		failed += n
		if err == nil {
			err = os.NewSyscallError("sendmmsg", r.errno)
		}
	}
	return failed, err
}

// maxLoop is how many leave with one call that the runtime is not told of: a tenth of a
// millisecond's worth, for which a garbage collection may have to wait.
const maxLoop = 16

func (b *batch) atOnce(ms []Message) int {
	if b.out.loop {
		return min(len(ms), maxLoop)
	}
	return len(ms)
}

// relent reports whether what was refused can be tried in a simpler form: a run one by
// one, and a reply from an address that is nobody's own, such as a network's, from any.
func (b *batch) relent(m *Message, run int, why unix.Errno) bool {
	cannot := why == unix.EIO || why == unix.EINVAL || why == unix.EMSGSIZE // a device, a route
	switch {
	case run > 1 && cannot:
		if len(b.stubborn) >= maxStubborn {
			clear(b.stubborn)
		}
		b.stubborn[m.Peer.Addr()] = struct{}{}
		return true
	case m.Local.IsValid() && why == unix.EINVAL:
		m.Local = netip.Addr{}
		return true
	}
	return false
}

// pack puts all messages into headers, a run into one.
func (b *batch) pack(ms []Message) {
	r := &b.out
	r.n = 0
	for i := 0; i < len(ms); r.n++ {
		m, end := &ms[i], i+b.run(ms[i:])
		for j := i; j < end; j++ {
			r.iovs[j] = iovec(ms[j].Buf)
		}
		h := &r.hdrs[r.n].Hdr
		*h = unix.Msghdr{Iov: &r.iovs[i]}
		h.SetIovlen(end - i)
		if !b.connected {
			h.Name, h.Namelen = nameOf(&r.names[r.n]), setName(&r.names[r.n], m.Peer, b.six)
		}
		ctl := control{local: m.Local}
		if end-i > 1 {
			ctl.segment = len(m.Buf)
		}
		if n := ctl.put(&r.ctls[r.n], b.six); n > 0 {
			h.Control = &r.ctls[r.n][0]
			h.SetControllen(n)
		}
		r.first[r.n] = i
		i = end
	}
	r.first[r.n] = len(ms)
}

// run is how many messages from the first on can leave as one.
func (b *batch) run(ms []Message) int {
	m := &ms[0]
	size, total := len(m.Buf), len(m.Buf)
	if !b.gso || len(ms) == 1 || size == 0 || size > maxSegment {
		return 1
	}
	if _, is := b.stubborn[m.Peer.Addr()]; is {
		return 1
	}
	n := 1
	for n < min(len(ms), maxRun) {
		next := &ms[n]
		length := len(next.Buf)
		total += length
		if length == 0 || length > size || total > maxRunSize || next.Peer != m.Peer || next.Local != m.Local {
			break
		}
		n++
		if length < size {
			break
		}
	}
	return n
}
