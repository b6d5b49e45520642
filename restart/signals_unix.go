//go:build unix

package restart

import (
	"os"
	"os/signal"
	"syscall"
)

func (s Signals) withDefaults(command bool) Signals {
	if s.Restart == nil {
		s.Restart = []os.Signal{syscall.SIGHUP, syscall.SIGUSR1}
	}
	if s.Stop == nil {
		s.Stop = []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	}
	if s.Forward == nil && command {
		s.Forward = []os.Signal{syscall.SIGUSR2, syscall.SIGWINCH}
	}
	return s
}

func resetSignals(all []os.Signal) {
	if len(all) > 0 {
		signal.Reset(all...)
	}
}
