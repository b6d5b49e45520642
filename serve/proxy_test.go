package serve_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
)

const proxyV1 = "PROXY TCP4 192.0.2.7 10.0.0.1 4711 7000\r\n"

// proxyV2 is a header of version 2: the command, the family, what follows.
func proxyV2(command, family byte, addresses string) string {
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x20|command, family)
	return string(binary.BigEndian.AppendUint16(h, uint16(len(addresses)))) + addresses
}

var (
	v2TCP   = proxyV2(1, 0x11, "\xc0\x00\x02\x07\x0a\x00\x00\x01\x12\x67\x1b\x58")
	v2Local = proxyV2(0, 0, "")
	v2Map   = proxyV2(1, 0x21, strings.Repeat("\x00", 10)+"\xff\xff\xc0\x00\x02\x07"+strings.Repeat("\x00", 15)+"\x01\x12\x67\x1b\x58")
)

// whoAmI answers each line with the client's address.
func whoAmI(p serve.Proxy) *serve.Server {
	return &serve.Server{Proxy: p, Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, _ []byte) error {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		return c.Send([]byte(host))
	})}
}

// Faults 85, 86, 87.
func TestProxyHeader(t *testing.T) {
	trusted := serve.Proxy{Trusted: prefixes("10.0.0.9/32")}
	only := serve.Proxy{Trusted: trusted.Trusted, Only: true}
	for _, c := range []struct {
		name, from, send, want string // want is the answer, "" the end
		proxy                  serve.Proxy
	}{
		{"version 1", "10.0.0.9", proxyV1 + "who\n", "192.0.2.7", trusted},
		{"version 2", "10.0.0.9", v2TCP + "who\n", "192.0.2.7", trusted},
		{"mapped address", "10.0.0.9", v2Map + "who\n", "192.0.2.7", trusted},
		{"mapped network", "10.0.0.9", v2TCP + "who\n", "192.0.2.7", serve.Proxy{Trusted: prefixes("::ffff:10.0.0.9/128")}},
		{"local keeps the peer", "10.0.0.9", v2Local + "who\n", "10.0.0.9", trusted},
		{"unknown keeps the peer", "10.0.0.9", "PROXY UNKNOWN\r\nwho\n", "10.0.0.9", trusted},
		{"untrusted header is bytes", "10.0.0.8", proxyV1 + "who\n", "10.0.0.8\n10.0.0.8", trusted},
		{"untrusted without", "10.0.0.8", "who\n", "10.0.0.8", trusted},
		{"missing", "10.0.0.9", "who\n", "", trusted},
		{"only: untrusted", "10.0.0.8", "who\n", "", only},
		{"only: trusted", "10.0.0.9", v2TCP + "who\n", "192.0.2.7", only},
		{"right version", "10.0.0.9", v2TCP + "who\n", "192.0.2.7", serve.Proxy{Trusted: trusted.Trusted, Version: 2}},
		{"wrong version", "10.0.0.9", proxyV1 + "who\n", "", serve.Proxy{Trusted: trusted.Trusted, Version: 2}},
		{"too long", "10.0.0.9", "PROXY TCP4 " + strings.Repeat("1", 120), "", trusted},
		{"ended within", "10.0.0.9", "PROXY TC", "", trusted},
		{"twice is bytes", "10.0.0.9", proxyV1 + proxyV1, "192.0.2.7", trusted},
		{"off", "10.0.0.9", proxyV1, "10.0.0.9", serve.Proxy{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, whoAmI(c.proxy), func(t *testing.T, w *world) {
				bad := w.clientAt(c.from)
				io.WriteString(bad.Conn, c.send)
				bad.CloseWrite()
				if c.want != "" {
					bad.expect(c.want + "\n")
					bad.expectEnd()
					return
				}
				bad.expectGone()
				if events := w.seen(serve.HeaderFailed); w.srv.Stats().BadHeaders != 1 || len(events) != 1 {
					t.Errorf("%d counted, events %v", w.srv.Stats().BadHeaders, events)
				}
				if lines := w.logged("header failed"); len(lines) != 1 || len(lines[0]) > 400 {
					t.Errorf("logged %q", lines)
				}
			})
		})
	}
	t.Run("byte by byte", func(t *testing.T) {
		for _, header := range []string{proxyV1, v2TCP} {
			inWorld(t, whoAmI(trusted), func(t *testing.T, w *world) {
				c := w.client()
				for _, b := range []byte(header + "who\n") {
					c.write(string([]byte{b}))
					synctest.Wait()
				}
				c.expect("192.0.2.7\n")
			})
		}
	})
	t.Run("large payload behind it", func(t *testing.T) {
		inWorld(t, whoAmI(trusted), func(t *testing.T, w *world) {
			c := w.client()
			go io.WriteString(c.Conn, v2TCP+strings.Repeat("who\n", 50_000))
			c.expect(strings.Repeat("192.0.2.7\n", 50_000))
		})
	})
	t.Run("slow", func(t *testing.T) {
		inWorld(t, whoAmI(trusted), func(t *testing.T, w *world) {
			begin := time.Now()
			silent, slow := w.client(), w.client()
			for _, b := range "PROXY" {
				slow.write(string(b))
				time.Sleep(900 * time.Millisecond)
			}
			within(t, slow.expectGone().Sub(begin), 5*time.Second, 5*time.Second)
			within(t, silent.expectGone().Sub(begin), 5*time.Second, 5*time.Second)
			later := w.client()
			later.write(proxyV1)
			time.Sleep(20 * time.Second) // that limit is over
			later.write("who\n")
			later.expect("192.0.2.7\n")
		})
	})
	t.Run("limits are the client's", func(t *testing.T) {
		srv := whoAmI(trusted)
		srv.Limits.MaxPerIP = 1
		srv.Limits.Deny = prefixes("198.51.100.0/24")
		inWorld(t, srv, func(t *testing.T, w *world) {
			ask := func(addr string) *client {
				c := w.client()
				c.write(strings.Replace(proxyV1, "192.0.2.7", addr, 1) + "who\n")
				return c
			}
			ask("192.0.2.7").expect("192.0.2.7\n")
			ask("192.0.2.8").expect("192.0.2.8\n") // from the same proxy
			ask("192.0.2.7").expectGone()
			ask("198.51.100.1").expectGone()
			if r := srv.Stats().Refused; r.PerIP != 1 || r.Network != 1 {
				t.Errorf("%+v", r)
			}
			if e := w.seen(serve.Refused); len(e) != 2 {
				t.Errorf("events %v", e)
			}
		})
	})
	t.Run("TLS behind it", func(t *testing.T) {
		a := newAuthority(t)
		for _, together := range []bool{false, true} {
			t.Run(fmt.Sprint("together ", together), func(t *testing.T) {
				srv := whoAmI(trusted)
				srv.TLS = a.serverTLS()
				inWorld(t, srv, func(t *testing.T, w *world) {
					c := w.client()
					conn := net.Conn(&withHeader{Conn: c.Conn, header: v2TCP})
					if !together {
						c.write(v2TCP)
						conn = c.Conn
					}
					tc := newClient(t, tls.Client(conn, a.caller(nil)))
					tc.write("who\n")
					tc.expect("192.0.2.7\n")
				})
			})
		}
	})
	t.Run("Unix", func(t *testing.T) {
		leak.Check(t)
		path := "unix:" + filepath.Join(t.TempDir(), "s")
		c := dial(t, start(t, whoAmI(serve.Proxy{Unix: true}), path))
		c.write(proxyV1 + "who\n")
		c.expect("192.0.2.7\n")
		c = dial(t, start(t, whoAmI(serve.Proxy{Unix: true, Only: true}), path+"2"))
		c.write("who\n")
		c.expectGone()
	})
	t.Run("Unix name like an address", func(t *testing.T) { // which its owner chooses
		leak.Check(t)
		srv := whoAmI(trusted)
		srv.Limits.Deny = trusted.Trusted
		addr := start(t, srv, "unix:"+filepath.Join(t.TempDir(), "s"))
		t.Chdir(t.TempDir())
		conn, err := net.DialUnix("unix", &net.UnixAddr{Name: "10.0.0.9:4711", Net: "unix"}, addr.(*net.UnixAddr))
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, conn)
		c.write("who\n" + proxyV1)
		c.expect("10.0.0.9\n10.0.0.9\n") // whoAmI says how it is called
	})
}

// withHeader sends a header in one piece with the first bytes.
type withHeader struct {
	net.Conn
	header string
}

func (c *withHeader) Write(p []byte) (int, error) {
	n := len(c.header)
	m, err := c.Conn.Write(append([]byte(c.header), p...))
	c.header = ""
	return max(m-n, 0), err
}
