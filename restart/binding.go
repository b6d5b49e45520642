package restart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/listen"
)

// A Server serves the connections of a listener, as serve.Server and grpc's with a
// line of glue do; for net/http see [HTTP]. Serve may be called several times, once
// for each address. Shutdown ends them, waits for their connections and, when ctx
// ends, closes those that are left.
//
// A Server that also has the methods of [Mover] passes its live connections on. One
// with Totals() map[string]int64 has its counters summed over the generations, and
// one with TicketKeys([][32]byte) is given the keys that TLS tickets are sealed
// with: the first is for new ones, and all are for those that come back. It is
// called before Serve, and whenever they change.
type Server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
}

// A PacketServer serves a packet socket. Both generations read from the same one
// for a moment: what has arrived belongs to the socket, and is lost by neither.
//
// One that also has the methods of Mover has something to pass on, such as who talks to
// whom, without which the successor cannot go on. Its ServePacket is called there when
// HandOver has returned, or the predecessor is gone; until then what arrives waits in the
// socket. HandOver stops reading first.
type PacketServer interface {
	ServePacket(net.PacketConn) error
	Shutdown(context.Context) error
}

// Mover is what a Server has if its connections can move to the next generation.
//
// HandOver is called when the server's listeners have stopped accepting. It calls
// send for each connection that can move, from as many goroutines as it likes: the
// state, at most 64 KiB and the unread bytes, is for TakeOver of the same server in
// the successor, and conns are what it is about. When send returns nil they are the
// successor's, to be closed here without a word to the peer; else they stay.
//
// TakeOver gets file descriptors that do not block and are closed on exec. They are
// its own if it returns nil; else they stay with the predecessor.
type Mover interface {
	HandOver(ctx context.Context, send func(state []byte, conns ...syscall.Conn) error) error
	TakeOver(state []byte, fds []int) error
}

// Binding ties a server to its addresses, or a user to a file.
type Binding struct {
	bounds []*bound
	err    error
}

type kind string

const (
	kindStream kind = "stream"
	kindPacket kind = "packet"
	kindFile   kind = "file"
)

// bound is one thing that is passed from generation to generation.
type bound struct {
	kind  kind
	name  string
	first *bound       // of the same Bind; nil of a file
	addr  addr.Address // of a socket

	server Server
	packet PacketServer
	openIt func() (*os.File, error)
	use    func(*os.File) error

	// What a worker, or a process without a supervisor, has of it.
	ln   *listener
	pc   net.PacketConn
	file listen.File
	raw  *os.File // a file, or a socket for another program
	turn *turn    // of a packet socket whose sessions move; nil is at once
}

// turn is when a socket may be read.
type turn struct {
	come chan struct{}
	once sync.Once
}

func (t *turn) wait() {
	if t != nil {
		<-t.come
	}
}

func (t *turn) begin() {
	if t != nil {
		t.once.Do(func() { close(t.come) })
	}
}

// Bind serves srv on each of the addresses: tcp://host:port, unix:/path?mode=0660
// or unix:@abstract. An address may be given a name, as in "web=tcp://:8080"; else
// it is its own name. In a restart a socket is passed on when its address is
// unchanged; a new one is bound, one that is no longer wanted is closed when the restart
// is committed, and then another name or mode holds.
func Bind(srv Server, addrs ...string) Binding {
	return binding(addrs, kindStream, func(b *bound) { b.server = srv }, "tcp", "unix")
}

// BindPacket serves srv on each of the addresses: udp://host:port, or
// unix:/path?type=dgram.
func BindPacket(srv PacketServer, addrs ...string) Binding {
	return binding(addrs, kindPacket, func(b *bound) { b.packet = srv }, "udp", "unix")
}

// Keep passes a file of the user's from generation to generation, under a name:
// open makes it in the first one, and use is given it in every one, as its own,
// before Config.Start.
func Keep(name string, open func() (*os.File, error), use func(*os.File) error) Binding {
	return Binding{bounds: []*bound{{kind: kindFile, name: name, openIt: open, use: use}}}
}

func binding(addrs []string, k kind, fill func(*bound), networks ...string) (out Binding) {
	for _, text := range addrs {
		b, err := parseBound(text, k, networks)
		if err != nil {
			out.err = errors.Join(out.err, err)
			continue
		}
		fill(b)
		out.bounds = append(out.bounds, b)
		b.first = out.bounds[0]
	}
	return out
}

