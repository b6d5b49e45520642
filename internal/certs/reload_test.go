package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// complaints collects what OnError is told.
type complaints struct {
	mu  sync.Mutex
	got []error
}

func (c *complaints) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, err)
}

// take returns what came since the last time.
func (c *complaints) take() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.got
	c.got = nil
	return got
}

// wantOne wants one complaint, about a file.
func (c *complaints) wantOne(t *testing.T, file string) {
	t.Helper()
	if got := c.take(); len(got) != 1 || !strings.Contains(got[0].Error(), file) {
		t.Errorf("complaints %v, want one about %s", got, file)
	}
}

func (c *complaints) wantNone(t *testing.T) {
	t.Helper()
	if got := c.take(); len(got) != 0 {
		t.Errorf("complaints: %v", got)
	}
}

// mutual is a server that wants certificates of a root, and a client that has one.
func mutual(t *testing.T) (f folder, root *authority, s *server, cfg *tls.Config, said *complaints) {
	f, root, said = newFolder(t), newRoot(t, "root"), &complaints{}
	pool := x509.NewCertPool()
	pool.AddCert(root.cert)
	s = serve(t, &tls.Config{Certificates: []tls.Certificate{*root.issue()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	cert, key := f.putPair(root.issue(named("first")))
	cfg = client(t, Files{CA: f.put("ca.pem", root.pem()), Cert: cert, Key: key, OnError: said.add})
	return f, root, s, cfg, said
}

func (s *server) wantGreeting(cfg *tls.Config, want string) {
	s.t.Helper()
	if _, greeting := s.mustVisit(cfg, "db.test"); greeting != want {
		s.t.Errorf("the server met %s, want %s", greeting, want)
	}
}

func TestClientCertificateIsReloaded(t *testing.T) {
	f, root, s, cfg, said := mutual(t)
	s.wantGreeting(cfg, "first")
	if cs, _ := s.mustVisit(cfg, "db.test"); !cs.DidResume {
		t.Error("the session was not resumed")
	}
	clone := cfg.Clone()
	f.putPair(root.issue(named("second")))
	hurry(cfg)
	s.wantGreeting(cfg, "second") // not the first one's session
	s.wantGreeting(clone, "second")
	if cs, _ := s.mustVisit(cfg, "db.test"); !cs.DidResume {
		t.Error("the new session was not resumed")
	}
	said.wantNone(t)
}

func TestBadPairKeepsTheOldOne(t *testing.T) {
	f, root, s, cfg, said := mutual(t)
	second := root.issue(named("second"))

	f.put("tls.crt", certPEM(second)) // half of a renewal
	for range 3 {
		hurry(cfg)
		s.wantGreeting(cfg, "first")
	}
	said.wantOne(t, "tls.crt")

	f.put("tls.key", keyPEM(t, second)) // and the other half
	hurry(cfg)
	s.wantGreeting(cfg, "second")
	said.wantNone(t)

	key := filepath.Join(f.path, "tls.key")
	for what, spoil := range map[string]func() error{
		"cut short": func() error { return os.Truncate(key, 60) },
		"gone":      func() error { return os.Remove(key) },
		"a folder":  func() error { return errors.Join(os.Remove(key), os.Mkdir(key, 0o700)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			hurry(cfg)
			s.wantGreeting(cfg, "second")
		}
		if got := said.take(); len(got) != 1 || !strings.Contains(got[0].Error(), "tls.key") {
			t.Errorf("%s: complaints %v, want one", what, got)
		}
		os.Remove(key)
		f.put("tls.key", keyPEM(t, second))
		hurry(cfg)
		s.wantGreeting(cfg, "second")
		said.wantNone(t)
	}
}

func TestKeyThatBecomesReadableIsNotTaken(t *testing.T) {
	needModes(t)
	f, root, s, cfg, said := mutual(t)
	key := filepath.Join(f.path, "tls.key")
	if err := os.Chmod(key, 0o644); err != nil { // changes neither time nor size
		t.Fatal(err)
	}
	hurry(cfg)
	s.wantGreeting(cfg, "first")
	said.wantOne(t, "mode 0644")

	second := root.issue(named("second"))
	f.put("tls.crt", certPEM(second))
	f.putMode("tls.key", keyPEM(t, second), 0o640)
	hurry(cfg)
	s.wantGreeting(cfg, "first")
	said.wantOne(t, "mode 0640")

	os.Chmod(key, 0o600)
	hurry(cfg)
	s.wantGreeting(cfg, "second")
	said.wantNone(t)
}

// A rotation of authorities: the new one is added, servers move, the old one goes.
func TestAuthoritiesAreReloaded(t *testing.T) {
	f, before, after, said := newFolder(t), newRoot(t, "before"), newRoot(t, "after"), &complaints{}
	older, newer := serveCert(t, before.issue()), serveCert(t, after.issue())
	cfg := client(t, Files{CA: f.put("ca.pem", before.pem()), OnError: said.add})
	visit := func(ca string, older1, newer1 bool) {
		t.Helper()
		hurry(cfg)
		for s, good := range map[*server]bool{older: older1, newer: newer1} {
			_, _, err := s.visit(cfg, "db.test")
			if good != (err == nil) || !good && !is[x509.UnknownAuthorityError](err) {
				t.Errorf("%s: %v, want good %v", ca, err, good)
			}
		}
	}
	visit("before", true, false)
	f.put("ca.pem", before.pem()+after.pem())
	visit("both", true, true)
	f.put("ca.pem", after.pem())
	visit("after", false, true)
	said.wantNone(t)
	f.put("ca.pem", after.pem()[:100])
	visit("cut short", false, true)
	said.wantOne(t, "ca.pem")
}

func TestRevocationListIsReloaded(t *testing.T) {
	f, root, said := newFolder(t), newRoot(t, "root"), &complaints{}
	pair := root.issue()
	s := serveCert(t, pair)
	crl := f.put("ca.crl", root.crlPEM())
	cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), CRL: crl, OnError: said.add})
	s.mustVisit(cfg, "db.test")

	f.put("ca.crl", root.crlPEM(pair.Leaf))
	hurry(cfg)
	for range 2 { // a session is there to be resumed
		if _, _, err := s.visit(cfg, "db.test"); !is[*RevokedError](err) {
			t.Errorf("revoked: %v", err)
		}
	}
	said.wantNone(t)

	f.put("ca.crl", "nonsense")
	hurry(cfg)
	if _, _, err := s.visit(cfg, "db.test"); !is[*RevokedError](err) {
		t.Errorf("revoked, and a bad list: %v", err)
	}
	said.wantOne(t, "ca.crl")
}

// Kubernetes mounts a secret as links to a link to a folder, and swaps the latter.
func TestSwapOfLinksIsSeen(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	link := func(target, name string) {
		t.Helper()
		path := filepath.Join(f.path, name)
		if err := os.Symlink(target, path+".new"); err != nil {
			t.Skipf("no symbolic links: %v", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	stamp := time.Now().Add(-time.Hour)
	fill := func(version, name string) *tls.Certificate {
		dir := folder{t, filepath.Join(f.path, version)}
		if err := os.Mkdir(dir.path, 0o700); err != nil {
			t.Fatal(err)
		}
		pair := root.issue(named(name))
		for _, path := range []string{dir.put("tls.crt", certPEM(pair)), dir.put("tls.key", keyPEM(t, pair))} {
			if err := os.Chtimes(path, stamp, stamp); err != nil { // of the same time: other files all the same
				t.Fatal(err)
			}
		}
		return pair
	}
	first, second := fill("..1", "first"), fill("..2", "second")
	link("..1", "..data")
	link("..data/tls.crt", "tls.crt")
	link("..data/tls.key", "tls.key")
	cfg := client(t, Files{Cert: filepath.Join(f.path, "tls.crt"), Key: filepath.Join(f.path, "tls.key")})
	for _, want := range []*tls.Certificate{first, second} {
		hurry(cfg)
		got, err := cfg.GetClientCertificate(nil)
		if err != nil || !got.Leaf.Equal(want.Leaf) {
			t.Errorf("%v, %v, want %v", got.Leaf.Subject, err, want.Leaf.Subject)
		}
		link("..2", "..data")
	}
}

func TestFilesAreLookedAtOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root, said := newFolder(t), newRoot(t, "root"), &complaints{}
		cert, key := f.putPair(root.issue(named("first")))
		cfg := client(t, Files{Cert: cert, Key: key, OnError: said.add})
		name := func() string {
			got, _ := cfg.GetClientCertificate(nil)
			return got.Leaf.Subject.CommonName
		}
		f.putPair(root.issue(named("second")))
		time.Sleep(time.Second - time.Nanosecond)
		if got := name(); got != "first" {
			t.Errorf("within the second it is the %s", got)
		}
		time.Sleep(time.Nanosecond)
		if got := name(); got != "second" {
			t.Errorf("after it, it is the %s", got)
		}
		f.putPair(root.issue(named("third")))
		if got := name(); got != "second" {
			t.Errorf("within the next second it is the %s", got)
		}
		said.wantNone(t)
	})
}

// Who comes while another looks at the files does not wait: OnError of one handshake
// blocks here, and others go on, with what there is.
func TestASlowLookHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root := newFolder(t), newRoot(t, "root")
		cert, key := f.putPair(root.issue(named("first")))
		release := make(chan struct{})
		cfg := client(t, Files{Cert: cert, Key: key, OnError: func(error) { <-release }})
		s := storeOf(cfg)
		s.looking.Lock() // as one does whose disk hangs
		f.putPair(root.issue(named("second")))
		time.Sleep(time.Minute)
		if got := s.get().pair.Leaf.Subject.CommonName; got != "first" {
			t.Errorf("it is the %s", got)
		}
		s.looking.Unlock()

		f.put("tls.key", "nonsense")
		go s.get()
		synctest.Wait() // that one is in OnError now
		time.Sleep(time.Minute)
		if got := s.get().pair.Leaf.Subject.CommonName; got != "first" {
			t.Errorf("it is the %s", got)
		}
		close(release)
	})
}

func TestHandshakesDuringReloads(t *testing.T) {
	f, root, s, cfg, said := mutual(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				hurry(cfg)
				if _, _, err := s.visit(cfg, "db.test"); err != nil {
					t.Errorf("a handshake: %v", err)
				}
			}
		})
	}
	for range 20 {
		f.put("ca.pem", root.pem())
		f.putPair(root.issue(named("next")))
	}
	wg.Wait()
	for _, err := range said.take() { // a pair that is half of each
		if errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "private key does not match") {
			t.Errorf("complaint: %v", err)
		}
	}
}

// What every handshake pays for being able to reload.
func BenchmarkLook(b *testing.B) {
	f, root := newFolder(b), newRoot(b, "root")
	s := storeOf(client(b, Files{CA: f.put("ca.pem", root.pem())}))
	b.ReportAllocs()
	for b.Loop() {
		s.get()
	}
}
