package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

type demoOptions struct {
	duration time.Duration
	seed     uint64
	udp      bool
	json     bool
}

func (p *program) demoCommand() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Servers die, callers do not notice: see it happen",
		Long: `Starts three echo servers as processes of their own, sends them requests through
one Cluster and a proxy, and then kills, freezes, slows and restarts the servers, one at a
time, also with a build that cannot start. After each the proxy is restarted, with all
connections through it. At the end it counts what callers saw: every request has a payload
of its own, which its reply must bring back.

With --udp all of it is datagrams: requests are sent again until they are answered, and
held through the proxy are sessions, in which datagrams are numbered and sent once. They
lose nothing in its restarts, and their server keeps seeing them come from the same port.

Exit code 0 means that no caller saw an error or a wrong reply, and that no connection
held through the proxy was lost, or datagram of a session.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.demo(cmd.Context(), o) },
	}
	cmd.Flags().DurationVar(&o.duration, "duration", 20*time.Second, "how long the servers suffer, 3s to 1h")
	cmd.Flags().Uint64Var(&o.seed, "seed", 0, "replays a scenario; 0 makes a new one")
	cmd.Flags().BoolVar(&o.udp, "udp", false, "with datagrams")
	cmd.Flags().BoolVarP(&o.json, "json", "j", false, "print one JSON object at the end")
	return cmd
}

func (p *program) demo(ctx context.Context, o demoOptions) error {
	if o.duration < shortestDemo || o.duration > longestDemo {
		return usage(fmt.Errorf("--duration %v: want %v to %v", o.duration, shortestDemo, longestDemo), "")
	}
	if o.seed == 0 {
		o.seed = 1 + rand.Uint64N(1_000_000) // short enough to be typed
	}
	d := &demo{seed: o.seed, udp: o.udp, story: newScenario(o.seed, o.duration), err: p.err, paint: p.paintOn(p.err)}
	r := d.run(ctx)
	if o.json {
		if err := p.printJSON(r); err != nil {
			return err
		}
	} else {
		fmt.Fprint(p.out, r.text(p.paintOn(p.out)))
	}
	return r.verdict()
}

// demo is one run: a fleet of servers, a load on them, and the scenario.
type demo struct {
	seed    uint64
	udp     bool
	story   []phase
	err     *os.File // where progress goes
	paint   paint
	fleet   *fleet
	middle  *middle
	load    *load
	journal *journal
	begun   time.Time
	current atomic.Int32 // the phase, for the screen
}

// run plays the scenario to its end, or to the end of ctx, and reports.
func (d *demo) run(ctx context.Context) *report {
	err := d.prepare(ctx)
	if err == nil {
		err = d.perform(ctx)
	}
	r := d.report()
	switch {
	case ctx.Err() != nil:
		r.Interrupted = true
	case err != nil:
		r.Error = err.Error()
	}
	r.OK = r.Error == "" && r.Requests > 0 && r.ClientErrors == 0 && r.WrongReplies == 0 && r.HeldLost == 0
	return r
}

// prepare starts the servers and makes their client.
func (d *demo) prepare(ctx context.Context) (err error) {
	if d.fleet, err = startFleet(ctx, d.udp); err != nil {
		return err
	}
	if d.middle, err = startMiddle(ctx, d.fleet); err != nil {
		d.fleet.stop()
		return err
	}
	plain := d.err
	if canMove(d.err) {
		plain = nil
	}
	d.journal = newJournal(plain, d.fleet.servers)
	d.middle.journal = d.journal
	if d.load, err = newLoad(d.fleet.servers, len(d.story), d.journal, d.udp); err != nil {
		d.middle.end()
		d.fleet.stop()
	}
	return err
}

// perform plays the scenario under load. Servers end after those who use them.
func (d *demo) perform(ctx context.Context) error {
	defer d.fleet.stop()
	defer d.middle.end()
	defer d.load.cluster.Close()
	d.begun = time.Now()
	d.load.enter(0)
	d.load.start(d.seed)
	d.middle.start(d.seed)
	show := d.startScreen()
	err := d.play(ctx)
	d.load.halt()
	d.middle.halt()
	show.stop()
	return err
}

// play makes each phase true at its time.
func (d *demo) play(ctx context.Context) error {
	d.introduce()
	for i, ph := range d.story {
		if i > 0 {
			before := d.story[i-1]
			d.load.enter(i)
			d.journal.add("%s", ph.announce())
			if err := d.fleet.begin(ctx, before, ph); err != nil {
				return err
			}
			d.current.Store(int32(i))
			if ph.fault == healthy { // else two processes would start at once, which a slow machine feels
				d.middle.restart()
			}
		}
		if err := d.await(ctx, ph.end); err != nil {
			return err
		}
		if ph.fault != healthy {
			hidden, errs := d.load.seen(i)
			d.journal.add("  %s: %d failures hidden, %d seen by callers", ph.name(), hidden, errs)
		}
	}
	return nil
}

// introduce says what there is, so that anyone may look at it from outside.
func (d *demo) introduce() {
	for _, m := range d.fleet.servers {
		d.journal.add("server %s at %s, pid %d", m.name, m.addr, m.proc.cmd.Process.Pid)
	}
	d.journal.add("a proxy in front of them, restarted after each fault; %d %s are held through it", heldConns, heldName(d.udp))
	d.journal.add("%d workers, at most %s requests a second, seed %d", workers, count(rate), d.seed)
}

// await waits until the scenario is as old as at.
func (d *demo) await(ctx context.Context, at time.Duration) error {
	t := time.NewTimer(time.Until(d.begun.Add(at)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-d.fleet.broken:
		return fmt.Errorf("the scenario could not be played: %w", err)
	}
}
