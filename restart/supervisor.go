//go:build unix

package restart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/internal/backoff"
	"github.com/holdfast-net/holdfast/internal/certs"
	"github.com/holdfast-net/holdfast/internal/spool"
)

// supervisor keeps what outlives a worker. One goroutine, that of run, owns all of
// its state: whatever happens elsewhere is posted to it as a func.
type supervisor struct {
	cfg     Config
	program program
	reserve int // descriptors that a worker leaves free for a Command
	events  chan func()
	done    chan struct{} // closed when the loop has ended
	tasks   sync.WaitGroup
	notices chan Event // for Config.Observe

	gens    []*generation // all that live, oldest first
	current *generation   // the one that serves
	next    *generation   // its successor, until it is committed or rolled back
	count   int           // generations ever

	asked  []*request // who waits for the restart under way
	queued []*request // who asked meanwhile: the next restart is theirs together
	parked bool       // the next restart waits for an old generation to be gone

	calls   calls
	sockets sockets
	keys    [][32]byte       // of TLS tickets, newest first; only ever in memory and on the link
	totals  map[string]int64 // of the generations that are gone

	crashes  int // in a row
	respawn  *time.Timer
	stopping bool
	stops    int   // signals to stop
	cuts     int   // of generations, while it stops
	err      error // what Run will return

	served  bool // some generation was committed
	history history
	control *controlSocket
	systemd *systemd
	pidfile *pidFile
}

// history is for Status.
type history struct {
	started                       time.Time
	restarts, rolledBack, crashed int
	lastError                     string
	lastErrorAt                   time.Time
}

func (h *history) failed(err error) {
	h.lastError, h.lastErrorAt = oneLine(err.Error()), time.Now()
}

// request is one wish for a restart.
type request struct {
	coalesced bool
	answer    chan Result // buffered
}

// respawnAfter is how long a worker is missed before it is started again: at once
// at first, and with growing pauses when it keeps dying.
var respawnAfter = backoff.Policy{Base: 50 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2, Jitter: 0.5}

// stable is how long a worker must serve before its predecessors' crashes are forgotten.
const stable = 10 * time.Second

func supervise(ctx context.Context, cfg Config, program program, sockets int) error {
	log, endLog := spool.New(cfg.Log) // what blocks a log must not block a restart
	defer endLog(time.Second)
	cfg.Log = log
	s := &supervisor{
		cfg: cfg, program: program,
		events: make(chan func()), done: make(chan struct{}), notices: make(chan Event, maxNotices),
		totals: map[string]int64{}, history: history{started: time.Now()},
		systemd: newSystemd(), pidfile: &pidFile{path: cfg.PIDFile},
		keys:  certs.RotateTickets(nil),
		calls: calls{room: make(chan struct{}, maxCalls), open: map[uint64]openCall{}},
	}
	if len(cfg.Command.Args) > 0 {
		s.reserve = sockets + growth
	}
	err := s.pidfile.check()
	if err != nil {
		return err
	}
	if s.control, err = listenControl(cfg, s.handle); err != nil {
		return err
	}
	s.sockets.adopt(s.systemd.sockets())
	told := make(chan struct{})
	go func() {
		defer close(told)
		for e := range s.notices {
			cfg.Observe(e)
		}
	}()
	s.run(ctx)
	close(s.notices)
	select {
	case <-told:
	case <-time.After(time.Second): // the user's function is stuck
	}
	return s.err
}

// growth is how many sockets a Command may be given more than in the beginning.
const growth = 16

// maxNotices is how many events may wait for Config.Observe; further ones are dropped.
const maxNotices = 256

func (s *supervisor) run(ctx context.Context) {
	signals := make(chan os.Signal, 16)
	if all := s.cfg.Signals.all(); len(all) > 0 {
		signal.Notify(signals, all...)
	}
	defer signal.Stop(signals)
	stopReaping := s.reapOrphans()
	rotate := time.NewTicker(keyLife)
	defer rotate.Stop()
	watchdog, stopWatchdog := s.systemd.watchdog()
	defer stopWatchdog()
	ended := ctx.Done()

	s.begin([]*request{})
	for !s.stopping || len(s.gens) > 0 {
		select {
		case happened := <-s.events:
			happened()
		case sig := <-signals:
			switch {
			case slices.Contains(s.cfg.Signals.Stop, sig):
				s.stop()
			case slices.Contains(s.cfg.Signals.Restart, sig):
				s.ask(&request{answer: make(chan Result, 1)})
			case s.current != nil:
				s.current.signal(sig)
			}
		case <-ended:
			ended = nil
			s.leaveAll(s.cfg.Timeouts.Drain, nil)
		case <-rotate.C:
			s.rotateKeys()
		case <-watchdog:
			if s.current != nil {
				s.systemd.notify("WATCHDOG=1")
			}
		}
	}
	s.finish()
	stopReaping()
}

// post hands what happened to the loop. It is dropped when that has ended.
func (s *supervisor) post(happened func()) (taken bool) {
	select {
	case s.events <- happened:
		return true
	case <-s.done:
		return false
	}
}

