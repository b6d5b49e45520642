package proxy

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the event loops. None of them waits: they are raw, so that the
// runtime is not told, which costs as much as a short one itself. The one that does wait
// is not here, but in loop.wait. The race detector does not see what they do to buffers.

func sysRead(fd int32, p []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), e
}

// sysWrite sends without a signal to who has closed.
func sysWrite(fd int32, p []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

func sysSplice(from, to int32, n int) (int, unix.Errno) {
	m, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(m), e
}

func sysClose(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// sysRing adds one to an eventfd.
func sysRing(fd int) {
	one := uint64(1)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
}

func sysShutdown(fd int32) { unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0) }

func sysSocket(family, kind int) (int32, unix.Errno) {
	fd, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(kind)|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(fd), e
}

func sysConnect(fd int32, to *sockaddr) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), uintptr(to.size))
	return e
}

func sysAccept(fd int32, from *sockaddr) (int32, unix.Errno) {
	from.size = unix.SizeofSockaddrAny
	n, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.size)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(n), e
}

// sysName is getsockname.
func sysName(fd int32, name *sockaddr) unix.Errno {
	name.size = unix.SizeofSockaddrAny
	_, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&name.raw)), uintptr(unsafe.Pointer(&name.size)))
	return e
}

func sysSet(fd int32, level, name int, value int32) {
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), 4, 0)
}

// sysNoLinger makes the next close a reset.
func sysNoLinger(fd int32) {
	l := unix.Linger{Onoff: 1}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
}

// sysError is what a connect came to.
func sysError(fd int32) unix.Errno {
	value, size := int32(0), uint32(4)
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return e
	}
	return unix.Errno(value)
}

// sysUnsent is how many bytes the other end has not acknowledged, and may yet.
func sysUnsent(fd int32) int {
	var n int32
	if _, _, e := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n))); e != 0 || n > 0 && sysError(fd) != 0 {
		return 0 // of a socket that was reset the kernel goes on counting
	}
	return int(n)
}

func sysPoll(ep int, events []unix.EpollEvent) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	return int(n), e
}

// sysReady reports whether one of them has something to do.
func sysReady(fds []unix.PollFd) bool {
	n, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
		uintptr(unsafe.Pointer(&unix.Timespec{})), 0, 0, 0)
	return e == 0 && n > 0
}

func sysWatch(ep, op int, fd int32, ev *unix.EpollEvent) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0)
	return e
}

// sockaddr is an address as the kernel has it.
type sockaddr struct {
	raw  unix.RawSockaddrAny
	size uint32
}

// addrPort is the address of IP, the zero value of what is none.
func (a *sockaddr) addrPort() netip.AddrPort {
	port := func(p *uint16) uint16 {
		b := (*[2]byte)(unsafe.Pointer(p))
		return uint16(b[0])<<8 | uint16(b[1])
	}
	switch a.raw.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a.raw))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), port(&in.Port))
	}
	return netip.AddrPort{}
}

// setIP makes it the address of a TCP socket.
func (a *sockaddr) setIP(ap netip.AddrPort, zone uint32) (family int) {
	port := [2]byte{byte(ap.Port() >> 8), byte(ap.Port())}
	if ip := ap.Addr().Unmap(); ip.Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		in.Family, in.Addr = unix.AF_INET, ip.As4()
		*(*[2]byte)(unsafe.Pointer(&in.Port)) = port
		a.size = unix.SizeofSockaddrInet4
		return unix.AF_INET
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&a.raw))
	in.Family, in.Addr, in.Scope_id = unix.AF_INET6, ap.Addr().As16(), zone
	*(*[2]byte)(unsafe.Pointer(&in.Port)) = port
	a.size = unix.SizeofSockaddrInet6
	return unix.AF_INET6
}

// setPath makes it the address of a Unix socket; "@" begins an abstract name. It is
// false for a path that is too long.
func (a *sockaddr) setPath(path string) bool {
	un := (*unix.RawSockaddrUnix)(unsafe.Pointer(&a.raw))
	if path == "" || len(path) >= len(un.Path) {
		return false
	}
	un.Family = unix.AF_UNIX
	for i := range len(path) {
		un.Path[i] = int8(path[i])
	}
	a.size = uint32(unsafe.Offsetof(un.Path)) + uint32(len(path)) + 1
	if path[0] == '@' {
		un.Path[0] = 0
		a.size--
	}
	return true
}

// sysReadAll takes datagrams that are there, as many as fit.
func sysReadAll(fd int32, heads []unix.Mmsghdr) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(heads))), uintptr(len(heads)), 0, 0, 0)
	return int(n), e
}

func iovec(b []byte) (v unix.Iovec) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
	return v
}

// sysSendRun sends several datagrams of one size, the last perhaps shorter.
func sysSendRun(fd int32, iovs []unix.Iovec, size int) unix.Errno {
	var control struct { // as large as CMSG_SPACE(2)
		unix.Cmsghdr
		segment uint16
		_       [6]byte
	}
	control.Level, control.Type, control.segment = unix.SOL_UDP, unix.UDP_SEGMENT, uint16(size)
	control.SetLen(unix.CmsgLen(2))
	msg := unix.Msghdr{Iov: unsafe.SliceData(iovs), Control: (*byte)(unsafe.Pointer(&control))}
	msg.SetIovlen(len(iovs))
	msg.SetControllen(unix.CmsgSpace(2))
	_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
	return e
}
