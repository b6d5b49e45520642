package main

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// fault is what is wrong with a server.
type fault string

const (
	healthy fault = "healthy"
	killed  fault = "killed" // its process is gone: connections are reset, connects refused
	frozen  fault = "frozen" // its process is stopped: the kernel accepts for it, nothing answers
	slowed  fault = "slowed" // every answer is late, but not late enough to be an error

	// What is done to a server, and should not be one.
	restarted fault = "restarted"     // replaced by its successor, with its live connections
	failed    fault = "bad successor" // the successor cannot start: all stays as it was
)

// faults are all that a scenario has.
func allFaults() []fault {
	if len(demoRestart) == 0 {
		return []fault{killed, frozen, slowed} // no process can be succeeded here
	}
	return []fault{killed, frozen, slowed, restarted, failed}
}

// phase is a part of the scenario. In it one server has a fault, or none has.
type phase struct {
	fault      fault
	server     int           // the one with the fault, or the one just revived; -1 for none
	delay      time.Duration // of a slowed server's answers
	start, end time.Duration // since the scenario began
}

// name says what happens in the phase.
func (ph phase) name() string {
	switch {
	case ph.fault == failed:
		return serverNames[ph.server] + ": " + string(ph.fault)
	case ph.fault != healthy:
		return serverNames[ph.server] + " " + string(ph.fault)
	case ph.server >= 0:
		return serverNames[ph.server] + " revived"
	}
	return "all healthy"
}

// announce says what is done when the phase begins.
func (ph phase) announce() string {
	who := ""
	if ph.server >= 0 {
		who = serverNames[ph.server]
	}
	switch ph.fault {
	case killed:
		return "kill -KILL " + who
	case frozen:
		return "kill -STOP " + who
	case slowed:
		return fmt.Sprintf("%s answers %v late", who, ph.delay)
	case restarted:
		return "restart " + who
	case failed:
		return "restart " + who + " with a bad build"
	}
	if who != "" {
		return "revive " + who
	}
	return "all healthy"
}

var serverNames = [3]string{"a", "b", "c"}

const (
	shortestDemo = 3 * time.Second
	longestDemo  = time.Hour
)

// newScenario plans d: one server at a time goes bad and is revived before the
// next one goes bad. The seed decides the order of the faults, whom they hit and
// how long. Each kind of fault and each server has its turn in the first
// rounds.
func newScenario(seed uint64, d time.Duration) []phase {
	rnd := rand.New(rand.NewPCG(seed, 0))
	faults := allFaults()
	rnd.Shuffle(len(faults), func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	servers := rnd.Perm(len(serverNames))

	rounds := min(max(int(d/(4*time.Second)), len(faults)), 10)
	calm := min(max(d/10, 400*time.Millisecond), 3*time.Second) // at the start
	quiet := max(d/10, time.Second)                             // at the end, after the last revival
	round := (d - calm - quiet) / time.Duration(rounds)

	story := []phase{{fault: healthy, server: -1, end: calm}}
	for i := range rounds {
		if i >= len(faults) {
			faults = append(faults, faults[rnd.IntN(len(faults))])
		}
		if i >= len(servers) {
			last := servers[i-1]
			servers = append(servers, (last+1+rnd.IntN(2))%len(serverNames))
		}
		start := calm + time.Duration(i)*round
		bad := time.Duration((0.5 + 0.2*rnd.Float64()) * float64(round))
		story = append(story,
			phase{faults[i], servers[i], lateness(faults[i], rnd), start, start + bad},
			phase{healthy, revived(faults[i], servers[i]), 0, start + bad, start + round})
	}
	story[len(story)-1].end = d
	return story
}

// revived is the server that comes back after a fault: none after a restart, in
// which it was never away.
func revived(f fault, server int) int {
	if f == restarted || f == failed {
		return -1
	}
	return server
}

// lateness is shorter than what the demo's client gives an attempt, so that a
// slow server is a matter of choosing well rather than of trying again.
func lateness(f fault, rnd *rand.Rand) time.Duration {
	if f != slowed {
		return 0
	}
	return time.Duration(80+10*rnd.IntN(5)) * time.Millisecond
}
