package sockopt

import (
	"errors"
	"math"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func (o Options) set(fd uintptr) error {
	return errors.Join(
		setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, o.RecvBuf),
		setInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, o.SendBuf),
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, millis(o.UserTimeout)),
	)
}

// setInt leaves the option alone unless the value is positive. The kernel takes an
// int32, and a larger one must not come out small.
func setInt(fd uintptr, level, option, value int) error {
	if value <= 0 {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), level, option, min(value, math.MaxInt32)))
}

// millis rounds up: what rounds down to 0 would mean the system's default, minutes.
func millis(d time.Duration) int {
	whole := d / time.Millisecond
	if d > whole*time.Millisecond {
		whole++
	}
	return int(min(whole, math.MaxInt32))
}

const gone = unix.POLLRDHUP | unix.POLLHUP | unix.POLLERR | unix.POLLNVAL

// poll is one ppoll with no time to wait. It cannot block, so it is made without
// telling the scheduler, which costs about as much as the call.
func poll(fd uintptr) Readiness {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}
	var now unix.Timespec // zero; ppoll writes what is left of it
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		switch {
		case errno == unix.EINTR: // a signal was pending
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
