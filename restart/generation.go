//go:build unix

package restart

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// program is what a worker runs: this program again, found as it was found when it
// was started, so that what is installed there by then is run. Links are not
// resolved: they are how many people install.
type program struct {
	path string
	args []string
	dir  string
}

func thisProgram() (program, error) {
	dir, err := os.Getwd()
	if err != nil {
		return program{}, err
	}
	path := os.Args[0]
	if strings.ContainsRune(path, filepath.Separator) {
		path, err = filepath.Abs(path)
	} else {
		path, err = exec.LookPath(path)
	}
	return program{path, os.Args[1:], dir}, err
}

// linkVar tells a worker where its link is.
const linkVar = "HOLDFAST_LINK"

// ours are variables that are between two processes, and not for the next.
var ours = []string{linkVar, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}

func cleanEnv() (env []string) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.Contains(ours, name) {
			env = append(env, kv)
		}
	}
	return env
}

type phase string

const (
	starting phase = "starting"
	ready    phase = "ready" // it serves, and may yet be rolled back
	serving  phase = "serving"
	leaving  phase = "leaving"
)

// generation is one worker as the supervisor sees it. The loop of the supervisor
// owns it.
type generation struct {
	s       *supervisor
	id      int
	command bool // it is another program: it has signals instead of a link
	became  bool // and runs by now
	phase   phase
	started time.Time

	process  *os.Process
	link     *link
	outbox   chan message
	protocol version
	wants    []want
	load     bool
	calls    bool
	awaits   *generation   // whose state it is to be given
	notify   *notifySocket // a command's

	totals  map[string]int64
	broken  error // why it is not heard any more
	failure error // why it is to be gone
	cutErr  error // why it was not given the time to leave
	status  string
	timers  []*time.Timer
	asked   bool // a program of others was sent its stop signal
	over    bool
	gone    chan struct{} // closed when over
	leaveBy *time.Timer   // kills it, at leaveEnd

	leaveEnd time.Time
}

func (g *generation) pid() int {
	if g.process == nil {
		return 0
	}
	return g.process.Pid
}

// after calls f in the loop, unless the generation is gone by then.
func (g *generation) after(d time.Duration, f func()) *time.Timer {
	t := time.AfterFunc(d, func() {
		g.s.post(func() {
			if !g.over {
				f()
			}
		})
	})
	g.timers = append(g.timers, t)
	return t
}

// spawn starts the process and the goroutines that speak with it.
func (g *generation) spawn() (err error) {
	g.phase = starting
	ourEnd, theirEnd, err := pair()
	if err != nil {
		return err
	}
	defer theirEnd.Close()
	if g.link, err = newLink(ourEnd); err != nil {
		return err
	}
	p := g.s.program
	env := append(cleanEnv(), fmt.Sprintf("%s=%d", linkVar, listenStart+g.s.reserve))
	if r, _ := g.s.cfg.Command.readiness(); g.command && r.how == "notify" {
		if g.notify, err = listenNotify(g.s.cfg.Log); err != nil {
			g.link.close()
			return err
		}
		env = append(env, "NOTIFY_SOCKET="+g.notify.path)
	}
	// The sockets of a Command go to the lowest descriptors. What the runtime opens first
	// must not lie there, so something does: the link will do.
	files := append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, slices.Repeat([]*os.File{theirEnd}, g.s.reserve+1)...)
	g.process, err = os.StartProcess(p.path, append([]string{os.Args[0]}, p.args...), &os.ProcAttr{
		Dir: p.dir, Env: env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Setpgid: true}, // what a terminal signals is for the supervisor
	})
	if err != nil {
		g.link.close()
		g.notify.close()
		return fmt.Errorf("restart: start the successor: %w", err)
	}
	g.notify.serve(g.process.Pid)
	g.outbox = make(chan message, 64)
	heard := make(chan struct{})
	g.s.tasks.Go(func() { g.write() })
	g.s.tasks.Go(func() { defer close(heard); g.read() })
	g.s.tasks.Go(func() { g.wait(heard) })
	return nil
}

// write sends what the loop says, so that the loop never waits for a worker.
func (g *generation) write() {
	for m := range g.outbox {
		if g.link.send(m) != nil {
			g.link.close()
		}
		closeFiles(m.files)
	}
	g.link.close()
}

func (g *generation) read() {
	for {
		m, err := g.link.receive()
		if err != nil {
			g.s.post(func() { g.unheard(err) })
			return
		}
		g.s.post(func() {
			if !g.over {
				g.heard(m)
			} else {
				closeFiles(m.files)
			}
		})
	}
}

