package pipeline

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Client sends requests over the nodes of a Cluster. Make one with New and close it;
// the Cluster stays the caller's. All methods are safe for concurrent use.
type Client[R any] struct {
	cluster *holdfast.Cluster
	cfg     Config[R]
	calls   sync.Pool // of *call[R]
	buffers sync.Pool // of *[]byte, larger than keep
	numbers numbers
	stats   counters

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	peers  atomic.Pointer[map[*holdfast.Node]*peer[R]] // replaced under mu, never changed
	made   atomic.Uint64                               // links ever: changed under mu

	mu       sync.Mutex // before a link's
	lobby    []*call[R] // waiting for a link, in the order they came
	links    []*link[R] // all that live, those that drain too
	closing  error      // ErrClosed or errDraining, for new requests
	ushering bool
	lastErr  error         // why there is no link
	changed  chan struct{} // tells the usher
	empty    chan struct{} // closed when draining and no link is left
}

// peer is a node and its links.
type peer[R any] struct {
	node  *holdfast.Node
	name  string
	links []atomic.Pointer[link[R]] // Config.Conns of them; changed under the Client's mu

	// Guarded by the Client's mu.
	dialing   int
	failures  int           // of dials, in a row
	notBefore time.Duration // now(), for the next dial
	lost      error         // why the last link ended
}

