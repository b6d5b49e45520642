package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/holdfast-net/holdfast/internal/leak"
)

// Which names are asked for, and who is.

func TestSearchList(t *testing.T) {
	const conf = "search a.test b.test.\noptions ndots:2\n"
	elsewhere := zone{"x.b.test.": {ip(1, "192.0.2.1")}, "x.y.z.b.test.": {ip(1, "192.0.2.1")}}
	broken := func(network string, query []byte, send func([]byte)) {
		if strings.HasSuffix(parse(query).Questions[0].Name.String(), "a.test.") {
			rcode(dnsmessage.RCodeServerFailure)(network, query, send)
		} else {
			elsewhere.handle(network, query, send)
		}
	}
	for _, c := range []struct {
		handler handler
		host    string
		want    string // the names asked for
		kind    int    // of the failure, -1 for success
	}{
		{elsewhere.handle, "x", "x.a.test. x.b.test.", -1},
		{elsewhere.handle, "x.y.z", "x.y.z. x.y.z.a.test. x.y.z.b.test.", -1},
		{elsewhere.handle, "x.y", "x.y.a.test. x.y.b.test. x.y.", int(NotFound)},
		{elsewhere.handle, "x.b.test.", "x.b.test.", -1},
		{elsewhere.handle, "x.", "x.", int(NotFound)},
		{broken, "x", "x.a.test.", int(ServFail)}, // x.b.test may be another host
	} {
		var seen asked
		client := newClient(t, serve(t, seen.by(c.handler)))
		client.Attempts = 1
		write(t, client.files.resolv, conf)
		_, _, err := client.LookupIP(t.Context(), c.host)
		if c.kind < 0 && err != nil || c.kind >= 0 && kindOf(t, err) != Kind(c.kind) {
			t.Errorf("%s: %v", c.host, err)
		}
		got := strings.ReplaceAll(strings.Join(seen.of("A"), " "), " udp", "")
		if got != c.want {
			t.Errorf("%s: asked for %q, want %q", c.host, got, c.want)
		}
	}
}

// What cannot be a name is not sent anywhere, nor does it end the search.
func TestImpossibleNames(t *testing.T) {
	var seen asked
	label := strings.Repeat("x", 63)
	long := strings.Join([]string{label, label, label, label}, ".") // 255, too long with its end
	for _, host := range []string{"", ".", "..", "a..b", ".a", "a b.example", "a\nb", "a\x00b", "ü.example", label + "x.example", long} {
		c := newClient(t, serve(t, seen.by(both.handle)))
		c.Fallback = system(t, seen.by(both.handle))
		if _, _, err := c.LookupIP(t.Context(), host); kindOf(t, err) != NotFound || len(err.Error()) > 600 {
			t.Errorf("%.40q: %v", host, err)
		}
	}
	if len(seen.all()) > 0 {
		t.Errorf("servers were asked for %q", seen.all())
	}

	host := strings.Join([]string{label, label, label, strings.Repeat("y", 61)}, ".") // 253: with its dot, all there is room for
	c := newClient(t, serve(t, zone{host + ".": {ip(1, "192.0.2.1")}}.handle))
	write(t, c.files.resolv, "search a.test\noptions ndots:9\n")
	if _, _, err := c.LookupIP(t.Context(), host); err != nil {
		t.Errorf("the longest name is not found: %v", err)
	}
}

// NXDOMAIN is an answer: nobody else is asked.
func TestNegativeAnswerIsFinal(t *testing.T) {
	for _, first := range []zone{{}, {"db.example.": nil}} {
		var second, inSystem asked
		c := newClient(t, serve(t, first.handle), serve(t, second.by(both.handle)))
		c.Fallback = system(t, inSystem.by(both.handle))
		if _, _, err := c.LookupIP(t.Context(), "db.example"); !final(err) {
			t.Errorf("%v: %v", first, err)
		}
		if others := append(second.all(), inSystem.all()...); len(others) > 0 {
			t.Errorf("%v: others were asked too: %q", first, others)
		}
	}
}

