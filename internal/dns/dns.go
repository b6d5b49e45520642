// Package dns is a stub resolver whose reason for being is the TTL: [net.Resolver]
// tells none, so a client that wants to follow its servers must poll blindly.
//
// It asks the servers of resolv.conf over UDP, over TCP when an answer was cut, A
// and AAAA at once, each server in turn. What it cannot do better than the system,
// it leaves to [net.Resolver], without a TTL: names in /etc/hosts, localhost, those
// of multicast DNS, hosts without servers, and names that no server had an answer
// for.
//
// Answers are hostile: only one that matches the question's id, name and type is
// read, from the socket the question went out on; its records are counted, its
// aliases followed at most sixteen times, its addresses and names checked.
//
// A lookup ends with its context. Without a limit there, each name of the search
// list takes at most Attempts × servers × Timeout, and if the servers had no
// answer, the system takes its own time on top.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Client looks names up. The zero Client follows /etc/resolv.conf; it is safe for
// concurrent use, and its fields must not change after the first lookup.
type Client struct {
	Servers  []string      // "ip:port"; nil means resolv.conf's
	Timeout  time.Duration // of one question to one server; 0 means resolv.conf's, 5 s without
	Attempts int           // rounds over the servers; 0 means resolv.conf's, 2 without

	Dial     func(ctx context.Context, network, addr string) (net.Conn, error) // nil means a net.Dialer
	Fallback *net.Resolver                                                     // nil means net.DefaultResolver

	files systemFiles
}

// SRV is one service record.
type SRV struct {
	Target                 string // with its final dot
	Port, Priority, Weight uint16
}

// Kind is why a lookup failed.
type Kind uint8

const (
	ServFail  Kind = iota // the server could not say
	NotFound              // NXDOMAIN: there is no such name
	Empty                 // the name exists without such records
	Refused               // the server would not say
	Timeout               // no server answered before the limit, or before the caller gave up
	Malformed             // the answer made no sense
)

var kindTexts = [...]string{"server failure", "no such name", "no such records", "refused", "no answer", "malformed answer"}

// Error is a failed lookup. errors.As also finds a [*net.DNSError] in it.
type Error struct {
	Kind         Kind
	Name, Server string
	Err          error // the cause, if there is more to say
}

