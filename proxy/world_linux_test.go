package proxy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/proxy"
	"golang.org/x/sys/unix"
)

// soak reports whether the long form was asked for.
var soak = os.Getenv("HOLDFAST_SOAK") != ""

// patience ends what hangs. What is expected takes a tenth of it at most.
const patience = 10 * time.Second

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// socketUnder is what is below TLS.
func socketUnder(c net.Conn) net.Conn {
	if secure, ok := c.(interface{ NetConn() net.Conn }); ok {
		return secure.NetConn()
	}
	return c
}

func closeWrite(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// reset ends a connection so that its peer learns of it as an error.
func reset(c net.Conn) {
	c = socketUnder(c)
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// unsent is how many bytes the peer's kernel does not have yet.
func unsent(c net.Conn) (n int) {
	raw, err := socketUnder(c).(syscall.Conn).SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return n
}

// settle waits until the peer's kernel has all that was written, or takes no more.
func settle(c net.Conn) (left int) {
	end := time.Now().Add(150 * time.Millisecond)
	for left = unsent(c); left > 0 && time.Now().Before(end); left = unsent(c) {
		time.Sleep(time.Millisecond)
	}
	return left
}

// fate is how a stream ended, in the words of the tables here.
func fate(err error) string {
	var timeout net.Error
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "still waiting"
	}
	return err.Error()
}

// readAll says how much came, and how it ended.
func readAll(c net.Conn) string {
	n, err := io.Copy(io.Discard, c)
	return fmt.Sprint(n, " bytes, ", fate(err))
}

// isCut checks that a client learns that nobody serves it: by a reset, and soon.
func isCut(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); n > 0 || fate(err) == "still waiting" || err == nil {
		t.Errorf("read %d, %v; want its end", n, err)
	}
}

// ask sends a word to an echo, and wants it back.
func ask(c net.Conn, word string) error {
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != word {
		return fmt.Errorf("%q came back, not %q", got, word)
	}
	return nil
}

// startOn runs a Proxy on a listener.
func startOn(t testing.TB, cfg proxy.Config, ln net.Listener) *proxy.Proxy {
	t.Helper()
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve(ln) }()
	t.Cleanup(func() {
		p.Close()
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return p
}

// authority issues certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert = a.sign(template, template, a.key)
	return a
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for names, the first of which is the subject's.
func (a *authority) issue(names ...string) tls.Certificate {
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) server(protocols ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{a.issue("db.test", "*.db.test")}, NextProtos: protocols}
}

func (a *authority) client(name string, protocols ...string) *tls.Config {
	return &tls.Config{RootCAs: a.pool(), ServerName: name, NextProtos: protocols}
}

// inChild runs the test again in a process of its own, and reports whether this is it.
func inChild(t *testing.T, attr *syscall.SysProcAttr, before ...string) bool {
	t.Helper()
	const key = "HOLDFAST_CHILD"
	if os.Getenv(key) == t.Name() {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(before, self, "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout=60s")
	if soak {
		args[len(args)-1] = "-test.timeout=30m"
	}
	child := exec.Command(args[0], args[1:]...)
	child.Env = append(os.Environ(), key+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	child.SysProcAttr = attr
	out, err := child.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in a process of its own: %v\n%s", err, out)
	}
	return false
}

// need skips a test that cannot run here, and says so. In CI that is a failure.
func need(t *testing.T, root bool, programs ...string) {
	t.Helper()
	missing := ""
	if root && os.Geteuid() != 0 {
		missing = "not root"
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = err.Error()
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("cannot run in CI: %s", missing)
	default:
		t.Skip(missing)
	}
}

// inNamespace is inChild with a network of its own.
func inNamespace(t *testing.T, programs ...string) bool {
	t.Helper()
	need(t, true, append(programs, "ip")...)
	if !inChild(t, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}) {
		return false
	}
	run(t, "ip", "link", "set", "lo", "up")
	return true
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// cpuTime is what this process has computed so far.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func tlsClient(c net.Conn, ca *authority, protocols ...string) *tls.Conn {
	return tls.Client(c, ca.client("db.test", protocols...))
}
