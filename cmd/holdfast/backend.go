package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/spf13/cobra"
)

// backendCommand is the verbs about the backends of a running proxy.
func (p *program) backendCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backend",
		Short: "Change, or explain, the backends of a running proxy",
		Long: `Changes the set of backends while a proxy runs; the changes outlive restarts, not a stop.
A backend is named by its address, as "holdfast status" has it: host:port is tcp://, or
udp:// if there is no such other one.`,
		Example: `  holdfast backend drain 10.0.0.1:5432
  holdfast backend weight 10.0.0.2:5432 3
  holdfast backend why 10.0.0.1:5432`,
		Args: func(cmd *cobra.Command, args []string) error {
			return usage(errors.New("backend: want drain, ready, weight, add, rm or why"), "holdfast backend --help")
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	cmd.AddCommand(
		p.backendVerb("drain", "ADDR", "Send a backend no new connections", p.changeBackend),
		p.backendVerb("ready", "ADDR", "Send it connections again", p.changeBackend),
		p.backendVerb("weight", "ADDR N", "Change its share of the load", p.changeBackend),
		p.backendVerb("add", "ADDR", "Add a backend", p.changeBackend),
		p.backendVerb("rm", "ADDR", "Remove a backend; its connections stay", p.changeBackend),
		p.backendVerb("why", "ADDR", "Say all that is known of a backend", p.explainBackend),
	)
	return cmd
}

// backendRequest is what a proxy is asked, by restart.Call. It says what is to be, and so
// may be repeated.
type backendRequest struct {
	Do      string `json:"do"` // status, why, or an edit
	Backend string `json:"backend,omitempty"`
	Route   string `json:"route,omitempty"`
	Weight  int    `json:"weight,omitempty"`
}

type backendOptions struct {
	controlOptions
	backendRequest
}

