package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/proxy"
)

// lineup is all backends of a proxy: a group for -u, one for those of them that take
// datagrams, and one for each route. Its groups are fixed; what is in them changes.
type lineup struct {
	log    *slog.Logger
	groups []*group
}

// group is the source of one Cluster's endpoints, and keeps the books about them.
type group struct {
	route   string // "" is that of -u
	packets bool   // its backends take datagrams
	cluster *holdfast.Cluster
	book    *book

	turn    sync.Mutex // held while a set is pushed, so that the last one is the latest
	mu      sync.Mutex
	entries []entry
	push    func([]holdfast.Endpoint, error) // nil before the Cluster begins
	begun   chan struct{}                    // closed when the first set was pushed
}

// entry is one backend, as it was configured or added.
type entry struct {
	Addr    string `json:"addr"`
	Weight  int    `json:"weight,omitempty"` // instead of the address's
	Drained bool   `json:"drained,omitempty"`
}

func (e entry) endpoint() holdfast.Endpoint {
	endpoint, _ := holdfast.ParseEndpoint(e.Addr) // it was read before
	if e.Weight > 0 {
		endpoint.Weight = e.Weight
	}
	if e.Drained {
		endpoint.Weight = -1
	}
	return endpoint
}

// name is what verbs call it.
func (e entry) name() string { return e.endpoint().String() }

// add makes a group of addresses and its Cluster.
func (l *lineup) add(route string, packets bool, addrs []string, cfg holdfast.Config) (err error) {
	g := &group{route: route, packets: packets, begun: make(chan struct{})}
	g.book = newBook(l.log, g.attrs()...)
	for _, addr := range addrs {
		if e := g.insert(addr); e != nil {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return err
	}
	cfg.Observe = g.book.observe
	if g.cluster, err = holdfast.New(g, cfg); err == nil {
		l.groups = append(l.groups, g)
	}
	return err
}

// attrs tell a group from others in the log.
func (g *group) attrs() (all []slog.Attr) {
	if g.route != "" {
		all = append(all, slog.String("route", g.route))
	}
	if g.packets {
		all = append(all, slog.String("network", "udp"))
	}
	return all
}

// insert adds a backend that is not there yet.
func (g *group) insert(addr string) error {
	endpoint, err := backendAt(addr)
	switch {
	case err != nil:
		return err
	case !g.packets && networkOf(endpoint) == "udp":
		return fmt.Errorf("%s: backends of --route are reached by streams", addr)
	case g.index(endpoint.String()) >= 0:
		return fmt.Errorf("%s: it is there already", addr)
	}
	g.entries = append(g.entries, entry{Addr: addr})
	return nil
}

func (g *group) index(name string) int {
	return slices.IndexFunc(g.entries, func(e entry) bool { return e.name() == name })
}

func (l *lineup) group(route string, packets bool) *group {
	for _, g := range l.groups {
		if g.route == route && g.packets == packets {
			return g
		}
	}
	return nil
}

// datagrams is the group of those that take datagrams, nil if there is none.
func (l *lineup) datagrams() *group { return l.group("", true) }

// routes are the Clusters as a proxy.Config has them.
func (l *lineup) routes() (main *holdfast.Cluster, routes []proxy.Route) {
	for _, g := range l.groups {
		switch {
		case g.packets:
			continue
		case g.route == "":
			main = g.cluster
			continue
		}
		name, protocol, _ := strings.Cut(g.route, "/")
		routes = append(routes, proxy.Route{ServerName: name, ALPN: protocol, Cluster: g.cluster})
	}
	return main, routes
}

// begin starts the Clusters and gives names a moment to be looked up: who comes sooner
// would be refused.
func (l *lineup) begin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, g := range l.groups {
		g.cluster.Refresh(0)
		<-g.begun
		if g.serves() {
			g.cluster.WaitUsable(ctx)
		}
	}
}

// serves reports whether any backend is not drained.
func (g *group) serves() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.entries, func(e entry) bool { return !e.Drained })
}

func (l *lineup) close() {
	for _, g := range l.groups {
		g.cluster.Close()
	}
}

// Watch is that of a holdfast.Resolver.
func (g *group) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	g.mu.Lock()
	g.push = push
	g.mu.Unlock()
	g.publish()
	close(g.begun)
	<-ctx.Done()
}

// publish makes the set that of the Cluster.
func (g *group) publish() {
	g.turn.Lock()
	defer g.turn.Unlock()
	g.mu.Lock()
	push := g.push
	var endpoints []holdfast.Endpoint
	for _, e := range g.entries {
		endpoints = append(endpoints, e.endpoint())
	}
	g.mu.Unlock()
	if push != nil {
		push(endpoints, nil)
	}
}

