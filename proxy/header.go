package proxy

import (
	"crypto/tls"
	"net/netip"

	"github.com/holdfast-net/holdfast/internal/proxyproto"
)

// header is the PROXY header of a connection, as HAProxy's doc/proxy-protocol.txt has
// it. Version 2 tells what is known of TLS: the name asked for, the protocol agreed on,
// and the client's session, if it ended here.
func header(version int, from, to netip.AddrPort, state *tls.ConnectionState, name string) ([]byte, error) {
	h := proxyproto.Header{Version: version, Source: from, Destination: to}
	if !from.IsValid() || !to.IsValid() { // a Unix socket: there is nothing to tell
		h = proxyproto.Header{Version: version, Local: true}
	}
	if version == 2 && !h.Local {
		h.TLVs = aboutTLS(state, name)
	}
	return h.Append(nil)
}

// The TLVs inside that of the TLS session, and its flags (§2.2.6).
const (
	sslVersion = 0x21
	sslCN      = 0x22
	sslCipher  = 0x23

	clientSSL      = 0x01
	clientCertConn = 0x02
	clientCertSess = 0x04
)

func aboutTLS(state *tls.ConnectionState, name string) (all []proxyproto.TLV) {
	if name != "" {
		all = append(all, proxyproto.TLV{Type: proxyproto.TypeAuthority, Value: []byte(name)})
	}
	if state == nil {
		return all
	}
	if p := state.NegotiatedProtocol; p != "" {
		all = append(all, proxyproto.TLV{Type: proxyproto.TypeALPN, Value: []byte(p)})
	}
	session := []byte{clientSSL, 0, 0, 0, 1} // verify: 0 only if there was a certificate and it was good
	add := func(kind byte, value string) {
		session = append(session, kind, byte(len(value)>>8), byte(len(value)))
		session = append(session, value...)
	}
	if len(state.PeerCertificates) > 0 {
		session[0] |= clientCertSess
		if !state.DidResume {
			session[0] |= clientCertConn
		}
		if len(state.VerifiedChains) > 0 {
			session[4] = 0
		}
		if cn := state.PeerCertificates[0].Subject.CommonName; cn != "" && len(cn) <= 256 {
			add(sslCN, cn)
		}
	}
	add(sslVersion, tlsVersion(state.Version))
	add(sslCipher, tls.CipherSuiteName(state.CipherSuite))
	return append(all, proxyproto.TLV{Type: proxyproto.TypeSSL, Value: session})
}

// tlsVersion is the name as OpenSSL writes it, which those who read headers know.
func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS13:
		return "TLSv1.3"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS11:
		return "TLSv1.1"
	}
	return tls.VersionName(v)
}
