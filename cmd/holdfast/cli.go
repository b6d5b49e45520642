package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/holdfast-net/holdfast"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The exit codes a script may rely on.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 5
	exitCheck       = 6
	exitTimeout     = 124
	exitSignal      = 130
)

// program is what all verbs share.
type program struct {
	in, out, err *os.File
	color        string // auto, always or never
	begun        bool   // a verb took over: errors before that are about usage
}

// failure is an error that knows its exit code. Without err all has been said.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

func usage(err error, hint string) error { return &failure{exitUsage, err, hint} }

// run executes one command line and returns the exit code.
func (p *program) run(ctx context.Context, args []string) int {
	root := p.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	f := p.judge(ctx, err)
	if f.err != nil {
		fmt.Fprintln(p.err, "holdfast: "+strings.TrimSpace(describe(f.err)))
	}
	if f.hint != "" {
		fmt.Fprintln(p.err, "hint: "+f.hint)
	}
	return f.code
}

// judge finds the exit code of an error, and a hint.
func (p *program) judge(ctx context.Context, err error) *failure {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f
	case !p.begun: // cobra's own: an unknown verb, a missing flag
		return &failure{exitUsage, err, "holdfast --help lists the verbs"}
	case ctx.Err() != nil:
		return &failure{code: exitSignal}
	case errors.Is(err, context.DeadlineExceeded), holdfast.Classify(err) == holdfast.ClassTimeout:
		return &failure{exitTimeout, err, ""}
	}
	return &failure{exitFailed, err, hintFor(err)}
}

// hintFor says what to do about an error, where that can be said.
func hintFor(err error) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the server does not speak TLS there; tcp:// speaks plaintext"
	}
	switch holdfast.Classify(err) {
	case holdfast.ClassTLSAuthority:
		return "trust a private authority with --ca FILE"
	case holdfast.ClassTLSHostname:
		return "if the certificate is for another name, say which with --sni NAME"
	case holdfast.ClassTLSClientCert:
		return "the server wants a certificate it trusts: --cert FILE --key FILE"
	}
	return ""
}

// describe writes an error for people: the library's, which may be about many
// addresses, with a line for each.
func describe(err error) string {
	var e *holdfast.Error
	if !errors.As(err, &e) {
		return cause(err)
	}
	context, _, _ := strings.Cut(err.Error(), e.Error())
	if len(e.Tried) == 0 {
		return context + describeOne(e)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s%d attempts failed", context, len(e.Tried)+1)
	for _, t := range append(e.Tried[:len(e.Tried):len(e.Tried)], e) {
		b.WriteString("\n  " + describeOne(t))
	}
	return b.String()
}

func describeOne(e *holdfast.Error) string {
	text := strings.ReplaceAll(cause(e.Err), "\n", ", ")
	if e.Node == "" {
		return text
	}
	return fmt.Sprintf("%s %s: %s", e.Phase, e.Node, text)
}

// cause is the text of an error without the addresses that are said beside it.
func cause(err error) string {
	if op, ok := err.(*net.OpError); ok && op.Op != "listen" { // which nobody has said yet
		err = op.Err
	}
	return strings.ReplaceAll(err.Error(), "holdfast: ", "")
}

func (p *program) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Connections that hold fast, for any protocol over TCP, TLS, Unix sockets and UDP",
		Long: `Connections that hold fast, for any protocol over TCP, TLS, Unix sockets and UDP.

Start with: holdfast demo

Exit codes: 0 done, 1 the operation failed, 2 usage, 5 nobody answers at the control
socket, 6 a check failed, 124 it took too long, 130 stopped by a signal. Every flag can
be set by an environment variable: --timeout by HOLDFAST_TIMEOUT.`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: p.begin,
	}
	root.PersistentFlags().StringVar(&p.color, "color", "auto", "auto, always or never")
	root.SetFlagErrorFunc(flagError)
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.AddCommand(p.demoCommand(), p.demoServerCommand(), p.demoProxyCommand(), p.dialCommand(), p.pingCommand(), p.checkCommand(), p.monitorCommand(), p.benchCommand(), p.echoCommand(), p.runCommand(), p.proxyCommand(), p.backendCommand(), p.versionCommand())
	root.AddCommand(p.controlCommands()...)
	return root
}

func flagError(cmd *cobra.Command, err error) error {
	if strings.Contains(err.Error(), "--insecure") {
		return usage(err, "verification cannot be turned off; --ca FILE trusts a private authority, --pin a key")
	}
	return usage(err, cmd.CommandPath()+" --help lists the flags")
}

// begin runs when the command line was understood, before the verb itself: flags
// that were not given are taken from the environment.
func (p *program) begin(cmd *cobra.Command, _ []string) error {
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := "HOLDFAST_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := os.LookupEnv(name)
		if !ok || f.Changed || f.Name == "help" {
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	})
	if p.color != "auto" && p.color != "always" && p.color != "never" {
		errs = append(errs, fmt.Errorf("--color %q: want auto, always or never", p.color))
	}
	if len(errs) > 0 {
		return usage(errors.Join(errs...), "")
	}
	p.begun = true
	return nil
}

// addresses is the argument of verbs that take ADDR[,ADDR…].
func addresses(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usage(fmt.Errorf("%s: want one argument, ADDR[,ADDR…], got %d", cmd.Name(), len(args)),
			fmt.Sprintf("%s tcp://127.0.0.1:7000,tcp://127.0.0.1:7001", cmd.CommandPath()))
	}
	return nil
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("%s takes no argument, got %q", cmd.Name(), args[0]), "")
	}
	return nil
}

// printJSON writes the one object of a verb that was asked for JSON.
func (p *program) printJSON(v any) error {
	out := json.NewEncoder(p.out)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	return out.Encode(v)
}
