package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
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
	"time"
)

// writeCert makes a certificate that signs itself, with its key in the same file, as
// HAProxy wants it.
func writeCert(dir, kind string) (file string, err error) {
	var key crypto.Signer
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, DNSNames: []string{"bench"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, kind+".pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	return file, os.WriteFile(file, text, 0o600)
}

// tlsClient is the same for all: one cipher, one curve. What the certificate says is not
// looked at, but its key must have signed.
func tlsClient() *tls.Config {
	return &tls.Config{ServerName: "bench", InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}
}

// tlsLoad connects with TLS, has one message echoed, and closes.
func tlsLoad(t task, r *result) error {
	w := newWindow(t, r)
	var mu sync.Mutex
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range t.Conns {
		cfg := tlsClient()
		if t.Kind == "tls resumed" {
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		}
		wg.Go(func() {
			for first := true; ; first = false {
				select {
				case <-done:
					return
				default:
				}
				begin := time.Now()
				resumed, err := tlsVisit(t, cfg)
				if err == nil && t.Kind == "tls resumed" && !first && !resumed {
					err = errors.New("a session was not resumed")
				}
				mu.Lock()
				if err != nil {
					r.fail(err)
				}
				w.count(1, time.Since(begin))
				mu.Unlock()
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for now := range tick.C {
		mu.Lock()
		over := w.over(now)
		mu.Unlock()
		if over {
			break
		}
	}
	close(done)
	wg.Wait()
	return nil
}

func tlsVisit(t task, cfg *tls.Config) (resumed bool, err error) {
	conn, err := net.DialTimeout("tcp", t.Addr, 5*time.Second)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	conn.(*net.TCPConn).SetLinger(0)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(conn, cfg)
	msg := bytes.Clone(pattern[:t.Size])
	msg[0] = modeEcho
	if _, err := c.Write(msg); err != nil {
		return false, err
	}
	in := make([]byte, len(msg))
	if _, err := io.ReadFull(c, in); err != nil {
		return false, err
	}
	if !bytes.Equal(in, msg) {
		return false, errors.New("wrong bytes")
	}
	return c.ConnectionState().DidResume, nil
}

// tlsBulk reads floods through TLS.
func tlsBulk(t task, r *result) error {
	var conns []*tls.Conn
	defer func() {
		for _, c := range conns {
			c.NetConn().Close()
		}
	}()
	for range t.Conns {
		conn, err := net.Dial("tcp", t.Addr)
		if err != nil {
			return err
		}
		conn.(*net.TCPConn).SetLinger(0)
		c := tls.Client(conn, tlsClient())
		conns = append(conns, c)
		if _, err := c.Write([]byte{modeFlood}); err != nil {
			return err
		}
	}
	w := newWindow(t, r)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, c := range conns {
		c.SetDeadline(w.end.Add(5 * time.Second))
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for off := uint64(0); ; {
				n, err := c.Read(buf)
				if err == nil && !rightAt(buf[:n], off) {
					err = errors.New("wrong bytes")
				}
				off += uint64(n)
				mu.Lock()
				over := w.over(time.Now())
				w.count(float64(n), 0)
				if err != nil && !over {
					r.fail(err)
				}
				mu.Unlock()
				if over || err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return nil
}
