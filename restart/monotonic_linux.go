package restart

import "golang.org/x/sys/unix"

func monotonic(now *unix.Timespec) error { return unix.ClockGettime(unix.CLOCK_MONOTONIC, now) }
