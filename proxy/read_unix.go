//go:build unix

package proxy

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const tries = true

// tryRead reads what there is, without waiting; false is that there is nothing, and no
// buffer is held.
func (s *source) tryRead(fd uintptr) bool {
	if s.large == nil {
		s.large = borrow()
	}
	for {
		n, err := unix.Read(int(fd), s.large.p)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			s.large.giveBack()
			s.large = nil
			return false
		case err != nil:
			s.err = os.NewSyscallError("read", err)
		case n == 0:
			s.err = io.EOF
		}
		s.n = max(n, 0)
		return true
	}
}
