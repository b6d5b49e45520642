//go:build unix && !linux

package sockopt

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func (o Options) beforeConnect(fd uintptr) error {
	return errors.Join(
		set(fd, unix.SO_RCVBUF, o.RecvBuf),
		set(fd, unix.SO_SNDBUF, o.SendBuf),
	)
}

func set(fd uintptr, option, value int) error {
	if value <= 0 {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value))
}

// poll looks at the next byte and leaves it there.
func poll(fd uintptr) Readiness {
	var b [1]byte
	n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	switch {
	case n > 0:
		return Readable
	case err == unix.EAGAIN || err == unix.EINTR:
		return Idle
	}
	return Closed
}
