package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/spool"
)

// Packets serves datagrams: a request is one, and so is each reply.
//
//	srv := &serve.Packets{Handler: func(ctx context.Context, p *serve.Packet) error {
//		return p.Reply(p.Data)
//	}}
//	pc, err := net.ListenPacket("udp", ":7000")
//	…
//	err = srv.ServePacket(pc)
//
// Its zero value with a Handler is useful; fields must not change after first use.
// Methods may be called concurrently. Shutdown or Close ends it, for good.
//
// Datagrams are received and answered in batches: what has arrived is taken together, is
// handled one after the other, and the replies leave together, from the address that was
// asked. A batch that was full means that more is waiting; then the next worker reads.
// Handlers that wait, for a database say, want Batch 1 and as many Workers as shall wait
// at once.
//
// Dropped without a word, and counted, are datagrams that are too long, from port 0,
// from ports whose services answer anything (7, 13, 17, 19), and from this socket's own
// addresses and port: two servers that answer each other never stop.
//
// Under restart.BindPacket both generations read from one socket for a moment: what has
// been read is answered by who read it, and what has not is left to the other.
type Packets struct {
	// Handler handles a datagram. ctx ends when the server is cut. An error is counted
	// and logged, and a panic too; both concern this datagram only.
	Handler func(ctx context.Context, p *Packet) error

	Workers   int // for each socket: as many as there are processors
	Batch     int // datagrams at once: 64; at most 1 where the system has no batches
	MaxPacket int // bytes; longer ones are dropped, not cut: 65,507
	Limits    PacketLimits
	Socket    PacketSocket

	// Dedup is how long replies are kept for whoever sends the same datagram again from
	// the same address and port: it gets the same reply, and the handler does not hear of
	// it. 0 is not at all. At most 16 MiB are kept, and then for less long.
	Dedup time.Duration

	Log     *slog.Logger // nil discards; what is too slow to take it loses records, and says so
	Observe func(Event)  // nil is nobody; called from many goroutines, never under a lock

	once      sync.Once
	log       *slog.Logger
	endLog    func(time.Duration)
	failures  sparingly // of handlers and reads, in the log
	base      context.Context
	cancel    context.CancelCauseFunc
	closed    chan struct{} // closed when no more is read
	limits    PacketLimits
	counts    packetCounters
	started   atomic.Pointer[time.Time] // when the first socket was served
	sources   sources
	validated recent[netip.AddrPort, time.Time]
	replies   replies

	mu       sync.Mutex
	lanes    map[*lane]struct{}
	serving  sync.WaitGroup
	isClosed bool
}

// PacketLimits are whose datagrams are handled, and how many. 0 is the default,
// negative is none.
type PacketLimits struct {
	Rate      float64 // handled per second, in bursts of a second's worth: no limit
	RatePerIP float64 // and from one client, a v6 client being its /64: no limit

	Allow, Deny []netip.Prefix // of the source; Deny wins, and an empty Allow is everybody

	// Amplification is how many bytes may answer each byte of a request whose source has
	// not been validated, by [Packet.Validate]: 3 (RFC 9000 §8). That a second datagram
	// comes proves nothing, for who forges one address can forge it twice.
	Amplification float64
}

// PacketSocket is how a socket is set up. What a system cannot do is left out.
type PacketSocket struct {
	RecvBuf, SendBuf int  // bytes: 4 MiB, or what the system allows; negative leaves the system's
	NoGSO            bool // no runs of replies to one client as one (UDP_SEGMENT)
	GRO              bool // runs of one client's as one (UDP_GRO): for few clients that send much
}

// maxDatagram is what a datagram over IPv4 can hold.
const maxDatagram = 1<<16 - 1 - 20 - 8

// roomForReplies is what the replies of a batch may take until they leave.
const roomForReplies = 2 * maxDatagram

func (s *Packets) begin() {
	s.once.Do(func() {
		if s.Handler == nil {
			panic("serve: Packets without a Handler")
		}
		s.log, s.endLog = spool.New(s.Log)
		s.base, s.cancel = context.WithCancelCause(context.Background())
		s.closed = make(chan struct{})
		s.lanes = map[*lane]struct{}{}
		s.limits = s.Limits
		s.limits.Allow, s.limits.Deny = unmapped(s.Limits.Allow), unmapped(s.Limits.Deny)
		if s.limits.Amplification == 0 {
			s.limits.Amplification = 3
		}
		s.validated.most = maxClients
		s.sources.clients.most = maxClients
		s.replies.most = 16 << 20
		s.replies.seed = maphash.MakeSeed()
	})
}

// lane is one socket.
type lane struct {
	s    *Packets
	pc   net.PacketConn
	self netip.AddrPort // what it is bound to
	most int            // bytes of a datagram

	turn chan struct{} // holds one while a worker reads: a mutex is not to be waited for so long
	own  addr.Own
}

