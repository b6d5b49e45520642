package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
)

// report is what a demo says at its end. It is the object of --json.
type report struct {
	Schema         string        `json:"schema"`
	OK             bool          `json:"ok"`
	Error          string        `json:"error,omitempty"` // why the scenario was not played to its end
	Interrupted    bool          `json:"interrupted"`
	Seed           uint64        `json:"seed"`
	Network        string        `json:"network"` // tcp or udp
	Elapsed        float64       `json:"elapsed_s"`
	Requests       uint64        `json:"requests"`
	HiddenFailures uint64        `json:"hidden_failures"` // attempts that failed while their request succeeded elsewhere
	ClientErrors   uint64        `json:"client_errors"`
	WrongReplies   uint64        `json:"wrong_replies"`
	Restarts       int64         `json:"restarts"`    // of servers under load, committed
	RolledBack     int64         `json:"rolled_back"` // restarts with a successor that could not start
	ProxyRestarts  uint64        `json:"proxy_restarts"`
	HeldConns      int           `json:"held_connections"` // through the proxy, all the while; or sessions
	HeldExchanges  uint64        `json:"held_exchanges"`
	HeldLost       uint64        `json:"held_lost"` // sessions: that lost a datagram, or their port at the server
	Unanswered     uint64        `json:"held_unanswered_datagrams"`
	Latency        latency       `json:"latency"`
	Phases         []phaseReport `json:"phases"`
}

type phaseReport struct {
	Name           string  `json:"name"`
	Fault          fault   `json:"fault"`
	Server         string  `json:"server,omitempty"` // the one with the fault, or the one just revived
	Start          float64 `json:"start_s"`
	Requests       uint64  `json:"requests"`
	HiddenFailures uint64  `json:"hidden_failures"`
	ClientErrors   uint64  `json:"client_errors"`
	WrongReplies   uint64  `json:"wrong_replies"`
	Latency        latency `json:"latency"`
}

// latency is of whole requests as their callers waited for them.
type latency struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

func latencyOf(h holdfast.Histogram) latency {
	return latency{asMillis(h.Quantile(.5)), asMillis(h.Quantile(.99)), asMillis(h.Max)}
}

// report adds up what was seen. Phases that were not reached are left out.
func (d *demo) report() *report {
	r := &report{Schema: "holdfast/demo/v1", Seed: d.seed, Network: "tcp"}
	if d.udp {
		r.Network = "udp"
	}
	if d.load == nil {
		return r
	}
	r.Elapsed = asSeconds(time.Since(d.begun))
	if d.fleet != nil {
		r.Restarts, r.RolledBack = d.fleet.restarts.Load(), d.fleet.rolledBack.Load()
	}
	if d.middle != nil {
		r.ProxyRestarts, r.HeldConns = d.middle.restarts.Load(), heldConns
		r.HeldExchanges, r.HeldLost, r.Unanswered = d.middle.exchanges.Load(), d.middle.lost.Load(), d.middle.unanswered.Load()
	}
	var all holdfast.Histogram
	for i := range d.load.reached() {
		m, ph := &d.load.phases[i], d.story[i]
		h := m.latency.Snapshot()
		all = all.Merge(h)
		pr := phaseReport{Name: ph.name(), Fault: ph.fault, Start: asSeconds(ph.start),
			Requests: m.requests.Load(), ClientErrors: m.clientErrors.Load(), WrongReplies: m.wrongReplies.Load(), Latency: latencyOf(h)}
		pr.HiddenFailures, _ = d.load.seen(i)
		if ph.server >= 0 {
			pr.Server = serverNames[ph.server]
		}
		r.Phases = append(r.Phases, pr)
		r.Requests += pr.Requests
		r.HiddenFailures += pr.HiddenFailures
		r.ClientErrors += pr.ClientErrors
		r.WrongReplies += pr.WrongReplies
	}
	r.Latency = latencyOf(all)
	return r
}

// verdict is the error that decides the exit code.
func (r *report) verdict() error {
	switch {
	case r.Interrupted:
		return &failure{code: exitSignal}
	case r.Error != "":
		return &failure{exitFailed, errors.New(r.Error), ""}
	case !r.OK:
		return &failure{exitFailed, fmt.Errorf("callers saw %d errors and %d wrong replies in %d requests, and %d of %d held %s were lost",
			r.ClientErrors, r.WrongReplies, r.Requests, r.HeldLost, r.HeldConns, heldName(r.isUDP())), r.again() + " plays the same scenario"}
	}
	return nil
}

func (r *report) isUDP() bool { return r.Network == "udp" }

