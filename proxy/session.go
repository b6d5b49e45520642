package proxy

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/proxyproto"
	"github.com/holdfast-net/holdfast/serve"
)

// session is what comes from one client, and goes to one node at a time.
type session struct {
	h   *hub
	key sessionKey
	set *packetSettings
	way way // to the node

	index, gen int32
	pass       serve.Pass
	lease      holdfast.Lease
	place      *place // nil: the node is gone, and the next datagram goes to another
	header     []byte // of PROXY, before each datagram

	began, asked time.Duration
	waits        time.Duration // since when nothing came back; 0 is that nothing is missing
	datagrams    [2]uint64
	bytes        [2]uint64
	owed         int      // responses that are missing, if it is known how many come
	staged       [][]byte // datagrams of this batch that are to be sent
	first        []byte   // the first datagram, while nothing but it was sent and nothing came back
	tries        int      // nodes that refused since one answered
	answered     bool     // this node did
	stays        bool     // the successor could not take it
	lane         bool     // it is a node's and no client's: nothing comes back
	over         bool     // it has ended, and at most sends its last

	// In the queue of those that may be idle.
	active  time.Duration // when something came, from either side
	filed   time.Duration // what active was when it was put at the end; lag earlier at most
	assured bool          // the client was heard again after a reply
	before  *session
	after   *session
}

// sessionKey is what datagrams of one session have in common.
type sessionKey struct {
	peer   netip.AddrPort // whom replies go to
	local  netip.Addr     // from where: the address that was asked
	client netip.AddrPort // whom they are for: the peer, or who a trusted proxy says
}

// place is a node, as a hub knows it.
type place struct {
	node     *holdfast.Node
	target   *target // how to reach it; nil is that it takes more than a connect
	sessions int
	down     bool           // at the last look
	leaves   bool           // it is drained, or was removed, at the last look
	single   bool           // no runs go there
	lease    holdfast.Lease // one that was had, to tell of
	bytes    [2]uint64      // since that was told
	lane     *session       // for datagrams that need no session
}

// one passes on one datagram of a client.
func (h *hub) one(peer netip.AddrPort, local netip.Addr, data []byte) {
	key := sessionKey{peer, local, peer}
	if h.set.readsHeader() {
		n, why := h.declared(&key, data)
		if why != 0 {
			h.tally[why]++
			return
		}
		data = data[n:]
	}
	if h.set.sessionless() {
		h.passOn(key, data)
		return
	}
	s := h.table[key]
	if s == nil {
		if s = h.begins(key); s == nil {
			return
		}
	}
	if h.isLost(s) && !h.rehome(s) {
		h.tally[dropNoBackend]++
		h.end(s, NoBackend)
		return
	}
	h.forward(s, data)
}

// isLost reports whether a session is to go on at another node. One that leaves keeps
// whom it answers; that it was removed may mean that it is dead, and then nobody says so.
func (h *hub) isLost(s *session) bool {
	pl := s.place
	return pl == nil || pl.down || pl.leaves && s.waits > 0 && h.now-s.waits >= calm
}

// declared reads the PROXY header of a datagram: why is nonzero if it is to be dropped.
func (h *hub) declared(key *sessionKey, data []byte) (n int, why packetCount) {
	if !h.set.Proxy.Trusts(key.peer.Addr()) {
		if h.set.Proxy.Only {
			return 0, dropDenied
		}
		return 0, 0
	}
	head, n, err := proxyproto.Parse(data)
	switch {
	case err != nil, n == 0, head.Version != 2:
		return 0, dropBadHeader
	case !head.Local && !head.Source.IsValid():
		return 0, dropBadHeader // of a Unix socket: replies are for nobody in particular
	case !head.Local:
		key.client = head.Source
	}
	return n, 0
}

// headerOf is what a backend is told of where datagrams come from.
func (h *hub) headerOf(key sessionKey) []byte {
	if !h.set.Header {
		return nil
	}
	to := netip.AddrPortFrom(key.local, h.self.Port())
	if !to.IsValid() {
		to = h.self
	}
	b, err := proxyproto.Header{Version: 2, Source: key.client, Destination: to, Datagram: true}.Append(nil)
	if err != nil { // there is no pair of addresses to tell
		b, _ = proxyproto.Header{Version: 2, Local: true}.Append(nil)
	}
	return b
}

