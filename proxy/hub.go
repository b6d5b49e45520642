package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/mmsg"
)

// hub is a socket in front and the sessions of its clients. All of it is touched by one
// goroutine, but for what says otherwise; others post.
type hub struct {
	poller
	p      *Packets
	addr   string
	served bool // guarded by p.mu: a socket belongs to it
	open   atomic.Int64

	pc     net.PacketConn // nil: sessions were handed over, and the socket has not come yet
	conn   *mmsg.Conn
	self   netip.AddrPort
	in     []mmsg.Message
	out    []mmsg.Message // replies, in rooms
	rooms  [][]byte
	used   int           // rooms that may hold one
	heard  bool          // the socket is read
	pause  time.Duration // after the last failed read; 0 when it went well
	readBy sync.WaitGroup

	readers
	set     *packetSettings
	now     time.Duration
	table   map[sessionKey]*session
	slots   []*session // by their index
	gens    []int32
	free    []int32
	queues  [2]lessees // not assured, and assured
	places  map[*holdfast.Node]*place
	away    int           // sessions whose hand-over is under way
	asked   bool          // another hub, to make room
	kept    bool          // it did, and the place is counted
	looked  time.Duration // when nodes were looked at
	scratch []byte
	staged  []*session // that have something to be sent
	tally   packetTally
	logged  time.Duration
	silent  int

	over   bool
	err    error // of reading the socket, for good
	wasCut int   // sessions; to be read when done is closed
	tasks  sync.WaitGroup
	done   chan struct{}
}

const (
	packetBatch = 64
	// roomSize holds any datagram. Not a power of two, or rooms would share few lines of
	// the cache.
	roomSize = 1<<16 + 64
)

func newHub(p *Packets, addr string) (*hub, error) {
	h := &hub{
		p: p, addr: addr, set: p.set.Load(), now: p.clock(), done: make(chan struct{}),
		table: map[sessionKey]*session{}, places: map[*holdfast.Node]*place{},
	}
	if err := h.poller.open(p.clock, h.due); err != nil {
		return nil, err
	}
	return h, nil
}

// serve passes on what comes to a socket, until the hub ends.
func (h *hub) serve(pc net.PacketConn) error {
	h.p.set.Load().Socket.Apply(pc)
	// A socket that takes nothing must not hold up the end.
	defer context.AfterFunc(h.p.base, func() { pc.SetWriteDeadline(longAgo) })()
	if !h.post(func() { h.begin(pc) }) {
		pc.Close()
		return ErrClosed
	}
	<-h.done
	pc.Close()
	h.readBy.Wait()
	if h.err != nil {
		return h.err
	}
	return ErrClosed
}

func (h *hub) begin(pc net.PacketConn) {
	h.pc, h.conn = pc, mmsg.New(pc, mmsg.Options{NoGSO: h.set.Socket.NoGSO, GRO: h.set.Socket.GRO, Loop: true})
	if u, ok := pc.LocalAddr().(*net.UDPAddr); ok {
		h.self = netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port())
		h.p.addFront(h.self)
	}
	h.in = rooms(h.conn.Batch(packetBatch))
	for _, m := range rooms(packetBatch) {
		h.rooms = append(h.rooms, m.Buf)
	}
	h.out = make([]mmsg.Message, 0, packetBatch)
	h.furnish()
	if !h.p.leaves.Load() {
		h.listen()
	}
	h.each(func(s *session) { // they were handed over
		s.header = h.headerOf(s.key)
		if h.watch(s) != nil {
			h.end(s, Cut)
		}
	})
}

// rooms are messages, with memory that is used only as far as datagrams are long.
func rooms(n int) []mmsg.Message {
	memory := make([]byte, n*roomSize)
	ms := make([]mmsg.Message, n)
	for i := range ms {
		ms[i].Buf = memory[i*roomSize:][: 1<<16 : 1<<16]
	}
	return ms
}

// run is the hub.
func (h *hub) run() {
	defer close(h.done)
	for h.away > 0 || !h.over && !(h.p.ending.Load() && h.open.Load() == 0) {
		h.turn()
		h.expire()
		h.flush()
	}
	h.last() // what comes with it, such as sessions of the predecessor, ends too
	h.unkeep()
	h.each(func(s *session) {
		if !s.lane {
			h.wasCut++
		}
		h.end(s, Cut)
	})
	h.flush()
	h.survey()
	h.deafen()
	h.p.counts.add(&h.tally)
	h.p.forget(h)
	h.tasks.Wait()
	h.shut()
}

// each calls do for every session, which it may end.
func (h *hub) each(do func(*session)) {
	for i := range h.queues {
		for s := h.queues[i].first; s != nil; {
			after := s.after
			do(s)
			s = after
		}
	}
}

func (p *Packets) forget(h *hub) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.fronts, h.self); i >= 0 { // one of them: shards have one address
		p.fronts = append(p.fronts[:i:i], p.fronts[i+1:]...)
	}
	p.hubs = slices.DeleteFunc(p.hubs, func(o *hub) bool { return o == h })
}

// cut ends a hub at once.
func (h *hub) cut() { h.post(func() { h.over = true }) }

// isCut reports whether it is about to be: its connections are closed already.
func (h *hub) isCut() bool { return h.p.base.Err() != nil }

// arrive takes a batch, whose memory is used again afterwards.
func (h *hub) arrive(ms []mmsg.Message) {
	for i := range ms {
		h.arriveAs(&ms[i])
	}
	h.shipAll()
}

