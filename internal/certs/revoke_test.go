package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// crl is a list of this authority's, good for an hour, after the changes.
func (a *authority) crl(revoked []*x509.Certificate, changes ...func(*x509.RevocationList)) []byte {
	template := &x509.RevocationList{
		Number: big.NewInt(serials.Add(1)), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
	}
	for _, c := range revoked {
		entry := x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Minute)}
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries, entry)
	}
	for _, change := range changes {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func (a *authority) crlPEM(revoked ...*x509.Certificate) string {
	return pemOf("X509 CRL", a.crl(revoked))
}

func stale(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) }

func TestListedCertificatesAreRefused(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	middle := root.intermediate("middle")
	pair, other := middle.issue(), middle.issue()
	ca := f.put("ca.pem", root.pem())
	s := serveCert(t, pair)
	for name, c := range map[string]struct {
		lists   string
		revoked *x509.Certificate
	}{
		"none":             {root.crlPEM() + middle.crlPEM(), nil},
		"another":          {root.crlPEM() + middle.crlPEM(other.Leaf), nil},
		"the leaf":         {root.crlPEM() + middle.crlPEM(other.Leaf, pair.Leaf), pair.Leaf},
		"the intermediate": {middle.crlPEM() + root.crlPEM(middle.cert), middle.cert},
		"in the old list":  {root.crlPEM() + middle.crlPEM(pair.Leaf) + middle.crlPEM(), pair.Leaf},
	} {
		cfg := client(t, Files{CA: ca, CRL: f.put("ca.crl", c.lists)})
		_, _, err := s.visit(cfg, "db.test")
		var e *RevokedError
		switch {
		case c.revoked == nil && err != nil:
			t.Errorf("%s revoked: %v", name, err)
		case c.revoked != nil && !errors.As(err, &e):
			t.Errorf("%s revoked: %v", name, err)
		case c.revoked != nil && (e.Since.IsZero() || e.Err != nil || e.Serial != c.revoked.SerialNumber.Text(16)):
			t.Errorf("%s revoked: %+v", name, e)
		}
	}
}

// Whatever keeps a list from clearing a certificate condemns it.
func TestRevocationFailsClosed(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	middle := root.intermediate("middle")
	pair := middle.issue()
	ca := f.put("ca.pem", root.pem())
	s := serveCert(t, pair)
	good := root.crlPEM()
	for name, lists := range map[string]string{
		"a stale list":                      good + pemOf("X509 CRL", middle.crl(nil, stale)),
		"no list for the leaf":              good,
		"no list for the intermediate":      middle.crlPEM(),
		"a stale list for the intermediate": middle.crlPEM() + pemOf("X509 CRL", root.crl(nil, stale)),
		"another authority's list":          good + newRoot(t, "other").crlPEM(),
		"a list of another key":             good + newRoot(t, "middle").crlPEM(),
	} {
		cfg := client(t, Files{CA: ca, CRL: f.put("ca.crl", lists)})
		_, _, err := s.visit(cfg, "db.test")
		var e *RevokedError
		if !errors.As(err, &e) || !e.Since.IsZero() || e.Err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Files{CA: ca, CRL: f.path + "/missing.crl"}).Client(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a list that is not there: %v", err)
	}
}

func TestAStaleListStillCondemns(t *testing.T) {
	root := newRoot(t, "root")
	pair := root.issue()
	lists := []*list{mustParse(t, root.crl([]*x509.Certificate{pair.Leaf}, stale)), mustParse(t, root.crl(nil))}
	chain := []*x509.Certificate{pair.Leaf, root.cert}
	var e *RevokedError
	if err := checkRevoked(lists, chain, time.Now()); !errors.As(err, &e) || e.Since.IsZero() {
		t.Errorf("the error is %v", err)
	}
	if err := checkRevoked(lists[1:], chain, time.Now()); err != nil {
		t.Errorf("the current list alone: %v", err)
	}
}

func mustParse(t *testing.T, der []byte) *list {
	l, err := parseList(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestListGoesStaleInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root := newFolder(t), newRoot(t, "root")
		cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), CRL: f.put("ca.crl", root.crlPEM())})
		long := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(9 * time.Hour) }
		cs := tls.ConnectionState{ServerName: "db.test", DidResume: true, PeerCertificates: []*x509.Certificate{root.issue(long).Leaf}}
		time.Sleep(59 * time.Minute)
		if err := cfg.VerifyConnection(cs); err != nil {
			t.Errorf("before its next update: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if err := cfg.VerifyConnection(cs); !is[*RevokedError](err) || !strings.Contains(err.Error(), "stale since 2000-01-01T01:00:00Z") {
			t.Errorf("after its next update: %v", err)
		}
		f.put("ca.crl", root.crlPEM())
		time.Sleep(time.Second)
		if err := cfg.VerifyConnection(cs); err != nil {
			t.Errorf("with the next one: %v", err)
		}
	})
}

