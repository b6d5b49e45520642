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
// VerifyPeerCertificate does not. Use [For] to give such a configuration the server's
// name.
//
// A server's half is [ServerFiles]:
//
//	srv, err := certs.ServerFiles{Cert: "tls.crt", Key: "tls.key", ClientCA: "clients.pem"}.Server("public")
//	conn := tls.Server(accepted, srv.Config())
//
// It asks a client's certificate for everything again when a session is resumed, and
// a ticket is good for nothing but the listener and the policy that it was given under.
//
// Every path may be the text of the PEM file instead. Messages name a path and never
// quote a text.
package certs

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
)

// Files names the material of a client. All are PEM; a single revocation list in a file
// may be DER.
type Files struct {
	CA         string   // authorities; "" means the system's
	Cert, Key  string   // client certificate, both or none
	CRL        string   // revocation lists, one for each authority of a chain; "" means none
	Pins       []string // as Pin gives them, at least two; nil means none
	ServerName string
	LaxKeyMode bool        // accept a key that others may read
	OnError    func(error) // told of a changed file that is not taken, once a change, by the handshake that noticed
}

// Client reads and checks everything once and returns a configuration that keeps
// up with the files.
func (f Files) Client() (*tls.Config, error) {
	cfg := Safe(&tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(0)})
	v := &verifier{}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	if f.CA != "" {
		v.roots = &reloaded[*x509.CertPool]{paths: []string{f.CA}, read: readPool, onError: f.OnError}
		note(v.roots.first())
		cfg.InsecureSkipVerify = true // VerifyConnection does it, against the current roots
	}
	if f.CRL != "" {
		v.lists = &reloaded[[]*x509.RevocationList]{paths: []string{f.CRL}, read: readLists, onError: f.OnError}
		note(v.lists.first())
	}
	if f.Cert != "" || f.Key != "" {
		pair := &reloaded[*tls.Certificate]{paths: []string{f.Cert, f.Key}, read: readPair(f.LaxKeyMode), onError: f.OnError}
		note(pair.first())
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.get(), nil }
		cfg.ClientSessionCache = &sessions{pair: pair}
	}
	var err error
	v.pins, err = parsePins(f.Pins)
	note(err)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cfg.VerifyConnection = v.verify
	if f.ServerName == "" {
		return cfg, nil
	}
	return For(cfg, f.ServerName), nil
}

// For returns a copy of a configuration for a server: the host to verify, a name or an
// IP address. It is more than to set ServerName: crypto/tls does not tell
// VerifyConnection an IP address, because it does not send one, and without it a
// configuration from Files.Client with authorities of its own refuses every server.
func For(cfg *tls.Config, host string) *tls.Config {
	cfg = cfg.Clone()
	cfg.ServerName = host
	if verify := cfg.VerifyConnection; verify != nil {
		cfg.VerifyConnection = func(cs tls.ConnectionState) error {
			cs.ServerName = cmp.Or(cs.ServerName, host) // else it is what the last For has set
			return verify(cs)
		}
	}
	return cfg
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

// sessions forgets all sessions when the client's certificate changes: a resumed
// one has the identity that it began with, for as long as the server likes.
type sessions struct {
	pair *reloaded[*tls.Certificate]

	mu    sync.Mutex // guards the rest
	of    *tls.Certificate
	cache tls.ClientSessionCache
}

func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) { return s.current().Get(key) }

func (s *sessions) Put(key string, cs *tls.ClientSessionState) { s.current().Put(key, cs) }

func (s *sessions) current() tls.ClientSessionCache {
	pair := s.pair.get()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil || s.of != pair {
		s.of, s.cache = pair, tls.NewLRUClientSessionCache(0)
	}
	return s.cache
}
