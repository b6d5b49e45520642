package health_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// world is a simulated network with servers on it, in a bubble of its own.
type world struct {
	t      *testing.T
	net    *simnet.Net
	client *simnet.Host
	wg     sync.WaitGroup
}

func inWorld(t *testing.T, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: simnet.New(1)}
		w.client = w.net.Host("10.0.1.1")
		defer func() {
			w.net.Close()
			w.wg.Wait()
		}()
		story(t, w)
	})
}

// serve has handle serve every connection to addr.
func (w *world) serve(addr string, handle func(net.Conn)) {
	w.t.Helper()
	ln, err := w.net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.accept(ln, handle)
}

func (w *world) accept(ln net.Listener, handle func(net.Conn)) {
	w.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
}

// answer serves udp.
func (w *world) answer(addr string, reply string) {
	w.t.Helper()
	pc, err := w.net.ListenPacket("udp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.wg.Go(func() {
		b := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if reply != "" {
				pc.WriteTo([]byte(reply), from)
			}
		}
	})
}

// dial connects a probe.
func (w *world) dial(network, addr string) net.Conn {
	w.t.Helper()
	conn, err := w.client.DialContext(w.t.Context(), network, addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

// service is at an address of the world.
func (w *world) service(addr, kind string) health.Service {
	return health.Service{Addr: addr, Kind: kind, Config: holdfast.Config{Dial: w.client.DialContext}}
}

func newMonitor(t *testing.T, cfg health.Config) *health.Monitor {
	t.Helper()
	m, err := health.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// running has a Monitor run until the returned func, or the end of the test.
func running(t *testing.T, m *health.Monitor) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run returned %v", err)
		}
	})
}

// hear reads lines, and says to each what it says.
func hear(say func(line string) string) func(net.Conn) {
	return func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := io.WriteString(conn, say(line)); err != nil {
				return
			}
		}
	}
}

// page answers one HTTP request after its headers with a status line and a body, and
// notes the request's head.
func page(status string, head func(string)) func(net.Conn) {
	return func(conn net.Conn) {
		var b strings.Builder
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if b.WriteString(line); line == "\r\n" {
				break
			}
		}
		if head != nil {
			head(b.String())
		}
		io.WriteString(conn, "HTTP/1.1 "+status+"\r\nContent-Length: 2\r\n\r\nhi")
	}
}

// silence reads and says nothing.
func silence(conn net.Conn) { io.Copy(io.Discard, conn) }

// flood says a byte without end.
func flood(conn net.Conn) {
	for {
		if _, err := conn.Write([]byte(strings.Repeat("x", 1000))); err != nil {
			return
		}
	}
}

// drip says one byte of a text each tenth of a second.
func drip(text string) func(net.Conn) {
	return func(conn net.Conn) {
		for i := range len(text) {
			if _, err := io.WriteString(conn, text[i:i+1]); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		silence(conn)
	}
}

// saying says its text at once, whatever is asked, and waits for the end.
func saying(text string) func(net.Conn) {
	return func(conn net.Conn) {
		io.WriteString(conn, text)
		silence(conn)
	}
}

// certificate is valid for some time, for a name; pool trusts it.
func certificate(t *testing.T, name string, valid time.Duration) (server *tls.Config, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "holdfast test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(valid),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{name}, IPAddresses: []net.IP{net.ParseIP(name)},
	}
	if template.IPAddresses[0] == nil {
		template.IPAddresses = nil
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

// ledger is a slog.Handler that keeps "LEVEL message service" of every record.
type ledger struct {
	mu    sync.Mutex
	lines []string
}

func (l *ledger) Enabled(context.Context, slog.Level) bool { return true }
func (l *ledger) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *ledger) WithGroup(string) slog.Handler            { return l }

func (l *ledger) Handle(_ context.Context, r slog.Record) error {
	line := fmt.Sprint(r.Level, " ", r.Message)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "service" {
			line += " " + a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	return nil
}

// at returns the lines of a level.
func (l *ledger) at(level slog.Level) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.HasPrefix(line, level.String()+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// hangUp says its text when it was asked, and ends.
func hangUp(text string) func(net.Conn) {
	return func(conn net.Conn) {
		conn.Read(make([]byte, 4096))
		io.WriteString(conn, text)
	}
}