func (s *supervisor) finish() {
	if s.respawn != nil {
		s.respawn.Stop()
	}
	s.answer(&s.asked, Result{Err: "the service is stopping"})
	s.answer(&s.queued, Result{Err: "the service is stopping"})
	close(s.done)
	s.sockets.close()
	s.pidfile.remove()
	s.control.close() // last: who asked for the end is told so by this
	s.tasks.Wait()
}

// ask starts a restart, or joins the one that will follow the one under way.
func (s *supervisor) ask(r *request) {
	switch {
	case s.stopping:
		r.answer <- Result{Err: "the service is stopping"}
	case s.next != nil || s.parked:
		r.coalesced = len(s.queued) > 0
		s.queued = append(s.queued, r)
	default:
		s.begin([]*request{r})
	}
}

// begin starts the next generation. asked is who is told how that went; nil when
// nobody wanted it, because the last one crashed.
func (s *supervisor) begin(asked []*request) {
	s.asked = append(s.asked, asked...)
	if len(asked) > 0 {
		s.systemd.reloading()
	}
	if s.parked = s.crowded(); s.parked {
		return // onExit goes on
	}
	if s.respawn != nil {
		s.respawn.Stop()
		s.respawn = nil
	}
	s.count++
	g := &generation{id: s.count, s: s, started: time.Now(), command: len(s.cfg.Command.Args) > 0, gone: make(chan struct{})}
	s.next = g
	s.gens = append(s.gens, g)
	if err := g.spawn(); err != nil {
		g.failure = err
		s.exited(g)
		return
	}
	s.happened(Spawned, g, nil)
	g.after(s.cfg.Timeouts.Ready, func() {
		if g.phase == starting {
			s.fail(g, fmt.Errorf("restart: not ready within %v: %s", s.cfg.Timeouts.Ready, g.lacks()))
		}
	})
}

// crowded cuts the oldest of those that leave if there is no room for one more.
func (s *supervisor) crowded() bool {
	if len(s.gens) < s.cfg.Generations {
		return false
	}
	for _, g := range s.gens {
		if g != s.current {
			s.cut(g, errors.New("restart: too many generations are leaving"))
			return true
		}
	}
	return false
}

// ready is called when a worker's accept loops wait.
func (s *supervisor) ready(g *generation) {
	if s.stopping || g != s.next || g.phase != starting {
		return
	}
	g.phase = ready
	s.repeatCalls(g)
	s.happened(Ready, g, nil)
	if s.current == nil {
		s.commit()
		return
	}
	s.current.pause()
	g.after(s.cfg.Timeouts.Confirm, func() {
		switch {
		case s.stopping || g != s.next:
		case g.broken != nil:
			s.fail(g, g.broken)
		default:
			s.commit()
		}
	})
}

// commit makes the successor the one that serves, and lets the predecessor go.
func (s *supervisor) commit() {
	old, g := s.current, s.next
	s.current, s.next = g, nil
	g.phase = serving
	if err := s.sockets.keepOnly(g.wants); err != nil {
		s.cfg.Log.Error("restart: the mode of a socket's file", "err", err)
	}
	s.retire(old, g)
	if !s.served {
		s.served = true
		if err := s.pidfile.write(); err != nil {
			s.cfg.Log.Error("restart: write the pid file", "err", err)
		}
		s.cfg.Log.Info("restart: serving", "name", s.cfg.Name, "sockets", s.sockets.names(), "admin", s.control.where())
	}
	if len(s.asked) > 0 {
		s.history.restarts++
	}
	g.after(stable, func() {
		if g == s.current {
			s.crashes = 0
		}
	})
	s.systemd.notify("READY=1\nSTATUS=" + fmt.Sprintf("generation %d serves", g.id))
	s.happened(Committed, g, nil)
	s.answer(&s.asked, Result{OK: true, Generation: g.id, PID: g.pid()})
	s.followUp()
}

// retire asks a generation, if there is one, to leave, passing on to its successor what
// it can.
func (s *supervisor) retire(old, to *generation) {
	var ours, theirs []*os.File
	if old != nil && old.passesOn() && to.passesOn() {
		if a, b, err := pair(); err == nil {
			ours, theirs = []*os.File{a}, []*os.File{b}
		}
	}
	if old != nil {
		old.phase = leaving
		old.leave(s.cfg.Timeouts.Drain, ours...)
	}
	if to.passesOn() {
		to.send(message{kind: msgTake}, theirs...) // without a link there is nothing to take
	}
}

// passesOn reports whether connections may move from or to a generation.
func (g *generation) passesOn() bool { return !g.command && g.protocol.has(featureConns) }

// followUp starts the restart that was asked for during the last one.
func (s *supervisor) followUp() {
	if len(s.queued) == 0 || s.stopping || s.next != nil || s.parked {
		return
	}
	asked := s.queued
	s.queued = nil
	s.begin(asked)
}

