// Package certs makes TLS configurations from files that may change while they are
// in use: certificates are renewed, authorities added, keys revoked, and nobody
// restarts for it.
//
// Files are looked at when they are needed, at most once a second, by modification
// time and size through all links, so a Kubernetes secret that is swapped by a link
// is seen. There is no goroutine. A file that turned bad is reported once and the
// last good one stays in use.
//
// Verification is never off. With authorities of its own, a client's configuration
// has InsecureSkipVerify set and does the whole verification itself in
// VerifyConnection, because a [tls.Config] cannot change its roots; that is the way
// crypto/tls documents, and it runs on resumed sessions too, which
// VerifyPeerCertificate does not.
package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Files names the material of a client. All are PEM.
type Files struct {
	CA         string   // authorities; "" means the system's
	Cert, Key  string   // client certificate, both or none
	CRL        string   // revocation list; "" means none
	Pins       []string // as Pin gives them, at least two; nil means none
	ServerName string
	LaxKeyMode bool        // accept a key that others may read
	OnError    func(error) // told of a changed file that is not taken, once a change
}

// PinError means that no certificate of the chain has a pinned key.
type PinError struct{ Got []string }

func (e *PinError) Error() string {
	return "certificate: no key of the chain is pinned; it has " + strings.Join(e.Got, ", ")
}

// RevokedError means that a certificate of the chain is on the revocation list, or
// that the list cannot be trusted to say so.
type RevokedError struct {
	Subject string
	Why     string
}

func (e *RevokedError) Error() string {
	return fmt.Sprintf("certificate of %s: %s", e.Subject, e.Why)
}

// Pin is the SHA-256 of a certificate's public key (SPKI, RFC 7469), which outlives
// the certificate.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return "sha256/" + base64.StdEncoding.EncodeToString(sum[:])
}

// suites of TLS 1.2 with forward secrecy and AEAD (RFC 9325 §4.2).
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// Safe fills in what a configuration leaves open: TLS 1.2 at least, and of its
// suites only those with forward secrecy and AEAD.
func Safe(cfg *tls.Config) *tls.Config {
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	if cfg.CipherSuites == nil {
		cfg.CipherSuites = suites
	}
	return cfg
}

// Client reads and checks everything once and returns a configuration that keeps
// up with the files.
func (f Files) Client() (*tls.Config, error) {
	v := &verifier{pins: f.Pins}
	cfg := Safe(&tls.Config{ServerName: f.ServerName, ClientSessionCache: tls.NewLRUClientSessionCache(0)})
	var errs []error
	if f.CA != "" {
		v.roots = &reloaded[*x509.CertPool]{paths: []string{f.CA}, read: readPool, onError: f.OnError}
		errs = append(errs, v.roots.first())
		cfg.InsecureSkipVerify = true // VerifyConnection does it, against the current roots
	}
	if f.CRL != "" {
		v.list = &reloaded[*x509.RevocationList]{paths: []string{f.CRL}, read: readList, onError: f.OnError}
		errs = append(errs, v.list.first())
	}
	if f.Cert != "" || f.Key != "" {
		pair := &reloaded[*tls.Certificate]{paths: []string{f.Cert, f.Key}, read: readPair(f.LaxKeyMode), onError: f.OnError}
		errs = append(errs, pair.first())
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.get(), nil }
	}
	errs = append(errs, checkPins(f.Pins))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cfg.VerifyConnection = v.verify
	return cfg, nil
}

// checkPins wants two: with one, the loss of a key locks everybody out.
func checkPins(pins []string) error {
	if len(pins) == 1 {
		return errors.New("one pin is a trap: give a spare one too")
	}
	for _, p := range pins {
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p, "sha256/"))
		if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(p, "sha256/") {
			return fmt.Errorf("pin %.60q: want sha256/ and the base64 of 32 bytes", p)
		}
	}
	return nil
}

