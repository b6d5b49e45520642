//go:build unix && !aix

package fault

import (
	"io"

	"golang.org/x/sys/unix"
)

// peek looks at the next byte of a socket, and leaves it there.
func peek(fd uintptr) error {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil
		case err != nil:
			return err
		case n > 0:
			return errUnread
		}
		return io.EOF
	}
}
