package sockopt

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestPeerUID(t *testing.T) {
	unix, _ := connect(t, listen(t, "unix", filepath.Join(t.TempDir(), "s")), Options{})
	if got := PeerUID(unix.(syscall.Conn)); got != os.Getuid() {
		t.Errorf("%d is at the other end, want %d", got, os.Getuid())
	}
	tcp, _ := connect(t, listen(t, "tcp", "127.0.0.1:0"), Options{})
	if got := PeerUID(tcp.(syscall.Conn)); got != -1 {
		t.Errorf("%d is at the other end of a TCP connection", got)
	}
	if got := PeerUID(&net.UnixConn{}); got != -1 {
		t.Errorf("%d is at the other end of nothing", got)
	}
}
