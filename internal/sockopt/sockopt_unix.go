//go:build unix && !linux && !aix

package sockopt

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

func (o Options) set(fd uintptr) error {
	return errors.Join(
		setInt(fd, unix.SO_RCVBUF, o.RecvBuf),
		setInt(fd, unix.SO_SNDBUF, o.SendBuf),
	)
}

func setInt(fd uintptr, option, value int) error {
	if value <= 0 {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, value))
}

func poll(fd uintptr) Readiness { return peek(fd) }