// ServePacket serves a socket until Shutdown or Close, and then returns
// [ErrServerClosed]; it always closes the socket. It may be called for several.
func (s *Packets) ServePacket(pc net.PacketConn) error {
	s.begin()
	l := &lane{s: s, pc: pc, turn: make(chan struct{}, 1), most: cmp.Or(s.MaxPacket, maxDatagram)}
	if u, ok := pc.LocalAddr().(*net.UDPAddr); ok {
		l.self = netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())
	}
	if !s.enlist(l) {
		pc.Close()
		return ErrServerClosed
	}
	defer s.delist(l)
	return l.serve()
}

func (l *lane) serve() error {
	l.s.Socket.Apply(l.pc)
	n := cmp.Or(l.s.Workers, runtime.GOMAXPROCS(0))
	ends := make([]error, n)
	var workers sync.WaitGroup
	for i := range n {
		w := l.newWorker()
		workers.Go(func() {
			ends[i] = w.run()
			l.pc.SetReadDeadline(longAgo) // one does not end alone
		})
	}
	workers.Wait()
	if isClosed(l.s.closed) {
		return ErrServerClosed
	}
	for _, err := range ends {
		if !errors.Is(err, errDeadline) {
			return err
		}
	}
	return ends[0]
}

// Apply sets the buffers of a socket, for those that read it by themselves.
func (o PacketSocket) Apply(pc net.PacketConn) {
	set := func(bytes int, set func(int) error) {
		if bytes = cmp.Or(bytes, 4<<20); bytes > 0 {
			set(bytes)
		}
	}
	if b, ok := pc.(interface {
		SetReadBuffer(int) error
		SetWriteBuffer(int) error
	}); ok {
		set(o.RecvBuf, b.SetReadBuffer)
		set(o.SendBuf, b.SetWriteBuffer)
	}
}

func (s *Packets) enlist(l *lane) bool {
	now := time.Now()
	s.started.CompareAndSwap(nil, &now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return false
	}
	s.lanes[l] = struct{}{}
	s.serving.Add(1)
	return true
}

func (s *Packets) delist(l *lane) {
	l.pc.Close()
	s.mu.Lock()
	delete(s.lanes, l)
	s.mu.Unlock()
	s.serving.Done()
}

// Shutdown stops reading and waits until what has been read is handled, and answered.
// When ctx ends before, it is as Close, and says so. Nothing runs any more when it
// returns.
func (s *Packets) Shutdown(ctx context.Context) error {
	s.begin()
	defer s.endLog(time.Second)
	s.stop(net.PacketConn.SetReadDeadline)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serving.Wait()
	}()
	select {
	case <-done:
		s.cancel(ErrServerClosed)
		return nil
	case <-ctx.Done():
	}
	s.cut()
	<-done
	return fmt.Errorf("serve: handlers were cut: %w", context.Cause(ctx))
}

// Close ends the server at once: contexts of handlers end, and replies that have not
// left are dropped. It returns when nothing runs any more; a handler that does not heed
// its context is waited for.
func (s *Packets) Close() error {
	s.begin()
	defer s.endLog(time.Second)
	s.cut()
	s.serving.Wait()
	return nil
}

func (s *Packets) cut() {
	s.cancel(ErrServerClosed)
	s.stop(net.PacketConn.SetDeadline)
}

// stop makes reads fail, and what else has this deadline. The deadline is the process's,
// not the socket's: another generation reads on.
func (s *Packets) stop(deadline func(net.PacketConn, time.Time) error) {
	s.mu.Lock()
	s.isClosed = true
	closeOnce(s.closed)
	all := make([]*lane, 0, len(s.lanes))
	for l := range s.lanes {
		all = append(all, l)
	}
	s.mu.Unlock()
	for _, l := range all {
		if deadline(l.pc, longAgo) != nil {
			l.pc.Close() // it has none
		}
	}
}

// event tells of what happened to a datagram.
func (s *Packets) event(e Event) {
	if s.Observe != nil {
		s.Observe(e)
	}
}

// ListenShards binds n sockets to one UDP address, as in udp://:7000, each of which the
// system gives a part of the clients (SO_REUSEPORT, on Linux): for more datagrams than
// one socket can take, with a ServePacket for each. A socket that is closed takes with it
// what it had not read, so for restarts one that is shared, as restart.BindPacket has
// it, is the better one.
func ListenShards(ctx context.Context, address string, n int) ([]net.PacketConn, error) {
	return listenShards(ctx, address, n)
}

// Pong answers what begins with PING by PONG, and nothing else: for tests and for checks.
func Pong(_ context.Context, p *Packet) error {
	if len(p.Data) < len(ping) || string(p.Data[:len(ping)]) != ping {
		return nil
	}
	return p.Reply(pong)
}

const ping = "PING"

var (
	pong    = []byte("PONG")
	longAgo = time.Unix(1, 0)
)