func readPool(paths []string) (*x509.CertPool, error) {
	text, err := os.ReadFile(paths[0])
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate in it", paths[0])
	}
	return pool, nil
}

func readList(paths []string) (*x509.RevocationList, error) {
	text, err := os.ReadFile(paths[0])
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(text); block != nil {
		text = block.Bytes
	}
	list, err := x509.ParseRevocationList(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", paths[0], err)
	}
	return list, nil
}

func readPair(lax bool) func(paths []string) (*tls.Certificate, error) {
	return func(paths []string) (*tls.Certificate, error) {
		if paths[0] == "" || paths[1] == "" {
			return nil, errors.New("a certificate needs its key, and a key its certificate")
		}
		info, err := os.Stat(paths[1])
		if err != nil {
			return nil, err
		}
		if mode := info.Mode().Perm(); !lax && modesMatter && mode&0o077 != 0 {
			return nil, fmt.Errorf("%s: others may read this key (mode %04o); chmod 600", paths[1], mode)
		}
		pair, err := tls.LoadX509KeyPair(paths[0], paths[1])
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w", paths[0], paths[1], err)
		}
		return &pair, nil
	}
}

// verifier is the verification of one client configuration.
type verifier struct {
	roots *reloaded[*x509.CertPool]       // nil: crypto/tls has verified the chain
	list  *reloaded[*x509.RevocationList] // nil: none
	pins  []string
}

func (v *verifier) verify(cs tls.ConnectionState) error {
	chains := cs.VerifiedChains
	if v.roots != nil {
		var err error
		if chains, err = v.chains(cs); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
		}
	}
	if err := v.checkRevoked(chains); err != nil {
		return err
	}
	return v.checkPinned(chains)
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

// checkPinned wants a pinned key somewhere in a verified chain.
func (v *verifier) checkPinned(chains [][]*x509.Certificate) error {
	if len(v.pins) == 0 {
		return nil
	}
	missed := &PinError{}
	for _, chain := range chains {
		for _, c := range chain {
			got := Pin(c)
			for _, want := range v.pins {
				if got == want {
					return nil
				}
			}
			if len(missed.Got) < 4 {
				missed.Got = append(missed.Got, got)
			}
		}
	}
	return missed
}

// checkRevoked accepts a chain only if the list of its issuer is genuine, current,
// and does not name it. Another chain may do; if none does, it fails closed.
func (v *verifier) checkRevoked(chains [][]*x509.Certificate) error {
	if v.list == nil {
		return nil
	}
	list := v.list.get()
	var err error = &RevokedError{Subject: "the server", Why: "there is no verified chain"}
	for _, chain := range chains {
		if err = revoked(chain, list, time.Now()); err == nil {
			return nil
		}
	}
	return err
}

func revoked(chain []*x509.Certificate, list *x509.RevocationList, now time.Time) error {
	covered := false
	for i, c := range chain[:max(0, len(chain)-1)] {
		issuer := chain[i+1]
		if string(issuer.RawSubject) != string(list.RawIssuer) {
			continue
		}
		covered = true
		deny := func(why string) error { return &RevokedError{Subject: clip(c.Subject.String()), Why: why} }
		switch {
		case list.CheckSignatureFrom(issuer) != nil:
			return deny("the revocation list is not its issuer's")
		case !list.NextUpdate.IsZero() && now.After(list.NextUpdate):
			return deny("the revocation list is stale since " + list.NextUpdate.Format(time.RFC3339))
		}
		for _, r := range list.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return deny("revoked at " + r.RevocationTime.Format(time.RFC3339))
			}
		}
	}
	if !covered {
		return &RevokedError{Subject: clip(chain[0].Subject.String()), Why: "the revocation list is another authority's"}
	}
	return nil
}

// clip makes a text from a certificate fit for a message.
func clip(s string) string {
	const limit = 200
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return fmt.Sprintf("%q", s)
}
