//go:build !unix

package restart

import (
	"context"
	"errors"
	"fmt"
)

// IsWorker reports whether this process is a worker: there are none here.
func IsWorker() bool { return false }

// run serves without a supervisor: sockets cannot be passed on here.
func run(ctx context.Context, cfg Config, binds []*bound) error {
	if len(cfg.Command.Args) > 0 {
		return fmt.Errorf("restart: to pass sockets to %s: %w", cfg.Command.Args[0], errors.ErrUnsupported)
	}
	return serveHere(ctx, cfg, binds)
}
