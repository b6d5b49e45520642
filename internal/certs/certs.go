// Package certs makes TLS configurations of clients from files that change while they
// are in use: certificates are renewed, authorities added, certificates revoked, and
// nobody restarts for it.
//
//	cfg, err := certs.Files{
//		CA:  "/etc/app/ca.pem",
//		Cert: "/etc/app/tls.crt", Key: "/etc/app/tls.key", // for mutual TLS
//		CRL: "/etc/app/ca.crl",
//	}.Client()
//	if err != nil {
//		return err // names every file that is wrong
//	}
//	…
//	conn := tls.Client(raw, certs.For(cfg, host)) // once per connection
//
// # What is verified
//
// Always the chain, its dates, its purpose and the host: against the authorities in CA,
// or the system's when CA is empty. Then, where configured, that one key of the chain
// is pinned and that no certificate of it is revoked. All of it holds on resumed
// sessions too, against the files of that moment: what has expired or been revoked
// since the full handshake is refused. TLS 1.2 is the least, and of its cipher suites
// those with forward secrecy and authenticated encryption (RFC 9325 §4.2).
//
// A [tls.Config] cannot change its roots. With CA set the configuration therefore has
// InsecureSkipVerify, and does the whole verification in VerifyConnection, the way
// crypto/tls documents. Two things follow. Who replaces VerifyConnection in it takes
// the verification away: call the one that was there first. And crypto/tls does not
// tell VerifyConnection an IP address, which is never sent to the server: [For] does,
// and without it a connection to an IP address is refused.
//
// # Files
//
// Files are looked at when a handshake needs them, at most once a second, by
// modification time, size, mode and identity, through symbolic links: a Kubernetes
// secret, swapped by a link, is seen. There is no goroutine. Replace a file by
// renaming another over it, or a handshake may find half of it. Then, and whenever a
// changed file is bad, the last good one stays in use, OnError is told once, and the
// next change is looked at as any other. Certificate and key are taken together.
// With a new pair the sessions made with the old one are forgotten, for they carry its
// identity; a ticket that is still on its way is not.
//
// A key that its group or others can read is refused, as ssh does, unless LaxKeyMode:
// a Kubernetes secret needs defaultMode 0400 or it. Windows has no such modes.
//
// # Pins
//
// A pin is the SHA-256 of a public key (RFC 7469), as [Pin] gives it and
//
//	openssl x509 -in cert.pem -noout -pubkey | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64
//
// after "sha256/". Any certificate of the verified chain may have it, leaf or authority.
// There must be two at least: the key in use, and the one to change to when it is lost.
//
// # Revocation
//
// CRL is a file of revocation lists, PEM one after the other, or one in DER. Every
// certificate of the chain but its root needs a list of its issuer there, signed by it
// and not past its next update; else it counts as revoked. Lists that speak of some of
// an issuer's certificates only (deltas, partitions) are refused when they are read. A
// certificate that is itself in CA has no issuer; to revoke it, take it out. OCSP is
// not done.
package certs

import (
	"crypto/tls"
)

// Files names the material of a client. A path that is empty stands for nothing of its
// kind. It is a plain value; what Client has made of it no longer looks at it.
type Files struct {
	CA        string   // PEM, authorities to trust; empty means the system's
	Cert, Key string   // PEM, the certificate we show, its intermediates behind it, and its key; both or none
	CRL       string   // PEM or DER, revocation lists; when set, what they do not cover is refused
	Pins      []string // "sha256/BASE64", two or more; nil means none

	// ServerName is the host to verify, and to ask for, unless the configuration's user
	// sets another.
	ServerName string

	// LaxKeyMode accepts a Key that group or others may read.
	LaxKeyMode bool

	// OnError, if not nil, is told of a changed file that was not taken, in the
	// handshake that came across it. Calls may overlap.
	OnError func(error)
}

// Client reads and checks all files, and returns a configuration that keeps up with
// them. The error names each that is wrong. The configuration may be cloned; clones
// share their sessions.
func (f Files) Client() (*tls.Config, error) {
	s, err := open(f)
	if err != nil {
		return nil, err
	}
	m := s.current.Load()
	cfg := Safe(&tls.Config{ServerName: f.ServerName, ClientSessionCache: sessions{s}, VerifyConnection: s.verify})
	if f.CA != "" {
		cfg.InsecureSkipVerify = true // s.verify does it
		cfg.RootCAs = m.roots         // of this moment, for who takes that back
	}
	if f.Cert != "" {
		cfg.GetClientCertificate = s.clientCertificate
	}
	return cfg, nil
}

// For returns a copy of cfg for a connection to host, a name or an IP address without
// a zone: with ServerName set, and VerifyConnection told of it even when it is an
// address. It may be used on any configuration.
func For(cfg *tls.Config, host string) *tls.Config {
	cfg = cfg.Clone()
	cfg.ServerName = host
	if verify := cfg.VerifyConnection; verify != nil {
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			if cs.ServerName == "" { // else it is the last one that was set
				cs.ServerName = host
			}
			return verify(cs)
		}
	}
	return cfg
}

// suites are those of TLS 1.2 with forward secrecy and AEAD; 1.3 has no others.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// Safe raises cfg to TLS 1.2 and, unless it chooses its suites itself, to those with
// forward secrecy and authenticated encryption. It changes cfg, and returns it.
func Safe(cfg *tls.Config) *tls.Config {
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	if cfg.CipherSuites == nil {
		cfg.CipherSuites = suites
	}
	return cfg
}
