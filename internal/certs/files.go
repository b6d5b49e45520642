package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
)

// maxFile is more than any file of this kind has. The largest are revocation lists, of
// some 35 bytes for each certificate.
const maxFile = 64 << 20

// A file is one that was read.
type file struct {
	path string
	info fs.FileInfo
	data []byte
}

// read refuses what is no regular file before it opens it: opening a pipe waits.
func read(path string, info fs.FileInfo) (file, error) {
	if !info.Mode().IsRegular() {
		return file{}, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: larger than %d MiB", path, maxFile>>20)
	}
	return file{path, info, data}, err
}

// parts says which files are read, and as what.
func (f Files) parts() (parts []*part) {
	if f.CA != "" {
		parts = append(parts, &part{paths: []string{f.CA}, parse: parseCA})
	}
	if f.Cert != "" || f.Key != "" {
		parts = append(parts, f.pair())
	}
	if f.CRL != "" {
		parts = append(parts, &part{paths: []string{f.CRL}, parse: parseCRL})
	}
	return parts
}

func (f Files) pair() *part {
	if f.Cert == "" || f.Key == "" {
		return &part{parse: func(*material, []file) error {
			return fmt.Errorf("%s%s: a certificate needs its key, and a key its certificate", f.Cert, f.Key)
		}}
	}
	return &part{paths: []string{f.Cert, f.Key}, parse: func(m *material, files []file) error {
		return parsePair(m, files[0], files[1], f.LaxKeyMode)
	}}
}

func parseCA(m *material, files []file) error {
	ders, err := files[0].blocks("CERTIFICATE")
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("%s: %w", files[0].path, err)
		}
		pool.AddCert(cert)
	}
	m.roots = pool
	return nil
}

func parsePair(m *material, cert, key file, lax bool) error {
	// Windows makes modes up.
	if mode := key.info.Mode().Perm(); mode&0o077 != 0 && !lax && runtime.GOOS != "windows" {
		return fmt.Errorf("%s: mode %04o lets others read the key; want 0600 or less", key.path, mode)
	}
	pair, err := tls.X509KeyPair(cert.data, key.data)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", cert.path, key.path, err)
	}
	m.pair, m.sessions = &pair, newSessions()
	return nil
}

var errCut = errors.New("a PEM block is malformed, or cut short")

// blocks returns the content of the PEM blocks of one type, at least one. Package pem
// skips a block that it cannot read; here that is an error, or a file cut short would
// pass for one with fewer authorities.
func (f file) blocks(kind string) (ders [][]byte, err error) {
	for data := f.data; ; {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type == kind {
			ders = append(ders, block.Bytes)
		}
		data = rest
	}
	switch begun := bytes.Count(f.data, []byte("-----BEGIN "+kind+"-----")); {
	case begun != len(ders):
		return nil, fmt.Errorf("%s: %w", f.path, errCut)
	case begun == 0:
		return nil, fmt.Errorf("%s: no PEM block of type %s", f.path, kind)
	}
	return ders, nil
}
