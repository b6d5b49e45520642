// Package addr reads the one address grammar of the project, in configuration,
// flags and code alike:
//
//	tcp://host:port   tls://host:port   udp://host:port   host:port (tcp)
//	unix:/path        unix:///path      unix:@abstract    unix:relative/path
//	srv://_service._proto.domain
//
// Parameters follow any of them as ?key=value&key=value:
//
//	a, err := addr.Parse("tls://[2001:db8::1]:443?sni=db.example")
//	// a.Network == "tls", a.Addr == "[2001:db8::1]:443", a.Params["sni"] == "db.example"
//
// # Hosts and ports
//
// A host is an IPv4 address, a v6 address in brackets, with a zone if it needs one,
// or a name of ASCII letters, digits, "-", "_" and ".". What only looks like an
// address (127.1, 0x7f.1) is refused: some systems read it as one. A port is a
// number. An empty host, ":7000", is for listeners and port 0 for those who let the
// system choose; callers that dial refuse both.
//
// # Paths and parameters
//
// Paths are taken as they stand, without escapes, so they hold no space, "?" or "#".
// The value of a parameter may escape any byte as %20; a "+" is a plus. Which
// parameters mean something is the caller's business.
//
// # Guarantees
//
// Addresses come from files, registries and the network, so whatever is not plainly
// right is refused, with a message that says what would be. Messages quote their
// input escaped and cut, and never what could be a password. What is accepted is
// canonical as far as spelling goes, v6 addresses and ports above all, and prints as
// something that reads back as the same.
package addr

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// Address is one parsed address. The empty host and port 0 are among them.
type Address struct {
	Network string            // "tcp", "tls", "udp", "unix" or "srv"
	Addr    string            // "host:port", "[v6]:port", a path, "@name", or the SRV name
	Params  map[string]string // nil when there are none
}

const (
	maxText  = 4096 // of a whole address: room for parameters that are paths
	maxHost  = 253  // of a DNS name without its final dot, RFC 1035
	maxLabel = 63
	maxPath  = 107 // of sun_path on Linux, less the closing NUL
)

// Parse reads an address.
func Parse(s string) (Address, error) {
	a, err := parse(s)
	if err != nil {
		return Address{}, fmt.Errorf("address %s: %w", quote(redact(s)), err)
	}
	return a, nil
}

func parse(s string) (a Address, err error) {
	if err := checkText(s); err != nil {
		return a, err
	}
	rest, query, hasQuery := strings.Cut(s, "?")
	a.Network, rest = split(rest)
	switch a.Network {
	case "tcp", "tls", "udp":
		a.Addr, err = hostPort(rest)
	case "unix":
		a.Addr, err = socketPath(rest)
	case "srv":
		a.Addr, err = serviceName(rest)
	default:
		err = fmt.Errorf("unknown scheme %s; known are tcp, tls, udp, unix, srv", quote(a.Network))
	}
	if err == nil && hasQuery {
		a.Params, err = params(query)
	}
	return a, err
}

// checkText refuses what has no place anywhere in an address. What does not print,
// such as a change of direction, could make one address look like another.
func checkText(s string) error {
	if len(s) > maxText {
		return fmt.Errorf("%d bytes are too many; the limit is %d", len(s), maxText)
	}
	unix := strings.HasPrefix(s, "unix:")
	for _, r := range s {
		switch {
		case r == '#':
			return errors.New("an address has no fragment; in a parameter, # is %23")
		case r == '@' && !unix:
			return errors.New("an address has no user and no password; in a parameter, @ is %40")
		case r == ' ' || !printable(r):
			return fmt.Errorf("character %+q has no place in an address", r)
		}
	}
	return nil
}

// printable reports whether a character can be seen; U+FFFD also stands for bytes
// that are not UTF-8.
func printable(r rune) bool { return unicode.IsPrint(r) && r != unicode.ReplacementChar }

// split takes the scheme off. "unix:" goes first: its path may hold anything.
func split(s string) (scheme, rest string) {
	if rest, ok := strings.CutPrefix(s, "unix:"); ok {
		return "unix", rest
	}
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		return scheme, rest
	}
	return "tcp", s
}

// hostPort returns the address in the form that net.Dial takes and gives.
func hostPort(s string) (string, error) {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return "", fmt.Errorf("nothing follows the port, but here %s does", quote(s[i:]))
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", hint(s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("port %s is not a number from 0 to 65535", quote(port))
	}
	switch {
	case strings.HasPrefix(s, "["):
		host, err = v6(host)
	case host != "":
		err = checkHost(host)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), err
}

