//go:build unix && !linux

package restart

import (
	"crypto/rand"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Elsewhere a command outlives its supervisor.
func dieWithParent(os.Signal, int) error { return nil }

// waitGroup waits for a process, and ends what is left of its group.
func waitGroup(p *os.Process) (*os.ProcessState, error) {
	state, err := p.Wait()
	unix.Kill(-p.Pid, unix.SIGKILL)
	return state, err
}

func dup2(from, to int) error { return unix.Dup2(from, to) }

func notifyListener() (*net.UnixConn, string, error) {
	path := filepath.Join(os.TempDir(), "holdfast-"+rand.Text())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	return conn, path, err
}

// The mode of the file is what says who may speak.
func trusted([]byte, int) error { return nil }

// Whose a connection is cannot be told here; that it is accepted must do.
func groupHas(int, int, int) bool { return true }
