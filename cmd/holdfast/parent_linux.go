package main

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// diesWithParent has the kernel kill a child when this process dies. The kernel
// means the thread that started it; Go ends no thread that was not locked.
func diesWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// dieWithParent is the same for a process that was started by somebody else.
func dieWithParent() error {
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}
