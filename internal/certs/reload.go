package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lookAgain is how long what the files were is taken for what they are.
const lookAgain = time.Second

// material is what the files held when they were last good. It is replaced, never
// changed, so a handshake may use one while the next is made.
type material struct {
	roots    *x509.CertPool         // nil: crypto/tls verifies with the system's
	pair     *tls.Certificate       // nil: none
	lists    []*list                // nil: none
	sessions tls.ClientSessionCache // made with pair
}

// A store keeps the material up to date.
type store struct {
	host    string
	pins    pins
	onError func(error)

	current atomic.Pointer[material]

	looking sync.Mutex // held by the one who looks at the files, and guards what follows
	parts   []*part
	next    time.Time // when to look again
}

// open reads everything once.
func open(f Files) (*store, error) {
	pins, err := parsePins(f.Pins)
	s := &store{host: f.ServerName, pins: pins, onError: f.OnError, parts: f.parts()}
	if s.onError == nil {
		s.onError = func(error) {}
	}
	errs := []error{err}
	m := &material{sessions: newSessions()}
	for _, p := range s.parts {
		errs = append(errs, p.load(m))
	}
	s.next = time.Now().Add(lookAgain)
	s.current.Store(m)
	return s, errors.Join(errs...)
}

// get returns the material as the files are now, or were when they were last good. It
// does not wait while another looks: the disk may be slow, and what is there will do.
func (s *store) get() *material {
	if s.looking.TryLock() {
		errs := s.lookLocked(time.Now())
		s.looking.Unlock()
		for _, err := range errs {
			s.onError(err)
		}
	}
	return s.current.Load()
}

func (s *store) lookLocked(now time.Time) (errs []error) {
	if now.Before(s.next) {
		return nil
	}
	s.next = now.Add(lookAgain)
	m := *s.current.Load()
	for _, p := range s.parts {
		if !p.changed() {
			continue
		}
		if err := p.load(&m); err != nil {
			errs = append(errs, err)
		}
	}
	s.current.Store(&m)
	return errs
}

func (s *store) clientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return s.get().pair, nil
}

// A part is a group of files that make sense only together.
type part struct {
	paths []string
	parse func(m *material, files []file) error // sets m's fields only if all is well
	seen  []fs.FileInfo                         // of what was loaded last, good or bad; nil for a missing file
}

// changed reports whether the files are others than those loaded last.
func (p *part) changed() bool {
	for i, path := range p.paths {
		if info, _ := os.Stat(path); !same(info, p.seen[i]) {
			return true
		}
	}
	return false
}

// load reads the files. They are looked at before they are read: what comes in between
// is found at the next look.
func (p *part) load(m *material) error {
	var errs []error
	files := make([]file, len(p.paths))
	p.seen = make([]fs.FileInfo, len(p.paths))
	for i, path := range p.paths {
		info, err := os.Stat(path)
		if err == nil {
			p.seen[i] = info
			files[i], err = read(path, info)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return p.parse(m, files)
}

// same reports whether nothing was written to a file and nothing put in its place.
// The mode counts because a key is refused for it.
func same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && a.Mode() == b.Mode()
}

// sessions is the cache of a store's configurations. It comes first in a handshake, so
// it looks at the files before it offers to resume.
type sessions struct{ store *store }

func newSessions() tls.ClientSessionCache { return tls.NewLRUClientSessionCache(256) }

func (c sessions) Get(key string) (*tls.ClientSessionState, bool) {
	return c.store.get().sessions.Get(key)
}

func (c sessions) Put(key string, session *tls.ClientSessionState) {
	c.store.current.Load().sessions.Put(key, session)
}
