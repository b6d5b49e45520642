package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/holdfast-net/holdfast/internal/leak"
)

var both = zone{"db.example.": {ip(60, "192.0.2.1"), ip(60, "192.0.2.2"), ip(30, "2001:db8::1")}}

func TestLookupBothFamilies(t *testing.T) {
	leak.Check(t)
	lame := rcode(dnsmessage.RCodeServerFailure)
	for _, c := range []struct {
		name    string
		handler handler
		want    []string
		ttl     time.Duration
		partial bool
	}{
		{"v6 first, the least TTL", both.handle, []string{"2001:db8::1", "192.0.2.1", "192.0.2.2"}, 30 * time.Second, false},
		{"AAAA only", zone{"db.example.": {ip(7, "2001:db8::1")}}.handle, []string{"2001:db8::1"}, 7 * time.Second, false},
		{"A only", zone{"db.example.": {ip(8, "192.0.2.1")}}.handle, []string{"192.0.2.1"}, 8 * time.Second, false},
		{"AAAA fails", byType(lame, both.handle), []string{"192.0.2.1", "192.0.2.2"}, time.Minute, true},
		{"A fails", byType(both.handle, lame), []string{"2001:db8::1"}, 30 * time.Second, true},
		{"AAAA does not exist", byType(rcode(dnsmessage.RCodeNameError), both.handle), []string{"192.0.2.1", "192.0.2.2"}, time.Minute, false},
	} {
		client := newClient(t, serve(t, c.handler))
		addrs, ttl, err := client.LookupIP(t.Context(), "DB.example")
		if (err != nil) != c.partial || ttl != c.ttl {
			t.Errorf("%s: ttl %v, error %v; want ttl %v", c.name, ttl, err, c.ttl)
		}
		same(t, c.name, texts(addrs), c.want...)
	}
}

func TestAddressIsItsOwnAnswer(t *testing.T) {
	c := &Client{Servers: []string{"not dialed"}}
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "fe80::1%lo": "fe80::1%lo"} {
		addrs, ttl, err := c.LookupIP(t.Context(), in)
		if err != nil || ttl != 0 {
			t.Errorf("%s: ttl %v, %v", in, ttl, err)
		}
		same(t, in, texts(addrs), want)
	}
}

func TestFailuresHaveTheirKinds(t *testing.T) {
	leak.Check(t)
	for _, c := range []struct {
		name    string
		handler handler
		want    Kind
		std     net.DNSError
	}{
		{"NXDOMAIN", zone{}.handle, NotFound, net.DNSError{IsNotFound: true}},
		{"no records", zone{"db.example.": nil}.handle, Empty, net.DNSError{IsNotFound: true}},
		{"SERVFAIL", rcode(dnsmessage.RCodeServerFailure), ServFail, net.DNSError{IsTemporary: true}},
		{"REFUSED", rcode(dnsmessage.RCodeRefused), Refused, net.DNSError{}},
		{"NOTIMP", rcode(dnsmessage.RCodeNotImplemented), ServFail, net.DNSError{IsTemporary: true}},
		{"SERVFAIL of one, NXDOMAIN of the other", byType(rcode(dnsmessage.RCodeServerFailure), zone{}.handle), ServFail, net.DNSError{IsTemporary: true}},
		{"NXDOMAIN of one, nothing of the other", byType(zone{}.handle, zone{"db.example.": nil}.handle), Empty, net.DNSError{IsNotFound: true}},
		{"a referral", referral, ServFail, net.DNSError{IsTemporary: true}},
		{"a circle", zone{"db.example.": {cname(1, "db.example.")}}.handle, Malformed, net.DNSError{}},
		{"silence", silent, Timeout, net.DNSError{IsTimeout: true, IsTemporary: true}},
	} {
		addr := serve(t, c.handler)
		client := newClient(t, addr)
		client.Timeout, client.Attempts = 100*time.Millisecond, 1
		if c.want != Timeout {
			client.Timeout = 10 * time.Second
		}
		_, _, err := client.LookupIP(t.Context(), "db.example")
		if got := kindOf(t, err); got != c.want {
			t.Errorf("%s: kind %q, want %q", c.name, kindTexts[got], kindTexts[c.want])
		}
		var std *net.DNSError
		if !errors.As(err, &std) || std.IsNotFound != c.std.IsNotFound || std.IsTimeout != c.std.IsTimeout || std.IsTemporary != c.std.IsTemporary {
			t.Errorf("%s: as the standard library's error it is %+v", c.name, std)
		}
		if text := err.Error(); !strings.Contains(text, `"db.example."`) || c.want == ServFail && !strings.Contains(text, addr) {
			t.Errorf("%s: the text %q does not name the name and the server", c.name, text)
		}
	}
}

