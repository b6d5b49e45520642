//go:build linux

package restart_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// program is testdata/server, built once without the race detector: it is the load of
// these tests, and the package's own race tests are in process.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if _, worker := os.LookupEnv("HOLDFAST_LINK"); worker {
		return 1 // of a Run in this process, which was to fail before
	}
	dir, err := os.MkdirTemp("", "restart")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "server")
	if out, err := exec.Command("go", "build", "-o", program, "./testdata/server").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build testdata/server: %v\n%s", err, out)
		return 1
	}
	flag.Parse()
	if flag.Lookup("test.parallel").Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		flag.Set("test.parallel", "6") // most of the time they wait for processes
	}
	return m.Run()
}

// soak reports whether the long form was asked for.
var soak = os.Getenv("HOLDFAST_SOAK") != ""

// times is how often something happens here, and how often in the long form.
func times(short, long int) int {
	if soak {
		return long
	}
	return short
}

// rest lets crashes be forgotten after some, as a worker is trusted that serves for 10 s:
// the pauses before the next would outgrow all patience.
func rest(nth int) {
	if nth%5 == 4 {
		time.Sleep(15 * time.Second) // the last one may still be pausing
	}
}

// settings and mode are those of testdata/server.
type settings struct {
	Admin, PIDFile              string
	Mode                        string
	Kind                        string
	Addrs                       []string
	Confirm, Ready, Drain, Stop time.Duration
	Generations                 int
	Command                     []string
	CommandReady                string
	Packet                      []string
	Keep                        string
	State, Mover, NotifyContext bool
	NoCalls                     bool
}

type mode struct {
	Build    string
	Fail     string
	Addrs    []string
	Protocol int
	Save     string
}

// service is a supervisor with its workers.
type service struct {
	testing.TB
	settings
	dir  string
	bin  string   // a link to the program, as an installation has it
	env  []string // besides the test's
	argv []string // what starts the supervisor; nil is bin
	fds  []*os.File
	cmd  *exec.Cmd
	log  *lines
	end  chan struct{} // closed when the supervisor has exited
	err  error         // how, after that

	ownFiles []string // that may be left in dir
}

// newService has not been started yet. Its folder is short: a socket's path is.
func newService(t testing.TB, addrs ...string) *service {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	s := &service{TB: t, dir: dir, bin: filepath.Join(dir, "bin"), log: &lines{}, end: make(chan struct{})}
	s.settings = settings{
		Admin: filepath.Join(dir, "admin"), Mode: filepath.Join(dir, "mode"), Addrs: addrs,
		Confirm: 100 * time.Millisecond, Ready: 10 * time.Second, Drain: 5 * time.Second, Stop: 2 * time.Second,
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.install(program)
	s.behave(mode{})
	return s
}

// start starts it and waits until it serves.
func (s *service) start() *service {
	s.Helper()
	s.launch()
	s.until("it serves", func() bool {
		status, err := restart.Ask(s.Context(), s.Admin)
		return err == nil && status.Generation > 0
	})
	return s
}

func (s *service) launch() {
	s.Helper()
	text, err := json.Marshal(s.settings)
	if err != nil {
		s.Fatal(err)
	}
	argv := s.argv
	if argv == nil {
		argv = []string{s.bin}
	}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Env = append(append(os.Environ(), "SERVER_SETTINGS="+string(text), s.mark()), s.env...)
	s.cmd.Stderr, s.cmd.Stdout = s.log, s.log
	s.cmd.ExtraFiles = s.fds
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.cmd.WaitDelay = time.Second
	if err := s.cmd.Start(); err != nil {
		s.Fatal(err)
	}
	end, cmd := s.end, s.cmd
	go func() { s.err = cmd.Wait(); close(end) }()
	s.Cleanup(func() {
		cmd.Process.Kill()
		<-end
		s.killAll()
		if s.Failed() {
			s.Logf("log of %s:\n%s", s.dir, s.log)
		}
	})
}

// again starts another supervisor of the same service.
func (s *service) again() *service {
	s.Helper()
	n := *s
	n.log, n.end, n.err = &lines{}, make(chan struct{}), nil
	n.launch()
	return &n
}

// mark is what all processes of this service have in their environment.
func (s *service) mark() string { return "SERVER_OF=" + s.dir }

// processes are all that live, zombies too.
func (s *service) processes() (pids []int) {
	entries, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, e := range entries {
		text, _ := os.ReadFile(e)
		if slices.Contains(strings.Split(string(text), "\x00"), s.mark()) {
			pid, _ := strconv.Atoi(strings.Split(e, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *service) killAll() {
	for range 50 {
		pids := s.processes()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// zombies are dead children of the supervisor that nobody waits for.
func (s *service) zombies() []int { return zombiesOf(s.pid()) }

func zombiesOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, _ := os.ReadFile(stat)
		field := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(field) > 1 && field[0] == "Z" && field[1] == strconv.Itoa(parent) {
			pid, _ := strconv.Atoi(strings.Split(stat, "/")[2])
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *service) pid() int { return s.cmd.Process.Pid }

// install makes the program another one, in one step.
func (s *service) install(path string) {
	s.Helper()
	next := s.bin + ".new"
	if err := os.Symlink(path, next); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(next, s.bin); err != nil {
		s.Fatal(err)
	}
}

// behave says how the next generation will be.
func (s *service) behave(m mode) {
	s.Helper()
	text, _ := json.Marshal(m)
	if err := os.WriteFile(s.Mode+".new", text, 0o600); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(s.Mode+".new", s.Mode); err != nil {
		s.Fatal(err)
	}
}

// until waits for what must come; how long that may take is not what is tested.
func (s *service) until(what string, so func() bool) {
	s.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("never: %s", what)
		}
		select {
		case <-s.end:
			time.Sleep(50 * time.Millisecond) // for what it said at last
			if !so() {
				s.Fatalf("the supervisor ended (%v) before: %s", s.err, what)
			}
			return
		default:
		}
	}
}

// exited waits for the end of the supervisor and returns how it was.
func (s *service) exited() error {
	s.Helper()
	select {
	case <-s.end:
	case <-time.After(20 * time.Second):
		s.Fatal("the supervisor does not exit")
	}
	return s.err
}

func (s *service) signal(sig syscall.Signal) {
	s.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.Fatal(err)
	}
}

// restart asks for one, and says how it went.
func (s *service) restart() restart.Result {
	s.Helper()
	r, err := restart.Restart(s.Context(), s.Admin)
	if err != nil {
		s.Fatal(err)
	}
	return r
}

// mustRestart asks for one that must go well.
func (s *service) mustRestart() restart.Result {
	s.Helper()
	r := s.restart()
	if !r.OK {
		s.Fatalf("restart: %+v", r)
	}
	return r
}

func (s *service) status() restart.Status {
	s.Helper()
	status, err := restart.Ask(s.Context(), s.Admin)
	if err != nil {
		s.Fatal(err)
	}
	return status
}

// worker is the pid of the generation that serves.
func (s *service) worker() int {
	status := s.status()
	for _, g := range status.Generations {
		if g.Generation == status.Generation {
			return g.PID
		}
	}
	return 0
}

// alone waits until one generation is left.
func (s *service) alone() {
	s.Helper()
	s.until("one generation is left", func() bool { return len(s.status().Generations) == 1 })
}

// files are the open descriptors of the supervisor.
func (s *service) files() (open []string) {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.pid()))
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		if kind, _, numbered := strings.Cut(target, ":["); numbered {
			target = kind
		}
		open = append(open, target)
	}
	slices.Sort(open)
	return open
}

// sameFiles waits until the supervisor has no more open than before.
func (s *service) sameFiles(before []string) {
	s.Helper()
	for end := time.Now().Add(5 * time.Second); len(s.files()) > len(before); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.Errorf("the supervisor had these files open:\n%q\nand has now:\n%q", before, s.files())
			return
		}
	}
}

