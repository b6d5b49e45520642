package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func TestGoodCertificate(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	cfg := client(t, Files{CA: f.put("ca.pem", newRoot(t, "another").pem()+root.pem())})
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		for _, pair := range []*tls.Certificate{root.issue(), root.intermediate("middle").issue()} {
			s := serve(t, &tls.Config{Certificates: []tls.Certificate{*pair}, MaxVersion: version})
			if cs, greeting := s.mustVisit(cfg, "db.test"); cs.Version != version || greeting != "nobody" {
				t.Errorf("%s: version %x, greeting %q", name, cs.Version, greeting)
			}
		}
	}
}

func TestBadCertificatesAreRefused(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
	hour := time.Hour
	dated := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
	}
	forClients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	orphan := root.intermediate("middle").issue()
	orphan.Certificate = orphan.Certificate[:1]
	for name, c := range map[string]struct {
		pair *tls.Certificate
		want func(error) bool
	}{
		"expired":        {root.issue(dated(-2*hour, -hour)), invalid(x509.Expired)},
		"not yet valid":  {root.issue(dated(hour, 2*hour)), invalid(x509.Expired)},
		"wrong host":     {root.issue(forHosts([]string{"other.test"})), is[x509.HostnameError]},
		"no host":        {root.issue(forHosts(nil)), is[x509.HostnameError]},
		"unknown CA":     {newRoot(t, "stranger").issue(), is[x509.UnknownAuthorityError]},
		"same name":      {newRoot(t, "root").issue(), is[x509.UnknownAuthorityError]},
		"self-signed":    {selfSigned(t), is[x509.UnknownAuthorityError]},
		"for clients":    {root.issue(forClients), invalid(x509.IncompatibleUsage)},
		"middle missing": {orphan, is[x509.UnknownAuthorityError]},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			s := serve(t, &tls.Config{Certificates: []tls.Certificate{*c.pair}, MaxVersion: version})
			_, _, err := s.visit(cfg, "db.test")
			if err == nil || !c.want(err) || !is[*tls.CertificateVerificationError](err) {
				t.Errorf("%s, version %x: %v", name, version, err)
			}
		}
	}
}

func selfSigned(t *testing.T) *tls.Certificate {
	template := caTemplate("alone")
	template.DNSNames = []string{"db.test"}
	a := &authority{t: t, key: newKey(t)}
	a.cert = a.sign(template, template, a.key.Public(), a.key)
	return &tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
}

func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

func invalid(reason x509.InvalidReason) func(error) bool {
	return func(err error) bool {
		var e x509.CertificateInvalidError
		return errors.As(err, &e) && e.Reason == reason
	}
}

func TestIPAddresses(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	s := serveCert(t, root.issue(forHosts([]string{"127.0.0.9"}, net.IPv4(127, 0, 0, 1), net.ParseIP("fd00::1"))))
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
	for _, host := range []string{"127.0.0.1", "fd00::1", "fd00:0::1"} {
		s.mustVisit(cfg, host)
		if cs, _ := s.mustVisit(cfg, host); !cs.DidResume {
			t.Errorf("%s: the session was not resumed", host)
		}
	}
	// A name that reads like an address is no address.
	for _, host := range []string{"127.0.0.2", "127.0.0.9", "fd00::2"} {
		if _, _, err := s.visit(cfg, host); !is[x509.HostnameError](err) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// crypto/tls keeps an address to itself. Without For there is nothing to verify, and no
// certificate is good.
func TestAddressWithoutForIsRefused(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	s := serveCert(t, root.issue(forHosts(nil, net.IPv4(127, 0, 0, 1))))
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())}).Clone()
	cfg.ServerName = "127.0.0.1"
	if _, _, err := s.visitAs(cfg); !errors.Is(err, errNoHost) {
		t.Errorf("the error is %v", err)
	}
	cfg.ServerName = ""
	if _, _, err := s.visitAs(cfg); !errors.Is(err, errNoHost) {
		t.Errorf("without any name the error is %v", err)
	}
}

func TestServerNameOfTheFiles(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	ca := f.put("ca.pem", root.pem())
	s := serveCert(t, root.issue(forHosts([]string{"db.test"}, net.IPv4(127, 0, 0, 1))))
	for host, good := range map[string]bool{"db.test": true, "127.0.0.1": true, "other.test": false, "127.0.0.2": false} {
		_, _, err := s.visitAs(client(t, Files{CA: ca, ServerName: host}))
		if good != (err == nil) || !good && !is[x509.HostnameError](err) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestForTheLastHostCounts(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	s := serveCert(t, root.issue(forHosts([]string{"db.test"}, net.IPv4(127, 0, 0, 1))))
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), ServerName: "db.test"})
	for _, first := range []string{"db.test", "127.0.0.1"} {
		for _, last := range []string{"other.test", "127.0.0.2"} {
			if _, _, err := s.visit(For(cfg, first), last); !is[x509.HostnameError](err) {
				t.Errorf("for %s, then %s: %v", first, last, err)
			}
			s.mustVisit(For(cfg, last), first)
		}
	}
}

