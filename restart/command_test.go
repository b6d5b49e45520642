//go:build linux

package restart_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// A program in any language is restarted without a connection refused or lost, however
// it tells that it is ready.
func TestCommandIsRestarted(t *testing.T) {
	t.Parallel()
	for _, ready := range []string{"notify", "timer=100ms", "port", "http=http://ADDR/"} {
		how, _, _ := strings.Cut(ready, "=")
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "web=tcp://"+addr)
			sock := filepath.Join(s.dir, "sock")
			s.Addrs = append(s.Addrs, "unix:"+sock)
			s.Command = []string{s.bin, "plain", how}
			s.CommandReady = strings.ReplaceAll(ready, "ADDR", addr)
			s.start()
			before := s.files()
			tcp, unix := drive(t, 2, "tcp", addr), drive(t, 1, "unix", sock)
			for range times(5, 100) {
				s.mustRestart()
			}
			tcp.spotless()
			unix.spotless()
			s.alone()
			if pid, _, _ := askAt(t, "tcp", addr, "PING"); pid != s.worker() {
				t.Errorf("%d answers, and the worker is %d", pid, s.worker())
			}
			s.sameFiles(before)
			s.stop()
		})
	}
}

// The environment tells of the sockets as systemd and einhorn do, and has nothing of
// ours.
func TestCommandEnvironment(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "web=tcp://"+addr)
	sock := filepath.Join(s.dir, "sock")
	s.Addrs = append(s.Addrs, "unix:"+sock)
	s.Command, s.CommandReady = []string{s.bin, "plain", "notify"}, "notify"
	s.env = []string{"WATCHDOG_USEC=1000000000", "LISTEN_FDNAMES=old"}
	s.start()
	for name, want := range map[string]string{
		"LISTEN_FDS": "2", "LISTEN_PID": fmt.Sprint(s.worker()), "LISTEN_FDNAMES": "web:unix_" + sock,
		"EINHORN_FD_COUNT": "2", "EINHORN_FD_0": "3", "EINHORN_FD_1": "4",
		"HOLDFAST_LINK": "", "WATCHDOG_USEC": "",
	} {
		if _, _, got := askAt(t, "tcp", addr, "ENV "+name); got != fmt.Sprintf("%q", want) {
			t.Errorf("%s is %s, want %q", name, got, want)
		}
	}
	s.stop()
}

// A command that fails is rolled back, as any successor is; the old one was never told
// to leave.
func TestBadCommand(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "web=tcp://"+addr)
	s.Command, s.CommandReady = []string{s.bin, "plain", "notify"}, "notify"
	s.Ready, s.Confirm = 3*time.Second, time.Second
	s.start()
	first, before := s.worker(), s.files()
	for fail, cause := range map[string]string{
		"exit 3":           "exit status 3",
		"hang":             "not ready within 3s",
		"never accept":     "not ready within 3s",
		"exit after ready": "exit status 4",
	} {
		t.Run(fail, func(t *testing.T) {
			s.TB = t
			s.behave(mode{Fail: fail})
			l := drive(t, 2, "tcp", addr)
			if r := s.restart(); r.OK || !strings.Contains(r.Err, cause) {
				t.Errorf("%+v, want %q", r, cause)
			}
			if fail == "exit after ready" {
				l.losses(4)
			} else {
				l.spotless()
			}
			if w := s.worker(); w != first {
				t.Errorf("%d serves, not %d", w, first)
			}
		})
	}
	s.TB = t
	s.behave(mode{})
	s.mustRestart()
	s.alone()
	s.sameFiles(before)
	s.stop()
}

// The predecessor has the same sockets, and its answers do not make a successor ready.
func TestPredecessorAnswersForItself(t *testing.T) {
	t.Parallel()
	for _, ready := range []string{"port", "http=http://ADDR/"} {
		how, _, _ := strings.Cut(ready, "=")
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "web=tcp://"+addr)
			s.Command, s.CommandReady = []string{s.bin, "plain", how}, strings.ReplaceAll(ready, "ADDR", addr)
			s.Ready = 3 * time.Second
			s.start()
			s.behave(mode{Fail: "never accept"})
			l := drive(t, 2, "tcp", addr)
			if r := s.restart(); r.OK || !strings.Contains(r.Err, "not ready within") {
				t.Errorf("%+v", r)
			}
			l.spotless()
		})
	}
}

