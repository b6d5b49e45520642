package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An authority issues certificates and revocation lists. Its own certificate is a
// root's unless another authority issued it.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	name string
	up   [][]byte // what stands between it and the root, itself first
}

var serials atomic.Int64

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func newRoot(t testing.TB, name string) *authority {
	a := &authority{t: t, key: newKey(t), name: name}
	template := caTemplate(name)
	a.cert = a.sign(template, template, a.key.Public(), a.key)
	return a
}

// intermediate is an authority under this one.
func (a *authority) intermediate(name string) *authority {
	b := &authority{t: a.t, key: newKey(a.t), name: name}
	b.cert = a.sign(caTemplate(name), a.cert, b.key.Public(), a.key)
	b.up = append([][]byte{b.cert.Raw}, a.up...)
	return b
}

func (a *authority) sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for db.test, of a new key, after the changes.
func (a *authority) issue(changes ...func(*x509.Certificate)) *tls.Certificate {
	return a.issueFor(newKey(a.t), changes...)
}

func (a *authority) issueFor(key crypto.Signer, changes ...func(*x509.Certificate)) *tls.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"db.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	cert := a.sign(template, a.cert, key.Public(), a.key)
	return &tls.Certificate{Certificate: append([][]byte{cert.Raw}, a.up...), PrivateKey: key, Leaf: cert}
}

func named(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName = name }
}

func forHosts(names []string, ips ...net.IP) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = names, ips }
}

func (a *authority) pem() string { return pemOf("CERTIFICATE", a.cert.Raw) }

func pemOf(kind string, ders ...[]byte) string {
	var b strings.Builder
	for _, der := range ders {
		pem.Encode(&b, &pem.Block{Type: kind, Bytes: der})
	}
	return b.String()
}

func certPEM(c *tls.Certificate) string { return pemOf("CERTIFICATE", c.Certificate...) }

