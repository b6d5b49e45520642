package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

func TestGoodServers(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	cfg := client(t, Files{CA: f.put("ca.pem", newRoot(t, "another").pem()+root.pem())})
	for _, version := range versions {
		for _, pair := range []*tls.Certificate{root.issue(), root.below("middle").issue()} {
			server := serving(pair)
			server.MaxVersion = version
			mustVisit(t, server, cfg)
			cs, greeting, err := visit(t, server, For(cfg, "db.test"))
			if err != nil || cs.Version != version || !cs.DidResume || greeting != "nobody" {
				t.Errorf("version %x, resumed %v, greeting %q, %v", cs.Version, cs.DidResume, greeting, err)
			}
		}
	}
}

func TestBadServersAreRefused(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
	orphan := root.below("middle").issue()
	orphan.Certificate = orphan.Certificate[:1]
	forClients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	for name, c := range map[string]struct {
		pair *tls.Certificate
		want func(error) bool
	}{
		"expired":        {root.issue(valid(-2e12, -1e12)), invalid(x509.Expired)},
		"not yet valid":  {root.issue(valid(1e12, 2e12)), invalid(x509.Expired)},
		"wrong host":     {root.issue(hosts([]string{"other.test"})), is[x509.HostnameError]},
		"no host":        {root.issue(hosts(nil)), is[x509.HostnameError]},
		"unknown CA":     {newRoot(t, "stranger").issue(), is[x509.UnknownAuthorityError]},
		"same name":      {newRoot(t, "root").issue(), is[x509.UnknownAuthorityError]},
		"self-signed":    {selfSigned(t), is[x509.UnknownAuthorityError]},
		"for clients":    {root.issue(forClients), invalid(x509.IncompatibleUsage)},
		"middle missing": {orphan, is[x509.UnknownAuthorityError]},
	} {
		for _, version := range versions {
			server := serving(c.pair)
			server.MaxVersion = version
			err := refusal(t, server, cfg)
			if err == nil || !c.want(err) || !is[*tls.CertificateVerificationError](err) {
				t.Errorf("%s, version %x: %v", name, version, err)
			}
		}
	}
}

func selfSigned(t *testing.T) *tls.Certificate {
	a := &authority{t: t, key: newKey(t)}
	template := templateCA("alone")
	template.DNSNames = []string{"db.test"}
	a.cert = a.sign(template, template, a.key.Public(), a.key)
	return &tls.Certificate{Certificate: [][]byte{a.cert.Raw}, PrivateKey: a.key}
}

func invalid(reason x509.InvalidReason) func(error) bool {
	return func(err error) bool {
		var e x509.CertificateInvalidError
		return errors.As(err, &e) && e.Reason == reason
	}
}

