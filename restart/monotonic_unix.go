//go:build unix && !linux

package restart

import (
	"errors"

	"golang.org/x/sys/unix"
)

// systemd is on Linux only.
func monotonic(*unix.Timespec) error { return errors.ErrUnsupported }
