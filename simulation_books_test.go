package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

// lending is what is known of a connection by those it was lent to.
type lending struct {
	to      string // "" when nobody has it
	spoiled string // why it may never be lent again
}

// wait is an Acquire that succeeded.
type wait struct{ from, to time.Time }

// look checks what must hold at every moment, when nothing is under way in this
// instant.
func (s *sim) look() {
	synctest.Wait()
	stats := s.cluster.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	if stats.Successes+stats.Failures > stats.Operations {
		s.violationLocked("operations = successes + failures", "%d, %d, %d", stats.Operations, stats.Successes, stats.Failures)
	}
	if stats.Idle > stats.Conns || stats.Waiting < 0 || stats.Dialing < 0 {
		s.violationLocked("the pool's counts are counts", "%d idle of %d, %d waiting, %d dialing", stats.Idle, stats.Conns, stats.Waiting, stats.Dialing)
	}
	if stats.EventsDropped > 0 {
		s.violationLocked("no event is lost", "%d", stats.EventsDropped)
	}
	open := 0
	for k := range s.sockets {
		if k.Conn != nil {
			open++
		}
	}
	if open < stats.Conns {
		s.violationLocked("each connection has a socket", "%d sockets, %d connections", open, stats.Conns)
	}
	for n, said := range s.walk {
		if now := n.State(); now != said {
			s.violationLocked("each change of state is an event", "%s is %v, the last event said %v", n.Addr(), now, said)
		}
	}
	if s.plan.Clean {
		for _, sv := range s.servers {
			if n := len(sv.host.Conns()); n > s.plan.perNode() {
				s.violationLocked("a server sees no more than Pool.Max", "%s sees %d", sv.addr, n)
			}
		}
	}
}

// atRest checks the accounts when no call is under way and the Cluster lives.
// Probes and pings may be: they get the time to end.
func (s *sim) atRest() {
	for range 5 {
		if stats := s.cluster.Stats(); stats.Conns == stats.Idle && stats.Waiting == 0 {
			return
		}
		time.Sleep(7 * time.Second)
		synctest.Wait()
	}
	stats := s.cluster.Stats()
	s.violation("when all are home, all connections rest", "%d of %d, %d wait", stats.Idle, stats.Conns, stats.Waiting)
}

// closed checks the accounts at the end.
func (s *sim) closed() {
	stats := s.cluster.Stats()
	if stats.Conns != 0 || stats.Idle != 0 || stats.Dialing != 0 || stats.Waiting != 0 {
		s.violation("Close leaves nothing", "%d connections, %d idle, %d dialing, %d waiting", stats.Conns, stats.Idle, stats.Dialing, stats.Waiting)
	}
	if stats.Operations != stats.Successes+stats.Failures {
		s.violation("operations = successes + failures", "%d, %d, %d", stats.Operations, stats.Successes, stats.Failures)
	}
	start := time.Now()
	err := s.cluster.Do(context.Background(), holdfast.Idempotent, say("after the end"))
	if !errors.Is(err, holdfast.ErrClosed) || time.Since(start) != 0 {
		s.violation("use after Close is ErrClosed at once", "%v after %v", err, time.Since(start))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened != 0 || s.retried < stats.Retries { // an announced retry may be given up
		s.violationLocked("each connection and each retry has its events", "%d more opened than closed; %d retries, %d events", s.opened, stats.Retries, s.retried)
	}
	for n := range s.nodes {
		if k := n.InFlight(); k != 0 {
			s.violationLocked("InFlight ends at 0", "%s has %d", n.Addr(), k)
		}
	}
	for k := range s.sockets {
		s.violationLocked("Close leaves nothing", "a socket to %s", k.addr)
	}
}

// audit compares the books of servers and callers once everything has ended.
func (s *sim) audit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.unsafe {
		if n := s.executed[id]; n > 1 {
			s.violationLocked("an unsafe operation runs at most once", "operation %d ran %d times", id, n)
		}
	}
	for _, id := range s.unsent {
		if n := s.executed[id]; n > 0 {
			s.violationLocked("SafeToRetry means that nothing ran", "operation %d ran %d times", id, n)
		}
	}
	if most := s.plan.budget(s.dos, s.lasted); s.paid > most {
		s.violationLocked("retries stay within the budget", "%d repeated runs of %d operations, at most %d", s.paid, s.dos, most)
	}
	if s.plan.Fair {
		s.fairLocked()
	}
}

// fairLocked holds that who asked first was served first.
func (s *sim) fairLocked() {
	for _, a := range s.waits {
		for _, b := range s.waits {
			if a.from.Before(b.from) && a.to.After(b.to) {
				s.violationLocked("waiters are served in order", "asked at %v and served at %v, after who asked at %v and was served at %v",
					a.from.Sub(s.began), a.to.Sub(s.began), b.from.Sub(s.began), b.to.Sub(s.began))
				return
			}
		}
	}
}

