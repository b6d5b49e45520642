package serve

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
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

// Check reads the files, and says what is wrong with them or with Config: what Serve
// would say.
func (t TLS) Check() error {
	if t.off() {
		return nil
	}
	_, err := t.files(slog.New(slog.DiscardHandler)).Server("")
	return err
}

func (t TLS) files(log *slog.Logger) certs.ServerFiles {
	return certs.ServerFiles{
		Cert: t.CertFile, Key: t.KeyFile, ClientCA: t.ClientCAFile, ClientSANs: t.ClientSANs, CRL: t.CRLFile,
		MinVersion: t.MinVersion, MaxVersion: t.MaxVersion, Config: t.Config,
		OnError: func(err error) { log.Error("serve: a changed TLS file is not used", "err", err) },
	}
}

// shake does the TLS handshake, within one limit, of which waiting for a place is a
// part. The place is for the answer to the client's first message, which costs the most.
// Nobody holds one while waiting for a client, whose silence so is its own affair, and
// nobody needs another afterwards: those under way end before those that begin.
func (s *Server) shake(ctx context.Context, c *Conn) error {
	if d := s.limits.Handshake; d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	end, _ := ctx.Deadline()
	c.raw.SetDeadline(end)
	b := &behind{Conn: c.raw, c: c}
	defer b.leave()
	cfg := c.ln.tls.Config()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := b.enter(ctx); err != nil {
			return nil, err
		}
		return c.ln.tls.ForClient(hello)
	}
	tc := tls.Server(b, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return certs.Short(err)
	}
	c.nc = tc
	return c.raw.SetDeadline(time.Time{})
}

// behind is the socket below TLS. Its first bytes may have been read already; what may
// wait for the client gives the handshake's place to another.
type behind struct {
	net.Conn
	c      *Conn
	placed bool // only while the handshake computes, so that nobody else looks
}

func (b *behind) Read(p []byte) (int, error) {
	b.leave()
	if len(b.c.unread) == 0 {
		return b.Conn.Read(p)
	}
	n := copy(p, b.c.unread)
	b.c.unread = b.c.unread[n:]
	return n, nil
}

func (b *behind) Write(p []byte) (int, error) {
	b.leave()
	return b.Conn.Write(p)
}

func (b *behind) enter(ctx context.Context) error {
	select {
	case b.c.srv.shakes <- struct{}{}:
		b.placed = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *behind) leave() {
	if b.placed {
		<-b.c.srv.shakes
		b.placed = false
	}
}