func parseBound(text string, k kind, networks []string) (*bound, error) {
	name, rest, named := strings.Cut(text, "=")
	if !named || strings.ContainsAny(name, ":/?@") {
		name, rest = text, text
	}
	a, err := addr.Parse(rest)
	if err != nil {
		return nil, err
	}
	if a.Network == "tls" {
		return nil, fmt.Errorf("restart: %s: the server does TLS, so its address is tcp://%s", a, a.Addr)
	}
	if _, err := options(a); err != nil {
		return nil, err
	}
	if k == kindStream && a.Params["type"] == "dgram" {
		return nil, fmt.Errorf("restart: %s: for datagrams there is BindPacket", a)
	}
	for _, n := range networks {
		if a.Network == n {
			return &bound{kind: k, name: name, addr: a}, nil
		}
	}
	return nil, fmt.Errorf("restart: %s: want one of %s", a, strings.Join(networks, ", "))
}

// flatten makes one list of all bindings.
func flatten(bindings []Binding) (all []*bound, err error) {
	seen := map[string]bool{}
	for _, b := range bindings {
		err = errors.Join(err, b.err)
		for _, one := range b.bounds {
			if seen[one.name] {
				err = errors.Join(err, fmt.Errorf("restart: two bindings are named %q", one.name))
			}
			seen[one.name] = true
			all = append(all, one)
		}
	}
	return all, err
}

// want is how a worker asks its supervisor for a socket or a file.
type want struct {
	Kind kind
	Name string
	Addr string `json:",omitempty"`
}

func (b *bound) want() want {
	if b.kind == kindFile {
		return want{Kind: b.kind, Name: b.name}
	}
	return want{b.kind, b.name, b.addr.String()}
}

// open binds in this very process.
func (b *bound) open(ctx context.Context) error {
	switch b.kind {
	case kindStream:
		ln, file, err := listenStream(ctx, b.addr)
		if err != nil {
			return err
		}
		b.file = file
		b.ln = newListener(ln)
	case kindPacket:
		pc, file, err := listenPacket(ctx, b.addr)
		if err != nil {
			return err
		}
		b.file = file
		b.pc = pc
	case kindFile:
		f, err := b.openIt()
		if err != nil {
			return err
		}
		return b.use(f)
	}
	return nil
}

func (b *bound) close() (err error) {
	if b.ln != nil {
		err = b.ln.Close()
	}
	if b.pc != nil {
		err = b.pc.Close()
	}
	b.file.Remove()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// bindPatience is how long an address in use is tried again: a predecessor whose
// supervisor was killed closes its listeners at once, but not yet.
const bindPatience = time.Second

func listenStream(ctx context.Context, a addr.Address) (ln net.Listener, file listen.File, err error) {
	o, err := options(a)
	if err != nil {
		return nil, file, err
	}
	err = patiently(ctx, func() error {
		ln, file, err = listen.Stream(ctx, a.Network, a.Addr, o)
		return err
	})
	return ln, file, err
}

func listenPacket(ctx context.Context, a addr.Address) (pc net.PacketConn, file listen.File, err error) {
	o, err := options(a)
	if err != nil {
		return nil, file, err
	}
	network := a.Network
	if network == "unix" {
		network = "unixgram"
	}
	err = patiently(ctx, func() error {
		pc, file, err = listen.Packet(ctx, network, a.Addr, o)
		return err
	})
	return pc, file, err
}

func options(a addr.Address) (o listen.Options, err error) {
	for key, value := range a.Params {
		switch {
		case key == "mode" && a.Network == "unix":
			mode, err := strconv.ParseUint(value, 8, 9)
			if err != nil {
				return o, fmt.Errorf("restart: %s: mode %q is not an octal number up to 0777", a, value)
			}
			o.Mode = os.FileMode(mode)
		case key == "type" && a.Network == "unix" && value == "dgram":
		default:
			return o, fmt.Errorf("restart: %s: nothing is known of %s=%s", a, key, value)
		}
	}
	return o, nil
}

// patiently repeats a bind for as long as its address may still become free.
func patiently(ctx context.Context, bind func() error) error {
	for end := time.Now().Add(bindPatience); ; {
		err := bind()
		if !errors.Is(err, errInUse) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
