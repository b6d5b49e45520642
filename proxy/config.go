package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/sockopt"
	"github.com/holdfast-net/holdfast/serve"
)

// Config says where connections come from, where they go, and what bounds them. In
// every field 0 is the documented default, negative is off.
type Config struct {
	// Cluster is where connections go that no route claims; nil refuses them.
	Cluster *holdfast.Cluster
	Routes  []Route // the first that matches

	// In front.
	TLS    serve.TLS    // terminates TLS; the zero value passes it through
	Proxy  serve.Proxy  // whose word about the client's address is taken
	Limits serve.Limits // MaxConns 0 is half of the files that may be open, less 200
	Socket serve.Socket

	// Behind.
	Backends Backends

	// Key is what policies that hash choose by: nil is ByIP.
	Key func(Client) uint64

	Timeouts Timeouts

	// Loops is how many event loops relay plain streams: 0 is one for each CPU that Go
	// uses, negative is none: then each connection has goroutines.
	Loops int

	Log    *slog.Logger // nil discards; what is too slow to take it loses records, and says so
	Access *slog.Logger // one record for each connection that ended; nil is none
}

// Route sends connections to a Cluster by what the client's TLS asks for.
type Route struct {
	// ServerName is a name as it is sent (SNI), or *.example.com for all names one label
	// below. "" is any, and none.
	ServerName string

	// ALPN is a protocol that the client offers, or, where TLS is terminated, that was
	// agreed on. "" is any.
	ALPN string

	Cluster *holdfast.Cluster
}

// Backends is how each node of a Cluster is treated.
type Backends struct {
	Max int // connections to one node at once; 0 is no limit

	// Queue is how many connections wait while every node has Max: 0 is 1024, negative is
	// none. QueueTime is how long: 0 is 5 s.
	Queue     int
	QueueTime time.Duration // negative is no limit

	// Header is the version of the PROXY header that backends are sent: 1 or 2; 0 is
	// none. Version 2 tells them what is known of the client's TLS.
	Header int

	Down Down
}

// Down is what becomes of the connections of a node that is not usable any more.
type Down int

const (
	Keep  Down = iota // they stay: what works, works
	Drain             // they end when they are quiet for 200 ms, and after 30 s in any case
	Sever             // they are reset at once
)

// Client is what is known of a client when a backend is chosen for it.
type Client struct {
	Addr       netip.AddrPort // invalid for a Unix socket
	ServerName string         // that TLS asked for; "" if that is not known
}

// ByIP is a Key of the client's address: an IPv4 address, or the /64 of an IPv6 one.
// It is the same at every proxy.
func ByIP(c Client) uint64 {
	a := c.Addr.Addr().Unmap()
	if !a.IsValid() {
		return 0
	}
	b := a.As16()
	if a.Is6() {
		clear(b[8:])
	}
	return holdfast.Key(b[:])
}

// ByServerName is a Key of the name that TLS asked for.
func ByServerName(c Client) uint64 { return holdfast.Key(strings.ToLower(c.ServerName)) }

// Timeouts bound each step. 0 is the default, negative is none.
type Timeouts struct {
	Connect    time.Duration // to a backend, all attempts together: 5 s
	Hello      time.Duration // for a PROXY header, and for a ClientHello: 5 s each
	Handshake  time.Duration // of TLS with the client: 10 s
	Idle       time.Duration // silence in both directions: 1 h
	HalfClosed time.Duration // silence when one direction has ended: 60 s
	Write      time.Duration // for a side to take something: 30 s
	Lifetime   time.Duration // of a connection, −10 % jitter: none
	Linger     time.Duration // for a side to take the last bytes before it is reset: 5 s
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, value time.Duration) {
		switch {
		case *d == 0:
			*d = value
		case *d < 0:
			*d = 0
		}
	}
	set(&t.Connect, 5*time.Second)
	set(&t.Hello, 5*time.Second)
	set(&t.Handshake, 10*time.Second)
	set(&t.Idle, time.Hour)
	set(&t.HalfClosed, time.Minute)
	set(&t.Write, 30*time.Second)
	set(&t.Lifetime, 0)
	set(&t.Linger, 5*time.Second)
	return t
}

