package certs

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const pinPrefix = "sha256/"

// Pin returns the pin of a certificate's public key: "sha256/" and the base64 of the
// SHA-256 of its SPKI. It outlives the certificate, as long as renewals keep the key.
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return pinPrefix + base64.StdEncoding.EncodeToString(sum[:])
}

// pins is a set of what Pin gives; nil when nothing is pinned.
type pins map[string]bool

// parsePins wants two keys: with one, who loses it is locked out until every client has
// a new configuration.
func parsePins(given []string) (pins, error) {
	if len(given) == 0 {
		return nil, nil
	}
	p := pins{}
	for _, pin := range given {
		sum, err := base64.StdEncoding.Strict().DecodeString(strings.TrimPrefix(pin, pinPrefix))
		if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(pin, pinPrefix) {
			return nil, fmt.Errorf("pin %.80q: want %s and the base64 of 32 bytes", pin, pinPrefix)
		}
		p[pin] = true
	}
	if len(p) < 2 {
		return nil, errors.New("pins: one key alone; pin a spare one too")
	}
	return p, nil
}

// check wants one pinned key in a verified chain.
func (p pins) check(chain []*x509.Certificate) error {
	if p == nil {
		return nil
	}
	missed := &PinError{}
	for _, c := range chain {
		pin := Pin(c)
		if p[pin] {
			return nil
		}
		missed.Got = append(missed.Got, pin)
	}
	return missed
}

// PinError says that a chain is valid but none of its keys is pinned: the server has
// changed its key, or is another one.
type PinError struct {
	Got []string // the pins of the chain, leaf first
}

func (e *PinError) Error() string {
	return printable("no key of the certificate's chain is pinned: it has " + strings.Join(e.Got, ", "))
}
