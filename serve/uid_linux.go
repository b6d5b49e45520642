package serve

import (
	"net"

	"golang.org/x/sys/unix"
)

// peerUID is who is at the other end of a Unix connection.
func peerUID(conn net.Conn) (uid int, ok bool) {
	u, isUnix := conn.(*net.UnixConn)
	if !isUnix {
		return 0, false
	}
	uid = -1 // nobody: what cannot be told is not allowed
	if raw, err := u.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				uid = int(cred.Uid)
			}
		})
	}
	return uid, true
}
