package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// fleet is the demo's three servers, each a supervisor and its worker. Its methods
// are for one goroutine, the one that plays the scenario.
type fleet struct {
	self    string // the path of this program
	udp     bool
	servers [len(serverNames)]*member
	broken  chan error // a server ended that nobody had killed

	restarts, rolledBack atomic.Int64
}

// member is one place in the fleet: the address stays, processes come and go.
type member struct {
	name  string
	addr  string
	front string // where the proxy takes its connections; "" without one
	proc  *process
}

// startFleet starts all servers, each on a port of its own choice.
func startFleet(ctx context.Context, udp bool) (*fleet, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &fleet{self: self, udp: udp, broken: make(chan error, 1)}
	for i, name := range serverNames {
		f.servers[i] = &member{name: name}
		if err := f.start(ctx, f.servers[i]); err != nil {
			f.stop()
			return nil, err
		}
	}
	return f, nil
}

// url is an address with its scheme.
func (f *fleet) url(addr string) string {
	if f.udp {
		return "udp://" + addr
	}
	return "tcp://" + addr
}

// Ports from this range are not handed to outgoing connections by any common
// system, so nobody takes the port of a server while it is dead.
const firstPort, ports = 20000, 10000

// start starts a server where it was, or on any port that is free.
func (f *fleet) start(ctx context.Context, m *member) (err error) {
	addrs := []string{m.addr}
	for m.addr == "" && len(addrs) < 20 {
		addrs = append(addrs, freePort())
	}
	for _, addr := range addrs {
		if addr == "" {
			continue
		}
		m.proc, err = startProcess(ctx, f.self, []string{demoServerVerb, f.url(addr)}, func(err error) {
			select {
			case f.broken <- fmt.Errorf("server %s ended by itself: %w", m.name, err):
			default:
			}
		})
		if err == nil {
			m.addr = addr
			return nil
		}
	}
	return fmt.Errorf("server %s: %w", m.name, err)
}

// begin makes true what a phase says.
func (f *fleet) begin(ctx context.Context, before, now phase) error {
	if before.fault != healthy {
		if err := f.revive(ctx, f.servers[before.server], before.fault); err != nil {
			return fmt.Errorf("revive %s: %w", serverNames[before.server], err)
		}
	}
	if now.fault == healthy {
		return nil
	}
	if err := f.hurt(f.servers[now.server].proc, now); err != nil {
		return fmt.Errorf("%s: %w", now.announce(), err)
	}
	return nil
}

func (f *fleet) hurt(p *process, ph phase) error {
	switch ph.fault {
	case killed:
		return p.kill()
	case frozen:
		return p.freeze()
	case restarted:
		return p.restart()
	case failed:
		return errors.Join(p.say("doom"), p.restart())
	}
	return p.say("delay " + ph.delay.String())
}

func (f *fleet) revive(ctx context.Context, m *member, from fault) error {
	switch from {
	case killed:
		return f.start(ctx, m)
	case frozen:
		return m.proc.thaw()
	case restarted:
		f.restarts.Add(1)
		return m.proc.became(ctx, "committed")
	case failed:
		f.rolledBack.Add(1)
		return m.proc.became(ctx, "rolled-back")
	}
	return m.proc.say("delay 0s")
}

// stop ends every process and waits for it. SIGKILL reaches the frozen too.
func (f *fleet) stop() {
	for _, m := range f.servers {
		if m != nil && m.proc != nil {
			m.proc.kill()
		}
	}
}

// process is a running demo-server. It cannot outlive this process: it ends when
// its standard input does, and on Linux the kernel kills it too, which also
// reaches one that is frozen.
type process struct {
	cmd     *exec.Cmd
	control io.Writer
	worker  atomic.Int64  // the pid of the generation that serves
	news    chan string   // what became of the last generation
	doomed  atomic.Bool   // it was killed by us
	done    chan struct{} // closed when it was waited for
}

// startLimit bounds how long a server may take to start, or to be succeeded.
const startLimit = 10 * time.Second

// startProcess starts a server and waits until it serves. ended is called if
// it ends without having been killed.
func startProcess(ctx context.Context, self string, args []string, ended func(error)) (*process, error) {
	cmd := exec.Command(self, args...)
	cmd.SysProcAttr = diesWithParent()
	var said complaint
	cmd.Stderr = &said
	control, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, control: control, news: make(chan string, 16), done: make(chan struct{})}
	p.doomed.Store(true) // until it serves
	go p.wait(out, &said, ended)
	if err := p.became(ctx, "committed"); err != nil {
		p.kill()
		return nil, errors.Join(err, said.err())
	}
	p.doomed.Store(false)
	return p, nil
}

// became waits for what a server says of its last generation.
func (p *process) became(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	select {
	case got, ok := <-p.news:
		switch {
		case !ok:
			return errors.New("it ended")
		case got != want:
			return fmt.Errorf("its generation was %s, not %s", got, want)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("its generation was not %s: %w", want, context.Cause(ctx))
	}
}

// listen reads what the server says of its generations.
func (p *process) listen(out io.Reader) {
	defer close(p.news)
	for in := bufio.NewScanner(out); in.Scan(); {
		word, pid, _ := strings.Cut(in.Text(), " ")
		if n, err := strconv.ParseInt(pid, 10, 64); err == nil && word == "committed" {
			p.worker.Store(n)
		}
		select {
		case p.news <- word:
		default: // a crash that nobody asked for; the load tells
		}
	}
}

// wait reaps the process. Whoever started it waits for done.
func (p *process) wait(out io.Reader, said *complaint, ended func(error)) {
	defer close(p.done)
	p.listen(out)
	err := p.cmd.Wait()
	if !p.doomed.Load() {
		ended(errors.Join(err, said.err()))
	}
}

// kill ends the process at once and waits until it is gone. Killing twice is
// harmless.
func (p *process) kill() error {
	p.doomed.Store(true)
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// say gives the server a command.
func (p *process) say(command string) error {
	_, err := fmt.Fprintln(p.control, command)
	return err
}

// complaint is the beginning of what a server wrote to its standard error.
type complaint struct{ text []byte }

func (c *complaint) Write(p []byte) (int, error) {
	const limit = 512
	c.text = append(c.text, p[:min(len(p), limit-len(c.text))]...)
	return len(p), nil
}

func (c *complaint) err() error {
	if len(c.text) == 0 {
		return nil
	}
	return errors.New(strings.TrimSpace(string(c.text)))
}
