package certs

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// A list is a revocation list that is fit to be asked (RFC 5280 §5). Its signature is
// not checked until its issuer is known, in a handshake.
type list struct {
	x509.RevocationList                      // without its entries
	revoked             map[string]time.Time // by serial number
}

func serial(n *big.Int) string { return n.Text(16) }

func parseCRL(m *material, files []file) error {
	f := files[0]
	ders := [][]byte{f.data}
	if bytes.Contains(f.data, []byte("-----BEGIN ")) {
		var err error
		if ders, err = f.blocks("X509 CRL"); err != nil {
			return err
		}
	}
	var lists []*list
	for _, der := range ders {
		l, err := parseList(der)
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
		lists = append(lists, l)
	}
	m.lists = lists
	return nil
}

// parseList refuses what an absence from the list would not clear: one that never goes
// stale, and one with a critical extension, which is what makes it a delta or a
// partition.
func parseList(der []byte) (*list, error) {
	rl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if rl.NextUpdate.IsZero() {
		return nil, errors.New("the revocation list does not say when the next one comes")
	}
	for _, e := range rl.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("the revocation list is not a full one: it has the critical extension %v", e.Id)
		}
	}
	l := &list{RevocationList: *rl, revoked: make(map[string]time.Time, len(rl.RevokedCertificateEntries))}
	for _, e := range rl.RevokedCertificateEntries {
		l.revoked[serial(e.SerialNumber)] = e.RevocationTime
	}
	l.RevokedCertificateEntries, l.RevokedCertificates = nil, nil
	return l, nil
}

// checkRevoked asks about every certificate of a chain that has an issuer.
func checkRevoked(lists []*list, chain []*x509.Certificate, now time.Time) error {
	if lists == nil {
		return nil
	}
	for i, c := range chain[:len(chain)-1] {
		if err := checkOne(lists, c, chain[i+1], now); err != nil {
			return err
		}
	}
	return nil
}

// checkOne lets every genuine list of the issuer speak. A stale one can still condemn,
// but only a current one can clear.
func checkOne(lists []*list, c, issuer *x509.Certificate, now time.Time) error {
	cleared := false
	unknown := errors.New("its issuer has no revocation list")
	for _, l := range lists {
		if !bytes.Equal(l.RawIssuer, issuer.RawSubject) {
			continue
		}
		if err := l.CheckSignatureFrom(issuer); err != nil {
			unknown = fmt.Errorf("the revocation list is not of its issuer: %w", err)
			continue
		}
		if since, ok := l.revoked[serial(c.SerialNumber)]; ok {
			return newRevokedError(c, since, nil)
		}
		if now.After(l.NextUpdate) {
			unknown = fmt.Errorf("the revocation list is stale since %s", l.NextUpdate.UTC().Format(time.RFC3339))
			continue
		}
		cleared = true
	}
	if !cleared {
		return newRevokedError(c, time.Time{}, unknown)
	}
	return nil
}

// RevokedError says that a certificate of the chain, the server's or one above it, is
// revoked, or that it could not be found out, which counts as the same.
type RevokedError struct {
	Subject string    // of the certificate
	Serial  string    // in hexadecimal
	Since   time.Time // zero when it could not be found out
	Err     error     // why it could not; nil when it is revoked
}

func newRevokedError(c *x509.Certificate, since time.Time, err error) error {
	return &RevokedError{Subject: printable(c.Subject.String()), Serial: serial(c.SerialNumber), Since: since, Err: err}
}

func (e *RevokedError) Error() string {
	what := "revoked since " + e.Since.UTC().Format(time.RFC3339)
	if e.Err != nil {
		what = "not known to be good: " + e.Err.Error()
	}
	return printable(fmt.Sprintf("certificate %s: %s, serial %s", what, e.Subject, e.Serial))
}

func (e *RevokedError) Unwrap() error { return e.Err }
