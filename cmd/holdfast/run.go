package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/restart"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type runOptions struct {
	service serviceFlags
	listen  []string
	ready   string
	stop    string

	nonBlocking bool
}

// serviceFlags are those of every verb that is a service.
type serviceFlags struct {
	name, admin, pidFile string
	logFile              string
	readyIn, confirm     time.Duration
	drain                time.Duration
	generations          int
	json                 bool
}

func (f *serviceFlags) add(flags *pflag.FlagSet, name string) {
	help := "name of the service: it names the control socket"
	if name == "" {
		help += " (default the base name of COMMAND; two services need two)"
	}
	flags.StringVar(&f.name, "name", name, help)
	flags.StringVar(&f.admin, "admin", "", "path of the control socket (default $XDG_RUNTIME_DIR/holdfast/NAME.sock, else under /run; none for none)")
	flags.StringVar(&f.pidFile, "pid-file", "", "write the pid there once it serves")
	flags.DurationVar(&f.readyIn, "ready-timeout", time.Minute, "how long a successor may take to be ready")
	flags.DurationVar(&f.confirm, "confirm", 5*time.Second, "how long it must live then, or it is rolled back (0 for not at all)")
	flags.DurationVar(&f.drain, "drain", 30*time.Second, "how long its predecessor may take to leave")
	flags.IntVar(&f.generations, "generations", 3, "how many may live at once")
	flags.StringVar(&f.logFile, "log", "", "append the supervisor's log to this file, which \"holdfast reopen\" opens anew (default standard error)")
	flags.BoolVarP(&f.json, "json", "j", false, "write the log as JSON Lines")
}

func (f *serviceFlags) config(p *program) (restart.Config, error) {
	log, reopen, err := f.openLog(p)
	if err != nil {
		return restart.Config{}, usage(err, "")
	}
	confirm := f.confirm
	if confirm == 0 {
		confirm = -1
	}
	return restart.Config{
		Name: f.name, Admin: f.admin, PIDFile: f.pidFile, Generations: f.generations,
		Timeouts: restart.Timeouts{Ready: f.readyIn, Confirm: confirm, Drain: f.drain},
		Log:      log, Reopen: reopen,
	}, nil
}

