package certs

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func server(t testing.TB, f ServerFiles) *Server {
	t.Helper()
	s, err := f.Server("public")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// caller trusts this authority, and sends a certificate whoever the server asks for.
func (a *authority) caller(cert *tls.Certificate) *tls.Config {
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	cfg.RootCAs.AddCert(a.cert)
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return cfg
}

// speaking returns a copy that speaks one version, and shares the sessions.
func speaking(cfg *tls.Config, version uint16) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion, cfg.MaxVersion = version, version
	return cfg
}

// texts are files with the pair as text, and this authority for clients.
func (a *authority) texts(changes ...func(*ServerFiles)) ServerFiles {
	a.t.Helper()
	pair := a.issue()
	f := ServerFiles{Cert: certPEM(pair), Key: keyPEM(a.t, pair), ClientCA: a.pem()}
	for _, change := range changes {
		change(&f)
	}
	return f
}

func admitting(names ...string) func(*ServerFiles) {
	return func(f *ServerFiles) { f.ClientSANs = names }
}

func TestServerFilesThatCannotServe(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	cert, key := f.putPair(root.issue())
	missing := filepath.Join(f.path, "missing.pem")
	other := keyPEM(t, root.issue())
	complete := serving(root.issue())
	asking := &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}
	deciding := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }}
	for name, c := range map[string]struct {
		files ServerFiles
		want  []string
	}{
		"nothing":              {ServerFiles{}, []string{"certificate", "key"}},
		"certificate alone":    {ServerFiles{Cert: cert}, []string{cert, "certificate needs its key"}},
		"key alone":            {ServerFiles{Key: key}, []string{key, "key its certificate"}},
		"certificate as text":  {ServerFiles{Cert: root.pem()}, []string{"PEM text", "certificate needs its key"}},
		"both missing":         {ServerFiles{Cert: missing + "1", Key: missing + "2"}, []string{missing + "1", missing + "2"}},
		"another's key":        {ServerFiles{Cert: cert, Key: other}, []string{cert, "PEM text", "private key does not match"}},
		"no key in it":         {ServerFiles{Cert: cert, Key: cert}, []string{cert}},
		"a chain cut short":    {ServerFiles{Cert: certPEM(root.issue()) + root.pem()[:99], Key: key}, []string{"cut short"}},
		"no authority":         {ServerFiles{Cert: cert, Key: key, ClientCA: key}, []string{key, "no certificate"}},
		"missing list":         {ServerFiles{Cert: cert, Key: key, ClientCA: root.pem(), CRL: missing}, []string{missing}},
		"names, no authority":  {ServerFiles{Cert: cert, Key: key, ClientSANs: []string{"a"}}, []string{"ClientCA"}},
		"a list, no authority": {ServerFiles{Cert: cert, Key: key, CRL: root.list(nil)}, []string{"ClientCA"}},
		"a pattern":            {ServerFiles{Cert: cert, Key: key, ClientCA: root.pem(), ClientSANs: []string{"*.test"}}, []string{`"*.test"`}},
		"TLS 1.0":              {ServerFiles{Cert: cert, Key: key, MinVersion: tls.VersionTLS10}, []string{"TLS 1.0"}},
		"no version left":      {ServerFiles{Cert: cert, Key: key, MaxVersion: tls.VersionTLS11}, []string{"TLS 1.1", "TLS 1.2"}},
		"two pairs":            {ServerFiles{Cert: cert, Key: key, Config: complete}, []string{"Config and in Cert"}},
		"two authorities":      {ServerFiles{Cert: cert, Key: key, ClientCA: root.pem(), Config: asking}, []string{"Config and by ClientCA"}},
		"somebody decides":     {ServerFiles{Cert: cert, Key: key, Config: deciding}, []string{"GetConfigForClient"}},
		"decides of clients":   {ServerFiles{ClientCA: root.pem(), Config: deciding}, []string{"GetConfigForClient"}},
	} {
		_, err := c.files.Server("x")
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", name, err, want)
			}
		}
		if err != nil && strings.Contains(err.Error(), "-----") {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
}

