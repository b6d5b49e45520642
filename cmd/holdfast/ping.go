package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/spf13/cobra"
)

type pingOptions struct {
	tls      tlsFlags
	send     string
	count    int
	interval time.Duration
	timeout  time.Duration
	json     bool
}

func (p *program) pingCommand() *cobra.Command {
	var o pingOptions
	cmd := &cobra.Command{
		Use:   "ping ADDR[,ADDR…]",
		Short: "Measure name lookup, connect, TLS and first byte of each address",
		Long: `Looks every name up and connects to every address found, one after the other phase,
and says how long each took. With --send it also writes TEXT and waits for the first
byte of an answer; \n, \r and \x00 in TEXT mean what they mean in Go.

Exit code 6 means that an address did not answer every time.`,
		Example: `  holdfast ping 10.0.0.1:6379,10.0.0.2:6379 --send 'PING\r\n'
  holdfast ping tls://example.net:443 -c 5 --json`,
		Args: addresses,
		RunE: func(cmd *cobra.Command, args []string) error { return p.ping(cmd.Context(), args[0], o) },
	}
	o.tls.add(cmd.Flags())
	cmd.Flags().StringVar(&o.send, "send", "", "text to send once connected, and to wait for an answer to")
	cmd.Flags().IntVarP(&o.count, "count", "c", 1, "how often; the times are then medians")
	cmd.Flags().DurationVar(&o.interval, "interval", time.Second, "pause between two rounds")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Second, "limit of one lookup or one attempt")
	cmd.Flags().BoolVarP(&o.json, "json", "j", false, "print one JSON object")
	return cmd
}

func (p *program) ping(ctx context.Context, arg string, o pingOptions) error {
	pinger, err := newPinger(o)
	if err != nil {
		return err
	}
	endpoints, _, err := o.tls.endpoints(arg)
	if err != nil {
		return err
	}
	targets, err := pinger.targets(ctx, endpoints)
	if err != nil {
		return err
	}
	for round := range o.count {
		if round > 0 && !pause(ctx, o.interval) {
			break
		}
		pinger.round(ctx, targets)
	}
	r := newPingReport(targets)
	if o.json {
		err = p.printJSON(r)
	} else {
		_, err = fmt.Fprint(p.out, r.text(p.paintOn(p.out)))
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return &failure{code: exitSignal}
	case !r.OK:
		return &failure{code: exitCheck}
	}
	return nil
}

// pause waits, and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pinger measures single connections. It goes to each address by itself, without
// a Cluster: here nothing may be retried or balanced.
type pinger struct {
	tls     *tls.Config
	send    []byte
	timeout time.Duration
}

func newPinger(o pingOptions) (*pinger, error) {
	if o.count < 1 || o.timeout <= 0 || o.interval < 0 {
		return nil, usage(errors.New("--count and --timeout must be above 0, --interval not below"), "")
	}
	send, err := strconv.Unquote(`"` + strings.ReplaceAll(o.send, `"`, `\"`) + `"`)
	if err != nil {
		return nil, usage(fmt.Errorf("--send %q: %w", o.send, err), `a backslash itself is \\`)
	}
	cfg, err := o.tls.config()
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		cfg = &tls.Config{}
	}
	return &pinger{cfg, []byte(send), o.timeout}, nil
}

// target is one address of an endpoint, and what was measured there.
type target struct {
	endpoint holdfast.Endpoint
	place
	lookup   time.Duration
	attempts int
	good     []sample
	err      error // of the last attempt that failed
}

// place is an address to dial and the host name it came from. Both are "" when the
// lookup failed.
type place struct{ host, addr string }

// sample is how long the phases of one attempt took; 0 for what was not done.
type sample struct{ connect, tls, first time.Duration }

// targets resolves all endpoints at once.
func (pg *pinger) targets(ctx context.Context, endpoints []holdfast.Endpoint) ([]*target, error) {
	found := make([][]*target, len(endpoints))
	var wg sync.WaitGroup
	for i, e := range endpoints {
		if e.Network == "udp" && len(pg.send) == 0 {
			return nil, usage(fmt.Errorf("%s: a UDP server says nothing unless asked", e), "say what to ask with --send TEXT")
		}
		wg.Go(func() { found[i] = pg.resolve(ctx, e) })
	}
	wg.Wait()
	return slices.Concat(found...), nil
}

