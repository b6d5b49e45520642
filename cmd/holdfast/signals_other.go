//go:build !unix

package main

import (
	"os"
	"syscall"
)

const restartSignal = syscall.SIGTERM // never sent: there is no control socket to ask

var stopSignals = map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": os.Interrupt}
