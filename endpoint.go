package holdfast

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/holdfast-net/holdfast/internal/addr"
)

// Endpoint is one configured destination: an address, or a name that stands for
// several. The zero Endpoint is not usable; see [ParseEndpoint] for the grammar.
type Endpoint struct {
	Network    string // "tcp", "unix", "udp", or "srv" for a DNS SRV name
	Addr       string // "host:port", "[v6]:port", a socket's path, or the SRV name
	TLS        bool   // TLS is done here, with Config.TLS
	ServerName string // name sent (SNI) and verified; "" means the host of Addr
	Weight     int    // share of the load; 0 means 1, negative drains the endpoint
	Priority   int    // 0 is used first; higher numbers take the spill
}

// ParseEndpoint reads one address: tcp://host:port, tls://host:port, unix:/path,
// unix:@abstract, udp://host:port, srv://_service._proto.domain, or a bare
// host:port (TCP). Parameters follow a "?": weight, priority, sni, and tls=true
// for srv:// and unix:.
func ParseEndpoint(s string) (Endpoint, error) {
	a, err := addr.Parse(s)
	if err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{Network: a.Network, Addr: a.Addr}
	if a.Network == "tls" {
		e.Network, e.TLS = "tcp", true
	}
	for key, value := range a.Params {
		if err := e.set(key, value); err != nil {
			return Endpoint{}, fmt.Errorf("holdfast: address %q: %w", s, err)
		}
	}
	if e.ServerName != "" && !e.TLS {
		return Endpoint{}, fmt.Errorf("holdfast: address %q: sni needs TLS", s)
	}
	if host, port, err := net.SplitHostPort(e.Addr); err == nil && e.isHostPort() && (host == "" || port == "0") {
		return Endpoint{}, fmt.Errorf("holdfast: address %q: a client needs a host and a port", s)
	}
	return e, nil
}

func (e *Endpoint) set(key, value string) (err error) {
	switch key {
	case "sni":
		e.ServerName = value
	case "weight":
		e.Weight, err = strconv.Atoi(value)
	case "priority":
		e.Priority, err = strconv.Atoi(value)
		if err == nil && e.Priority < 0 {
			err = fmt.Errorf("priority %d is negative", e.Priority)
		}
	case "tls":
		e.TLS, err = strconv.ParseBool(value)
	default:
		err = fmt.Errorf("unknown parameter %q; known are sni, weight, priority, tls", key)
	}
	return err
}

// String returns the address in the grammar of [ParseEndpoint], without weight
// and priority.
func (e Endpoint) String() string {
	s := e.Network + "://" + e.Addr
	switch {
	case e.Network == "tcp" && e.TLS:
		s = "tls://" + e.Addr
	case e.Network == "unix":
		s = "unix:" + e.Addr
	}
	var params []string
	if e.TLS && e.Network != "tcp" {
		params = append(params, "tls=true")
	}
	if e.TLS && e.ServerName != "" {
		params = append(params, "sni="+e.ServerName)
	}
	if len(params) > 0 {
		s += "?" + strings.Join(params, "&")
	}
	return s
}

func (e Endpoint) isHostPort() bool { return e.Network == "tcp" || e.Network == "udp" }

// isName reports whether the address must be looked up before it can be dialed.
func (e Endpoint) isName() bool {
	if e.Network == "srv" {
		return true
	}
	if !e.isHostPort() {
		return false
	}
	host, _, err := net.SplitHostPort(e.Addr)
	return err == nil && !isIP(host)
}

// weight is the share the endpoint gives its nodes: at least 1 unless drained.
func (e Endpoint) weight() int { return max(e.Weight, 1) }

// check reports what is wrong with an endpoint that did not come from the parser.
func (e Endpoint) check() error {
	switch e.Network {
	case "tcp", "udp":
		host, port, err := net.SplitHostPort(e.Addr)
		if err != nil {
			return err
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
			return fmt.Errorf("endpoint %q: want host:port", e.Addr)
		}
	case "unix", "srv":
		if e.Addr == "" {
			return fmt.Errorf("endpoint of network %q has no address", e.Network)
		}
	default:
		return fmt.Errorf("endpoint %q: unknown network %q", e.Addr, e.Network)
	}
	return nil
}

// serverName is what TLS verifies: the configured name, else the host.
func (e Endpoint) serverName() string {
	if e.ServerName != "" {
		return e.ServerName
	}
	host, _, err := net.SplitHostPort(e.Addr)
	if err != nil {
		return ""
	}
	host, _, _ = strings.Cut(host, "%") // a zone is not part of a certificate's name
	return host
}
