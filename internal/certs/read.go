package certs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
)

// modesMatter is false where files have no permission bits to speak of.
const modesMatter = runtime.GOOS != "windows"

// readPool skips certificates that crypto/x509 cannot parse, as it does itself:
// every system's bundle has some. A file that is cut short is not taken.
func readPool(paths []string) (*x509.CertPool, error) {
	a, err := readAuthorities(paths)
	if err != nil {
		return nil, err
	}
	return a.pool, nil
}

// authorities are those of a file, and what tells them from those of another.
type authorities struct {
	pool *x509.CertPool
	sum  [sha256.Size]byte
}

func readAuthorities(paths []string) (*authorities, error) {
	text, _, err := readFile(paths[0])
	if err != nil {
		return nil, err
	}
	if _, err := blocks(text); err != nil {
		return nil, fmt.Errorf("%s: %w", label(paths[0]), err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: no certificate in it", label(paths[0]))
	}
	return &authorities{pool, sha256.Sum256(text)}, nil
}

// readLists takes all of a file or nothing: of two lists, the one that was left out
// would be the one that matters.
func readLists(paths []string) ([]*x509.RevocationList, error) {
	text, _, err := readFile(paths[0])
	if err != nil {
		return nil, err
	}
	ders, err := blocks(text)
	if err == nil && len(ders) == 0 {
		ders = [][]byte{text}
	}
	var lists []*x509.RevocationList
	for _, der := range ders {
		var list *x509.RevocationList
		if list, err = parseList(der); err != nil {
			break
		}
		lists = append(lists, list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", label(paths[0]), err)
	}
	return lists, nil
}

// parseList refuses what cannot say that a certificate is good. A critical extension
// is either that of a delta list or that of one for a part of the certificates
// (RFC 5280 §5.2), and crypto/x509 leaves it to us.
func parseList(der []byte) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	for _, e := range list.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("the revocation list is a partial one (extension %v)", e.Id)
		}
	}
	if list.NextUpdate.IsZero() {
		return nil, errors.New("the revocation list does not say when it ends")
	}
	return list, nil
}

// blocks returns the contents of a PEM file, none if it is no PEM. Package pem skips a
// block that it cannot read; here that is an error.
func blocks(text []byte) (all [][]byte, err error) {
	block, rest := pem.Decode(text)
	for ; block != nil; block, rest = pem.Decode(rest) {
		all = append(all, block.Bytes)
	}
	if begun := bytes.Count(text, []byte("-----BEGIN ")); begun != len(all) {
		return nil, errors.New("a PEM block is malformed, or cut short")
	}
	return all, nil
}

// readPair takes a certificate and a key that belong together, or neither: of a renewal
// that is half done the key does not match.
func readPair(lax bool) func(paths []string) (*tls.Certificate, error) {
	return func(paths []string) (*tls.Certificate, error) {
		if paths[0] == "" || paths[1] == "" {
			return nil, fmt.Errorf("%s: a certificate needs its key, and a key its certificate", label(cmp.Or(paths[0], paths[1])))
		}
		cert, _, certErr := readFile(paths[0])
		key, mode, keyErr := readFile(paths[1])
		if err := errors.Join(certErr, keyErr); err != nil {
			return nil, err
		}
		if !lax && modesMatter && mode&0o077 != 0 {
			return nil, fmt.Errorf("%s: others may read this key (mode %04o); chmod 600", paths[1], mode)
		}
		if _, err := blocks(cert); err != nil { // crypto/tls would take the chain without its end
			return nil, fmt.Errorf("%s: %w", label(paths[0]), err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%s, %s: %w", label(paths[0]), label(paths[1]), err)
		}
		return &pair, nil
	}
}

// isText reports whether what should be a path is the text of a file instead.
func isText(path string) bool {
	return strings.Contains(path, "-----BEGIN ") || strings.Contains(path, "\n")
}

// label is a path for a message, where the text of a key must never go.
func label(path string) string {
	if isText(path) {
		return "(PEM text)"
	}
	return path
}

// readFile returns the mode of the file that was read, not of one that stood in its
// place before. A pipe would make a handshake wait for its writer.
func readFile(path string) (text []byte, mode fs.FileMode, err error) {
	if isText(path) {
		return []byte(path), 0, nil
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	text, err = io.ReadAll(file)
	return text, info.Mode().Perm(), err
}
