package restart

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerUID is who is at the other end of a Unix connection.
func peerUID(conn net.Conn) int {
	uid := -1
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					uid = int(cred.Uid)
				}
			})
		}
	}
	return uid
}
