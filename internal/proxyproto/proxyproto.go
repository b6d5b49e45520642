// Package proxyproto reads and writes the header with which a proxy tells a server
// whose connection it passes on: the PROXY protocol, versions 1 (a line of text) and 2
// (binary), as HAProxy's doc/proxy-protocol.txt defines them. Bytes in, bytes out: it
// does no I/O and knows no clock.
//
// A server reads until there is a header:
//
//	for {
//		h, n, err := proxyproto.Parse(buf)
//		switch {
//		case err != nil:
//			return err // close the connection: this peer does not speak PROXY
//		case n == 0:
//			buf = append(buf, more()...) // under a deadline; the specification wants 3 s or more
//		case h.Local:
//			return serve(conn, conn.RemoteAddr(), buf[n:])
//		default:
//			return serve(conn, net.TCPAddrFromAddrPort(h.Source), buf[n:])
//		}
//	}
//
// # Guarantees
//
// Only the declared header is looked at: what is fused behind it is the payload's, and
// neither changes the answer nor is counted in n. However a header is cut into pieces,
// the outcome is the same: once there is an answer, be it a header or an error, more
// bytes do not change it. Input that cannot become a header is refused at its first
// wrong byte, or where the field ends that it makes wrong; the TLVs of version 2 are
// looked at when they are complete. So at most MaxV1 or MaxV2 bytes need to be kept.
//
// A Header has no part of the bytes that it was read from, which may be used again.
//
// # Limits
//
// Whether there is a header must be configured, never guessed, and who may send one is
// the caller's to check: anybody can claim any address. What the TLVs say is for the
// caller to read, but for the checksum, which is verified here.
package proxyproto

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
)

// MaxV1 is the length of the longest header of version 1, its CR LF counted.
const MaxV1 = 107

// MaxV2 is the length of the longest header of version 2 that is read or written. The
// format would allow for 65,551 bytes, to be kept for a peer that has shown nothing
// yet; certificate names, a request id and a cloud's TLVs together take some hundreds.
const MaxV2 = 4096

// ErrMalformed is what every error of Parse matches.
var ErrMalformed = errors.New("malformed PROXY header")

// Header is one PROXY header.
type Header struct {
	Version int // 1 or 2

	// Local says that the connection's own addresses stand: it is the proxy's own, a
	// health check say (LOCAL), or the proxy does not know (UNKNOWN, UNSPEC).
	Local bool

	// Of the connection that the proxy accepted. They are zero when Local, and for a
	// Unix socket. A v4 address that came in the form of a v6 one is a v4 address here,
	// so that it matches the networks it is in.
	Source, Destination netip.AddrPort

	// Of a Unix socket. Both are "" for other families, either may be for a socket
	// without a name. An abstract name begins with "@", as everywhere in Go. Any bytes but
	// NUL may be in them, so a log must escape them.
	SourcePath, DestinationPath string

	Datagram bool  // UDP, or a Unix datagram; version 2 only
	TLVs     []TLV // version 2 only, in the order of the wire
}

// TLV is one of the values that may follow the addresses.
type TLV struct {
	Type  byte
	Value []byte
}

// The registered types. 0xE0 to 0xEF are free for applications.
const (
	TypeALPN      = 0x01 // the protocol negotiated by TLS
	TypeAuthority = 0x02 // the name the client asked for (SNI)
	TypeCRC32C    = 0x03 // checksum of the header, see Parse and Append
	TypeNoop      = 0x04 // padding
	TypeUniqueID  = 0x05 // of the connection, at most 128 bytes
	TypeSSL       = 0x20 // the client's TLS session, with TLVs in it
	TypeNetNS     = 0x30 // network namespace
)

var (
	signature1 = []byte("PROXY ")
	signature2 = []byte("\r\n\r\n\x00\r\nQUIT\n")
)

// Parse reads the header at the start of b and returns its length. n == 0 without an
// error means that more bytes are needed. Every error matches ErrMalformed, and the
// peer must be cut off.
//
// A checksum TLV is verified, and one that is wrong is an error. Those who send a Local
// header of version 2 may put anything into it, and all of it is skipped; if it can be
// read as TLVs nevertheless, they are returned, and their checksum is verified.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case len(b) == 0:
		return Header{}, 0, nil
	case b[0] == signature1[0]:
		h, n, err = parse1(b)
	case b[0] == signature2[0]:
		h, n, err = parse2(b)
	default:
		err = malformed("it begins with byte %#02x", b[0])
	}
	if err != nil || n == 0 {
		return Header{}, 0, err
	}
	return h, n, nil
}

// begins reports whether b has the whole signature, or is an error if it cannot come to
// have it.
func begins(b, signature []byte) (bool, error) {
	n := min(len(b), len(signature))
	if !bytes.Equal(b[:n], signature[:n]) {
		return false, malformed("it begins with %q", b[:n])
	}
	return n == len(signature), nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// Append appends the header to dst, to be sent in one write and before all else. On an
// error dst is returned as it was.
//
// Of a Local header the addresses are not written. A header with neither address is that
// of a Unix socket. Addresses of two families go as v6, the v4 one mapped; zones mean
// nothing to another host and are left out. A checksum is sent when the TLVs have one,
// and computed here: its Value is ignored. Version 1 has no datagrams, no Unix sockets
// and no TLVs, and to ask for them is an error.
func (h Header) Append(dst []byte) ([]byte, error) {
	var out []byte
	var err error
	switch h.Version {
	case 1:
		out, err = h.append1(dst)
	case 2:
		out, err = h.append2(dst)
	default:
		err = fmt.Errorf("PROXY version %d: there are 1 and 2", h.Version)
	}
	if err != nil {
		return dst, err
	}
	return out, nil
}

// addresses returns both addresses in one family, as they go on the wire.
func (h Header) addresses() (src, dst netip.AddrPort, err error) {
	if !h.Source.IsValid() || !h.Destination.IsValid() {
		return src, dst, errors.New("PROXY header: both the source and the destination are needed")
	}
	from, to := h.Source.Addr().Unmap().WithZone(""), h.Destination.Addr().Unmap().WithZone("")
	if from.Is4() != to.Is4() {
		from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	return netip.AddrPortFrom(from, h.Source.Port()), netip.AddrPortFrom(to, h.Destination.Port()), nil
}