// A command that changes its user is still the command; whoever else says that it is
// ready is told of, and not believed.
func TestReadyOfAnotherUser(t *testing.T) {
	t.Parallel()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs setpriv, and root")
	}
	nobody := []string{setpriv, "--reuid", "65534", "--clear-groups"}
	open := func(s *service) {
		os.Chmod(s.dir, 0o755)
		os.Chmod(filepath.Dir(program), 0o755)
		os.Chmod(s.Mode, 0o644)
	}
	s := newService(t, "tcp://"+freeAddr(t))
	open(s)
	s.Command, s.CommandReady = append(nobody, s.bin, "plain", "notify"), "notify"
	s.start()
	s.stop()

	liar := newService(t, "tcp://"+freeAddr(t))
	open(liar)
	script := `setsid setpriv --reuid 65534 --clear-groups /bin/sh -c 'LISTEN_PID=$$ exec $0 plain notify' "$0"; exec sleep 1000`
	liar.Command = []string{"/bin/sh", "-c", script, liar.bin} // of another group
	liar.CommandReady, liar.Ready = "notify", 2*time.Second
	liar.launch()
	if err := liar.exited(); err == nil {
		t.Error("it was believed")
	}
	if n := liar.log.count("is not believed"); n != 1 {
		t.Errorf("the log tells of it %d times", n)
	}
}

// The name under which a command is to say that it is ready cannot be taken before.
func TestNotifySocketIsNotForeseen(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	s.Command, s.CommandReady = []string{s.bin, "plain", "notify"}, "notify"
	s.start()
	_, _, first := s.ask("ENV NOTIFY_SOCKET")
	for id := range 9 {
		squat, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: fmt.Sprintf("@holdfast-%d-%d", s.pid(), id), Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer squat.Close()
	}
	s.mustRestart()
	s.alone()
	if _, _, second := s.ask("ENV NOTIFY_SOCKET"); len(second) != len(first) || second[:20] == first[:20] {
		t.Errorf("after %s came %s", first, second)
	}
	s.stop()

	timed := newService(t, "tcp://"+freeAddr(t))
	timed.Command, timed.CommandReady = []string{timed.bin, "plain", "timer"}, "timer=50ms"
	timed.start()
	if _, _, got := timed.ask("ENV NOTIFY_SOCKET"); got != `""` {
		t.Errorf("one that is not asked to notify has %s", got)
	}
	timed.stop()
}

// A command that the system does not run is the cause, although its sockets lie already
// over what this process was made of.
func TestCommandThatCannotBeRun(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for i := range 20 {
		s.Addrs = append(s.Addrs, fmt.Sprintf("n%d=tcp://%s", i, freeAddr(t)))
	}
	script := filepath.Join(s.dir, "script")
	s.ownFiles = append(s.ownFiles, "script")
	os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755)
	s.Command = []string{script}
	s.launch()
	s.exited()
	if s.log.count("main: restart: run "+script+": no such file or directory") != 1 || s.log.count("epoll") > 0 {
		t.Error("the cause is not told")
	}
	s.nothingLeft()
}

// What we had open for ourselves does not live on in a command.
func TestCommandHasItsSocketsAlone(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t), "tcp://"+freeAddr(t))
	s.Command, s.CommandReady = []string{"/bin/sh", "-c", "exec sleep 1000"}, "timer=300ms"
	s.start()
	s.until("it is there", func() bool {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.worker()))
		return strings.HasPrefix(string(line), "sleep")
	})
	for fd := 3; fd < 100; fd++ { // above may be what these tests were started with
		file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", s.worker(), fd))
		if is, want := err == nil, fd < 3+len(s.Addrs); is != want {
			t.Errorf("descriptor %d is %q", fd, file)
		}
	}
	s.stop()
}

const impatientServer = `
import os, signal, socket, time
times = 0
def stop(*_):
    global times
    times += 1
    os.write(2, b"TERM no %d of %d\n" % (times, os.getpid())) # in one piece: others write there too
signal.signal(signal.SIGTERM, stop)
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
n.sendto(b"READY=1", "\0" + os.environ["NOTIFY_SOCKET"][1:])
while True: time.sleep(0.05)
`

