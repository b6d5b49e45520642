//go:build unix

package restart

import (
	"context"
	"errors"
	"fmt"
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
	files := make([]*os.File, 0, len(w.binds))
	var names []string
	for _, b := range w.binds {
		files, names = append(files, b.raw), append(names, b.name)
	}
	env := append(cleanEnvFor(os.Getenv("NOTIFY_SOCKET")), inheritEnv(names)...)
	resetSignals(slices.Concat(w.cfg.Signals.Restart, w.cfg.Signals.Stop))
	runtime.LockOSThread() // a parent's death is told to a thread, and Exec keeps this one
	dieWithParent(w.cfg.Command.stopSignal())
	if err := place(files); err != nil { // what was there before is gone: nothing may come between this and Exec
		return err
	}
	err = syscall.Exec(path, args, env)
	return fmt.Errorf("restart: run %s: %w", path, err)
}

// place moves the files to 3, 4, … and lets them live on in the command. They may
// lie in each other's way, so all go up first.
func place(files []*os.File) error {
	high := make([]int, len(files))
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, listenStart+len(files)+16)
		if err != nil {
			return os.NewSyscallError("dup", err)
		}
		high[i] = fd
	}
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
func (g *generation) awaitCommand() {
	r, _ := g.s.cfg.Command.readiness() // checked
	ctx, cancel := context.WithTimeout(context.Background(), g.s.cfg.Timeouts.Ready)
	defer cancel()
	if g.becomeReady(ctx, r) {
		g.s.post(func() {
			if !g.over {
				g.s.ready(g)
			}
		})
	}
}

func (g *generation) becomeReady(ctx context.Context, r readiness) bool {
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
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for g.sleep(ctx, probeEvery) {
		if r.how == "http" && answers(ctx, client, r.url) || r.how == "port" && g.accepts(ctx) {
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

// accepts reports whether a connection to one of the sockets was accepted by this
// generation: the one before it accepts from the same sockets.
func (g *generation) accepts(ctx context.Context) bool {
	for _, w := range g.wants {
		address, ok := strings.CutPrefix(w.Addr, "tcp://")
		if !ok || w.Kind != kindStream {
			continue
		}
		if strings.HasPrefix(address, ":") {
			address = "localhost" + address
		}
		d := net.Dialer{Timeout: time.Second}
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			continue
		}
		mine := false
		for range 5 {
			if mine = groupHas(g.process.Pid, conn.LocalAddr().(*net.TCPAddr).Port, conn.RemoteAddr().(*net.TCPAddr).Port); mine || !g.sleep(ctx, 10*time.Millisecond) {
				break
			}
		}
		conn.Close()
		return mine
	}
	return false
}

// notifySocket is where a command says that it is ready, as to systemd.
type notifySocket struct {
	path  string
	conn  *net.UnixConn
	ready chan struct{} // closed at READY=1
	ended chan struct{}
}

// listenNotify opens one for one generation. Its name is abstract where there are
// such, so that nothing is left behind; the kernel vouches for who speaks.
func listenNotify(g *generation) (*notifySocket, error) {
	conn, path, err := notifyListener(g)
	if err != nil {
		return nil, fmt.Errorf("restart: the notify socket: %w", err)
	}
	n := &notifySocket{path: path, conn: conn, ready: make(chan struct{}), ended: make(chan struct{})}
	go n.listen()
	return n, nil
}

func (n *notifySocket) listen() {
	defer close(n.ended)
	buf := make([]byte, 4096)
	oob := make([]byte, 1024)
	said := false
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
		if !said && trusted(oob[:oobn]) && slices.Contains(strings.Split(string(buf[:size]), "\n"), "READY=1") {
			said = true
			close(n.ready)
		}
	}
}

func (n *notifySocket) close() {
	if n != nil {
		n.conn.Close()
		<-n.ended
		if !strings.HasPrefix(n.path, "@") {
			os.Remove(n.path)
		}
	}
}
