package certs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestPinMatchesAnyCertificateOfTheChain(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	middle := root.intermediate("middle")
	pair := middle.issue()
	s := serveCert(t, pair)
	ca := f.put("ca.pem", root.pem())
	spare := Pin(newRoot(t, "spare").cert)
	for _, c := range []*x509.Certificate{pair.Leaf, middle.cert, root.cert} {
		s.mustVisit(client(t, Files{CA: ca, Pins: []string{spare, Pin(c)}}), "db.test")
	}
	_, _, err := s.visit(client(t, Files{CA: ca, Pins: []string{spare, Pin(newRoot(t, "x").cert)}}), "db.test")
	var missed *PinError
	if want := []string{Pin(pair.Leaf), Pin(middle.cert), Pin(root.cert)}; !errors.As(err, &missed) || !slices.Equal(missed.Got, want) {
		t.Errorf("%v, want %v", err, want)
	}
}

// A certificate that the server sends without it being in the chain proves nothing:
// anybody can send it.
func TestPinOfAStrayCertificateIsNoMatch(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	stray := newRoot(t, "stray")
	pair := root.issue()
	pair.Certificate = append(pair.Certificate, stray.cert.Raw)
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), Pins: []string{Pin(stray.cert), Pin(newRoot(t, "x").cert)}})
	if _, _, err := serveCert(t, pair).visit(cfg, "db.test"); !is[*PinError](err) {
		t.Errorf("the error is %v", err)
	}
}

func TestPinDoesNotReplaceTheChain(t *testing.T) {
	f := newFolder(t)
	pair := newRoot(t, "stranger").issue()
	cfg := client(t, Files{CA: f.put("ca.pem", newRoot(t, "root").pem()), Pins: []string{Pin(pair.Leaf), Pin(newRoot(t, "x").cert)}})
	if _, _, err := serveCert(t, pair).visit(cfg, "db.test"); !is[x509.UnknownAuthorityError](err) {
		t.Errorf("the error is %v", err)
	}
}

func TestPinSurvivesRenewalButNotANewKey(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	key := newKey(t)
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), Pins: []string{Pin(root.issueFor(key).Leaf), Pin(newRoot(t, "x").cert)}})
	serveCert(t, root.issueFor(key)).mustVisit(cfg, "db.test")
	if _, _, err := serveCert(t, root.issue()).visit(cfg, "db.test"); !is[*PinError](err) {
		t.Errorf("with a new key the error is %v", err)
	}
}

// VerifyPeerCertificate, where pins are often checked, does not run on resumption: a
// session made before there were pins, or with other ones, would get past them.
func TestPinHoldsOnResumption(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			f, root := newFolder(t), newRoot(t, "root")
			oldKey, newPair := newKey(t), root.issue()
			s := serve(t, &tls.Config{Certificates: []tls.Certificate{*root.issueFor(oldKey)}, MaxVersion: version})
			ca := f.put("ca.pem", root.pem())

			before := client(t, Files{CA: ca})
			s.mustVisit(before, "db.test")
			pinned := client(t, Files{CA: ca, Pins: []string{Pin(newPair.Leaf), Pin(newRoot(t, "x").cert)}})
			pinned.ClientSessionCache = before.ClientSessionCache
			resumed := false
			pinned.VerifyConnection = watch(pinned.VerifyConnection, &resumed)
			if _, _, err := s.visit(pinned, "db.test"); !resumed || !is[*PinError](err) {
				t.Errorf("resumed %v: %v", resumed, err)
			}

			// The server changes to the pinned key, and has lost its ticket keys by that.
			s.cfg.Store(&tls.Config{Certificates: []tls.Certificate{*newPair}, MaxVersion: version})
			s.mustVisit(pinned, "db.test")
			if cs, _ := s.mustVisit(pinned, "db.test"); !cs.DidResume {
				t.Error("a pinned session was not resumed")
			}

			// And away from it.
			s.cfg.Store(&tls.Config{Certificates: []tls.Certificate{*root.issueFor(oldKey)}, MaxVersion: version})
			if _, _, err := s.visit(pinned, "db.test"); resumed || !is[*PinError](err) {
				t.Errorf("after the key changed: resumed %v: %v", resumed, err)
			}
		})
	}
}

func TestPinsThatAreRefused(t *testing.T) {
	good, spare := Pin(newRoot(t, "a").cert), Pin(newRoot(t, "b").cert)
	hash := strings.TrimPrefix(good, "sha256/")
	for name, pins := range map[string][]string{
		"one":              {good},
		"the same twice":   {good, good},
		"none named":       {good, ""},
		"no prefix":        {good, hash},
		"another hash":     {good, "sha1/" + hash},
		"curl's form":      {good, "sha256//" + hash},
		"too short":        {good, "sha256/" + hash[:40]},
		"no base64":        {good, "sha256/" + strings.Repeat("!", 44)},
		"trailing bits":    {good, "sha256/" + strings.Repeat("A", 42) + "B="},
		"a space":          {good, " " + spare},
		"hostile, and big": {good, strings.Repeat("\x1b", 1000)},
	} {
		_, err := Files{Pins: pins}.Client()
		if err == nil || !strings.Contains(err.Error(), "pin") || len(err.Error()) > 500 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Files{Pins: []string{good, spare}}).Client(); err != nil {
		t.Errorf("two good ones: %v", err)
	}
}

// What openssl says of this certificate, with the command of the package's doc.
func ExamplePin() {
	block, _ := pem.Decode([]byte(`-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUSVEvhAbK5f0EUbvuaBIlVFjMivswCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHZXhhbXBsZTAgFw0yNjExMjEwMzE5MTdaGA8yMTI2MTAyODAz
MTkxN1owEjEQMA4GA1UEAwwHZXhhbXBsZTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABLPdK+wUO3DuC0Dakoh0f1X9LJ3Yw+ZaV7teN8kWmhBhPIUbil2A2dmpMzMp
coPM+BZ9DkR4SOz4CuqhjQfCYfSjUzBRMB0GA1UdDgQWBBQuedLqdTiWiAsK+ITk
KNmJfyPtrDAfBgNVHSMEGDAWgBQuedLqdTiWiAsK+ITkKNmJfyPtrDAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQDFKLEjqLJQUxjUVXsPydB7NhWE
+qH5Y/KOjqclVfv7wQIgbbTq1yztO+TppoVGH6sYvlfWAVxtS1HS0eTWDv2twYo=
-----END CERTIFICATE-----`))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(Pin(cert))
	// Output: sha256/RogyD+J7tH8pz0Cwmm4aYvrV/bkpqvofQidkU2iuYHU=
}
