package certs

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// ServerFiles names the material of a server. Cert, Key, ClientCA and CRL are paths, or
// PEM text, which does not change.
//
// With ClientCA, every client must show a certificate for clients (by its extended key
// usage) that is signed by one of these authorities; nothing weaker can be asked for.
type ServerFiles struct {
	Cert, Key  string   // both or none; the leaf, then its chain; RSA, ECDSA or Ed25519
	ClientCA   string   // authorities of the clients; "" means that clients are not asked
	ClientSANs []string // DNS names, IP addresses, URIs and email addresses of clients to admit; none means all
	CRL        string   // revocation lists for the clients, one for each authority of a chain; "" means none

	// 0 means TLS 1.2 and TLS 1.3. TLS 1.1 is spoken if MinVersion says so, with the best
	// suites that it has and to clients that know no better; not with an Ed25519 key.
	MinVersion, MaxVersion uint16

	// Config is what else the handshakes should do: NextProtos, or GetCertificate instead
	// of Cert and Key. What it leaves open is filled in by Safe. Session ticket keys of
	// its own are not used.
	Config *tls.Config

	LaxKeyMode bool        // accept a key that others may read
	OnError    func(error) // told of a changed file that is not taken, once a change, by the handshake that noticed
}

// Server is the TLS of one listener. It keeps up with the files: a handshake has one
// configuration from its start to its end, of a pair that belongs together, and when
// files turn bad the last good ones stay in use. Methods may be called concurrently.
// There is nothing to close.
//
// Sessions are resumed, though only where they began: by this listener, under this
// policy (ClientCA and what is in it, ClientSANs, versions). Whatever is asked of a
// client's certificate is asked again on resumption. A new pair does not end sessions,
// a new ClientCA does.
type Server struct {
	listener string
	files    ServerFiles
	base     *tls.Config // of which every configuration is a clone
	theirs   func(*tls.ClientHelloInfo) (*tls.Config, error)
	secret   string // part of the scope when the policy is more than we can tell
	allowed  allowed

	pair  *reloaded[*tls.Certificate]
	ca    *reloaded[*authorities]
	lists *reloaded[[]*x509.RevocationList]

	mu      sync.Mutex // guards the rest
	master  [][32]byte
	rotated time.Time // when master was; zero if it is the caller's to rotate
	now     *configs  // nil: to be made
}

// configs are what handshakes use until a file or a ticket key changes.
type configs struct {
	pair *tls.Certificate
	ca   *authorities
	cfg  *tls.Config
	old  *tls.Config // for clients that know nothing newer than TLS 1.1
}

// Server reads and checks everything once. The listener's name tells its sessions from
// those of others that share ticket keys; it should be the same after a restart.
func (f ServerFiles) Server(listener string) (*Server, error) {
	s := &Server{listener: listener, files: f, base: &tls.Config{}}
	if f.Config != nil {
		s.base = f.Config.Clone()
	}
	if err := errors.Join(f.conflict(s.base), f.setVersions(s.base), s.read()); err != nil {
		return nil, err
	}
	s.theirs, s.base.GetConfigForClient = s.base.GetConfigForClient, nil
	s.secret = secretFor(s.base)
	s.guard()
	s.SetTickets(nil)
	return s, nil
}

// conflict is about what would leave one of two wishes unfulfilled.
func (f ServerFiles) conflict(base *tls.Config) error {
	hasCert := len(base.Certificates) > 0 || base.GetCertificate != nil
	hasPair := f.Cert != "" || f.Key != ""
	verifies := f.ClientCA != "" || base.ClientAuth == tls.RequireAndVerifyClientCert
	checks := len(f.ClientSANs) > 0 || f.CRL != ""
	switch {
	case base.GetConfigForClient != nil && (hasPair || f.ClientCA != "" || checks):
		return errors.New("the files have no say where Config.GetConfigForClient decides")
	case hasPair && hasCert:
		return errors.New("there are certificates in Config and in Cert")
	case !hasPair && !hasCert && base.GetConfigForClient == nil:
		return errors.New("a server needs a certificate and its key")
	case f.ClientCA != "" && (base.ClientAuth != tls.NoClientCert || base.ClientCAs != nil):
		return errors.New("clients are verified by Config and by ClientCA")
	case checks && !verifies:
		return errors.New("ClientSANs and CRL need ClientCA")
	}
	return nil
}

// setVersions lets go below TLS 1.2 only by the field that is for it.
func (f ServerFiles) setVersions(base *tls.Config) error {
	Safe(base)
	if f.MinVersion != 0 {
		base.MinVersion = f.MinVersion
	}
	if f.MaxVersion != 0 {
		base.MaxVersion = f.MaxVersion
	}
	switch {
	case base.MinVersion < tls.VersionTLS11 || base.MinVersion > tls.VersionTLS13:
		return fmt.Errorf("%s: want TLS 1.1 to TLS 1.3", tls.VersionName(base.MinVersion))
	case base.MaxVersion != 0 && base.MaxVersion < base.MinVersion:
		return fmt.Errorf("%s at most and %s at least leave no version", tls.VersionName(base.MaxVersion), tls.VersionName(base.MinVersion))
	}
	return nil
}

