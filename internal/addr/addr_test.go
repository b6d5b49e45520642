package addr

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
)

var (
	label63 = strings.Repeat("a", 63)
	name253 = strings.Join([]string{label63, label63, label63, strings.Repeat("a", 61)}, ".")
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in, network, addr string
		params            map[string]string
	}{
		{"tcp://10.0.0.1:7000", "tcp", "10.0.0.1:7000", nil},
		{"10.0.0.1:7000", "tcp", "10.0.0.1:7000", nil},
		{"db.example:5432", "tcp", "db.example:5432", nil},
		{"DB.example.:5432", "tcp", "DB.example.:5432", nil},
		{"my_db-1:5432", "tcp", "my_db-1:5432", nil},
		{"0xfade.example:1", "tcp", "0xfade.example:1", nil},
		{name253 + ":1", "tcp", name253 + ":1", nil},
		{name253 + ".:1", "tcp", name253 + ".:1", nil},
		{"[::1]:80", "tcp", "[::1]:80", nil},
		{"[2001:DB8:0:0::1]:80", "tcp", "[2001:db8::1]:80", nil},
		{"[::ffff:10.0.0.1]:80", "tcp", "[::ffff:10.0.0.1]:80", nil},
		{"tcp://[fe80::1%eth0]:80", "tcp", "[fe80::1%eth0]:80", nil},
		{"[fe80::1%br-lan.7]:80", "tcp", "[fe80::1%br-lan.7]:80", nil},
		{":7000", "tcp", ":7000", nil},
		{"tls://:7000", "tls", ":7000", nil},
		{"h:0", "tcp", "h:0", nil},
		{"h:65535", "tcp", "h:65535", nil},
		{"h:007", "tcp", "h:7", nil},
		{"tls://h:443?sni=x.example", "tls", "h:443", map[string]string{"sni": "x.example"}},
		{"udp://127.0.0.1:53", "udp", "127.0.0.1:53", nil},
		{"unix:/run/app.sock", "unix", "/run/app.sock", nil},
		{"unix:///run/app.sock", "unix", "/run/app.sock", nil},
		{"unix:app.sock", "unix", "app.sock", nil},
		{"unix:/run/a:b@c://d/é", "unix", "/run/a:b@c://d/é", nil},
		{"unix:/" + strings.Repeat("a", 106), "unix", "/" + strings.Repeat("a", 106), nil},
		{"unix:@app", "unix", "@app", nil},
		{"unix:@app?weight=2", "unix", "@app", map[string]string{"weight": "2"}},
		{"srv://_redis._tcp.example.com", "srv", "_redis._tcp.example.com", nil},
		{"srv://redis.service.consul", "srv", "redis.service.consul", nil},
		{"h:1?weight=3&priority=1", "tcp", "h:1", map[string]string{"weight": "3", "priority": "1"}},
		{"h:1?note=a%20b", "tcp", "h:1", map[string]string{"note": "a b"}},
		{"h:1?ca=/etc/c++/ca.pem", "tcp", "h:1", map[string]string{"ca": "/etc/c++/ca.pem"}},
		{"h:1?all=%26%23%3F%3B%25%40=", "tcp", "h:1", map[string]string{"all": "&#?;%@="}},
		{"h:1?empty=", "tcp", "h:1", map[string]string{"empty": ""}},
	} {
		want := Address{c.network, c.addr, c.params}
		got, err := Parse(c.in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", c.in, got, err, want)
		}
		checkRoundTrip(t, got)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ in, why string }{
		{"", "want host:port"},
		{"h", "want host:port"},
		{"tcp://", "want host:port"},
		{"[::1]", "want host:port"},
		{"h:", `port "" is not a number`},
		{"h:65536", "from 0 to 65535"},
		{"h:-1", "not a number"},
		{"h:+1", "not a number"},
		{"h:0x50", "not a number"},
		{"h:http", "not a number"},

		// Without brackets nobody knows where the address ends.
		{"::1:80", "brackets: [::1]:80 or [::1:80]:port"},
		{"2001:db8::1", "brackets: [2001:db8::1]:port"},
		{"1:2:3:4:5:6:7:8:80", "brackets: [1:2:3:4:5:6:7:8]:80"},
		{"h:80:80", "want host:port"},
		{"tcp:h:80", "tcp://"},

		{"[h]:80", "not a v6 address"},
		{"[]:80", "not a v6 address"},
		{"[1.2.3.4]:80", "not a v6 address"},
		{"[fe80::1%]:80", "not a v6 address"},
		{"[fe80::1%a/b]:80", "nothing follows the port"},
		{"[fe80::1%a*b]:80", "interface"},
		{"[fe80::1%" + strings.Repeat("e", 64) + "]:80", "interface"},

		// What inet_aton would take for an address.
		{"127.1:80", "a.b.c.d"},
		{"2130706433:80", "a.b.c.d"},
		{"0x7f000001:80", "a.b.c.d"},
		{"0177.0.0.1:80", "a.b.c.d"},
		{"1.2.3.4.5:80", "a.b.c.d"},
		{"256.0.0.1:80", "a.b.c.d"},
		{"1.2.3.4.:80", "a.b.c.d"},

		{"http://h:80", `unknown scheme "http"; known are tcp, tls, udp, unix, srv`},
		{"TCP://h:80", "known are"},
		{"://h:80", "known are"},
		{"tcp://u@h:80", "no user and no password"},
		{"u@h:80", "no user and no password"},
		{"h:80?a=b@c", "no user and no password"},
		{"tcp://h:80/path", `"/path" does`},
		{"tcp://h:80/", `"/" does`},
		{"tcp://h:80#f", "no fragment"},
		{"unix:/run/x#f", "no fragment"},

		{"h h:80", "' '"},
		{"h\n:80", `'\n'`},
		{"h\x00:80", `'\x00'`},
		{"h\x7f:80", `'\x7f'`},
		{"h\u0085:80", `'\u0085'`},
		{"h\u202e:80", `'\u202e'`}, // right to left
		{"h\u200b:80", `'\u200b'`}, // of no width
		{"h\u00a0:80", `'\u00a0'`},
		{"h\xff:80", `'\ufffd'`},
		{"h%00:80", "letters, digits"},
		{"*:80", "letters, digits"},
		{"müller.example:80", "xn--"},

		{".:80", "1 to 253 bytes"},
		{name253 + "a:80", "1 to 253 bytes"},
		{"a..b:80", "label"},
		{".a:80", "label"},
		{label63 + "a:80", "label"},
		{"-h:80", "hyphen"},
		{"a.b-.c:80", "hyphen"},

		{"unix:", "missing"},
		{"unix:@", "missing"},
		{"unix:///", "directory"},
		{"unix:/run/", "directory"},
		{"unix:////run/x", "two slashes"},
		{"unix://run/x", "unix:///path"},
		{"unix://@x", "unix:@name"},
		{"unix:/run/a b", "' '"},
		{"unix:/" + strings.Repeat("a", 107), "107"},
		{"srv://", "1 to 253 bytes"},
		{"srv://_a._tcp.example:80", "no port"},
		{"srv://_a._tcp.example/", "letters, digits"},

		{"h:80?", "key=value"},
		{"h:80?a", "key=value"},
		{"h:80?=a", "key=value"},
		{"h:80?a=1&", "key=value"},
		{"h:80?a%62=1", "key=value"},
		{"h:80?a=1;b=2", "%3B"},
		{"h:80?a=1?b=2", "%3F"},
		{"h:80?a=1&a=1", "stands twice"},
		{"h:80?a=%zz", "%25"},
		{"h:80?a=%0a", "does not print"},
		{"h:80?a=%ff", "does not print"},
		{"h:80?a=" + strings.Repeat("a", 4096), "limit is 4096"},
	} {
		got, err := Parse(c.in)
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("Parse(%.80q) = %+v, %v; want an error that says %q", c.in, got, err, c.why)
		}
		checkMessage(t, err)
	}
}

