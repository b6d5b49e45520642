package dns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// questionFor makes a question and the head of the message that answers it.
func questionFor(t testing.TB, name string, kind dnsmessage.Type) (question, dnsmessage.Message) {
	t.Helper()
	q, query, err := newQuestion(name, kind)
	if err != nil {
		t.Fatal(err)
	}
	return q, zone{name: nil}.message(parse(query))
}

// answerTo reads a message with these records, each below its name.
func answerTo(t testing.TB, name string, kind dnsmessage.Type, records ...dnsmessage.Resource) (answer, error) {
	t.Helper()
	q, m := questionFor(t, name, kind)
	m.Answers = records
	return q.read(pack(m))
}

func TestAnswerIsCapped(t *testing.T) {
	var thousand []dnsmessage.Resource
	for i := range 1000 {
		thousand = append(thousand, resource("x.", ip(60, fmt.Sprintf("10.0.%d.%d", i/10/250, i/10%250+1)))) // each ten times
	}
	a, err := answerTo(t, "x.", dnsmessage.TypeA, thousand...)
	if err != nil || len(a.addrs) != 100 {
		t.Errorf("of 1000 records, ten of each: %d addresses, %v; want 100", len(a.addrs), err)
	}

	for i := range thousand {
		thousand[i] = resource("x.", ip(60, fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)))
	}
	thousand[999].Header.TTL = 1 // not of those that are used
	a, err = answerTo(t, "x.", dnsmessage.TypeA, thousand...)
	if err != nil || len(a.addrs) != maxRecords || a.ttl != time.Minute {
		t.Errorf("of 1000 records: %d addresses, ttl %v, %v; want %d", len(a.addrs), a.ttl, err, maxRecords)
	}
	if unique := slices.Compact(slices.Clone(a.addrs)); len(unique) != len(a.addrs) {
		t.Error("there are duplicates")
	}

	var services []dnsmessage.Resource
	for i := range 1000 {
		services = append(services, resource("x.", srv(60, 0, 0, uint16(i+1), "h.")))
	}
	if a, err = answerTo(t, "x.", dnsmessage.TypeSRV, services...); err != nil || len(a.srvs) != maxRecords {
		t.Errorf("of 1000 services: %d, %v; want %d", len(a.srvs), err, maxRecords)
	}
}

func TestThousandRecordsOverTheNetwork(t *testing.T) {
	many := zone{}
	for i := range 1000 {
		many["x."] = append(many["x."], ip(60, fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)), ip(60, fmt.Sprintf("2001:db8::%x", i+1)))
	}
	addrs, _, err := newClient(t, serve(t, many.handle)).LookupIP(t.Context(), "x.")
	if err != nil || len(addrs) != 2*maxRecords {
		t.Errorf("%d addresses, %v; want %d", len(addrs), err, 2*maxRecords)
	}
}

// A message can hold more of the smallest records than anybody has servers.
func TestTooManyRecordsAreMalformed(t *testing.T) {
	var empty []dnsmessage.Resource
	for range maxAnswers + 1 {
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Class: dnsmessage.ClassINET}
		empty = append(empty, dnsmessage.Resource{Header: h, Body: &dnsmessage.UnknownResource{Type: 10}})
	}
	_, err := answerTo(t, "x.", dnsmessage.TypeA, empty...)
	if kindOf(t, err) != Malformed {
		t.Error(err)
	}
}

