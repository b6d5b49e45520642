package mmsg

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// All that is unsafe. The sockets do not block, so neither call waits; the runtime is
// told of them nevertheless, for a batch may keep the kernel busy for a while: unless
// Options.Loop says otherwise.

func (r *ring) sysRecv(fd uintptr) (int, unix.Errno) {
	return sys(unix.SYS_RECVMMSG, fd, r.hdrs[:r.n], r.loop)
}

func (r *ring) sysSend(fd uintptr) (int, unix.Errno) {
	return sys(unix.SYS_SENDMMSG, fd, r.hdrs[:r.n], r.loop)
}

// sysRecvFrom is sysRecv of one datagram with nothing beside it, for a tenth less.
func sysRecvFrom(fd uintptr, h *unix.Mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(h.Hdr.Iov.Base)), uintptr(h.Hdr.Iov.Len),
			unix.MSG_TRUNC, uintptr(unsafe.Pointer(h.Hdr.Name)), uintptr(unsafe.Pointer(&h.Hdr.Namelen)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, errno
		}
		if uint64(n) > uint64(h.Hdr.Iov.Len) { // MSG_TRUNC gives the size it had
			n, h.Hdr.Flags = uintptr(h.Hdr.Iov.Len), unix.MSG_TRUNC
		}
		h.Len = uint32(n)
		h.Hdr.SetControllen(0)
		return 1, 0
	}
}

// sysSendTo is sysSend of one datagram with nothing beside it.
func sysSendTo(fd uintptr, h *unix.Msghdr) (int, unix.Errno) {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(h.Iov.Base)), uintptr(h.Iov.Len),
			0, uintptr(unsafe.Pointer(h.Name)), uintptr(h.Namelen))
		switch errno {
		case unix.EINTR:
			continue
		case 0:
			return 1, 0
		}
		return 0, errno
	}
}

func sys(number, fd uintptr, hdrs []unix.Mmsghdr, raw bool) (int, unix.Errno) {
	for {
		var n uintptr
		var errno unix.Errno
		if raw {
			n, _, errno = unix.RawSyscall6(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), 0, 0, 0)
		} else {
			n, _, errno = unix.Syscall6(number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), 0, 0, 0)
		}
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), 0
	}
}

func iovec(b []byte) (v unix.Iovec) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
	return v
}

func nameOf(a *unix.RawSockaddrInet6) *byte { return (*byte)(unsafe.Pointer(a)) }

func inet4(a *unix.RawSockaddrInet6) *unix.RawSockaddrInet4 {
	return (*unix.RawSockaddrInet4)(unsafe.Pointer(a))
}

// putHeader writes the header of a control message, and returns where its data goes.
func putHeader(b []byte, level, kind int32, size int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b[:unix.CmsgSpace(size)])))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	data := b[unix.CmsgLen(0):unix.CmsgSpace(size)]
	clear(data)
	return data
}
