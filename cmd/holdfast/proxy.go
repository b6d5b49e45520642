package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
	"github.com/spf13/cobra"
)

type proxyOptions struct {
	service           serviceFlags
	listen, to        []string
	routes            []string
	balance, hashBy   string
	check, checkUDP   string
	checks            holdfast.Check
	certFile, keyFile string
	clientCA          string
	backendCA         string
	accept            []string
	limits            serve.Limits
	allow, deny       []string
	backends          proxy.Backends
	down              string
	timeouts          proxy.Timeouts
	accessLog         string
	requests          int // of a client's datagrams, for one node
	responses         int // to each
}

func (p *program) proxyCommand() *cobra.Command {
	var o proxyOptions
	cmd := &cobra.Command{
		Use:   "proxy -l ADDR[,…] -u ADDR[,ADDR…]",
		Short: "Balance connections, and sessions of datagrams, over backends, for any protocol",
		Long: `Takes connections at the addresses of -l and passes each on to a backend, whose address
follows -u: tcp://host:port, tls://host:port?sni=name, unix:/path or srv://name, with
?weight=N and ?priority=N. With --cert and --key TLS ends here; else it passes through.

A backend that cannot be connected is passed over before a client notices; --check asks
it now and then. "holdfast backend" changes the set while it runs, "holdfast status proxy"
shows it. On HUP, USR1 or "holdfast restart" a new process takes over the sockets, the
live connections and the set.

Datagrams of udp:// addresses go to the udp:// backends, and their replies back: what comes
from one address and port is a session, which stays at its backend, and towards it at one
port, until nothing has come for --idle (1m), or as many --responses as there are to be.
Limits that are of connections are of sessions here; what is over one is dropped. A restart
moves the sessions. A backend is down when it refuses (ICMP) or fails --check-udp: that it
is silent proves nothing, unless the check says that it must answer, as
'send X expect Y' does and 'udp send X' does not.

--route NAME=ADDR[,…] sends those clients elsewhere whose TLS asks for NAME: a server
name, *.example.com, /PROTOCOL (ALPN) or NAME/PROTOCOL. The first that fits is taken, and
-u if none does.

` + kindsHelp,
		Example: `  holdfast proxy -l :5432 -u db1:5432,db2:5432 --check 'postgres app'
  holdfast proxy -l :443 --route a.example.com=10.0.0.1:443 --route '*.example.org=10.0.0.2:443'
  holdfast proxy -l tcp://:53,udp://:53 -u tcp://a:53,tcp://b:53,udp://a:53,udp://b:53 --responses 1
  holdfast backend drain db1:5432
  holdfast restart --wait proxy`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.proxy(cmd.Context(), o) },
	}
	o.add(cmd)
	return cmd
}

