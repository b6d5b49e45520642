package restart

import (
	"fmt"
	"slices"
)

// protocol is the version that this build speaks, and oldest the least that it
// understands. Supervisor and worker come from different builds after an upgrade,
// and so do two workers.
var protocol = version{Version: 2, Oldest: 1, Features: []feature{featureConns, featureState, featureTotals, featureKeys}}

type version struct {
	Version, Oldest int
	Features        []feature
}

// feature is what both sides must know to use it. Version 1 had none: a worker of
// it gets its listeners, and drains.
type feature string

const (
	featureConns  feature = "connections"
	featureState  feature = "numbered state" // "state" was one that did not tell for whom it was saved
	featureTotals feature = "totals"
	featureKeys   feature = "ticket keys"
)

// meet returns what both understand.
func (v version) meet(o version) (version, error) {
	met := version{Version: min(v.Version, o.Version), Oldest: max(v.Oldest, o.Oldest)}
	if met.Version < met.Oldest {
		return met, fmt.Errorf("restart: one side speaks protocol %d to %d, the other %d to %d", v.Oldest, v.Version, o.Oldest, o.Version)
	}
	for _, f := range v.Features {
		if slices.Contains(o.Features, f) {
			met.Features = append(met.Features, f)
		}
	}
	return met, nil
}

func (v version) has(f feature) bool { return slices.Contains(v.Features, f) }

// msgKind is what a message says. The numbers are the protocol: they never change.
type msgKind byte

const (
	// Worker to supervisor.
	msgHello  msgKind = 1 // hello
	msgReady  msgKind = 2 // every accept loop waits
	msgPaused msgKind = 3 // no accept loop will return another connection
	msgState  msgKind = 4 // the body of msgSave and the blob, which alone goes on to the successor
	msgTotals msgKind = 5 // map[string]int64
	msgFailed msgKind = 6 // string: why the worker cannot serve
	msgFile   msgKind = 7 // a want, with the file that it opened
	msgAsk    msgKind = 8 // string: "stop"
	msgAnswer msgKind = 9 // reply

	// Supervisor to worker.
	msgWelcome msgKind = 16 // welcome
	msgSockets msgKind = 17 // a list of wants, with their descriptors
	msgSave    msgKind = 18 // for which generation: 4 bytes, big endian
	msgPause   msgKind = 19
	msgResume  msgKind = 20
	msgLeave   msgKind = 21 // leave; with the link to the successor, if connections may move
	msgTake    msgKind = 22 // with the link to the predecessor
	msgKeys    msgKind = 23 // the ticket keys, newest first
	msgBegin   msgKind = 24 // everything has been passed: load, start, serve
	msgReopen  msgKind = 25 // the log files
	msgCall    msgKind = 26 // call
)

type hello struct {
	Protocol version
	Wants    []want
	Load     bool // it wants the state of its predecessor
	Calls    bool // it takes calls
}

type welcome struct {
	Protocol   version
	Generation int
}

type leave struct {
	Drain int64 // nanoseconds
}