func TestListsThatAreNotFullAreRefused(t *testing.T) {
	root := newRoot(t, "root")
	critical := func(last int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, last}, Critical: true, Value: []byte{5, 0}}}
		}
	}
	for name, der := range map[string][]byte{
		"a delta":      root.crl(nil, critical(27)),
		"a partition":  root.crl(nil, critical(28)),
		"one for ever": endless(t),
		"half a list":  root.crl(nil)[:100],
		"nothing":      nil,
	} {
		if _, err := parseList(der); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// endless is a list without a next update, which crypto/x509 reads but does not make.
func endless(t *testing.T) []byte {
	type tbs struct {
		Version    int
		Signature  pkix.AlgorithmIdentifier
		Issuer     pkix.RDNSequence
		ThisUpdate time.Time
	}
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}} // ECDSA, SHA-256
	der, err := asn1.Marshal(struct {
		TBS       tbs
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{tbs{1, algorithm, nil, time.Now().UTC()}, algorithm, asn1.BitString{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseRevocationList(der); err != nil {
		t.Fatal(err)
	}
	return der
}

// Another program's lists, and its opinion of ours.
func TestListsOfOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	switch {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatal(err)
	case err != nil:
		t.Skip(err)
	}
	f, root := newFolder(t), newRoot(t, "root")
	bad, good := root.issue(), root.issue()
	ca, key := f.put("ca.pem", root.pem()), f.put("ca.key", keyPEM(t, &tls.Certificate{PrivateKey: root.key}))
	const form = "060102150405Z"
	f.put("index.txt", fmt.Sprintf("R\t%s\t%s\t%X\tunknown\t/CN=server\n",
		bad.Leaf.NotAfter.UTC().Format(form), time.Now().UTC().Format(form), bad.Leaf.SerialNumber.Bytes()))
	f.put("crlnumber", "01\n")
	config := f.put("openssl.cnf", fmt.Sprintf("[ca]\ndefault_ca=x\n[x]\ndatabase=%[1]s/index.txt\ncrlnumber=%[1]s/crlnumber\ndefault_md=sha256\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n", f.path))
	crl := filepath.Join(f.path, "theirs.crl")
	run(t, openssl, "ca", "-gencrl", "-config", config, "-keyfile", key, "-cert", ca, "-crlhours", "1", "-out", crl)
	checkBoth(t, client(t, Files{CA: ca, CRL: crl}), good, bad)

	der := filepath.Join(f.path, "theirs.der")
	run(t, openssl, "crl", "-in", crl, "-outform", "der", "-out", der)
	checkBoth(t, client(t, Files{CA: ca, CRL: der}), good, bad)

	ours := f.put("ours.crl", root.crlPEM(bad.Leaf))
	checkBoth(t, client(t, Files{CA: ca, CRL: ours}), good, bad)
	run(t, openssl, "verify", "-crl_check", "-CAfile", ca, "-CRLfile", ours, f.put("good.pem", certPEM(good)))
	out, err := exec.Command(openssl, "verify", "-crl_check", "-CAfile", ca, "-CRLfile", ours, f.put("bad.pem", certPEM(bad))).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "certificate revoked") {
		t.Errorf("openssl says of the revoked one: %s", out)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func checkBoth(t *testing.T, cfg *tls.Config, good, bad *tls.Certificate) {
	t.Helper()
	if _, _, err := serveCert(t, good).visit(cfg, "db.test"); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, _, err := serveCert(t, bad).visit(cfg, "db.test"); !is[*RevokedError](err) {
		t.Errorf("the revoked one: %v", err)
	}
}

// Of two chains, one through a revoked intermediate, the other one counts.
func TestAnotherChainMayBeGood(t *testing.T) {
	f, root, second := newFolder(t), newRoot(t, "root"), newRoot(t, "second")
	middle := root.intermediate("middle")
	crossed := *middle
	crossed.cert = second.sign(caTemplate("middle"), second.cert, middle.key.Public(), second.key)
	pair := middle.issue()
	pair.Certificate = append(pair.Certificate, crossed.cert.Raw)
	s := serveCert(t, pair)
	ca := f.put("ca.pem", root.pem()+second.pem())
	lists := middle.crlPEM() + root.crlPEM(middle.cert)
	s.mustVisit(client(t, Files{CA: ca, CRL: f.put("ca.crl", lists+second.crlPEM())}), "db.test")
	cfg := client(t, Files{CA: ca, CRL: f.put("ca.crl", lists+second.crlPEM(crossed.cert))})
	if _, _, err := s.visit(cfg, "db.test"); !is[*RevokedError](err) {
		t.Errorf("with both revoked: %v", err)
	}
}

func BenchmarkVerify(b *testing.B) {
	f, root := newFolder(b), newRoot(b, "root")
	middle := root.intermediate("middle")
	pair := middle.issue()
	ca, crl := f.put("ca.pem", root.pem()), f.put("ca.crl", root.crlPEM()+middle.crlPEM())
	cs := tls.ConnectionState{ServerName: "db.test", PeerCertificates: []*x509.Certificate{pair.Leaf, middle.cert}}
	for name, files := range map[string]Files{"chain": {CA: ca}, "chain and lists": {CA: ca, CRL: crl}} {
		b.Run(name, func(b *testing.B) {
			verify := client(b, files).VerifyConnection
			for b.Loop() {
				if err := verify(cs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
