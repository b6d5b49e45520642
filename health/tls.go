package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/holdfast-net/holdfast/internal/certs"
)

// TLS asks for a handshake and a certificate that is valid for some time yet. On a
// connection that is TLS already it looks at what was agreed; on any other it shakes
// hands itself, after which there is no other use for the connection.
//
// A resumed session shows the certificate that it began with. A Monitor resumes none; in
// the checks of another Cluster set SessionTicketsDisabled in its Config.TLS.
type TLS struct {
	Config  *tls.Config // for a handshake of its own; nil verifies the host with the system's roots
	MinDays int         // that the certificate must still be valid; 0 means that it is valid now
}

// Probe is for holdfast.Config.Probe.
func (t TLS) Probe(ctx context.Context, conn net.Conn) error {
	n := noteOf(ctx)
	n.layer = "tls"
	state, ok := stateOf(conn)
	if !ok {
		var err error
		if state, err = t.shake(ctx, conn); err != nil {
			return err
		}
	}
	n.expires = expiry(state)
	left := time.Until(n.expires)
	if t.MinDays > 0 && left < time.Duration(t.MinDays)*24*time.Hour {
		return fmt.Errorf("health: the certificate expires on %s, within %d days", n.expires.UTC().Format(time.DateOnly), t.MinDays)
	}
	return nil
}

func (t TLS) shake(ctx context.Context, conn net.Conn) (state tls.ConnectionState, err error) {
	cfg := &tls.Config{}
	if t.Config != nil {
		cfg = t.Config.Clone()
	}
	certs.Safe(cfg)
	host := cfg.ServerName
	if host == "" {
		host, _ = hostOf(conn)
	}
	secure := tls.Client(conn, certs.For(cfg, host))
	err = within(ctx, conn, func() error { return secure.HandshakeContext(ctx) })
	return secure.ConnectionState(), err
}
