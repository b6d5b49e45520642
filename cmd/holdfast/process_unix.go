//go:build unix

package main

import "syscall"

// freeze stops the process in its tracks; its sockets stay open and the kernel
// goes on accepting for it.
func (p *process) freeze() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

func (p *process) thaw() error { return p.cmd.Process.Signal(syscall.SIGCONT) }