func (e *Error) Error() string {
	s := fmt.Sprintf("lookup %.256q: %s", e.Name, kindTexts[e.Kind])
	if e.Server != "" {
		s += " from " + e.Server
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether no server answered in time. A caller who gave up has not
// waited for the limit.
func (e *Error) Timeout() bool { return e.Kind == Timeout && !errors.Is(e.Err, context.Canceled) }

// As lets callers who know the standard library's error have it.
func (e *Error) As(target any) bool {
	std, ok := target.(**net.DNSError)
	if !ok {
		return false
	}
	*std = &net.DNSError{Err: kindTexts[e.Kind], Name: e.Name, Server: e.Server,
		IsTimeout: e.Timeout(), IsNotFound: final(e),
		IsTemporary: e.Timeout() || e.Kind == ServFail}
	return true
}

// LookupIP returns the addresses of a host, v6 first, without duplicates and
// without those nobody can be reached at, and how long they hold; 0 means unknown,
// or not at all. It returns at most 256 of each address family. A family that fails or
// dawdles does not spoil the other: an error beside addresses is about the family that
// is missing among them, which may have addresses or not.
func (c *Client) LookupIP(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, 0, nil
	}
	conf := c.files.conf()
	a, err := c.lookup(ctx, conf, host, func(name string) (answer, error) {
		return c.askBoth(ctx, conf, name)
	}, c.fallbackIP)
	return a.addrs, a.ttl, err
}

// LookupSRV returns the records of a service name such as _redis._tcp.example.com,
// without those that say there is no service. The search list applies to it too.
func (c *Client) LookupSRV(ctx context.Context, name string) ([]SRV, time.Duration, error) {
	conf := c.files.conf()
	a, err := c.lookup(ctx, conf, name, func(name string) (answer, error) {
		return c.ask(ctx, conf, name, dnsmessage.TypeSRV)
	}, c.fallbackSRV)
	return a.srvs, a.ttl, err
}

// lookup asks for the names that host may stand for, and then the system, unless
// it was told that there is no such thing: the system would be told the same.
func (c *Client) lookup(ctx context.Context, conf *config, host string,
	ask func(name string) (answer, error), system func(context.Context, string) (answer, error)) (answer, error) {
	if !c.asksItself(conf, host) {
		return system(ctx, host)
	}
	a, ours := search(conf, host, ask)
	if ours == nil || !a.empty() || final(ours) || ctx.Err() != nil {
		return a, ours
	}
	if a, err := system(ctx, host); err == nil {
		return a, nil
	}
	return answer{}, ours // it knows its kind and its server
}

// search stops at the first name that a server could not answer for: one further
// down the list may be another host.
func search(conf *config, host string, ask func(name string) (answer, error)) (answer, error) {
	if !plain(host) {
		return answer{}, &Error{Kind: NotFound, Name: host, Err: errors.New("not a name for DNS")}
	}
	var last error
	for _, name := range conf.candidates(host) {
		a, err := ask(name)
		if err == nil || !a.empty() {
			return a, err
		}
		last = worse(last, err)
		if !final(err) {
			break
		}
	}
	return answer{}, last
}

// asksItself reports whether the name is one for DNS servers that we know. Not
// localhost (RFC 6761) and .onion (RFC 7686), and of .local what is multicast DNS's
// (RFC 6762): names of two labels. Longer ones, like those of Kubernetes, are in
// DNS; nss-mdns and systemd-resolved draw the line there too.
func (c *Client) asksItself(conf *config, host string) bool {
	if len(c.Servers) == 0 && len(conf.servers) == 0 {
		return false
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	switch name[strings.LastIndexByte(name, '.')+1:] {
	case "localhost", "onion":
		return false
	case "local":
		return strings.Count(name, ".") > 1
	}
	return !conf.hosts[name]
}

// grace is how long a family's answer waits for the other's. Some networks drop
// every question for AAAA; there the addresses that are known must not wait for
// all attempts. It is long, because what is left out is not known.
const grace = 2 * time.Second

// askBoth asks for both address families at once.
func (c *Client) askBoth(ctx context.Context, conf *config, name string) (answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	enough := time.AfterFunc(1<<63-1, cancel)
	defer enough.Stop()
	var (
		wg      sync.WaitGroup
		answers [2]answer
		errs    [2]error
	)
	for i, kind := range []dnsmessage.Type{dnsmessage.TypeAAAA, dnsmessage.TypeA} { // the order of RFC 6724
		wg.Go(func() {
			if answers[i], errs[i] = c.ask(ctx, conf, name, kind); errs[i] == nil {
				enough.Reset(grace)
			}
		})
	}
	wg.Wait()
	v6, v4 := answers[0], answers[1]
	switch {
	case errs[0] != nil && errs[1] != nil:
		return answer{}, worse(errs[0], errs[1])
	case errs[0] != nil:
		return v4, trouble(errs[0])
	case errs[1] != nil:
		return v6, trouble(errs[1])
	}
	return answer{addrs: slices.Concat(v6.addrs, v4.addrs), ttl: min(v6.ttl, v4.ttl)}, nil
}

// worse chooses the failure that says more: a server's trouble over "no such
// records", which one family of most names gives, and that over "no such name".
func worse(a, b error) error {
	rank := func(err error) int {
		var e *Error
		switch {
		case err == nil:
			return 0
		case !errors.As(err, &e):
			return 4
		case e.Kind == NotFound:
			return 1
		case e.Kind == Empty:
			return 2
		}
		return 3
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// final reports whether the failure is an answer.
func final(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Kind == NotFound || e.Kind == Empty)
}

// trouble is err unless it is an answer.
func trouble(err error) error {
	if final(err) {
		return nil
	}
	return err
}

func (c *Client) fallback() *net.Resolver {
	if c.Fallback != nil {
		return c.Fallback
	}
	return net.DefaultResolver
}

func (c *Client) fallbackIP(ctx context.Context, host string) (answer, error) {
	found, err := c.fallback().LookupNetIP(ctx, "ip", host)
	var a answer
	for _, ip := range found {
		a.add(record{addr: ip.Unmap()})
	}
	return a, a.failure(host, err)
}

func (c *Client) fallbackSRV(ctx context.Context, name string) (answer, error) {
	_, found, err := c.fallback().LookupSRV(ctx, "", "", name)
	var a answer
	for _, r := range found {
		a.add(record{srv: SRV{r.Target, r.Port, r.Priority, r.Weight}})
	}
	return a, a.failure(name, err)
}

// failure is our error for the system's, nil if its answer has something in it.
func (a answer) failure(name string, err error) error {
	if !a.empty() {
		return nil
	}
	e := &Error{Kind: Empty, Name: name, Err: err}
	var std *net.DNSError
	switch isStd := errors.As(err, &std); {
	case isStd && std.IsNotFound:
		e.Kind = NotFound
	case isStd && std.IsTimeout, errors.Is(err, context.Canceled):
		e.Kind = Timeout
	case err != nil:
		e.Kind = ServFail
	}
	return e
}
