//go:build unix

package sockopt

import "golang.org/x/sys/unix"

// MaxFiles is how many files this process may have open.
func MaxFiles() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur > unlimited {
		return unlimited
	}
	return int(l.Cur)
}