func (p *program) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [-l NAME=ADDR[,…]] -- COMMAND [ARG…]",
		Short: "Run a server, in any language, that is restarted without being down",
		Long: `Binds the addresses and runs COMMAND with them, as systemd passes sockets: from
descriptor 3 on, with LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID (and EINHORN_FD_COUNT,
EINHORN_FD_n); with --ready notify NOTIFY_SOCKET, too.

On HUP, USR1 or "holdfast restart" it is run again. When the new one is ready and has
lived for --confirm, the old one is asked to stop; if it is not, or dies, the old one
serves on. A command that crashes is run again; clients wait in the sockets.

--ready says when it is ready: notify (READY=1 on NOTIFY_SOCKET), port (it accepts a
connection), http=URL (a 2xx answer) or timer=1s (it is still alive).`,
		Example: `  holdfast run -l web=tcp://:8080 --ready port -- ./server
  holdfast restart --wait server
  # haproxy.cfg says: bind fd@3
  holdfast run -l tcp://:8080 --stop-signal USR1 -- haproxy -f haproxy.cfg
  # nginx knows a socket by the address that it listens on: here 0.0.0.0:8080
  holdfast run -l tcp://0.0.0.0:8080 --stop-signal QUIT --non-blocking --name nginx -- env 'NGINX=3;' nginx -g 'daemon off;'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("run: want a command"), "holdfast run -l web=tcp://:8080 -- ./server")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return p.runService(cmd.Context(), args, o) },
	}
	cmd.Flags().SetInterspersed(false) // what follows the command is the command's
	o.service.add(cmd.Flags(), "")
	cmd.Flags().StringSliceVarP(&o.listen, "listen", "l", nil, "addresses to bind, NAME=ADDR or ADDR")
	cmd.Flags().StringVar(&o.ready, "ready", "timer=1s", "notify, port, http=URL or timer=DURATION")
	cmd.Flags().StringVar(&o.stop, "stop-signal", "TERM", "what asks the command to finish: TERM, INT, QUIT, USR1, USR2 or WINCH")
	cmd.Flags().BoolVar(&o.nonBlocking, "non-blocking", false, "pass sockets that do not block, as nginx wants them")
	return cmd
}

func (p *program) runService(ctx context.Context, args []string, o runOptions) error {
	stop, ok := stopSignals[strings.TrimPrefix(strings.ToUpper(o.stop), "SIG")]
	if !ok {
		return usage(fmt.Errorf("--stop-signal %q: not one of TERM, INT, QUIT, USR1, USR2 and WINCH", o.stop), "")
	}
	cfg, err := o.service.config(p)
	if err != nil {
		return err
	}
	if cfg.Name == "" {
		cfg.Name = baseName(args[0])
	}
	cfg.Command = restart.Command{Args: args, Ready: o.ready, Stop: stop, NonBlocking: o.nonBlocking}
	return p.serve(ctx, cfg, func() error { return o.check(args[0]) }, o.bindings()...)
}

// check finds before anything is bound what could never be run, or never be ready.
func (o runOptions) check(command string) error {
	if o.ready == "port" && !slices.ContainsFunc(o.listen, isTCP) {
		return errors.New("--ready port: there is no TCP address to connect to")
	}
	_, err := exec.LookPath(command)
	return err
}

func isTCP(l string) bool { return !strings.Contains(l, "unix:") && !strings.Contains(l, "udp://") }

func (o runOptions) bindings() (all []restart.Binding) {
	for _, l := range o.listen {
		if strings.Contains(l, "udp://") || strings.Contains(l, "type=dgram") {
			all = append(all, restart.BindPacket(nil, l))
		} else {
			all = append(all, restart.Bind(nil, l))
		}
	}
	return all
}

// serve runs a service to its end. What check or restart find wrong before anything
// was bound is a mistake in usage. Why a worker ended is its supervisor's to say.
func (p *program) serve(ctx context.Context, cfg restart.Config, check func() error, binds ...restart.Binding) error {
	worker := restart.IsWorker()
	if !worker {
		if err := check(); err != nil {
			return usage(err, "")
		}
	}
	ignoreBrokenPipes()
	var begun atomic.Bool
	cfg.Observe = func(restart.Event) { begun.Store(true) }
	err := restart.Run(context.WithoutCancel(ctx), cfg, binds...) // it has its own signals
	switch {
	case err == nil:
		return nil
	case worker:
		return &failure{code: exitFailed}
	case strings.Contains(err.Error(), "the control socket: ") && errors.Is(err, syscall.EADDRINUSE) && !strings.Contains(err.Error(), "not a socket"):
		return &failure{exitFailed, err, "another service has this name: give this one a --name, or an --admin, of its own"}
	case begun.Load(), isSystems(err):
		return err
	}
	return usage(err, "")
}

// ignoreBrokenPipes keeps a service alive whose log nobody reads any more. What it starts
// gets the signal as ever, which it would not if it were ignored.
func ignoreBrokenPipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// isSystems reports whether the system said no, and not us.
func isSystems(err error) bool {
	_, ok := errors.AsType[syscall.Errno](err)
	return ok
}

func baseName(path string) string { return path[strings.LastIndexAny(path, `/\`)+1:] }

type controlOptions struct {
	name, admin string
	timeout     time.Duration
	wait, json  bool
}

// controlCommand is a verb that talks to a running service.
func (p *program) controlCommand(verb, short, long string, do func(context.Context, controlOptions) error) *cobra.Command {
	var o controlOptions
	cmd := &cobra.Command{
		Use: verb + " [NAME]", Short: short, Long: long,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage(fmt.Errorf("%s: want at most one name", verb), "")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.name = args[0]
			}
			if o.admin == "" && o.name == "" {
				there := services()
				if len(there) != 1 || verb != "status" { // to look does no harm
					return usage(fmt.Errorf("%s: which service? Give its NAME or --admin SOCKET", verb), hintAt(verb, there))
				}
				o.name = there[0]
			}
			if o.admin == "" {
				o.admin = restart.AdminPath(o.name)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return o.explain(verb, do(ctx, o))
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "", "name of the service")
	cmd.Flags().StringVar(&o.admin, "admin", "", "path of its control socket")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to wait")
	cmd.Flags().BoolVarP(&o.json, "json", "j", false, "print one JSON object")
	if verb == "restart" {
		cmd.Flags().BoolVar(&o.wait, "wait", false, "wait until it is committed or rolled back")
	}
	return cmd
}

// services are the names of those that have a control socket where it belongs.
func services() (names []string) {
	found, _ := filepath.Glob(restart.AdminPath("*"))
	for _, path := range found {
		names = append(names, strings.TrimSuffix(filepath.Base(path), ".sock"))
	}
	return names
}

// hintAt shows the command that was meant, perhaps.
func hintAt(verb string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "holdfast " + verb + " " + strings.Join(names, ", or ")
}

func (p *program) controlCommands() []*cobra.Command {
	return []*cobra.Command{
		p.controlCommand("restart", "Replace a running service by its successor",
			`Asks a service for a restart. With --wait it exits 0 when that is committed, 1 with