// A client that takes anything shows that these servers do speak.
func TestWeakServersAreRefused(t *testing.T) {
	t.Setenv("GODEBUG", "tlsrsakex=1,tls10server=1,rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024) // small, because the race detector makes it slow
	if err != nil {
		t.Fatal(err)
	}
	f, root := newFolder(t), newRoot(t, "root")
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
	lax := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		lax.CipherSuites = append(lax.CipherSuites, suite.ID)
	}
	for name, weak := range map[string]*tls.Config{
		"TLS 1.1":      {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":          {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		"RSA exchange": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		weak.Certificates = []tls.Certificate{*root.issueFor(key)}
		mustVisit(t, weak, lax)
		if refusal(t, weak, cfg) == nil {
			t.Errorf("%s was spoken", name)
		}
	}
}

func TestSafeKeepsWhatIsStricter(t *testing.T) {
	cfg := Safe(&tls.Config{MinVersion: tls.VersionTLS13, CipherSuites: suites[:1]})
	if cfg.MinVersion != tls.VersionTLS13 || len(cfg.CipherSuites) != 1 {
		t.Errorf("version %x, %d suites", cfg.MinVersion, len(cfg.CipherSuites))
	}
	if cfg := Safe(&tls.Config{MinVersion: tls.VersionTLS10}); cfg.MinVersion != tls.VersionTLS12 {
		t.Errorf("version %x", cfg.MinVersion)
	}
}

func TestIPAddresses(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	server := serving(root.issue(hosts([]string{"127.0.0.9", "db.test"}, "127.0.0.1", "fd00::1")))
	ca := f.put("ca.pem", root.pem())
	cfg := client(t, Files{CA: ca})
	for _, host := range []string{"127.0.0.1", "fd00::1", "fd00:0::1", "db.test"} {
		for _, resumed := range []bool{false, true} {
			if cs, _, err := visit(t, server, For(cfg, host)); err != nil || cs.DidResume != resumed {
				t.Errorf("%s: resumed %v, %v", host, cs.DidResume, err)
			}
		}
		if _, _, err := visit(t, server, client(t, Files{CA: ca, ServerName: host})); err != nil {
			t.Errorf("%s as the files' own: %v", host, err)
		}
	}
	for _, host := range []string{"127.0.0.2", "fd00::2", "127.0.0.9", "other.test"} { // a name that looks like an address is none
		if _, _, err := visit(t, server, For(cfg, host)); !is[x509.HostnameError](err) {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// crypto/tls keeps an address to itself. Whoever only sets ServerName to one is
// refused, rather than sent to anybody.
func TestAddressWithoutForIsRefused(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	server := serving(root.issue(hosts(nil, "127.0.0.1")))
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem())})
	for _, host := range []string{"127.0.0.1", ""} {
		cfg := cfg.Clone()
		cfg.ServerName = host
		if _, _, err := visit(t, server, cfg); err == nil || !strings.Contains(err.Error(), "no name") {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestLastHostCounts(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	server := serving(root.issue(hosts([]string{"db.test"}, "127.0.0.1")))
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), ServerName: "127.0.0.1"})
	for _, good := range []string{"db.test", "127.0.0.1"} {
		for _, bad := range []string{"other.test", "127.0.0.2"} {
			if _, _, err := visit(t, server, For(For(cfg, good), bad)); !is[x509.HostnameError](err) {
				t.Errorf("%s, then %s: %v", good, bad, err)
			}
			if _, _, err := visit(t, server, For(For(cfg, bad), good)); err != nil {
				t.Errorf("%s, then %s: %v", bad, good, err)
			}
		}
	}
	if plain := (&tls.Config{}); For(plain, "x").VerifyConnection != nil || plain.ServerName != "" {
		t.Error("a configuration of another kind was changed")
	}
}

// Without a CA the verification is crypto/tls's; pins come on top of it.
func TestWithoutCA(t *testing.T) {
	root := newRoot(t, "root")
	pair := root.issue()
	server := serving(pair)
	if err := refusal(t, server, client(t, Files{})); !is[x509.UnknownAuthorityError](err) {
		t.Errorf("with the system's authorities: %v", err)
	}
	spare := Pin(newRoot(t, "spare").cert)
	for want, pins := range map[bool][]string{true: {Pin(pair.Leaf), spare}, false: {Pin(newRoot(t, "x").cert), spare}} {
		cfg := client(t, Files{Pins: pins})
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AddCert(root.cert)
		for range 2 {
			if err := refusal(t, server, cfg); want != (err == nil) || !want && !is[*PinError](err) {
				t.Errorf("pinned %v: %v", want, err)
			}
		}
		cfg.InsecureSkipVerify = true
		cfg.ClientSessionCache = nil
		if err := refusal(t, server, cfg); !is[*tls.CertificateVerificationError](err) {
			t.Errorf("unverified by hand: %v", err)
		}
	}
}

// VerifyPeerCertificate, where pins are often checked, does not run on resumption: a
// session from before the pins would get past them.
func TestPinHoldsOnResumption(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	ca := f.put("ca.pem", root.pem())
	for _, version := range versions {
		pinned, other := root.issue(), root.issue()
		before := client(t, Files{CA: ca})
		server := serving(other)
		server.MaxVersion = version
		mustVisit(t, server, before)

		cfg := client(t, Files{CA: ca, Pins: []string{Pin(pinned.Leaf), Pin(newRoot(t, "spare").cert)}})
		cfg.ClientSessionCache = before.ClientSessionCache
		resumed := false
		verify := cfg.VerifyConnection
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			resumed = cs.DidResume
			return verify(cs)
		}
		if err := refusal(t, server, cfg); !resumed || !is[*PinError](err) {
			t.Errorf("version %x, resumed %v: %v", version, resumed, err)
		}

		server = serving(pinned)
		server.MaxVersion = version
		mustVisit(t, server, cfg)
		if resumed, _ := mustVisit(t, server, cfg); !resumed {
			t.Errorf("version %x: a session with the pinned key is not resumed", version)
		}
	}
}

