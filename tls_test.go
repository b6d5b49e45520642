package holdfast_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// authority issues certificates. They are valid in the year 2000, where a bubble's
// clock begins, and for as long as these tests may run.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

var (
	longAgo = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)
	farOff  = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
)

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.cert, a.key = sign(t, nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Test Authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	})
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a certificate; without an authority it signs itself.
func sign(t *testing.T, by *authority, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = longAgo, farOff
	}
	c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// leaf is a certificate for names and addresses.
func leaf(names ...string) *x509.Certificate {
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: "a server"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	return c
}

func (a *authority) issue(t *testing.T, template *x509.Certificate) tls.Certificate {
	t.Helper()
	cert, key := sign(t, a, template)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

// client trusts the authority; server shows a certificate of it.
func (a *authority) client() *tls.Config { return &tls.Config{RootCAs: a.pool} }

func (a *authority) server(t *testing.T, names ...string) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{a.issue(t, leaf(names...))}}
}

// startTLS is start for a server that speaks TLS, and perhaps TLS within that.
func (w *world) startTLS(addr string, layers ...*tls.Config) *server {
	w.t.Helper()
	ln, err := w.net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, cfg := range layers {
		ln = tls.NewListener(ln, cfg)
	}
	s := &server{w: w, addr: addr, ln: ln, conns: map[net.Conn]bool{}}
	s.wg.Go(s.serve)
	w.servers = append(w.servers, s)
	return s
}

// clusterTLS is a Cluster over the world's servers, spoken to in TLS.
func (w *world) clusterTLS(cfg holdfast.Config) *holdfast.Cluster {
	w.t.Helper()
	var addrs []string
	for _, s := range w.servers {
		addrs = append(addrs, "tls://"+s.addr)
	}
	return w.clusterOf(cfg, addrs...)
}

func TestTLSVerifiesTheName(t *testing.T) {
	ca := newAuthority(t)
	for _, test := range []struct {
		name   string
		cert   []string // what the server can show
		addr   string   // what is dialed
		config *tls.Config
		sni    string // what the server was asked for
		class  holdfast.Class
	}{
		{"the host of the address", []string{"10.0.0.1"}, "tls://10.0.0.1:7000", &tls.Config{}, "", holdfast.ClassOther},
		{"another host", []string{"10.0.0.2"}, "tls://10.0.0.1:7000", &tls.Config{}, "", holdfast.ClassTLSHostname},
		{"the endpoint's name", []string{"db.example"}, "tls://10.0.0.1:7000?sni=db.example", &tls.Config{}, "db.example", holdfast.ClassOther},
		{"not the endpoint's name", []string{"10.0.0.1"}, "tls://10.0.0.1:7000?sni=db.example", &tls.Config{}, "db.example", holdfast.ClassTLSHostname},
		{"the configured name", []string{"db.example"}, "tls://10.0.0.1:7000", &tls.Config{ServerName: "db.example"}, "db.example", holdfast.ClassOther},
		{"the endpoint's before the configured", []string{"a.example"}, "tls://10.0.0.1:7000?sni=a.example", &tls.Config{ServerName: "b.example"}, "a.example", holdfast.ClassOther},
		{"a name that was looked up", []string{"db.example"}, "tls://db.example:7000", &tls.Config{}, "db.example", holdfast.ClassOther},
		{"its address is not its name", []string{"10.0.0.1"}, "tls://db.example:7000", &tls.Config{}, "db.example", holdfast.ClassTLSHostname},
		{"nothing, if one insists", []string{"evil.example"}, "tls://10.0.0.1:7000", &tls.Config{InsecureSkipVerify: true}, "", holdfast.ClassOther},
	} {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				var sni atomic.Value
				serverConfig := ca.server(t, test.cert...)
				serverConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
					sni.Store(hello.ServerName)
					return nil, nil
				}
				s := w.startTLS("10.0.0.1:7000", serverConfig)
				shaken := 0
				cfg := holdfast.Config{
					TLS: test.config.Clone(),
					Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
						e.ServerName, _, _ = net.SplitHostPort(e.Addr)
						e.Addr = "10.0.0.1:7000"
						return []holdfast.Endpoint{e}, 0, nil
					}},
					Handshake: func(context.Context, *holdfast.Conn) error { shaken++; return nil },
				}
				cfg.TLS.RootCAs = ca.pool
				err := w.clusterOf(cfg, test.addr).Do(t.Context(), holdfast.Unsafe, say("secret"))
				if got := sni.Load(); got != test.sni {
					t.Errorf("asked for %q, want %q", got, test.sni)
				}
				if test.class == holdfast.ClassOther {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if e := asError(t, err); e.Class != test.class || e.Phase != holdfast.PhaseHandshake {
					t.Errorf("class %v in phase %v: %v", e.Class, e.Phase, err)
				}
				if shaken != 0 || len(s.got()) != 0 {
					t.Error("something was said to a server that could not prove its name")
				}
			})
		})
	}

	t.Run("tcp never speaks TLS", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{TLS: ca.client()})
			if err := c.Do(t.Context(), holdfast.Unsafe, say("plain")); err != nil {
				t.Error(err)
			}
			conn := borrow(t, c)
			defer conn.Release()
			if _, ok := conn.ConnectionState(); ok {
				t.Error("a tcp:// connection has a TLS state")
			}
		})
	})
}

