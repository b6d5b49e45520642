package serve_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
)

// U10, U12: what cannot serve is an error before anybody is accepted.
func TestTLSConfigErrors(t *testing.T) {
	a := newAuthority(t)
	good := a.serverTLS()
	lax := filepath.Join(t.TempDir(), "key.pem")
	os.WriteFile(lax, []byte(good.KeyFile), 0o644)
	for name, c := range map[string]serve.TLS{
		"certificate without key": {CertFile: good.CertFile},
		"key without certificate": {KeyFile: good.KeyFile},
		"missing files":           {CertFile: "/nowhere/a", KeyFile: "/nowhere/b"},
		"another's key":           {CertFile: good.CertFile, KeyFile: a.serverTLS().KeyFile},
		"key that others read":    {CertFile: good.CertFile, KeyFile: lax},
		"clients' CA alone":       {ClientCAFile: a.pem()},
		"SANs without a CA":       {CertFile: good.CertFile, KeyFile: good.KeyFile, ClientSANs: []string{"x"}},
		"no version":              {CertFile: good.CertFile, KeyFile: good.KeyFile, MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS12},
		"TLS 1.0":                 {CertFile: good.CertFile, KeyFile: good.KeyFile, MinVersion: tls.VersionTLS10},
		"empty Config":            {Config: &tls.Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			srv := echoes()
			srv.TLS = c
			ln, err := serve.Listen(t.Context(), "tcp://127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if err := srv.Serve(ln); err == nil || errors.Is(err, serve.ErrServerClosed) || strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Errorf("Serve: %v", err)
			}
			if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the listener is left: %v", err)
			}
			pipe, _ := net.Pipe()
			if err := srv.ServeConn(pipe); err == nil {
				t.Error("ServeConn serves")
			}
		})
	}
}

// secure dials with TLS.
func (w *world) secure(cfg *tls.Config) (*client, *tls.Conn) {
	w.t.Helper()
	c := w.client()
	tc := tls.Client(c.Conn, cfg)
	return newClient(w.t, tc), tc
}

// U11, fault 61.
func TestTLSVersions(t *testing.T) {
	a := newAuthority(t)
	for _, c := range []struct {
		name     string
		min, max uint16
		in, out  []uint16
		suites   []uint16
	}{
		{name: "default", in: []uint16{tls.VersionTLS12, tls.VersionTLS13}, out: []uint16{tls.VersionTLS10, tls.VersionTLS11}},
		{name: "1.3", min: tls.VersionTLS13, in: []uint16{tls.VersionTLS13}, out: []uint16{tls.VersionTLS12}},
		{name: "1.2 only", max: tls.VersionTLS12, in: []uint16{tls.VersionTLS12}, out: []uint16{tls.VersionTLS13}},
		{name: "1.1 when asked for", min: tls.VersionTLS11, in: []uint16{tls.VersionTLS11, tls.VersionTLS13}, out: []uint16{tls.VersionTLS10}},
		{name: "weak suites", out: []uint16{tls.VersionTLS12}, suites: []uint16{
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := echoes()
			srv.TLS = a.serverTLS()
			srv.TLS.MinVersion, srv.TLS.MaxVersion = c.min, c.max
			inWorld(t, srv, func(t *testing.T, w *world) {
				for i, versions := range [][]uint16{c.in, c.out} {
					for _, v := range versions {
						cfg := speaking(a.caller(nil), v)
						cfg.CipherSuites = c.suites
						_, conn := w.secure(cfg)
						if err := conn.Handshake(); (err == nil) != (i == 0) {
							t.Errorf("%s: %v", tls.VersionName(v), err)
						}
						conn.Close()
					}
				}
				synctest.Wait()
				if n := srv.Stats().HandshakeFailures; n != uint64(len(c.out)) {
					t.Errorf("%d failures counted, want %d", n, len(c.out))
				}
			})
		})
	}
}

// deaf is the socket of a client that sends its first message, and hears no answer.
type deaf struct{ net.Conn }

func (d deaf) Read([]byte) (int, error) {
	time.Sleep(5 * time.Second)
	return 0, io.EOF
}

