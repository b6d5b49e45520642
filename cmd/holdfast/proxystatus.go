package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
)

// proxyState is the part of status that only a proxy has: of the generation that serves.
type proxyState struct {
	Stats    *proxyStats    `json:"stats,omitempty"`     // of connections, if it takes any
	Packets  *packetStats   `json:"datagrams,omitempty"` // and of datagrams
	Backends []backendState `json:"backends"`
	Recent   []string       `json:"recent,omitempty"` // the end of its log, where that is not written elsewhere
}

// proxyStats is proxy.Stats with reasons as text, so that it can be read back.
type proxyStats struct {
	Open            int               `json:"open"`
	Queued          int               `json:"queued"`
	Listeners       int               `json:"listeners"`
	Accepted        uint64            `json:"accepted"`
	Denied          map[string]uint64 `json:"denied"`
	Ends            map[string]uint64 `json:"ends"`
	Connects        uint64            `json:"connects"`
	ConnectFailures uint64            `json:"connect_failures"`
	Hidden          uint64            `json:"hidden_failures"`
	ClientErrors    uint64            `json:"client_errors"`
	FromClients     uint64            `json:"from_clients"`
	FromBackends    uint64            `json:"from_backends"`
	MovedOut        uint64            `json:"moved_out"`
	MovedIn         uint64            `json:"moved_in"`
}

// clientErrors are the ends that a direct connection to a good server would not have had.
var clientErrors = []proxy.Reason{proxy.NoBackend, proxy.QueueFull, proxy.QueueTimeout, proxy.BackendLost, proxy.BackendDown, proxy.Cut}

func newProxyStats(s proxy.Stats) *proxyStats {
	out := &proxyStats{
		Open: s.Open, Queued: s.Queued, Listeners: s.Listeners, Accepted: s.Accepted,
		Denied: refusals(s.Denied), Ends: byReason(s.Ends),
		Connects: s.Connects, ConnectFailures: s.ConnectFailures, Hidden: s.Hidden,
		FromClients: s.FromClients, FromBackends: s.FromBackends, MovedOut: s.MovedOut, MovedIn: s.MovedIn,
	}
	for _, why := range clientErrors {
		out.ClientErrors += s.Ends[why]
	}
	return out
}

func refusals(r serve.Refusals) map[string]uint64 {
	return map[string]uint64{
		"max_conns": r.Conns, "max_per_ip": r.PerIP, "rate": r.Rate, "rate_per_ip": r.RatePerIP, "network": r.Network, "uid": r.UnixUID,
	}
}

func byReason(ends map[proxy.Reason]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for why, n := range ends {
		out[why.String()] = n
	}
	return out
}

// backendState is one address of a backend.
type backendState struct {
	Name      string         `json:"name"` // as it was configured
	Route     string         `json:"route,omitempty"`
	Node      string         `json:"node"` // what is dialed
	State     string         `json:"state"`
	Weight    int            `json:"weight"`
	InFlight  int            `json:"in_flight"`
	Connects  uint64         `json:"connects"`
	Failures  uint64         `json:"failures"`
	BytesTo   uint64         `json:"bytes_to"`
	BytesFrom uint64         `json:"bytes_from"`
	Latency   backendLatency `json:"latency"`
	Err       string         `json:"err,omitempty"`
}

// backendLatency is how long connects take.
type backendLatency struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
}

// answer is the proxy's part of restart.Call.
func (b *balancer) answer(_ context.Context, from restart.Caller, request []byte) ([]byte, error) {
	var r backendRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, fmt.Errorf("the request is not understood: %w", err)
	}
	r.Backend = b.lineup.meant(r)
	switch r.Do {
	case "status":
		return json.Marshal(b.state())
	case "why":
		why := backendWhy{Schema: "holdfast/backend-why/v1", Backends: b.lineup.details(r)}
		if why.Backends == nil {
			return nil, fmt.Errorf("no backend %s: status lists them", r.Backend)
		}
		return json.Marshal(why)
	case "drain", "ready", "weight", "add", "rm":
		return b.edit(from, r)
	}
	return nil, fmt.Errorf("the request %q is not known", r.Do)
}

func (b *balancer) state() proxyState {
	s := proxyState{Packets: b.packets.state(), Backends: b.lineup.states(), Recent: b.recent.tail()}
	if b.Proxy != nil {
		s.Stats = newProxyStats(b.Stats())
	}
	return s
}

