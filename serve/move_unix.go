//go:build unix

package serve

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// connOf makes a connection of a descriptor, which stays the caller's until release.
func connOf(fd int) (conn net.Conn, release func(), err error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("dup", err)
	}
	f := os.NewFile(uintptr(own), "connection")
	defer f.Close()
	conn, err = net.FileConn(f)
	if err != nil {
		return nil, nil, err
	}
	return conn, func() { unix.Close(fd) }, nil
}