// Whatever the input, a message can be logged as it is.
func checkMessage(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	s := err.Error()
	if len(s) > 700 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("a message of %d bytes, or one that is not escaped: %q", len(s), s)
	}
}

func TestMessagesKeepNoPassword(t *testing.T) {
	for _, in := range []string{
		"tcp://user:hunter2@h:80", "user:hunter2@h:80", "http://user:hunter2@h/", "tcp://u:hunter2?x@h:80",
		"tcp://user:hunter2\n@h:80", "tcp://user:hunter2@" + strings.Repeat("h", 5000),
	} {
		_, err := Parse(in)
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "@h") {
			t.Errorf("Parse(%.60q): %v", in, err)
		}
	}
}

func TestMessagesAreCut(t *testing.T) {
	for _, unit := range []string{"a", "\x00", "\U0010ffff", "::", "[", "%", "h:1?a=1&"} {
		for _, n := range []int{100, 4000, 100_000} {
			_, err := Parse(strings.Repeat(unit, n/len(unit)))
			checkMessage(t, err)
			if err == nil {
				t.Errorf("%q × %d was accepted", unit, n)
			}
		}
	}
}

// checkRoundTrip holds that an address prints as something that reads as itself.
func checkRoundTrip(t *testing.T, a Address) {
	t.Helper()
	if b, err := Parse(a.String()); err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%+v prints as %q, which is %+v, %v", a, a, b, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"tcp://10.0.0.1:7000", "[::1%a]:1", "unix:@x?a=b", "srv://_a._b.c", "tls://h:1?sni=x&weight=2", "unix:///a",
		"::1:80", "h:1?a=%25%26", "tcp://u:p@h:1", "unix:////a", "[::FFFF:1.2.3.4]:010",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			checkMessage(t, err)
			return
		}
		checkRoundTrip(t, a)
		if !slices.Contains([]string{"tcp", "tls", "udp", "unix", "srv"}, a.Network) {
			t.Errorf("%q is of network %q", s, a.Network)
		}
		if strings.ContainsFunc(a.String(), func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }) {
			t.Errorf("%q prints as %q", s, a)
		}
	})
}

func ExampleParse() {
	a, err := Parse("tls://[2001:db8::1]:443?sni=db.example")
	fmt.Println(a.Network, a.Addr, a.Params["sni"], err)

	_, err = Parse("::1:80")
	fmt.Println(errors.Unwrap(err))
	// Output:
	// tls [2001:db8::1]:443 db.example <nil>
	// a v6 address stands in brackets: [::1]:80 or [::1:80]:port
}

// Parameters come out in the order of their keys.
func ExampleAddress_String() {
	a, _ := Parse("db.example:05432?weight=2&note=spare%20one")
	fmt.Println(a)
	// Output: tcp://db.example:5432?note=spare%20one&weight=2
}