// unheard is called when a link has ended. A process that exits gets a moment, for how
// it exits says more; one that lives on cannot be led any more.
func (g *generation) unheard(err error) {
	if g.command {
		g.became = true
		return
	}
	if g.over || g.phase == leaving {
		return
	}
	g.broken = fmt.Errorf("restart: the link to the worker has ended: %w", err)
	g.after(time.Second, func() {
		if g.phase != leaving {
			g.s.fail(g, g.broken)
		}
	})
}

// wait reports the exit, after all that was said before it. What the process left
// behind may hold the link open, so that wait is bounded.
func (g *generation) wait(heard <-chan struct{}) {
	wait := (*os.Process).Wait
	if g.command {
		wait = waitGroup
	}
	state, err := wait(g.process)
	select {
	case <-heard:
	case <-time.After(time.Second):
	}
	g.s.post(func() {
		switch {
		case err != nil:
			g.status = err.Error()
		default:
			g.status = state.String()
		}
		g.s.exited(g)
	})
}

// end frees what belonged to a process that is gone, and its own.
func (g *generation) end() {
	g.over = true
	close(g.gone)
	for _, t := range g.timers {
		t.Stop()
	}
	g.notify.close()
	if g.outbox != nil {
		close(g.outbox)
	}
}

// cause is why the generation ended, in one line.
func (g *generation) cause() error {
	switch {
	case g.failure != nil && g.status != "" && !strings.HasPrefix(g.status, "signal: "): // that was ours
		return fmt.Errorf("%w (%s)", g.failure, g.status)
	case g.failure != nil:
		return g.failure
	}
	when := "by itself"
	switch g.phase {
	case starting:
		when = "before it was ready"
	case ready:
		when = "before it was confirmed"
	}
	return fmt.Errorf("restart: generation %d ended %s: %s", g.id, when, g.status)
}

// lacks is what a generation that is not ready has not done yet.
func (g *generation) lacks() string {
	switch {
	case g.protocol.Version == 0:
		return "it did not come as far as Run"
	case g.awaits != nil:
		return "its predecessor's State.Save has not returned"
	case g.command && g.became:
		return g.s.cfg.Command.lacks()
	}
	return "its State.Load or Start has not returned"
}

// send says something to a worker; files are sent and then closed. One that does
// not read any more is as good as dead.
func (g *generation) send(m message, files ...*os.File) {
	for _, f := range files {
		if fd := dup(f.Fd()); fd != ^uintptr(0) { // without it, what can be drained is
			m.files = append(m.files, int(fd))
		}
		f.Close()
	}
	if g.over || g.outbox == nil {
		closeFiles(m.files)
		return
	}
	select {
	case g.outbox <- m:
	default:
		closeFiles(m.files)
		g.s.fail(g, errors.New("restart: the worker does not read its link"))
	}
}

func (g *generation) tell(k msgKind, v any, files ...int) {
	g.send(encode(k, v, files))
}

// heard is what a worker said.
func (g *generation) heard(m message) {
	switch m.kind {
	case msgHello:
		g.greeted(m)
	case msgReady:
		g.s.ready(g)
	case msgPaused: // clients find the successor; nothing waits for this
	case msgState:
		if n := g.s.next; n != nil && n.awaits == g {
			if state, ours := bytes.CutPrefix(m.body, n.number()); ours { // else of a Save for one that is gone
				n.welcome(state)
			}
		}
	case msgTotals:
		if t, err := decode[map[string]int64](m); err == nil {
			g.totals = t
		}
	case msgFailed:
		if why, err := decode[string](m); err == nil {
			g.failure = errors.New(why)
		}
	case msgFile:
		if m.lost {
			g.s.fail(g, errLost) // the next generation would open another
		} else if w, err := decode[want](m); err == nil && len(m.files) == 1 {
			g.s.sockets.keep(w, m.files[0])
			return
		}
	case msgAnswer:
		g.s.answered(m)
	case msgAsk:
		g.s.leaveAll(g.s.cfg.Timeouts.Drain, nil)
	default:
		if !m.optional {
			g.s.fail(g, fmt.Errorf("restart: the worker sent an unknown message of kind %d", m.kind))
		}
	}
	closeFiles(m.files)
}