// begins makes a session, nil if there may be none.
func (h *hub) begins(key sessionKey) *session {
	if h.p.isOwn(key.peer) {
		h.tally[dropLoop]++
		return nil
	}
	var pass serve.Pass
	if !h.admit(&pass, key.client.Addr()) {
		h.tally[dropDenied]++
		return nil
	}
	if !h.makeRoom() {
		pass.Leave()
		h.tally[dropDenied]++
		h.tally[sessionsFull]++
		return nil
	}
	s := &session{h: h, key: key, set: h.set, pass: pass, header: h.headerOf(key), began: h.now, active: h.now, way: noWay}
	if !h.settle(s, nil) {
		pass.Leave()
		h.tally[dropNoBackend]++
		return nil
	}
	h.enlist(s)
	h.table[key] = s
	h.tally[sessionsBegun]++
	return s
}

// enlist enters a session in the books. A lane is nobody's, and takes no place.
func (h *hub) enlist(s *session) {
	h.queueOf(s).add(s)
	h.open.Add(1)
	if !s.lane {
		h.p.open.Add(1)
	}
}

// settle finds a node for a session, and a way to it. A session that has a node stays
// there if there is none but what is down, as in panic: one is as good as the other.
func (h *hub) settle(s *session, tried []*holdfast.Node) bool {
	for {
		lease, pl, err := h.pick(s, h.set.Key(Client{Addr: s.key.client}), &tried)
		if err != nil {
			return false
		}
		if s.place != nil && (pl.look() || pl == s.place) {
			lease.Done()
			return true
		}
		if h.leave(s); s.over { // by what it had to send yet
			lease.Done()
			return false
		}
		if err = h.reach(s, lease, pl); err == nil {
			return true
		}
		tried = append(tried, pl.node)
		if isLack(err) {
			h.complain("proxy: no socket for a session", err)
			return false
		}
	}
}

// reach makes the way to a node that was chosen. One that cannot be reached is blamed, and
// its lease has ended.
func (h *hub) reach(s *session, lease holdfast.Lease, pl *place) error {
	err := h.connect(s, lease, pl)
	if err != nil {
		lease.Dialed(0, &net.OpError{Op: "dial", Net: "udp", Err: err})
		lease.Done()
		return err
	}
	s.lease, s.place = lease, pl
	pl.sessions++
	return nil
}

// isLack is true of what is wrong with this host, at every node.
func isLack(err error) bool {
	e := asErrno(err)
	return e == syscall.EMFILE || e == syscall.ENFILE || e == syscall.ENOBUFS || e == syscall.ENOMEM
}

// asErrno is the system's word, 0 if it has none in it.
func asErrno(err error) (e syscall.Errno) {
	if err != nil {
		errors.As(err, &e)
	}
	return e
}

// pick chooses a node that has room, for a session or for a lane (nil).
func (h *hub) pick(s *session, key uint64, tried *[]*holdfast.Node) (holdfast.Lease, *place, error) {
	for {
		lease, err := h.set.Cluster.Pick(key, *tried)
		if err != nil {
			var ok bool
			if lease, ok = h.set.Cluster.PickDown(*tried); !ok {
				return lease, nil, err
			}
		}
		n := lease.Node()
		if n.Endpoint().Network == "udp" && h.hasRoom(n, s) {
			return lease, h.placeOf(lease), nil
		}
		*tried = append(*tried, n)
		lease.Done()
	}
}

// hasRoom reports whether a node that was picked may have a session. Where it is, it has
// its place; a lane takes none.
func (h *hub) hasRoom(n *holdfast.Node, s *session) bool {
	return h.set.PerNode <= 0 || n.InFlight() <= h.set.PerNode || s == nil || s.place != nil && s.place.node == n
}

func (h *hub) placeOf(lease holdfast.Lease) *place {
	n := lease.Node()
	pl := h.places[n]
	if pl == nil {
		pl = &place{node: n, target: datagramTarget(lease), lease: lease}
		h.places[n] = pl
	}
	return pl
}