func (b *balancer) edit(from restart.Caller, r backendRequest) ([]byte, error) {
	changed, err := b.lineup.change(r)
	if err != nil {
		return nil, err
	}
	if changed {
		attrs := []slog.Attr{slog.String("backend", r.Backend), slog.Int("uid", from.UID)}
		if r.Do == "weight" {
			attrs = append(attrs, slog.Int("weight", r.Weight))
		}
		if r.Route != "" {
			attrs = append(attrs, slog.String("route", r.Route))
		}
		b.lineup.log.LogAttrs(context.Background(), slog.LevelInfo, "backend "+r.Do, attrs...)
	}
	out := backendChanged{Schema: "holdfast/backend/v1", Changed: changed, Backends: []backendState{}}
	for _, s := range b.lineup.states() {
		if r.Do != "rm" && s.is(r) && s.Name == nameOf(r.Backend) {
			out.Backends = append(out.Backends, s)
		}
	}
	return json.Marshal(out)
}

// is reports whether a request names it.
func (s backendState) is(r backendRequest) bool {
	return (r.Route == "" || r.Route == s.Route) && (s.Name == nameOf(r.Backend) || s.Node == r.Backend)
}

func (l *lineup) states() (all []backendState) {
	for _, g := range l.groups {
		for _, n := range g.cluster.Stats().Nodes {
			all = append(all, g.state(n))
		}
		all = append(all, g.absent(all)...)
	}
	return all
}

// absent are the backends of which nothing is there: a name that is not found, or whose
// addresses are those of another.
func (g *group) absent(there []backendState) (all []backendState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.entries {
		is := func(s backendState) bool { return s.Name == e.name() && s.Route == g.route }
		if slices.ContainsFunc(there, is) {
			continue
		}
		s := backendState{Name: e.name(), Route: g.route, State: noAddress, Err: "its name is not found yet, or its addresses are another backend's"}
		if e.Drained {
			s.State = "draining"
		}
		e.Drained = false
		s.Weight = max(e.endpoint().Weight, 1)
		all = append(all, s)
	}
	return all
}

// noAddress is the state of a backend that has no Node.
const noAddress = "no address"

func (l *lineup) details(r backendRequest) (all []backendDetails) {
	for _, g := range l.groups {
		for _, n := range g.cluster.Stats().Nodes {
			if s := g.state(n); s.is(r) {
				all = append(all, backendDetails{s, g.book.about(n.Node), n.Ejections, latencyOf(n.DialTime)})
			}
		}
	}
	for _, s := range l.states() {
		if s.Node == "" && s.is(r) {
			all = append(all, backendDetails{backendState: s})
		}
	}
	return all
}

func (g *group) state(n holdfast.NodeStats) backendState {
	e := g.entryOf(n)
	if bad := g.book.about(n.Node).LastErr; n.Err != "" && bad != nil {
		n.Err = bad.Err // in fewer words
	}
	return backendState{
		Name: e.Addr, Route: g.route, Node: n.Node, State: n.State.String(), Weight: e.Weight, InFlight: n.InFlight,
		Connects: n.Dials, Failures: n.DialFailures, BytesTo: n.BytesWritten, BytesFrom: n.BytesRead,
		Latency: backendLatency{asMillis(n.DialTime.Quantile(.5)), asMillis(n.DialTime.Quantile(.99))}, Err: n.Err,
	}
}

// entryOf finds what a node came from, by its name and with the weight in force. One
// that was removed has its own name.
func (g *group) entryOf(n holdfast.NodeStats) entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.entries {
		endpoint := e.endpoint()
		if endpoint.String() != n.Endpoint && endpoint.Addr != unresolved(n.Node) {
			continue
		}
		e.Drained = false // its weight is for when it is ready again
		return entry{Addr: endpoint.String(), Weight: max(e.endpoint().Weight, 1)}
	}
	return entry{Addr: n.Endpoint}
}

// unresolved takes the address out of "name[address]:port".
func unresolved(node string) string {
	name, rest, ok := strings.Cut(node, "[")
	if !ok || name == "" {
		return node
	}
	_, port, _ := strings.Cut(rest, "]")
	return name + port
}

// load is what it has to do now.
func (s backendState) load() string {
	if s.takesDatagrams() {
		return plural(s.InFlight, "session")
	}
	return plural(s.InFlight, "connection")
}

func (s backendState) takesDatagrams() bool {
	endpoint, err := holdfast.ParseEndpoint(s.Name)
	return err == nil && networkOf(endpoint) == "udp"
}

// color of a state. The words say the same.
func (s backendState) color() string {
	switch s.State {
	case "ejected", "backoff":
		return red
	case "draining", "connecting", noAddress:
		return yellow
	}
	return green
}

