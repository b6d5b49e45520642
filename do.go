package holdfast

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Safety says whether an operation may run twice. There is no default: replaying
// must be typed.
type Safety uint8

const (
	Unsafe     Safety = iota // once a byte is written, never again
	Idempotent               // running it twice does no harm
)

// Do runs fn on a pooled connection, and again on another node when it failed in
// a way that is safe to repeat and worth repeating:
//
//   - nothing could be dialed, or nothing was written: always;
//   - something was written and the connection broke or timed out: only if s is
//     [Idempotent];
//   - the error is marked [Unprocessed]: always;
//   - any other error of fn is its own: never.
//
// At most Retry.Attempts runs are made, each on a node this call has not tried as
// long as there is one, paid from Retry.Budget and after Retry.Backoff; the first
// failover with nothing written is immediate and free.
//
// When fn returns nil the connection is released. After any error it is closed,
// unless the error is marked [Reusable]. While fn runs, the end of ctx makes its
// reads and writes fail, as do Timeouts.Read and Timeouts.Write. fn must not keep
// the connection. If fn panics, the connection is closed and the panic goes on.
//
// The returned error is fn's own when it was marked Reusable, else an [*Error].
func (c *Cluster) Do(ctx context.Context, s Safety, fn func(ctx context.Context, conn *Conn) error) error {
	op := operation{c: c, ctx: ctx, safety: s}
	c.cfg.Retry.Budget.Deposit()
	c.stats.operations.Add(1)
	start := clock()
	for {
		op.attempt++
		err := op.run(fn)
		if err == nil || !op.again(err) {
			return op.finish(start)
		}
	}
}

// operation is the state of one Do.
type operation struct {
	c       *Cluster
	ctx     context.Context
	safety  Safety
	attempt int
	tried   []*Node  // nodes that failed this operation
	failed  []*Error // what failed, oldest first; at most maxStory
	hidden  int      // failures that will not matter if the operation succeeds
	free    bool     // the one retry that costs nothing was used
	over    bool     // fn had its way: an error it returned is its own
	result  error    // what Do returns
}

// maxStory bounds how many failures an error remembers.
const maxStory = 64

// run makes one attempt.
func (op *operation) run(fn func(context.Context, *Conn) error) error {
	ctx, cancel := limit(op.ctx, op.c.cfg.Retry.PerTry)
	defer cancel()
	conn, failed, err := op.c.acquire(ctx, op.tried)
	if len(op.tried) > 0 && errors.Is(err, ErrNoEndpoint) {
		op.tried = op.tried[:0] // all were tried: the pass begins anew
		conn, failed, err = op.c.acquire(ctx, nil)
	}
	op.tried = append(op.tried, failed...)
	op.hidden += len(failed)
	if err == nil {
		err = op.use(ctx, conn, fn)
	}
	op.result = err
	return err
}

// use lends the connection to fn and takes it back.
func (op *operation) use(ctx context.Context, conn *Conn, fn func(context.Context, *Conn) error) (err error) {
	t := &op.c.cfg.Timeouts
	end, _ := ctx.Deadline()
	conn.limits.set(t.Read, t.Write, end)
	if !end.IsZero() {
		conn.nc.SetDeadline(end)
	}
	stop := conn.watch(ctx)
	returned := false
	defer func() {
		stop()
		if !returned {
			err = errPanicked
			op.c.stats.failures.Add(1) // finish is never reached
		}
		err = op.giveBack(ctx, conn, err)
	}()
	err = fn(ctx, conn)
	returned = true
	return err
}

var errPanicked = errors.New("holdfast: the operation panicked")

// giveBack settles the accounts of one use: statistics, health, the connection.
// It returns the error as the caller will see it.
func (op *operation) giveBack(ctx context.Context, conn *Conn, err error) error {
	c, now := op.c, clock()
	good := err == nil || has(err, reusable)
	switch {
	case good:
		op.over = true
		conn.served.Store(true)
		conn.node.report(now, now-conn.since, nil)
		var m *marked
		if errors.As(err, &m) && error(m) == err {
			err = m.err
		}
	default:
		e := op.describe(ctx, conn, err)
		conn.node.report(now, now-conn.since, e)
		op.tried = append(op.tried, conn.node)
		op.hidden++
		err = e
	}
	if conn.holds.CompareAndSwap(true, false) { // else fn closed it
		conn.lease.Done()
		c.giveBack(conn, !good, now)
	}
	return err
}

// describe makes the error of a use: what fn says, with what its connection saw.
func (op *operation) describe(ctx context.Context, conn *Conn, err error) *Error {
	n := conn.node
	e := &Error{Phase: PhaseUse, Endpoint: n.Endpoint(), Node: n.String(), Attempt: op.attempt,
		Written: conn.written.Load() - conn.start, Reused: conn.served.Load(), Err: err}
	classify := op.c.cfg.Retry.Classify
	if f := conn.failed.Load(); f != nil {
		e.Phase = f.phase
		if e.Class = classify(err); e.Class == ClassOther {
			e.Class = classify(f.err)
		}
	} else if op.c.ownClassify {
		e.Class = classify(err) // else the connection is sound and the error fn's own: ClassOther
	}
	if cause := ended(ctx); cause != nil {
		e.Class = classify(cause)
		e.Err = errors.Join(cause, err)
	}
	if has(err, unprocessed) {
		e.Class = ClassUnprocessed
	}
	return e
}

