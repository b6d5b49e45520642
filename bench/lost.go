package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// contender is a server that is restarted under the load of `holdfast bench restart`.
type contender struct {
	name     string
	protocol string
	start    func(dir, addr string) (*exec.Cmd, error)
	restart  func(dir string) string // for the shell
}

const lostRestarts = 10

// lostPerRestart restarts us and the peers under the same load, and counts what the
// clients lost.
func lostPerRestart() ([]figure, error) {
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "../cmd/holdfast")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	ours := contender{"holdfast echo", "ping",
		func(dir, addr string) (*exec.Cmd, error) {
			return exec.Command(program, "echo", "-l", "tcp://"+addr, "--max-conns", "5000", "--admin", dir+"/admin.sock", "--confirm", "100ms"), nil
		},
		func(dir string) string { return program + " restart --wait --admin " + dir + "/admin.sock" },
	}
	quiet, err := lose(program, dir, ours, "true")
	if err != nil {
		return nil, err
	}
	us, err := lose(program, dir, ours, "")
	if err != nil {
		return nil, err
	}
	var beside []string
	for _, peer := range []contender{nginx, haproxy} {
		got, err := lose(program, dir, peer, "")
		switch {
		case errors.Is(err, exec.ErrNotFound):
			beside = append(beside, peer.name+" is not installed")
		case err != nil:
			return nil, fmt.Errorf("%s: %w", peer.name, err)
		default:
			beside = append(beside, fmt.Sprintf("%s %.1f (%d of %d)", peer.name, float64(got.Lost)/lostRestarts, got.Lost, got.requests()))
		}
	}
	slower := us.worst() - quiet.worst()
	return []figure{
		{"restart: lost per restart, fresh, kept and held", fmt.Sprintf("%.1f (%d of %d requests)", float64(us.Lost)/lostRestarts, us.Lost, us.requests()),
			strings.Join(beside, ", "), "0", verdict(us.Lost == 0)},
		{"restart: p99.9 during restarts", fmt.Sprintf("%.1f ms", us.worst()), fmt.Sprintf("without them %.1f ms", quiet.worst()), "≤ +50 ms", verdict(slower <= 50)},
	}, nil
}

// loss is what `holdfast bench restart --json` says.
type loss struct {
	Lost  int `json:"lost"`
	Loads []struct {
		Requests int     `json:"requests"`
		P999     float64 `json:"p999_ms"`
	} `json:"loads"`
}

func (l loss) requests() (n int) {
	for _, one := range l.Loads {
		n += one.Requests
	}
	return n
}

func (l loss) worst() (ms float64) {
	for _, one := range l.Loads {
		ms = max(ms, one.P999)
	}
	return ms
}

// lose runs one contender; command replaces its restart if it is not "".
func lose(program, dir string, c contender, command string) (l loss, err error) {
	addr := freeAddr()
	server, err := c.start(dir, addr)
	if err != nil {
		return l, err
	}
	if err := server.Start(); err != nil {
		return l, err
	}
	defer func() {
		server.Process.Signal(syscall.SIGTERM)
		t := time.AfterFunc(5*time.Second, func() { server.Process.Kill() })
		defer t.Stop()
		server.Wait()
	}()
	if err := awaitListener(addr); err != nil {
		return l, err
	}
	if command == "" {
		command = c.restart(dir)
	}
	out, err := exec.Command(program, "bench", "restart", "--json", "--restarts", fmt.Sprint(lostRestarts),
		"--protocol", c.protocol, "--restart-command", command, addr).Output()
	if len(out) == 0 && err != nil {
		return l, fmt.Errorf("bench restart: %w", err)
	}
	return l, json.Unmarshal(out, &l) // exit code 1 is that something was lost
}

func awaitListener(addr string) error {
	for range 200 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("nobody listens on %s", addr)
}

// The peers answer HTTP, for that is what they keep alive.
var nginx = contender{"nginx HUP", "http",
	func(dir, addr string) (*exec.Cmd, error) {
		path, err := exec.LookPath("nginx")
		if err != nil {
			return nil, err
		}
		conf := fmt.Sprintf(`daemon off; worker_processes 2; pid %s/nginx.pid; error_log /dev/null;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000; client_body_temp_path %s; proxy_temp_path %s; fastcgi_temp_path %s; uwsgi_temp_path %s; scgi_temp_path %s;
server { listen %s backlog=4096; location / { return 200 "ok"; } } }`, dir, dir, dir, dir, dir, dir, addr)
		return exec.Command(path, "-c", dir+"/nginx.conf", "-p", dir, "-e", "/dev/null"), os.WriteFile(dir+"/nginx.conf", []byte(conf), 0o644)
	},
	func(dir string) string { return "kill -HUP $(cat " + dir + "/nginx.pid); sleep 0.2" },
}

var haproxy = contender{"HAProxy USR2", "http",
	func(dir, addr string) (*exec.Cmd, error) {
		path, err := exec.LookPath("haproxy")
		if err != nil {
			return nil, err
		}
		conf := fmt.Sprintf(`global
  stats socket %s/haproxy.sock expose-fd listeners
  maxconn 4000
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
frontend f
  bind %s
  http-request return status 200 content-type text/plain string ok
`, dir, addr)
		return exec.Command(path, "-W", "-q", "-f", dir+"/haproxy.cfg", "-p", dir+"/haproxy.pid"), os.WriteFile(dir+"/haproxy.cfg", []byte(conf), 0o644)
	},
	func(dir string) string { return "kill -USR2 $(head -1 " + dir + "/haproxy.pid); sleep 0.2" },
}
