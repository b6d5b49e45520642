package certs_test

import (
	"crypto/tls"
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

func Example() {
	// A server whose certificate is for 127.0.0.1, and the file a client trusts.
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	dir, err := os.MkdirTemp("", "certs")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	ca := filepath.Join(dir, "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o644); err != nil {
		fmt.Println(err)
		return
	}

	dial := func(f certs.Files) error {
		cfg, err := f.Client()
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
	fmt.Println(dial(certs.Files{CA: ca}))
	fmt.Println(dial(certs.Files{CA: ca, Pins: []string{certs.Pin(srv.Certificate())}}))

	spare := "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	other := "sha256/AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
	fmt.Println(dial(certs.Files{CA: ca, Pins: []string{certs.Pin(srv.Certificate()), spare}}))
	var missed *certs.PinError
	fmt.Println(errors.As(dial(certs.Files{CA: ca, Pins: []string{other, spare}}), &missed))
	// Output:
	// <nil>
	// pins: one key alone; pin a spare one too
	// <nil>
	// true
}