// arriveAs takes what came as one: a datagram, or a run of them.
func (h *hub) arriveAs(m *mmsg.Message) {
	data := m.Buf[:m.N:m.N]
	h.tally[fromClientsBytes] += uint64(m.N)
	switch {
	case m.Truncated:
		h.tally[fromClients]++
		h.tally[dropTooLong]++
		return
	case addr.AnswersAnything(m.Peer.Port()), h.isOwn(m): // a node cannot tell: it hears us
		h.tally[fromClients]++
		h.tally[dropLoop]++
		return
	}
	if m.Segment <= 0 {
		h.tally[fromClients]++
		h.one(m.Peer, m.Local, data)
		return
	}
	for len(data) > 0 {
		n := min(m.Segment, len(data))
		h.tally[fromClients]++
		h.one(m.Peer, m.Local, data[:n:n])
		data = data[n:]
	}
}

// isOwn reports whether a datagram comes from the very address it was sent to. For what
// else may be our own see Packets.isOwn.
func (h *hub) isOwn(m *mmsg.Message) bool {
	return m.Peer.Port() == h.self.Port() && (m.Peer.Addr() == h.self.Addr() || m.Peer.Addr() == m.Local)
}

// take is the first of n rooms for replies.
func (h *hub) take(n int) int {
	if h.used+n > len(h.rooms) {
		h.flush()
	}
	h.used += n
	return h.used - n
}

// reply passes on n bytes in a room, with the batch, if the client is to have them.
func (h *hub) reply(s *session, room, n int) {
	key := s.key
	if h.replied(s, n) {
		h.out = append(h.out, mmsg.Message{Buf: h.rooms[room][:n], Peer: key.peer, Local: key.local})
	}
}

// flush sends what is to be delivered.
func (h *hub) flush() {
	h.p.counts.add(&h.tally) // first, so that who has a reply finds it counted
	h.used = 0
	if len(h.out) == 0 {
		return
	}
	failed, err := h.conn.Send(h.out)
	h.tally[dropUnsent] += uint64(failed)
	h.out = h.out[:0]
	if errors.Is(err, net.ErrClosed) {
		h.readFailed(err)
	}
}

// readFailed lets the socket rest, ever longer: what the error is does not matter,
// unless it is closed.
func (h *hub) readFailed(err error) {
	if errors.Is(err, net.ErrClosed) {
		h.err, h.over = err, true
		return
	}
	h.pause = min(max(2*h.pause, firstPause), lastPause)
	h.complain("proxy: read", err)
	h.deafen()
	time.AfterFunc(h.pause, func() {
		h.post(func() {
			if !h.over && !h.p.leaves.Load() {
				h.listen()
			}
		})
	})
}

const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// complain logs once a second.
func (h *hub) complain(what string, err error) {
	if h.logged != 0 && h.now-h.logged < time.Second {
		h.silent++
		return
	}
	h.p.log.Error(what, "addr", h.addr, "err", err, "unlogged", h.silent)
	h.logged, h.silent = h.now, 0
}

var longAgo = time.Unix(1, 0)

// calm is for how long nothing comes to a session that ends when the proxy does.
const calm = time.Second

// idle is how long a session may be idle now; 0 is for ever.
func (h *hub) idle() time.Duration {
	if d := h.set.idle; !h.p.ending.Load() || d > 0 && d < calm {
		return d
	}
	return calm
}

// expire ends what is idle, and looks after the nodes.
func (h *hub) expire() {
	if h.now-h.looked >= every {
		h.looked = h.now
		h.survey()
		if err := h.frontError(); err != nil {
			h.readFailed(err)
		}
	}
	idle, why := h.idle(), Idle
	if idle == 0 {
		return
	}
	if h.p.ending.Load() {
		why = Drained
	}
	for i := range h.queues {
		for s := h.queues[i].first; s != nil && h.now-s.active >= idle; s = h.queues[i].first {
			h.end(s, why)
		}
	}
}

// due is when expire has something to do; negative is never.
func (h *hub) due() time.Duration {
	if len(h.places) == 0 && h.open.Load() == 0 {
		if h.pc == nil {
			return -1
		}
		return h.looked + time.Second // for frontError
	}
	due := h.looked + every
	if idle := h.idle(); idle > 0 {
		for i := range h.queues {
			if s := h.queues[i].first; s != nil {
				due = min(due, s.active+idle)
			}
		}
	}
	return due
}

// number gives a session an index, under which events find it.
func (h *hub) number(s *session) {
	if n := len(h.free); n > 0 {
		s.index, h.free = h.free[n-1], h.free[:n-1]
	} else {
		s.index = int32(len(h.slots))
		h.slots, h.gens = append(h.slots, nil), append(h.gens, 0)
	}
	s.gen = h.gens[s.index]
	h.slots[s.index] = s
}

// unnumber takes the index back.
func (h *hub) unnumber(s *session) {
	if h.slots[s.index] != s || s.gen != h.gens[s.index] {
		return
	}
	h.slots[s.index] = nil
	h.gens[s.index] = (s.gen + 1) & maxGen
	h.free = append(h.free, s.index)
}

// maxGen bounds generations: an event carries one, and a bit.
const maxGen = 1<<30 - 1

// find is nil if the session has ended, or goes another way by now.
func (h *hub) find(r ref) *session {
	if s := h.slots[r.index]; s != nil && s.gen == r.gen {
		return s
	}
	return nil
}

// ref is a slot, or a session, as others know it.
type ref struct{ index, gen int32 }
