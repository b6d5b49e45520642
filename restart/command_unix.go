//go:build unix

package restart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// become replaces this process by the command, with its sockets from descriptor 3
// on. That LISTEN_PID must be the command's own pid is why a worker is started for
// it first.
func (w *underling) become(args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	var files []syscall.Conn
	var names []string
	for _, b := range w.binds {
		files, names = append(files, b.raw), append(names, b.name)
	}
	env := append(cleanEnvFor(os.Getenv("NOTIFY_SOCKET")), inheritEnv(names)...)
	resetSignals(slices.Concat(w.cfg.Signals.Restart, w.cfg.Signals.Stop))
	high, err := lift(append(files, w.link.conn))
	if err != nil {
		return err
	}
	runtime.LockOSThread() // a parent's death is told to a thread, and Exec keeps this one
	if err := dieWithParent(w.cfg.Command.stopSignal(), w.parent); err != nil {
		return err
	}
	if err = place(high[:len(files)]); err == nil {
		err = syscall.Exec(path, args, env)
	}
	// More of them than the supervisor kept descriptors free for lie over the link, and over
	// what the runtime polls: all that is still safe is a system call, and the exit.
	failed := encode(msgFailed, clip(fmt.Sprintf("restart: run %s: %v", path, err)), nil)
	unix.Write(high[len(files)], failed.bytes())
	os.Exit(1)
	return nil
}

// lift duplicates descriptors to above where they are to be, so that none lies in
// another's way.
func lift(files []syscall.Conn) (high []int, err error) {
	err = withFDs(files, nil, func(fds []int) error {
		for _, fd := range fds {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, listenStart+len(fds)+16)
			if err != nil {
				return os.NewSyscallError("dup", err)
			}
			high = append(high, n)
		}
		return nil
	})
	return high, err
}

// place moves what was lifted to 3, 4, … and lets it live on in the command.
func place(high []int) error {
	for i, fd := range high {
		if err := dup2(fd, listenStart+i); err != nil {
			return os.NewSyscallError("dup", err)
		}
	}
	return nil
}

// inheritEnv tells of the sockets, in the words of systemd and of einhorn.
func inheritEnv(names []string) []string {
	n := strconv.Itoa(len(names))
	clean := make([]string, len(names))
	for i, name := range names {
		clean[i] = strings.ReplaceAll(name, ":", "_") // ":" separates them
	}
	env := []string{
		"LISTEN_PID=" + strconv.Itoa(os.Getpid()), "LISTEN_FDS=" + n, "LISTEN_FDNAMES=" + strings.Join(clean, ":"),
		"EINHORN_FD_COUNT=" + n,
	}
	for i := range names {
		env = append(env, fmt.Sprintf("EINHORN_FD_%d=%d", i, listenStart+i))
	}
	return env
}

func cleanEnvFor(notify string) []string {
	env := cleanEnv()
	if notify != "" {
		env = append(env, "NOTIFY_SOCKET="+notify)
	}
	return env
}

// awaitCommand reports the readiness of a program that does not speak on the link.
func (g *generation) awaitCommand(addresses []string) {
	r, _ := g.s.cfg.Command.readiness() // checked
	ctx, cancel := context.WithTimeout(context.Background(), g.s.cfg.Timeouts.Ready)
	defer cancel()
	if g.becomeReady(ctx, r, addresses) {
		g.s.post(func() {
			if !g.over {
				g.s.ready(g)
			}
		})
	}
}

func (g *generation) becomeReady(ctx context.Context, r readiness, addresses []string) bool {
	switch r.how {
	case "timer":
		return g.sleep(ctx, r.after)
	case "notify":
		select {
		case <-g.notify.ready:
			return true
		case <-g.gone:
			return false
		case <-ctx.Done():
			return false
		}
	}
	p := probe{g, addresses}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: p.dial}}
	for g.sleep(ctx, probeEvery) {
		if r.how == "http" && answers(ctx, client, r.url) || r.how == "port" && p.reaches(ctx) {
			return true
		}
	}
	return false
}

// sleep waits while the process lives; false is that it is over.
func (g *generation) sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-g.gone:
		return false
	case <-ctx.Done():
		return false
	}
}

// probe connects to one generation: the one before it accepts from the same sockets.
type probe struct {
	g         *generation
	addresses []string // of the TCP sockets that both have
}

// reaches reports whether the generation has accepted a connection to one of the sockets.
func (p probe) reaches(ctx context.Context) bool {
	for _, address := range p.addresses {
		if conn, err := p.dial(ctx, "tcp", address); err == nil {
			conn.Close()
			return true
		}
	}
	return false
}

var errAnother = errors.New("restart: another generation has accepted the connection, or none")

// dial is a Dialer's DialContext. A port that is not of our sockets is the program's own.
func (p probe) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	ours, theirs := conn.LocalAddr().(*net.TCPAddr).Port, conn.RemoteAddr().(*net.TCPAddr).Port
	shared := slices.ContainsFunc(p.addresses, func(a string) bool { return strings.HasSuffix(a, ":"+strconv.Itoa(theirs)) })
	for tries := 5; shared && !groupHas(p.g.process.Pid, ours, theirs); tries-- {
		if tries == 0 || !p.g.sleep(ctx, 10*time.Millisecond) {
			conn.Close()
			return nil, errAnother
		}
	}
	return conn, nil
}

// notifySocket is where a command says that it is ready, as to systemd.
type notifySocket struct {
	log   *slog.Logger
	path  string
	conn  *net.UnixConn
	ready chan struct{} // closed at READY=1
	ended chan struct{} // closed when serve's goroutine has; nil before
}

// listenNotify opens one for one generation. Its name is abstract where there are
// such, so that nothing is left behind; the kernel vouches for who speaks.
func listenNotify(log *slog.Logger) (*notifySocket, error) {
	conn, path, err := notifyListener()
	if err != nil {
		return nil, fmt.Errorf("restart: the notify socket: %w", err)
	}
	return &notifySocket{log: log, path: path, conn: conn, ready: make(chan struct{})}, nil
}

// serve begins to listen to the group of that leader.
func (n *notifySocket) serve(leader int) {
	if n != nil {
		n.ended = make(chan struct{})
		go n.listen(leader)
	}
}

func (n *notifySocket) listen(leader int) {
	defer close(n.ended)
	buf := make([]byte, 4096)
	oob := make([]byte, 1024)
	said, warned := false, false
	for {
		size, oobn, _, _, err := n.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for i := range messages {
				if files, err := unix.ParseUnixRights(&messages[i]); err == nil {
					closeFiles(files) // FDSTORE=1 is not for us
				}
			}
		}
		if said || !slices.Contains(strings.Split(string(buf[:size]), "\n"), "READY=1") {
			continue
		}
		if err := trusted(oob[:oobn], leader); err == nil {
			said = true
			close(n.ready)
		} else if !warned {
			warned = true
			n.log.Warn("restart: a READY=1 is not believed", "err", err)
		}
	}
}

func (n *notifySocket) close() {
	if n != nil {
		n.conn.Close()
		if n.ended != nil {
			<-n.ended
		}
		if !strings.HasPrefix(n.path, "@") {
			os.Remove(n.path)
		}
	}
}