func (o *proxyOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	o.service.add(flags, "proxy")
	flags.StringSliceVarP(&o.listen, "listen", "l", nil, "addresses to take connections, or datagrams, at, NAME=ADDR or ADDR")
	flags.StringSliceVarP(&o.to, "to", "u", nil, "backends")
	flags.StringArrayVar(&o.routes, "route", nil, "backends of clients whose TLS asks for a name, NAME=ADDR[,ADDR…]; give it for each")
	flags.StringVar(&o.balance, "balance", "", "least (the default), rr, random, ewma, ordered, or by a key maglev or rendezvous")
	flags.StringVar(&o.hashBy, "hash-by", "", "what clients of the same backend share: ip, sni, or any word for one backend (default ip; sets --balance maglev)")

	flags.StringVar(&o.check, "check", "", "what must go well at a backend, such as connect or 'http /health'")
	flags.StringVar(&o.checkUDP, "check-udp", "", "the same at a udp:// backend (default --check if there are no others)")
	flags.DurationVar(&o.checks.Interval, "check-interval", 2*time.Second, "pause between two checks of a backend, ±10 %")
	flags.IntVar(&o.checks.Rise, "rise", 2, "checks that must pass in a row before a backend is up again")
	flags.IntVar(&o.checks.Fall, "fall", 3, "checks that must fail in a row before it is down")

	flags.StringVar(&o.certFile, "cert", "", "certificate to end TLS with, and its chain")
	flags.StringVar(&o.keyFile, "key", "", "key of the certificate")
	flags.StringVar(&o.clientCA, "client-ca", "", "authority that clients must have a certificate of")
	flags.StringVar(&o.backendCA, "ca", "", "authorities to trust at tls:// backends instead of the system's")

	flags.StringSliceVar(&o.accept, "accept-proxy", nil, "networks of proxies, which send a PROXY header; unix is whoever uses a Unix socket")
	flags.IntVar(&o.backends.Header, "send-proxy", 0, "send backends a PROXY header of version 1 or 2")

	flags.IntVar(&o.limits.MaxConns, "max-conns", 0, "connections at once, and sessions (default half of the files that may be open, less 200; sessions 10000 at most)")
	flags.IntVar(&o.limits.MaxPerIP, "max-per-ip", 0, "connections, or sessions, of one client at once (default of sessions 256, negative for any number)")
	flags.Float64Var(&o.limits.Rate, "rate", 0, "connections, or sessions, a second")
	flags.StringSliceVar(&o.allow, "allow", nil, "networks that may connect, as 10.0.0.0/8")
	flags.StringSliceVar(&o.deny, "deny", nil, "networks that may not")
	flags.IntVar(&o.backends.Max, "max-per-backend", 0, "connections, or sessions, of one backend at once; further connections wait")
	flags.IntVar(&o.requests, "requests", 0, "datagrams of a client that go to one backend; 1 balances each by itself (default all of a session)")
	flags.IntVar(&o.responses, "responses", 0, "datagrams that answer each of a client's, with the last of which a session ends: 1 suits DNS (default not known, negative for none)")
	flags.IntVar(&o.backends.Queue, "queue", 0, "how many may wait, for 5 s at most (default 1024, negative for none)")
	flags.StringVar(&o.down, "on-down", "keep", "what becomes of the connections of a backend that is down: keep, drain or cut")

	flags.DurationVar(&o.timeouts.Connect, "connect-timeout", 0, "to reach a backend, all attempts together (default 5s)")
	flags.DurationVar(&o.timeouts.Idle, "idle", 0, "how long both sides may be silent (default 1h, of datagrams 1m, negative for ever)")
	flags.DurationVar(&o.timeouts.HalfClosed, "half-closed", 0, "how long, when one side has ended (default 1m)")
	flags.DurationVar(&o.timeouts.Lifetime, "lifetime", 0, "of a connection (default for ever)")
	flags.StringVar(&o.accessLog, "access-log", "", "append a line for each connection, or session, that ended to this file; - is standard output")
}

// proxy runs in the supervisor and in every worker; only these have a proxy.Proxy.
func (p *program) proxy(ctx context.Context, o proxyOptions) error {
	table := p.showsTable(o)
	recent := &ring{}
	cfg, err := o.service.config(p)
	if err != nil {
		return err
	}
	if table && o.service.logFile == "" && canMove(p.err) { // it would be written over the table
		cfg.Log = slog.New(slog.NewTextHandler(recent, &slog.HandlerOptions{ReplaceAttr: shortTime}))
	}
	access, err := o.openAccessLog(p, &cfg)
	if err != nil {
		return usage(err, "")
	}
	l, err := o.lineup(cfg.Log)
	if err != nil {
		return err
	}
	b := &balancer{lineup: l, recent: recent, packets: &packetBalancer{}}
	cfg.Start = func(ctx context.Context) error { return b.start(ctx, o, cfg.Log, access) }
	cfg.State = restart.State{Save: l.save, Load: l.load}
	cfg.Call = b.answer
	if table && !restart.IsWorker() {
		defer p.showProxy(cfg, recent)()
	}
	defer l.close()
	return p.serve(ctx, cfg, o.tryOut, b.bind(o)...)
}

// balancer is what a worker serves: its Proxy is made when it starts. What is served of
// datagrams is beside it.
type balancer struct {
	*proxy.Proxy
	packets *packetBalancer
	lineup  *lineup
	recent  *ring
	keys    [][32]byte // of TLS tickets, that came before there was a Proxy
}

func (b *balancer) bind(o proxyOptions) []restart.Binding {
	streams, datagrams := o.addresses()
	return []restart.Binding{restart.Bind(b, streams...), restart.BindPacket(b.packets, datagrams...)}
}

// start makes what the lineup has backends for.
func (b *balancer) start(ctx context.Context, o proxyOptions, log, access *slog.Logger) error {
	cfg, err := o.config(b.lineup)
	if err != nil {
		return err
	}
	cfg.Log, cfg.Access = log, access
	if cfg.Cluster != nil || len(cfg.Routes) > 0 {
		if b.Proxy, err = proxy.New(cfg); err != nil {
			return err
		}
	}
	if b.Proxy != nil && b.keys != nil {
		b.Proxy.TicketKeys(b.keys)
	}
	if g := b.lineup.datagrams(); g != nil {
		if b.packets.Packets, err = proxy.NewPackets(o.packetConfig(cfg, g.cluster)); err != nil {
			return err
		}
	}
	b.lineup.begin(ctx)
	return nil
}

