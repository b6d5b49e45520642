package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// answer is what one question brought.
type answer struct {
	addrs []netip.Addr
	srvs  []SRV
	ttl   time.Duration // the least of the records used
}

// udpSize is what fits into one packet everywhere (DNS flag day 2020).
const udpSize = 1232

// ask puts one question to the servers in turn until one has an answer, good or
// bad. NXDOMAIN and an empty answer are answers; a refusal or a failure is not.
func (c *Client) ask(ctx context.Context, conf *config, name string, kind dnsmessage.Type) (answer, error) {
	servers := c.Servers
	if len(servers) == 0 {
		servers = conf.servers
	}
	timeout, attempts := c.Timeout, c.Attempts
	if timeout <= 0 {
		timeout = conf.timeout
	}
	if attempts <= 0 {
		attempts = conf.attempts
	}
	var last error
	for range attempts {
		for _, server := range servers {
			a, err := c.askServer(ctx, server, timeout, name, kind)
			if err == nil || final(err) {
				return a, err
			}
			last = worse(last, err)
			if ctx.Err() != nil {
				return answer{}, &Error{Kind: Timeout, Name: name, Server: server, Err: context.Cause(ctx)}
			}
		}
	}
	return answer{}, last
}

func (c *Client) askServer(ctx context.Context, server string, timeout time.Duration, name string, kind dnsmessage.Type) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	q, query, err := newQuestion(name, kind)
	if err != nil {
		return answer{}, &Error{Kind: NotFound, Name: name, Err: err}
	}
	a, err := c.exchange(ctx, "udp", server, q, query)
	if errors.Is(err, errTruncated) {
		a, err = c.exchange(ctx, "tcp", server, q, query)
	}
	if err == nil {
		return a, nil
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Kind: ServFail, Err: err}
		if t, ok := err.(interface{ Timeout() bool }); ok && t.Timeout() {
			e.Kind = Timeout
		}
	}
	e.Name, e.Server = name, server
	return answer{}, e
}

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

// exchange sends the question and reads until something matches it.
func (c *Client) exchange(ctx context.Context, network, server string, q question, query []byte) (answer, error) {
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, network, server)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	conn.SetDeadline(end)
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := conn.Write(query); err != nil {
		return answer{}, err
	}
	for {
		msg, err := receive(conn, network)
		if err != nil {
			return answer{}, err
		}
		a, err := q.read(msg)
		if !errors.Is(err, errNotOurs) {
			return a, err
		}
		if network == "tcp" {
			return answer{}, &Error{Kind: Malformed, Err: err}
		}
	}
}

func receive(conn net.Conn, network string) ([]byte, error) {
	if network == "udp" {
		buf := make([]byte, 65535) // a server may ignore the size we ask for
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, msg)
	return msg, err
}

var (
	errNotOurs   = errors.New("the answer is to another question")
	errTruncated = errors.New("the answer is cut")
)

// read takes the answer out of a message, if it is ours.
func (q question) read(msg []byte) (answer, error) {
	var p dnsmessage.Parser
	head, err := p.Start(msg)
	if err != nil || !head.Response || head.ID != q.id {
		return answer{}, errNotOurs
	}
	asked, err := p.AllQuestions()
	if err != nil || len(asked) != 1 || asked[0].Type != q.kind || asked[0].Class != dnsmessage.ClassINET ||
		!strings.EqualFold(asked[0].Name.String(), q.name.String()) {
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
	records, err := readRecords(&p)
	if err != nil {
		return answer{}, &Error{Kind: Malformed, Err: err}
	}
	return q.collect(records)
}

// record is a resource record of a type that concerns us.
type record struct {
	name  string // lower case
	ttl   time.Duration
	alias string // of a CNAME, lower case
	addr  netip.Addr
	srv   SRV
	kind  dnsmessage.Type
}

// maxAnswers bounds the work for one message of at most 64 KiB.
const maxAnswers = 4096

func readRecords(p *dnsmessage.Parser) ([]record, error) {
	var out []record
	for range maxAnswers {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		r := record{name: strings.ToLower(h.Name.String()), kind: h.Type, ttl: clampTTL(h.TTL)}
		switch h.Type {
		case dnsmessage.TypeA:
			var a dnsmessage.AResource
			a, err = p.AResource()
			r.addr = netip.AddrFrom4(a.A)
		case dnsmessage.TypeAAAA:
			var a dnsmessage.AAAAResource
			a, err = p.AAAAResource()
			r.addr = netip.AddrFrom16(a.AAAA)
		case dnsmessage.TypeCNAME:
			var a dnsmessage.CNAMEResource
			a, err = p.CNAMEResource()
			r.alias = strings.ToLower(a.CNAME.String())
		case dnsmessage.TypeSRV:
			var a dnsmessage.SRVResource
			a, err = p.SRVResource()
			r.srv = SRV{a.Target.String(), a.Port, a.Priority, a.Weight}
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return nil, errors.New("too many records")
}

// clampTTL follows RFC 2181 §8: the top bit set means 0.
func clampTTL(seconds uint32) time.Duration {
	if seconds > 1<<31-1 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, maxTTL)
}

// collect follows the aliases from the question's name and takes what stands at
// their end.
func (q question) collect(records []record) (answer, error) {
	name := strings.ToLower(q.name.String())
	a := answer{ttl: maxTTL}
	for range maxAliases + 1 {
		alias := ""
		var addrs []netip.Addr
		for _, r := range records {
			switch {
			case r.name != name:
			case r.kind == q.kind && q.kind == dnsmessage.TypeSRV && r.srv.Target != "." && len(a.srvs) < maxRecords:
				a.srvs = append(a.srvs, r.srv)
				a.ttl = min(a.ttl, r.ttl)
			case r.kind == q.kind:
				addrs = append(addrs, r.addr)
				a.ttl = min(a.ttl, r.ttl)
			case r.kind == dnsmessage.TypeCNAME && alias == "":
				alias = r.alias
				a.ttl = min(a.ttl, r.ttl)
			}
		}
		a.addrs = usable(addrs)
		switch {
		case len(a.addrs)+len(a.srvs) > 0:
			return a, nil
		case alias == "":
			return answer{}, &Error{Kind: Empty}
		}
		name = alias
	}
	return answer{}, &Error{Kind: Malformed, Err: errors.New("aliases in a circle")}
}

// absolute ends a name with the dot that DNS wants.
func absolute(name string) string {
	if strings.HasSuffix(name, ".") {
		return name
	}
	return name + "."
}
