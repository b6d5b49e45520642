package integrations

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/holdfast-net/holdfast/internal/proxyproto"
	goproxyproto "github.com/pires/go-proxyproto"
)

// theirs is what go-proxyproto makes of a header, and how much of b that was.
func theirs(b []byte) (h *pires, n int, err error) {
	in := bytes.NewReader(b)
	r := bufio.NewReaderSize(in, 16) // it may read ahead
	h, err = readPires(r)
	rest, _ := io.ReadAll(io.MultiReader(r, in))
	return h, len(b) - len(rest), err
}

type pires = goproxyproto.Header

var readPires = goproxyproto.Read

// FuzzProxyHeader holds that two who read PROXY headers understand the same, where both
// take them: the address that access is granted by must not depend on who reads.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.1 1234 443\r\nGET /"))
	f.Add([]byte("PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n"))
	f.Add([]byte("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"))
	for _, h := range []proxyproto.Header{
		{Local: true},
		{Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2")},
		{Source: netip.MustParseAddrPort("[2001:db8::1]:1"), Destination: netip.MustParseAddrPort("[2001:db8::2]:2"),
			TLVs: []proxyproto.TLV{{Type: proxyproto.TypeAuthority, Value: []byte("db.test")}, {Type: proxyproto.TypeCRC32C}}},
		{SourcePath: "/run/a", DestinationPath: "/run/b"},
	} {
		h.Version = 2
		b, err := h.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, "payload"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, n, err := proxyproto.Parse(b)
		h, m, theirErr := theirs(b)
		if err != nil || n == 0 || theirErr != nil {
			return // each refuses some that the other takes
		}
		if n != m {
			t.Fatalf("the header of %q ends after %d bytes, theirs after %d", b, n, m)
		}
		if int(h.Version) != ours.Version {
			t.Fatalf("%q: version %d, theirs %d", b, ours.Version, h.Version)
		}
		if ours.Local || h.Command.IsLocal() || h.TransportProtocol.IsUnspec() {
			if unspec := h.Command.IsLocal() || h.TransportProtocol.IsUnspec(); !ours.Local || !unspec {
				t.Fatalf("%q: %+v, theirs %+v", b, ours, h)
			}
			return
		}
		for _, c := range []struct {
			ours netip.AddrPort
			path string
			net  net.Addr
		}{{ours.Source, ours.SourcePath, h.SourceAddr}, {ours.Destination, ours.DestinationPath, h.DestinationAddr}} {
			switch a := c.net.(type) {
			case *net.TCPAddr:
				same(t, b, c.ours, a.AddrPort())
			case *net.UDPAddr:
				same(t, b, c.ours, a.AddrPort())
			case *net.UnixAddr:
				if c.ours.IsValid() {
					t.Fatalf("%q: %v, theirs %v", b, c.ours, a)
				}
			}
		}
	})
}

func same(t *testing.T, b []byte, ours, theirs netip.AddrPort) {
	t.Helper()
	if ours != netip.AddrPortFrom(theirs.Addr().Unmap(), theirs.Port()) {
		t.Fatalf("%q: %v, theirs %v", b, ours, theirs)
	}
}