func TestTLSHandshakeStallTimesOut(t *testing.T) {
	ca := newAuthority(t)
	silent := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	drip := func(conn net.Conn) { // the header of a long record, then a byte a second
		conn.Write([]byte{22, 3, 3, 0x20, 0})
		for {
			if _, err := conn.Write([]byte{2}); err != nil {
				return
			}
			time.Sleep(time.Second)
		}
	}
	for name, server := range map[string]func(net.Conn){"silent": silent, "a byte a second": drip} {
		for _, limit := range []time.Duration{0, 2 * time.Second} {
			t.Run(fmt.Sprint(name, " ", limit), func(t *testing.T) {
				inWorld(t, 1, func(t *testing.T, w *world) {
					s := w.servers[0]
					s.greets(func(conn net.Conn) bool { server(conn); return false })
					c := w.clusterTLS(holdfast.Config{TLS: ca.client(), Timeouts: holdfast.Timeouts{Dial: time.Second, Handshake: limit}})
					want := limit
					if limit == 0 {
						want = 5 * time.Second // the documented default
					}
					var err error
					d := took(func() { _, err = c.Acquire(t.Context()) })
					within(t, d, want, want)
					if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseHandshake || !e.SafeToRetry() {
						t.Errorf("phase %v, class %v: %v", e.Phase, e.Class, err)
					}
					if n := c.Stats().Conns; n != 0 {
						t.Errorf("%d connections are left", n)
					}
					time.Sleep(2 * time.Second) // until the drip notices
					if n := s.settled(); n != 0 {
						t.Errorf("the server has %d connections left", n)
					}
				})
			})
		}
	}
	t.Run("the hook shares the limit", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			s := w.startTLS("10.0.0.1:7000", ca.server(t, "10.0.0.1"))
			s.does(func(net.Conn, string) bool { return true }) // does not answer the login
			w.net.SetLink("", "", simnet.Link{Latency: 500 * time.Millisecond})
			c := w.clusterTLS(holdfast.Config{TLS: ca.client(), Handshake: func(_ context.Context, conn *holdfast.Conn) error {
				return exchange(conn, "login")
			}})
			var err error
			d := took(func() { _, err = c.Acquire(t.Context()) })
			within(t, d, 6*time.Second, 6*time.Second) // 1 s of dial, then 5 s from the first byte of TLS
			if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseHandshake {
				t.Errorf("phase %v, class %v: %v", e.Phase, e.Class, err)
			}
		})
	})
	t.Run("another node overtakes it", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].greets(func(conn net.Conn) bool { silent(conn); return false })
			w.startTLS("10.0.0.2:7000", ca.server(t, "10.0.0.2"))
			c := w.clusterTLS(holdfast.Config{TLS: ca.client(), Picker: holdfast.Ordered()})
			d := took(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Error(err)
				}
			})
			within(t, d, 250*time.Millisecond, 250*time.Millisecond)
		})
	})
	t.Run("the caller's context is shorter", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].greets(func(conn net.Conn) bool { silent(conn); return false })
			c := w.clusterTLS(holdfast.Config{TLS: ca.client()})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var err error
			d := took(func() { _, err = c.DialContext(ctx, "tcp", "any:1") })
			within(t, d, time.Second, time.Second)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	})
}