// settings are a Config in force. They do not change: an Update puts others in their
// place, for the connections that come after it.
type settings struct {
	Config
	limits Timeouts
	sniffs bool // a route depends on what TLS asks for, and TLS passes through
}

func newSettings(cfg Config) (*settings, error) {
	s := &settings{Config: cfg, limits: cfg.Timeouts.withDefaults()}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if s.Key == nil {
		s.Key = ByIP
	}
	if s.Limits.MaxConns == 0 {
		s.Limits.MaxConns = max((sockopt.MaxFiles()-spareFiles)/2, 1)
	}
	s.Backends.Queue = max(cmp.Or(s.Backends.Queue, 1024), 0)
	s.Backends.QueueTime = max(cmp.Or(s.Backends.QueueTime, 5*time.Second), 0)
	s.sniffs = len(s.Routes) > 0 && !s.terminates()
	return s, nil
}

// queueEnd is until when a connection waits that begins to; zero is for ever.
func (s *settings) queueEnd() time.Time {
	if s.Backends.QueueTime == 0 {
		return time.Time{}
	}
	return time.Now().Add(s.Backends.QueueTime)
}

// spareFiles are left for everything that is not a connection.
const spareFiles = 200

func (c *Config) check() error {
	if c.Cluster == nil && len(c.Routes) == 0 {
		return errors.New("neither a Cluster nor a route: nowhere to go")
	}
	for _, r := range c.Routes {
		switch {
		case r.Cluster == nil:
			return fmt.Errorf("the route of %q has no Cluster", r.ServerName)
		case strings.Contains(strings.TrimPrefix(r.ServerName, "*."), "*"):
			return fmt.Errorf("server name %q: an asterisk stands for the first label only", r.ServerName)
		}
	}
	if c.Backends.Header < 0 || c.Backends.Header > 2 {
		return fmt.Errorf("PROXY version %d: there are 1 and 2", c.Backends.Header)
	}
	if c.Proxy.Version < 0 || c.Proxy.Version > 2 {
		return fmt.Errorf("PROXY version %d: there are 1 and 2", c.Proxy.Version)
	}
	return c.TLS.Check()
}

// terminates reports whether TLS ends here.
func (c *Config) terminates() bool {
	return c.TLS.CertFile != "" || c.TLS.KeyFile != "" || c.TLS.Config != nil || c.TLS.ClientCAFile != ""
}

// readsHeader reports whether any peer's word about clients is taken.
func (c *Config) readsHeader() bool { return len(c.Proxy.Trusted) > 0 || c.Proxy.Unix }

// route returns the Cluster for what a client asks for, nil if there is none.
func (s *settings) route(name string, protocols []string) *holdfast.Cluster {
	for i := range s.Routes {
		if s.Routes[i].matches(name, protocols) {
			return s.Routes[i].Cluster
		}
	}
	return s.Cluster
}

// clusters are all that connections may go to.
func (s *settings) clusters() (all []*holdfast.Cluster) {
	if s.Cluster != nil {
		all = append(all, s.Cluster)
	}
	for _, r := range s.Routes {
		all = append(all, r.Cluster)
	}
	return all
}

func (r *Route) matches(name string, protocols []string) bool {
	if r.ALPN != "" && !contains(protocols, r.ALPN) {
		return false
	}
	if r.ServerName == "" {
		return true
	}
	name = strings.TrimSuffix(name, ".")
	if parent, wild := strings.CutPrefix(r.ServerName, "*."); wild {
		label, rest, found := strings.Cut(name, ".")
		return found && label != "" && strings.EqualFold(rest, parent)
	}
	return strings.EqualFold(name, r.ServerName)
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}