// tell has the node count what passed.
func (pl *place) tell() {
	pl.lease.Transferred(int64(pl.bytes[client]), int64(pl.bytes[backend]))
	pl.bytes = [2]uint64{}
}

// survey finds out which nodes are down, and forgets those that nobody uses.
func (h *hub) survey() {
	for n, pl := range h.places {
		pl.look()
		pl.tell()
		if pl.sessions == 0 {
			delete(h.places, n)
		}
	}
}

// look finds out whether a node is down.
func (pl *place) look() (down bool) {
	state := pl.node.State()
	pl.leaves = state == holdfast.StateDraining
	pl.down = !state.Usable() && !pl.leaves
	return pl.down
}

// forward sends what a client sent.
func (h *hub) forward(s *session, data []byte) {
	h.touch(s)
	s.datagrams[client]++
	s.bytes[client] += uint64(len(data))
	s.place.bytes[client] += uint64(len(data))
	if !s.assured && s.datagrams[backend] > 0 {
		h.queueOf(s).remove(s)
		s.assured = true
		h.queueOf(s).add(s)
	}
	if s.first = nil; s.datagrams[client] == 1 && len(data) <= maxKept {
		s.first = slices.Clone(data)
	}
	s.owed += max(s.set.Responses, 0)
	if !h.stage(s, data) {
		return
	}
	if s.isSpent() {
		delete(h.table, s.key) // the next one begins another, and this one has its replies
		h.endOneWay(s)
	}
}

// isSpent reports whether a session takes no more datagrams of its client.
func (s *session) isSpent() bool {
	return s.set.Requests > 0 && s.datagrams[client] >= uint64(s.set.Requests)
}

// endOneWay ends a session in which nothing can come any more, once all is sent.
func (h *hub) endOneWay(s *session) {
	if s.isSpent() && s.set.Responses < 0 && !s.way.isDialing() {
		h.end(s, Answered)
	}
}

// maxKept bounds the first datagram that is kept for another node.
const maxKept = 2048

// send sends a datagram to the node of a session. It is false if the session has ended
// with that.
func (h *hub) send(s *session, data []byte) bool {
	s.asks()
	out := data
	if len(s.header) > 0 {
		h.scratch = append(append(h.scratch[:0], s.header...), data...)
		out = h.scratch
	}
	return h.wrote(s, h.write(s, out), data)
}

// wrote is what becomes of a datagram, or of the first of several that went as one.
func (h *hub) wrote(s *session, err error, data []byte) bool {
	switch asErrno(err) {
	case 0:
		if err != nil { // closed, by the node's removal
			return h.refused(s, err, data)
		}
		return true
	case syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM:
		h.tally[dropUnsent]++
		return true
	case syscall.EMSGSIZE:
		h.tally[dropTooLong]++
		return true
	default:
		return h.refused(s, err, data)
	}
}

// asks takes note that something may come back.
func (s *session) asks() {
	if s.asked = s.h.now; s.waits == 0 {
		s.waits = s.asked
	}
}

// maxRefusals is how many nodes may refuse one after the other.
const maxRefusals = 8

// refused is called when a node refuses what was sent (ICMP), or data now: then that
// goes to another, and so does the first datagram, as nobody has seen it. false is that
// the session has ended.
func (h *hub) refused(s *session, err error, data []byte) bool {
	if h.isCut() {
		return true // it was closed here
	}
	h.tally[refusals]++
	var tried []*holdfast.Node
	if s.place != nil {
		s.lease.Dialed(h.now-s.asked, &net.OpError{Op: "write", Net: "udp", Err: err})
		tried = append(tried, s.place.node)
	}
	switch {
	case s.over:
		h.tally[dropNoBackend]++
		return false
	case s.lane:
		h.forget(s)
		return false
	}
	if data == nil {
		data = s.first
	}
	h.leave(s)
	if data == nil {
		return true // the client will ask again
	}
	if s.tries++; s.tries < maxRefusals && h.settle(s, tried) {
		h.tally[rehomed]++
		return h.send(s, data)
	}
	h.tally[dropNoBackend]++
	h.end(s, NoBackend)
	return false
}

