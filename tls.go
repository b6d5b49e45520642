package holdfast

import (
	"crypto/tls"

	"github.com/holdfast-net/holdfast/internal/certs"
)

// TLSFiles makes a [tls.Config] from files that are read again when they change:
// renewed certificates need no restart. A file that turns bad keeps the last good
// one in use.
//
//	tlsConfig, err := holdfast.TLSFiles{CA: "ca.pem", Cert: "me.pem", Key: "me.key"}.Config()
//	c, err := holdfast.New(holdfast.Static("tls://db:5432"), holdfast.Config{TLS: tlsConfig})
//
// Verification is always on: the chain, the host name, then the pins and the
// revocation list, on resumed sessions too.
type TLSFiles struct {
	CA        string   // authorities to trust; "" means the system's
	Cert, Key string   // client certificate; the key must be readable by its owner only
	CRL       string   // revocation list; when set, a stale one refuses everything
	Pins      []string // "sha256/BASE64" of public keys, at least two, one of which must be in the chain

	LaxKeyMode bool        // accept a key that others may read, as Kubernetes mounts it by default
	OnError    func(error) // told when a changed file is not taken
}

// Config reads and checks everything once.
func (f TLSFiles) Config() (*tls.Config, error) {
	return certs.Files{CA: f.CA, Cert: f.Cert, Key: f.Key, CRL: f.CRL, Pins: f.Pins, LaxKeyMode: f.LaxKeyMode, OnError: f.OnError}.Client()
}
