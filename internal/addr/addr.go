// Package addr reads the one address grammar of the project, in configuration,
// flags and code alike:
//
//	tcp://host:port   tls://host:port   udp://host:port   host:port (tcp)
//	unix:/path        unix:///path      unix:@abstract
//	srv://_service._proto.domain
//
// A v6 host stands in brackets and may have a zone. An empty host, ":7000", is for
// listeners: callers that dial refuse it. Parameters follow as ?key=value&key=value;
// which keys mean something is the caller's business. Addresses may come from files
// and registries, so whatever is not plainly right is refused.
package addr

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Address is one parsed address.
type Address struct {
	Network string            // "tcp", "tls", "udp", "unix" or "srv"
	Addr    string            // "host:port", "[v6]:port", a path, "@name", or the SRV name
	Params  map[string]string // nil when there are none
}

const (
	maxHost = 253 // of a DNS name, RFC 1035
	maxPath = 107 // of sun_path on Linux, less the closing NUL
)

// Parse reads an address.
func Parse(s string) (Address, error) {
	a, err := parse(s)
	if err != nil {
		return Address{}, fmt.Errorf("address %s: %w", quote(s), err)
	}
	return a, nil
}

func parse(s string) (a Address, err error) {
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == '\uFFFD' || r > 0x7e && r < 0xa0 {
			return a, fmt.Errorf("character %q does not belong there", r)
		}
	}
	rest, query, hasQuery := strings.Cut(s, "?")
	a.Network, a.Addr = split(rest)
	switch a.Network {
	case "tcp", "tls", "udp":
		a.Addr, err = hostPort(a.Addr)
	case "unix":
		a.Addr, err = socketPath(a.Addr)
	case "srv":
		err = hostName(a.Addr)
	default:
		err = fmt.Errorf("unknown scheme %s; known are tcp, tls, udp, unix, srv", quote(a.Network))
	}
	if err == nil && hasQuery {
		a.Params, err = params(query)
	}
	return a, err
}

// split takes the scheme off. A bare host:port is TCP, so only "unix:" may stand
// without slashes.
func split(s string) (scheme, rest string) {
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		return scheme, rest
	}
	if rest, ok := strings.CutPrefix(s, "unix:"); ok {
		return "unix", rest
	}
	return "tcp", s
}

// hostPort returns the address in the form net.Dial takes and gives.
func hostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Count(s, ":") > 1 && !strings.Contains(s, "[") {
			return "", fmt.Errorf("a v6 address stands in brackets: [%s]:port", s)
		}
		return "", fmt.Errorf("want host:port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("port %s is not a number from 0 to 65535", quote(port))
	}
	if strings.Contains(host, ":") || strings.HasPrefix(s, "[") {
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.Is6() {
			return "", fmt.Errorf("%s is not a v6 address", quote(host))
		}
	} else if host != "" {
		if err := hostName(host); err != nil {
			return "", err
		}
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// hostName accepts what DNS and hosts files hold: letters, digits and "-_." of any
// script, no empty labels but a final dot.
func hostName(s string) error {
	if s == "" || len(s) > maxHost {
		return fmt.Errorf("a host name has 1 to %d bytes", maxHost)
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("host %s has an empty or overlong label", quote(s))
		}
	}
	if strings.ContainsAny(s, "@/#%[]\\:\"'<>|&=;,`^{}$!*()+~") {
		return fmt.Errorf("host %s has a character that no host has", quote(s))
	}
	return nil
}

func socketPath(s string) (string, error) {
	if strings.HasPrefix(s, "//") { // unix:////path is unix:///path with one slash too many
		return "", fmt.Errorf("path %s begins with two slashes", quote(s))
	}
	if s == "" || s == "@" || strings.HasSuffix(s, "/") {
		return "", fmt.Errorf("want a path")
	}
	if strings.Contains(s, "://") || strings.Contains(s, "#") {
		return "", fmt.Errorf("path %s is ambiguous", quote(s))
	}
	if len(s) > maxPath {
		return "", fmt.Errorf("a socket's path has at most %d bytes, this one %d", maxPath, len(s))
	}
	return s, nil
}

func params(query string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(query, "&") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" || strings.ContainsAny(pair, "?#;") {
			return nil, fmt.Errorf("parameter %s: want key=value", quote(pair))
		}
		value, err := url.QueryUnescape(value)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", quote(key), err)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("parameter %s has a control character", quote(key))
		}
		if _, double := out[key]; double {
			return nil, fmt.Errorf("parameter %s stands twice", quote(key))
		}
		out[key] = value
	}
	return out, nil
}

// String returns the address in a form that Parse reads as the same.
func (a Address) String() string {
	var b strings.Builder
	b.WriteString(a.Network)
	if a.Network == "unix" {
		b.WriteString(":" + a.Addr)
	} else {
		b.WriteString("://" + a.Addr)
	}
	sep := "?"
	for _, key := range slices.Sorted(maps.Keys(a.Params)) {
		b.WriteString(sep + key + "=" + url.QueryEscape(a.Params[key]))
		sep = "&"
	}
	return b.String()
}

// quote makes a text of unknown origin fit for a message.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return strconv.Quote(s[:limit]) + "…"
	}
	return strconv.Quote(s)
}