// event holds that events come in order and that each node's are a walk.
func (s *sim) event(e holdfast.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked("event: %v", shownEvent(e))
	if e.Time.Before(s.last) {
		s.violationLocked("events come in order", "%v after %v", e.Time.Sub(s.began), s.last.Sub(s.began))
	}
	s.last = e.Time
	switch {
	case e.Kind == holdfast.EventDial && e.Err == nil:
		s.opened++
	case e.Kind == holdfast.EventClose:
		s.opened--
	case e.Kind == holdfast.EventRetry:
		s.retried++
	}
	if e.Node != nil {
		s.nodes[e.Node] = true
	}
	if e.Kind != holdfast.EventState {
		return
	}
	before, known := s.walk[e.Node]
	if known && before != e.From || !known && e.From != holdfast.StateIdle && e.From != holdfast.StateDraining || e.From == e.To {
		s.violationLocked("a node's events are a walk of its states", "%s goes from %v to %v, and was %v", e.Node.Addr(), e.From, e.To, before)
	}
	s.walk[e.Node] = e.To
}

// lend holds that a connection has one holder, and has seen nothing bad.
func (s *sim) lend(conn *holdfast.Conn, d *deed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lent[conn]
	if l == nil {
		l = &lending{}
		s.lent[conn] = l
		if want := s.plan.Handshake; (conn.Session == s) != want {
			s.violationLocked("a new connection has been through the handshake once", "session %v", conn.Session)
		}
	}
	if l.to != "" {
		s.violationLocked("a connection has one holder", "lent to %v, and %s has it", d, l.to)
	}
	if l.spoiled != "" {
		s.violationLocked("a connection that saw something bad is never used again", "lent to %v after %s", d, l.spoiled)
	}
	l.to = d.String()
}

// takeBack is called before the Cluster gets it back.
func (s *sim) takeBack(conn *holdfast.Conn, keeps bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lent[conn]
	if !keeps {
		l.spoiled = l.to
	}
	l.to = ""
}

// timely holds that a timeout is by one of the limits set here, and not by one
// that an earlier holder of the connection left behind. Zero limits are defaults
// of ten seconds and more, negative ones are off.
func (s *sim) timely(d *deed, err error, after, own, read, write time.Duration) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	for _, l := range []time.Duration{own, limitOf(read, time.Minute, 0), limitOf(write, 10*time.Second, 0)} {
		if l > 0 && after >= l {
			return
		}
	}
	s.violation("a deadline is one's own", "%v timed out after %v: %v", d, after, err)
}

// opens holds that the pool stays within its limits, at every moment.
func (s *sim) opens(k *simSocket) (storm bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets[k] = true
	storm = s.stormLocked(k.addr)
	here, all := 0, 0
	for o := range s.sockets {
		if o.counts() {
			all++
			if o.addr == k.addr {
				here++
			}
		}
	}
	if s.plan.Pooled && here > s.plan.perNode() {
		s.violationLocked("the pool opens no more than Pool.Max", "%d sockets to %s", here, k.addr)
	}
	if s.plan.Pooled && all > s.plan.total() {
		s.violationLocked("the pool opens no more than Pool.Total", "%d sockets", all)
	}
	return storm
}

// stormLocked holds that no address is dialed in a loop.
func (s *sim) stormLocked(addr string) (storm bool) {
	if now := time.Now(); now != s.instant {
		s.instant = now
		clear(s.dials)
	}
	if s.dials[addr]++; s.dials[addr] < 200 {
		return false
	}
	s.violationLocked("no address is dialed in a loop", "%s %d times at once", addr, s.dials[addr])
	return true
}

type logLine struct {
	at     time.Duration
	format string
	args   []any
}

func (s *sim) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteLocked(format, args...)
}

// noteLocked keeps a line of the log; it becomes text only if it is needed.
func (s *sim) noteLocked(format string, args ...any) {
	s.log = append(s.log, logLine{time.Since(s.began), format, args})
}

func (s *sim) violation(promise, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violationLocked(promise, format, args...)
}

func (s *sim) violationLocked(promise, format string, args ...any) {
	text := promise + ": " + fmt.Sprintf(format, args...)
	s.wrong = append(s.wrong, text)
	s.noteLocked("WRONG: %s", text)
}

// report is what one needs to know of a failure.
func (s *sim) report() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, w := range s.wrong {
		fmt.Fprintf(&b, "  WRONG: %s\n", w)
	}
	fmt.Fprintf(&b, "%v\n", s.plan)
	const head, tail = 400, 100
	for i, l := range s.log {
		switch {
		case i < head || i >= len(s.log)-tail:
			fmt.Fprintf(&b, "  %12v %s\n", l.at, fmt.Sprintf(l.format, l.args...))
		case i == head:
			fmt.Fprintf(&b, "  … %d lines\n", len(s.log)-head-tail)
		}
	}
	fmt.Fprintf(&b, "replay: go test -race -run '^TestSimulation$' -count 20 . -args -seed=%d\n", s.plan.Seed)
	return b.String()
}

func (s *sim) outstanding() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var calls []string
	for d, since := range s.pending {
		calls = append(calls, fmt.Sprintf("since %v: %v", since.Sub(s.began), d))
	}
	slices.Sort(calls)
	return strings.Join(calls, "; ")
}

type shownEvent holdfast.Event

func (e shownEvent) String() string {
	text := string(e.Kind)
	if e.Node != nil {
		text += " " + e.Node.Addr()
	}
	if e.From != e.To {
		text += fmt.Sprintf(" %v → %v", e.From, e.To)
	}
	if e.Cause != "" {
		text += ", " + e.Cause
	}
	if e.Err != nil {
		text += ", " + e.Err.Error()
	}
	return text
}
