//go:build unix && !linux

package restart

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Elsewhere a command outlives its supervisor.
func dieWithParent(os.Signal) {}

func dup2(from, to int) error { return unix.Dup2(from, to) }

func notifyListener(g *generation) (*net.UnixConn, string, error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("holdfast-%d-%d", os.Getpid(), g.id))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	return conn, path, err
}

// The mode of the file is what says who may speak.
func trusted([]byte) bool { return true }

// Whose a connection is cannot be told here; that it is accepted must do.
func groupHas(int, int, int) bool { return true }