func TestUnusableAddressesAreDropped(t *testing.T) {
	for _, bad := range []string{
		"0.0.0.0", "224.0.0.1", "239.1.2.3", "255.255.255.255",
		"::", "ff02::1", "fe80::1", "::ffff:192.0.2.1", "::ffff:0.0.0.0",
	} {
		r := ip(60, bad)
		good := map[dnsmessage.Type]string{dnsmessage.TypeA: "127.0.0.1", dnsmessage.TypeAAAA: "::1"}[typeOf(r.body)]
		a, err := answerTo(t, "x.", typeOf(r.body), resource("x.", r), resource("x.", ip(61, good)))
		if err != nil || a.ttl != 61*time.Second {
			t.Errorf("%s: ttl %v, %v", bad, a.ttl, err)
		}
		same(t, "beside "+bad, texts(a.addrs), good)
		if _, err := answerTo(t, "x.", typeOf(r.body), resource("x.", r)); kindOf(t, err) != Empty {
			t.Errorf("%s alone: %v, want an empty answer", bad, err)
		}
	}
}

// Records of another class, type or name are somebody else's.
func TestForeignRecordsAreIgnored(t *testing.T) {
	chaos := resource("x.", ip(1, "192.0.2.66"))
	chaos.Header.Class = dnsmessage.ClassCHAOS
	text := dnsmessage.Resource{Header: chaos.Header, Body: &dnsmessage.TXTResource{TXT: []string{"hello"}}}
	a, err := answerTo(t, "x.", dnsmessage.TypeA, chaos, text, resource("y.", ip(1, "192.0.2.67")),
		resource("x.", ip(1, "2001:db8::1")), resource("x.", srv(1, 0, 0, 1, "x.")), resource("X.", ip(60, "192.0.2.1")))
	if err != nil || a.ttl != time.Minute || len(a.srvs) > 0 {
		t.Errorf("%+v, %v", a, err)
	}
	same(t, "addresses", texts(a.addrs), "192.0.2.1")
}

func TestAliases(t *testing.T) {
	chain := func(n int) (records []dnsmessage.Resource) {
		for i := range n {
			records = append(records, resource(fmt.Sprintf("x%d.", i), cname(uint32(100-i), fmt.Sprintf("X%d.", i+1))))
		}
		return append(records, resource(fmt.Sprintf("x%d.", n), ip(200, "192.0.2.1")))
	}
	backwards := chain(5)
	slices.Reverse(backwards)
	for name, c := range map[string]struct {
		records []dnsmessage.Resource
		ttl     time.Duration // 0 means a failure
		kind    Kind
	}{
		"one":          {chain(1), 100 * time.Second, 0},
		"sixteen":      {chain(16), 85 * time.Second, 0},
		"seventeen":    {chain(17), 0, Malformed},
		"backwards":    {backwards, 96 * time.Second, 0},
		"to itself":    {[]dnsmessage.Resource{resource("x0.", cname(1, "x0."))}, 0, Malformed},
		"in a circle":  {[]dnsmessage.Resource{resource("x0.", cname(1, "x1.")), resource("x1.", cname(1, "x0."))}, 0, Malformed},
		"to nothing":   {chain(3)[:3], 0, Empty},
		"and a record": {append(chain(1)[:1], resource("x0.", ip(9, "192.0.2.1"))), 9 * time.Second, 0},
	} {
		a, err := answerTo(t, "x0.", dnsmessage.TypeA, c.records...)
		switch {
		case c.ttl == 0 && kindOf(t, err) != c.kind:
			t.Errorf("%s: %v", name, err)
		case c.ttl != 0 && (err != nil || a.ttl != c.ttl || len(a.addrs) != 1):
			t.Errorf("%s: %+v, %v; want ttl %v", name, a, err, c.ttl)
		}
	}
}

func TestTTL(t *testing.T) {
	for seconds, want := range map[uint32]time.Duration{
		0: 0, 1: time.Second, 86400: maxTTL, 86401: maxTTL, 1<<31 - 1: maxTTL, 1 << 31: 0, 1<<32 - 1: 0,
	} {
		a, err := answerTo(t, "x.", dnsmessage.TypeA, resource("x.", ip(seconds, "192.0.2.1")))
		if err != nil || a.ttl != want {
			t.Errorf("%d s: %v, %v; want %v", seconds, a.ttl, err, want)
		}
	}
	a, _ := answerTo(t, "x.", dnsmessage.TypeA,
		resource("x.", ip(60, "192.0.2.1")), resource("x.", ip(50, "192.0.2.2")), resource("x.", ip(40, "192.0.2.1")))
	if a.ttl != 40*time.Second {
		t.Errorf("of several records the ttl is %v", a.ttl) // a duplicate counts, RFC 2181 §5.2
	}
}

