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

// complaints is what OnError was told.
type complaints struct {
	mu   sync.Mutex
	list []string
}

func (c *complaints) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, err.Error())
}

// want takes the complaints since the last time: one with these words, or none.
func (c *complaints) want(t *testing.T, words string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if words == "" && len(c.list) > 0 || words != "" && (len(c.list) != 1 || !strings.Contains(c.list[0], words)) {
		t.Errorf("complaints %q, want %q", c.list, words)
	}
	c.list = nil
}

// mutual is a server that wants its root's certificates, and a client with one.
type mutual struct {
	folder
	root   *authority
	server *tls.Config
	client *tls.Config
	said   complaints
}

func newMutual(t *testing.T) *mutual {
	m := &mutual{folder: newFolder(t), root: newRoot(t, "root")}
	m.server = serving(m.root.issue())
	m.server.ClientAuth, m.server.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
	m.server.ClientCAs.AddCert(m.root.cert)
	cert, key := m.putPair(m.root.issue(called("first")))
	m.client = client(t, Files{CA: m.put("ca.pem", m.root.pem()), Cert: cert, Key: key, OnError: m.said.add})
	return m
}

// meets visits a few seconds in a row; the server must meet this client each time.
func (m *mutual) meets(t *testing.T, want string) {
	t.Helper()
	for range 3 {
		time.Sleep(lookAgain)
		if _, got := mustVisit(t, m.server, m.client); got != want {
			t.Errorf("the server met the %s, want the %s", got, want)
		}
	}
}

// A session has the identity that it began with: with a new pair it is forgotten.
func TestClientCertificateIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMutual(t)
		m.meets(t, "first")
		if resumed, _ := mustVisit(t, m.server, m.client); !resumed {
			t.Error("no session was resumed")
		}
		m.putPair(m.root.issue(called("second")))
		if _, got := mustVisit(t, m.server, m.client); got != "first" {
			t.Errorf("within the second the server met the %s", got)
		}
		m.meets(t, "second")
		if resumed, _ := mustVisit(t, m.server, m.client); !resumed {
			t.Error("no session was resumed after the change")
		}
		m.said.want(t, "")
	})
}

func TestBadPairKeepsTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMutual(t)
		second := m.root.issue(called("second"))
		m.put("tls.crt", certPEM(second)) // half of a renewal
		m.meets(t, "first")
		m.said.want(t, "private key does not match")
		m.put("tls.key", keyPEM(t, second)) // and the other half
		m.meets(t, "second")
		m.said.want(t, "")

		key := filepath.Join(m.path, "tls.key")
		for what, spoil := range map[string]func() error{
			"cut short":   func() error { return os.Truncate(key, 60) },
			"gone":        func() error { return os.Remove(key) },
			"a folder":    func() error { return errors.Join(os.Remove(key), os.Mkdir(key, 0o700)) },
			"for anybody": func() error { return os.Chmod(key, 0o644) },
		} {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			m.meets(t, "second")
			m.said.want(t, "tls.key")
			os.Remove(key)
			m.put("tls.key", keyPEM(t, second))
			m.meets(t, "second")
			m.said.want(t, "")
			if t.Failed() {
				t.Fatalf("with a key that is %s", what)
			}
		}
	})
}

// A good file that could not be read, because this process had no file descriptor
// left, say, is read when it can be.
func TestReadingIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, full, said := newFolder(t), false, complaints{}
		r := &reloaded[string]{paths: []string{f.put("x", "old")}, onError: said.add, read: func(paths []string) (string, error) {
			if full {
				return "", errors.New("too many open files")
			}
			text, err := os.ReadFile(paths[0])
			return string(text), err
		}}
		if err := r.first(); err != nil {
			t.Fatal(err)
		}
		f.put("x", "new")
		full = true
		for range 3 {
			time.Sleep(lookAgain)
			if got := r.get(); got != "old" {
				t.Errorf("%q", got)
			}
		}
		said.want(t, "too many open files")
		full = false
		time.Sleep(lookAgain)
		if got := r.get(); got != "new" {
			t.Errorf("%q when it can be read again", got)
		}
		said.want(t, "")
	})
}

// Some programs write into the file itself. Time or size tell.
func TestFileWrittenInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, start := newFolder(t), time.Now()
		path := f.put("x", "one")
		os.Chtimes(path, start, start)
		r := &reloaded[string]{paths: []string{path}, read: func(paths []string) (string, error) {
			text, err := os.ReadFile(paths[0])
			return string(text), err
		}}
		if err := r.first(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			text string
			time time.Time
		}{{"three", start}, {"seven", start.Add(1)}} {
			os.WriteFile(path, []byte(c.text), 0o600)
			os.Chtimes(path, c.time, c.time)
			time.Sleep(lookAgain)
			if got := r.get(); got != c.text {
				t.Errorf("%q, want %q", got, c.text)
			}
		}
	})
}