// fail ends a generation that cannot serve; exited does the rest.
func (s *supervisor) fail(g *generation, err error) {
	if g.failure == nil {
		g.failure = err
	}
	g.kill()
}

// exited is called when the process of a generation is gone.
func (s *supervisor) exited(g *generation) {
	s.gens = slices.DeleteFunc(s.gens, func(o *generation) bool { return o == g })
	g.end()
	s.lostCalls(g)
	for name, n := range g.totals {
		s.totals[name] += n
	}
	switch {
	case s.stopping:
		s.happened(Exited, g, g.cutErr)
	case g == s.next:
		s.rollBack(g)
	case g == s.current:
		s.crashed(g)
	default:
		s.happened(Exited, g, g.cutErr)
	}
	if s.parked && !s.stopping {
		s.begin(nil)
	}
}

// rollBack goes on with the predecessor, which has stopped accepting at most.
func (s *supervisor) rollBack(g *generation) {
	s.next, s.calls.repeat = nil, nil
	err := g.cause()
	s.history.failed(err)
	if !s.served { // there is nothing to go back to
		s.leaveAll(0, err)
		return
	}
	s.history.rolledBack++
	s.happened(RolledBack, g, err)
	s.sockets.rollBack()
	if s.current != nil {
		s.current.resume()
		s.systemd.notify("READY=1\nSTATUS=the restart failed: " + s.history.lastError)
	}
	s.answer(&s.asked, Result{Err: s.history.lastError})
	switch {
	case len(s.queued) > 0:
		s.followUp()
	case s.current == nil:
		s.reviveLater()
	}
}

// crashed replaces the generation that served. Meanwhile clients queue in the
// sockets, unless a successor is about to serve anyway.
func (s *supervisor) crashed(g *generation) {
	s.current = nil
	s.history.crashed++
	err := g.cause()
	s.history.failed(err)
	s.happened(Crashed, g, err)
	switch {
	case s.next == nil:
		s.reviveLater()
	case s.next.phase == ready:
		s.commit()
	case s.next.awaits == g:
		s.next.welcome(nil) // what the dead one knew is lost
	}
}

func (s *supervisor) reviveLater() {
	wait := respawnAfter.Delay(s.crashes)
	s.crashes++
	s.respawn = time.AfterFunc(wait, func() {
		s.post(func() {
			if s.current == nil && s.next == nil && !s.stopping && !s.parked {
				s.begin(nil)
			}
		})
	})
}

// stop is a signal: the first drains, the second ends everything. Only signals
// count: the one that ends the caller's context, too, is not a second one.
func (s *supervisor) stop() {
	s.stops++
	if s.stops == 1 {
		s.leaveAll(s.cfg.Timeouts.Drain, nil)
		return
	}
	s.err = errors.Join(s.err, ErrStopped)
	for _, g := range s.gens {
		g.killNow()
	}
}

// leaveAll lets every generation leave, or do so sooner.
func (s *supervisor) leaveAll(drain time.Duration, err error) {
	if !s.stopping {
		s.stopping = true
		s.err = err
		s.systemd.stopping(drain + s.cfg.Timeouts.Stop)
		s.happened(Stopping, nil, err)
		s.sockets.close() // who connects now is refused, as soon as the workers close theirs
	}
	for _, g := range s.gens {
		if g.phase == starting {
			g.kill()
			continue
		}
		g.leave(drain)
	}
}

// cut leaves a generation that leaves little time: it may be about to hand over, but
// what it still serves then is closed.
func (s *supervisor) cut(g *generation, why error) {
	if g.cutErr == nil {
		g.cutErr = why
		s.happened(Cut, g, why)
		g.leave(min(s.cfg.Timeouts.Stop, s.cfg.Timeouts.Drain))
	}
}

func (s *supervisor) answer(to *[]*request, r Result) {
	for _, one := range *to {
		r.Coalesced = one.coalesced
		one.answer <- r
	}
	*to = nil
}

// keyLife is how long a key seals tickets. It opens them for a week, as those of
// crypto/tls do.
const keyLife = 24 * time.Hour

func (s *supervisor) rotateKeys() {
	s.keys = certs.RotateTickets(s.keys)
	for _, g := range s.gens {
		if g.protocol.has(featureKeys) {
			g.tell(msgKeys, s.keys)
		}
	}
}

func (s *supervisor) happened(kind EventKind, g *generation, err error) {
	e := Event{Kind: kind, Err: err}
	if g != nil {
		e.Generation, e.PID, e.Duration = g.id, g.pid(), time.Since(g.started)
	}
	s.cfg.Log.LogAttrs(context.Background(), e.level(), "restart: "+string(kind), e.attrs()...)
	select {
	case s.notices <- e:
	default:
	}
}

// sum is what the counters of all generations come to.
func (s *supervisor) sum() map[string]int64 {
	sum := maps.Clone(s.totals)
	for _, g := range s.gens {
		for name, n := range g.totals {
			sum[name] += n
		}
	}
	return sum
}
