//go:build unix

package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The protocol of the line server, byte for byte.
func TestEchoAnswers(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startEcho(t, "-l", "tcp://"+addr)
	tcp, unix := dialTo(t, "tcp", addr), dialTo(t, "unix", s.sock())
	for _, c := range []*talk{tcp, unix} {
		for _, row := range []struct{ say, want string }{
			{"PING\n", "PONG\n"},
			{"PING and more\n", "PONG\n"},
			{"PINGS\r\n", "PONG\n"},
			{"ping\n", "UNKNOWN COMMAND\n"},
			{" PING\n", "UNKNOWN COMMAND\n"},
			{"\n", "UNKNOWN COMMAND\n"},
			{"PING\nPING\nother\n", "PONG\nPONG\nUNKNOWN COMMAND\n"},
			{strings.Repeat("x", 5000) + "\n", "UNKNOWN COMMAND\n"},
		} {
			c.exchange(row.say, row.want)
		}
	}
	tcp.exchange("STATUS\n", "CONNECTIONS: 2\n")
	unix.exchange("STATUS please\n", "CONNECTIONS: 2\n")
	third := dialTo(t, "tcp", addr)
	third.exchange("STATUS\n", "CONNECTIONS: 3\n")
}

func TestEchoModes(t *testing.T) {
	t.Parallel()
	for mode, exchange := range map[string][2]string{
		"echo":  {"PING\nany thing\n", "PING\nany thing\n"},
		"frame": {"\x00\x00\x00\x03abc\x00\x00\x00\x00\x00\x00\x00\x01\n", "\x00\x00\x00\x03abc\x00\x00\x00\x00\x00\x00\x00\x01\n"},
	} {
		t.Run(mode, func(t *testing.T) {
			s := startEcho(t, "--mode", mode)
			dialTo(t, "unix", s.sock()).exchange(exchange[0], exchange[1])
		})
	}
}

// Datagrams are answered at the same addresses, or at their own.
func TestEchoDatagrams(t *testing.T) {
	t.Parallel()
	both, own := freeAddr(t, "127.0.0.1"), freeAddr(t, "127.0.0.1")
	startEcho(t, "-l", "tcp://"+both+",udp://"+own, "--udp")
	dialTo(t, "tcp", both).exchange("PING\n", "PONG\n")
	for _, addr := range []string{both, own} {
		c := dialTo(t, "udp", addr)
		c.say("who?") // not answered
		c.exchange("PING and more", "PONG")
		c.exchange("STATUS", "CONNECTIONS: ")
	}
	startEcho(t, "-l", "web=udp://"+freeAddr(t, "127.0.0.1"), "--mode", "frame")
	again := freeAddr(t, "127.0.0.1")
	startEcho(t, "-l", "web=tcp://"+again, "--mode", "echo", "--udp")
	dialTo(t, "udp", again).exchange("any thing", "any thing")
}

// In a restart, old and new read the same socket, so
// that nothing is lost beyond what is lost without one.
func TestDatagramsSurviveRestarts(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "127.0.0.1")
	s := startEcho(t, "-l", "udp://"+addr, "--mode", "echo")
	steady := drivePackets(t, addr, func() { time.Sleep(500 * time.Millisecond) })
	restarted := drivePackets(t, addr, func() {
		for range 10 {
			s.must("restart", "--wait", "echo")
		}
	})
	t.Logf("steady: %+v; through 10 restarts: %+v", steady, restarted)
	if restarted.lost > steady.lost || restarted.answered == 0 {
		t.Errorf("through 10 restarts: %+v; without: %+v", restarted, steady)
	}
	if state := s.status("echo"); state.Restarts != 10 {
		t.Errorf("the status is %+v", state)
	}
}

type packetLoad struct{ answered, lost int }

// drivePackets keeps 4 clients busy with 8 datagrams under way each while do runs. One
// that is not answered within 20 s is lost: a busy machine may keep a worker for two.
func drivePackets(t *testing.T, addr string, do func()) (sum packetLoad) {
	t.Helper()
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		over = make(chan struct{})
	)
	for range 4 {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer conn.Close()
			l := echoPackets(conn, over)
			mu.Lock()
			sum.answered += l.answered
			sum.lost += l.lost
			mu.Unlock()
		})
	}
	do()
	close(over)
	wg.Wait()
	return sum
}