// The new authority is added, servers move to it, the old one goes; then somebody
// spoils the file.
func TestAuthoritiesAreRotated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, before, after, said := newFolder(t), newRoot(t, "before"), newRoot(t, "after"), complaints{}
		older, newer := serving(before.issue()), serving(after.issue())
		cfg := client(t, Files{CA: f.put("ca.pem", before.pem()), OnError: said.add})
		for _, c := range []struct {
			ca           string
			older, newer bool
			said         string
		}{
			{before.pem(), true, false, ""},
			{before.pem() + after.pem(), true, true, ""},
			{after.pem(), false, true, ""}, // a session with the old one is there
			{after.pem() + before.pem()[:100], false, true, "cut short"},
			{"", false, true, "no certificate"},
			{before.pem(), true, false, ""},
		} {
			f.put("ca.pem", c.ca)
			time.Sleep(lookAgain)
			for server, good := range map[*tls.Config]bool{older: c.older, newer: c.newer} {
				err := refusal(t, server, cfg)
				if good != (err == nil) || !good && !is[x509.UnknownAuthorityError](err) {
					t.Errorf("%v, want good %v", err, good)
				}
			}
			said.want(t, c.said)
		}
	})
}

func TestBadListKeepsTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root, said := newFolder(t), newRoot(t, "root"), complaints{}
		good, bad := root.issue(), root.issue()
		cfg := client(t, Files{CA: f.put("ca.pem", root.pem()), CRL: f.put("ca.crl", root.list(leaf(bad))), OnError: said.add})
		f.put("ca.crl", "nonsense")
		for range 3 {
			time.Sleep(lookAgain)
			mustVisit(t, serving(good), cfg)
			if err := refusal(t, serving(bad), cfg); !is[*RevokedError](err) {
				t.Errorf("a revoked one: %v", err)
			}
		}
		said.want(t, "ca.crl")
		time.Sleep(2 * time.Hour)
		if err := refusal(t, serving(good), cfg); !is[*RevokedError](err) {
			t.Errorf("the old list does not end: %v", err)
		}
	})
}

// Kubernetes mounts a secret as links to a link to a folder, and swaps the latter.
// The files here have the same size and time before and after.
func TestSwapOfLinksIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, root := newFolder(t), newRoot(t, "root")
		link := func(target, name string) {
			path := filepath.Join(f.path, name)
			os.Remove(path + "~")
			if err := os.Symlink(target, path+"~"); err != nil {
				t.Skipf("no symbolic links: %v", err)
			}
			if err := os.Rename(path+"~", path); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"1st", "2nd"} {
			dir := folder{t, filepath.Join(f.path, name)}
			os.Mkdir(dir.path, 0o700)
			cert, key := dir.putPair(root.issue(called(name)))
			os.Chtimes(cert, time.Now(), time.Now())
			os.Chtimes(key, time.Now(), time.Now())
		}
		link("1st", "..data")
		link("..data/tls.crt", "tls.crt")
		link("..data/tls.key", "tls.key")
		cfg := client(t, Files{Cert: filepath.Join(f.path, "tls.crt"), Key: filepath.Join(f.path, "tls.key")})
		for _, want := range []string{"1st", "2nd"} {
			link(want, "..data")
			time.Sleep(lookAgain)
			got, err := cfg.GetClientCertificate(nil)
			if err != nil || got.Leaf.Subject.CommonName != want {
				t.Errorf("%v, %v, want the %s", got.Leaf.Subject, err, want)
			}
		}
	})
}

func TestKeyModes(t *testing.T) {
	if !modesMatter {
		t.Skip("files have no modes here")
	}
	f := newFolder(t)
	pair := newRoot(t, "root").issue()
	cert, _ := f.putPair(pair)
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o644: false, 0o640: false, 0o604: false, 0o620: false} {
		key := f.putMode("tls.key", keyPEM(t, pair), mode)
		_, err := Files{Cert: cert, Key: key}.Client()
		if good != (err == nil) || !good && !strings.Contains(err.Error(), "mode 06") {
			t.Errorf("mode %04o: %v", mode, err)
		}
		client(t, Files{Cert: cert, Key: key, LaxKeyMode: true})
	}
}

func TestStartNamesEveryBadFile(t *testing.T) {
	f, root := newFolder(t), newRoot(t, "root")
	cert, key := f.putPair(root.issue())
	missing := filepath.Join(f.path, "missing.pem")
	_, err := Files{CA: missing, Cert: cert, Key: f.put("other.key", keyPEM(t, root.issue())), CRL: key, Pins: []string{"sha256/x"}}.Client()
	for _, want := range []string{missing, cert, "other.key", key, `"sha256/x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cause is out of reach: %v", err)
	}
	for want, files := range map[string]Files{
		"tls.crt: a certificate needs":  {Cert: cert},
		"tls.key: a certificate needs":  {Key: key},
		"tls.key: no certificate in it": {CA: key},
		"not a regular file":            {CA: f.path},
	} {
		if _, err := files.Client(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", files, err)
		}
	}
}

// Handshakes go on while files change under them; a pair of halves keeps the old.
func TestHandshakesDuringReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMutual(t)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for range 10 {
					time.Sleep(lookAgain/2 + time.Duration(i))
					if err := refusal(t, m.server, m.client); err != nil {
						t.Errorf("a handshake: %v", err)
					}
				}
			})
		}
		for range 10 {
			m.put("ca.pem", m.root.pem())
			m.putPair(m.root.issue(called("next")))
			time.Sleep(lookAgain / 3)
		}
		wg.Wait()
		m.meets(t, "next")
	})
}
