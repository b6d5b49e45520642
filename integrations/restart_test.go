package integrations

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// restarts is how often a server of others is restarted under load.
const restarts = 5

// restartUnderLoad wants every connection answered, over all restarts.
func restartUnderLoad(t *testing.T, s *service, ask, want string) {
	t.Helper()
	l := pour(t, s.addr, ask, want)
	for range restarts {
		l.flow()
		s.restart()
	}
	l.flow()
	l.spotless()
}

func TestPythonIsRestarted(t *testing.T) {
	t.Parallel()
	addr, _ := freeAddr(t)
	s := startService(t, addr, "run", "--ready", "timer=200ms", "--", need(t, "python3"), filepath.Join("testdata", "server.py"))
	restartUnderLoad(t, s, "hello\n", "hello\n")
}

func TestHAProxyIsRestarted(t *testing.T) {
	t.Parallel()
	need(t, "haproxy")
	addr, _ := freeAddr(t)
	s := startService(t, addr, "run", "--ready", "timer=200ms", "--stop-signal", "USR1", "--",
		need(t, "haproxy"), "-f", haproxyConfig(t, "fd@3", startEcho(t), ""))
	restartUnderLoad(t, s, "hello\n", "hello\n")
}

// nginx finds the sockets that it inherits in its variable NGINX, as "3;4;", and knows
// them by the addresses they are bound to.
func TestNginxIsRestarted(t *testing.T) {
	t.Parallel()
	nginx := need(t, "nginx")
	addr, _ := freeAddr(t)
	s := startService(t, addr, "run", "--ready", "http=http://"+addr+"/", "--stop-signal", "QUIT", "--non-blocking", "--",
		"env", "NGINX=3;", nginx, "-p", shortDir(t), "-c", nginxConfig(t, addr), "-e", "stderr")
	restartUnderLoad(t, s, "GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n")
}

func nginxConfig(t *testing.T, addr string) string {
	return writeFile(t, "nginx.conf", fmt.Sprintf(`
daemon off;
worker_processes 1;
pid nginx.pid;
events { }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server {
		listen %s;
		location / { return 200 "hello\n"; }
	}
}
`, addr))
}

// haproxyConfig forwards from one socket to one server; how is what its line adds.
func haproxyConfig(t *testing.T, bind, server, how string) string {
	return writeFile(t, "haproxy.cfg", fmt.Sprintf(`
global
	nbthread 1
defaults
	mode tcp
	timeout connect 5s
	timeout client 10s
	timeout server 10s
listen front
	bind %s
	server back %s %s
`, bind, server, how))
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startEcho is a server of the test's own that sends back the lines it is sent.
func startEcho(t *testing.T) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, bufio.NewReader(conn))
			}()
		}
	}()
	return ln.Addr().String()
}