func echoPackets(conn net.Conn, over <-chan struct{}) (l packetLoad) {
	b := make([]byte, 100)
	for n := 0; ; {
		select {
		case <-over:
			return l
		default:
		}
		waiting := map[string]bool{}
		for range 8 {
			n++
			text := fmt.Sprint(n)
			waiting[text] = true
			conn.Write([]byte(text))
		}
		for conn.SetReadDeadline(time.Now().Add(20 * time.Second)); len(waiting) > 0; {
			k, err := conn.Read(b)
			if err != nil {
				break
			}
			if text := string(b[:k]); waiting[text] {
				delete(waiting, text)
				l.answered++
			}
		}
		l.lost += len(waiting)
	}
}

// A connection too many is closed, without a word; a silent one, too.
func TestEchoLimits(t *testing.T) {
	t.Parallel()
	s := startEcho(t, "--max-conns", "2", "--idle", "1m")
	first, second := dialTo(t, "unix", s.sock()), dialTo(t, "unix", s.sock())
	first.exchange("PING\n", "PONG\n")
	second.exchange("STATUS\n", "CONNECTIONS: 2\n")
	dialTo(t, "unix", s.sock()).wantEnd()
	first.Close()
	for second.say("STATUS\n"); second.line() != "CONNECTIONS: 1"; second.say("STATUS\n") {
	}
	dialTo(t, "unix", s.sock()).exchange("STATUS\n", "CONNECTIONS: 2\n")

	quiet := startEcho(t, "--idle", "50ms")
	dialTo(t, "unix", quiet.sock()).wantEnd()
}

// An IPv4 client of an IPv6 socket is still in its IPv4 network.
func TestEchoAllowsNetworks(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t, "::")
	s := newService(t)
	s.launch("echo", "-l", "tcp://"+addr, "--allow", "127.0.0.0/8,192.0.2.1")
	s.log.await(t, "restart: committed")
	dialTo(t, "tcp", "127.0.0.1:"+port(addr)).exchange("PING\n", "PONG\n")
	dialTo(t, "tcp", "[::1]:"+port(addr)).wantEnd()
}

func TestEchoSpeaksTLS(t *testing.T) {
	t.Parallel()
	cert, key, roots := identityFiles(t)
	addr := freeAddr(t, "127.0.0.1")
	s := newService(t)
	s.launch("echo", "-l", "tcp://"+addr, "--cert", cert, "--key", key)
	s.log.await(t, "restart: committed")
	dialTLS(t, addr, &tls.Config{RootCAs: roots}).exchange("PING\n", "PONG\n")
	old := &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	if conn, err := tls.Dial("tcp", addr, old); err == nil {
		conn.Close()
		t.Error("TLS 1.1 must be asked for")
	}

	// With --client-ca a client must show a certificate; who it is, TLS has said.
	addr = freeAddr(t, "127.0.0.1")
	strict := newService(t)
	strict.launch("echo", "-l", "tcp://"+addr, "--cert", cert, "--key", key, "--client-ca", cert)
	strict.log.await(t, "restart: committed")
	stranger := dialTLS(t, addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS13})
	if _, err := stranger.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a client without a certificate got %v", err)
	}
}

func dialTLS(t *testing.T, addr string, cfg *tls.Config) *talk {
	t.Helper()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return talkOn(t, conn)
}

// identityFiles are a certificate of 127.0.0.1, its key, and who trusts it.
func identityFiles(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	certFile, identity := selfSigned(t)
	der, err := x509.MarshalPKCS8PrivateKey(identity.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(filepath.Dir(certFile), "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	text, err := os.ReadFile(certFile)
	if err != nil || !roots.AppendCertsFromPEM(text) {
		t.Fatal("no root in the certificate's file: ", err)
	}
	return certFile, keyFile, roots
}
