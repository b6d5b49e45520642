package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// startServers starts what the scripts talk to and returns their addresses as
// environment variables.
func startServers(t *testing.T) []string {
	ca, identity := selfSigned(t)
	release := make(chan struct{})
	silent := serveAt(t, nil, func(net.Conn) { <-release })
	t.Cleanup(func() { close(release) })
	return []string{
		"UPPER=" + serveAt(t, nil, upper),
		"LINES=" + serveAt(t, nil, eachLine(func(line string) string { return "re: " + line })),
		"TWICE=" + serveAt(t, nil, eachLine(func(line string) string { return line + line })),
		"HANGUP=" + serveAt(t, nil, eachLine(func(string) string { return "" })),
		"SILENT=" + silent,
		"PACKETS=" + packetsAt(t, func(m []byte) [][]byte { return [][]byte{m} }),
		"MUTE=" + packetsAt(t, func([]byte) [][]byte { return nil }),
		"TWOLINES=" + packetsAt(t, func(m []byte) [][]byte { return [][]byte{append(m, "\nmore"...)} }),
		"SECURE=" + serveAt(t, &tls.Config{Certificates: []tls.Certificate{identity}}, upper),
		"CA=" + ca,
	}
}

// serve has handle serve every connection until the test ends, over TLS if there
// is a configuration, and returns the address.
func serveAt(t *testing.T, secure *tls.Config, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if secure != nil {
		ln = tls.NewListener(ln, secure)
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []net.Conn
	)
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return addr
}

// packetsAt answers each datagram by some until the test ends, one after the other, and
// returns the address.
func packetsAt(t *testing.T, answer func(m []byte) [][]byte) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // Windows tells here that a client has gone
			}
			for _, m := range answer(bytes.Clone(b[:n])) {
				pc.WriteTo(m, from)
			}
		}
	})
	t.Cleanup(func() {
		pc.Close()
		wg.Wait()
	})
	return pc.LocalAddr().String()
}

// upper answers when it has read to the end: only a half-close makes it speak.
func upper(conn net.Conn) {
	all, err := io.ReadAll(conn)
	if err == nil {
		conn.Write(bytes.ToUpper(all))
	}
}

// eachLine answers line by line; without an answer it hangs up.
func eachLine(answer func(string) string) func(net.Conn) {
	return func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			line, err := r.ReadString('\n')
			if err != nil || line == "" {
				return
			}
			reply := answer(line)
			if _, err := io.WriteString(conn, reply); err != nil || reply == "" {
				return
			}
		}
	}
}

// selfSigned returns the file of an authority and a certificate of localhost, 127.0.0.1.
func selfSigned(t *testing.T) (caFile string, identity tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "holdfast test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(caFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return caFile, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A server of the demo ends when the demo does, even if nobody kills it: its
// standard input ends.
func TestDemoServerEndsWithItsControl(t *testing.T) {
	t.Parallel()
	f := &fleet{self: "holdfast", broken: make(chan error, 1)}
	m := &member{name: "a"}
	if err := f.start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	defer m.proc.kill()
	conn, err := net.Dial("tcp", m.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := exchange(conn, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	m.proc.control.(io.Closer).Close()
	select {
	case <-m.proc.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the server outlived its control")
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlived its server")
	}
}