// leftovers are files in the folder that are not the test's.
func (s *service) leftovers() (names []string) {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if n := e.Name(); n != "bin" && n != "mode" && !slices.Contains(s.ownFiles, n) {
			names = append(names, n)
		}
	}
	return names
}

// stop ends it well: with status 0, and nothing left behind.
func (s *service) stop() {
	s.Helper()
	s.until("no zombie is left", func() bool { return len(s.zombies()) == 0 })
	if err := restart.Drain(s.Context(), s.Admin); err != nil {
		s.Errorf("drain: %v", err)
	}
	if err := s.exited(); err != nil {
		s.Errorf("the supervisor ended with %v", err)
	}
	s.nothingLeft()
}

func (s *service) nothingLeft() {
	s.Helper()
	if left := s.leftovers(); len(left) > 0 {
		s.Errorf("files were left: %q", left)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids := s.processes()
		if len(pids) == 0 {
			return
		}
		if time.Now().After(end) {
			s.Errorf("processes were left: %v", pids)
			return
		}
	}
}

// lines collects what a process says.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) count(text string) int { return strings.Count(l.String(), text) }

// ports are below those that the system gives to connections: a port that a client has
// by chance cannot be bound.
var ports atomic.Uint32

// freeAddr is a TCP address that nobody has, and nobody else will be given.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := 10000 + (uint32(os.Getpid())*131+ports.Add(1))%20000
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer ln.Close()
		return ln.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}

// client is one connection that speaks lines.
type client struct {
	testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func dial(t testing.TB, network, addr string) *client {
	t.Helper()
	conn, err := net.DialTimeout(network, addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client{t, conn, bufio.NewReader(conn)}
}

// try sends a line and returns the answer.
func (c *client) try(line string) (string, error) {
	c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(c.conn, line); err != nil {
		return "", err
	}
	answer, err := c.in.ReadString('\n')
	return strings.TrimSpace(answer), err
}

// ask sends a line and returns who answered, and what.
func (c *client) ask(line string) (pid int, build, text string) {
	c.Helper()
	answer, err := c.try(line)
	if err != nil {
		c.Fatalf("%s: %v", line, err)
	}
	part := strings.SplitN(answer, " ", 3)
	if len(part) < 3 {
		c.Fatalf("%s: answer %q", line, answer)
	}
	pid, _ = strconv.Atoi(part[0])
	return pid, part[1], part[2]
}

// ask asks over a fresh connection to the first of the addresses.
func (s *service) ask(line string) (pid int, build, text string) {
	s.Helper()
	return askAt(s, "tcp", strings.TrimPrefix(s.Addrs[0], "tcp://"), line)
}

func askAt(t testing.TB, network, addr, line string) (pid int, build, text string) {
	t.Helper()
	c := dial(t, network, addr)
	defer c.conn.Close()
	return c.ask(line)
}

// gone waits for the end of the connection.
func (c *client) gone() error {
	c.conn.SetReadDeadline(time.Now().Add(15 * time.Second))
	_, err := c.in.ReadByte()
	return err
}

// within bounds a test's own calls.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
