package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// setting is a proxy as it is configured for a comparison.
type setting struct {
	name    string
	of      string // whose it is: "ours", "HAProxy", "nginx", or "direct" for none
	splice  bool   // HAProxy
	buffers int    // nginx, KiB
	shared  bool   // nginx: one listener for all workers
}

var (
	direct        = setting{name: "direct", of: "direct"}
	oursPlain     = setting{name: "ours", of: "ours"}
	haproxyPlain  = setting{name: "HAProxy", of: "HAProxy"}
	haproxySplice = setting{name: "HAProxy splice-auto", of: "HAProxy", splice: true}
	nginx16       = setting{name: "nginx 16 KB", of: "nginx", buffers: 16}
	nginx64       = setting{name: "nginx 64 KB", of: "nginx", buffers: 64}
	nginxShared   = setting{name: "nginx without reuseport", of: "nginx", buffers: 16, shared: true}
)

// proxied is one proxy that runs.
type proxied struct {
	setting
	addr string
	cmd  *exec.Cmd
	in   io.WriteCloser
	dir  string
}

// placing is where processes run: the proxy has one CPU for itself, or all share both.
type placing struct {
	workers int // of the proxy
	front   int // its CPU; −1 is any
	back    int // the CPU of clients and backend; −1 is any
}

var (
	pinned   = placing{workers: 1, front: 1, back: 0}
	unpinned = placing{workers: 2, front: -1, back: -1}
)

// startOn starts a process that may only run on one CPU. What it starts inherits that.
func startOn(cpu int, cmd *exec.Cmd) error {
	if cpu < 0 {
		return cmd.Start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, only unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	only.Set(cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return fmt.Errorf("CPU %d: %w", cpu, err)
	}
	defer unix.SchedSetaffinity(0, &before)
	return cmd.Start()
}

// hosting is what a proxy is to be.
type hosting struct {
	placing
	backend  string
	maxConns int
	cert     string // PEM, of certificate and key; "" is no TLS
	packets  bool   // datagrams too
}

// start runs a proxy and waits until it listens.
func (s setting) start(h hosting) (*proxied, error) {
	if s.of == "direct" {
		return &proxied{setting: s, addr: h.backend}, nil
	}
	dir, err := os.MkdirTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	p := &proxied{setting: s, addr: freeAddr(), dir: dir}
	switch s.of {
	case "ours":
		p.cmd, err = oursCommand(h, p.addr)
	case "HAProxy":
		p.cmd, err = s.haproxyCommand(h, p.addr, dir)
	case "nginx":
		p.cmd, err = s.nginxCommand(h, p.addr, dir)
	}
	if err == nil {
		p.cmd.Stderr = os.Stderr
		if p.in, err = p.cmd.StdinPipe(); err == nil {
			err = startOn(h.front, p.cmd)
		}
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	if err := awaitListener(p.addr); err != nil {
		p.stop()
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	return p, nil
}

func (p *proxied) stop() {
	if p.cmd == nil {
		return
	}
	p.in.Close()
	p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.AfterFunc(5*time.Second, func() { p.cmd.Process.Kill() })
	defer t.Stop()
	p.cmd.Wait()
	os.RemoveAll(p.dir)
}

// alive reports whether it still runs and listens.
func (p *proxied) alive() bool {
	conn, err := net.DialTimeout("tcp", p.addr, time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// pids are its processes.
func (p *proxied) pids() []int {
	if p.cmd == nil {
		return nil
	}
	return descendants(p.cmd.Process.Pid)
}

func oursCommand(h hosting, addr string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVar+"=proxy", "GOMAXPROCS="+strconv.Itoa(h.workers), "ADDR="+addr, "BACKEND="+h.backend, "CERT="+h.cert)
	if h.packets {
		cmd.Env = append(cmd.Env, "PACKETS=1")
	}
	return cmd, nil
}

func (s setting) haproxyCommand(h hosting, addr, dir string) (*exec.Cmd, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, err
	}
	splice, tls := "", ""
	if s.splice {
		splice = "  option splice-auto\n"
	}
	if h.cert != "" {
		tls = " ssl crt " + h.cert
	}
	global := fmt.Sprintf("global\n  nbthread %d\n  maxconn %d\n  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256\n", h.workers, cmp.Or(h.maxConns, 7000))
	if !s.splice {
		global += "  nosplice\n" // pipes it keeps files for
	}
	conf := fmt.Sprintf(`%s  stats socket %s/haproxy.sock expose-fd listeners
defaults
  mode tcp
  backlog 4096
  timeout client 1h
  timeout server 1h
  timeout connect 5s
listen l
  bind %s%s
%s  server s %s
`, global, dir, addr, tls, splice, h.backend)
	return exec.Command(path, "-W", "-db", "-q", "-f", dir+"/haproxy.cfg", "-p", dir+"/haproxy.pid"), os.WriteFile(dir+"/haproxy.cfg", []byte(conf), 0o644)
}

func (s setting) nginxCommand(h hosting, addr, dir string) (*exec.Cmd, error) {
	path, err := exec.LookPath("nginx")
	if err != nil {
		return nil, err
	}
	const module = "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(module); err != nil {
		return nil, fmt.Errorf("%w: install libnginx-mod-stream", err)
	}
	listen, tls := "", ""
	if h.workers > 1 && !s.shared {
		listen = " reuseport"
	}
	if h.cert != "" {
		listen += " ssl"
		tls = fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;", h.cert, h.cert)
	}
	packets := ""
	if h.packets {
		packets = fmt.Sprintf("server { listen %s udp rcvbuf=4m sndbuf=4m%s; proxy_pass %s; proxy_timeout 1m; }", addr, listen, h.backend)
	}
	conf := fmt.Sprintf(`load_module %s;
daemon off; worker_processes %d; worker_rlimit_nofile 20000; pid %s/nginx.pid; error_log /dev/null crit;
events { worker_connections 18500; }
stream { server { listen %s backlog=4096%s; %s proxy_pass %s; proxy_timeout 1h; proxy_connect_timeout 5s;
  proxy_buffer_size %dk; proxy_half_close on; tcp_nodelay on; } %s }
`, module, h.workers, dir, addr, listen, tls, h.backend, s.buffers, packets)
	return exec.Command(path, "-c", dir+"/nginx.conf", "-p", dir, "-e", "/dev/null"), os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644)
}

// exitWithStdin ends the process when its standard input does.
func exitWithStdin() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
}

