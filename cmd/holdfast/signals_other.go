//go:build !unix

package main

import (
	"os"
	"syscall"
)

var stopSignals = map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": os.Interrupt}