// greeted checks who speaks and binds what it wants; that may take its time.
func (g *generation) greeted(m message) {
	h, err := decode[hello](m)
	if err == nil {
		g.protocol, err = protocol.meet(h.Protocol)
	}
	if err != nil {
		g.s.fail(g, err)
		return
	}
	g.wants, g.load, g.calls = h.Wants, h.Load, h.Calls
	ctx, cancel := context.WithTimeout(context.Background(), g.s.cfg.Timeouts.Ready)
	missing := g.s.sockets.missing(h.Wants)
	g.s.tasks.Go(func() {
		defer cancel()
		made, err := bindAll(ctx, missing)
		if !g.s.post(func() { g.bound(made, err) }) {
			closeSockets(made)
		}
	})
}

func (g *generation) bound(made []*socket, err error) {
	if g.over || err != nil {
		closeSockets(made)
		if err != nil && !g.over {
			g.s.fail(g, err)
		}
		return
	}
	g.s.sockets.add(made)
	if g.command {
		for _, one := range made { // as systemd passes them; later it is for those who share them
			unix.SetNonblock(one.fd, g.s.cfg.Command.NonBlocking)
		}
	}
	if old := g.s.current; g.load && old != nil && old.protocol.has(featureState) && g.protocol.has(featureState) {
		g.awaits = old
		old.send(message{kind: msgSave, body: g.number()}) // its answer goes on from here
		return
	}
	g.welcome(nil)
}

// welcome passes everything on.
func (g *generation) welcome(state []byte) {
	g.awaits = nil
	g.tell(msgWelcome, welcome{Protocol: protocol, Generation: g.id})
	for wants, fds := range g.s.sockets.batches(g.wants) {
		g.tell(msgSockets, wants, fds...)
	}
	if g.protocol.has(featureKeys) {
		g.tell(msgKeys, g.s.keys)
	}
	if len(state) > 0 {
		g.send(message{kind: msgState, body: state})
	}
	g.tell(msgBegin, nil)
	if g.command {
		addresses := g.s.sockets.tcp(g.wants)
		g.s.tasks.Go(func() { g.awaitCommand(addresses) })
	}
}

// number is how a worker is told of this generation.
func (g *generation) number() []byte { return binary.BigEndian.AppendUint32(nil, uint32(g.id)) }

// pause stops accepting; a program of others goes on until it is told to leave.
func (g *generation) pause() {
	if !g.command {
		g.tell(msgPause, nil)
	}
}

func (g *generation) resume() {
	if !g.command {
		g.tell(msgResume, nil)
	}
}

// leave asks the worker to drain and exit, and sees to it that it does; to are the
// links that it passes connections over.
func (g *generation) leave(drain time.Duration, to ...*os.File) {
	g.phase = leaving
	end := time.Now().Add(drain + g.s.cfg.Timeouts.Stop)
	if g.leaveBy != nil {
		if end.After(g.leaveEnd) {
			return // it had less time already
		}
		g.leaveBy.Stop()
	}
	g.leaveEnd = end
	if g.command {
		g.askToStop()
	} else {
		g.send(encode(msgLeave, leave{Drain: int64(drain)}, nil), to...)
	}
	g.leaveBy = g.after(drain+g.s.cfg.Timeouts.Stop, func() {
		if g.cutErr == nil {
			g.cutErr = errors.New("restart: it did not leave in time")
			g.s.happened(Cut, g, g.cutErr)
		}
		if g.s.stopping {
			g.s.cuts++
		}
		g.killNow()
	})
}

// kill ends a worker that serves nobody. A program of others may tidy up first.
func (g *generation) kill() {
	if !g.became {
		g.killNow()
		return
	}
	g.askToStop()
	g.after(g.s.cfg.Timeouts.Stop, g.killNow)
}

// askToStop signals a program of others, once: many take a second signal for haste.
func (g *generation) askToStop() {
	if !g.asked {
		g.asked = true
		g.signal(g.s.cfg.Command.stopSignal())
	}
}

func (g *generation) killNow() { g.signal(unix.SIGKILL) }

// signal goes to the process by its handle, never to a number that may be another's
// by now; the group of a program of others is signaled while its leader lives.
func (g *generation) signal(sig os.Signal) {
	if g.process == nil || g.over {
		return
	}
	if g.process.Signal(sig) == nil && g.command && sig == unix.SIGKILL {
		unix.Kill(-g.process.Pid, unix.SIGKILL)
	}
}

// oneLine makes a text fit for a line of a protocol.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, clip(s))
}
