//go:build unix

package restart

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

var isWorker atomic.Bool

// IsWorker reports whether this process is a worker, before and after Run: main may
// want to leave to the supervisor what is to be said once.
func IsWorker() bool {
	_, ok := os.LookupEnv(linkVar)
	return ok || isWorker.Load()
}

func run(ctx context.Context, cfg Config, binds []*bound) error {
	if fd, ok := os.LookupEnv(linkVar); ok {
		os.Unsetenv(linkVar)
		isWorker.Store(true)
		n, err := strconv.Atoi(fd)
		if err != nil || n < 3 {
			return fmt.Errorf("restart: %s is %q, not a file descriptor", linkVar, fd)
		}
		for fd := listenStart; fd < n; fd++ {
			unix.CloseOnExec(fd) // it is only held until a Command's socket takes its place
		}
		return runWorker(ctx, cfg, binds, os.NewFile(uintptr(n), "supervisor"))
	}
	p, err := thisProgram()
	if err != nil && len(cfg.Command.Args) == 0 {
		cfg.Log.Warn("restart: this program cannot be run again, so it serves without a successor", "err", err)
		return serveHere(ctx, cfg, binds)
	}
	return supervise(ctx, cfg, p, len(binds))
}