func TestForLeavesItsOriginalAlone(t *testing.T) {
	cfg := &tls.Config{}
	if c := For(cfg, "db.test"); cfg.ServerName != "" || c.ServerName != "db.test" || c.VerifyConnection != nil {
		t.Errorf("was %q, is %q", cfg.ServerName, c.ServerName)
	}
}

// The system's authorities do not know ours; and with RootCAs of the user's own, what we
// add to the standard verification still holds.
func TestWithoutCATheStandardVerification(t *testing.T) {
	root := newRoot(t, "root")
	pair := root.issue()
	s := serveCert(t, pair)
	if _, _, err := s.visit(client(t, Files{}), "db.test"); !is[x509.UnknownAuthorityError](err) {
		t.Errorf("the system's authorities: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	other := []string{Pin(newRoot(t, "a").cert), Pin(newRoot(t, "b").cert)}
	for name, pins := range map[string][]string{"pinned": {Pin(pair.Leaf), other[0]}, "not pinned": other} {
		cfg := client(t, Files{Pins: pins})
		cfg.RootCAs = pool
		for range 2 { // the second one resumes
			cs, _, err := s.visit(cfg, "db.test")
			if good := name == "pinned"; good != (err == nil) || !good && !is[*PinError](err) || good && len(cs.VerifiedChains) == 0 {
				t.Errorf("%s: %v", name, err)
			}
		}
		cfg.InsecureSkipVerify = true
		if _, _, err := s.visitAs(cfg); !errors.Is(err, errNoChain) {
			t.Errorf("%s, unverified by hand: %v", name, err)
		}
	}
}

// A session outlives what it was verified against. It must not be resumed into trust
// that is gone.
func TestVerificationHoldsOnResumption(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			f, root := newFolder(t), newRoot(t, "root")
			ca := f.put("ca.pem", root.pem())
			cfg := client(t, Files{CA: ca})
			s := serve(t, &tls.Config{Certificates: []tls.Certificate{*root.issue()}, MaxVersion: version})
			s.mustVisit(cfg, "db.test")
			if cs, _ := s.mustVisit(cfg, "db.test"); !cs.DidResume {
				t.Fatal("the session was not resumed")
			}
			f.put("ca.pem", newRoot(t, "root").pem())
			hurry(cfg)
			resumed := false
			cfg.VerifyConnection = watch(cfg.VerifyConnection, &resumed)
			if _, _, err := s.visit(cfg, "db.test"); !resumed || !is[x509.UnknownAuthorityError](err) {
				t.Errorf("resumed %v: %v", resumed, err)
			}
		})
	}
}

// watch tells whether the handshake that is being verified resumes.
func watch(verify func(tls.ConnectionState) error, resumed *bool) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		*resumed = cs.DidResume
		return verify(cs)
	}
}

func TestCertificateExpiresInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root := newFolder(t), newRoot(t, "root")
		cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
		cs := tls.ConnectionState{ServerName: "db.test", DidResume: true, PeerCertificates: []*x509.Certificate{root.issue().Leaf}}
		time.Sleep(59 * time.Minute)
		if err := cfg.VerifyConnection(cs); err != nil {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if err := cfg.VerifyConnection(cs); !invalid(x509.Expired)(err) {
			t.Errorf("after its end: %v", err)
		}
	})
}

func TestErrorsAreShortAndPrintable(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	long := strings.Repeat("x", 60)
	var names []string
	for range 99 { // from 100 on crypto/x509 counts them
		names = append(names, long+"."+long+".test")
	}
	hostile := "\x1b[31m\nlevel=INFO msg=\u202eevil" + strings.Repeat("é", 400)
	pair := root.issue(forHosts(names), named(hostile))
	s := serveCert(t, pair)
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
	_, _, hostErr := s.visit(cfg, "db.test")
	if !is[x509.HostnameError](hostErr) {
		t.Fatalf("the error is %v", hostErr)
	}
	for _, err := range []error{
		hostErr,
		newRevokedError(pair.Leaf, time.Now(), nil),
		newRevokedError(pair.Leaf, time.Time{}, errors.New(hostile)),
		&PinError{Got: names},
		&PinError{Got: []string{hostile}},
	} {
		text := err.Error()
		if len(text) > 256 || !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\n\u202e") {
			t.Errorf("%d bytes: %q", len(text), text)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"CN=Zoë, O=東京":           "CN=Zoë, O=東京",
		"a\x00b\n\t\x7f":         `a\x00b\n\t\x7f`,
		"\xff\u202e\ufffd":       `\xff\u202e\ufffd`,
		strings.Repeat("a", 253): strings.Repeat("a", 253),
		strings.Repeat("a", 999): strings.Repeat("a", 253) + "…",
		strings.Repeat("é", 999): strings.Repeat("é", 126) + "…",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