func TestTLSVersionsBelow12AreRefused(t *testing.T) {
	ca := newAuthority(t)
	if _, err := holdfast.New(holdfast.Static("tls://h:1"), holdfast.Config{TLS: &tls.Config{MaxVersion: tls.VersionTLS11}}); err == nil {
		t.Error("New took a configuration that can speak nothing above 1.1")
	}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				var hello *tls.ClientHelloInfo
				serverConfig := ca.server(t, "10.0.0.1")
				serverConfig.MinVersion, serverConfig.MaxVersion = tls.VersionTLS10, version
				serverConfig.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) { hello = h; return nil, nil }
				w.startTLS("10.0.0.1:7000", serverConfig)
				cfg := ca.client()
				cfg.MinVersion = tls.VersionTLS10 // not to be had
				conn, err := w.clusterTLS(holdfast.Config{TLS: cfg}).Acquire(t.Context())
				if version >= tls.VersionTLS12 {
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Release()
					if state, ok := conn.ConnectionState(); !ok || state.Version != version {
						t.Errorf("spoke %s", tls.VersionName(state.Version))
					}
				} else if e := asError(t, err); e.Class != holdfast.ClassTLSVersion || e.Phase != holdfast.PhaseHandshake {
					t.Errorf("class %v in phase %v: %v", e.Class, e.Phase, err)
				}
				if hello == nil {
					return // below 1.2 the server refuses before it asks
				}
				if slices.Min(hello.SupportedVersions) < tls.VersionTLS12 {
					t.Errorf("offered the versions %x", hello.SupportedVersions)
				}
				for _, suite := range hello.CipherSuites { // RFC 9325: forward secrecy and AEAD
					if name := tls.CipherSuiteName(suite); !strings.Contains(name, "GCM") && !strings.Contains(name, "POLY1305") || strings.HasPrefix(name, "TLS_RSA") {
						t.Errorf("offered %s", name)
					}
				}
			})
		})
	}

	// A server older than TLS 1.3's negotiation just answers with what it speaks.
	t.Run("an old server's answer", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].greets(func(conn net.Conn) bool {
				conn.Read(make([]byte, 4096))
				hello := append([]byte{2, 0, 0, 38, 3, 2}, make([]byte, 32)...) // ServerHello, 1.1, random
				hello = append(hello, 0, 0xc0, 0x13, 0)                         // no session, a suite, no compression
				conn.Write(append([]byte{22, 3, 2, 0, byte(len(hello))}, hello...))
				conn.Read(make([]byte, 4096))
				return false
			})
			_, err := w.clusterTLS(holdfast.Config{TLS: ca.client()}).Acquire(t.Context())
			if e := asError(t, err); e.Class != holdfast.ClassTLS && e.Class != holdfast.ClassTLSVersion {
				t.Errorf("class %v: %v", e.Class, err)
			}
		})
	})
}

