package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/health"
	"github.com/spf13/cobra"
)

func (p *program) monitorCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "monitor ADDR…",
		Short: "Watch services, and say when their health changes",
		Long: `Checks every address again and again, until a signal ends it. A service is down after
three failures in a row, and up again after two checks that passed; the first check
decides at once. On a terminal it shows a table, elsewhere a line for each change.

` + kindsHelp,
		Example: `  holdfast monitor 10.0.0.1:6379 10.0.0.2:6379 --kind redis
  holdfast monitor tls://example.net:443 --kind 'tls 14' --interval 1h --json`,
		Args: someAddresses,
		RunE: func(cmd *cobra.Command, args []string) error { return p.monitor(cmd.Context(), args, o) },
	}
	o.add(cmd.Flags())
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "pause between two checks of a service, ±10 %")
	cmd.Flags().DurationVar(&o.timeout, "timeout", time.Second, "limit of a check")
	cmd.Flags().BoolVarP(&o.json, "json", "j", false, "print a line of JSON for each change")
	return cmd
}

func (p *program) monitor(ctx context.Context, args []string, o checkOptions) error {
	if o.interval == 0 {
		return usage(errors.New("--interval must be above 0"), "")
	}
	table := canMove(p.out) && !o.json
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	changes := &changes{p: p, json: o.json, paint: p.paintOn(p.out), failed: cancel}
	observe := changes.observe
	if table {
		observe = nil
	}
	m, names, err := o.monitor(args, observe)
	if err != nil {
		return err
	}
	if table {
		defer p.showTable(m, names)()
	}
	m.Run(ctx)
	if err, ok := errors.AsType[*fs.PathError](context.Cause(ctx)); ok { // nobody hears it
		return &failure{exitFailed, err, ""}
	}
	return &failure{code: exitSignal}
}

// changes writes a line whenever a verdict changes.
type changes struct {
	p     *program
	json  bool
	paint paint

	mu     sync.Mutex  // one line at a time
	failed func(error) // a line could not be written
}

// monitorLine is a line of monitor --json.
type monitorLine struct {
	Schema string `json:"schema"`
	checkResult
}

func (c *changes) observe(name string, r health.Result) {
	if r.Since != r.Checked {
		return
	}
	s := newCheckResult(name, r)
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.json {
		out := json.NewEncoder(c.p.out)
		out.SetEscapeHTML(false)
		err = out.Encode(monitorLine{"holdfast/monitor/v1", s})
	} else {
		_, err = fmt.Fprintf(c.p.out, "%s  %s  %s  %s\n", r.Checked.Format(time.RFC3339), name, ms(s.Response), s.state(c.paint))
	}
	if err != nil {
		c.failed(err)
	}
}

// showTable redraws what is known until the returned func, which leaves the last state on
// the terminal.
func (p *program) showTable(m *health.Monitor, names []string) (stop func()) {
	canvas := &canvas{out: p.out}
	on := p.paintOn(p.out)
	draw := func() {
		canvas.draw(func(_, height int) []string { return monitorLines(m.Results(), names, on, height) })
	}
	stopping := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		for {
			draw()
			select {
			case <-tick.C:
			case <-stopping:
				draw()
				return
			}
		}
	})
	return func() {
		close(stopping)
		wg.Wait()
	}
}

// monitorLines is the table, at most height lines of it.
func monitorLines(found map[string]health.Result, names []string, on paint, height int) []string {
	var services []checkResult
	up := 0
	for _, name := range names {
		r, ok := found[name]
		if !ok {
			continue
		}
		if r.Healthy {
			up++
		}
		services = append(services, newCheckResult(name, r))
	}
	downFirst(services)
	title := on.text(bold, "Holdfast monitor") + fmt.Sprintf("  %d services, %d up, ", len(names), up)
	if down := len(services) - up; down > 0 {
		title += on.text(red, fmt.Sprintf("%d down", down))
	} else {
		title += "0 down"
	}
	lines := append([]string{title, ""}, checkTable(services, on)...)
	if len(lines) > height && height > 0 {
		lines = append(lines[:height-1], fmt.Sprintf("… and %d more", len(lines)-height+1))
	}
	return lines
}
