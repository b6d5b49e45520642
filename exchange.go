package holdfast

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"syscall"
	"time"
)

// ErrTruncated is in the error of an [Cluster.Exchange] whose reply was longer than
// Datagrams.Max; what fits comes with it.
var ErrTruncated = errors.New("holdfast: the reply is longer than Datagrams.Max")

// Datagrams says how requests and replies travel over udp:// endpoints: what answers
// what, and when a request is sent again. See [Cluster.Exchange] and [Cluster.Send].
type Datagrams struct {
	// ID returns the number that a request carries and its reply repeats; not ok is a
	// message that has none. With it many requests share a socket, each with a number
	// that its socket never uses again. Nil means that every exchange has a socket of
	// its own.
	ID func(message []byte) (id uint64, ok bool)

	// SetID writes a number into a request. Then numbers are drawn from crypto/rand,
	// as wide as what ID reads back, and a reply is returned with the number that the
	// caller's request had. Nil means that requests bring good numbers themselves.
	SetID func(message []byte, id uint64)

	// Match tells whether reply answers request, beyond source and number: DNS repeats
	// the question. It may be called for any bytes that arrive, cut to Max. Nil means
	// that it does.
	Match func(request, reply []byte) bool

	// Deduplicates says that the servers know a repeated request by its source and
	// number and do not act on it again (CoAP). Then an Unsafe request is repeated
	// too, from the same socket to the same node.
	Deduplicates bool

	// Max is the longest request and reply in bytes; 0 means 1,232, which crosses any
	// IPv6 path in one piece, negative means 65,507, all that UDP over IPv4 can carry.
	Max int

	// Sends is how often a request is sent, in all; 0 means 4, negative means 1.
	Sends int

	// After a send a reply is waited for: First, while nothing is known of the node; 0
	// means 1 s (RFC 8085 §3.1.1). Then as long as its round trips say (RFC 6298),
	// at least Least and at most Most; 0 means 200 ms (Linux's TCP_RTO_MIN) and 60 s,
	// negative no such bound.
	// It doubles with each send to the same node, and is spread by up to +50 %, RFC
	// 7252's ACK_RANDOM_FACTOR.
	First, Least, Most time.Duration

	// Uses is how many exchanges a socket is for; then another one, with another port,
	// takes its place. 0 means 1,024, negative means as many as are possible, 65,536. 1
	// is a port of its own for each exchange (RFC 5452).
	Uses int

	// Sockets is how many may be open per node, or of Listen's in all; 0 means 128.
	// What finds no place gets ErrPoolExhausted.
	Sockets int

	// Listen makes a socket that is not connected, from which datagrams go to all
	// nodes. Their replies are told apart by address and port too; but a kernel tells
	// such a socket nothing of nodes that refuse. Nil means connected sockets for each
	// node, made as Config says.
	Listen func(ctx context.Context) (net.PacketConn, error)
}

const (
	maxDatagram    = 65507
	randomFactor   = 1.5 // RFC 7252 §4.8
	datagramIdle   = time.Minute
	maxDatagramUse = 1 << 16
)

func (d *Datagrams) resolve() {
	if d.Max = or(d.Max, 1232); d.Max == 0 || d.Max > maxDatagram {
		d.Max = maxDatagram
	}
	d.Sends = max(1, or(d.Sends, 4))
	d.First = or(d.First, time.Second)
	d.Least = or(d.Least, 200*time.Millisecond)
	if d.Most = or(d.Most, time.Minute); d.Most == 0 {
		d.Most = math.MaxInt64 / 4 // doubled and spread it is still a time
	}
	d.Sockets = max(1, or(d.Sockets, 128))
	if d.Uses = or(d.Uses, 1024); d.Uses == 0 || d.Uses > maxDatagramUse {
		d.Uses = maxDatagramUse
	}
	if d.ID == nil {
		d.Uses = 1
	}
}