func TestPinsAcrossTheChain(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	middle, stray, spare := root.below("middle"), newRoot(t, "stray"), newRoot(t, "spare")
	pair := middle.issue()
	pair.Certificate = append(pair.Certificate, stray.cert.Raw) // anybody can send that along
	ca := f.put("ca.pem", root.pem())
	with := func(c *x509.Certificate) error {
		return refusal(t, serving(pair), client(t, Files{CA: ca, Pins: []string{Pin(spare.cert), Pin(c)}}))
	}
	for _, c := range []*x509.Certificate{pair.Leaf, middle.cert, root.cert, middle.issueFor(pair.PrivateKey.(crypto.Signer)).Leaf} {
		if err := with(c); err != nil {
			t.Errorf("the pin of %s: %v", c.Subject, err)
		}
	}
	var missed *PinError
	want := []string{Pin(pair.Leaf), Pin(middle.cert), Pin(root.cert)}
	if err := with(stray.cert); !errors.As(err, &missed) || !slices.Equal(missed.Got, want) {
		t.Errorf("the pin of a stray certificate: %v", err)
	}
	if err := refusal(t, serving(stray.issue()), client(t, Files{CA: ca, Pins: []string{Pin(stray.cert), Pin(spare.cert)}})); !is[x509.UnknownAuthorityError](err) {
		t.Errorf("a pin does not make an authority: %v", err)
	}
}

func TestPinsThatAreRefused(t *testing.T) {
	good, spare := Pin(newRoot(t, "a").cert), Pin(newRoot(t, "b").cert)
	hash := strings.TrimPrefix(good, pinPrefix)
	for name, pins := range map[string][]string{
		"one":            {good},
		"the same twice": {good, good},
		"an empty one":   {good, ""},
		"no prefix":      {good, hash},
		"another hash":   {good, "sha1/" + hash},
		"too short":      {good, pinPrefix + hash[:40]},
		"no base64":      {good, pinPrefix + strings.Repeat("!", 44)},
		"hostile":        {good, strings.Repeat("\x1b", 1000)},
	} {
		_, err := Files{Pins: pins}.Client()
		if err == nil || len(err.Error()) > 400 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %v", name, err)
		}
	}
	client(t, Files{Pins: []string{good, spare}})
}

func TestErrorsAreShortAndPrintable(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	var names []string
	for range 99 { // from 100 on crypto/x509 only counts them
		names = append(names, strings.Repeat("x", 60)+"."+strings.Repeat("y", 60)+".test")
	}
	hostile := "\x1b[31m\nlevel=INFO msg=\u202eevil" + strings.Repeat("é", 400)
	server := serving(root.issue(hosts(names), called(hostile)))
	ca := f.put("ca.pem", root.pem())
	hostErr := refusal(t, server, client(t, Files{CA: ca}))
	revokedErr := checkRevoked([]*x509.Certificate{server.Certificates[0].Leaf, root.cert}, nil, root.cert.NotBefore)
	if !is[x509.HostnameError](hostErr) || !is[*RevokedError](revokedErr) {
		t.Fatalf("%v; %v", hostErr, revokedErr)
	}
	for _, err := range []error{hostErr, revokedErr} {
		if text := err.Error(); len(text) > 400 || !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\n\u202e") {
			t.Errorf("%d bytes: %q", len(text), text)
		}
	}
}