// Fault 61, from the server's side.
func TestServerVersions(t *testing.T) {
	t.Setenv("GODEBUG", "tlsrsakex=1,tls3des=1,rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024) // small, because the race detector makes it slow
	if err != nil {
		t.Fatal(err)
	}
	root := newRoot(t, "root")
	const v10, v11, v12, v13 = tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13
	modern := []uint16{v12, v13}
	for name, c := range map[string]struct {
		min, max uint16
		config   *tls.Config
		want     []uint16
	}{
		"default":               {0, 0, nil, modern},
		"1.3":                   {v13, 0, nil, modern[1:]},
		"1.2 alone":             {v12, v12, nil, modern[:1]},
		"1.1 on request":        {v11, 0, nil, []uint16{v11, v12, v13}},
		"1.1 alone":             {v11, v11, nil, []uint16{v11}},
		"Config cannot go down": {0, 0, &tls.Config{MinVersion: v10}, modern},
		"Config can go up":      {0, 0, &tls.Config{MinVersion: v13}, modern[1:]},
		"Config has a maximum":  {0, 0, &tls.Config{MaxVersion: v12}, modern[:1]},
	} {
		for _, pair := range []*tls.Certificate{root.issue(), root.issueFor(key)} {
			srv := server(t, ServerFiles{Cert: certPEM(pair), Key: keyPEM(t, pair), MinVersion: c.min, MaxVersion: c.max, Config: c.config})
			for _, version := range []uint16{v10, v11, v12, v13} {
				err := refusal(t, srv.Config(), speaking(root.caller(nil), version))
				if want := slices.Contains(c.want, version); want != (err == nil) {
					t.Errorf("%s: %s: %v", name, tls.VersionName(version), err)
				}
			}
			for _, suite := range []uint16{
				tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA,
				tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
			} {
				weak := speaking(root.caller(nil), v12)
				weak.CipherSuites = []uint16{suite}
				if refusal(t, srv.Config(), weak) == nil {
					t.Errorf("%s: %s was spoken", name, tls.CipherSuiteName(suite))
				}
			}
		}
	}
}

// Every kind of key in every usual wrapping, from files or as text, and the chain in the
// order of the file.
func TestServerKeys(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	f, root := newFolder(t), newRoot(t, "root")
	middle := root.below("upper").below("lower")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, _ := ed25519.GenerateKey(nil)
	curve := newKey(t)
	sec1, _ := x509.MarshalECPrivateKey(curve)
	pkcs8 := func(key crypto.Signer) string { return keyPEM(t, &tls.Certificate{PrivateKey: key}) }
	for name, c := range map[string]struct {
		key  crypto.Signer
		text string
	}{
		"RSA":            {small, pkcs8(small)},
		"RSA, PKCS #1":   {small, pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small))},
		"ECDSA":          {curve, pkcs8(curve)},
		"ECDSA, OpenSSL": {curve, pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + pemOf("EC PRIVATE KEY", sec1)},
		"Ed25519":        {edwards, pkcs8(edwards)},
	} {
		pair := middle.issueFor(c.key)
		chain := certPEM(pair)
		for _, files := range []ServerFiles{
			{Cert: chain, Key: c.text},
			{Cert: f.put("tls.crt", chain), Key: f.put("tls.key", c.text)},
			{Cert: f.put("tls.crt", "my chain\n"+chain), Key: c.text},
		} {
			srv := server(t, files)
			for _, version := range versions {
				cs, _, err := visit(t, srv.Config(), For(speaking(root.caller(nil), version), "db.test"))
				if err != nil || len(cs.PeerCertificates) != 3 {
					t.Errorf("%s, version %x: %d certificates, %v", name, version, len(cs.PeerCertificates), err)
					continue
				}
				for i, sent := range cs.PeerCertificates {
					if !slices.Equal(sent.Raw, pair.Certificate[i]) {
						t.Errorf("%s: certificate %d is that of %s", name, i, sent.Subject)
					}
				}
			}
		}
	}
}

// Fault 62: an authority for clients is enough to refuse all that it has not signed for
// this purpose, and for now.
func TestClientsAreVerified(t *testing.T) {
	root := newRoot(t, "root")
	lower, orphan := root.below("lower").issue(called("lower")), root.below("lost").issue()
	orphan.Certificate = orphan.Certificate[:1]
	usage := func(usages ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = usages }
	}
	srv := server(t, root.texts())
	for name, c := range map[string]struct {
		cert *tls.Certificate
		want func(error) bool // nil: good
	}{
		"good":           {root.issue(called("good")), nil},
		"good, a chain":  {lower, nil},
		"for clients":    {root.issue(called("for clients"), usage(x509.ExtKeyUsageClientAuth)), nil},
		"none":           {nil, func(err error) bool { return strings.Contains(err.Error(), "didn't provide a certificate") }},
		"wrong CA":       {newRoot(t, "stranger").issue(), is[x509.UnknownAuthorityError]},
		"same name":      {newRoot(t, "root").issue(), is[x509.UnknownAuthorityError]},
		"self-signed":    {selfSigned(t), is[x509.UnknownAuthorityError]},
		"middle missing": {orphan, is[x509.UnknownAuthorityError]},
		"expired":        {root.issue(valid(-2e12, -1e12)), invalid(x509.Expired)},
		"not yet valid":  {root.issue(valid(1e12, 2e12)), invalid(x509.Expired)},
		"for servers":    {root.issue(usage(x509.ExtKeyUsageServerAuth)), invalid(x509.IncompatibleUsage)},
	} {
		for _, version := range versions {
			var refused error
			_, greeting, err := visitAnd(t, srv.Config(), For(speaking(root.caller(c.cert), version), "db.test"), &refused)
			switch {
			case c.want == nil && (err != nil || refused != nil || greeting != c.cert.Leaf.Subject.CommonName):
				t.Errorf("%s, version %x: %q, %v, %v", name, version, greeting, err, refused)
			case c.want != nil && (err == nil || refused == nil || !c.want(refused) || !c.want(Short(refused))):
				t.Errorf("%s, version %x: %v, for the client %v", name, version, refused, err)
			}
		}
	}
}

