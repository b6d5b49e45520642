package sockopt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// settle polls until ask says want: what the peer did takes a moment to arrive.
func settle(t *testing.T, ask func() Readiness, want Readiness) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	var got Readiness
	for range 5000 {
		if got = ask(); got == want {
			return
		}
		<-tick.C
	}
	t.Fatalf("the connection is %v, want %v", got, want)
}

// A way to ask: the one of this system, and the one of others.
type asker func(c net.Conn) func() Readiness

func polled(c net.Conn) func() Readiness { return NewPoller(c.(syscall.Conn)).Poll }

func peeked(c net.Conn) func() Readiness {
	p := NewPoller(c.(syscall.Conn))
	p.ask = func(fd uintptr) { p.said = peek(fd) }
	return p.Poll
}

func TestPollTellsWhatTheKernelKnows(t *testing.T) {
	for name, ask := range map[string]asker{"poll": polled, "peek": peeked} {
		t.Run(name+"/tcp", func(t *testing.T) {
			testReadiness(t, ask, func(t *testing.T) net.Listener { return listen(t, "tcp", "127.0.0.1:0") })
		})
		t.Run(name+"/unix", func(t *testing.T) {
			testReadiness(t, ask, func(t *testing.T) net.Listener { return listen(t, "unix", filepath.Join(t.TempDir(), "s")) })
		})
	}
}

func testReadiness(t *testing.T, ask asker, ln func(t *testing.T) net.Listener) {
	t.Run("idle", func(t *testing.T) {
		c, _ := connect(t, ln(t), Options{})
		if got := ask(c)(); got != Idle {
			t.Errorf("the connection is %v", got)
		}
	})
	t.Run("bytes wait", func(t *testing.T) {
		c, s := connect(t, ln(t), Options{})
		io.WriteString(s, "late")
		settle(t, ask(c), Readable)
		got := make([]byte, 4)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "late" {
			t.Errorf("asking took bytes: %q, %v", got, err)
		}
		settle(t, ask(c), Idle)
	})
	t.Run("peer closed", func(t *testing.T) {
		c, s := connect(t, ln(t), Options{})
		s.Close()
		settle(t, ask(c), Closed)
	})
	t.Run("peer closed its sending half", func(t *testing.T) {
		c, s := connect(t, ln(t), Options{})
		s.(interface{ CloseWrite() error }).CloseWrite()
		settle(t, ask(c), Closed)
	})
	t.Run("closed here", func(t *testing.T) {
		c, _ := connect(t, ln(t), Options{})
		poll := ask(c)
		c.Close()
		if got := poll(); got != Closed {
			t.Errorf("the connection is %v, want closed", got)
		}
	})
}

func TestPollSeesAReset(t *testing.T) {
	for name, ask := range map[string]asker{"poll": polled, "peek": peeked} {
		t.Run(name, func(t *testing.T) {
			c, s := pair(t, Options{})
			s.(*net.TCPConn).SetLinger(0)
			s.Close()
			settle(t, ask(c), Closed)
		})
	}
}

// A reply that nobody waited for and then the end: the connection is of no use, but
// only poll can say so before the bytes are read.
func TestPollSeesTheEndBehindBytes(t *testing.T) {
	c, s := pair(t, Options{})
	io.WriteString(s, "bye")
	s.Close()
	settle(t, polled(c), Closed)
	settle(t, peeked(c), Readable)
}

func TestPollOfHalfClosedHere(t *testing.T) {
	c, s := pair(t, Options{})
	c.(*net.TCPConn).CloseWrite()
	settle(t, polled(s), Closed)
	if got := polled(c)(); got != Idle { // the peer may still answer
		t.Errorf("after our own half-close the connection is %v", got)
	}
}

func TestPollDuringClose(t *testing.T) {
	for range 50 {
		c, _ := pair(t, Options{})
		p := NewPoller(c.(syscall.Conn))
		var wg sync.WaitGroup
		wg.Go(func() {
			for p.Poll() != Closed {
			}
		})
		c.Close()
		wg.Wait()
		if got := p.Poll(); got != Closed {
			t.Fatalf("after Close the connection is %v", got)
		}
	}
}

func TestPollOfNothing(t *testing.T) {
	if got := NewPoller(&net.TCPConn{}).Poll(); got != Unknown {
		t.Errorf("no connection is %v", got)
	}
}

// A healthy TLS 1.3 server leaves tickets to be read, a closing one an alert before
// its FIN, on TLS 1.2 too.
func TestPollBelowTLS(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			raw, client, server := secured(t, version)
			healthy := Idle
			if version == tls.VersionTLS13 {
				healthy = Readable
			}
			settle(t, polled(raw), healthy)

			if _, err := io.WriteString(server, "hi"); err != nil { // two bytes fit any buffer
				t.Fatal(err)
			}
			if _, err := io.ReadFull(client, make([]byte, 2)); err != nil { // reads the tickets too
				t.Fatal(err)
			}
			settle(t, polled(raw), Idle)

			server.Close()
			settle(t, polled(raw), Closed)
			settle(t, peeked(raw), Readable) // close_notify hides the end from a peek
		})
	}
}

func secured(t *testing.T, version uint16) (raw net.Conn, client, server *tls.Conn) {
	raw, far := pair(t, Options{})
	client = tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, // who it is does not matter here
		MinVersion:         version, MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(0), // without one a server sends no ticket
	})
	server = tls.Server(far, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	done := make(chan error, 1)
	go func() { done <- server.HandshakeContext(t.Context()) }()
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return raw, client, server
}

func selfSigned(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestPollAllocatesNothing(t *testing.T) {
	c, _ := pair(t, Options{})
	p := NewPoller(c.(syscall.Conn))
	if n := testing.AllocsPerRun(100, func() { p.Poll() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPoll(b *testing.B) {
	c, _ := pair(b, Options{})
	p := NewPoller(c.(syscall.Conn))
	b.ReportAllocs()
	for b.Loop() {
		p.Poll()
	}
}

func BenchmarkPeek(b *testing.B) {
	c, _ := pair(b, Options{})
	ask := peeked(c)
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
}