func keyPEM(t testing.TB, c *tls.Certificate) string {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// A folder holds the files of one test.
type folder struct {
	t    testing.TB
	path string
}

func newFolder(t testing.TB) folder { return folder{t, t.TempDir()} }

// put writes a file as a careful program does, by renaming, and returns its path.
func (f folder) put(name, text string) string {
	return f.putMode(name, text, 0o600)
}

func (f folder) putMode(name, text string, mode os.FileMode) string {
	path := filepath.Join(f.path, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(path+".new", mode); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// putPair writes a certificate and its key, and returns the paths.
func (f folder) putPair(c *tls.Certificate) (cert, key string) {
	return f.put("tls.crt", certPEM(c)), f.put("tls.key", keyPEM(f.t, c))
}

func client(t testing.TB, f Files) *tls.Config {
	t.Helper()
	cfg, err := f.Client()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// storeOf is what keeps a configuration up to date.
func storeOf(cfg *tls.Config) *store { return cfg.ClientSessionCache.(sessions).store }

// hurry makes the next handshake look at the files.
func hurry(cfg *tls.Config) {
	s := storeOf(cfg)
	s.looking.Lock()
	defer s.looking.Unlock()
	s.next = time.Time{}
}

// A server is a TLS server on loopback that greets with the name of the client's
// certificate and hangs up.
type server struct {
	t   testing.TB
	ln  net.Listener
	cfg atomic.Pointer[tls.Config]
}

func serve(t testing.TB, cfg *tls.Config) *server {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, ln: ln}
	s.cfg.Store(cfg)
	done := make(chan struct{})
	go func() { defer close(done); s.loop() }()
	t.Cleanup(func() { ln.Close(); <-done })
	return s
}

func serveCert(t testing.TB, c *tls.Certificate) *server {
	return serve(t, &tls.Config{Certificates: []tls.Certificate{*c}})
}

func (s *server) loop() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.greet(tls.Server(conn, s.cfg.Load()))
	}
}

func (s *server) greet(c *tls.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if c.Handshake() != nil {
		return // the client's error is what counts
	}
	name := "nobody"
	if peers := c.ConnectionState().PeerCertificates; len(peers) > 0 {
		name = peers[0].Subject.CommonName
	}
	io.WriteString(c, name)
}

// visit makes one connection to host and returns how it ended and the greeting.
func (s *server) visit(cfg *tls.Config, host string) (cs tls.ConnectionState, greeting string, err error) {
	s.t.Helper()
	return s.visitAs(For(cfg, host))
}

func (s *server) visitAs(cfg *tls.Config) (cs tls.ConnectionState, greeting string, err error) {
	s.t.Helper()
	raw, err := net.Dial("tcp", s.ln.Addr().String())
	if err != nil {
		s.t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, cfg)
	if err := c.Handshake(); err != nil {
		return cs, "", err
	}
	text, err := io.ReadAll(c) // reads the tickets too
	return c.ConnectionState(), string(text), err
}

// mustVisit is a visit that goes well.
func (s *server) mustVisit(cfg *tls.Config, host string) (tls.ConnectionState, string) {
	s.t.Helper()
	cs, greeting, err := s.visit(cfg, host)
	if err != nil {
		s.t.Fatalf("%s: %v", host, err)
	}
	return cs, greeting
}

func TestClientNamesEveryFileThatIsWrong(t *testing.T) {
	f := newFolder(t)
	root := newRoot(t, "root")
	cert, _ := f.putPair(root.issue())
	key := f.put("other.key", keyPEM(t, root.issue()))
	_, err := Files{
		CA: filepath.Join(f.path, "missing.pem"), Cert: cert, Key: key, CRL: f.put("ca.crl", "no list"), Pins: []string{"sha256/x"},
	}.Client()
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, want := range []string{"missing.pem", cert, key, "ca.crl", `"sha256/x"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cause is out of reach: %v", err)
	}
}

func TestFilesThatAreNotWhatTheyShouldBe(t *testing.T) {
	f := newFolder(t)
	root := newRoot(t, "root")
	cert, key := f.putPair(root.issue())
	cut := root.pem() + root.pem()[:200]
	for name, c := range map[string]struct {
		files Files
		want  string
	}{
		"an empty CA":              {Files{CA: f.put("empty", "")}, "empty: no PEM block of type CERTIFICATE"},
		"a key for a CA":           {Files{CA: key}, "no PEM block of type CERTIFICATE"},
		"a CA cut short":           {Files{CA: f.put("cut", cut)}, "cut: a PEM block is malformed, or cut short"},
		"a CA that is no X.509":    {Files{CA: f.put("odd", pemOf("CERTIFICATE", []byte("odd")))}, "odd: x509:"},
		"a folder":                 {Files{CA: f.path}, "not a regular file"},
		"a device":                 {Files{CA: os.DevNull}, "not a regular file"},
		"a certificate alone":      {Files{Cert: cert}, "tls.crt: a certificate needs its key"},
		"a key alone":              {Files{Key: key}, "tls.key: a certificate needs its key"},
		"a key for a certificate":  {Files{Cert: key, Key: key}, "tls.key, "},
		"a certificate for a key":  {Files{Cert: cert, Key: cert}, "tls.crt, "},
		"a certificate for a list": {Files{CRL: cert}, "tls.crt: no PEM block of type X509 CRL"},
	} {
		if _, err := c.files.Client(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want …%s…", name, err, c.want)
		}
	}
}

func needModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files have no modes here")
	}
}

func TestKeyThatOthersMayReadIsRefused(t *testing.T) {
	needModes(t)
	f := newFolder(t)
	pair := newRoot(t, "root").issue()
	cert, _ := f.putPair(pair)
	for _, mode := range []os.FileMode{0o644, 0o640, 0o604, 0o620, 0o601} {
		key := f.putMode("tls.key", keyPEM(t, pair), mode)
		_, err := Files{Cert: cert, Key: key}.Client()
		if err == nil || !strings.Contains(err.Error(), "tls.key: mode 06") {
			t.Errorf("mode %o: %v", mode, err)
		}
		if _, err := (Files{Cert: cert, Key: key, LaxKeyMode: true}).Client(); err != nil {
			t.Errorf("mode %o, lax: %v", mode, err)
		}
	}
	if _, err := (Files{Cert: cert, Key: f.putMode("tls.key", keyPEM(t, pair), 0o400)}).Client(); err != nil {
		t.Errorf("mode 400: %v", err)
	}
}

func TestSafeKeepsWhatIsStricter(t *testing.T) {
	cfg := Safe(&tls.Config{MinVersion: tls.VersionTLS13, CipherSuites: suites[:1]})
	if cfg.MinVersion != tls.VersionTLS13 || len(cfg.CipherSuites) != 1 {
		t.Errorf("version %x, %d suites", cfg.MinVersion, len(cfg.CipherSuites))
	}
	cfg = Safe(&tls.Config{MinVersion: tls.VersionTLS10})
	if cfg.MinVersion != tls.VersionTLS12 {
		t.Errorf("version %x", cfg.MinVersion)
	}
	for _, weak := range tls.InsecureCipherSuites() {
		for _, id := range cfg.CipherSuites {
			if id == weak.ID {
				t.Errorf("%s is offered", weak.Name)
			}
		}
	}
}

// The server speaks only what is out of date: TLS 1.1, an RSA key exchange, CBC. A
// client that takes anything shows that it does speak.
func TestWeakServersAreRefused(t *testing.T) {
	t.Setenv("GODEBUG", "tlsrsakex=1,tls10server=1,rsa1024min=0")
	f, root := newFolder(t), newRoot(t, "root")
	key, err := rsa.GenerateKey(rand.Reader, 1024) // small: the race detector makes it slow
	if err != nil {
		t.Fatal(err)
	}
	safe := client(t, Files{CA: f.put("ca.pem", root.pem())})
	lax := &tls.Config{RootCAs: safe.RootCAs, MinVersion: tls.VersionTLS10}
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		lax.CipherSuites = append(lax.CipherSuites, suite.ID)
	}
	for name, weak := range map[string]*tls.Config{
		"TLS 1.1": {MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"CBC":     {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		"RSA kex": {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		weak.Certificates = []tls.Certificate{*root.issueFor(key)}
		s := serve(t, weak)
		s.mustVisit(lax, "db.test")
		if _, _, err := s.visit(safe, "db.test"); err == nil {
			t.Errorf("%s was spoken", name)
		}
	}
}
