package holdfast_test

import (
	"testing"

	"github.com/holdfast-net/holdfast"
)

// The original split "host:port" at ":", so that [::1]:80 and a socket's path were
// errors.
func TestParseEndpoint(t *testing.T) {
	for _, row := range []struct {
		text string
		want holdfast.Endpoint
	}{
		{"10.0.0.1:7000", holdfast.Endpoint{Network: "tcp", Addr: "10.0.0.1:7000"}},
		{"tcp://10.0.0.1:7000", holdfast.Endpoint{Network: "tcp", Addr: "10.0.0.1:7000"}},
		{"db.example:5432", holdfast.Endpoint{Network: "tcp", Addr: "db.example:5432"}},
		{"[::1]:80", holdfast.Endpoint{Network: "tcp", Addr: "[::1]:80"}},
		{"tcp://[fe80::1%eth0]:80", holdfast.Endpoint{Network: "tcp", Addr: "[fe80::1%eth0]:80"}},
		{"tls://db.example:5432", holdfast.Endpoint{Network: "tcp", Addr: "db.example:5432", TLS: true}},
		{"tls://10.0.0.1:5432?sni=db.example", holdfast.Endpoint{Network: "tcp", Addr: "10.0.0.1:5432", TLS: true, ServerName: "db.example"}},
		{"unix:/run/app.sock", holdfast.Endpoint{Network: "unix", Addr: "/run/app.sock"}},
		{"unix:@app", holdfast.Endpoint{Network: "unix", Addr: "@app"}},
		{"udp://10.0.0.1:53", holdfast.Endpoint{Network: "udp", Addr: "10.0.0.1:53"}},
		{"srv://_db._tcp.example", holdfast.Endpoint{Network: "srv", Addr: "_db._tcp.example"}},
		{"srv://_db._tcp.example?tls=true", holdfast.Endpoint{Network: "srv", Addr: "_db._tcp.example", TLS: true}},
		{"10.0.0.1:7000?weight=3&priority=1", holdfast.Endpoint{Network: "tcp", Addr: "10.0.0.1:7000", Weight: 3, Priority: 1}},
		{"10.0.0.1:7000?weight=-1", holdfast.Endpoint{Network: "tcp", Addr: "10.0.0.1:7000", Weight: -1}},
	} {
		got, err := holdfast.ParseEndpoint(row.text)
		if err != nil || got != row.want {
			t.Errorf("%q: got %+v, %v; want %+v", row.text, got, err, row.want)
		}
		again, err := holdfast.ParseEndpoint(got.String())
		again.Weight, again.Priority = got.Weight, got.Priority
		if err != nil || again != got {
			t.Errorf("%q: its text %q is read as %+v, %v", row.text, got, again, err)
		}
	}
	for _, text := range []string{
		"", "10.0.0.1", "tcp://10.0.0.1", "::1:80", "tcp://::1", ":7000", "tcp://:7000", "10.0.0.1:0", "10.0.0.1:70000", "10.0.0.1:x",
		"http://10.0.0.1:80", "tcp://user@10.0.0.1:80", "tcp://10.0.0.1:80/path",
		"unix:", "srv://", "udp://10.0.0.1",
		"10.0.0.1:7000?weight=heavy", "10.0.0.1:7000?priority=-1", "10.0.0.1:7000?colour=red", "tcp://10.0.0.1:7000?sni=db.example",
	} {
		if got, err := holdfast.ParseEndpoint(text); err == nil {
			t.Errorf("%q is read as %+v, want an error", text, got)
		}
	}
}
