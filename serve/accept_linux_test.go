package serve_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A4 on a real socket: a process with few files. The server runs in a child.
func TestAcceptWithoutFiles(t *testing.T) {
	if os.Getenv("SERVE_TEST_FILES") != "" {
		serveWithoutFiles(t)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^TestAcceptWithoutFiles$", "-test.v")
	child.Env = append(os.Environ(), "SERVE_TEST_FILES=1")
	out, err := child.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func serveWithoutFiles(t *testing.T) {
	for _, workers := range []int{0, 4} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) { serveWithoutFilesBy(t, workers) })
	}
}

func serveWithoutFilesBy(t *testing.T, workers int) {
	srv := echoes()
	srv.Workers = workers
	srv.Limits.MaxConns = -1
	addr := start(t, srv)
	kept := dial(t, addr)
	kept.ask("before")
	late := sockets(t, 3)
	held := takeFiles(t)
	for _, fd := range late {
		connect(t, fd, addr)
		tv := unix.Timeval{Sec: 10}
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		begin := time.Now()
		if n, err := unix.Read(fd, make([]byte, 1)); n > 0 || err == unix.EAGAIN {
			t.Errorf("read %d, %v; want to learn at once that nobody serves", n, err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
	}
	kept.ask("those that are in are served")
	for _, f := range held {
		f.Close()
	}
	for _, fd := range late { // not before: the server would have it
		unix.Close(fd)
	}
	again := dial(t, addr)
	again.ask("the loop has recovered")
	if n := srv.Stats().AcceptErrors; n == 0 {
		t.Error("no error was counted")
	}
	kept.Close()
	again.Close()
}

// sockets are made while there are files for them.
func sockets(t *testing.T, n int) (fds []int) {
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func connect(t *testing.T, fd int, addr net.Addr) {
	to := addr.(*net.TCPAddr)
	sa := &unix.SockaddrInet4{Port: to.Port}
	copy(sa.Addr[:], to.IP.To4())
	if err := unix.Connect(fd, sa); err != nil {
		t.Error(err)
	}
}

// takeFiles opens all that the process may.
func takeFiles(t *testing.T) (all []io.Closer) {
	limit := unix.Rlimit{Cur: 128, Max: 128}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return all
		}
		all = append(all, f)
	}
}
