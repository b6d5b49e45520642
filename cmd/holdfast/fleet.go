package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"
)

// fleet is the demo's three servers, each a process of its own. Its methods are
// for one goroutine, the one that plays the scenario.
type fleet struct {
	self    string // the path of this program
	servers [len(serverNames)]*member
	broken  chan error // a server ended that nobody had killed
}

// member is one place in the fleet: the address stays, processes come and go.
type member struct {
	name string
	addr string
	proc *process
}

// startFleet starts all servers, each on a port of its own choice.
func startFleet(ctx context.Context) (*fleet, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &fleet{self: self, broken: make(chan error, 1)}
	for i, name := range serverNames {
		f.servers[i] = &member{name: name}
		if err := f.start(ctx, f.servers[i]); err != nil {
			f.stop()
			return nil, err
		}
	}
	return f, nil
}

func (f *fleet) start(ctx context.Context, m *member) (err error) {
	m.proc, m.addr, err = startProcess(ctx, f.self, m.addr, func(err error) {
		select {
		case f.broken <- fmt.Errorf("server %s ended by itself: %w", m.name, err):
		default:
		}
	})
	if err != nil {
		return fmt.Errorf("server %s: %w", m.name, err)
	}
	return nil
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
	}
	return p.delay(ph.delay)
}

func (f *fleet) revive(ctx context.Context, m *member, from fault) error {
	switch from {
	case killed:
		return f.start(ctx, m)
	case frozen:
		return m.proc.thaw()
	}
	return m.proc.delay(0)
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
	doomed  atomic.Bool   // it was killed by us
	done    chan struct{} // closed when it was waited for
}

// startLimit bounds how long a server may take to say its address.
const startLimit = 10 * time.Second

// startProcess starts a server on addr, or on a port of its choice if that is "",
// and waits until it listens. ended is called if it ends without having been
// killed.
func startProcess(ctx context.Context, self, addr string, ended func(error)) (*process, string, error) {
	cmd := exec.Command(self, demoServerVerb, addr)
	cmd.SysProcAttr = diesWithParent()
	var said complaint
	cmd.Stderr = &said
	control, err := cmd.StdinPipe()
	if err != nil {
		return nil, "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	addr, err = greeting(ctx, cmd.Process, out)
	p := &process{cmd: cmd, control: control, done: make(chan struct{})}
	p.doomed.Store(err != nil)
	go p.wait(&said, ended)
	if err != nil {
		<-p.done
		return nil, "", errors.Join(err, said.err())
	}
	return p, addr, nil
}

// greeting reads the address a new server says. It kills one that says nothing.
func greeting(ctx context.Context, p *os.Process, out io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { p.Kill() })()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.Kill()
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", errors.New("it ended before it listened")
	}
	return strings.TrimSpace(line), nil
}

// wait reaps the process. Whoever started it waits for done.
func (p *process) wait(said *complaint, ended func(error)) {
	defer close(p.done)
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

// delay makes every answer late by d.
func (p *process) delay(d time.Duration) error {
	_, err := fmt.Fprintf(p.control, "delay %v\n", d)
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
