package certs

import (
	"crypto/x509"
	"strings"
	"testing"
	"unicode/utf8"
)

// Files come from operators and certificates from anybody: whatever is in them, nothing
// panics, and what is taken is usable.
func FuzzMaterial(f *testing.F) {
	root := newRoot(f, "root")
	pair := root.issue()
	f.Add([]byte(root.pem()))
	f.Add([]byte(root.crlPEM(pair.Leaf)))
	f.Add(root.crl(nil))
	f.Add([]byte(certPEM(pair) + keyPEM(f, pair)))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"))
	f.Add([]byte(Pin(root.cert)))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &material{}
		files := []file{{path: "f", data: data}}
		if err := parseCA(m, files); (err == nil) != (m.roots != nil) {
			t.Errorf("authorities %v, error %v", m.roots, err)
		}
		if err := parseCRL(m, files); (err == nil) != (len(m.lists) > 0) {
			t.Errorf("%d lists, error %v", len(m.lists), err)
		}
		for _, l := range m.lists {
			checkRevoked([]*list{l}, []*x509.Certificate{pair.Leaf, root.cert}, l.NextUpdate)
		}
		if p, err := parsePins([]string{string(data), Pin(root.cert)}); err == nil && len(p) != 2 {
			t.Errorf("pins %v of one", p)
		}
		if text := printable(string(data)); len(text) > maxText || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b\r\n") {
			t.Errorf("%q", text)
		}
	})
}