func TestMalformedAnswerIsAnError(t *testing.T) {
	q, m := questionFor(t, "x.", dnsmessage.TypeA)
	head := pack(m)
	end := uint16(len(head))
	withAnswer := func(tail ...byte) []byte {
		msg := bytes.Clone(head)
		binary.BigEndian.PutUint16(msg[6:], 1) // ANCOUNT
		return append(msg, tail...)
	}
	pointer := func(to uint16) []byte { return binary.BigEndian.AppendUint16(nil, 0xC000|to) }
	fixed := []byte{0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1} // A IN 60 4 192.0.2.1
	pair := slices.Concat(pointer(end+2), pointer(end), fixed)

	if a, err := q.read(withAnswer(slices.Concat(pointer(12), fixed)...)); err != nil || len(a.addrs) != 1 {
		t.Fatalf("the good answer: %+v, %v", a, err)
	}
	for name, msg := range map[string][]byte{
		"a pointer to itself":     withAnswer(slices.Concat(pointer(end), fixed)...),
		"pointers to each other":  withAnswer(pair...),
		"a pointer past the end":  withAnswer(slices.Concat(pointer(0x3FFF), fixed)...),
		"a reserved label":        withAnswer(slices.Concat([]byte{0x80, 0}, fixed)...),
		"a name without an end":   withAnswer(bytes.Repeat([]byte{63}, 64*5)...),
		"a dot inside a label":    withAnswer(slices.Concat([]byte{1, '.', 0}, fixed)...),
		"an address of 3 bytes":   withAnswer(slices.Concat(pointer(12), []byte{0, 1, 0, 1, 0, 0, 0, 60, 0, 3, 192, 0, 2, 1})...),
		"an address of 400 bytes": withAnswer(slices.Concat(pointer(12), []byte{0, 1, 0, 1, 0, 0, 0, 60, 1, 144, 192, 0, 2, 1})...),
		"no answer where one is":  withAnswer(),
	} {
		if _, err := q.read(msg); kindOf(t, err) != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}

	q, m = questionFor(t, "x.", dnsmessage.TypeAAAA)
	m.Answers = []dnsmessage.Resource{resource("x.", ip(60, "2001:db8::1"))}
	msg := pack(m)
	for _, length := range []uint16{4, 15, 17} {
		binary.BigEndian.PutUint16(msg[len(msg)-18:], length)
		if _, err := q.read(msg); kindOf(t, err) != Malformed {
			t.Errorf("a v6 address of %d bytes: %v", length, err)
		}
	}
}

// Wherever a message is cut, it is an error, and before the end of the question
// not even ours.
func TestCutMessages(t *testing.T) {
	for _, r := range []rr{ip(60, "192.0.2.1"), ip(60, "2001:db8::1"), srv(60, 1, 2, 3, "host.example."), cname(60, "y.")} {
		kind := typeOf(r.body)
		if kind == dnsmessage.TypeCNAME {
			kind = dnsmessage.TypeA
		}
		q, m := questionFor(t, "db.example.", kind)
		m.Answers = []dnsmessage.Resource{resource("db.example.", r)}
		msg := pack(m)
		const question = 12 + 12 + 4
		for n := range len(msg) {
			_, err := q.read(msg[:n])
			if n < question != errors.Is(err, errNotOurs) || n >= question && kindOf(t, err) != Malformed {
				t.Errorf("%T cut after %d of %d bytes: %v", r.body, n, len(msg), err)
			}
		}
	}
}

