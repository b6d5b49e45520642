package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// handler is a DNS server without its transport: it sends any number of messages
// for a query.
type handler func(network string, query []byte, send func(msg []byte))

// rr is a record without its name; its ttl is in seconds.
type rr struct {
	ttl  uint32
	body dnsmessage.ResourceBody
}

func ip(ttl uint32, text string) rr {
	addr := netip.MustParseAddr(text)
	if addr.Is4() {
		return rr{ttl, &dnsmessage.AResource{A: addr.As4()}}
	}
	return rr{ttl, &dnsmessage.AAAAResource{AAAA: addr.As16()}}
}

func cname(ttl uint32, target string) rr {
	return rr{ttl, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(target)}}
}

func srv(ttl uint32, priority, weight, port uint16, target string) rr {
	return rr{ttl, &dnsmessage.SRVResource{Priority: priority, Weight: weight, Port: port, Target: dnsmessage.MustNewName(target)}}
}

func typeOf(body dnsmessage.ResourceBody) dnsmessage.Type {
	switch body.(type) {
	case *dnsmessage.AResource:
		return dnsmessage.TypeA
	case *dnsmessage.AAAAResource:
		return dnsmessage.TypeAAAA
	case *dnsmessage.CNAMEResource:
		return dnsmessage.TypeCNAME
	}
	return dnsmessage.TypeSRV
}

// zone is what a server knows: records by name, in order. A name with no records
// exists, one that is missing does not.
type zone map[string][]rr

// message answers as a recursive resolver does, aliases followed.
func (z zone) message(query dnsmessage.Message) dnsmessage.Message {
	q := query.Questions[0]
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: query.ID, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: query.Questions,
	}
	name := strings.ToLower(q.Name.String())
	if _, known := z[name]; !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for range 20 {
		next := name
		for _, r := range z[name] {
			kind := typeOf(r.body)
			if alias, ok := r.body.(*dnsmessage.CNAMEResource); ok {
				next = alias.CNAME.String()
			} else if kind != q.Type {
				continue
			}
			m.Answers = append(m.Answers, resource(name, r))
		}
		if next == name {
			break
		}
		name = next
	}
	return m
}

func resource(name string, r rr) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: r.ttl}
	return dnsmessage.Resource{Header: h, Body: r.body}
}

// handle cuts what does not fit into a packet.
func (z zone) handle(network string, query []byte, send func([]byte)) {
	m := z.message(parse(query))
	msg := pack(m)
	if network == "udp" && len(msg) > udpSize {
		m.Truncated, m.Answers = true, nil
		msg = pack(m)
	}
	send(msg)
}

// rcode answers every question with an error.
func rcode(code dnsmessage.RCode) handler {
	return func(_ string, query []byte, send func([]byte)) {
		m := zone{}.message(parse(query))
		m.RCode = code
		send(pack(m))
	}
}

func silent(string, []byte, func([]byte)) {}

// byType lets one handler answer for AAAA and another for the rest.
func byType(aaaa, other handler) handler {
	return func(network string, query []byte, send func([]byte)) {
		if parse(query).Questions[0].Type == dnsmessage.TypeAAAA {
			aaaa(network, query, send)
		} else {
			other(network, query, send)
		}
	}
}

func parse(query []byte) (m dnsmessage.Message) {
	if err := m.Unpack(query); err != nil {
		panic(err)
	}
	return m
}

func pack(m dnsmessage.Message) []byte {
	msg, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return msg
}

// asked notes the questions that reach a handler, as "name TYPE network".
type asked struct {
	mu   sync.Mutex
	list []string
}

func (a *asked) by(h handler) handler {
	return func(network string, query []byte, send func([]byte)) {
		q := parse(query).Questions[0]
		a.mu.Lock()
		a.list = append(a.list, q.Name.String()+" "+strings.TrimPrefix(q.Type.String(), "Type")+" "+network)
		a.mu.Unlock()
		h(network, query, send)
	}
}

func (a *asked) all() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.list)
}

// of returns the questions of a type in the order they came, less the type.
func (a *asked) of(kind string) (names []string) {
	for _, q := range a.all() {
		if name, network, ok := strings.Cut(q, " "+kind+" "); ok {
			names = append(names, name+" "+network)
		}
	}
	return names
}

// serve runs a handler on a port of the loopback, UDP and TCP, until the test ends.
func serve(t testing.TB, h handler) (addr string) {
	t.Helper()
	packets, listener := bindBoth(t)
	var wg sync.WaitGroup
	wg.Go(func() { servePackets(packets, h) })
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveStream(conn, h) })
		}
	})
	t.Cleanup(func() { packets.Close(); listener.Close(); wg.Wait() })
	return packets.LocalAddr().String()
}

// bindBoth finds a port that is free for both networks.
func bindBoth(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var err error
	for range 20 {
		var packets net.PacketConn
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			continue
		}
		var listener net.Listener
		if listener, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			return packets, listener
		}
		packets.Close()
	}
	t.Fatal(err)
	return nil, nil
}

func servePackets(conn net.PacketConn, h handler) {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		h("udp", slices.Clone(buf[:n]), func(msg []byte) { conn.WriteTo(msg, from) })
	}
}

func serveStream(conn net.Conn, h handler) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		h("tcp", query, func(msg []byte) {
			conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
		})
	}
}

// pipes is a Dial to handlers by address over net.Pipe, for a bubble's clock: no
// socket is involved.
func pipes(servers map[string]handler) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, addr string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		if network == "tcp" {
			go serveStream(theirs, servers[addr])
			return ours, nil
		}
		go func() {
			defer theirs.Close()
			buf := make([]byte, 4096)
			for {
				n, err := theirs.Read(buf)
				if err != nil {
					return
				}
				servers[addr](network, slices.Clone(buf[:n]), func(msg []byte) { theirs.Write(msg) })
			}
		}()
		return ours, nil
	}
}

// newClient is a client of these servers that reads files of its own, and whose
// system knows nothing.
func newClient(t testing.TB, servers ...string) *Client {
	t.Helper()
	dir := t.TempDir()
	c := &Client{Servers: servers, Fallback: system(t, nil)}
	c.files.resolv = write(t, filepath.Join(dir, "resolv.conf"), "search .\n")
	c.files.hosts = write(t, filepath.Join(dir, "hosts"), "127.0.0.1 localhost\n")
	return c
}

// system is a net.Resolver whose servers are all the one handler; with nil there
// are none.
func system(t testing.TB, h handler) *net.Resolver {
	t.Helper()
	addr := ""
	if h != nil {
		addr = serve(t, h)
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if addr == "" {
			return nil, errors.New("the system has no servers")
		}
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// kindOf is the kind of a failed lookup.
func kindOf(t testing.TB, err error) Kind {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v (%T) is no *Error", err, err)
	}
	return e.Kind
}

func texts(addrs []netip.Addr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

func same(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %s, want %s", what, strconv.Quote(strings.Join(got, " ")), strconv.Quote(strings.Join(want, " ")))
	}
}