func (b *balancer) TicketKeys(keys [][32]byte) {
	if b.Proxy == nil {
		b.keys = keys
		return
	}
	b.Proxy.TicketKeys(keys)
}

// tryOut finds before anything is bound what would end the first worker.
func (o proxyOptions) tryOut() error {
	for _, l := range o.listen {
		if strings.Contains(l, "unix:") && len(o.allow) > 0 {
			return fmt.Errorf("--allow is about networks, and %s is in none", l)
		}
	}
	l, err := o.lineup(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer l.close()
	cfg, err := o.config(l)
	if err != nil {
		return err
	}
	cfg.Loops = -1
	if cfg.Cluster != nil || len(cfg.Routes) > 0 {
		p, err := proxy.New(cfg)
		if err != nil {
			return err
		}
		p.Close()
	}
	if g := l.datagrams(); g != nil {
		p, err := proxy.NewPackets(o.packetConfig(cfg, g.cluster))
		if err != nil {
			return err
		}
		p.Close()
	}
	return nil
}

// openAccessLog makes the log of connections, which is opened anew together with the
// other one.
func (o proxyOptions) openAccessLog(p *program, cfg *restart.Config) (*slog.Logger, error) {
	var out io.Writer
	switch o.accessLog {
	case "":
		return nil, nil
	case "-":
		out = p.out
	default:
		file, err := openLogFile(o.accessLog)
		if err != nil {
			return nil, err
		}
		out = file
		if other := cfg.Reopen; other != nil {
			cfg.Reopen = func() error { return errors.Join(other(), file.reopen()) }
		} else {
			cfg.Reopen = file.reopen
		}
	}
	if o.service.json {
		return slog.New(slog.NewJSONHandler(out, nil)), nil
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: bare})), nil
}

// bare leaves out what all lines of an access log have.
func bare(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

// shortTime is for a screen, where the day is known.
func shortTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.String(slog.TimeKey, a.Value.Time().Format(time.TimeOnly))
	}
	return a
}

// policies by their names. Each Cluster has one of its own.
var policies = map[string]func() holdfast.Picker{
	"least":      holdfast.LeastLoaded,
	"rr":         holdfast.RoundRobin,
	"random":     holdfast.Random,
	"ewma":       holdfast.PeakEWMA,
	"ordered":    holdfast.Ordered,
	"maglev":     func() holdfast.Picker { return holdfast.Maglev(0) },
	"rendezvous": func() holdfast.Picker { return holdfast.Rendezvous(0) },
}

func (o proxyOptions) hashes() bool { return o.balance == "maglev" || o.balance == "rendezvous" }

// policy reads --balance and --hash-by.
func (o proxyOptions) policy() (picker func() holdfast.Picker, key func(proxy.Client) uint64, err error) {
	if o.hashBy != "" && o.balance == "" {
		o.balance = "maglev"
	}
	if o.balance == "" {
		o.balance = "least"
	}
	picker, ok := policies[o.balance]
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("--balance %q: want one of %s", o.balance, strings.Join(slices.Sorted(maps.Keys(policies)), ", "))
	case o.hashBy != "" && !o.hashes():
		return nil, nil, fmt.Errorf("--hash-by is for --balance maglev and rendezvous, and not for %s", o.balance)
	}
	switch o.hashBy {
	case "", "ip":
		return picker, proxy.ByIP, nil
	case "sni":
		return picker, proxy.ByServerName, nil
	}
	fixed := holdfast.Key(o.hashBy)
	return picker, func(proxy.Client) uint64 { return fixed }, nil
}

