package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/holdfast-net/holdfast/internal/certs"
)

func ExampleFiles_Client() {
	// A server whose certificate is for 127.0.0.1, and the file that a client trusts.
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	dir, _ := os.MkdirTemp("", "certs")
	defer os.RemoveAll(dir)
	ca := filepath.Join(dir, "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o644); err != nil {
		fmt.Println(err)
		return
	}

	dial := func(pins ...string) error {
		cfg, err := certs.Files{CA: ca, Pins: pins}.Client()
		if err != nil {
			return err
		}
		addr := srv.Listener.Addr().String()
		host, _, _ := net.SplitHostPort(addr)
		conn, err := tls.Dial("tcp", addr, certs.For(cfg, host))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	spare := "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	other := "sha256/AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
	fmt.Println("no pins:", dial())
	fmt.Println("one pin:", dial(certs.Pin(srv.Certificate())))
	fmt.Println("a pin and a spare one:", dial(certs.Pin(srv.Certificate()), spare))
	var missed *certs.PinError
	fmt.Println("other pins:", errors.As(dial(other, spare), &missed))
	// Output:
	// no pins: <nil>
	// one pin: one pin is a trap: give a spare one too
	// a pin and a spare one: <nil>
	// other pins: true
}

func ExampleServerFiles_Server() {
	// A pair as an environment variable may hold it; it would be a path as well.
	spare := httptest.NewTLSServer(http.NotFoundHandler())
	spare.Close()
	pair := spare.TLS.Certificates[0]
	der, _ := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))

	_, err := certs.ServerFiles{Cert: cert}.Server("public")
	fmt.Println(err)
	srv, err := certs.ServerFiles{Cert: cert, Key: key}.Server("public")
	if err != nil {
		fmt.Println(err)
		return
	}
	master := certs.RotateTickets(nil) // shared by all that resume each other's sessions
	srv.SetTickets(master)

	ln, err := tls.Listen("tcp", "127.0.0.1:0", srv.Config())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		io.WriteString(conn, "hello")
		conn.Close()
	}()
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "example.com", RootCAs: rootsOf(cert)})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	fmt.Println(string(text), err)
	// Output:
	// (PEM text): a certificate needs its key, and a key its certificate
	// hello <nil>
}

func rootsOf(text string) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(text))
	return pool
}
