package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority issues certificates and revocation lists.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	up   [][]byte // what stands between it and the root, itself first; none for a root
}

var serials atomic.Int64

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func templateCA(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(72 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

func newRoot(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t)}
	template := templateCA(name)
	a.cert = a.sign(template, template, a.key.Public(), a.key)
	return a
}

// below is an authority under this one.
func (a *authority) below(name string) *authority {
	b := &authority{t: a.t, key: newKey(a.t)}
	b.cert = a.sign(templateCA(name), a.cert, b.key.Public(), a.key)
	b.up = append([][]byte{b.cert.Raw}, a.up...)
	return b
}

func (a *authority) sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	a.t.Helper()
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

// issue makes a certificate for db.test with a new key, and with these changes.
func (a *authority) issue(changes ...func(*x509.Certificate)) *tls.Certificate {
	return a.issueFor(newKey(a.t), changes...)
}

func (a *authority) issueFor(key crypto.Signer, changes ...func(*x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials.Add(1)), Subject: pkix.Name{CommonName: "server"}, DNSNames: []string{"db.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, change := range changes {
		change(template)
	}
	cert := a.sign(template, a.cert, key.Public(), a.key)
	return &tls.Certificate{Certificate: append([][]byte{cert.Raw}, a.up...), PrivateKey: key, Leaf: cert}
}

func called(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName = name }
}

func valid(from, to time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(from), time.Now().Add(to) }
}

func hosts(names []string, ips ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.DNSNames = names
		for _, ip := range ips {
			c.IPAddresses = append(c.IPAddresses, net.ParseIP(ip))
		}
	}
}

// list is a revocation list of this authority, good for an hour, with these changes.
func (a *authority) list(revoked []*x509.Certificate, changes ...func(*x509.RevocationList)) string {
	a.t.Helper()
	template := &x509.RevocationList{
		Number: big.NewInt(serials.Add(1)), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
	}
	for _, c := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	for _, change := range changes {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pemOf("X509 CRL", der)
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
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// folder holds the files of one test.
type folder struct {
	testing.TB
	path string
}

func newFolder(t testing.TB) folder { return folder{t, t.TempDir()} }

// put writes a file as a careful program does, by renaming, and returns its path.
func (f folder) put(name, text string) string { return f.putMode(name, text, 0o600) }

func (f folder) putMode(name, text string, mode os.FileMode) string {
	f.Helper()
	path := filepath.Join(f.path, name)
	err := errors.Join(os.WriteFile(path+"~", []byte(text), 0o600), os.Chmod(path+"~", mode), os.Rename(path+"~", path))
	if err != nil {
		f.Fatal(err)
	}
	return path
}

func (f folder) putPair(c *tls.Certificate) (cert, key string) {
	f.Helper()
	return f.put("tls.crt", certPEM(c)), f.put("tls.key", keyPEM(f, c))
}

func client(t testing.TB, f Files) *tls.Config {
	t.Helper()
	cfg, err := f.Client()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// serving is a server with one certificate, and no taste of its own.
func serving(c *tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{*c}}
}

// visit makes one connection in memory and returns how it ended. The server greets
// with the name of the client's certificate.
func visit(t testing.TB, server, client *tls.Config) (cs tls.ConnectionState, greeting string, err error) {
	t.Helper()
	var refused error
	return visitAnd(t, server, client, &refused)
}

// visitAnd also tells why the server refused, if it did.
func visitAnd(t testing.TB, server, client *tls.Config, refused *error) (cs tls.ConnectionState, greeting string, err error) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		*refused = greet(tls.Server(newPatient(theirs), server))
	}()
	defer func() { ours.Close(); <-done }()
	ours.SetDeadline(time.Now().Add(time.Minute))
	conn := tls.Client(ours, client)
	if err := conn.Handshake(); err != nil {
		return cs, "", err
	}
	text, err := io.ReadAll(conn) // and with it the session tickets
	return conn.ConnectionState(), string(text), err
}

// patient is an end of a pipe whose writes do not wait for the reader: a client that
// refuses a certificate sends an alert before it has read all that the server sent,
// and both would wait for each other.
type patient struct {
	net.Conn
	out  chan []byte
	done chan struct{}
}

func newPatient(conn net.Conn) *patient {
	p := &patient{conn, make(chan []byte, 100), make(chan struct{})}
	go p.write()
	return p
}

func (p *patient) write() {
	defer close(p.done)
	for b := range p.out {
		p.Conn.Write(b) // an error is the reader's, who has gone
	}
}

func (p *patient) Write(b []byte) (int, error) {
	p.out <- slices.Clone(b)
	return len(b), nil
}

// crypto/tls forbids writing once it has written the last, which is still waiting here.
func (p *patient) SetWriteDeadline(time.Time) error { return nil }

// Close is a server's that has read enough: a client that still writes would not come to
// read why.
func (p *patient) Close() error {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(io.Discard, p.Conn)
	}()
	close(p.out)
	<-p.done
	err := p.Conn.Close()
	<-drained
	return err
}

func greet(conn *tls.Conn) error {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if err := conn.Handshake(); err != nil {
		return err
	}
	name := "nobody"
	if peers := conn.ConnectionState().PeerCertificates; len(peers) > 0 {
		name = peers[0].Subject.CommonName
	}
	io.WriteString(conn, name)
	return nil
}

// mustVisit is a visit to db.test that goes well.
func mustVisit(t testing.TB, server, client *tls.Config) (resumed bool, greeting string) {
	t.Helper()
	cs, greeting, err := visit(t, server, For(client, "db.test"))
	if err != nil {
		t.Fatalf("the visit ended with: %v", err)
	}
	return cs.DidResume, greeting
}

// refusal is the error of a visit to db.test.
func refusal(t testing.TB, server, client *tls.Config) error {
	t.Helper()
	_, _, err := visit(t, server, For(client, "db.test"))
	return err
}

func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}
