package integrations

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// OpenSSL keeps its session over a restart: the ticket keys are passed on.
func TestOpenSSLResumesAfterARestart(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	command(t, openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-keyout", key, "-out", cert, "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
	addr, _ := freeAddr(t)
	s := startService(t, addr, "echo", "--cert", cert, "--key", key)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version[1:], func(t *testing.T) {
			session := filepath.Join(t.TempDir(), "session")
			client := []string{openssl, "s_client", "-connect", addr, "-CAfile", cert, "-verify_return_error", version}
			if said := pingTLS(t, append(client, "-sess_out", session)...); !strings.Contains(said, "\nNew, TLS") {
				t.Errorf("at first, a new session: %s", said)
			}
			for range 2 {
				s.restart()
				if said := pingTLS(t, append(client, "-sess_in", session)...); !strings.Contains(said, "\nReused, TLS") {
					t.Errorf("after a restart, the same session: %s", said)
				}
			}
		})
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// pingTLS has s_client say PING, waits for the answer, and returns all it printed.
func pingTLS(t *testing.T, args ...string) (said string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "PING\n")
	r := bufio.NewReader(out)
	for line := ""; line != "PONG\n"; said += line {
		if line, err = r.ReadString('\n'); err != nil {
			break
		}
	}
	in.Close()
	rest, _ := io.ReadAll(r)
	said += string(rest)
	if err := cmd.Wait(); err != nil || !strings.Contains(said, "PONG\n") {
		t.Fatalf("s_client: %v\n%s", err, said)
	}
	return said
}

// What HAProxy says of its client is what counts, in either version of the header,
// from one who may say it.
func TestHAProxyTellsOfItsClient(t *testing.T) {
	t.Parallel()
	haproxy := need(t, "haproxy")
	for _, how := range []string{"send-proxy", "send-proxy-v2"} {
		t.Run(how, func(t *testing.T) {
			back, _ := freeAddr(t)
			s := startService(t, back, "echo", "--trusted-proxy", "127.0.0.1", "--allow", "127.0.0.2")
			front, _ := freeAddr(t)
			run(t, front, nil, haproxy, "-db", "-f", haproxyConfig(t, front, back, how))
			for range 2 {
				if err := pingFrom("127.0.0.2", front); err != nil {
					t.Errorf("the allowed client: %v", err)
				}
				if err := pingFrom("127.0.0.3", front); err == nil {
					t.Error("the other client was let in")
				}
				if err := pingFrom("127.0.0.1", back); err == nil {
					t.Error("the proxy was let in without a header")
				}
				if err := pingFrom("127.0.0.2", back); err != nil {
					t.Errorf("the allowed client, without a proxy: %v", err)
				}
				s.restart()
			}
		})
	}
}

// pingFrom asks a line server from an address of ours.
func pingFrom(local, addr string) error {
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	return askOn(conn, "PING\n", "PONG\n")
}