// rehome takes a session to another node, if there is a better one.
func (h *hub) rehome(s *session) bool {
	was := s.place
	if !h.settle(s, nil) {
		return false
	}
	if s.place != was {
		h.tally[rehomed]++
	}
	return true
}

// leave takes a session away from its node.
func (h *hub) leave(s *session) {
	h.ship(s)
	h.hang(s)
	s.answered, s.waits = false, 0
	if s.lease.Node() != nil {
		s.lease.Done()
		s.lease = holdfast.Lease{}
	}
	if pl := s.place; pl != nil {
		if pl.sessions--; pl.lane == s {
			pl.lane = nil
		}
		s.place = nil
	}
}

// replied takes note of n bytes that came from the node, and says whether the client gets
// them. The session may have ended with that.
func (h *hub) replied(s *session, n int) bool {
	h.tally[fromBackends]++
	h.tally[fromBackendsBytes] += uint64(n)
	if s.lane || s.set.Responses < 0 {
		h.tally[dropUnwanted]++
		return false
	}
	if s.waits = 0; !s.answered {
		h.answeredFirst(s)
	}
	if a := s.set.Amplification; a > 0 && !s.assured && float64(s.bytes[backend]+uint64(n)) > a*float64(s.bytes[client]) {
		h.tally[dropAmplified]++
		return false
	}
	h.touch(s)
	s.datagrams[backend]++
	s.bytes[backend] += uint64(n)
	if s.place != nil {
		s.place.bytes[backend] += uint64(n)
	}
	if s.owed > 0 {
		if s.owed--; s.owed == 0 {
			h.end(s, Answered)
		}
	}
	return true
}

// answeredFirst tells the Cluster that the node is well.
func (h *hub) answeredFirst(s *session) {
	s.answered, s.first, s.tries = true, nil, 0
	if s.lease.Node() != nil {
		took := h.now - s.asked
		s.lease.Dialed(took, nil)
		s.lease.Report(took, nil)
	}
}

// end closes a session.
func (h *hub) end(s *session, why Reason) {
	if !s.lane && !s.over {
		h.p.counts.ends[why].Add(1)
		h.p.logEnd(s, why)
	}
	h.forget(s)
}

// forget takes a session out of the books.
func (h *hub) forget(s *session) {
	if s.over {
		return
	}
	s.over = true
	if h.table[s.key] == s {
		delete(h.table, s.key)
	}
	h.queueOf(s).remove(s)
	h.leave(s)
	s.pass.Leave()
	h.open.Add(-1)
	if !s.lane {
		h.p.open.Add(-1)
	}
}

// passOn sends a datagram for which there is no session: each node has one lane, for all
// clients.
func (h *hub) passOn(key sessionKey, data []byte) {
	var pass serve.Pass
	if !h.admit(&pass, key.client.Addr()) {
		h.tally[dropDenied]++
		return
	}
	pass.Leave() // it was about rates, and who
	var tried []*holdfast.Node
	for range maxRefusals {
		s := h.laneTo(key, &tried)
		if s == nil {
			break
		}
		node := s.place.node
		h.touch(s)
		s.header = h.headerOf(key)
		s.place.bytes[client] += uint64(len(data))
		if h.send(s, data) {
			return
		}
		tried = append(tried, node)
	}
	h.tally[dropNoBackend]++
}

// laneTo is the lane of a node that was chosen, nil if there is none to choose.
func (h *hub) laneTo(key sessionKey, tried *[]*holdfast.Node) *session {
	for {
		lease, pl, err := h.pick(nil, h.set.Key(Client{Addr: key.client}), tried)
		if err != nil {
			return nil
		}
		if pl.lane != nil {
			lease.Done()
			return pl.lane
		}
		s := &session{h: h, set: h.set, began: h.now, active: h.now, assured: true, lane: true, way: noWay}
		if h.reach(s, lease, pl) == nil {
			pl.lane = s
			h.enlist(s)
			return s
		}
		*tried = append(*tried, pl.node)
	}
}
