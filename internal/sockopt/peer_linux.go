package sockopt

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerUID is the user at the other end of a Unix connection, -1 if that cannot be told.
func PeerUID(c syscall.Conn) int {
	uid := -1
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				uid = int(int32(cred.Uid)) // of no Unix socket it is all ones
			}
		})
	}
	return uid
}
