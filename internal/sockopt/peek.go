//go:build unix && !aix

package sockopt

import "golang.org/x/sys/unix"

// peek looks at the next byte and leaves it there. Linux has better; it is built there
// too so that its tests run. That a socket does not block is one flag of its file, which
// [os.File.Fd] on a duplicate takes away: hence MSG_DONTWAIT.
func peek(fd uintptr) Readiness {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return Idle
		case err == unix.ENOTSOCK:
			return Unknown
		case n > 0:
			return Readable
		}
		return Closed
	}
}