// hint says what could be meant by a text that is not host:port. A v6 address
// without brackets may end in a port or not; nobody can tell.
func hint(s string) error {
	var could []string
	if i := strings.LastIndexByte(s, ':'); i >= 0 && is6(s[:i]) {
		could = append(could, "["+s[:i]+"]"+s[i:])
	}
	if is6(s) {
		could = append(could, "["+s+"]:port")
	}
	if len(could) > 0 {
		return fmt.Errorf("a v6 address stands in brackets: %s", strings.Join(could, " or "))
	}
	for _, scheme := range []string{"tcp", "tls", "udp", "srv"} {
		if strings.HasPrefix(s, scheme+":") {
			return fmt.Errorf("two slashes follow the scheme: %s://", scheme)
		}
	}
	return errors.New("want host:port or [v6]:port")
}

func is6(s string) bool {
	ip, err := netip.ParseAddr(s)
	return err == nil && ip.Is6() && len(ip.Zone()) <= maxLabel
}

// v6 returns the canonical form of what stands in brackets, so that one address is
// one text. The zone stays as it is.
func v6(s string) (string, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil || !ip.Is6() {
		return "", fmt.Errorf("%s in brackets is not a v6 address", quote(s))
	}
	if len(ip.Zone()) > maxLabel || strings.ContainsFunc(ip.Zone(), func(r rune) bool { return !isWord(r) && r != '.' && r != ':' }) {
		return "", fmt.Errorf("zone %s is not the name or number of an interface", quote(ip.Zone()))
	}
	return ip.String(), nil
}

// checkHost accepts an IPv4 address or a name.
func checkHost(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if err := checkName(s); err != nil {
		return err
	}
	if numeric(s) {
		return fmt.Errorf("host %s looks like an address, but is not a.b.c.d", quote(s))
	}
	return nil
}

// numeric reports whether a name's last label is a number, decimal or hexadecimal:
// inet_aton(3) takes 127.1 and 0x7f000001 for addresses, and no domain ends so.
func numeric(s string) bool {
	s = strings.TrimSuffix(s, ".")
	last := strings.ToLower(s[strings.LastIndexByte(s, '.')+1:])
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		last, digits = hex, "0123456789abcdef"
	}
	return strings.Trim(last, digits) == ""
}

// checkName accepts what DNS and the files of the system hold. A leading hyphen
// could become an option of some program.
func checkName(s string) error {
	bare := strings.TrimSuffix(s, ".")
	if bare == "" || len(bare) > maxHost {
		return fmt.Errorf("a host name has 1 to %d bytes, this one %d", maxHost, len(bare))
	}
	for _, r := range bare {
		switch {
		case r >= 0x80:
			return fmt.Errorf("host %s is not ASCII; write its xn-- form", quote(s))
		case !isWord(r) && r != '.':
			return fmt.Errorf("host %s has a %q; it may have letters, digits, '-', '_' and '.'", quote(s), r)
		}
	}
	for label := range strings.SplitSeq(bare, ".") {
		if label == "" || len(label) > maxLabel {
			return fmt.Errorf("host %s has a label of %d bytes; the limits are 1 and %d", quote(s), len(label), maxLabel)
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("host %s has a hyphen at the edge of a label", quote(s))
		}
	}
	return nil
}

func isWord(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_'
}

// serviceName takes any name, not only those with underscores: registries such as
// Consul answer SRV for plain ones.
func serviceName(s string) (string, error) {
	if strings.Contains(s, ":") {
		return "", errors.New("an SRV name has no port; its records bring one")
	}
	return s, checkName(s)
}

func socketPath(s string) (string, error) {
	path, slashes := strings.CutPrefix(s, "//")
	switch {
	case slashes && !strings.HasPrefix(path, "/"):
		return "", errors.New("after unix:// stands a path with its own slash: unix:///path; without slashes it is unix:path or unix:@name")
	case strings.HasPrefix(path, "//"):
		return "", errors.New("the path begins with two slashes")
	case path == "" || path == "@":
		return "", errors.New("the path is missing")
	case strings.HasSuffix(path, "/"):
		return "", errors.New("the path ends in a slash, so it is a directory's")
	case len(path) > maxPath:
		return "", fmt.Errorf("a socket's path has at most %d bytes, this one %d", maxPath, len(path))
	}
	return path, nil
}
