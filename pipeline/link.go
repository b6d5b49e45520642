package pipeline

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
)

// link is one connection and what is under way on it. It never comes back: when it
// fails, its calls are told what is known of them, and another link takes its place.
//
// Two goroutines serve it, a writer and a reader, and run waits for both. While only
// one caller at a time uses it, the reader is parked, and that caller reads for
// itself: alone is the right to do so.
type link[R any] struct {
	p      *Client[R]
	peer   *peer[R]
	lease  holdfast.Lease // that it was dialed with: it is over, and can still report
	conn   *holdfast.Conn
	in     *stream[R] // whoever reads owns it: the reader, or a caller who is alone
	taken  []*call[R] // sent and next to be answered, in order; goes with in
	at     int        // of the next one in taken
	pushes chan R     // to the goroutine that calls OnPush
	dead   chan struct{}

	overdue atomic.Int64 // now() at which the oldest request will be late; 0 is none
	over    atomic.Bool  // it takes no more requests

	mu       sync.Mutex
	queue    []*call[R]          // to be written
	flight   []*call[R]          // written, and not yet taken
	ids      map[uint64]*call[R] // instead of flight, where replies have numbers
	line     []*call[R]          // waiting for room
	count    int                 // calls in queue, in flight or taken: the window
	bytes    int                 // in queue
	handed   uint64
	accepted uint64 // bytes that the kernel took
	writing  bool
	draining bool
	err      error // why it failed

	// The reader is parked when nobody but a caller who is alone may read.
	parked bool
	alone  bool // a caller is
	idle   bool // the writer waits
	used   bool // by such a caller, since the reader last looked
	single int  // how often in a row a caller was the only one

	wakeWriter, wakeReader chan struct{}
	sending                atomic.Bool   // a caller who is alone writes
	interrupt              func()        // ends what such a caller waits for
	interrupted            chan struct{} // and tells that it did
}

const (
	// yieldBelow is how much may have gathered for the writer to let others add to it
	// before it sends: batches decide the throughput, and a lone runnable goroutine
	// would send alone. Above it, waiting would only cost.
	yieldBelow      = 64
	yieldBelowBytes = 16 << 10

	// maxBatch bounds what is written at once, so that the first reply is not waited
	// for longer than needed. largeRequest is written as it is, without a copy.
	maxBatch      = 512
	maxBatchBytes = largeBuffer
	largeRequest  = 8 << 10

	// lonely is how often a caller must have been the only one for the reader to let
	// the next one read for itself.
	lonely = 8

	// idleAfter is how long a link is left to callers who are alone without being used,
	// before the reader watches it again.
	idleAfter = 100 * time.Millisecond
)

func newLink[R any](p *Client[R], peer *peer[R], lease holdfast.Lease, s *stream[R]) *link[R] {
	l := &link[R]{
		p: p, peer: peer, lease: lease, conn: s.conn, in: s, dead: make(chan struct{}),
		parked:     p.cfg.OnPush == nil,
		wakeWriter: make(chan struct{}, 1), wakeReader: make(chan struct{}, 1), interrupted: make(chan struct{}, 1),
	}
	if p.cfg.ID != nil {
		l.ids = map[uint64]*call[R]{}
	}
	l.interrupt = func() {
		if l.sending.Load() {
			l.conn.SetDeadline(time.Unix(1, 0))
		} else {
			l.conn.SetReadDeadline(time.Unix(1, 0))
		}
		l.interrupted <- struct{}{}
	}
	if p.cfg.OnPush != nil {
		l.pushes = make(chan R, maxPushes)
	}
	return l
}

// run serves the link until it fails, and then tells everybody.
func (l *link[R]) run() {
	var wg sync.WaitGroup
	if l.pushes != nil {
		wg.Go(l.deliver)
	}
	wg.Go(l.write)
	wg.Go(l.read)
	<-l.dead
	l.conn.Close()
	wg.Wait()
	l.settle()
}

// admit puts a call on the link: into the queue, or into the line if it is full and
// the call may wait.
func (l *link[R]) admit(c *call[R]) error {
	l.mu.Lock()
	err := l.admitLocked(c)
	wake := err == nil && l.wakeWriterLocked()
	l.mu.Unlock()
	if wake {
		signal(l.wakeWriter)
	}
	return err
}

