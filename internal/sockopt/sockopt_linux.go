package sockopt

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (o Options) beforeConnect(fd uintptr) error {
	return errors.Join(
		set(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, o.RecvBuf),
		set(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, o.SendBuf),
		set(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(o.UserTimeout.Milliseconds())),
	)
}

func set(fd uintptr, level, option, value int) error {
	if value <= 0 {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, value))
}

const gone = unix.POLLRDHUP | unix.POLLHUP | unix.POLLERR | unix.POLLNVAL

// poll is one ppoll with no time to wait. It cannot block, so it is made without
// telling the scheduler, which costs more than the call.
func poll(fd uintptr) Readiness {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}
	var now unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return Unknown
		case n == 0:
			return Idle
		case p.Revents&gone != 0:
			return Closed
		}
		return Readable
	}
}
