package health_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/holdfast-net/holdfast/internal/leak"
)

// The same on real sockets, as far as these differ: HTTPS of the standard library, and a
// refusal by ICMP.
func TestRealSockets(t *testing.T) {
	leak.Check(t)
	web := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer web.Close()
	web.Config.ErrorLog = nil
	trust := web.Client().Transport.(*http.Transport).TLSClientConfig
	defer web.Client().CloseIdleConnections()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := pc.LocalAddr().String()
	pc.Close()
	cfg := holdfast.Config{TLS: &tls.Config{RootCAs: trust.RootCAs}, Check: holdfast.Check{Timeout: 20 * time.Second}}
	m := newMonitor(t, health.Config{Services: services{
		"web":     {Addr: strings.Replace(web.URL, "https", "tls", 1) + "?sni=example.com", Kind: "http", Config: cfg},
		"own TLS": {Addr: strings.Replace(web.URL, "https", "tcp", 1), Kind: "tls", Config: cfg},
		"nobody":  {Addr: "udp://" + nobody, Kind: "udp send x", Config: cfg},
	}})
	got := m.CheckAll(t.Context())
	for _, name := range []string{"web", "own TLS"} {
		if r := got[name]; !r.Healthy || r.Response <= 0 || !r.Expires.After(time.Now()) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := got["nobody"]; r.Healthy && runtime.GOOS == "linux" {
		t.Errorf("nobody listens: %+v", r)
	}
}