// The Kelvin sign is a k to Unicode, and what is no UTF-8 is all the same to it.
func TestNamesAreBytes(t *testing.T) {
	for ours, theirs := range map[string]string{"k.": "\u212a.", "s.": "\u017f.", "\xff.": "\xfe."} {
		q, m := questionFor(t, ours, dnsmessage.TypeA)
		m.Questions[0].Name = dnsmessage.MustNewName(theirs)
		if _, err := q.read(pack(m)); !errors.Is(err, errNotOurs) {
			t.Errorf("%q for %q: %v", theirs, ours, err)
		}
	}
	q, m := questionFor(t, "db.example.", dnsmessage.TypeA)
	m.Questions[0].Name = dnsmessage.MustNewName("dB.eXAMPLE.")
	if _, err := q.read(pack(m)); kindOf(t, err) != Empty {
		t.Errorf("in other letters: %v", err)
	}
}

func TestIDsDiffer(t *testing.T) {
	ids := map[uint16]bool{}
	for range 100 {
		q, _, _ := newQuestion("x.", dnsmessage.TypeA)
		ids[q.id] = true
	}
	if len(ids) < 90 {
		t.Errorf("100 questions have %d ids", len(ids))
	}
}

// FuzzAnswer reads one message as the answer to a question for A or SRV records.
func FuzzAnswer(f *testing.F) {
	const name = "db.example."
	seed := func(kind dnsmessage.Type, records ...dnsmessage.Resource) {
		q, m := questionFor(f, name, kind)
		m.Answers = records
		f.Add(q.id, uint16(kind), pack(m))
	}
	seed(dnsmessage.TypeA, resource(name, cname(60, "y.")), resource("y.", ip(60, "192.0.2.1")))
	seed(dnsmessage.TypeAAAA, resource(name, ip(1<<31, "2001:db8::1")), resource(name, ip(1, "::")))
	seed(dnsmessage.TypeSRV, resource(name, srv(60, 1, 2, 3, "host.example.")), resource(name, srv(60, 1, 2, 3, ".")))
	seed(dnsmessage.TypeA)
	f.Fuzz(func(t *testing.T, id, kind uint16, msg []byte) {
		q := question{id: id, name: dnsmessage.MustNewName(name), kind: dnsmessage.Type(kind)}
		a, err := q.read(msg)
		if errors.Is(err, errNotOurs) {
			return
		}
		checkQuestion(t, q, msg)
		if err == nil {
			checkAnswer(t, a)
		}
	})
}

// checkQuestion looks at a message that was taken for ours byte by byte.
func checkQuestion(t *testing.T, q question, msg []byte) {
	t.Helper()
	if len(msg) < 17 || binary.BigEndian.Uint16(msg) != q.id || msg[2]&0xF8 != 0x80 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		t.Fatalf("this header was taken for ours: %x", msg)
	}
	var p dnsmessage.Parser
	p.Start(msg)
	asked, err := p.Question()
	if err != nil || !strings.EqualFold(asked.Name.String(), q.name.String()) || asked.Type != q.kind || asked.Class != 1 {
		t.Fatalf("this question was taken for ours: %v, %v", asked, err)
	}
}

func checkAnswer(t *testing.T, a answer) {
	t.Helper()
	if a.empty() || len(a.addrs)+len(a.srvs) > maxRecords || a.ttl < 0 || a.ttl > maxTTL {
		t.Fatalf("%d addresses, %d services, ttl %v", len(a.addrs), len(a.srvs), a.ttl)
	}
	for i, ip := range a.addrs {
		if !reachable(ip) || slices.Contains(a.addrs[:i], ip) {
			t.Fatalf("address %v", ip)
		}
	}
	for i, r := range a.srvs {
		if !plain(r.Target) || r.Port == 0 || slices.Contains(a.srvs[:i], r) {
			t.Fatalf("service %+v", r)
		}
	}
}
