package serve

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-net/holdfast/internal/proxyproto"
)

// Proxy says which peers pass on the connections of others, with a PROXY header
// (HAProxy's, version 1 or 2) in front. Theirs must begin with one; nobody else's is
// looked at, for anybody can claim any address.
type Proxy struct {
	Trusted []netip.Prefix // of the proxies; empty is none
	Unix    bool           // who connects to a Unix socket is a proxy
	Only    bool           // refuse whoever is not a proxy
	Version int            // 1 or 2 to take only that; 0 is either
}

var (
	errNoProxy = fmt.Errorf("%w: not a trusted proxy", ErrDenied)
	errVersion = errors.New("serve: a PROXY header of another version")
)

// Trusts reports whether the word of a peer is taken. The zero address is that of a Unix
// socket.
func (p Proxy) Trusts(peer netip.Addr) bool {
	if !peer.IsValid() {
		return p.Unix
	}
	peer = peer.Unmap()
	return slices.ContainsFunc(p.Trusted, func(n netip.Prefix) bool { return unmap(n).Contains(peer) })
}

// readHeader takes the client's address from a trusted proxy. What came behind the
// header is the stream's.
func (s *Server) readHeader(c *Conn) error {
	if len(s.Proxy.Trusted) == 0 && !s.Proxy.Unix {
		return nil
	}
	if !s.Proxy.Trusts(addrOf(c.raw.RemoteAddr())) {
		if s.Proxy.Only {
			return errNoProxy
		}
		return nil
	}
	if d := s.limits.Header; d > 0 {
		c.raw.SetReadDeadline(time.Now().Add(d))
		defer c.raw.SetReadDeadline(time.Time{})
	}
	buf := make([]byte, 0, 256)
	for {
		h, n, err := proxyproto.Parse(buf)
		switch {
		case err != nil:
			return err
		case n > 0 && s.Proxy.Version != 0 && h.Version != s.Proxy.Version:
			return errVersion
		case n > 0:
			c.client = clientOf(h)
			c.unread = slices.Clone(buf[n:])
			return nil
		}
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf)) // Parse refuses what is longer than a header may be
		}
		m, err := c.raw.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("serve: PROXY header: %w", err)
		}
	}
}

// clientOf is the address that a header tells; nil is the connection's own.
func clientOf(h proxyproto.Header) net.Addr {
	switch {
	case h.Local:
		return nil
	case h.Source.IsValid():
		return net.TCPAddrFromAddrPort(h.Source)
	}
	return &net.UnixAddr{Name: h.SourcePath, Net: "unix"}
}
