package dns

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	udpSize    = 1232 // fits into one packet everywhere (DNS flag day 2020)
	maxAnswers = 4096 // records read of one message
	maxRecords = 256  // records kept of it
	maxAliases = 16
	maxTTL     = 24 * time.Hour
)

// question is what an answer must match.
type question struct {
	id   uint16
	name dnsmessage.Name
	kind dnsmessage.Type
}

// newQuestion makes a question with an id nobody can guess, and its message.
func newQuestion(name string, kind dnsmessage.Type) (q question, msg []byte, err error) {
	if q.name, err = dnsmessage.NewName(name); err != nil {
		return q, nil, err
	}
	var id [2]byte
	rand.Read(id[:])
	q.id, q.kind = binary.BigEndian.Uint16(id[:]), kind
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: q.id, RecursionDesired: true})
	var opt dnsmessage.ResourceHeader
	err = errors.Join(
		b.StartQuestions(),
		b.Question(dnsmessage.Question{Name: q.name, Type: kind, Class: dnsmessage.ClassINET}),
		b.StartAdditionals(),
		opt.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false),
		b.OPTResource(opt, dnsmessage.OPTResource{}),
	)
	if err != nil {
		return q, nil, err
	}
	msg, err = b.Finish()
	return q, msg, err
}

var (
	errNotOurs   = errors.New("the answer is to another question")
	errTruncated = errors.New("the answer is cut")
	errReferral  = errors.New("it only knows whom to ask") // a server that does not recurse
)

// read takes the answer out of a message, if it is ours.
func (q question) read(msg []byte) (answer, error) {
	var p dnsmessage.Parser
	head, err := p.Start(msg)
	if err != nil || !head.Response || head.OpCode != 0 || head.ID != q.id || !q.askedIn(&p) {
		return answer{}, errNotOurs
	}
	switch {
	case head.Truncated:
		return answer{}, errTruncated
	case head.RCode == dnsmessage.RCodeNameError:
		return answer{}, &Error{Kind: NotFound}
	case head.RCode == dnsmessage.RCodeRefused:
		return answer{}, &Error{Kind: Refused}
	case head.RCode != dnsmessage.RCodeSuccess:
		return answer{}, &Error{Kind: ServFail, Err: fmt.Errorf("rcode %d", head.RCode)}
	}
	records, err := q.records(&p)
	switch {
	case err != nil:
		return answer{}, &Error{Kind: Malformed, Err: err}
	case len(records) == 0 && !head.Authoritative && !head.RecursionAvailable:
		return answer{}, &Error{Kind: ServFail, Err: errReferral}
	}
	return q.collect(records)
}

// askedIn reports whether the message repeats the question, and nothing else.
func (q question) askedIn(p *dnsmessage.Parser) bool {
	asked, err := p.Question()
	if err != nil || asked.Type != q.kind || asked.Class != dnsmessage.ClassINET || lower(asked.Name) != lower(q.name) {
		return false
	}
	_, err = p.Question()
	return errors.Is(err, dnsmessage.ErrSectionDone)
}

// record is a resource record of a type that concerns us: one of addr, srv and
// alias is set.
type record struct {
	name  string // lower case
	ttl   time.Duration
	addr  netip.Addr
	srv   SRV
	alias string // of a CNAME, lower case
}

// records returns the aliases and what was asked for.
func (q question) records(p *dnsmessage.Parser) ([]record, error) {
	var out []record
	for range maxAnswers {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Class != dnsmessage.ClassINET || h.Type != q.kind && h.Type != dnsmessage.TypeCNAME {
			if err := p.SkipAnswer(); err != nil {
				return nil, err
			}
			continue
		}
		r, err := readRecord(p, h)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return nil, errors.New("too many records")
}

// readRecord reads the body that h announces. The parser believes an address to be
// as long as it must be, and would take what is missing from the next record.
func readRecord(p *dnsmessage.Parser, h dnsmessage.ResourceHeader) (r record, err error) {
	r = record{name: lower(h.Name), ttl: readTTL(h.TTL)}
	switch {
	case h.Type == dnsmessage.TypeA && h.Length == 4:
		var a dnsmessage.AResource
		a, err = p.AResource()
		r.addr = netip.AddrFrom4(a.A)
	case h.Type == dnsmessage.TypeAAAA && h.Length == 16:
		var a dnsmessage.AAAAResource
		a, err = p.AAAAResource()
		r.addr = netip.AddrFrom16(a.AAAA)
	case h.Type == dnsmessage.TypeCNAME:
		var a dnsmessage.CNAMEResource
		a, err = p.CNAMEResource()
		r.alias = lower(a.CNAME)
	case h.Type == dnsmessage.TypeSRV:
		var a dnsmessage.SRVResource
		a, err = p.SRVResource()
		r.srv = SRV{a.Target.String(), a.Port, a.Priority, a.Weight}
	default:
		err = errors.New("an address of the wrong length")
	}
	return r, err
}

// lower folds the case of ASCII only, as DNS does (RFC 4343): to package strings
// there are more ways to write a k.
func lower(n dnsmessage.Name) string {
	name := n.Data[:n.Length] // of a copy
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			name[i] = c - 'A' + 'a'
		}
	}
	return string(name)
}

// readTTL follows RFC 2181 §8: the top bit set means 0.
func readTTL(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// answer is what one question brought.
type answer struct {
	addrs []netip.Addr
	srvs  []SRV
	ttl   time.Duration // the least of the records used, and of maxTTL
}

func (a answer) empty() bool { return len(a.addrs)+len(a.srvs) == 0 }

// collect follows the aliases from the question's name and takes what stands at
// their end.
func (q question) collect(records []record) (answer, error) {
	name, ttl := lower(q.name), maxTTL
	for range maxAliases + 1 {
		a := answer{ttl: ttl}
		var alias *record
		for i, r := range records {
			switch {
			case r.name != name:
			case r.alias == "":
				a.add(r)
			default:
				alias = &records[i]
			}
		}
		switch {
		case !a.empty():
			return a, nil
		case alias == nil:
			return answer{}, &Error{Kind: Empty}
		}
		name, ttl = alias.alias, min(ttl, alias.ttl)
	}
	return answer{}, &Error{Kind: Malformed, Err: errors.New("aliases in a circle")}
}

// add takes a record that is of use, while there is room. A duplicate brings its TTL
// only: records of one set must not differ there, and if they do, the least counts
// (RFC 2181 §5.2).
func (a *answer) add(r record) {
	full := len(a.addrs)+len(a.srvs) == maxRecords
	switch {
	case slices.Contains(a.addrs, r.addr), slices.Contains(a.srvs, r.srv):
	case full:
		return
	case reachable(r.addr):
		a.addrs = append(a.addrs, r.addr)
	case r.srv.Port != 0 && plain(r.srv.Target):
		a.srvs = append(a.srvs, r.srv)
	default:
		return
	}
	a.ttl = min(a.ttl, r.ttl)
}

// reachable reports whether a client can connect to the address. A link-local one
// needs a zone, which DNS cannot give; a v4 address belongs in an A record.
func reachable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) &&
		!(a.Is6() && a.IsLinkLocalUnicast() && a.Zone() == "")
}

// plain reports whether a name consists of what names of hosts and services do:
// one from the network ends up in logs, in metrics, and in another question.
func plain(name string) bool {
	strange := func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-_.", c))
	}
	return name != "" && name != "." && !strings.ContainsFunc(name, strange)
}