// New returns a Client and begins to connect. It fails only if cfg is wrong:
// unreachable nodes show in the first request, or in WaitReady.
func New[R any](cluster *holdfast.Cluster, cfg Config[R]) (*Client[R], error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Client[R]{cluster: cluster, cfg: cfg, changed: make(chan struct{}, 1), empty: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.peers.Store(&map[*holdfast.Node]*peer[R]{})
	p.numbers.init(cfg.IDBits)
	p.mu.Lock()
	p.usherLocked()
	p.mu.Unlock()
	p.tasks.Go(p.watch)
	return p, nil
}

// Do sends a request and returns its reply. An error is an [*Error], but for one of
// Encode.
func (p *Client[R]) Do(ctx context.Context, req Request) (reply R, err error) {
	var one [1]R
	_, err = p.do(ctx, req, one[:])
	return one[0], err
}

// Batch sends several requests that Encode appends at once: nothing comes between
// them on the connection, and len(replies) replies belong to them. It returns how many
// came. Without Config.ID only. A batch is repeated as a whole, or not at all.
func (p *Client[R]) Batch(ctx context.Context, req Request, replies []R) (n int, err error) {
	if p.cfg.ID != nil {
		panic("pipeline: a batch has no number of its own")
	}
	if len(replies) == 0 {
		return 0, nil
	}
	return p.do(ctx, req, replies)
}

func (p *Client[R]) do(ctx context.Context, req Request, out []R) (int, error) {
	if ctx.Err() != nil {
		return 0, &Error{NotSent, "", ended(ctx)}
	}
	p.cfg.Budget.Deposit()
	p.stats.requests.Add(1)
	t := trip[R]{p: p, ctx: ctx}
	c := p.newCall(len(out))
	for {
		t.attempt++
		t.refused = false
		err := t.encode(c, req)
		if err == nil {
			err = t.run(c)
		}
		if t.gone {
			p.stats.failures.Add(1)
			return 0, err // and so is the call
		}
		if t.again(req, err) {
			continue
		}
		n := copy(out, c.replies)
		p.recycle(c)
		if err != nil {
			p.stats.failures.Add(1)
		}
		return n, err
	}
}

// trip is the state of one request.
type trip[R any] struct {
	p       *Client[R]
	ctx     context.Context
	attempt int
	tried   []*holdfast.Node
	refused bool // the last reply was Config.Refused
	gone    bool // the caller has left: the call is not ours any more
}

func (t *trip[R]) encode(c *call[R], req Request) (err error) {
	c.reset(req.Slow)
	if t.p.cfg.ID != nil && c.id == 0 {
		if c.id = t.p.numbers.take(); c.id == 0 {
			return &Error{NotSent, "", ErrFull}
		}
	}
	if c.buf == nil {
		if b, ok := t.p.buffers.Get().(*[]byte); ok {
			c.buf = *b
		}
	}
	encoded := false
	defer func() {
		if !encoded { // it panicked
			t.p.recycle(c)
		}
	}()
	c.buf, err = req.Encode(c.buf[:0], c.id)
	encoded = true
	if err == nil && len(c.buf) == 0 {
		err = errors.New("pipeline: an empty request")
	}
	return err
}

// run makes one attempt.
func (t *trip[R]) run(c *call[R]) error {
	made := t.p.made.Load()
	l, lease, err := t.p.choose(t.tried)
	if l == nil {
		if err = t.wait(c, made, err); !t.gone && c.link != nil {
			err = t.judge(c, c.link.lease, -1, err)
		}
		return err
	}
	defer lease.Done()
	start := now()
	err = t.exchange(c, l)
	return t.judge(c, lease, now()-start, err)
}

// judge tells the Cluster how the node fared, unless nothing was sent, and notes
// whether another one should be tried.
func (t *trip[R]) judge(c *call[R], lease holdfast.Lease, took time.Duration, err error) error {
	if err == nil {
		var why error
		if t.p.cfg.Refused != nil && c.want == 1 {
			why = t.p.cfg.Refused(c.replies[0])
		}
		if t.refused = why != nil; t.refused {
			t.tried = append(t.tried, lease.Node())
		}
		lease.Report(took, holdfast.Unprocessed(why))
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if ok && e.Outcome == Unknown {
		lease.Report(took, e.Err)
	}
	if ok && e.Node != "" {
		t.tried = append(t.tried, lease.Node())
	}
	return err
}

// exchange is one attempt on a link.
func (t *trip[R]) exchange(c *call[R], l *link[R]) error {
	if l.beAlone(c) {
		err, left := l.exchange(t.ctx, c)
		t.gone = left
		return err
	}
	if err := l.admit(c); err != nil {
		return &Error{NotSent, l.peer.name, err}
	}
	return t.await(c, t.p.cfg.WaitFull, ErrFull)
}

// wait is one attempt without a link: in the lobby.
func (t *trip[R]) wait(c *call[R], made uint64, why error) error {
	c.avoid = t.tried
	again, err := t.p.enter(c, made, why)
	if again {
		return &Error{NotSent, "", errAgain}
	}
	if err != nil {
		return err
	}
	return t.await(c, t.p.cfg.WaitDown, ErrDown)
}

// await waits for the end of a call that is in a list or under way. limit bounds how
// long it may be in a list.
func (t *trip[R]) await(c *call[R], limit time.Duration, late error) error {
	if c.waiting.Load() == nowhere && t.ctx.Done() == nil {
		<-c.done
		return c.err
	}
	var timer <-chan time.Time
	if c.waiting.Load() != nowhere && limit > 0 {
		timeout := time.NewTimer(limit)
		defer timeout.Stop()
		timer = timeout.C
	}
	for {
		var cause error
		select {
		case <-c.done:
			return c.err
		case <-timer:
			timer = nil
			if c.waiting.Load() == nowhere {
				continue // it is under way
			}
			cause = t.p.down(late)
		case <-t.ctx.Done():
			cause = ended(t.ctx)
		}
		if err := t.p.leave(c, cause); err != nil {
			t.gone = true
			return err
		}
		<-c.done // it is over already
		return c.err
	}
}

// errAgain is that there is a connection after all.
var errAgain = errors.New("pipeline: a connection came up just now")

// again decides whether to try once more.
func (t *trip[R]) again(req Request, err error) bool {
	if err == nil && !t.refused {
		return false
	}
	e, ok := errors.AsType[*Error](err)
	switch {
	case t.ctx.Err() != nil:
		return false
	case errors.Is(err, errAgain):
		t.attempt--
		return true
	case t.attempt >= t.p.cfg.Attempts:
		return false
	case t.refused:
	case !ok, e.Outcome == Replied, errors.Is(err, ErrFull), errors.Is(err, ErrDown), errors.Is(err, ErrClosed):
		return false
	case e.Outcome == NotSent:
		t.p.stats.retries.Add(1)
		return true
	case req.Safety != holdfast.Idempotent:
		return false
	}
	return t.p.cfg.Budget.Withdraw()
}

// choose returns a link to a node of the Cluster's choice. Nodes without one are
// connected to, and passed over meanwhile.
func (p *Client[R]) choose(tried []*holdfast.Node) (*link[R], holdfast.Lease, error) {
	for {
		lease, err := p.cluster.Pick(0, tried)
		if err != nil {
			return nil, lease, err
		}
		l, full := p.peerOf(lease.Node()).best()
		if !full {
			p.connect(lease)
		}
		if l != nil {
			return l, lease, nil
		}
		lease.Done()
		tried = append(tried[:len(tried):len(tried)], lease.Node())
	}
}

// best is the link with the least to do; full is that all are there.
func (pr *peer[R]) best() (best *link[R], full bool) {
	full = true
	for i := range pr.links {
		l := pr.links[i].Load()
		switch {
		case l == nil || l.over.Load():
			full = false
		case best == nil || l.load() < best.load():
			best = l
		}
	}
	return best, full
}

func (p *Client[R]) peerOf(n *holdfast.Node) *peer[R] {
	if pr := (*p.peers.Load())[n]; pr != nil {
		return pr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.peers.Load()
	if pr := old[n]; pr != nil {
		return pr
	}
	all := make(map[*holdfast.Node]*peer[R], len(old)+1)
	for node, pr := range old {
		if node.State() != holdfast.StateDraining || slices.ContainsFunc(p.links, func(l *link[R]) bool { return l.peer == pr }) {
			all[node] = pr
		}
	}
	all[n] = &peer[R]{node: n, name: n.String(), links: make([]atomic.Pointer[link[R]], p.cfg.Conns)}
	p.peers.Store(&all)
	return all[n]
}

// enter puts a call into the lobby. again is that a link was made since made was read.
func (p *Client[R]) enter(c *call[R], made uint64, why error) (again bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closing != nil:
		return false, &Error{NotSent, "", p.closing}
	case errors.Is(why, holdfast.ErrClosed), errors.Is(why, holdfast.ErrDraining):
		return false, &Error{NotSent, "", why}
	case p.made.Load() != made:
		return true, nil
	case p.cfg.WaitDown < 0:
		p.usherLocked()
		return false, &Error{NotSent, "", errors.Join(ErrDown, p.lastErr, why)}
	case len(p.lobby) >= maxLobby:
		return false, &Error{NotSent, "", ErrFull}
	}
	c.waiting.Store(inLobby)
	p.lobby = append(p.lobby, c)
	p.usherLocked()
	return false, nil
}

// maxLobby bounds who waits for a connection, and for room on one.
const maxLobby = 64 << 10

// leave is a caller's whose call is not over. The error says whether the peer can have
// acted; nil is that the call has just ended. The call may be somebody else's the
// moment its state has changed, unless it was in a list: then it is the caller's still.
func (p *Client[R]) leave(c *call[R], cause error) error {
	if p.leaveLobby(c) {
		p.recycle(c)
		return &Error{NotSent, "", cause}
	}
	l := c.link // it only moves on: from the lobby to the link, from the line to the queue
	switch {
	case l == nil: // it ended in the lobby
	case l.leave(c):
		p.recycle(c)
		return &Error{NotSent, l.peer.name, cause}
	case c.state.CompareAndSwap(queued, canceled):
		return &Error{NotSent, l.peer.name, cause} // the writer finds it
	case c.state.CompareAndSwap(sent, abandoned):
		return &Error{Unknown, l.peer.name, cause} // the reader does
	}
	return nil
}

func (p *Client[R]) leaveLobby(c *call[R]) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.waiting.Load() != inLobby {
		return false
	}
	c.waiting.Store(nowhere)
	i := slices.Index(p.lobby, c)
	p.lobby = slices.Delete(p.lobby, i, i+1)
	return true
}

// down adds to an end of waiting why there is no connection.
func (p *Client[R]) down(late error) error {
	if late != ErrDown {
		return late
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lastErr == nil {
		return late
	}
	return errors.Join(late, p.lastErr)
}

// WaitReady returns when there is a connection, or with why there is none: the end of
// ctx, or an error of the handshake that is Permanent.
func (p *Client[R]) WaitReady(ctx context.Context) error {
	for {
		p.mu.Lock()
		up := slices.ContainsFunc(p.links, func(l *link[R]) bool { return !l.over.Load() })
		closing, last := p.closing, p.lastErr
		p.usherLocked()
		p.mu.Unlock()
		switch {
		case closing != nil:
			return closing
		case up:
			return nil
		case permanent(last):
			return last
		}
		select {
		case <-ctx.Done():
			return errors.Join(ended(ctx), last)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// permanent reports that err was marked by holdfast.Permanent. Only an Error can tell, and
// that of a handshake may be none.
func permanent(err error) bool { return (&holdfast.Error{Err: err}).Permanent() }

// Shutdown ends the Client in peace: new requests fail, those under way are waited
// for, then all is closed. When ctx ends first it is as Close, and the error is ctx's.
func (p *Client[R]) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	if p.closing == nil {
		p.closing = errDraining
	}
	p.failLobbyLocked(errDraining)
	links := slices.Clone(p.links)
	p.emptiedLocked()
	p.mu.Unlock()
	for _, l := range links {
		l.drain()
	}
	var err error
	select {
	case <-p.empty:
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.Close()
	return err
}

// emptiedLocked tells Shutdown that no link is left.
func (p *Client[R]) emptiedLocked() {
	if p.closing != nil && len(p.links) == 0 {
		select {
		case <-p.empty:
		default:
			close(p.empty)
		}
	}
}

// Close cuts every connection and waits until nothing is left. Requests under way
// fail. Exclusive connections are their holders' to end. Closing twice is harmless.
func (p *Client[R]) Close() error {
	p.mu.Lock()
	p.closing = ErrClosed
	p.failLobbyLocked(ErrClosed)
	links := slices.Clone(p.links)
	p.mu.Unlock()
	p.cancel()
	for _, l := range links {
		l.fail(ErrClosed)
	}
	p.tasks.Wait()
	return nil
}

func (p *Client[R]) failLobbyLocked(err error) {
	for _, c := range p.lobby {
		c.waiting.Store(nowhere)
		if !c.finish(queued, &Error{NotSent, "", err}) {
			p.recycle(c)
		}
	}
	p.lobby = nil
}

// watch gives up links whose oldest request is late, and lets those of nodes that were
// removed end.
func (p *Client[R]) watch() {
	tick := time.NewTicker(min(max(p.cfg.Stall/4, time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		links := slices.Clone(p.links)
		p.mu.Unlock()
		for _, l := range links {
			if at := l.overdue.Load(); at != 0 && int64(now()) > at {
				p.stats.stalls.Add(1)
				l.fail(ErrStalled)
			}
			if l.peer.node.State() == holdfast.StateDraining {
				l.drain()
			}
		}
	}
}

// numbers are the ids of requests: in sequence, and none twice at once.
type numbers struct {
	mu   sync.Mutex
	last uint64
	mask uint64
	live map[uint64]struct{}
}

func (n *numbers) init(bits int) {
	n.mask = 1<<bits - 1 // all ones for 64
	n.last = rand.Uint64()
	n.live = map[uint64]struct{}{}
}

// take returns 0 when there are too many. 0 is no number: protocols give it a meaning
// of its own.
func (n *numbers) take() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if uint64(len(n.live)) > n.mask/2 {
		return 0
	}
	for {
		n.last++
		id := n.last & n.mask
		if _, taken := n.live[id]; !taken && id != 0 {
			n.live[id] = struct{}{}
			return id
		}
	}
}

func (n *numbers) release(id uint64) {
	n.mu.Lock()
	delete(n.live, id)
	n.mu.Unlock()
}