func newProxy() (*proxy.Proxy, error) {
	backends, err := holdfast.New(holdfast.Static("tcp://"+os.Getenv("BACKEND")), holdfast.Config{})
	if err != nil {
		return nil, err
	}
	cfg := proxy.Config{Cluster: backends}
	if cert := os.Getenv("CERT"); cert != "" {
		cfg.TLS = serve.TLS{CertFile: cert, KeyFile: cert, MinVersion: 0x0304}
	}
	return proxy.New(cfg)
}

// beProxy is ours, as it is shipped. It collects garbage all the time after a line "gc"
// on its standard input, until another line, and ends with it. With CPUPROFILE in the
// environment it writes one there.
func beProxy() error {
	if file := os.Getenv("CPUPROFILE"); file != "" {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		pprof.StartCPUProfile(f)
		defer pprof.StopCPUProfile()
	}
	p, err := newProxy()
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", os.Getenv("ADDR"))
	if err != nil {
		return err
	}
	if os.Getenv("PACKETS") != "" {
		if err := servePackets(os.Getenv("ADDR")); err != nil {
			return err
		}
	}
	stop := make(chan os.Signal, 1)
	go func() {
		var collecting atomic.Bool
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			if collecting.Store(lines.Text() == "gc"); collecting.Load() {
				go collect(&collecting)
			}
		}
		stop <- os.Interrupt
	}()
	go func() {
		<-stop
		p.Close()
	}()
	if err := p.Serve(ln); !errors.Is(err, proxy.ErrClosed) {
		return err
	}
	return nil
}

func collect(on *atomic.Bool) {
	for on.Load() {
		runtime.GC()
		time.Sleep(50 * time.Millisecond)
	}
}

// beRestartableProxy is ours under restart, whose log goes to stdout as JSON.
func beRestartableProxy() error {
	if addr := os.Getenv("ADDR"); os.Getenv("PACKETS") != "" {
		p, err := newPackets()
		if err != nil {
			return err
		}
		return runRestartable(p, restart.BindPacket(p, strings.Replace(addr, "tcp:", "udp:", 1)))
	}
	p, err := newProxy()
	if err != nil {
		return err
	}
	return runRestartable(p, restart.Bind(p, os.Getenv("ADDR")))
}

// descendants are a process and all that it has started, and these in turn.
func descendants(root int) []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
		_, rest, ok := strings.Cut(string(stat), ") ")
		if fields := strings.Fields(rest); ok && len(fields) > 1 && fields[0] != "Z" {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], pid)
		}
	}
	all := []int{root}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// cpuClock is the user and system time that processes have used so far, to the nanosecond.
func cpuClock(pid int) time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|2), &ts) != nil { // the clock of the process, see clock_getcpuclockid(3)
		return 0
	}
	return time.Duration(ts.Nano())
}

func cpuOfAll(pids []int) (sum time.Duration) {
	for _, pid := range pids {
		sum += cpuClock(pid)
	}
	return sum
}

// anonymous is the memory that processes have of their own: heap, stacks, buffers.
func anonymous(pids []int) (bytes int64) {
	for _, pid := range pids {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
				kib, _ := strconv.ParseInt(f[1], 10, 64)
				bytes += kib << 10
			}
		}
	}
	return bytes
}

func openFiles(pids []int) (n int) {
	for _, pid := range pids {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		n += len(entries)
	}
	return n
}
