package certs

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// PinError means that no certificate of the chain has a pinned key.
type PinError struct{ Got []string }

func (e *PinError) Error() string {
	return "certificate: no key of the chain is pinned; it has " + strings.Join(e.Got, ", ")
}

// RevokedError means that a certificate of the chain is on a revocation list, or
// that there is no list that can be trusted to say that it is not.
type RevokedError struct {
	Subject string
	Why     string
}

func (e *RevokedError) Error() string {
	return fmt.Sprintf("certificate of %s: %s", e.Subject, e.Why)
}

// pin is the SHA-256 of a public key.
type pin [sha256.Size]byte

const pinPrefix = "sha256/"

func pinOf(c *x509.Certificate) pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func (p pin) String() string { return pinPrefix + base64.StdEncoding.EncodeToString(p[:]) }

// Pin is the SHA-256 of a certificate's public key (SPKI, RFC 7469), which outlives
// the certificate.
func Pin(c *x509.Certificate) string { return pinOf(c).String() }

// parsePins wants two: with one, the loss of a key locks everybody out.
func parsePins(texts []string) (pins []pin, err error) {
	for _, text := range texts {
		encoded, ok := strings.CutPrefix(text, pinPrefix)
		sum, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("pin %.60q: want %s and the base64 of %d bytes", text, pinPrefix, sha256.Size)
		}
		if p := pin(sum); !slices.Contains(pins, p) {
			pins = append(pins, p)
		}
	}
	if len(pins) == 1 {
		return nil, errors.New("one pin is a trap: give a spare one too")
	}
	return pins, nil
}

// verifier is the verification of one configuration.
type verifier struct {
	roots *reloaded[*x509.CertPool]         // nil: crypto/tls has verified the chain
	lists *reloaded[[]*x509.RevocationList] // nil: none
	pins  []pin
}

// verify accepts a connection if one of its chains stands up to everything.
func (v *verifier) verify(cs tls.ConnectionState) error {
	chains, err := cs.VerifiedChains, error(nil)
	if v.roots != nil {
		chains, err = v.chains(cs)
	} else if len(chains) == 0 {
		err = errors.New("nobody has verified it")
	}
	if err != nil {
		return shortError{&tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}}
	}
	var first error
	for _, chain := range chains {
		err := v.check(chain)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// chains is the standard verification, against the roots of this moment.
func (v *verifier) chains(cs tls.ConnectionState) ([][]*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("the server sent no certificate")
	}
	if cs.ServerName == "" {
		return nil, errors.New("there is no name to verify")
	}
	opts := x509.VerifyOptions{DNSName: cs.ServerName, Roots: v.roots.get(), Intermediates: x509.NewCertPool()}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	return cs.PeerCertificates[0].Verify(opts)
}

// check is what a verified chain must stand up to besides.
func (v *verifier) check(chain []*x509.Certificate) error {
	if v.lists != nil {
		if err := checkRevoked(chain, v.lists.get(), time.Now()); err != nil {
			return err
		}
	}
	return v.checkPinned(chain)
}

// checkPinned wants a pinned key somewhere in a verified chain.
func (v *verifier) checkPinned(chain []*x509.Certificate) error {
	if len(v.pins) == 0 {
		return nil
	}
	missed := &PinError{}
	for _, c := range chain {
		got := pinOf(c)
		if slices.Contains(v.pins, got) {
			return nil
		}
		if len(missed.Got) < 4 {
			missed.Got = append(missed.Got, got.String())
		}
	}
	return missed
}

// checkRevoked wants every certificate below the root to be cleared by a list of
// its issuer, as OpenSSL's CRL_CHECK_ALL does. It fails closed: one for which there
// is no list counts as revoked, and so does a server's that is trusted as a root.
func checkRevoked(chain []*x509.Certificate, lists []*x509.RevocationList, now time.Time) error {
	last := len(chain) - 1
	for i, c := range chain[:max(1, last)] {
		if why := revoked(c, chain[min(i+1, last)], lists, now); why != "" {
			return &RevokedError{Subject: clip(c.Subject.String()), Why: why}
		}
	}
	return nil
}

// revoked returns why a certificate must not be accepted, "" if a list clears it.
// Authorities of one name and different keys each have their own list.
func revoked(c, issuer *x509.Certificate, lists []*x509.RevocationList, now time.Time) string {
	why, cleared := "there is no revocation list of its authority", false
	for _, list := range lists {
		switch {
		case !bytes.Equal(list.RawIssuer, issuer.RawSubject):
		case list.CheckSignatureFrom(issuer) != nil:
			why = "the revocation list is not signed by its authority"
		case names(list, c):
			return "it is revoked"
		case now.After(list.NextUpdate):
			why = "the revocation list is stale since " + list.NextUpdate.Format(time.RFC3339)
		default:
			cleared = true
		}
	}
	if cleared {
		return ""
	}
	return why
}

func names(list *x509.RevocationList, c *x509.Certificate) bool {
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(r x509.RevocationListEntry) bool {
		return r.SerialNumber.Cmp(c.SerialNumber) == 0
	})
}

// shortError has a text fit for a message: crypto/x509 quotes all the names that a
// certificate is good for.
type shortError struct{ error }

func (e shortError) Error() string { return clip(e.error.Error()) }
func (e shortError) Unwrap() error { return e.error }

// Short is err with such a text, nil for nil. A server's handshake errors need it:
// crypto/tls makes them, and a client chooses the certificates that they quote.
func Short(err error) error {
	if err == nil {
		return nil
	}
	return shortError{err}
}

// clip makes a text from a certificate fit for a terminal and a log: short, and
// without what moves the cursor or turns the writing round.
func clip(s string) string {
	const limit = 256
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, s)
}
