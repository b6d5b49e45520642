package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"github.com/holdfast-net/holdfast"
)

// maxKept bounds what is kept of a server's words, whatever the probe.
const maxKept = 4096

// note is what a probe leaves for a Monitor beside its error.
type note struct {
	layer   string
	expires time.Time
}

type noteKey struct{}

// noteOf returns the note of the Monitor that runs the probe, or one for nobody.
func noteOf(ctx context.Context) *note {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		return n
	}
	return &note{}
}

// within runs ask with the end of ctx as the connection's deadline. It is absolute: no
// byte that arrives moves it.
func within(ctx context.Context, conn net.Conn, ask func() error) error {
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := ask()
	switch {
	case err == nil:
		conn.SetDeadline(time.Time{}) // where that fails, there is no further use to spoil
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Cause(ctx)
	}
	return err
}

// stateOf returns the TLS state of a connection that has one.
func stateOf(conn net.Conn) (tls.ConnectionState, bool) {
	switch c := conn.(type) {
	case *holdfast.Conn:
		return c.ConnectionState()
	case interface{ ConnectionState() tls.ConnectionState }:
		return c.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

// expiry is when the chain that was verified is no longer valid, and the last of several.
// Certificates that came along without being needed do not count; a configuration that
// verifies by itself leaves no chain, and then the server's own must do.
func expiry(state tls.ConnectionState) (end time.Time) {
	for _, chain := range state.VerifiedChains {
		if e := firstToExpire(chain); e.After(end) {
			end = e
		}
	}
	if end.IsZero() && len(state.PeerCertificates) > 0 {
		end = state.PeerCertificates[0].NotAfter
	}
	return end
}

func firstToExpire(chain []*x509.Certificate) (end time.Time) {
	for i, cert := range chain {
		if i == 0 || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	return end
}

// hostOf returns the name and the port that the connection was meant for.
func hostOf(conn net.Conn) (host, port string) {
	addr, name := "", ""
	if c, ok := conn.(*holdfast.Conn); ok {
		e := c.Node().Endpoint()
		addr, name = e.Addr, e.ServerName
	} else if a := conn.RemoteAddr(); a != nil {
		addr = a.String()
	}
	host, port, err := net.SplitHostPort(addr)
	switch {
	case name != "":
		return name, port
	case err != nil: // a Unix socket
		return "localhost", ""
	}
	return host, port
}
