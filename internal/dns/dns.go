// Package dns is a stub resolver whose reason for being is the TTL: [net.Resolver]
// tells none, so a client that wants to follow its servers must poll blindly.
//
// It asks the servers of resolv.conf over UDP, over TCP when an answer was cut, A
// and AAAA at once, each server in turn. What it cannot do better than the system,
// it leaves to [net.Resolver], without a TTL: names in /etc/hosts, localhost,
// .local, hosts without servers, and names that no server had an answer for.
//
// Answers are hostile: only one that matches the question's id, name and type is
// read, from the socket the question went out on; its records are counted, its
// aliases followed at most sixteen times, its addresses checked. Whatever the
// network does, a lookup ends within its context or Attempts × servers × Timeout.
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
	Timeout               // no server answered
	Malformed             // the answer made no sense
)

var kindTexts = [...]string{"server failure", "no such name", "no such records", "refused", "timeout", "malformed answer"}

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

// Timeout reports whether no server answered.
func (e *Error) Timeout() bool { return e.Kind == Timeout }

// As lets callers who know the standard library's error have it.
func (e *Error) As(target any) bool {
	std, ok := target.(**net.DNSError)
	if !ok {
		return false
	}
	*std = &net.DNSError{Err: kindTexts[e.Kind], Name: e.Name, Server: e.Server,
		IsTimeout: e.Kind == Timeout, IsNotFound: e.Kind == NotFound || e.Kind == Empty,
		IsTemporary: e.Kind == Timeout || e.Kind == ServFail}
	return true
}

const (
	maxRecords = 256
	maxAliases = 16
	maxTTL     = 24 * time.Hour
)

// LookupIP returns the addresses of a host, without duplicates and without those
// nobody can be reached at, and how long they hold; 0 means unknown. One address
// family that fails does not spoil the other.
func (c *Client) LookupIP(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, 0, nil
	}
	conf := c.files.conf()
	if !c.asksItself(conf, host) {
		return c.fallbackIP(ctx, host, nil)
	}
	var last error
	for _, name := range conf.candidates(host) {
		addrs, ttl, err := c.askBoth(ctx, conf, name)
		if err == nil {
			return addrs, ttl, nil
		}
		last = worse(last, err)
		if !goesOn(err) {
			break
		}
	}
	if final(last) || ctx.Err() != nil {
		return nil, 0, last
	}
	return c.fallbackIP(ctx, host, last)
}

// LookupSRV returns the records of a service name such as _redis._tcp.example.com.
func (c *Client) LookupSRV(ctx context.Context, name string) ([]SRV, time.Duration, error) {
	conf := c.files.conf()
	if !c.asksItself(conf, name) {
		return c.fallbackSRV(ctx, name, nil)
	}
	a, err := c.ask(ctx, conf, absolute(name), dnsmessage.TypeSRV)
	switch {
	case err == nil:
		return a.srvs, a.ttl, nil
	case final(err) || ctx.Err() != nil:
		return nil, 0, err
	}
	return c.fallbackSRV(ctx, name, err)
}

// asksItself reports whether the name is one for DNS servers that we know.
func (c *Client) asksItself(conf *config, host string) bool {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	if len(c.Servers) == 0 && len(conf.servers) == 0 {
		return false
	}
	return name != "localhost" && !strings.HasSuffix(name, ".localhost") && !strings.HasSuffix(name, ".local") && !conf.hosts[name]
}

// askBoth asks for both address families at once.
func (c *Client) askBoth(ctx context.Context, conf *config, name string) ([]netip.Addr, time.Duration, error) {
	var (
		wg      sync.WaitGroup
		answers [2]answer
		errs    [2]error
	)
	for i, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		wg.Go(func() { answers[i], errs[i] = c.ask(ctx, conf, name, kind) })
	}
	wg.Wait()
	addrs := slices.Concat(answers[1].addrs, answers[0].addrs) // v6 first, as RFC 6724 prefers
	if len(addrs) == 0 {
		return nil, 0, worse(errs[0], errs[1])
	}
	ttl := answers[0].ttl
	if len(answers[0].addrs) == 0 || len(answers[1].addrs) > 0 && answers[1].ttl < ttl {
		ttl = answers[1].ttl
	}
	return addrs, ttl, nil
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

// final reports whether the failure is an answer: the system would get the same.
func final(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Kind == NotFound || e.Kind == Empty)
}

// goesOn reports whether the next name of the search list is worth a question.
func goesOn(err error) bool { return final(err) }

func (c *Client) fallback() *net.Resolver {
	if c.Fallback != nil {
		return c.Fallback
	}
	return net.DefaultResolver
}

// fallbackIP asks the system. Of two failures ours is kept: it knows its kind.
func (c *Client) fallbackIP(ctx context.Context, host string, ours error) ([]netip.Addr, time.Duration, error) {
	found, err := c.fallback().LookupNetIP(ctx, "ip", host)
	addrs := usable(found)
	if err == nil && len(addrs) == 0 {
		err = &Error{Kind: Empty, Name: host}
	}
	if err != nil {
		if ours != nil {
			return nil, 0, ours
		}
		return nil, 0, fromStd(host, err)
	}
	return addrs, 0, nil
}

func (c *Client) fallbackSRV(ctx context.Context, name string, ours error) ([]SRV, time.Duration, error) {
	_, found, err := c.fallback().LookupSRV(ctx, "", "", name)
	if err != nil {
		if ours != nil {
			return nil, 0, ours
		}
		return nil, 0, fromStd(name, err)
	}
	var out []SRV
	for _, r := range found[:min(len(found), maxRecords)] {
		out = append(out, SRV{r.Target, r.Port, r.Priority, r.Weight})
	}
	return out, 0, nil
}

func fromStd(name string, err error) error {
	var std *net.DNSError
	kind := ServFail
	if errors.As(err, &std) {
		switch {
		case std.IsNotFound:
			kind = NotFound
		case std.IsTimeout:
			kind = Timeout
		}
	}
	return &Error{Kind: kind, Name: name, Err: err}
}

// usable keeps the addresses a client can connect to, each once.
func usable(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || slices.Contains(out, a) {
			continue
		}
		if out = append(out, a); len(out) == maxRecords {
			break
		}
	}
	return out
}
