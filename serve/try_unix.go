//go:build unix

package serve

import (
	"os"

	"golang.org/x/sys/unix"
)

const tries = true

// try reads what there is, without waiting; false is that there is nothing. It holds
// a buffer only if there is something.
func (i *inbox) try(fd uintptr) bool {
	i.room(1)
	for {
		n, err := unix.Read(int(fd), i.buf[i.end:])
		switch err {
		case nil:
			i.n, i.err = n, nil
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if i.len() == 0 {
				i.drop()
			}
			return false
		}
		i.n, i.err = 0, os.NewSyscallError("read", err)
		return true
	}
}
