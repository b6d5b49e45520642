package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// wire is one side of a connection in memory: it reads what is given, and keeps what is
// written.
type wire struct {
	io.Reader
	bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)       { return w.Reader.Read(p) }
func (*wire) Close() error                       { return nil }
func (*wire) LocalAddr() net.Addr                { return nil }
func (*wire) RemoteAddr() net.Addr               { return nil }
func (*wire) SetDeadline(time.Time) error        { return nil }
func (*wire) SetReadDeadline(time.Time) error    { return nil }
func (*wire) SetWriteDeadline(t time.Time) error { return nil }

// helloOf is what a client of crypto/tls sends first.
func helloOf(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	w := &wire{Reader: strings.NewReader("")}
	tls.Client(w, cfg).Handshake()
	if w.Len() == 0 {
		t.Fatal("no hello")
	}
	return w.Bytes()
}

var errSeen = errors.New("seen")

// helloAsTLS is what crypto/tls makes of the same bytes; ok is that it takes them.
func helloAsTLS(b []byte) (h hello, ok bool) {
	cfg := &tls.Config{GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		h, ok = hello{info.ServerName, slices.Clone(info.SupportedProtos)}, true
		return nil, errSeen
	}}
	tls.Server(&wire{Reader: bytes.NewReader(b)}, cfg).HandshakeContext(context.Background())
	return h, ok
}

// recut puts the first message of a stream of one record into records of n bytes.
func recut(b []byte, n int) (out []byte) {
	for body := b[recordHeader:]; len(body) > 0; {
		m := min(n, len(body))
		out = append(out, b[0], b[1], b[2])
		out = binary.BigEndian.AppendUint16(out, uint16(m))
		out = append(out, body[:m]...)
		body = body[m:]
	}
	return out
}

var hellos = map[string]*tls.Config{
	"name":         {ServerName: "db.example.com", InsecureSkipVerify: true},
	"no name":      {InsecureSkipVerify: true},
	"protocols":    {ServerName: "a.test", NextProtos: []string{"h2", "http/1.1", "postgresql"}},
	"TLS 1.2":      {ServerName: "old.test", MaxVersion: tls.VersionTLS12},
	"longest name": {ServerName: strings.Repeat("a23456789.", 25) + "abc"},
}

// A ClientHello says the same however it is cut, into records and into segments.
func TestHelloAtEverySplit(t *testing.T) {
	for name, cfg := range hellos {
		t.Run(name, func(t *testing.T) {
			whole := helloOf(t, cfg)
			for _, b := range [][]byte{whole, recut(whole, 1), recut(whole, 3), recut(whole, 100)} {
				for n := 0; n < len(b); n += 1 + n/200 { // at every byte of the beginning
					if h, done, err := parseHello(b[:n]); done || err != nil {
						t.Fatalf("with %d of %d bytes: %+v, %v, %v", n, len(b), h, done, err)
					}
				}
				h, done, err := parseHello(append(b[:len(b):len(b)], "what comes behind it"...))
				if err != nil || !done || h.name != cfg.ServerName || !slices.Equal(h.protocols, cfg.NextProtos) {
					t.Errorf("%+v, %v, %v", h, done, err)
				}
			}
		})
	}
}

// What cannot become a ClientHello is refused at its first wrong byte, or when it is
// whole.
func TestHelloRefuses(t *testing.T) {
	good := helloOf(t, hellos["name"])
	with := func(at int, b ...byte) []byte {
		c := slices.Clone(good)
		copy(c[at:], b)
		return c
	}
	for name, b := range map[string][]byte{
		"HTTP":                []byte("G"),
		"SSH":                 []byte("SSH-2.0-x\r\n"),
		"SSLv2":               {0x80},
		"an alert":            {21},
		"another protocol":    {22, 2},
		"an empty record":     {22, 3, 1, 0, 0},
		"a record too large":  {22, 3, 1, 0x40, 1},
		"a server's hello":    with(5, 2),
		"a message too large": with(6, 1),
		"a session too long":  with(43, 255),
	} {
		if h, done, err := parseHello(b); err == nil {
			t.Errorf("%s: %+v, %v", name, h, done)
		}
	}
}

// A route's name matches as DNS names do.
func TestRouteMatches(t *testing.T) {
	for _, c := range []struct {
		route     Route
		name      string
		protocols []string
		want      bool
	}{
		{Route{}, "", nil, true},
		{Route{}, "any", nil, true},
		{Route{ServerName: "a.test"}, "a.test", nil, true},
		{Route{ServerName: "a.test"}, "A.Test", nil, true},
		{Route{ServerName: "a.test"}, "a.test.", nil, true},
		{Route{ServerName: "a.test"}, "b.a.test", nil, false},
		{Route{ServerName: "a.test"}, "", nil, false},
		{Route{ServerName: "*.test"}, "a.test", nil, true},
		{Route{ServerName: "*.test"}, "b.a.test", nil, false},
		{Route{ServerName: "*.test"}, "test", nil, false},
		{Route{ServerName: "*.test"}, ".test", nil, false},
		{Route{ALPN: "h2"}, "a.test", []string{"http/1.1", "h2"}, true},
		{Route{ALPN: "h2"}, "a.test", nil, false},
		{Route{ServerName: "a.test", ALPN: "h2"}, "b.test", []string{"h2"}, false},
	} {
		if got := c.route.matches(c.name, c.protocols); got != c.want {
			t.Errorf("%+v of %q %q: %v", c.route, c.name, c.protocols, got)
		}
	}
}

func FuzzHello(f *testing.F) {
	for _, cfg := range hellos {
		b := helloOf(f, cfg)
		f.Add(b, uint16(1))
		f.Add(recut(b, 7), uint16(100))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(3))
	f.Add([]byte{22, 3, 1, 0, 4, 1, 0, 0, 0}, uint16(5))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		h, done, err := parseHello(b)
		if err != nil && (done || !reflect.DeepEqual(h, hello{})) {
			t.Fatalf("%+v, %v beside %v", h, done, err)
		}
		// An answer does not change when more comes, and a beginning gives none of its own.
		if part := b[:int(cut)%(len(b)+1)]; true {
			ph, pdone, perr := parseHello(part)
			if (pdone || perr != nil) && (pdone != done || (perr != nil) != (err != nil) || !reflect.DeepEqual(ph, h)) {
				t.Fatalf("of %d bytes %+v, %v, %v; of %d %+v, %v, %v", len(part), ph, pdone, perr, len(b), h, done, err)
			}
		}
		// What crypto/tls takes is taken, and means the same. Beyond what we keep of a hello
		// it is refused here.
		if theirs, ok := helloAsTLS(b); ok && len(b) <= maxHello {
			if !done || h.name != theirs.name || !slices.Equal(h.protocols, theirs.protocols) {
				t.Fatalf("%+v, %v, %v; crypto/tls has %+v", h, done, err, theirs)
			}
		}
	})
}