// resolve turns an endpoint into one target for each address, or one that says
// why there is none.
func (pg *pinger) resolve(ctx context.Context, e holdfast.Endpoint) []*target {
	ctx, cancel := context.WithTimeout(ctx, pg.timeout)
	defer cancel()
	start := time.Now()
	places, asked, err := lookup(ctx, e)
	took := time.Since(start)
	if !asked {
		took = 0
	}
	if err != nil {
		return []*target{{endpoint: e, lookup: took, attempts: 1, err: err}}
	}
	var targets []*target
	for _, at := range places {
		targets = append(targets, &target{endpoint: e, place: at, lookup: took})
	}
	return targets
}

// lookup finds the places to dial; asked says whether it took a resolver.
func lookup(ctx context.Context, e holdfast.Endpoint) (places []place, asked bool, err error) {
	switch e.Network {
	case "unix":
		return []place{{addr: e.Addr}}, false, nil
	case "srv":
		places, err = lookupSRV(ctx, e.Addr)
		return places, true, err
	}
	host, port, err := net.SplitHostPort(e.Addr)
	if err != nil {
		return nil, false, err
	}
	places, err = lookupHost(ctx, host, port)
	asked = len(places) != 1 || places[0].addr != e.Addr
	return places, asked, err
}

func lookupSRV(ctx context.Context, service string) (places []place, err error) {
	_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", service)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		found, err := lookupHost(ctx, strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port)))
		if err != nil {
			return nil, err
		}
		places = append(places, found...)
	}
	return places, nil
}

func lookupHost(ctx context.Context, host, port string) (places []place, err error) {
	ips, err := net.DefaultResolver.LookupHost(ctx, host) // an address stays as it is
	for _, ip := range ips {
		places = append(places, place{host, net.JoinHostPort(ip, port)})
	}
	return places, err
}

// round makes one attempt at every address at once.
func (pg *pinger) round(ctx context.Context, targets []*target) {
	var wg sync.WaitGroup
	for _, t := range targets {
		if t.addr != "" {
			wg.Go(func() { pg.attempt(ctx, t) })
		}
	}
	wg.Wait()
}

func (pg *pinger) attempt(ctx context.Context, t *target) {
	ctx, cancel := context.WithTimeout(ctx, pg.timeout)
	defer cancel()
	s, err := pg.measure(ctx, t)
	t.attempts++
	if err != nil {
		t.err = err
		return
	}
	t.good = append(t.good, s)
}

// measure connects, shakes hands, asks and waits for the first byte.
func (pg *pinger) measure(ctx context.Context, t *target) (s sample, err error) {
	start := time.Now()
	lap := func() time.Duration {
		d := time.Since(start)
		start = time.Now()
		return max(d, 1)
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, t.network(), t.addr)
	if err != nil {
		return s, err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	conn.SetDeadline(end)
	s.connect = lap()
	if t.endpoint.TLS {
		secure := tls.Client(conn, pg.tlsFor(t))
		if err := secure.HandshakeContext(ctx); err != nil {
			return s, err
		}
		conn, s.tls = secure, lap()
	}
	if len(pg.send) == 0 {
		return s, nil
	}
	if _, err := conn.Write(pg.send); err != nil {
		return s, err
	}
	if n, err := conn.Read(make([]byte, 1)); n == 0 && err != nil {
		return s, fmt.Errorf("no answer to --send: %w", err)
	}
	s.first = lap()
	return s, nil
}

func (t *target) network() string { return networkOf(t.endpoint) }

// networkOf is what an endpoint is dialed by, also where the service of a name says so.
func networkOf(e holdfast.Endpoint) string {
	switch {
	case e.Network != "srv":
		return e.Network
	case strings.Contains(e.Addr, "._udp."):
		return "udp"
	}
	return "tcp"
}

func (pg *pinger) tlsFor(t *target) *tls.Config {
	cfg := pg.tls.Clone()
	cfg.ServerName = cmp.Or(t.endpoint.ServerName, t.host)
	if verify := cfg.VerifyConnection; verify != nil {
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			cs.ServerName = cfg.ServerName // crypto/tls leaves it empty for an IP address
			return verify(cs)
		}
	}
	return cfg
}