// ended says why ctx ended. A deadline that has passed counts even if the
// context's own timer is late: the connection's was first.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		if cause := context.Cause(ctx); cause != err {
			return &ending{err, cause}
		}
		return err
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return nil
}

// ending is the end of a context whose owner gave a cause. errors.Is finds that,
// but errors.As does not: it may be the error of another call altogether, as
// errgroup's is, and must not be classified as this one's.
type ending struct{ err, cause error }

func (e *ending) Error() string        { return e.err.Error() + ": " + e.cause.Error() }
func (e *ending) Unwrap() error        { return e.err }
func (e *ending) Is(target error) bool { return errors.Is(e.cause, target) }

// again decides whether to try again, and waits until it is time. It leaves the
// error to return in op.result.
func (op *operation) again(err error) bool {
	var shared *Error
	if op.over || !errors.As(err, &shared) {
		return false // fn's own error, marked Reusable
	}
	own := *shared // the node remembers the other
	e := &own
	worthwhile := op.worthwhile(e)
	op.note(e)
	if !worthwhile || op.attempt >= op.c.cfg.Retry.Attempts {
		return false
	}
	unsent := e.Written == 0
	if unsent && !op.free {
		op.free = true
	} else if !op.c.cfg.Retry.Budget.Withdraw() {
		op.c.stats.budgetDenied.Add(1)
		e.Err = errors.Join(ErrRetryBudget, e.Err)
		return false
	}
	wait := time.Duration(0)
	if !unsent || op.attempt > 1 || e.Phase <= PhaseHandshake {
		wait = op.c.cfg.Retry.Backoff.delay(op.attempt - 1)
	}
	return op.pause(e, wait)
}

// note adds a failed attempt to the story of the operation: the error to return
// is this attempt's, and the ones before are in its Tried.
func (op *operation) note(e *Error) {
	e.Attempt = op.attempt
	for _, t := range e.Tried {
		t.Attempt = op.attempt
	}
	now := append(slices.Clone(e.Tried), &Error{e.Phase, e.Class, e.Endpoint, e.Node, e.Attempt, e.Written, e.Reused, nil, e.Err})
	e.Tried = append(slices.Clone(op.failed), e.Tried...)
	op.failed = append(op.failed, now...)
	op.failed = op.failed[max(0, len(op.failed)-maxStory):]
	op.result = e
}

// worthwhile reports whether the failure may be repeated and could go better.
func (op *operation) worthwhile(e *Error) bool {
	switch {
	case has(e, permanent), ended(op.ctx) != nil:
		return false
	case e.Class == ClassUnprocessed, errors.Is(e, errUnwanted):
		return true
	case e.Written > 0 && op.safety != Idempotent:
		return false
	case e.Class == ClassExhausted: // by PerTry: another node may have room
		return errors.Is(e, context.DeadlineExceeded)
	}
	return e.Class.Transient() || slices.ContainsFunc(e.Tried, func(t *Error) bool { return t.Class.Transient() })
}

// pause waits before the next attempt: the backoff, and when there is no usable
// node until one may be dialed again.
func (op *operation) pause(e *Error, wait time.Duration) bool {
	c := op.c
	c.stats.retries.Add(1)
	event := Event{Kind: EventRetry, Attempt: op.attempt + 1, Duration: wait, Err: e}
	if len(op.tried) > 0 {
		event.Node = op.tried[len(op.tried)-1]
	}
	c.emit(event)
	if wait > 0 && !sleep(op.ctx, wait, c.ctx.Done()) {
		return op.gaveUp(e)
	}
	if !c.waitUsable(op.ctx) {
		return op.gaveUp(e)
	}
	return true
}

// gaveUp adds to the error that the context ended while waiting.
func (op *operation) gaveUp(e *Error) bool {
	op.result = op.c.outOfTime(op.ctx, e)
	return false
}

// outOfTime is e, with the end of the context that left no time to mend it.
func (c *Cluster) outOfTime(ctx context.Context, e *Error) error {
	end := ended(ctx)
	if end == nil {
		return e
	}
	own := *e // others hold e
	own.Err, own.Class = errors.Join(end, e.Err), c.cfg.Retry.Classify(end)
	return &own
}

// sleep waits for d, or until early, and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-early:
		return true
	case <-ctx.Done():
		return false
	}
}

// finish counts the operation and returns its result.
func (op *operation) finish(start time.Duration) error {
	s := &op.c.stats
	s.latency.Record(clock() - start)
	if op.result != nil {
		s.failures.Add(1)
		return op.result
	}
	s.successes.Add(1)
	op.c.hide(op.hidden)
	return nil
}
