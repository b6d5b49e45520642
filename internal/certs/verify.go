package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

var (
	errNoHost  = errors.New("no host to verify the certificate for (crypto/tls keeps an IP address to itself)")
	errNoChain = errors.New("no verified chain to look for pins and revocations in")
)

// verify is the VerifyConnection of every configuration: resumed sessions pass through
// it too.
func (s *store) verify(cs tls.ConnectionState) error {
	m := s.get()
	chains := cs.VerifiedChains
	if m.roots != nil {
		host := cs.ServerName
		if host == "" {
			host = s.host
		}
		var err error
		if chains, err = chainsOf(cs.PeerCertificates, m.roots, host); err != nil {
			return &verifyError{&tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}}
		}
	}
	return s.judge(m, chains, time.Now())
}

// chainsOf is the verification that crypto/tls would have done.
func chainsOf(certs []*x509.Certificate, roots *x509.CertPool, host string) ([][]*x509.Certificate, error) {
	if host == "" {
		return nil, errNoHost
	}
	opts := x509.VerifyOptions{Roots: roots, DNSName: host, Intermediates: x509.NewCertPool()}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	return certs[0].Verify(opts)
}

// judge wants one chain that is pinned and of which nothing is revoked. If there is
// none, the error is that of the first.
func (s *store) judge(m *material, chains [][]*x509.Certificate, now time.Time) error {
	if s.pins == nil && m.lists == nil {
		return nil
	}
	if len(chains) == 0 { // InsecureSkipVerify, set by hand
		return errNoChain
	}
	var first error
	for _, chain := range chains {
		err := checkRevoked(m.lists, chain, now)
		if err == nil {
			err = s.pins.check(chain)
		}
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// verifyError is crypto/tls's error with a text fit to print: what crypto/x509 says
// quotes the certificate, of whatever length.
type verifyError struct {
	err *tls.CertificateVerificationError
}

func (e *verifyError) Error() string { return printable(e.err.Error()) }
func (e *verifyError) Unwrap() error { return e.err }

// maxText is how much of an error's text may come from a peer.
const maxText = 256

// printable makes text from a certificate fit for a terminal and a log: no control
// characters, nothing that changes the direction of writing, 256 bytes at most.
func printable(s string) string {
	const more = "…"
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		piece := s[:size]
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			quoted := strconv.QuoteToASCII(piece)
			piece = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(piece) > maxText-len(more) {
			return b.String() + more
		}
		b.WriteString(piece)
		s = s[size:]
	}
	return b.String()
}
