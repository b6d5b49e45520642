package redis

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Server is a real redis-server in a folder of its own. It is exported for the tests
// outside the package.
type Server struct {
	testing.TB
	Addr, Port, Sock string
	args             []string
	cmd              *exec.Cmd
	log              bytes.Buffer
}

// StartServer starts one, on a free port and a Unix socket, with further arguments. Where
// there is none the test is skipped, but not in CI.
func StartServer(t testing.TB, args ...string) *Server {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("there is no redis-server here; .ci/setup installs it")
		}
		t.Skip("no redis-server: ", err)
	}
	dir, err := os.MkdirTemp("", "hf") // short: a socket's path must fit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{TB: t, Port: FreePort(t), Sock: filepath.Join(dir, "redis.sock")}
	s.Addr = "127.0.0.1:" + s.Port
	s.args = append([]string{path, "--port", s.Port, "--bind", "127.0.0.1", "--unixsocket", s.Sock, "--dir", dir,
		"--save", "", "--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0"}, args...)
	s.start()
	t.Cleanup(s.Kill)
	return s
}

func (s *Server) start() {
	s.Helper()
	s.cmd = exec.Command(s.args[0], s.args[1:]...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	for range 1000 {
		if conn, err := net.Dial("unix", s.Sock); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.Kill()
	s.Fatalf("redis-server does not answer:\n%s", &s.log)
}

func (s *Server) Kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

var portsTaken atomic.Int64

// FreePort is one that nobody has: below those that the system gives out by itself.
func FreePort(t testing.TB) string {
	t.Helper()
	text, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	first := 32768
	if f := strings.Fields(string(text)); len(f) == 2 {
		first, _ = strconv.Atoi(f[0])
	}
	for i := range 1000 {
		port := first - 1 - (os.Getpid()*7+i+int(portsTaken.Add(1))*13)%8000
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err == nil {
			ln.Close()
			return strconv.Itoa(port)
		}
	}
	t.Fatal("no free port")
	return ""
}
