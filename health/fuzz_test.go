package health_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/health"
)

// script is a connection to a server that says some bytes, in pieces of any size, and ends.
type script struct {
	says   *bytes.Reader
	pieces *rand.Rand
	read   int
}

func (s *script) Read(p []byte) (int, error) {
	if len(p) > 1 {
		p = p[:1+s.pieces.IntN(len(p))]
	}
	n, err := s.says.Read(p)
	s.read += n
	return n, err
}

func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// Any bytes: no panic, an end, no more read than the limits say, and the same verdict
// however they arrive.
func FuzzProbes(f *testing.F) {
	for _, says := range []string{
		"HTTP/1.1 200 OK\r\n", "HTTP/1.0 404\n", "HTTP/1.1 2000\r\n", "+OK\r\n+PONG\r\n*3\r\n$6\r\nmaster\r\n", "+OK\r\n-LOADING\r\n", "+OK\r\n+PONG\r\n*1\r\n$-1\r\n",
		"R\x00\x00\x00\x08\x00\x00\x00\x00", pgError("57P03"), pgError("28000"), "E\xff\xff\xff\xff", "E\x00\x00\x00\x04", "bccd", "",
	} {
		f.Add([]byte(says), uint64(1))
	}
	f.Fuzz(func(t *testing.T, says []byte, seed uint64) {
		for name, p := range everyProbe {
			if name == "tls" || name == "udp" {
				continue // crypto/tls reads the one; of the other a datagram's pieces are others
			}
			var first error
			for i := range uint64(2) {
				s := &script{says: bytes.NewReader(says), pieces: rand.New(rand.NewPCG(seed, i))}
				err := p(t.Context(), s)
				if s.read > 8192 {
					t.Fatalf("%s: %d bytes were read", name, s.read)
				}
				if i > 0 && (err == nil) != (first == nil) {
					t.Fatalf("%s: %v, and in other pieces %v", name, first, err)
				}
				first = err
			}
		}
		health.UDP{Expect: []byte("b")}.Probe(t.Context(), &script{says: bytes.NewReader(says), pieces: rand.New(rand.NewPCG(seed, 0))})
	})
}

// Whatever text is given: a probe or an error, and never both or neither but for connect.
func FuzzParseProbe(f *testing.F) {
	for _, text := range []string{"connect", "tls 14", "http /status 200-399", "redis master", "postgres a b", `send "a b" expect \x00 match ^\d`, "udp sendhex 00ff", "match `a`"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := health.ParseProbe(text)
		if p == nil || err != nil {
			if p != nil {
				t.Fatalf("%q: a probe, and %v", text, err)
			}
			return
		}
		p(t.Context(), &script{says: bytes.NewReader(nil), pieces: rand.New(rand.NewPCG(1, 1))})
	})
}