// askProxy asks a proxy for its state.
func askProxy(ctx context.Context, admin string) (s proxyState, err error) {
	o := backendOptions{controlOptions{admin: admin}, backendRequest{Do: "status"}}
	return s, o.ask(ctx, &s)
}

func (st *proxyStats) line(on paint) string {
	seen := fmt.Sprintf("%s seen by clients", count(st.ClientErrors))
	if st.ClientErrors > 0 {
		seen = on.text(red, seen)
	}
	accepted := count(st.Accepted) + " accepted"
	denied := uint64(0)
	for _, n := range st.Denied {
		denied += n
	}
	if denied > 0 {
		accepted += fmt.Sprintf(", %s denied", count(denied))
	}
	return fmt.Sprintf("connections  %d open, %d queued, %s; %s to backends, %s from them; failures %s hidden, %s",
		st.Open, st.Queued, accepted, size(st.FromClients), size(st.FromBackends), count(st.Hidden), seen)
}

// lines are the state for people: connections, sessions, and a table of backends.
func (s proxyState) lines(on paint) []string {
	var lines []string
	if s.Stats != nil {
		lines = append(lines, s.Stats.line(on))
	}
	if s.Packets != nil {
		lines = append(lines, s.Packets.lines(on)...)
	}
	lines = append(lines, "")
	width := len("backend")
	for _, b := range s.Backends {
		width = max(width, len(b.label()))
	}
	row := func(name, state, color string, rest ...string) string {
		line := pad(name, width+2) + on.text(color, pad(state, 11))
		for i, text := range rest {
			line += padLeft(text, []int{4, 7, 10, 9, 9, 9, 10, 10}[i])
		}
		return line
	}
	lines = append(lines, on.text(dim, row("backend", "state", "", "wt", "open", "connects", "failures", "to", "from", "p50", "p99")))
	for _, b := range s.Backends {
		line := row(b.label(), b.State, b.color(), fmt.Sprint(b.Weight), fmt.Sprint(b.InFlight), count(b.Connects), count(b.Failures),
			size(b.BytesTo), size(b.BytesFrom), ms(b.Latency.P50), ms(b.Latency.P99))
		if b.Err != "" {
			line += "  " + strings.Map(printable, b.Err)
		}
		lines = append(lines, line)
	}
	return lines
}

// label is the name as a table has it: with its address if it is another's, and its route.
func (b backendState) label() string {
	name := b.Name
	if strings.Contains(b.Node, "[") && unresolved(b.Node) != b.Node {
		name += " " + b.Node[strings.Index(b.Node, "["):]
	}
	if b.Route != "" {
		name += " (" + b.Route + ")"
	}
	return name
}

// showProxy draws the state of a proxy again and again, asking it as anybody would, until
// the returned func, which leaves the last one on the terminal.
func (p *program) showProxy(cfg restart.Config, log *ring) (stop func()) {
	admin := cfg.Admin
	if admin == "" {
		admin = restart.AdminPath(cfg.Name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	screen := &canvas{out: p.out}
	on := p.paintOn(p.out)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(redraw)
		defer tick.Stop()
		for {
			screen.draw(proxyScreen(ctx, admin, log, on))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// proxyScreen is what a terminal shows: who serves, the backends, and the logs of both
// processes.
func proxyScreen(ctx context.Context, admin string, log *ring, on paint) func(width, height int) []string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := restart.Ask(ctx, admin)
	if err != nil {
		return func(int, int) []string { return log.tail() }
	}
	title := on.text(bold, "Holdfast") + "  " + serving(s) + "  " + strings.Join(s.Sockets, " ")
	state, err := askProxy(ctx, admin)
	lines := append([]string{title, ""}, state.lines(on)...)
	if err != nil {
		lines = []string{title, "", err.Error()}
	}
	news := newest(state.Recent, log.tail())
	return func(_, height int) []string {
		if room := height - len(lines) - 1; room > 0 && len(news) > 0 {
			lines = append(append(lines, ""), news[max(0, len(news)-room):]...)
		}
		return lines[:min(len(lines), height)]
	}
}

// newest joins two logs by their times, with which each line begins.
func newest(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, func(x, y string) int { return strings.Compare(x[:min(len(x), 13)], y[:min(len(y), 13)]) })
	return all
}

// serving is the first line of a status.
func serving(s restart.Status) string {
	return fmt.Sprintf("%s  pid %d  up %s  restarts %d  rolled back %d  crashed %d", s.Name, s.PID,
		time.Since(s.Started).Round(time.Second), s.Restarts, s.RolledBack, s.Crashed)
}
