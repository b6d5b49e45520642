package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-net/holdfast"
)

// pingReport is the object of ping --json.
type pingReport struct {
	Schema  string       `json:"schema"`
	OK      bool         `json:"ok"` // every address answered every time
	Targets []pingTarget `json:"targets"`
}

// pingTarget is one address. Times are medians of the attempts that were
// answered, and left out for what was not done.
type pingTarget struct {
	Endpoint  string  `json:"endpoint"`
	Address   string  `json:"address,omitempty"`
	Attempts  int     `json:"attempts"`
	Answered  int     `json:"answered"`
	Lookup    float64 `json:"lookup_ms,omitempty"`
	Connect   float64 `json:"connect_ms,omitempty"`
	TLS       float64 `json:"tls_ms,omitempty"`
	FirstByte float64 `json:"first_byte_ms,omitempty"`
	Class     string  `json:"class,omitempty"` // of the last error
	Error     string  `json:"error,omitempty"`
}

func newPingReport(targets []*target) *pingReport {
	r := &pingReport{Schema: "holdfast/ping/v1", OK: true}
	for _, t := range targets {
		pt := pingTarget{
			Endpoint: t.endpoint.String(), Address: t.addr, Attempts: t.attempts, Answered: len(t.good), Lookup: asMillis(t.lookup),
			Connect:   t.median(func(s sample) time.Duration { return s.connect }),
			TLS:       t.median(func(s sample) time.Duration { return s.tls }),
			FirstByte: t.median(func(s sample) time.Duration { return s.first }),
		}
		if t.err != nil {
			pt.Class, pt.Error = holdfast.Classify(t.err).String(), cause(t.err)
		}
		r.OK = r.OK && t.attempts > 0 && len(t.good) == t.attempts
		r.Targets = append(r.Targets, pt)
	}
	return r
}

func (t *target) median(phase func(sample) time.Duration) float64 {
	if len(t.good) == 0 {
		return 0
	}
	var all []time.Duration
	for _, s := range t.good {
		all = append(all, phase(s))
	}
	slices.Sort(all)
	return asMillis(all[len(all)/2])
}

// text is the report for people: a line for each address.
func (r *pingReport) text(on paint) string {
	width := len("address")
	for _, t := range r.Targets {
		width = max(width, utf8.RuneCountInString(t.name()))
	}
	var b strings.Builder
	line := func(name string, cells ...string) string {
		s := pad(name, width)
		for _, c := range cells {
			s += padLeft(c, 12)
		}
		return s
	}
	b.WriteString(on.text(dim, line("address", "lookup", "connect", "tls", "first byte")) + "\n")
	for _, t := range r.Targets {
		b.WriteString(line(t.name(), ms(t.Lookup), ms(t.Connect), ms(t.TLS), ms(t.FirstByte)) + "  " + t.state(on) + "\n")
	}
	return b.String()
}

// name is the address as it was given, and what a name stands for.
func (t pingTarget) name() string {
	if t.Address == "" || strings.Contains(t.Endpoint, t.Address) {
		return t.Endpoint
	}
	return t.Endpoint + " " + t.Address
}

func (t pingTarget) state(on paint) string {
	word, color := "up", green
	switch {
	case t.Answered == 0:
		word, color = "down", red
	case t.Answered < t.Attempts:
		word, color = "lossy", yellow
	}
	s := on.text(color, word)
	if t.Attempts > 1 {
		s += fmt.Sprintf(" %d/%d", t.Answered, t.Attempts)
	}
	if t.Error != "" {
		s += fmt.Sprintf("  %s: %s", t.Class, t.Error)
	}
	return s
}
