package certs

import (
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestAllowedNames(t *testing.T) {
	u, err := url.Parse("spiffe://test/db")
	if err != nil {
		t.Fatal(err)
	}
	all := &x509.Certificate{
		DNSNames: []string{"a.test", "B.test", "10.0.0.9", "*.wild.test", "x@y.test"}, URIs: []*url.URL{u},
		EmailAddresses: []string{"Me@Mail.test"}, IPAddresses: []net.IP{net.ParseIP("10.0.0.1"), net.ParseIP("fd00::1")},
	}
	all.Subject.CommonName = "common.test"
	for name, good := range map[string]bool{
		"a.test": true, "A.TEST": true, "b.test": true, "10.0.0.1": true, "::ffff:10.0.0.1": true, "fd00:0::1": true,
		"spiffe://test/db": true, "Me@mail.test": true,
		"common.test": false, "test": false, "x.a.test": false, "a.test.": false, "10.0.0.9": false, "w.wild.test": false,
		"x@y.test": false, "me@mail.test": false, "spiffe://test/db/x": false, "spiffe://test/DB": false, "fd00::2": false,
	} {
		set, err := parseAllowed([]string{"first.test", name})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err = set.check(all)
		var missed *NameError
		if good != (err == nil) || !good && (!errors.As(err, &missed) || !slices.Equal(missed.Got, []string{"dns:a.test", "dns:b.test", "dns:10.0.0.9", "dns:*.wild.test"})) {
			t.Errorf("%s: %v", name, err)
		}
		if set.check(&x509.Certificate{Subject: all.Subject}) == nil {
			t.Errorf("%s: a certificate without names was accepted", name)
		}
	}
	for _, name := range []string{"", " ", "*.test", "a b", "fe80::1%eth0", ":", "://x", "1:2", strings.Repeat("*", 999)} {
		if _, err := parseAllowed([]string{name}); err == nil || len(err.Error()) > 200 {
			t.Errorf("%q: %v", name, err)
		}
	}
}