// lineup makes the sets of backends with their Clusters; nothing is connected yet.
func (o proxyOptions) lineup(log *slog.Logger) (*lineup, error) {
	if len(o.listen) == 0 {
		return nil, usage(errors.New("proxy: want an address to listen on"), "holdfast proxy -l tcp://:7000 -u 10.0.0.1:7000,10.0.0.2:7000")
	}
	if _, datagrams := o.addresses(); len(datagrams)+len(o.to)+len(o.routes) == 0 {
		return nil, usage(errors.New("proxy: want backends"), "holdfast proxy -l "+o.listen[0]+" -u 10.0.0.1:7000,10.0.0.2:7000")
	}
	if err := o.match(); err != nil {
		return nil, err
	}
	cfg, packetCfg, picker, err := o.clusters()
	if err != nil {
		return nil, usage(err, "")
	}
	l := &lineup{log: log}
	add := func(route string, addrs []string) {
		cfg := cfg
		cfg.Picker = picker()
		err = errors.Join(err, l.add(route, false, addrs, cfg))
	}
	to, packetTo := byNetwork(o.to)
	if len(to) > 0 {
		add("", to)
	}
	if len(packetTo) > 0 {
		packetCfg.Picker = picker()
		err = errors.Join(err, l.add("", true, packetTo, packetCfg))
	}
	for _, r := range o.routes {
		name, addrs, ok := strings.Cut(r, "=")
		if !ok || name == "" || l.group(name, false) != nil {
			err = errors.Join(err, fmt.Errorf("--route %q: want NAME=ADDR[,ADDR…], once for each name", r))
			continue
		}
		add(name, strings.Split(addrs, ","))
	}
	if err != nil {
		l.close()
		return nil, usage(err, "backends look like 10.0.0.1:7000, tls://example.net:443, unix:/run/app.sock or udp://10.0.0.1:53")
	}
	return l, nil
}

// clusters is what all Clusters have in common, but the Picker, and what that of the
// backends of datagrams has.
func (o proxyOptions) clusters() (cfg, packets holdfast.Config, picker func() holdfast.Picker, err error) {
	if picker, _, err = o.policy(); err != nil {
		return cfg, packets, nil, err
	}
	if o.checks.Interval <= 0 || o.checks.Rise < 1 || o.checks.Fall < 1 {
		return cfg, packets, nil, errors.New("--check-interval, --rise and --fall must be above 0")
	}
	cfg.Timeouts.Dial = o.timeouts.Connect
	packets = cfg
	if o.check != "" {
		cfg.Check = o.checks
		if cfg.Probe, err = health.ParseProbe(o.check); err != nil {
			return cfg, packets, nil, fmt.Errorf("--check: %w", err)
		}
	}
	if o.backendCA != "" {
		if cfg.TLS, err = (holdfast.TLSFiles{CA: o.backendCA}).Config(); err != nil {
			return cfg, packets, nil, err
		}
	}
	return cfg, packets, picker, o.checkPackets(&packets)
}

// config is that of the Proxy.
func (o proxyOptions) config(l *lineup) (cfg proxy.Config, err error) {
	cfg = proxy.Config{
		TLS:    serve.TLS{CertFile: o.certFile, KeyFile: o.keyFile, ClientCAFile: o.clientCA},
		Limits: o.limits, Backends: o.backends, Timeouts: o.timeouts,
	}
	if _, cfg.Key, err = o.policy(); err != nil {
		return cfg, err
	}
	if cfg.Backends.Down, err = onDown(o.down); err != nil {
		return cfg, err
	}
	if cfg.Limits.Allow, err = prefixes(o.allow); err != nil {
		return cfg, err
	}
	if cfg.Limits.Deny, err = prefixes(o.deny); err != nil {
		return cfg, err
	}
	accept := slices.Clone(o.accept)
	cfg.Proxy.Unix = slices.Contains(accept, "unix")
	if cfg.Proxy.Trusted, err = prefixes(slices.DeleteFunc(accept, func(s string) bool { return s == "unix" })); err != nil {
		return cfg, err
	}
	cfg.Cluster, cfg.Routes = l.routes()
	if o.certFile != "" {
		cfg.TLS.Config = offering(cfg.Routes)
	}
	return cfg, nil
}

// offering is a TLS configuration that can agree on what routes ask for. nil is none.
func offering(routes []proxy.Route) *tls.Config {
	var protocols []string
	for _, r := range routes {
		if r.ALPN != "" && !slices.Contains(protocols, r.ALPN) {
			protocols = append(protocols, r.ALPN)
		}
	}
	if protocols == nil {
		return nil
	}
	return &tls.Config{NextProtos: protocols}
}

func onDown(word string) (proxy.Down, error) {
	switch word {
	case "keep":
		return proxy.Keep, nil
	case "drain":
		return proxy.Drain, nil
	case "cut":
		return proxy.Sever, nil
	}
	return 0, fmt.Errorf("--on-down %q: want keep, drain or cut", word)
}

// showsTable reports whether standard output is a screen that is free for a table.
func (p *program) showsTable(o proxyOptions) bool {
	return len(demoRestart) > 0 && canMove(p.out) && !o.service.json && o.service.admin != "none" && o.accessLog != "-"
}