// U13, fault 63: whoever stalls stalls himself, and for 10 s.
func TestHandshakeInItsOwnGoroutineAndBounded(t *testing.T) {
	a := newAuthority(t)
	srv := echoes()
	srv.TLS = a.serverTLS()
	srv.Limits.MaxHandshakes = 2 // silence takes no place
	inWorld(t, srv, func(t *testing.T, w *world) {
		begin := time.Now()
		var stalled []*client
		for i := range 40 {
			c := w.client()
			c.write("\x16\x03\x01\x02\x00"[:i%6]) // nothing, or a part of a record's head
			stalled = append(stalled, c)
		}
		for range 3 {
			go tls.Client(deaf{w.client().Conn}, a.caller(nil)).Handshake()
		}
		synctest.Wait()
		good, _ := w.secure(a.caller(nil))
		good.ask("hello")
		within(t, time.Since(begin), 0, 0)
		drip := stalled[5]
		for range 3 { // a byte now and then gains nothing
			time.Sleep(3 * time.Second)
			drip.write("x")
		}
		for _, c := range stalled {
			within(t, c.expectGone().Sub(begin), 10*time.Second, 10*time.Second)
			c.Close()
		}
		good.ask("hello")
		if seen, n := w.seen(serve.HandshakeFailed), srv.Stats().HandshakeFailures; n != 43 || len(seen) != 43 {
			t.Errorf("%d counted, %d events", n, len(seen))
		}
		if lines := w.logged("handshake failed"); len(lines) != 1 {
			t.Errorf("%d lines for 43 failures at once: %q", len(lines), lines)
		}
	})
	t.Run("no more than so many at once", func(t *testing.T) {
		pair := a.issue("db.test")
		srv := echoes()
		srv.Limits.MaxHandshakes = 2
		srv.TLS.Config = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			time.Sleep(4 * time.Second) // of hard work
			return pair, nil
		}}
		inWorld(t, srv, func(t *testing.T, w *world) {
			begin := time.Now()
			took := make(chan time.Duration, 6)
			for range cap(took) {
				c, _ := w.secure(a.caller(nil))
				go func() {
					io.WriteString(c, "hello\n")
					io.ReadFull(c, make([]byte, 6))
					took <- time.Since(begin)
				}()
			}
			for i := range cap(took) { // the last two do not get a place in time
				want := time.Duration(min(4*(i/2+1), 10)) * time.Second
				within(t, <-took, want, want)
			}
			time.Sleep(3 * time.Second) // until they see that
			if n := len(w.seen(serve.HandshakeFailed)); n != 2 {
				t.Errorf("%d failed, want 2", n)
			}
		})
	})
	t.Run("a panic leaves its place", func(t *testing.T) {
		pair := a.issue("db.test")
		srv := echoes()
		srv.Limits.MaxHandshakes = 1
		panics := true
		srv.TLS.Config = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if panics {
				panics = false
				panic("boom")
			}
			return pair, nil
		}}
		inWorld(t, srv, func(t *testing.T, w *world) {
			_, bad := w.secure(a.caller(nil))
			bad.Handshake()
			good, _ := w.secure(a.caller(nil))
			good.ask("hello")
		})
	})
}

// U14, U15, fault 62.
func TestMutualTLS(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	expired := func(c *x509.Certificate) { c.NotAfter = c.NotBefore.AddDate(0, 0, 1) }
	serverOnly := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	for name, c := range map[string]struct {
		cert *tls.Certificate
		sans []string
		in   bool
	}{
		"none":              {},
		"another authority": {cert: other.issue("alice")},
		"expired":           {cert: a.issue("alice", expired)},
		"not for clients":   {cert: a.issue("alice", serverOnly)},
		"right":             {cert: a.issue("alice"), in: true},
		"on the list":       {cert: a.issue("alice"), sans: []string{"bob", "alice"}, in: true},
		"not on the list":   {cert: a.issue("alice"), sans: []string{"bob"}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := echoes()
			srv.TLS = a.serverTLS()
			srv.TLS.ClientCAFile, srv.TLS.ClientSANs = a.pem(), c.sans
			handled := make(chan struct{}, 1)
			srv.Handler = serve.HandlerFunc(func(ctx context.Context, conn *serve.Conn) error {
				if state, ok := conn.ConnectionState(); !ok || state.PeerCertificates[0].Subject.CommonName != "alice" {
					t.Error("the handler does not see who it is")
				}
				handled <- struct{}{}
				return copies(ctx, conn)
			})
			inWorld(t, srv, func(t *testing.T, w *world) {
				client, conn := w.secure(a.caller(c.cert))
				if c.in {
					client.ask("hello")
					return
				}
				conn.Handshake() // in TLS 1.3 the client learns it later
				if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || len(handled) > 0 {
					t.Errorf("read %d, %v", n, err)
				}
				if lines := w.logged("handshake failed"); len(lines) != 1 || len(lines[0]) > 400 {
					t.Errorf("logged %q, want one short line", lines)
				}
			})
		})
	}
}