func (s *Server) read() error {
	f := s.files
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	if f.Cert != "" || f.Key != "" {
		s.pair = &reloaded[*tls.Certificate]{paths: []string{f.Cert, f.Key}, read: readPair(f.LaxKeyMode), onError: f.OnError}
		note(s.pair.first())
	}
	if f.ClientCA != "" {
		s.ca = &reloaded[*authorities]{paths: []string{f.ClientCA}, read: readAuthorities, onError: f.OnError}
		note(s.ca.first())
	}
	if f.CRL != "" {
		s.lists = &reloaded[[]*x509.RevocationList]{paths: []string{f.CRL}, read: readLists, onError: f.OnError}
		note(s.lists.first())
	}
	var err error
	s.allowed, err = parseAllowed(f.ClientSANs)
	note(err)
	return errors.Join(errs...)
}

// secretFor keeps a policy to itself that stands in functions and pools: it cannot be
// compared with that of another process, so its sessions end with this one.
func secretFor(base *tls.Config) string {
	if base.ClientAuth == tls.NoClientCert && base.VerifyConnection == nil && base.VerifyPeerCertificate == nil {
		return ""
	}
	return rand.Text()
}

// guard puts our checks in front of the caller's. It is VerifyConnection because that runs
// on resumed sessions too, whose clients may have been good only when they began.
func (s *Server) guard() {
	if s.ca == nil && s.lists == nil && len(s.allowed) == 0 {
		return
	}
	verifier := &verifier{lists: s.lists}
	next := s.base.VerifyConnection
	s.base.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifier.verify(cs); err != nil {
			return err
		}
		if len(s.allowed) > 0 {
			if err := s.allowed.check(cs.VerifiedChains[0][0]); err != nil {
				return err
			}
		}
		if next != nil {
			return next(cs)
		}
		return nil
	}
}

// Config returns a configuration for any number of connections and listeners, which are
// one listener to their clients.
func (s *Server) Config() *tls.Config {
	cfg := s.base.Clone()
	cfg.GetConfigForClient = s.ForClient
	return cfg
}

// ForClient is for [tls.Config.GetConfigForClient]. What it returns must not be changed.
func (s *Server) ForClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if s.theirs != nil {
		if cfg, err := s.theirs(hello); cfg != nil || err != nil {
			return cfg, err
		}
	}
	now := s.current()
	modern := func(version uint16) bool { return version == tls.VersionTLS12 || version == tls.VersionTLS13 }
	if !slices.ContainsFunc(hello.SupportedVersions, modern) {
		return now.old, nil
	}
	return now.cfg, nil
}

// Reload looks at the files now, rather than within the second. An error means that those
// it names are not taken; it is not given to OnError.
func (s *Server) Reload() error {
	return errors.Join(s.pair.again(), s.ca.again(), s.lists.again())
}

// SetTickets sets the master of the session ticket keys, the newest first, as
// RotateTickets gives it. Servers with the same master, name and policy resume each
// other's sessions: that is how they survive a restart. Without, a server has its own,
// and rotates it every day.
func (s *Server) SetTickets(master [][32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.master, s.rotated, s.now = slices.Clone(master), time.Time{}, nil
	if len(master) == 0 {
		s.master, s.rotated = RotateTickets(nil), time.Now()
	}
}

func (s *Server) current() *configs {
	pair, ca := s.pair.get(), s.ca.get() // which may read files
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.rotated.IsZero() && time.Since(s.rotated) >= ticketRotation {
		s.master, s.rotated, s.now = RotateTickets(s.master), time.Now(), nil
	}
	if s.now == nil || s.now.pair != pair || s.now.ca != ca {
		s.now = s.makeLocked(pair, ca)
	}
	return s.now
}

// oldSuites are the best of TLS 1.1: forward secrecy, and CBC, which is all it has.
var oldSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
}

// makeLocked sets the ticket keys always: crypto/tls takes those of the listener's
// configuration for one without, and they know nothing of policies.
func (s *Server) makeLocked(pair *tls.Certificate, ca *authorities) *configs {
	cfg := s.base.Clone()
	if pair != nil {
		cfg.Certificates = []tls.Certificate{*pair}
	}
	if ca != nil {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
	}
	cfg.SetSessionTicketKeys(TicketKeys(s.master, s.scope(ca)))
	old := cfg.Clone()
	if s.files.Config == nil || s.files.Config.CipherSuites == nil {
		old.CipherSuites = oldSuites
	}
	return &configs{pair, ca, cfg, old}
}

// scope names what a ticket of this server is good for.
func (s *Server) scope(ca *authorities) string {
	var sum [sha256.Size]byte // no file has it
	if ca != nil {
		sum = ca.sum
	}
	names := slices.Sorted(maps.Keys(s.allowed))
	policy := fmt.Appendf(nil, "%x %q %v %d %d %q", sum, names, s.lists != nil, s.base.MinVersion, s.base.MaxVersion, s.secret)
	return fmt.Sprintf("%q %x", s.listener, sha256.Sum256(policy))
}