the cause when it was rolled back, 124 when it took longer than --timeout.`, p.restartService),
		p.controlCommand("status", "Show what a service does", "", p.serviceStatus),
		p.controlCommand("drain", "End a service when its connections have ended",
			"Stops accepting, lets connections end within the service's --drain, and waits until it is gone.",
			p.endService("drain", restart.Drain)),
		p.controlCommand("stop", "End a service now",
			"Closes what is open, with a notice where the protocol has one, and waits until it is gone.",
			p.endService("stop", restart.Stop)),
		p.controlCommand("reopen", "Have a service open its log file anew",
			"For after the file of --log was moved away, by logrotate for instance.",
			func(ctx context.Context, o controlOptions) error { return restart.Reopen(ctx, o.admin) }),
	}
}

// explain turns an error of a verb that talks to a service into what to do about it.
func (o controlOptions) explain(verb string, err error) error {
	op, unheard := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{exitTimeout, fmt.Errorf("%s: not over within %v; the service goes on with it", verb, o.timeout), ""}
	case unheard && op.Op == "dial":
		hint := "is the service running? NAME or --admin says which one is meant"
		if errors.Is(err, fs.ErrPermission) {
			hint = "only the user that runs the service, and root, may ask it"
		}
		return &failure{exitUnreachable, fmt.Errorf("nobody answers at %s: %w", o.admin, op.Err), hint}
	}
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &failure{exitUnreachable, fmt.Errorf("what answers at %s is not the control socket of a service", o.admin), ""}
	}
	return err
}

// restartDone is the answer to restart --json.
type restartDone struct {
	Schema string `json:"schema"`
	restart.Result
}

func (p *program) restartService(ctx context.Context, o controlOptions) error {
	if !o.wait {
		return p.beginRestart(ctx, o)
	}
	r, err := restart.Restart(ctx, o.admin)
	if err != nil {
		return err
	}
	if o.json {
		err = p.printJSON(restartDone{"holdfast/restart/v1", r})
	} else if r.OK {
		fmt.Fprintf(p.out, "generation %d serves (pid %d)\n", r.Generation, r.PID)
	}
	if err == nil && !r.OK {
		err = &failure{exitFailed, errors.New("rolled back: " + strings.TrimPrefix(r.Err, "restart: ")), ""}
	}
	return err
}

// restartAsked is the answer to restart --json without --wait.
type restartAsked struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	PID    int    `json:"pid"` // of the supervisor
}

// beginRestart asks and does not wait: how it goes is in the log, and in status. The pid
// is only to be shown: in a container it is not that of any process here.
func (p *program) beginRestart(ctx context.Context, o controlOptions) error {
	s, err := restart.Ask(ctx, o.admin)
	if err != nil {
		return err
	}
	if err := restart.Begin(ctx, o.admin); err != nil {
		return err
	}
	if o.json {
		return p.printJSON(restartAsked{"holdfast/restart-asked/v1", s.Name, s.PID})
	}
	fmt.Fprintf(p.out, "asked %s (pid %d) for a restart\n", s.Name, s.PID)
	return nil
}

// serviceEnded is the answer to drain and stop --json.
type serviceEnded struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	PID    int    `json:"pid"`
}

func (p *program) endService(verb string, end func(context.Context, string) error) func(context.Context, controlOptions) error {
	return func(ctx context.Context, o controlOptions) error {
		s, err := restart.Ask(ctx, o.admin)
		if err != nil {
			return err
		}
		if err := end(ctx, o.admin); err != nil {
			return err
		}
		if o.json {
			return p.printJSON(serviceEnded{"holdfast/" + verb + "/v1", s.Name, s.PID})
		}
		fmt.Fprintf(p.out, "%s is gone (pid %d)\n", s.Name, s.PID)
		return nil
	}
}

// serviceState is the answer to status --json.
type serviceState struct {
	Schema string `json:"schema"`
	restart.Status
	Proxy *proxyState `json:"proxy,omitempty"`
}

func (p *program) serviceStatus(ctx context.Context, o controlOptions) error {
	s, err := restart.Ask(ctx, o.admin)
	if err != nil {
		return err
	}
	proxy, err := o.proxyState(ctx, s)
	if o.json && err == nil {
		return p.printJSON(serviceState{"holdfast/status/v1", s, proxy})
	}
	var b strings.Builder
	fmt.Fprintln(&b, serving(s))
	for _, g := range s.Generations {
		fmt.Fprintf(&b, "  generation %d  %s  pid %d  for %s\n", g.Generation, g.Phase, g.PID, seconds(g.Age))
	}
	if s.Generation == 0 {
		fmt.Fprintln(&b, "  nobody serves: clients wait in the sockets")
	}
	for _, address := range s.Sockets {
		fmt.Fprintf(&b, "  listens on %s\n", address)
	}
	if s.LastError != "" {
		fmt.Fprintf(&b, "  last error, %s ago: %s\n", time.Since(s.LastErrorAt).Round(time.Second), strings.TrimPrefix(s.LastError, "restart: "))
	}
	if text := counts(s.Totals); text != "" {
		fmt.Fprintf(&b, "  so far: %s\n", text)
	}
	if proxy != nil {
		fmt.Fprint(&b, "\n"+strings.Join(proxy.lines(p.paintOn(p.out)), "\n")+"\n")
	}
	_, failed := p.out.WriteString(b.String())
	return cmp.Or(err, failed)
}

// proxyState is what the worker of a proxy says; other services have none.
func (o controlOptions) proxyState(ctx context.Context, s restart.Status) (*proxyState, error) {
	if !s.Calls {
		return nil, nil
	}
	state, err := askProxy(ctx, o.admin)
	if err != nil {
		return nil, fmt.Errorf("its worker did not answer: %w", err)
	}
	return &state, nil
}

// counts writes the counters that have counted something.
func counts(totals map[string]int64) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(totals)) {
		if n := totals[name]; n != 0 {
			all = append(all, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), n))
		}
	}
	return strings.Join(all, ", ")
}

func seconds(s float64) time.Duration {
	return time.Duration(s * float64(time.Second)).Round(time.Second)
}