// Exchange sends request in one datagram to a udp:// node and returns the reply, in buf
// if it fits there, else in memory of its own. What answers what, and when a request is
// sent again, [Config.Datagrams] says.
//
// A request that got no reply in time may have been acted on, or be on its way still.
// So how often it is sent depends on s and on the protocol:
//
//   - [Idempotent]: up to Datagrams.Sends times, each time to another node as long as
//     there is one. The first reply counts, also a late one of a node asked before.
//   - [Unsafe], Datagrams.Deduplicates: as often, but only to the node that may have got
//     it, the same bytes from the same port.
//   - [Unsafe] otherwise: once, unless the kernel did not take it.
//
// All sends of one exchange to a node carry the same number. Further sends are paid from
// Retry.Budget. A node that refuses (ICMP, where the socket is connected) is backed off
// as by a failed dial, and the request is sent again at once; one that is silent while it
// answers nobody else either has failed.
//
// A reply counts if it came from where the request was sent, with its number, and
// Datagrams.Match agrees. Anything else is dropped and counted in Stats, and the wait goes
// on. A reply longer than Datagrams.Max is returned cut, with [ErrTruncated].
//
// All errors are of type [*Error]. An empty request counts as a byte written. An exchange
// that goes well, with a buf that suffices, allocates nothing, but for a new socket now and
// then and its list of numbers.
func (c *Cluster) Exchange(ctx context.Context, s Safety, request, buf []byte) (reply []byte, err error) {
	c.begin()
	d := &c.cfg.Datagrams
	if len(request) > d.Max {
		return nil, &Error{Phase: PhaseWrite, Err: fmt.Errorf("holdfast: a request of %d bytes, Datagrams.Max is %d: %w", len(request), d.Max, syscall.EMSGSIZE)}
	}
	x := c.newExchange(ctx, s, request)
	defer x.leave()
	if x.own, err = d.number(request); err != nil {
		return nil, &Error{Phase: PhaseWrite, Err: err}
	}
	if x.id = x.own; d.SetID != nil {
		x.draw()
	}
	c.cfg.Retry.Budget.Deposit()
	c.stats.operations.Add(1)
	start := clock()
	for {
		x.op.attempt++
		if x.op.result = x.attempt(); x.op.result == nil || !x.again(x.op.result) {
			break
		}
	}
	if err := x.op.finish(start); err != nil {
		return nil, err
	}
	return x.result(buf)
}

var errNoNumber = errors.New("holdfast: Datagrams.ID finds no number in the request")

// number is what the caller calls the request.
func (d *Datagrams) number(request []byte) (uint64, error) {
	if d.ID == nil {
		return 0, nil
	}
	id, ok := d.ID(request)
	if !ok {
		return 0, errNoNumber
	}
	return id, nil
}

// Send sends one datagram to a udp:// node and waits for nothing. Each datagram picks its
// node, so that what it goes to follows the names and the health of the nodes. If the
// kernel does not take it, the next node is tried. A nil error says that the kernel took
// it and no more; a node that refuses one (ICMP) is backed off, and the next go elsewhere.
func (c *Cluster) Send(ctx context.Context, datagram []byte) error {
	c.begin()
	if err := c.firstResolved(ctx); err != nil {
		return err
	}
	var failed []*Error
	var tried []*Node
	for {
		lease, err := c.pickDatagram(&tried)
		if err != nil {
			return sendFailed(err, failed)
		}
		tried = append(tried, lease.n)
		err = c.sendOne(ctx, lease, datagram)
		lease.Done()
		if err == nil {
			return nil
		}
		failed = append(failed, lease.n.asError(PhaseWrite, err))
		if end := ended(ctx); end != nil {
			return sendFailed(end, failed)
		}
	}
}

func sendFailed(err error, failed []*Error) error {
	if len(failed) == 0 {
		return err
	}
	last := *failed[len(failed)-1]
	last.Tried = failed[:len(failed)-1]
	return &last
}

func (c *Cluster) sendOne(ctx context.Context, lease Lease, datagram []byte) error {
	p, _, err := c.portsOf(lease.n).take(ctx, lease.n, nil, 0)
	if err != nil {
		return err
	}
	defer p.release()
	err = p.send(datagram, lease.n, nil)
	if c.ctx.Err() != nil {
		return c.closedNow()
	}
	if err != nil {
		lease.Report(-1, err)
	}
	return err
}

// firstResolved waits until there was a first answer about the nodes.
func (c *Cluster) firstResolved(ctx context.Context) error {
	if c.view.Load().resolved {
		return nil
	}
	return c.waitResolved(ctx)
}

var errNoDatagrams = errors.New("holdfast: it is no udp:// node")

// pickDatagram picks a udp:// node; others are put into tried.
func (c *Cluster) pickDatagram(tried *[]*Node) (Lease, error) {
	for {
		lease, err := c.Pick(0, *tried)
		if err != nil || lease.n.network == "udp" {
			return lease, err
		}
		lease.Done()
		*tried = append(*tried, lease.n)
	}
}
