package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/holdfast-net/holdfast/restart"
)

func newHTTP(secure bool, protocols ...string) restart.Server {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d %s", os.Getpid(), r.URL.Path)
	})}
	if secure {
		cert, err := tls.LoadX509KeyPair(os.Getenv("CERT"), os.Getenv("KEY"))
		must(err)
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols, MinVersion: tls.VersionTLS12}
	}
	return restart.HTTP(srv)
}
