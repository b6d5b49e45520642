package certs

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func stale(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) }

func leaf(c *tls.Certificate) []*x509.Certificate { return []*x509.Certificate{c.Leaf} }

// Whatever keeps a list from clearing a certificate condemns it.
func TestRevocationFailsClosed(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	middle := root.below("middle")
	pair, other := middle.issue(), middle.issue()
	server := serving(pair)
	ca := f.put("ca.pem", root.pem())
	good, goodMiddle := root.list(nil), middle.list(nil)
	for name, c := range map[string]struct{ lists, why string }{
		"nothing is revoked":                {good + goodMiddle, ""},
		"another is revoked":                {good + middle.list(leaf(other)), ""},
		"it is revoked":                     {good + middle.list(leaf(pair)), "revoked"},
		"its authority is revoked":          {root.list([]*x509.Certificate{middle.cert}) + goodMiddle, "revoked"},
		"its list is stale":                 {good + middle.list(nil, stale), "stale since"},
		"its authority's list is stale":     {root.list(nil, stale) + goodMiddle, "stale since"},
		"there is no list for it":           {good, "no revocation list"},
		"there is none for its authority":   {goodMiddle, "no revocation list"},
		"there is only a foreign list":      {newRoot(t, "stranger").list(nil), "no revocation list"},
		"its list has a foreign signature":  {good + newRoot(t, "middle").list(nil), "not signed by its authority"},
		"a stale list and a current one":    {good + middle.list(nil, stale) + goodMiddle, ""},
		"a stale list still condemns":       {good + middle.list(leaf(pair), stale) + goodMiddle, "revoked"},
		"a forged list does not condemn":    {good + goodMiddle + newRoot(t, "middle").list(leaf(pair)), ""},
		"a forged list and a stale genuine": {good + newRoot(t, "middle").list(nil) + middle.list(nil, stale), "stale since"},
	} {
		err := refusal(t, server, client(t, Files{CA: ca, CRL: f.put("ca.crl", c.lists)}))
		var e *RevokedError
		switch {
		case c.why == "" && err != nil, c.why != "" && (!errors.As(err, &e) || !strings.Contains(e.Why, c.why)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A server's certificate that is an authority to itself has nobody to revoke it.
func TestSelfSignedServerIsNotCleared(t *testing.T) {
	f, root, alone := newFolder(t), newRoot(t, "root"), selfSigned(t)
	ca := f.put("ca.pem", root.pem()+certPEM(alone))
	mustVisit(t, serving(alone), client(t, Files{CA: ca}))
	if err := refusal(t, serving(alone), client(t, Files{CA: ca, CRL: f.put("ca.crl", root.list(nil))})); !is[*RevokedError](err) {
		t.Errorf("with a revocation list: %v", err)
	}
}

// Sessions from before a revocation end with it, and so does what was good while the
// list was current.
func TestRevocationHoldsOnResumption(t *testing.T) {
	for _, version := range versions {
		synctest.Test(t, func(t *testing.T) {
			f, root := newFolder(t), newRoot(t, "root")
			pair := root.issue()
			cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), CRL: f.put("ca.crl", root.list(nil))})
			server := serving(pair)
			server.MaxVersion = version
			mustVisit(t, server, cfg)
			if resumed, _ := mustVisit(t, server, cfg); !resumed {
				t.Error("no session was resumed")
			}
			time.Sleep(2 * time.Hour)
			if err := refusal(t, server, cfg); !is[*RevokedError](err) || !strings.Contains(err.Error(), "stale") {
				t.Errorf("after the list's end: %v", err)
			}
			f.put("ca.crl", root.list(nil))
			time.Sleep(lookAgain)
			mustVisit(t, server, cfg)
			f.put("ca.crl", root.list(leaf(pair)))
			time.Sleep(lookAgain)
			if err := refusal(t, server, cfg); !is[*RevokedError](err) {
				t.Errorf("after it was revoked: %v", err)
			}
		})
	}
}

// Of two chains one may be good, but it must be good in every respect.
func TestOneChainMustStandUpToEverything(t *testing.T) {
	f, first, second := newFolder(t), newRoot(t, "first"), newRoot(t, "second")
	middle := first.below("middle")
	crossed := second.sign(templateCA("middle"), second.cert, middle.key.Public(), second.key)
	pair := middle.issue()
	pair.Certificate = append(pair.Certificate, crossed.Raw)
	server := serving(pair)
	ca := f.put("ca.pem", first.pem()+second.pem())
	lists := middle.list(nil) + first.list([]*x509.Certificate{middle.cert})
	spare := Pin(newRoot(t, "spare").cert)
	for name, c := range map[string]struct {
		second string // the second authority's list
		pins   []string
		good   bool
	}{
		"the first is revoked":                       {second.list(nil), nil, true},
		"both are revoked":                           {second.list([]*x509.Certificate{crossed}), nil, false},
		"the second is pinned":                       {second.list(nil), []string{spare, Pin(second.cert)}, true},
		"the first is pinned, the second is current": {second.list(nil), []string{spare, Pin(first.cert)}, false},
	} {
		cfg := client(t, Files{CA: ca, CRL: f.put("ca.crl", lists+c.second), Pins: c.pins})
		if err := refusal(t, server, cfg); c.good != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestListsThatAreRefused(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	critical := func(last int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, last}, Critical: true, Value: []byte{5, 0}}}
		}
	}
	good := root.list(nil)
	for name, text := range map[string]string{
		"a delta list":           root.list(nil, critical(27)),
		"one for a part":         root.list(nil, critical(28)),
		"one without an end":     endless(t, root),
		"nothing":                "",
		"nonsense":               "nonsense",
		"a certificate":          root.pem(),
		"one cut short":          good[:len(good)/2],
		"a good one and half":    good + good[:len(good)/2],
		"half of one and a good": good[:len(good)/2] + "\n" + good,
		"a good one and a bad":   good + pemOf("X509 CRL", []byte("nonsense")),
	} {
		if _, err := (Files{CRL: f.put("ca.crl", text)}).Client(); err == nil || !strings.Contains(err.Error(), "ca.crl: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	block, _ := pem.Decode([]byte(good))
	client(t, Files{CRL: f.put("ca.crl", string(block.Bytes))}) // DER will do
}

// endless is a list without a next update, which crypto/x509 reads but does not make.
func endless(t *testing.T, a *authority) string {
	ecdsaSHA256 := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	tbs, err := asn1.Marshal(struct {
		Version    int
		Signature  pkix.AlgorithmIdentifier
		Issuer     asn1.RawValue
		ThisUpdate time.Time
	}{1, ecdsaSHA256, asn1.RawValue{FullBytes: a.cert.RawSubject}, time.Now().UTC()})
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: tbs}, ecdsaSHA256, asn1.BitString{Bytes: []byte{0}, BitLength: 8}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x509.ParseRevocationList(der); err != nil {
		t.Fatalf("the list is not one that crypto/x509 reads: %v", err)
	}
	return pemOf("X509 CRL", der)
}

// FuzzFiles reads what operators write, and what others send them.
func FuzzFiles(f *testing.F) {
	root := newRoot(f, "root")
	chain := []*x509.Certificate{root.issue().Leaf, root.cert}
	list, _ := pem.Decode([]byte(root.list(chain[:1])))
	f.Add([]byte(root.pem()))
	f.Add([]byte(root.list(nil)))
	f.Add(list.Bytes)
	f.Add([]byte(Pin(root.cert)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := blocks(data); err == nil {
			x509.NewCertPool().AppendCertsFromPEM(data)
		}
		if l, err := parseList(data); err == nil {
			checkRevoked(chain, []*x509.RevocationList{l}, l.NextUpdate)
		}
		if pins, err := parsePins([]string{string(data), Pin(root.cert)}); err == nil && len(pins) != 2 {
			t.Errorf("pins %v", pins)
		}
		if text := clip(string(data)); len(text) > 3*260 || strings.ContainsAny(text, "\x00\x1b\r\n") {
			t.Errorf("%q", text)
		}
	})
}
