package redis_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/redis"
)

// Over TLS everything is as it is without, the lone caller's way included.
func TestTLS(t *testing.T) {
	lender := httptest.NewUnstartedServer(nil) // of a certificate for 127.0.0.1
	lender.StartTLS()
	defer lender.Close()
	pair := lender.TLS.Certificates[0]
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600)
	os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	port := redis.FreePort(t)
	redis.StartServer(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	roots := x509.NewCertPool()
	roots.AddCert(lender.Certificate())
	c, err := holdfast.New(holdfast.Static("tls://127.0.0.1:"+port), holdfast.Config{TLS: &tls.Config{RootCAs: roots}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := redis.New(c, redis.Config{})
	defer r.Close()
	for range 50 {
		if text, err := r.Do(t.Context(), "ECHO", "hello").Text(); text != "hello" || err != nil {
			t.Fatalf("%q, %v", text, err)
		}
	}
	load := &load{r: r, stop: make(chan struct{})}
	load.run(4)
	eventually(t, "the load flows", func() bool { return load.ok.Load() > 200 })
	close(load.stop)
	load.wg.Wait()
	if load.wrong.Load()+load.unknown.Load() > 0 || r.Stats().Lost > 0 {
		t.Errorf("%d wrong, %d unknown, %+v", load.wrong.Load(), load.unknown.Load(), r.Stats())
	}
	wrong, err := holdfast.New(holdfast.Static("tls://127.0.0.1:"+port), holdfast.Config{TLS: &tls.Config{RootCAs: x509.NewCertPool()}})
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	q := redis.New(wrong, redis.Config{WaitDown: -1})
	defer q.Close()
	if err := q.Do(t.Context(), "PING").Err(); err == nil {
		t.Error("a server that nobody vouches for was trusted")
	}
}