func TestServerWithoutClientCAAsksNobody(t *testing.T) {
	root := newRoot(t, "root")
	srv := server(t, root.texts(func(f *ServerFiles) { f.ClientCA = "" }))
	asked := root.caller(root.issue())
	asked.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return nil, errors.New("it was asked")
	}
	if _, greeting := mustVisit(t, srv.Config(), asked); greeting != "nobody" {
		t.Error(greeting)
	}
}

func TestRevokedClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root := newFolder(t), newRoot(t, "root")
		good, bad := root.issue(called("good")), root.issue(called("bad"))
		srv := server(t, root.texts(func(s *ServerFiles) { s.CRL = f.put("ca.crl", root.list(nil)) }))
		for _, version := range versions {
			f.put("ca.crl", root.list(nil))
			time.Sleep(lookAgain)
			client, other := speaking(root.caller(bad), version), speaking(root.caller(good), version)
			mustVisit(t, srv.Config(), client)
			mustVisit(t, srv.Config(), other)
			f.put("ca.crl", root.list(leaf(bad)))
			time.Sleep(lookAgain)
			var refused error // it has a session from before
			if _, _, err := visitAnd(t, srv.Config(), For(client, "db.test"), &refused); err == nil || !is[*RevokedError](refused) {
				t.Errorf("version %x: %v, %v", version, err, refused)
			}
			if resumed, _ := mustVisit(t, srv.Config(), other); !resumed {
				t.Errorf("version %x: a list ends the sessions of all", version)
			}
		}
	})
}

// Fault 66.
func TestServerKeepsTheOldPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root, said := newFolder(t), newRoot(t, "root"), complaints{}
		cert, key := f.putPair(root.issue(called("first")))
		srv := server(t, ServerFiles{Cert: cert, Key: key, OnError: said.add})
		outer := srv.Config()
		shows := func(want string) {
			t.Helper()
			time.Sleep(lookAgain)
			for range 2 { // the second visit is a resumed one, to the server of the first
				cs, _, err := visit(t, outer, For(root.caller(nil), "db.test"))
				if err != nil || cs.PeerCertificates[0].Subject.CommonName != want {
					t.Fatalf("%v, want the %s", err, want)
				}
			}
		}
		shows("first")
		second := root.issue(called("second"))
		f.put("tls.crt", certPEM(second)) // half of a renewal
		shows("first")
		said.want(t, "private key does not match")
		if err := srv.Reload(); err == nil || !strings.Contains(err.Error(), "does not match") {
			t.Errorf("half a renewal was reloaded: %v", err)
		}
		f.put("tls.key", keyPEM(t, second))
		shows("second")
		for what, spoil := range map[string]func() error{
			"for its group": func() error { return os.Chmod(key, 0o640) },
			"for anybody":   func() error { return os.Chmod(key, 0o644) },
			"cut short":     func() error { return os.Truncate(key, 60) },
			"gone":          func() error { return os.Remove(key) },
		} {
			if !modesMatter && strings.HasPrefix(what, "for") {
				continue
			}
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			if err := srv.Reload(); err == nil || !strings.Contains(err.Error(), "tls.key") {
				t.Errorf("a key that is %s was reloaded: %v", what, err)
			}
			shows("second")
			said.want(t, "") // who asked for it has been told
			f.put("tls.key", keyPEM(t, second))
			shows("second")
		}
		f.putPair(root.issue(called("third")))
		if err := srv.Reload(); err != nil {
			t.Error(err)
		}
		if cs, _, err := visit(t, outer, For(root.caller(nil), "db.test")); err != nil || cs.PeerCertificates[0].Subject.CommonName != "third" {
			t.Errorf("after Reload, within the second: %v", err)
		}
		said.want(t, "")
	})
}

