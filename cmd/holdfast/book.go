package main

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
)

// book is what became known of the backends of a group: what Stats does not keep. It
// says in the log when one goes and when one comes back.
type book struct {
	log   *slog.Logger
	where []slog.Attr // which group it is about, for the log

	mu    sync.Mutex
	pages map[string]*page // by node
}

// page is about one node.
type page struct {
	Since   time.Time  `json:"since,omitzero"` // it is in its state
	Cause   string     `json:"cause,omitempty"`
	LastErr *mishap    `json:"last_error,omitempty"`
	Checks  *checkBook `json:"checks,omitempty"`
	History []happened `json:"history,omitempty"` // the last changes, oldest first

	out string // the state that it is out of use by; "" while it is good
}

type mishap struct {
	At  time.Time `json:"at"`
	Err string    `json:"err"`
}

type checkBook struct {
	Passed int       `json:"passed"`
	Failed int       `json:"failed"`
	Last   time.Time `json:"last"`
	Took   float64   `json:"took_ms"`
	Err    string    `json:"err,omitempty"` // of the last
}

type happened struct {
	At    time.Time `json:"at"`
	State string    `json:"state"`
	Cause string    `json:"cause,omitempty"`
	Err   string    `json:"err,omitempty"`
}

const (
	maxHistory = 20   // of one node
	maxPages   = 8192 // nodes come and go
)

func newBook(log *slog.Logger, where ...slog.Attr) *book {
	return &book{log: log, where: slices.Clip(where), pages: map[string]*page{}}
}

// about returns what is known of a node.
func (b *book) about(node string) page {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.pages[node]
	if !ok {
		return page{}
	}
	out := *p
	out.History = slices.Clone(p.History)
	if p.Checks != nil {
		checks := *p.Checks
		out.Checks = &checks
	}
	return out
}

// observe takes the events of the Cluster.
func (b *book) observe(e holdfast.Event) {
	if e.Node == nil {
		b.observeAll(e)
		return
	}
	b.mu.Lock()
	p := b.page(e.Node.String())
	word := ""
	switch e.Kind {
	case holdfast.EventState:
		word = p.changed(e)
	case holdfast.EventDial:
		word = p.dialed(e)
	case holdfast.EventCheck:
		p.checked(e)
	}
	if e.Err != nil {
		p.LastErr = &mishap{e.Time, causeOf(e.Err)}
	}
	b.mu.Unlock()
	if word != "" {
		b.announce(word, e)
	}
}

func (b *book) page(node string) *page {
	if len(b.pages) >= maxPages {
		clear(b.pages)
	}
	p := b.pages[node]
	if p == nil {
		p = &page{}
		b.pages[node] = p
	}
	return p
}

// changed notes a state, and returns what is worth a line in the log: that a backend went
// and that it came back, not each attempt in between.
func (p *page) changed(e holdfast.Event) (word string) {
	was := p.out
	switch {
	case e.To == holdfast.StateDraining && e.Cause == "weight":
		p.out, e.Cause = "draining", "it was asked to" // the log says by whom
	case e.To == holdfast.StateDraining:
		p.out, word = "draining", "drains"
	case !e.To.Usable():
		p.out = e.To.String()
		if was == "" || was == "draining" {
			word = "down"
		}
	case was == "" || e.From == holdfast.StateBackoff && e.To != holdfast.StateReady:
		return "" // it was good before; or it is about to be tried, no more
	default:
		p.out, word = "", "up"
	}
	if p.out != was {
		p.note(e, cmp.Or(p.out, "up"))
	}
	return word
}

// dialed notes that a backend that was down can be connected again.
func (p *page) dialed(e holdfast.Event) (word string) {
	if e.Err != nil || p.out != holdfast.StateBackoff.String() {
		return ""
	}
	e.Cause, p.out = "connected", ""
	p.note(e, "up")
	return "up"
}

func (p *page) note(e holdfast.Event, state string) {
	p.Since, p.Cause = e.Time, e.Cause
	h := happened{At: e.Time, State: state, Cause: e.Cause}
	if e.Err != nil {
		h.Err = causeOf(e.Err)
	}
	p.History = append(p.History, h)
	p.History = p.History[max(0, len(p.History)-maxHistory):]
}

func (p *page) checked(e holdfast.Event) {
	if p.Checks == nil {
		p.Checks = &checkBook{}
	}
	k := p.Checks
	k.Last, k.Took, k.Err = e.Time, asMillis(e.Duration), ""
	if e.Err == nil {
		k.Passed++
		return
	}
	k.Failed++
	k.Err = causeOf(e.Err)
}

func (b *book) announce(word string, e holdfast.Event) {
	level := slog.LevelInfo
	if word == "down" {
		level = slog.LevelWarn
	}
	attrs := append(b.where, slog.String("backend", e.Node.String()), slog.String("state", e.Node.State().String()))
	if e.Cause != "" {
		attrs = append(attrs, slog.String("cause", e.Cause))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("err", causeOf(e.Err)))
	}
	b.log.LogAttrs(context.Background(), level, "backend "+word, attrs...)
}

// observeAll takes the events that are about no single node.
func (b *book) observeAll(e holdfast.Event) {
	switch {
	case e.Kind == holdfast.EventPanic && e.Cause == "over":
		b.log.LogAttrs(context.Background(), slog.LevelInfo, "enough backends are usable again", b.where...)
	case e.Kind == holdfast.EventPanic:
		b.log.LogAttrs(context.Background(), slog.LevelWarn, "too few backends are usable: those that are ejected are used too", b.where...)
	case e.Kind == holdfast.EventResolve && e.Err != nil:
		b.log.LogAttrs(context.Background(), slog.LevelWarn, "backends could not be looked up", append(b.where, slog.String("err", causeOf(e.Err)))...)
	}
}

// causeOf is the text of an error in one line, bounded, for it may be a stranger's.
func causeOf(err error) string {
	text := strings.ReplaceAll(checkError(err), "\n", ", ")
	const most = 300
	if len(text) > most {
		text = text[:most] + "…"
	}
	return strings.Map(printable, text)
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
}

// ring is the end of a log, for a screen.
type ring struct {
	mu    sync.Mutex
	lines []string
}

const ringLines = 50

func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, strings.TrimSuffix(string(p), "\n"))
	r.lines = slices.Delete(r.lines, 0, max(0, len(r.lines)-ringLines))
	return len(p), nil
}

func (r *ring) tail() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}
