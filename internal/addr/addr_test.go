package addr

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in, network, addr string
		params            map[string]string
	}{
		{"tcp://10.0.0.1:7000", "tcp", "10.0.0.1:7000", nil},
		{"10.0.0.1:7000", "tcp", "10.0.0.1:7000", nil},
		{"db.example:5432", "tcp", "db.example:5432", nil},
		{"db.example.:5432", "tcp", "db.example.:5432", nil},
		{"[::1]:80", "tcp", "[::1]:80", nil},
		{"tcp://[fe80::1%eth0]:80", "tcp", "[fe80::1%eth0]:80", nil},
		{":7000", "tcp", ":7000", nil},
		{"h:0", "tcp", "h:0", nil},
		{"h:007", "tcp", "h:7", nil},
		{"tls://h:443?sni=x.example", "tls", "h:443", map[string]string{"sni": "x.example"}},
		{"udp://127.0.0.1:53", "udp", "127.0.0.1:53", nil},
		{"unix:/run/app.sock", "unix", "/run/app.sock", nil},
		{"unix:///run/app.sock", "unix", "/run/app.sock", nil},
		{"unix:app.sock", "unix", "app.sock", nil},
		{"unix:@app", "unix", "@app", nil},
		{"srv://_redis._tcp.example.com", "srv", "_redis._tcp.example.com", nil},
		{"h:1?weight=3&priority=1", "tcp", "h:1", map[string]string{"weight": "3", "priority": "1"}},
		{"h:1?note=a%20b", "tcp", "h:1", map[string]string{"note": "a b"}},
	} {
		a, err := Parse(c.in)
		if err != nil || a.Network != c.network || a.Addr != c.addr || !maps.Equal(a.Params, c.params) {
			t.Errorf("Parse(%q) = %+v, %v", c.in, a, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for in, why := range map[string]string{
		"":                                  "host:port",
		"h":                                 "host:port",
		"h:":                                "port",
		"h:65536":                           "65535",
		"h:-1":                              "port",
		"h:http":                            "port",
		"::1:80":                            "brackets",
		"[h]:80":                            "v6",
		"[1.2.3.4]:80":                      "v6",
		"http://h:80":                       "known are",
		"tcp://":                            "host:port",
		"tcp://u@h:80":                      "character",
		"tcp://h:80/path":                   "port",
		"tcp://h:80#f":                      "port",
		"h h:80":                            "character",
		"h\n:80":                            "character",
		"h\x00:80":                          "character",
		"a..b:80":                           "label",
		strings.Repeat("a", 254) + ":80":    "253",
		strings.Repeat("a", 64) + ":80":     "label",
		"unix:":                             "path",
		"unix:/run/":                        "path",
		"unix:////run/x":                    "slashes",
		"unix:/" + strings.Repeat("a", 107): "107",
		"srv://":                            "host name",
		"h:80?":                             "key=value",
		"h:80?a":                            "key=value",
		"h:80?a=1&a=2":                      "twice",
		"h:80?a=%zz":                        "parameter",
		"h:80?a=%0a":                        "control",
	} {
		_, err := Parse(in)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("Parse(%.40q) = %v, want an error that says %q", in, err, why)
		}
		if err != nil && (len(err.Error()) > 300 || strings.ContainsAny(err.Error(), "\n\x00")) {
			t.Errorf("Parse(%.40q): the message is too long or not escaped: %q", in, err)
		}
	}
}

// Whatever is accepted reads back as the same, and never panics.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"tcp://10.0.0.1:7000", "[::1%a]:1", "unix:@x?a=b", "srv://_a._b.c", "tls://h:1?sni=x&weight=2", "unix:///a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			return
		}
		b, err := Parse(a.String())
		if err != nil || a.Network != b.Network || a.Addr != b.Addr || !maps.Equal(a.Params, b.Params) {
			t.Errorf("%q is %+v, which prints as %q, which is %+v, %v", s, a, a, b, err)
		}
	})
}

func ExampleParse() {
	a, err := Parse("tls://[2001:db8::1]:443?sni=db.example")
	fmt.Println(a.Network, a.Addr, a.Params["sni"], err)
	// Output: tls [2001:db8::1]:443 db.example <nil>
}
