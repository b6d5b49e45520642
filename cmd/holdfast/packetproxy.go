package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/holdfast-net/holdfast/proxy"
)

// packetBalancer is what a worker serves of datagrams: its Packets is made when it starts.
type packetBalancer struct{ *proxy.Packets }

// Totals have names of their own: those of connections count other things by the same.
func (b *packetBalancer) Totals() map[string]int64 {
	all := map[string]int64{}
	for name, n := range b.Packets.Totals() {
		all["udp_"+name] = n
	}
	return all
}

// addresses are those of streams and those of datagrams.
func (o proxyOptions) addresses() (streams, datagrams []string) {
	for _, l := range o.listen {
		if strings.Contains(l, "udp://") {
			datagrams = append(datagrams, l)
		} else {
			streams = append(streams, l)
		}
	}
	return streams, datagrams
}

// byNetwork takes the backends of datagrams from those of streams, which have what cannot
// be read.
func byNetwork(addrs []string) (streams, datagrams []string) {
	for _, addr := range addrs {
		if endpoint, err := holdfast.ParseEndpoint(addr); err == nil && networkOf(endpoint) == "udp" {
			datagrams = append(datagrams, addr)
		} else {
			streams = append(streams, addr)
		}
	}
	return streams, datagrams
}

// match finds listeners that lead nowhere, backends that nothing leads to, and flags that
// say of datagrams what they have not.
func (o proxyOptions) match() error {
	streams, datagrams := o.addresses()
	to, packetTo := byNetwork(o.to)
	switch {
	case len(datagrams) == 0 && len(packetTo) > 0:
		return usage(fmt.Errorf("-u %s: nothing listens for datagrams", packetTo[0]), "holdfast proxy -l udp://:53 -u "+packetTo[0])
	case len(datagrams) > 0 && len(packetTo) == 0:
		return usage(fmt.Errorf("-l %s: no backend takes datagrams", datagrams[0]), "holdfast proxy -l "+datagrams[0]+" -u udp://10.0.0.1:53")
	case len(streams) == 0 && len(o.routes) > 0:
		return usage(errors.New("--route goes by what a client's TLS asks for, and datagrams have none"), "")
	case len(streams) == 0 && len(to) > 0:
		return usage(fmt.Errorf("-u %s: nothing listens for connections", to[0]), "a backend of datagrams begins with udp://, and one without a scheme is tcp://")
	case len(streams) > 0 && len(to)+len(o.routes) == 0:
		return usage(fmt.Errorf("-l %s: no backend takes connections", streams[0]), "holdfast proxy -l "+strings.Join(o.listen, ",")+" -u 10.0.0.1:53,"+packetTo[0])
	}
	if err := o.suits(len(streams) > 0, len(datagrams) > 0); err != nil {
		return usage(err, "")
	}
	return nil
}

// suits finds flags that would be believed to do something, and do nothing.
func (o proxyOptions) suits(streams, datagrams bool) error {
	switch {
	case datagrams && o.backends.Header == 1:
		return errors.New("--send-proxy 1: that version has no form for datagrams, want 2")
	case datagrams && o.hashBy == "sni":
		return errors.New("--hash-by sni: datagrams ask for no name")
	case !datagrams && o.checkUDP != "":
		return errors.New("--check-udp: there are no udp:// backends")
	case !datagrams && (o.requests != 0 || o.responses != 0):
		return errors.New("--requests and --responses are about datagrams, and nothing listens for them")
	case streams && strings.HasPrefix(strings.TrimSpace(o.check), "udp"):
		return fmt.Errorf("--check %q: that is for --check-udp", o.check)
	case !streams && o.check != "" && o.checkUDP != "":
		return errors.New("--check: there are only udp:// backends, which --check-udp is about")
	}
	if streams {
		return nil
	}
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"--cert", o.certFile != ""}, {"--key", o.keyFile != ""}, {"--client-ca", o.clientCA != ""}, {"--ca", o.backendCA != ""},
		{"--lifetime", o.timeouts.Lifetime != 0}, {"--queue", o.backends.Queue != 0}, {"--on-down", o.down != "keep"},
	} {
		if f.given {
			return fmt.Errorf("%s is about connections, and nothing listens for them", f.name)
		}
	}
	return nil
}

