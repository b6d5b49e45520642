package serve

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/holdfast-net/holdfast/internal/certs"
)

// TLS is how connections are encrypted: from files, which may change while they are
// in use, or from Config. Each file is a path or PEM text. Files are looked at again
// when they have changed; a pair that does not fit, or a key that others may read, is
// refused and logged, and the last good one stays in use.
type TLS struct {
	CertFile, KeyFile string   // the leaf, then its chain; RSA, ECDSA or Ed25519
	ClientCAFile      string   // with it, every client must show a certificate from there
	ClientSANs        []string // which of them: DNS names, IPs, URIs or emails; empty is all
	CRLFile           string   // revoked clients

	// 0 is TLS 1.2 at least, and 1.3 at most. TLS 1.1 must be asked for.
	MinVersion, MaxVersion uint16

	// Config is what else is wanted, such as NextProtos, or GetCertificate instead of
	// files. It is copied.
	Config *tls.Config
}

func (t TLS) off() bool {
	return t.CertFile == "" && t.KeyFile == "" && t.Config == nil && t.ClientCAFile == ""
}

func (t TLS) files(log *slog.Logger) certs.ServerFiles {
	return certs.ServerFiles{
		Cert: t.CertFile, Key: t.KeyFile, ClientCA: t.ClientCAFile, ClientSANs: t.ClientSANs, CRL: t.CRLFile,
		MinVersion: t.MinVersion, MaxVersion: t.MaxVersion, Config: t.Config,
		OnError: func(err error) { log.Error("serve: a changed TLS file is not used", "err", err) },
	}
}

// shake does the TLS handshake, within one limit, of which waiting for a place is a
// part.
func (s *Server) shake(ctx context.Context, c *Conn) error {
	if d := s.limits.Handshake; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	select {
	case s.shakes <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.shakes }()
	end, _ := ctx.Deadline()
	c.raw.SetDeadline(end)
	tc := tls.Server(&behind{c.raw, c}, c.ln.tls.Config())
	if err := tc.HandshakeContext(ctx); err != nil {
		return certs.Short(err)
	}
	c.nc = tc
	return c.raw.SetDeadline(time.Time{})
}
