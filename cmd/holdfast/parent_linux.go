package main

import "syscall"

// diesWithParent has the kernel kill a child when this process dies. The kernel
// means the thread that started it; Go ends no thread that was not locked.
func diesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