// Each way to fail has a class of its own, ends the attempt on its node alone, and
// is not tried again in another round: only a change of configuration cures it.
func TestTLSFailuresHaveTheirOwnClasses(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good := ca.server(t, "10.0.0.2", "10.0.0.1")
	with := func(template *x509.Certificate, by *authority) func(*testing.T) *tls.Config {
		return func(t *testing.T) *tls.Config {
			cert, key := sign(t, by, template)
			return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}}
		}
	}
	dated := func(from, to time.Time) *x509.Certificate {
		c := leaf("10.0.0.1")
		c.NotBefore, c.NotAfter = from, to
		return c
	}
	changed := func(change func(*tls.Config)) func(*testing.T) *tls.Config {
		return func(*testing.T) *tls.Config {
			cfg := good.Clone()
			change(cfg)
			return cfg
		}
	}
	bubble := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	inFiles := func(f holdfast.TLSFiles) func(*testing.T) *tls.Config {
		return func(t *testing.T) *tls.Config {
			f.CA = writePEM(t, "CERTIFICATE", ca.cert.Raw)
			cfg, err := f.Config()
			if err != nil {
				t.Fatal(err)
			}
			return cfg
		}
	}
	pin := func(c *x509.Certificate) string {
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		return "sha256/" + base64.StdEncoding.EncodeToString(sum[:])
	}
	// The pinned keys and the revoked certificate are the first server's business
	// only: the second's key is pinned and its certificate is not on the list.
	goodLeaf, _ := x509.ParseCertificate(good.Certificates[0].Certificate[0])
	bad := ca.issue(t, leaf("10.0.0.1"))
	showBad := func(*testing.T) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{bad}} }
	revoked := writeCRL(t, ca, bad.Leaf)
	stranger := func(t *testing.T) *tls.Config { // shows a certificate that the server does not trust
		cfg := ca.client()
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert := other.issue(t, leaf("me"))
			return &cert, nil
		}
		return cfg
	}

	for _, test := range []struct {
		name   string
		server func(*testing.T) *tls.Config
		client func(*testing.T) *tls.Config // nil: trusts the authority
		class  holdfast.Class
		phase  holdfast.Phase
	}{
		{"expired", with(dated(longAgo, bubble.Add(-time.Hour)), ca), nil, holdfast.ClassTLSExpired, holdfast.PhaseHandshake},
		{"not yet valid", with(dated(bubble.Add(time.Hour), farOff), ca), nil, holdfast.ClassTLSExpired, holdfast.PhaseHandshake},
		{"wrong host", with(leaf("10.9.9.9"), ca), nil, holdfast.ClassTLSHostname, holdfast.PhaseHandshake},
		{"unknown authority", with(leaf("10.0.0.1"), other), nil, holdfast.ClassTLSAuthority, holdfast.PhaseHandshake},
		{"self-signed", with(leaf("10.0.0.1"), nil), nil, holdfast.ClassTLSAuthority, holdfast.PhaseHandshake},
		{"pin", showBad, inFiles(holdfast.TLSFiles{Pins: []string{pin(goodLeaf), pin(other.cert)}}), holdfast.ClassTLSPin, holdfast.PhaseHandshake},
		{"revoked", showBad, inFiles(holdfast.TLSFiles{CRL: revoked}), holdfast.ClassTLSRevoked, holdfast.PhaseHandshake},
		{"version", changed(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }), nil, holdfast.ClassTLSVersion, holdfast.PhaseHandshake},
		{"no common cipher", changed(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}
		}), nil, holdfast.ClassTLSVersion, holdfast.PhaseHandshake},
		{"client certificate refused, 1.2", changed(func(c *tls.Config) {
			c.MaxVersion, c.ClientAuth, c.ClientCAs = tls.VersionTLS12, tls.RequireAndVerifyClientCert, ca.pool
		}), stranger, holdfast.ClassTLSClientCert, holdfast.PhaseHandshake},
		{"client certificate refused, 1.3", changed(func(c *tls.Config) {
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
		}), stranger, holdfast.ClassTLSClientCert, holdfast.PhaseRead}, // the client learns it with the first reply
		{"client certificate missing, 1.3", changed(func(c *tls.Config) {
			c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
		}), nil, holdfast.ClassTLSClientCert, holdfast.PhaseRead},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := ca.client()
			if test.client != nil {
				client = test.client(t)
			}
			if client == nil {
				t.Fatal("no configuration")
			}
			inWorld(t, 0, func(t *testing.T, w *world) {
				s := w.startTLS("10.0.0.1:7000", test.server(t))
				c := w.clusterTLS(holdfast.Config{TLS: client, Picker: holdfast.Ordered()})
				var err error
				d := took(func() { err = c.Do(t.Context(), holdfast.Idempotent, say("x")) })
				e := asError(t, err)
				if e.Class != test.class || e.Phase != test.phase || e.Node != s.addr {
					t.Errorf("class %v in phase %v on %q, want %v in %v: %v", e.Class, e.Phase, e.Node, test.class, test.phase, err)
				}
				within(t, d, 0, 0)
				if n := s.met(); n != 1 {
					t.Errorf("tried %d times", n)
				}
				if n := len(s.got()); n != 0 {
					t.Error("the server got a request")
				}

				// A second node that is in order serves, and nobody notices.
				if test.phase != holdfast.PhaseHandshake {
					return
				}
				second := w.startTLS("10.0.0.2:7000", good)
				c = w.clusterTLS(holdfast.Config{TLS: client, Picker: holdfast.Ordered()})
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil || len(second.got()) != 1 {
					t.Errorf("with a sound second node: %v", err)
				}
			})
		})
	}

	t.Run("no TLS at all", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].greets(func(conn net.Conn) bool { io.WriteString(conn, "220 ready when you are\r\n"); return true })
			_, err := w.clusterTLS(holdfast.Config{TLS: ca.client()}).Acquire(t.Context())
			if e := asError(t, err); e.Class != holdfast.ClassTLS {
				t.Errorf("class %v: %v", e.Class, err)
			}
		})
	})
	t.Run("hangs up in the middle", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].greets(func(conn net.Conn) bool { conn.Read(make([]byte, 4096)); return false })
			_, err := w.clusterTLS(holdfast.Config{TLS: ca.client()}).Acquire(t.Context())
			if e := asError(t, err); e.Class != holdfast.ClassEOF || e.Phase != holdfast.PhaseHandshake {
				t.Errorf("class %v in phase %v: %v", e.Class, e.Phase, err)
			}
		})
	})
}

