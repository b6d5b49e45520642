package certs

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// NameError means that a client's certificate is good, and its names are not among those
// that are allowed.
type NameError struct{ Got []string } // at most four of them, fit for a log

func (e *NameError) Error() string {
	if len(e.Got) == 0 {
		return "client certificate: it has no name that could be allowed"
	}
	return "client certificate: no name of it is allowed; it has " + strings.Join(e.Got, ", ")
}

// allowed is a set of names with their kinds, "dns:db.test" say: a DNS name that looks
// like an address is none.
type allowed map[string]bool

func parseAllowed(names []string) (allowed, error) {
	set := allowed{}
	for _, name := range names {
		key := allowedKey(name)
		if key == "" {
			return nil, fmt.Errorf("allowed client %.60q: want a DNS name without *, an IP address, a URI or an email address", name)
		}
		set[key] = true
	}
	return set, nil
}

// allowedKey tells the kind of a name by its looks; "" means that it has none.
func allowedKey(name string) string {
	ip, err := netip.ParseAddr(name)
	switch {
	case ip.Zone() != "": // no certificate has one
		return ""
	case err == nil:
		return "ip:" + ip.Unmap().String()
	case name == "" || strings.ContainsAny(name, " \t\r\n*"):
		return ""
	case strings.Contains(name, ":"):
		u, err := url.Parse(name)
		if err != nil || u.Scheme == "" {
			return ""
		}
		return "uri:" + u.String()
	case strings.Contains(name, "@"):
		return emailKey(name)
	}
	return "dns:" + strings.ToLower(name)
}

// emailKey keeps the case of the mailbox, which is its host's affair (RFC 5321 §2.4).
func emailKey(address string) string {
	at := strings.LastIndexByte(address, '@')
	return "email:" + address[:at+1] + strings.ToLower(address[at+1:])
}

// check wants one name of the certificate to be allowed. The common name is none: an
// authority that limits names does not limit it.
func (a allowed) check(c *x509.Certificate) error {
	missed := &NameError{}
	for _, key := range keysOf(c) {
		if a[key] {
			return nil
		}
		if len(missed.Got) < 4 {
			missed.Got = append(missed.Got, clip(key))
		}
	}
	return missed
}

func keysOf(c *x509.Certificate) (keys []string) {
	for _, name := range c.DNSNames {
		keys = append(keys, "dns:"+strings.ToLower(name))
	}
	for _, u := range c.URIs {
		keys = append(keys, "uri:"+u.String())
	}
	for _, address := range c.EmailAddresses {
		keys = append(keys, emailKey(address))
	}
	for _, b := range c.IPAddresses {
		if ip, ok := netip.AddrFromSlice(b); ok {
			keys = append(keys, "ip:"+ip.Unmap().String())
		}
	}
	return keys
}
