package integrations

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/holdfast-net/holdfast"
)

func startHTTP(t *testing.T, name string) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) }))
	t.Cleanup(s.Close)
	return s
}

func TestHTTPFailsOver(t *testing.T) {
	a, b := startHTTP(t, "a"), startHTTP(t, "b")
	c := clusterOf(t, holdfast.Config{Picker: holdfast.Ordered()}, a.Listener.Addr().String(), b.Listener.Addr().String())
	client := &http.Client{Transport: &http.Transport{DialContext: c.DialContext}}
	defer client.CloseIdleConnections()

	if got := get(t, client); got != "a" {
		t.Fatalf("the first server should answer first, got %q", got)
	}
	a.Listener.(*net.TCPListener).Close()
	a.CloseClientConnections()
	for range 10 {
		if got := get(t, client); got != "b" {
			t.Errorf("after the kill got %q, want the second server's answer", got)
		}
	}
}

func get(t *testing.T, client *http.Client) string {
	t.Helper()
	res, err := client.Get("http://service/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