func (l *link[R]) admitLocked(c *call[R]) error {
	switch {
	case l.err != nil:
		return l.err
	case l.draining:
		return errDraining
	}
	c.link = l
	if !l.roomLocked(c) || len(l.line) > 0 {
		if l.p.cfg.WaitFull < 0 {
			return ErrFull
		}
		c.waiting.Store(inLine)
		l.line = append(l.line, c)
		return nil
	}
	l.enqueueLocked(c)
	return nil
}

func (l *link[R]) roomLocked(c *call[R]) bool {
	return l.count < l.p.cfg.Window && (l.bytes == 0 || l.bytes+len(c.buf) <= l.p.cfg.WindowBytes)
}

func (l *link[R]) enqueueLocked(c *call[R]) {
	l.startLocked(c)
	l.queue = append(l.queue, c)
	l.bytes += len(c.buf)
}

// startLocked counts a call. The first one starts the watch over the oldest.
func (l *link[R]) startLocked(c *call[R]) {
	if l.count == 0 {
		l.watch(c.slow)
	}
	l.count++
	if l.ids != nil {
		l.ids[c.id] = c
	}
}

// watch sets when the link will be given up; slow is the oldest call's.
func (l *link[R]) watch(slow time.Duration) {
	if stall := max(l.p.cfg.Stall, slow); stall != never {
		l.overdue.Store(int64(now() + stall))
	}
}

// wakeWriterLocked reports whether the writer is to be woken.
func (l *link[R]) wakeWriterLocked() bool {
	wake := l.idle && len(l.queue) > 0
	if wake {
		l.idle = false
	}
	return wake
}

// signal wakes a goroutine, which looks again whenever it was woken.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// leave takes a call whose caller has gone out of the line.
func (l *link[R]) leave(c *call[R]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.waiting.Load() != inLine {
		return false
	}
	c.waiting.Store(nowhere)
	i := slices.Index(l.line, c)
	l.line = slices.Delete(l.line, i, i+1)
	return true
}

// releaseLocked makes room for n further calls, for those in line first.
func (l *link[R]) releaseLocked(n int) {
	l.count -= n
	i := 0
	for ; i < len(l.line) && l.roomLocked(l.line[i]); i++ {
		l.line[i].waiting.Store(nowhere)
		l.enqueueLocked(l.line[i])
	}
	if i > 0 {
		l.line = slices.Delete(l.line, 0, i)
	}
	if l.count == 0 {
		l.overdue.Store(0)
		if l.draining {
			l.failLocked(errDraining)
		}
	}
}

// write is the writer: it sends what has gathered, in one piece.
func (l *link[R]) write() {
	var out outgoing[R]
	for batch := l.gather(nil); batch != nil; batch = l.gather(batch) {
		for rest := batch; len(rest) > 0; {
			n, err := l.send(rest, &out)
			rest = rest[n:]
			if err != nil {
				l.mu.Lock()
				l.queue = slices.Concat(rest, l.queue)
				l.mu.Unlock()
				l.fail(err)
				return
			}
		}
	}
}

// outgoing is what the writer needs for one piece, and uses again for the next.
type outgoing[R any] struct {
	calls []*call[R]
	small []byte // requests, copied together
	large []byte // and one that follows them, as it is
	bytes int    // that leave the queue
	left  int    // calls that were canceled
}

// gather waits for requests; nil is that there will be none. What was written until now
// becomes the next queue.
func (l *link[R]) gather(written []*call[R]) []*call[R] {
	clear(written)
	l.mu.Lock()
	defer l.mu.Unlock()
	if written != nil {
		l.writing = false
	}
	for l.err == nil && (len(l.queue) == 0 || l.writing) {
		l.idle = true
		l.pause(l.wakeWriter, l.dead)
	}
	if l.err != nil {
		return nil
	}
	if l.count > len(l.queue) && len(l.queue) < yieldBelow && l.bytes < yieldBelowBytes {
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
	batch := l.queue
	l.queue = written[:0]
	l.writing = true
	return batch
}

// pause waits without the lock.
func (l *link[R]) pause(wake, dead chan struct{}) {
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-wake:
	case <-dead:
	}
}