// again is the command that plays the same scenario.
func (r *report) again() string {
	if r.isUDP() {
		return fmt.Sprintf("holdfast demo --udp --seed %d", r.Seed)
	}
	return fmt.Sprintf("holdfast demo --seed %d", r.Seed)
}

// text is the report for people, 80 columns wide.
func (r *report) text(on paint) string {
	if len(r.Phases) == 0 {
		return ""
	}
	var b strings.Builder
	line := func(color, name, requests, hidden, errs, p50, p99, max string) {
		s := pad("  "+name, 28) + padLeft(requests, 9) + padLeft(hidden, 8) + padLeft(errs, 8)
		b.WriteString(on.text(color, s+padLeft(p50, 9)+padLeft(p99, 9)+padLeft(max, 9)) + "\n")
	}
	b.WriteString("\n")
	line(dim, "phase", "requests", "hidden", "errors", "p50", "p99", "max")
	for _, ph := range r.Phases {
		line(faultColor(ph.Fault), fmt.Sprintf("%7.1fs  %s", ph.Start, ph.Name), count(ph.Requests), count(ph.HiddenFailures),
			count(ph.ClientErrors+ph.WrongReplies), ms(ph.Latency.P50), ms(ph.Latency.P99), ms(ph.Latency.Max))
	}
	line(bold, "total", count(r.Requests), count(r.HiddenFailures), count(r.ClientErrors+r.WrongReplies),
		ms(r.Latency.P50), ms(r.Latency.P99), ms(r.Latency.Max))
	b.WriteString("\n" + totals(on, r.Requests, r.HiddenFailures, r.ClientErrors, r.WrongReplies) + "\n" +
		heldTotals(on, heldName(r.isUDP()), r.ProxyRestarts, r.HeldExchanges, r.HeldLost) + "\n" + r.conclusion(on))
	return b.String()
}

func ms(v float64) string { return millis(time.Duration(v * float64(time.Millisecond))) }

func faultColor(f fault) string {
	if f == healthy {
		return ""
	}
	return yellow
}

// totals is the line that matters.
func totals(on paint, requests, hidden, errs, wrong uint64) string {
	color := green
	if errs+wrong > 0 {
		color = red
	}
	return "  " + on.text(color, fmt.Sprintf("client errors %s   wrong replies %s", count(errs), count(wrong))) +
		on.text(bold, fmt.Sprintf("   hidden failures %s", count(hidden))) + fmt.Sprintf("   requests %s", count(requests))
}

// heldName is what is held through the proxy.
func heldName(udp bool) string {
	if udp {
		return "sessions"
	}
	return "connections"
}

// heldTotals is the line of what is held through the proxy.
func heldTotals(on paint, name string, restarts, exchanges, lost uint64) string {
	color := green
	if lost > 0 {
		color = red
	}
	return "  " + on.text(color, fmt.Sprintf("held %s %d   lost %s", name, heldConns, count(lost))) +
		on.text(bold, fmt.Sprintf("   proxy restarts %s", count(restarts))) + fmt.Sprintf("   exchanges %s", count(exchanges))
}

// conclusion says what the numbers mean.
func (r *report) conclusion(on paint) string {
	if !r.OK || r.Interrupted {
		return ""
	}
	if r.isUDP() {
		return "\n" + on.text(green, "ok") + fmt.Sprintf(`: what a bad server left unanswered another answered. %s datagrams of
%d sessions came back through %d restarts of the proxy; the server of each session saw
it come from one port all the while, and missed none.

Again:  %s
Next:   holdfast dial --line --idempotent udp://HOST:PORT,udp://HOST:PORT
        holdfast proxy -l udp://:53 -u udp://HOST:53,udp://HOST:53 --responses 1
        holdfast bench udp HOST:PORT              see what gets lost on the way
        go doc github.com/holdfast-net/holdfast/proxy.Packets
`, count(r.HeldExchanges), r.HeldConns, r.ProxyRestarts, r.again())
	}
	return "\n" + on.text(green, "ok") + fmt.Sprintf(`: what failed on a bad server was made good on another, and restarts lost nothing.

Again:  %s
Next:   holdfast ping HOST:PORT,HOST:PORT         look at servers of your own
        holdfast dial HOST:PORT,HOST:PORT         talk to the first that answers
        holdfast proxy -l :7000 -u HOST:PORT,…    the same for clients in any language
        holdfast run -l tcp://:8080 -- ./server   restart any server without being down
        go doc github.com/holdfast-net/holdfast   the library that did this
`, r.again())
}
