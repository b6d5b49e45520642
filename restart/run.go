package restart

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Config says how one service is succeeded. The zero value is useful.
type Config struct {
	// Name is the service's: it names the control socket. "" is the base name of
	// the program.
	Name string

	// Start runs in every worker, before it serves: what must not run in the
	// supervisor. Its failure rolls the restart back.
	Start func(ctx context.Context) error

	// State passes what a worker knows to its successor.
	State State

	// Call answers those who use [Call], in the worker that serves: one request after the
	// other, and until ctx ends. It returns then at the latest. nil takes no calls.
	Call func(ctx context.Context, from Caller, request []byte) ([]byte, error)

	// Command, if it has Args, is run instead of this program: another program, in
	// any language, that takes over sockets as systemd passes them.
	Command Command

	Timeouts Timeouts

	// Generations is how many workers may live at once, those that drain among
	// them: 0 is 3. When a restart would exceed it, the oldest is cut.
	Generations int

	// PIDFile is written, atomically, when the first worker is ready, and removed at
	// the end; Run fails at once where it cannot be. "" is none.
	PIDFile string

	// Admin is the path of the control socket, which only this user may use. "" is
	// $XDG_RUNTIME_DIR/holdfast/NAME.sock, else /run/holdfast/NAME.sock; where this
	// user may make neither, there is none, and the log says so. "none" is none.
	Admin string

	Signals Signals

	// Reopen opens log files anew, after they were moved away. It is called, in the
	// supervisor and in every worker, when the control socket says so.
	Reopen func() error

	Log     *slog.Logger // nil discards; what is too slow to take it loses records, and says so
	Observe func(Event)  // in the supervisor, in order, by one goroutine; while it is slow up to 256 wait. nil is nobody
}

// State is what a worker passes on besides its connections, at most 64 MiB. Save
// runs in the predecessor, which still serves; Load in the successor, before
// Config.Start, unless there is nothing to load.
type State struct {
	Save func(ctx context.Context) ([]byte, error)
	Load func(ctx context.Context, state []byte) error
}

// Command is a program that is not ours. It gets its sockets as systemd passes them
// (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID), and as einhorn does.
type Command struct {
	Args []string

	// Ready is how it is known to serve: "notify" (READY=1 to NOTIFY_SOCKET),
	// "port" (a connection to one of its TCP sockets reaches it),
	// "http=URL" (a 2xx answer of its own) or "timer=1s" (it is alive after that time). "" is
	// "timer=1s".
	Ready string

	// Stop asks it to finish and exit. nil is SIGTERM.
	Stop os.Signal

	// NonBlocking passes sockets that do not block: for a command that waits for events
	// and then accepts, such as nginx, which would hang where its predecessor was quicker.
	NonBlocking bool
}

// Timeouts bound a succession. 0 is the default, negative is none; but Confirm −1
// commits at once.
type Timeouts struct {
	Ready   time.Duration // from the start of a successor to its being ready: 60 s
	Confirm time.Duration // how long it must live then, before the restart is committed: 5 s
	Drain   time.Duration // how long a predecessor may take to leave: 30 s
	Stop    time.Duration // from asking a process to exit to killing it: 5 s
}

// Signals is what the supervisor heeds. nil is the default; an empty list is none.
type Signals struct {
	Restart []os.Signal // SIGHUP and SIGUSR1
	Stop    []os.Signal // SIGTERM and SIGINT: drain and exit; a second one exits at once
	Forward []os.Signal // to the worker that serves; to a Command SIGUSR2 and SIGWINCH, else none
}

func (s Signals) all() []os.Signal { return slices.Concat(s.Restart, s.Stop, s.Forward) }

// ErrStopped is what Run returns when a second signal ended it without a drain.
var ErrStopped = errors.New("restart: stopped at once, before the drain ended")

// Run serves the bindings, in workers that can be succeeded, until ctx ends or a
// signal stops it. It comes first in main: in the supervisor it returns only at the
// end, and in a worker when that has drained, nil in both if all went well. It
// fails at once if an address or a limit is wrong, a socket cannot be bound or the
// first worker cannot serve.
func Run(ctx context.Context, cfg Config, bindings ...Binding) error {
	cfg = cfg.withDefaults()
	binds, err := flatten(bindings)
	if err != nil {
		return err
	}
	if err := cfg.check(binds); err != nil {
		return err
	}
	return run(ctx, cfg, binds)
}

func (cfg Config) withDefaults() Config {
	cfg.Name = cmp.Or(cfg.Name, filepath.Base(os.Args[0]))
	cfg.Generations = cmp.Or(cfg.Generations, 3)
	t := &cfg.Timeouts
	t.Ready = orNever(cmp.Or(t.Ready, time.Minute))
	t.Drain = orNever(cmp.Or(t.Drain, 30*time.Second))
	t.Stop = orNever(cmp.Or(t.Stop, 5*time.Second))
	t.Confirm = max(cmp.Or(t.Confirm, 5*time.Second), 0)
	cfg.Signals = cfg.Signals.withDefaults(len(cfg.Command.Args) > 0)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Event) {}
	}
	return cfg
}

func (cfg Config) reopen() error {
	if cfg.Reopen == nil {
		return nil
	}
	return cfg.Reopen()
}

// never is longer than any process lives.
const never = 100 * 365 * 24 * time.Hour

func orNever(d time.Duration) time.Duration {
	if d < 0 {
		return never
	}
	return d
}

func (cfg Config) check(binds []*bound) error {
	if cfg.Name != filepath.Base(cfg.Name) || cfg.Name == "." || cfg.Name == ".." {
		return fmt.Errorf("restart: the name %q is not one that a file could have", cfg.Name)
	}
	if cfg.Generations < 2 {
		return errors.New("restart: a succession needs at least 2 generations")
	}
	if len(cfg.Command.Args) == 0 {
		if len(binds) == 0 {
			return errors.New("restart: nothing to serve: Run was given no binding")
		}
		return nil
	}
	for _, b := range binds {
		if b.kind == kindFile {
			return errors.New("restart: a command cannot be given " + b.name + ": only sockets are passed to programs of others")
		}
	}
	return cfg.Command.check()
}

// serveHere serves without a supervisor: where a process cannot run itself again.
func serveHere(ctx context.Context, cfg Config, binds []*bound) error {
	w := &worker{cfg: cfg, binds: binds, log: cfg.Log}
	ctx, stop := notifyContext(ctx, cfg.Signals.Stop)
	defer stop()
	for _, b := range binds {
		if err := b.open(ctx); err != nil {
			return errors.Join(err, closeAll(binds))
		}
	}
	if cfg.Start != nil {
		if err := cfg.Start(ctx); err != nil {
			return errors.Join(err, closeAll(binds))
		}
	}
	failed := w.serve()
	cfg.Observe(Event{Kind: Committed, Generation: 1, PID: os.Getpid()})
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stop() // a second signal is not for us, and ends the process
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Timeouts.Drain)
	defer cancel()
	return errors.Join(err, w.shutdown(ctx))
}

func closeAll(binds []*bound) (err error) {
	for _, b := range binds {
		err = errors.Join(err, b.close())
	}
	return err
}