// send writes the first n calls of a batch. From the moment that a call is taken its
// reply may come, so it is in flight before its bytes are.
func (l *link[R]) send(batch []*call[R], out *outgoing[R]) (n int, err error) {
	n = l.take(batch, out)
	l.mu.Lock()
	l.bytes -= out.bytes
	if l.ids == nil {
		l.flight = append(l.flight, out.calls...)
	}
	if out.left > 0 {
		l.releaseLocked(out.left)
	}
	l.mu.Unlock()
	if err = l.put(out.small); err == nil {
		err = l.put(out.large)
	}
	clear(out.calls)
	if out.large != nil {
		l.p.putBuffer(out.large)
	}
	out.large = nil
	if cap(out.small) > 2*maxBatchBytes {
		out.small = nil
	}
	return n, err
}

// take collects what goes in one piece.
func (l *link[R]) take(batch []*call[R], out *outgoing[R]) (n int) {
	*out = outgoing[R]{calls: out.calls[:0], small: out.small[:0]}
	for _, c := range batch[:min(len(batch), maxBatch)] {
		if n > 0 && (len(out.small)+len(c.buf) > maxBatchBytes || out.large != nil) {
			break
		}
		n++
		out.bytes += len(c.buf)
		if !c.take() {
			out.left++
			l.forget(c)
			continue
		}
		l.handed += uint64(len(c.buf))
		c.end = l.handed
		if len(c.buf) >= largeRequest {
			out.large, c.buf = c.buf, nil // the reply may come, and the call be used again, before Write returns
		} else {
			out.small = append(out.small, c.buf...)
			l.p.spare(c)
		}
		out.calls = append(out.calls, c)
	}
	return n
}

// put writes, and counts what the kernel takes.
func (l *link[R]) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	n, err := l.conn.Write(b)
	l.p.stats.writes.Add(1)
	l.mu.Lock()
	l.accepted += uint64(n)
	l.mu.Unlock()
	return err
}

// forget drops a call that was canceled before it was sent.
func (l *link[R]) forget(c *call[R]) {
	if l.ids != nil {
		l.mu.Lock()
		delete(l.ids, c.id)
		l.mu.Unlock()
	}
	l.p.recycle(c)
}

// fail ends the link: the writer and the reader leave, and run tells the callers.
func (l *link[R]) fail(err error) {
	l.mu.Lock()
	l.failLocked(err)
	l.mu.Unlock()
}

func (l *link[R]) failLocked(err error) {
	if l.err == nil {
		l.err = err
		l.over.Store(true)
		close(l.dead)
	}
}

// timedOut reports an end by a deadline, which only interrupt sets.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// outcomeOf is what is known of a call that was handed to a link which failed: what the
// kernel did not take all of was not sent.
func (l *link[R]) outcomeOf(c *call[R]) Outcome {
	if c.end <= l.accepted {
		return Unknown
	}
	return NotSent
}

// settle completes all calls of a link that failed, when nobody reads or writes it
// any more.
func (l *link[R]) settle() {
	l.mu.Lock()
	all := slices.Concat(l.taken[l.at:], l.flight, l.queue, l.line)
	for _, c := range l.ids {
		if !slices.Contains(l.queue, c) {
			all = append(all, c)
		}
	}
	for _, c := range l.line {
		c.waiting.Store(nowhere) // from here on it is not theirs to leave
	}
	l.taken, l.flight, l.queue, l.line, l.ids = nil, nil, nil, nil, nil
	l.mu.Unlock()
	for _, c := range all {
		from, outcome := queued, NotSent
		if state := c.state.Load(); state == sent || state == abandoned {
			from, outcome = sent, l.outcomeOf(c)
		}
		if !c.finish(from, &Error{outcome, l.peer.name, l.err}) {
			l.p.recycle(c) // its caller has left
		}
	}
}

// deliver calls OnPush.
func (l *link[R]) deliver() {
	for v := range l.pushes {
		if err := l.hand(v); err != nil {
			l.fail(err)
		}
	}
}

func (l *link[R]) hand(v R) (err error) {
	defer rescue(&err)
	l.p.cfg.OnPush(v)
	return nil
}

// push passes on what the peer sent by itself, or drops it.
func (l *link[R]) push(v R) {
	l.p.stats.pushes.Add(1)
	select {
	case l.pushes <- v: // nil drops all
	default:
		l.p.stats.pushesDropped.Add(1)
	}
}

// drain lets the link end when its calls have.
func (l *link[R]) drain() {
	l.mu.Lock()
	l.draining = true
	l.over.Store(true)
	if l.count == 0 {
		l.failLocked(errDraining)
	}
	l.mu.Unlock()
}

// load is how many calls there are.
func (l *link[R]) load() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count + len(l.line)
}
