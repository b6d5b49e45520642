package proxy

import (
	"net"
	"syscall"
)

// bounded limits what the kernel keeps for a peer that does not read.
func bounded(c net.Conn) {
	if sc, ok := c.(*net.TCPConn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) { boundNotSent(int32(fd)) })
		}
	}
}

// unsent is how many bytes the other end has not acknowledged yet, and may.
func unsent(c net.Conn) (n int) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) { n = sysUnsent(int32(fd)) })
	return n
}
