//go:build unix

package listen

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is what fits into sockaddr_un with its terminating zero.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// restrict gives a socket the mode that its file will be born with. Where a system
// ignores that, the mode follows a moment later.
func restrict(c syscall.RawConn, mode os.FileMode) {
	c.Control(func(fd uintptr) { unix.Fchmod(int(fd), uint32(mode.Perm())) })
}

// lockFolder keeps two processes from removing each other's new socket as a stale
// one: the folder is locked while one looks, removes and binds.
func lockFolder(ctx context.Context, path string) (unlock func(), err error) {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return func() {}, nil // it may be writable all the same; if not, bind says so
	}
	for range 100 {
		err = unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		select {
		case <-ctx.Done():
			folder.Close()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	// A file system without locks, or a folder that somebody else keeps locked, is no
	// reason not to serve.
	return func() { folder.Close() }, nil
}