// writePEM writes one block to a file of the test's own.
func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f.pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func writeCRL(t *testing.T, ca *authority, revoked *x509.Certificate) string {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: longAgo, NextUpdate: farOff,
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: revoked.SerialNumber, RevocationTime: longAgo}},
	}, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "X509 CRL", der)
}

// The tests that Net::TCPClient has of itself (test/tcp_client_test.rb and
// test/policy), as far as they concern TLS or may go differently under it.
func TestNetTCPClientSuiteOverTLS(t *testing.T) {
	ca := newAuthority(t)
	story := func(name string, servers int, f func(t *testing.T, w *world, cfg holdfast.Config)) {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				for i := range servers {
					addr := fmt.Sprintf("10.0.0.%d", i+1)
					w.startTLS(addr+":7000", ca.server(t, addr))
				}
				f(t, w, holdfast.Config{TLS: ca.client(), Picker: holdfast.Ordered()})
			})
		})
	}

	story("refused after the attempts", 0, func(t *testing.T, w *world, cfg holdfast.Config) {
		c := w.clusterOf(cfg, "tls://10.0.0.1:7000")
		err := c.Do(t.Context(), holdfast.Idempotent, say("x"))
		if e := asError(t, err); e.Class != holdfast.ClassRefused || e.Attempt != 3 {
			t.Errorf("class %v in attempt %d: %v", e.Class, e.Attempt, err)
		}
	})
	story("the second server when the first is down", 2, func(t *testing.T, w *world, cfg holdfast.Config) {
		w.servers[0].ln.Close()
		conn := borrow(t, w.clusterTLS(cfg))
		defer conn.Release()
		if got := conn.Node().Addr(); got != w.servers[1].addr {
			t.Errorf("connected to %s", got)
		}
	})
	story("read times out, the late reply is read", 1, func(t *testing.T, w *world, cfg holdfast.Config) {
		w.servers[0].does(func(conn net.Conn, line string) bool { time.Sleep(2 * time.Second); return reply(conn, line) })
		c := w.clusterTLS(cfg)
		conn, err := c.DialContext(t.Context(), "tcp", "any:1") // the caller's own: close_on_error false
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "late\n")
		conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Read(make([]byte, 5)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the first read: %v", err)
		}
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		got := make([]byte, 5)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "late\n" {
			t.Errorf("the second read: %q, %v", got, err)
		}
	})
	story("a timeout closes", 1, func(t *testing.T, w *world, cfg holdfast.Config) {
		w.servers[0].does(func(conn net.Conn, line string) bool { time.Sleep(2 * time.Second); return reply(conn, line) })
		cfg.Timeouts.Read = time.Second
		c := w.clusterTLS(cfg)
		err := c.Do(t.Context(), holdfast.Unsafe, say("late"))
		if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseRead || e.Written != 5 || e.SafeToRetry() {
			t.Errorf("phase %v, class %v, %d bytes written: %v", e.Phase, e.Class, e.Written, err)
		}
		if n := c.Stats().Conns; n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	story("no timeout", 1, func(t *testing.T, w *world, cfg holdfast.Config) {
		w.servers[0].does(func(conn net.Conn, line string) bool { time.Sleep(time.Hour); return reply(conn, line) })
		cfg.Timeouts.Read = -1
		if err := w.clusterTLS(cfg).Do(t.Context(), holdfast.Unsafe, say("patience")); err != nil {
			t.Error(err)
		}
	})
	story("on_connect and user_data", 1, func(t *testing.T, w *world, cfg holdfast.Config) {
		made := 0
		cfg.Handshake = func(_ context.Context, conn *holdfast.Conn) error {
			if state, ok := conn.ConnectionState(); !ok || !state.HandshakeComplete {
				t.Error("it ran before TLS was there")
			}
			if conn.Session != nil {
				t.Error("a new connection has a Session")
			}
			made++
			conn.Session = made
			return exchange(conn, "login")
		}
		c := w.clusterTLS(cfg)
		session := func() (got any) {
			t.Helper()
			if err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				got = conn.Session
				return exchange(conn, "x")
			}); err != nil {
				t.Error(err)
			}
			return got
		}
		if a, b := session(), session(); a != 1 || b != 1 {
			t.Errorf("sessions %v and %v on one connection", a, b)
		}
		w.servers[0].hangUp()
		time.Sleep(time.Millisecond)
		if got := session(); got != 2 {
			t.Errorf("session %v after a reconnect", got)
		}
		if got := w.servers[0].got(); !slices.Equal(got, []string{"login", "x", "x", "login", "x"}) {
			t.Errorf("the server got %q", got)
		}
	})
	story("runs again on a drop", 2, func(t *testing.T, w *world, cfg holdfast.Config) {
		w.servers[0].does(func(net.Conn, string) bool { return false })
		c := w.clusterTLS(cfg)
		if err := c.Do(t.Context(), holdfast.Idempotent, say("x")); err != nil {
			t.Error(err)
		}
		err := c.Do(t.Context(), holdfast.Unsafe, say("once"))
		if err != nil && asError(t, err).Written == 0 {
			t.Errorf("not tried again with nothing written: %v", err)
		}
		if a, b := w.servers[0].got(), w.servers[1].got(); slices.Contains(a, "once") && slices.Contains(b, "once") {
			t.Errorf("an unsafe operation ran twice: %q, %q", a, b)
		}
	})
	story("an exact length from split segments", 1, func(t *testing.T, w *world, cfg holdfast.Config) {
		w.servers[0].does(func(conn net.Conn, _ string) bool {
			conn.Write(bytes.Repeat([]byte("a"), 10))
			time.Sleep(300 * time.Millisecond)
			conn.Write(bytes.Repeat([]byte("b"), 10))
			return true
		})
		err := w.clusterTLS(cfg).Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
			io.WriteString(conn, "x\n")
			got := make([]byte, 20)
			_, err := io.ReadFull(conn, got)
			if string(got) != "aaaaaaaaaabbbbbbbbbb" {
				t.Errorf("read %q", got)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	story("close twice", 1, func(t *testing.T, w *world, cfg holdfast.Config) {
		c := w.clusterTLS(cfg)
		conn := borrow(t, c)
		if err := conn.Close(); err != nil {
			t.Errorf("the first: %v", err)
		}
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the second: %v", err)
		}
		for range 2 {
			if err := c.Close(); err != nil {
				t.Errorf("of the cluster: %v", err)
			}
		}
	})
	story("a wrong default certificate, the right one by SNI", 0, func(t *testing.T, w *world, cfg holdfast.Config) {
		right := ca.issue(t, leaf("db.example"))
		serverConfig := ca.server(t, "default.example")
		serverConfig.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == "db.example" {
				return &right, nil
			}
			return &serverConfig.Certificates[0], nil
		}
		s := w.startTLS("10.0.0.1:7000", serverConfig)
		if err := w.clusterOf(cfg, "tls://"+s.addr+"?sni=db.example").Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Error(err)
		}
	})
	for _, servers := range []int{0, 1, 3} {
		for name, picker := range map[string]holdfast.Picker{"ordered": holdfast.Ordered(), "random": holdfast.Random(), "round robin": holdfast.RoundRobin()} {
			story(fmt.Sprintf("%s over %d servers", name, servers), servers, func(t *testing.T, w *world, cfg holdfast.Config) {
				cfg.Picker = picker
				if servers == 0 {
					if _, err := holdfast.New(holdfast.Static(), cfg); !errors.Is(err, holdfast.ErrNoEndpoint) {
						t.Errorf("no server: %v", err)
					}
					return
				}
				c := w.clusterTLS(cfg)
				seen := map[string]int{}
				dials := 10 * servers
				for range dials {
					conn, err := c.DialContext(t.Context(), "tcp", "any:1")
					if err != nil {
						t.Fatal(err)
					}
					seen[conn.RemoteAddr().String()]++
					conn.Close()
				}
				used := servers
				if name == "ordered" {
					used = 1
				}
				if len(seen) != used || name == "round robin" && seen[w.servers[0].addr] != dials/used {
					t.Errorf("connections per server: %v", seen)
				}
			})
		}
	}
}