// change carries out a request in all groups that it is about. One that is repeated
// changes nothing: what it says is so already.
func (l *lineup) change(r backendRequest) (changed bool, err error) {
	groups, err := l.about(r)
	if err != nil {
		return false, err
	}
	for _, g := range groups {
		did, err := g.change(r)
		if err != nil {
			return changed, fmt.Errorf("%s: %w", r.Backend, err)
		}
		if did {
			changed = true
			g.publish()
		}
	}
	return changed, nil
}

func (g *group) change(r backendRequest) (changed bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := slices.Clone(g.entries)
	i := g.index(nameOf(r.Backend))
	switch {
	case r.Do == "add" && i < 0:
		err = g.insert(r.Backend)
	case r.Do == "add":
		g.entries[i].Addr = r.Backend // with other parameters, perhaps
		if _, ok := weightIn(r.Backend); ok {
			g.entries[i].Weight = 0
		}
	case r.Do == "drain":
		g.entries[i].Drained = true
	case r.Do == "ready":
		g.entries[i].Drained = false
	case r.Do == "weight":
		g.entries[i].Weight = r.Weight
	case r.Do == "rm" && len(g.entries) == 1:
		err = errors.New("it is the last one: add another before, or drain it")
	case r.Do == "rm":
		g.entries = slices.Delete(g.entries, i, i+1)
	}
	return !slices.Equal(before, g.entries), err
}

// about finds the groups that a request is about: that of its route, or all that have
// the backend; what is added without a route goes to -u.
func (l *lineup) about(r backendRequest) (found []*group, err error) {
	endpoint, err := backendAt(r.Backend)
	if err != nil {
		return nil, err
	}
	packets := networkOf(endpoint) == "udp"
	for _, g := range l.groups {
		if r.Route != "" && g.route != r.Route || g.packets != packets {
			continue
		}
		meant := r.Route != "" || g.route == "" || len(l.groups) == 1
		if r.Do != "add" {
			meant = g.has(nameOf(r.Backend))
		}
		if meant {
			found = append(found, g)
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case r.Do == "add" && packets && r.Route == "":
		return nil, fmt.Errorf("%s: no datagrams are taken here, as there was no udp:// address at the start", r.Backend)
	case r.Do == "add" && r.Route == "" && l.onlyPackets():
		return nil, fmt.Errorf("%s: only datagrams are taken here, and their backends begin with udp://", r.Backend)
	case r.Do == "add", !slices.ContainsFunc(l.groups, func(g *group) bool { return r.Route == "" || g.route == r.Route }):
		return nil, fmt.Errorf("there is no route %q: --route says which one is meant", r.Route)
	}
	return nil, fmt.Errorf("no backend %s: status lists them", r.Backend)
}

func (g *group) has(name string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.index(name) >= 0
}

func (l *lineup) onlyPackets() bool { return len(l.groups) == 1 && l.groups[0].packets }

// meant is the backend that a request names: host:port is tcp, as everywhere, unless only
// a udp backend is there under it.
func (l *lineup) meant(r backendRequest) string {
	g := l.datagrams()
	if g == nil || r.Do == "add" || strings.Contains(r.Backend, ":/") || strings.HasPrefix(r.Backend, "unix:") {
		return r.Backend
	}
	udp := "udp://" + r.Backend
	taken := slices.ContainsFunc(l.groups, func(g *group) bool { return g.has(nameOf(r.Backend)) })
	if taken || !g.has(nameOf(udp)) {
		return r.Backend
	}
	return udp
}

// nameOf is the name of the backend at an address.
func nameOf(addr string) string { return entry{Addr: addr}.name() }

// savedGroup is what a successor is told of a group.
type savedGroup struct {
	Route   string  `json:"route"`
	Packets bool    `json:"packets,omitempty"`
	Entries []entry `json:"entries"`
}

func (l *lineup) save(context.Context) ([]byte, error) {
	var all []savedGroup
	for _, g := range l.groups {
		g.mu.Lock()
		all = append(all, savedGroup{g.route, g.packets, slices.Clone(g.entries)})
		g.mu.Unlock()
	}
	return json.Marshal(all)
}

func (l *lineup) load(_ context.Context, state []byte) error {
	var all []savedGroup
	if err := json.Unmarshal(state, &all); err != nil {
		return err
	}
	for _, s := range all {
		if g := l.group(s.Route, s.Packets); g != nil && len(s.Entries) > 0 {
			g.entries = s.Entries
		}
	}
	return nil
}
