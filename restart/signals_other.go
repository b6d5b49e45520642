//go:build !unix

package restart

import (
	"os"
	"syscall"
)

func (s Signals) withDefaults(bool) Signals {
	if s.Stop == nil {
		s.Stop = []os.Signal{os.Interrupt, syscall.SIGTERM}
	}
	return s
}