// referral is a server that does not recurse, and knows nothing.
func referral(_ string, query []byte, send func([]byte)) {
	m := zone{"db.example.": nil}.message(parse(query))
	m.RecursionAvailable = false
	send(pack(m))
}

func TestCutAnswerComesOverTCP(t *testing.T) {
	leak.Check(t)
	many := zone{}
	for i := range 200 {
		many["db.example."] = append(many["db.example."], ip(60, fmt.Sprintf("192.0.2.%d", i+1)))
	}
	var seen asked
	addrs, _, err := newClient(t, serve(t, seen.by(many.handle))).LookupIP(t.Context(), "db.example")
	if err != nil || len(addrs) != 200 {
		t.Errorf("%d addresses, %v; want 200", len(addrs), err)
	}
	same(t, "questions for A", seen.of("A"), "db.example. udp", "db.example. tcp")
	same(t, "questions for AAAA", seen.of("AAAA"), "db.example. udp")
}

// Over TCP there is no one else to wait for: what does not fit ends it.
func TestBadAnswersOverTCP(t *testing.T) {
	cut := func(query []byte) []byte {
		m := both.message(parse(query))
		m.Truncated = true
		return pack(m)
	}
	foreign := func(query []byte) []byte {
		m := both.message(parse(query))
		m.ID++
		return pack(m)
	}
	for name, reply := range map[string]func(query []byte) []byte{
		"cut again": cut, "another's": foreign, "empty": func([]byte) []byte { return nil },
	} {
		c := newClient(t, serve(t, func(network string, query []byte, send func([]byte)) {
			if network == "udp" {
				send(cut(query))
			} else {
				send(reply(query))
			}
		}))
		if _, _, err := c.LookupIP(t.Context(), "db.example"); kindOf(t, err) != Malformed {
			t.Errorf("%s: %v, want a malformed answer", name, err)
		}
	}
}

// Whatever comes before the answer, from the right address even, is passed over.
func TestForgedAnswersAreIgnored(t *testing.T) {
	leak.Check(t)
	forge := func(query []byte, change func(m *dnsmessage.Message)) []byte {
		m := zone{"db.example.": {ip(1, "203.0.113.66"), ip(1, "2001:db8::66")}}.message(parse(query))
		change(&m)
		return pack(m)
	}
	c := newClient(t, serve(t, func(network string, query []byte, send func([]byte)) {
		for _, change := range []func(m *dnsmessage.Message){
			func(m *dnsmessage.Message) { m.ID++ },
			func(m *dnsmessage.Message) { m.Response = false },
			func(m *dnsmessage.Message) { m.OpCode = 4 },
			func(m *dnsmessage.Message) { m.Questions = nil },
			func(m *dnsmessage.Message) { m.Questions = append(m.Questions, m.Questions[0]) },
			func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("db.example.org.") },
			func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeTXT },
			func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS },
			func(m *dnsmessage.Message) { m.ID++; m.RCode = dnsmessage.RCodeNameError },
			func(m *dnsmessage.Message) { m.ID++; m.Truncated = true },
		} {
			send(forge(query, change))
		}
		send(nil)
		send([]byte("garbage"))
		send(query)
		both.handle(network, query, send)
	}))
	addrs, _, err := c.LookupIP(t.Context(), "db.example")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "addresses", texts(addrs), "2001:db8::1", "192.0.2.1", "192.0.2.2")
}