func TestSystemAnswersForItsNames(t *testing.T) {
	leak.Check(t)
	known := zone{"in.hosts.test.": {ip(60, "192.0.2.7")}, "printer.local.": {ip(60, "192.0.2.8")}, "db.localhost.": {ip(60, "127.0.0.1")}}
	var seen asked
	server := serve(t, seen.by(both.handle))
	for _, host := range []string{"in.hosts.test", "IN.hosts.test.", "printer.local", "db.LocalHost"} {
		c := newClient(t, server)
		c.Fallback = system(t, known.handle)
		write(t, c.files.hosts, "192.0.2.7 In.Hosts.test\n")
		addrs, ttl, err := c.LookupIP(t.Context(), host)
		if err != nil || len(addrs) != 1 || ttl != 0 {
			t.Errorf("%s: %v, %v, %v", host, addrs, ttl, err)
		}
	}
	c := newClient(t, server)
	c.Fallback = nil // the machine's own
	addrs, _, err := c.LookupIP(t.Context(), "localhost")
	if err != nil || !addrs[0].IsLoopback() {
		t.Errorf("localhost: %v, %v", addrs, err)
	}
	if len(seen.all()) > 0 {
		t.Errorf("servers were asked for %q", seen.all())
	}
	if _, _, err := c.LookupIP(t.Context(), "a.svc.cluster.local"); kindOf(t, err) != NotFound || len(seen.all()) == 0 {
		t.Errorf("a name of Kubernetes: %v, asked %q", err, seen.all())
	}
}

func TestSystemIsAskedWhenNoServerKnows(t *testing.T) {
	leak.Check(t)
	services := zone{"db.example.": {ip(60, "192.0.2.9")}, "_x._tcp.example.": {srv(60, 1, 2, 3, "h.example.")}}
	for _, servers := range [][]string{nil, {serve(t, rcode(dnsmessage.RCodeServerFailure))}} {
		c := newClient(t, servers...)
		c.Fallback = system(t, services.handle)
		addrs, ttl, err := c.LookupIP(t.Context(), "db.example.")
		if err != nil || ttl != 0 {
			t.Errorf("servers %q: ttl %v, %v", servers, ttl, err)
		}
		same(t, "addresses", texts(addrs), "192.0.2.9")
		srvs, ttl, err := c.LookupSRV(t.Context(), "_x._tcp.example.")
		if err != nil || ttl != 0 || !slices.Equal(srvs, []SRV{{"h.example.", 3, 1, 2}}) {
			t.Errorf("servers %q: %v, ttl %v, %v", servers, srvs, ttl, err)
		}
		for _, host := range []string{"no.example.", "no.example"} {
			want := NotFound
			if servers != nil {
				want = ServFail // ours says more
			}
			if _, _, err := c.LookupIP(t.Context(), host); kindOf(t, err) != want {
				t.Errorf("servers %q: %s: %v", servers, host, err)
			}
		}
	}
}

func TestFailuresOfTheSystem(t *testing.T) {
	for _, c := range []struct {
		err     error
		kind    Kind
		timeout bool
	}{
		{nil, Empty, false},
		{errors.New("broken"), ServFail, false},
		{&net.DNSError{IsTemporary: true}, ServFail, false},
		{&net.DNSError{IsNotFound: true}, NotFound, false},
		{&net.DNSError{IsTimeout: true}, Timeout, true},
		{&net.DNSError{UnwrapErr: context.Canceled}, Timeout, false},
	} {
		err := answer{}.failure("db.example", c.err)
		if kindOf(t, err) != c.kind || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%v became %v", c.err, err)
		}
		if got := err.(interface{ Timeout() bool }).Timeout(); got != c.timeout {
			t.Errorf("%v: timeout %v", c.err, got)
		}
	}
	a := answer{}
	a.add(record{addr: netip.MustParseAddr("192.0.2.1")})
	if err := a.failure("db.example", errors.New("one record was bad")); err != nil {
		t.Errorf("beside an answer: %v", err)
	}
}
