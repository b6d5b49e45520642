//go:build unix

package main

import (
	"errors"
	"os"
	"syscall"
)

// demoRestart is what a demo server is restarted by.
var demoRestart = []os.Signal{syscall.SIGUSR1}

func (p *process) restart() error { return p.cmd.Process.Signal(syscall.SIGUSR1) }

// freeze stops a server in its tracks, supervisor and worker; its sockets stay open
// and the kernel goes on accepting for it.
func (p *process) freeze() error { return p.signal(syscall.SIGSTOP) }

func (p *process) thaw() error { return p.signal(syscall.SIGCONT) }

func (p *process) signal(sig syscall.Signal) error {
	return errors.Join(p.cmd.Process.Signal(sig), syscall.Kill(int(p.worker.Load()), sig))
}