func (p *program) backendVerb(verb, args, short string, do func(context.Context, backendOptions) error) *cobra.Command {
	o := backendOptions{backendRequest: backendRequest{Do: verb}}
	cmd := &cobra.Command{
		Use: verb + " " + args, Short: short,
		Args: func(cmd *cobra.Command, given []string) error { return o.take(given) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.admin == "" {
				o.admin = restart.AdminPath(o.name)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return o.explain("backend "+verb, do(ctx, o))
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "proxy", "name of the service")
	cmd.Flags().StringVar(&o.admin, "admin", "", "path of its control socket")
	cmd.Flags().StringVar(&o.Route, "route", "", "the route it is about (default all that have the backend; add: that of -u)")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait")
	cmd.Flags().BoolVarP(&o.json, "json", "j", false, "print one JSON object")
	return cmd
}

// take reads the arguments.
func (o *backendOptions) take(args []string) (err error) {
	want := 1
	if o.Do == "weight" {
		want = 2
	}
	if len(args) != want {
		return usage(fmt.Errorf("%s: want %d arguments, got %d", o.Do, want, len(args)), "a backend is named by its address, such as 10.0.0.1:5432")
	}
	o.Backend = args[0]
	if want == 2 {
		if o.Weight, err = strconv.Atoi(args[1]); err != nil || o.Weight < 1 || o.Weight > maxWeight {
			return usage(fmt.Errorf("weight %q: want 1 to %d", args[1], maxWeight), "drain sends a backend nothing")
		}
	}
	if _, err = backendAt(o.Backend); err != nil {
		return usage(err, "")
	}
	return nil
}

const maxWeight = 1000

// backendAt reads the address of a backend. Its weight is as that of the verb: 0 is "off"
// elsewhere, and would be 1 here.
func backendAt(s string) (holdfast.Endpoint, error) {
	if text, ok := weightIn(s); ok {
		if n, err := strconv.Atoi(text); err != nil || n < 1 || n > maxWeight {
			return holdfast.Endpoint{}, fmt.Errorf("address %q: weight %q: want 1 to %d; drain sends a backend nothing", s, text, maxWeight)
		}
	}
	return holdfast.ParseEndpoint(s)
}

// weightIn is the weight that an address has in it, if it has one.
func weightIn(s string) (text string, ok bool) {
	a, err := addr.Parse(s)
	if err == nil {
		text, ok = a.Params["weight"]
	}
	return text, ok
}

// ask makes the request of the proxy, and reads its answer.
func (o backendOptions) ask(ctx context.Context, answer any) error {
	request, err := json.Marshal(o.backendRequest)
	if err != nil {
		return err
	}
	text, err := restart.Call(ctx, o.admin, request)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

// backendChanged is the answer to an edit.
type backendChanged struct {
	Schema   string         `json:"schema"`
	Changed  bool           `json:"changed"` // it was not so before
	Backends []backendState `json:"backends"`
}

func (p *program) changeBackend(ctx context.Context, o backendOptions) error {
	var done backendChanged
	if err := o.ask(ctx, &done); err != nil {
		return err
	}
	if o.json {
		return p.printJSON(done)
	}
	for _, b := range done.Backends {
		fmt.Fprintf(p.out, "%s: %s, weight %d, %s\n", b.Name, b.State, b.Weight, b.load())
	}
	if o.Do == "rm" {
		fmt.Fprintf(p.out, "%s: removed\n", o.Backend)
	}
	return nil
}

// backendWhy is the answer to why.
type backendWhy struct {
	Schema   string           `json:"schema"`
	Backends []backendDetails `json:"backends"`
}

// backendDetails is all that is known of one address.
type backendDetails struct {
	backendState
	page
	Ejections int     `json:"ejections"` // counted down while it is healthy
	Connect   latency `json:"connect"`   // how long it took
}

func (p *program) explainBackend(ctx context.Context, o backendOptions) error {
	var why backendWhy
	if err := o.ask(ctx, &why); err != nil {
		return err
	}
	if o.json {
		return p.printJSON(why)
	}
	on := p.paintOn(p.out)
	for _, d := range why.Backends {
		d.write(p.out, on)
	}
	return nil
}

func (d backendDetails) write(out io.Writer, on paint) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "  %s%s\n", pad(name, 12), fmt.Sprintf(format, args...))
	}
	head := on.text(bold, d.Name) + "  " + on.text(d.color(), d.State)
	if d.Node != d.Name && d.Node != "" {
		head = on.text(bold, d.Name) + "  " + d.Node + "  " + on.text(d.color(), d.State)
	}
	if d.Route != "" {
		head += "  route " + d.Route
	}
	if !d.Since.IsZero() {
		head += "  for " + ago(d.Since)
	}
	fmt.Fprintln(out, head)
	if d.Cause != "" {
		line("cause", "%s", d.Cause)
	}
	if d.Err != "" {
		line("now", "%s", d.Err)
	}
	if d.LastErr != nil {
		line("last error", "%s ago: %s", ago(d.LastErr.At), d.LastErr.Err)
	}
	if k := d.Checks; k != nil {
		text := "passed"
		if k.Err != "" {
			text = k.Err
		}
		line("checks", "%d passed, %d failed; the last %s ago in %s: %s", k.Passed, k.Failed, ago(k.Last), ms(k.Took), text)
	}
	line("ejections", "%d", d.Ejections)
	line("latency", "connect p50 %s, p99 %s, max %s", ms(d.Connect.P50), ms(d.Connect.P99), ms(d.Connect.Max))
	line("load", "%s, weight %d", d.load(), d.Weight)
	line("so far", "%s connects, %s failed, %s to it, %s from it", count(d.Connects), count(d.Failures), size(d.BytesTo), size(d.BytesFrom))
	for _, h := range d.History {
		text := h.State
		for _, more := range []string{h.Cause, h.Err} {
			if more != "" {
				text += ": " + more
			}
		}
		fmt.Fprintf(out, "  %s  %s\n", h.At.Format(time.DateTime), text)
	}
}

func ago(at time.Time) string {
	d := time.Since(at)
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func plural(n int, word string) string {
	if n != 1 {
		word += "s"
	}
	return fmt.Sprintf("%d %s", n, word)
}

// size writes bytes with the unit that leaves three digits.
func size(n uint64) string {
	v, unit := float64(n), ""
	for _, next := range []string{"k", "M", "G", "T", "P"} {
		if v < 1000 {
			break
		}
		v, unit = v/1000, next
	}
	switch {
	case unit == "":
		return fmt.Sprintf("%d B", n)
	case v < 10:
		return fmt.Sprintf("%.1f %sB", v, unit)
	}
	return strings.TrimSpace(fmt.Sprintf("%.0f %sB", v, unit))
}