func TestNextServerIsAsked(t *testing.T) {
	leak.Check(t)
	packets, listener := bindBoth(t)
	closed := packets.LocalAddr().String()
	packets.Close()
	listener.Close()
	for name, first := range map[string]string{
		"nobody there": closed,
		"SERVFAIL":     serve(t, rcode(dnsmessage.RCodeServerFailure)),
		"REFUSED":      serve(t, rcode(dnsmessage.RCodeRefused)),
		"a referral":   serve(t, referral),
		"no address":   "nowhere",
	} {
		addrs, _, err := newClient(t, first, serve(t, both.handle)).LookupIP(t.Context(), "db.example")
		if err != nil || len(addrs) != 3 {
			t.Errorf("%s at the first: %v, %v", name, addrs, err)
		}
	}
}

func TestSRV(t *testing.T) {
	leak.Check(t)
	const name = "_redis._tcp.example.test."
	services := zone{
		name: {
			srv(60, 10, 5, 6379, "a.example.test."), srv(20, 20, 0, 6380, "B.example.test."),
			srv(60, 10, 5, 6379, "a.example.test."),       // again
			srv(1, 0, 0, 6379, "."),                       // no service
			srv(1, 0, 0, 0, "c.example.test."),            // no port
			srv(1, 0, 0, 6379, "evil\n\x1b[31m.example."), // a log's trouble
			ip(1, "192.0.2.1"),
		},
		"_none._tcp.example.test.":  {srv(60, 0, 0, 1, ".")},
		"_alias._tcp.example.test.": {cname(5, name)},
	}
	c := newClient(t, serve(t, services.handle))
	write(t, c.files.resolv, "search test\n")
	want := []SRV{{"a.example.test.", 6379, 10, 5}, {"B.example.test.", 6380, 20, 0}}
	for asked, ttl := range map[string]time.Duration{
		name: 20 * time.Second, "_redis._tcp.example": 20 * time.Second, "_alias._tcp.example.test": 5 * time.Second,
	} {
		got, gotTTL, err := c.LookupSRV(t.Context(), asked)
		if err != nil || !slices.Equal(got, want) || gotTTL != ttl {
			t.Errorf("%s: %v, %v, %v; want %v, %v", asked, got, gotTTL, err, want, ttl)
		}
	}
	for asked, kind := range map[string]Kind{"_none._tcp.example.test": Empty, "_no._tcp.example.test": NotFound} {
		if _, _, err := c.LookupSRV(t.Context(), asked); kindOf(t, err) != kind {
			t.Errorf("%s: %v", asked, err)
		}
	}
}

// A caller who gives up gets that as the reason, not a timeout, and the system is
// not asked.
func TestCancelledLookupReturns(t *testing.T) {
	leak.Check(t)
	reason := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	var inSystem asked
	c := newClient(t, serve(t, func(string, []byte, func([]byte)) { cancel(errors.Join(reason, context.Canceled)) }))
	c.Fallback = system(t, inSystem.by(both.handle))
	start := time.Now()
	_, _, err := c.LookupIP(ctx, "db.example")
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v", took) // the timeout is 5 s
	}
	var e *Error
	if !errors.As(err, &e) || e.Timeout() || !errors.Is(err, reason) || len(inSystem.all()) > 0 {
		t.Errorf("%v, timeout %v; the system was asked for %q", err, e.Timeout(), inSystem.all())
	}
	if _, _, err := c.LookupIP(ctx, "db.example"); !errors.Is(err, context.Canceled) {
		t.Errorf("begun too late: %v", err)
	}
}

func TestManyLookupsAtOnce(t *testing.T) {
	leak.Check(t)
	c := newClient(t, serve(t, both.handle))
	errs := make(chan error)
	const many = 50
	for range many {
		go func() {
			_, _, err := c.LookupIP(t.Context(), "db.example")
			errs <- err
		}()
	}
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestServersOfResolvConf(t *testing.T) {
	c := newClient(t)
	write(t, c.files.resolv, "nameserver 192.0.2.53\noptions timeout:7\n")
	c.Dial = pipes(map[string]handler{"192.0.2.53:53": both.handle})
	if addrs, _, err := c.LookupIP(t.Context(), "db.example"); err != nil || len(addrs) != 3 {
		t.Errorf("%v, %v", addrs, err)
	}
}