func TestServerKeyModes(t *testing.T) {
	if !modesMatter {
		t.Skip("files have no modes here")
	}
	f, pair := newFolder(t), newRoot(t, "root").issue()
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o644: false, 0o640: false, 0o604: false} {
		files := ServerFiles{Cert: certPEM(pair), Key: f.putMode("tls.key", keyPEM(t, pair), mode)}
		if _, err := files.Server("x"); good != (err == nil) || !good && !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %04o: %v", mode, err)
		}
		files.LaxKeyMode = true
		server(t, files)
	}
}

// A handshake has one pair and one authority, whatever changes meanwhile: half of each
// would fail.
func TestServerHandshakesDuringReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root := newFolder(t), newRoot(t, "root")
		cert, key := f.putPair(root.issue())
		ca := f.put("ca.pem", root.pem())
		srv := server(t, ServerFiles{Cert: cert, Key: key, ClientCA: ca, ClientSANs: []string{"db.test"}})
		client := root.caller(root.issue())
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for range 10 {
					time.Sleep(lookAgain/2 + time.Duration(i))
					if err := refusal(t, srv.Config(), client); err != nil {
						t.Errorf("a handshake: %v", err)
					}
				}
			})
		}
		for range 10 {
			f.put("ca.pem", root.pem()+newRoot(t, "another").pem())
			f.putPair(root.issue())
			srv.Reload()
			srv.SetTickets(RotateTickets(nil))
			time.Sleep(lookAgain / 3)
		}
		wg.Wait()
	})
}

// What stands in Config goes on to be used, next to what the files add.
func TestServerConfig(t *testing.T) {
	root := newRoot(t, "root")
	asked := 0
	base := &tls.Config{NextProtos: []string{"echo"}, VerifyConnection: func(tls.ConnectionState) error { asked++; return nil }}
	srv := server(t, root.texts(func(f *ServerFiles) { f.Config = base }))
	client := root.caller(root.issue())
	client.NextProtos = []string{"echo"}
	if cs, _, err := visit(t, srv.Config(), For(client, "db.test")); err != nil || cs.NegotiatedProtocol != "echo" || asked != 1 {
		t.Errorf("%q, asked %d times, %v", cs.NegotiatedProtocol, asked, err)
	}
	if base.MinVersion != 0 || base.Certificates != nil {
		t.Error("the caller's configuration was changed")
	}

	pair := root.issue()
	given := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair, nil }}
	mustVisit(t, server(t, ServerFiles{Config: given}).Config(), root.caller(nil))

	choosing := &tls.Config{Certificates: []tls.Certificate{*root.issue(called("fallback"))}}
	choosing.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName == "db.test" {
			return serving(root.issue(called("chosen"))), nil
		}
		return nil, nil
	}
	chooser := server(t, ServerFiles{Config: choosing})
	for host, want := range map[string]string{"db.test": "chosen", "": "fallback"} {
		client := &tls.Config{ServerName: host, InsecureSkipVerify: true}
		if cs, _, err := visit(t, chooser.Config(), client); err != nil || cs.PeerCertificates[0].Subject.CommonName != want {
			t.Errorf("%q: %v, want the %s", host, err, want)
		}
	}
}

// Fault 67: a client chooses what its certificate says, and our log is not its place.
func TestHostileClientsAreShortInErrors(t *testing.T) {
	root := newRoot(t, "root")
	many := func(c *x509.Certificate) {
		for range 3000 {
			c.DNSNames = append(c.DNSNames, strings.Repeat("x", 60)+".test")
		}
		c.IPAddresses = []net.IP{net.IPv6loopback}
	}
	hostile := "\x1b[31m\nlevel=INFO msg=\u202eevil" + strings.Repeat("é", 9000)
	stranger := newRoot(t, hostile)
	unknown := stranger.issue(called(hostile))
	unknown.Certificate = append(unknown.Certificate, stranger.cert.Raw)
	srv := server(t, root.texts(admitting("good.test")))
	for name, cert := range map[string]*tls.Certificate{"many names": root.issue(many), "unknown authority": unknown} {
		for _, version := range versions {
			var refused error
			visitAnd(t, srv.Config(), For(speaking(root.caller(cert), version), "db.test"), &refused)
			err := Short(refused)
			if err == nil || !errors.Is(err, refused) {
				t.Fatalf("%s: %v", name, err)
			}
			if text := err.Error(); len(text) > 400 || !utf8.ValidString(text) || strings.ContainsAny(text, "\x1b\n\u202e") {
				t.Errorf("%s: %d bytes: %q", name, len(text), text)
			}
		}
	}
	if Short(nil) != nil {
		t.Error("no error has become one")
	}
}