// Fault 66: a renewed pair is used without a restart; a bad one is not, and is reported.
func TestCertificateReload(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	put := func(c, k string, mode os.FileMode) {
		for file, text := range map[string]string{cert: c, key: k} {
			os.Remove(file)
			if err := os.WriteFile(file, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			os.Chmod(file, mode)
		}
	}
	first := a.issue("db.test")
	c1, k1 := texts(t, first)
	put(c1, k1, 0o600)
	srv := echoes()
	srv.TLS = serve.TLS{CertFile: cert, KeyFile: key}
	inWorld(t, srv, func(t *testing.T, w *world) {
		serves := func(want *tls.Certificate) {
			t.Helper()
			time.Sleep(2 * time.Second) // files are looked at once a second
			c, conn := w.secure(a.caller(nil))
			c.ask("hello")
			if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(want.Leaf) {
				t.Errorf("serves %v, want %v", got.SerialNumber, want.Leaf.SerialNumber)
			}
			c.Close()
		}
		serves(first)
		second := a.issue("db.test")
		c2, k2 := texts(t, second)
		put(c2, k1, 0o600)
		serves(first)
		put(c2, k2, 0o644)
		serves(first)
		if lines := w.logged("a changed TLS file"); len(lines) != 2 || strings.Contains(strings.Join(lines, ""), "PRIVATE") {
			t.Errorf("logged %q, want two lines", lines)
		}
		put(c2, k2, 0o600)
		serves(second)
	})
}

// Servers with the same keys resume each other's sessions; of another policy, they do not.
func TestTicketKeysShared(t *testing.T) {
	a := newAuthority(t)
	keys := [][32]byte{{1}, {2}}
	resumes := func(version uint16, change func(s *serve.Server)) (resumed bool) {
		caller := speaking(a.caller(a.issue("alice")), version)
		pair := a.serverTLS()
		for i := range 2 {
			srv := echoes()
			srv.TLS = pair
			if srv.TicketKeys(keys); i == 1 {
				change(srv)
			}
			inWorld(t, srv, func(t *testing.T, w *world) {
				c, conn := w.secure(caller)
				c.ask("hello") // which reads the ticket of TLS 1.3
				resumed = conn.ConnectionState().DidResume
				c.Close()
			})
		}
		return resumed
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			if !resumes(version, func(*serve.Server) {}) {
				t.Error("the same keys and policy do not resume")
			}
			if resumes(version, func(s *serve.Server) { s.TicketKeys([][32]byte{{3}}) }) {
				t.Error("other keys resume")
			}
			if resumes(version, func(s *serve.Server) { s.TLS.ClientCAFile = a.pem() }) {
				t.Error("another policy resumes")
			}
		})
	}
	t.Run("own accept loop", func(t *testing.T) { // all that ServeConn gets is one listener
		leak.Check(t)
		ln, _ := net.Listen("tcp", "127.0.0.1:0")
		srv := echoes()
		srv.TLS = a.serverTLS()
		defer srv.Close()
		defer ln.Close()
		caller := a.caller(nil)
		for i := range 2 {
			c := dial(t, ln.Addr())
			conn, _ := ln.Accept()
			go srv.ServeConn(conn)
			tc := tls.Client(c.Conn, caller)
			newClient(t, tc).ask("hello")
			if resumed := tc.ConnectionState().DidResume; resumed != (i == 1) {
				t.Errorf("connection %d: resumed %v", i, resumed)
			}
			tc.Close()
		}
	})
}

// Fault 31: whoever speaks something else is one short, escaped line in the log.
func TestOtherProtocolsOnTheTLSPort(t *testing.T) {
	a := newAuthority(t)
	for name, hello := range map[string]string{
		"HTTP":   "GET /\x1b[31m\nevil HTTP/1.1\r\nHost: x\r\n\r\n",
		"binary": strings.Repeat("\xff\x00", 5000),
		"SSH":    "SSH-2.0-x\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			srv := echoes()
			srv.TLS = a.serverTLS()
			inWorld(t, srv, func(t *testing.T, w *world) {
				c := w.client()
				go io.WriteString(c.Conn, hello)
				io.Copy(io.Discard, c)
				c.Close()
				if lines := w.logged(""); len(lines) != 1 || len(lines[0]) > 400 || strings.Contains(lines[0], "\x1b") || !utf8.ValidString(lines[0]) {
					t.Errorf("logged %q", lines)
				}
				good, _ := w.secure(a.caller(nil))
				good.ask("hello")
			})
		})
	}
}