// A command that leaves is signaled once, whatever else is asked for meanwhile: many take
// a second signal for haste.
func TestLeavingCommandIsSignaledOnce(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	s := newService(t, "web=tcp://"+freeAddr(t))
	s.Command, s.CommandReady = []string{python, "-c", impatientServer}, "notify"
	s.Drain, s.Stop = time.Second, time.Second
	s.start()
	first := s.worker()
	s.mustRestart()
	once := fmt.Sprintf("TERM no 1 of %d", first)
	s.until("the first is asked", func() bool { return s.log.count(once) == 1 })
	restart.Stop(t.Context(), s.Admin) // it has to be killed, and says so
	s.exited()
	if s.log.count("TERM no 2") > 0 {
		t.Error("it was signaled again")
	}
	s.nothingLeft()
}

// A command that is missing is the cause; one that was killed comes back.
func TestCommandMissingAndKilled(t *testing.T) {
	t.Parallel()
	s := newService(t, "web=tcp://"+freeAddr(t))
	s.Command = []string{"/no/such/program"}
	s.launch()
	if err := s.exited(); err == nil || !strings.Contains(s.log.String(), "/no/such/program") {
		t.Errorf("%v", err)
	}
	s.nothingLeft()

	addr := freeAddr(t)
	s = newService(t, "web=tcp://"+addr)
	s.Command, s.CommandReady = []string{s.bin, "plain", "notify"}, "notify"
	s.start()
	l := drive(t, 2, "tcp", addr)
	old := s.worker()
	syscall.Kill(old, syscall.SIGKILL)
	s.until("another one serves", func() bool { w := s.worker(); return w != 0 && w != old })
	ok := l.ok.Load()
	s.until("the load flows", func() bool { return l.ok.Load() > ok+10 })
	l.losses(2)
	s.stop()
}

// What a command leaves behind in its process group does not outlive it.
func TestCommandOfManyProcesses(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "web=tcp://"+addr)
	s.Command = []string{"/bin/sh", "-c", "sleep 1000 & exec " + s.bin + " plain notify"}
	s.CommandReady = "notify"
	s.start()
	l := drive(t, 2, "tcp", addr)
	s.mustRestart()
	l.spotless()
	s.stop()
}

const pythonServer = `
import os, signal, socket, socketserver, threading
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            verb, rest = line.split(None, 1)
            self.wfile.write(b"%d - PONG %s" % (os.getpid(), rest))
class Server(socketserver.ThreadingTCPServer):
    block_on_close = True
server = Server(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.socket.setblocking(False) # two generations share it: the other may be first
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
path = os.environ["NOTIFY_SOCKET"]
n.sendto(b"READY=1", "\0" + path[1:] if path[0] == "@" else path)
server.serve_forever(poll_interval=0.05)
server.server_close()
`

func TestPythonServerIsRestarted(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	addr := freeAddr(t)
	s := newService(t, "web=tcp://"+addr)
	s.Command, s.CommandReady = []string{python, "-c", pythonServer}, "notify"
	s.start()
	l := drive(t, 2, "tcp", addr)
	for range times(3, 50) {
		s.mustRestart()
	}
	l.spotless()
	s.stop()
}

// Whether a socket blocks is the same for all who share it, so a successor that is
// started must not change it under a program that serves: its accept loop would hang,
// and it could never leave.
func TestCommandStartsWithoutChangingSharedSockets(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "web=tcp://"+addr)
	s.Command, s.CommandReady = []string{s.bin, "plain", "notify"}, "notify"
	s.Ready, s.Drain = 3*time.Second, time.Minute
	s.start()
	s.behave(mode{Fail: "hang"}) // it gets its sockets, and does nothing with them
	failed := make(chan bool, 1)
	go func() { failed <- !s.restart().OK }()
	s.until("there are two", func() bool { return len(s.status().Generations) == 2 })
	for done := false; !done; {
		select {
		case ok := <-failed:
			if done = true; !ok {
				t.Error("it went well")
			}
		default:
			askAt(t, "tcp", addr, "PING")
		}
	}
	s.behave(mode{})
	s.mustRestart()
	s.alone()
	s.stop()
}
