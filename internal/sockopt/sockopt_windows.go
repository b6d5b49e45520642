package sockopt

import (
	"errors"
	"os"
	"syscall"
)

func (o Options) set(fd uintptr) error {
	return errors.Join(
		setInt(fd, syscall.SO_RCVBUF, o.RecvBuf),
		setInt(fd, syscall.SO_SNDBUF, o.SendBuf),
	)
}

func setInt(fd uintptr, option, value int) error {
	if value <= 0 {
		return nil
	}
	return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, option, value))
}

func poll(uintptr) Readiness { return Unknown }
