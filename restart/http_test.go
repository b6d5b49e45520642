//go:build linux

package restart_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keepAlive is HTTP clients that use a connection for as long as they may, and retry
// nothing.
type keepAlive struct {
	testing.TB
	addr   string
	config *tls.Config

	requests, connections, resumed atomic.Int64
	done                           chan struct{}
	wg                             sync.WaitGroup
}

func driveHTTP(t testing.TB, clients int, addr string, config *tls.Config) *keepAlive {
	k := &keepAlive{TB: t, addr: addr, config: config, done: make(chan struct{})}
	for i := range clients {
		config := k.config
		if config != nil {
			config = config.Clone()
			config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		k.wg.Go(func() {
			for !k.over() {
				if err := k.use(config, i); err != nil {
					t.Errorf("after %d requests: %v", k.requests.Load(), err)
					return
				}
			}
		})
	}
	return k
}

func (k *keepAlive) over() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// use makes requests over one connection until the server says that it is the last.
func (k *keepAlive) use(config *tls.Config, client int) error {
	conn, err := net.DialTimeout("tcp", k.addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if config != nil {
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			return err
		}
		if secure.ConnectionState().DidResume {
			k.resumed.Add(1)
		}
		conn = secure
	}
	k.connections.Add(1)
	in := bufio.NewReader(conn)
	for n := 0; !k.over(); n++ {
		path := fmt.Sprintf("/%d-%d", client, n)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", path); err != nil {
			return fmt.Errorf("request %d of its connection: %w", n, err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return fmt.Errorf("answer %d of its connection: %w", n, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasSuffix(string(body), " "+path) || resp.StatusCode != 200 {
			return fmt.Errorf("answer %d of its connection: %s %q %w", n, resp.Status, body, err)
		}
		k.requests.Add(1)
		if resp.Close {
			break
		}
	}
	return nil
}

func (k *keepAlive) finish() { close(k.done); k.wg.Wait() }

// No request of a kept-alive client is lost: it is told before its connection ends.
func TestHTTPKeepAliveSurvivesRestarts(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Kind = "http"
	s.start()
	k := driveHTTP(t, 8, addr, nil)
	for range times(10, 100) {
		s.mustRestart()
	}
	k.finish()
	if strings.Contains(s.log.String(), "use of closed network connection") {
		t.Error("a worker did not end well")
	}
	if n := k.connections.Load(); n < 8*5 {
		t.Errorf("only %d connections: nobody was told to go", n)
	}
	s.stop()
	t.Logf("%d requests over %d connections", k.requests.Load(), k.connections.Load())
}

// A connection that is never used again ends with the drain, and not before.
func TestIdleHTTPConnectionsStayForTheDrain(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Kind = "http"
	s.Drain = 1200 * time.Millisecond
	s.start()
	idle := dial(t, "tcp", addr)
	fmt.Fprint(idle.conn, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(idle.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	never := dial(t, "tcp", addr) // says nothing at all
	defer never.conn.Close()
	began := time.Now()
	s.mustRestart()
	if err := idle.gone(); !errors.Is(err, io.EOF) {
		t.Errorf("it ended with %v", err)
	}
	if d := time.Since(began); d < 500*time.Millisecond {
		t.Errorf("it ended after %v already", d)
	}
	s.alone()
	s.stop()
}

// G5: a session that was begun with one generation is resumed by the next.
func TestTLSResumesAcrossRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	pool := writeCert(t, cert, key)
	for version, name := range map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := freeAddr(t)
			s := newService(t, "tcp://"+addr)
			s.Kind = "tls"
			s.env = []string{"CERT=" + cert, "KEY=" + key}
			s.start()
			const clients = 4
			k := driveHTTP(t, clients, addr, &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: version, MaxVersion: version})
			for range times(10, 100) {
				s.mustRestart()
			}
			k.finish()
			again := k.connections.Load() - clients
			if resumed := k.resumed.Load(); again < clients*5 || float64(resumed) < 0.99*float64(again) {
				t.Errorf("of %d connections after the first ones %d resumed", again, resumed)
			}
			s.stop()
		})
	}
}

func writeCert(t testing.TB, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	cert, _ := x509.ParseCertificate(der)
	pool.AddCert(cert)
	return pool
}

// Over HTTP/2 the goodbye is a GOAWAY, and no request is lost either.
func TestHTTP2SurvivesRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	pool := writeCert(t, cert, key)
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr)
	s.Kind = "h2"
	s.env = []string{"CERT=" + cert, "KEY=" + key}
	s.start()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	done := make(chan struct{})
	var wg sync.WaitGroup
	var requests atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				// What arrives after the GOAWAY was not looked at, so clients send it again.
				resp, err := client.Post("https://"+addr+"/", "text/plain", strings.NewReader("abc"))
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.ProtoMajor != 2 || resp.StatusCode != 200 {
					t.Errorf("%s %s", resp.Proto, resp.Status)
					return
				}
				requests.Add(1)
			}
		})
	}
	for range times(10, 100) {
		s.mustRestart()
	}
	close(done)
	wg.Wait()
	transport.CloseIdleConnections()
	if requests.Load() < 100 {
		t.Errorf("%d requests", requests.Load())
	}
	s.stop()
}