// checkPackets has the backends of datagrams checked.
func (o proxyOptions) checkPackets(cfg *holdfast.Config) (err error) {
	streams, _ := o.addresses()
	text, flag := o.checkUDP, "--check-udp"
	if text == "" && len(streams) == 0 {
		text, flag = o.check, "--check"
	}
	if text == "" {
		return nil
	}
	cfg.Check = o.checks
	switch cfg.Probe, err = health.ParseProbe(text); {
	case err != nil:
		return fmt.Errorf("%s: %w", flag, err)
	case !asksByDatagram(text):
		return fmt.Errorf("%s %q says nothing about udp://: want 'send X expect Y', or 'udp send X'", flag, text)
	}
	return nil
}

// asksByDatagram reports whether a probe, which can be read, makes sense over udp://.
func asksByDatagram(text string) bool {
	switch strings.Fields(text)[0] {
	case "udp", "send", "sendhex":
		return true
	}
	return false
}

// packetConfig has what a Packets and a Proxy have in common from the latter's.
func (o proxyOptions) packetConfig(cfg proxy.Config, c *holdfast.Cluster) proxy.PacketConfig {
	cfg.Proxy.Unix = false // nobody sends datagrams from there
	return proxy.PacketConfig{
		Cluster: c, Key: cfg.Key, Limits: cfg.Limits, PerNode: cfg.Backends.Max, Idle: cfg.Timeouts.Idle,
		Requests: o.requests, Responses: o.responses, Proxy: cfg.Proxy, Header: cfg.Backends.Header == 2,
		Log: cfg.Log, Access: cfg.Access,
	}
}

// packetStats is proxy.PacketStats with reasons as text, so that it can be read back.
type packetStats struct {
	proxy.PacketStats
	Denied map[string]uint64 `json:"denied"`
	Ends   map[string]uint64 `json:"ends"`
}

// state is nil if it serves nothing.
func (b *packetBalancer) state() *packetStats {
	if b.Packets == nil {
		return nil
	}
	s := b.Stats()
	return &packetStats{s, refusals(s.Denied), byReason(s.Ends)}
}

// lines are sessions and datagrams. Those that were dropped without anybody having asked
// for that stand out.
func (s *packetStats) lines(on paint) []string {
	denied := uint64(0)
	for _, n := range s.Denied {
		denied += n
	}
	d := s.Dropped
	dropped := counted([]counter{
		{"denied", d.Denied}, {"no backend", d.NoBackend}, {"too long", d.TooLong}, {"loops", d.Loops},
		{"bad header", d.BadHeader}, {"amplified", d.Amplified}, {"unwanted", d.Unwanted}, {"unsent", d.Unsent},
	})
	if d.NoBackend+d.Unsent > 0 {
		dropped = on.text(red, dropped)
	}
	return []string{
		fmt.Sprintf("sessions     %d open, %s begun, %s denied; %s went on at another backend", s.Open, count(s.Sessions), count(denied), count(s.Moved)),
		fmt.Sprintf("datagrams    %s from clients (%s), %s from backends (%s); refused %s, dropped %s",
			count(s.FromClients), size(s.FromClientsBytes), count(s.FromBackends), size(s.FromBackendsBytes), count(s.Refused), dropped),
	}
}

type counter struct {
	name string
	n    uint64
}

// counted is the sum, and by name what there is of it.
func counted(all []counter) string {
	var sum uint64
	var parts []string
	for _, c := range all {
		if sum += c.n; c.n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", c.name, count(c.n)))
		}
	}
	if sum == 0 {
		return "0"
	}
	return fmt.Sprintf("%s: %s", count(sum), strings.Join(parts, ", "))
}
