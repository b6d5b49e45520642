//go:build unix

package restart

import (
	"context"
	"fmt"
	"os"
	"strconv"
)

func run(ctx context.Context, cfg Config, binds []*bound) error {
	if fd, ok := os.LookupEnv(linkVar); ok {
		os.Unsetenv(linkVar)
		n, err := strconv.Atoi(fd)
		if err != nil || n < 3 {
			return fmt.Errorf("restart: %s is %q, not a file descriptor", linkVar, fd)
		}
		return runWorker(ctx, cfg, binds, os.NewFile(uintptr(n), "supervisor"))
	}
	p, err := thisProgram()
	if err != nil && len(cfg.Command.Args) == 0 {
		cfg.Log.Warn("restart: this program cannot be run again, so it serves without a successor", "err", err)
		return serveHere(ctx, cfg, binds)
	}
	return supervise(ctx, cfg, p)
}
