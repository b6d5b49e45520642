package redis

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/holdfast-net/holdfast/pipeline"
)

// Conn is a connection of one's own, for commands that change its state. It is for one
// goroutine at a time. Release ends it.
type Conn struct {
	x     *pipeline.Exclusive[Value]
	dirty bool // its state has changed: it cannot go back
}

// Exclusive lends a connection from the Cluster's pool.
func (r *Client) Exclusive(ctx context.Context) (*Conn, error) {
	x, err := r.shared.Exclusive(ctx)
	if err != nil {
		return nil, err
	}
	return &Conn{x: x}, nil
}

// Do sends any command and waits for its one reply; what blocks is bounded by ctx
// alone. SUBSCRIBE and MONITOR have no such reply: see [Client.Subscribe].
func (c *Conn) Do(ctx context.Context, args ...any) Value {
	k := traitsOf(args)
	req := command(args)
	if k.blocks() {
		req.Slow = -1
	}
	c.dirty = c.dirty || k.changesState()
	return reply(c.x.Do(ctx, req))
}

// Release ends the loan. The connection goes back to the pool, unless its state has
// changed.
func (c *Conn) Release() {
	if c.dirty {
		c.x.Discard(nil)
		return
	}
	c.x.Release()
}

// Tx is a transaction that is being prepared.
type Tx struct {
	c     *Conn
	queue Batch
}

// Do sends a command at once, to read what the transaction depends on.
func (tx *Tx) Do(ctx context.Context, args ...any) Value { return tx.c.Do(ctx, args...) }

// Add appends a command to those that will be run together.
func (tx *Tx) Add(args ...any) { tx.queue.Add(args...) }

// ErrConflict is that the watched keys kept changing.
var ErrConflict = errors.New("redis: the transaction met a change of its keys each time")

// maxConflicts is how often a transaction is tried when others change its keys.
const maxConflicts = 16

// Tx runs what prepare adds as one transaction, and returns the reply to each of its
// commands. The keys in watch are watched while prepare reads them; if one changes
// before the end, nothing is run and prepare is called again, 16 times at most. An
// error of prepare ends it without running anything.
func (r *Client) Tx(ctx context.Context, watch []string, prepare func(tx *Tx) error) ([]Value, error) {
	for attempt := 0; ; attempt++ {
		replies, err := r.tryTx(ctx, watch, prepare)
		if !errors.Is(err, ErrConflict) || attempt == maxConflicts-1 {
			return replies, err
		}
		select { // full jitter, so that two who fight over a key do not meet again
		case <-time.After(rand.N(time.Millisecond << min(attempt, 6))):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

func (r *Client) tryTx(ctx context.Context, watch []string, prepare func(tx *Tx) error) (out []Value, err error) {
	c, err := r.Exclusive(ctx)
	if err != nil {
		return nil, err
	}
	watched := len(watch) > 0
	defer func() { c.finish(ctx, watched) }()
	if watched {
		if err := c.watch(ctx, watch); err != nil {
			return nil, err
		}
	}
	tx := &Tx{c: c}
	if err := prepare(tx); err != nil {
		return nil, err
	}
	if tx.queue.err != nil || tx.queue.n == 0 {
		return nil, tx.queue.err
	}
	watched = false // EXEC forgets it
	return c.exec(ctx, &tx.queue)
}

func (c *Conn) watch(ctx context.Context, keys []string) error {
	args := []any{"WATCH"}
	for _, k := range keys {
		args = append(args, k)
	}
	return reply(c.x.Do(ctx, command(args))).Err()
}

// finish gives the connection back, with nothing watched.
func (c *Conn) finish(ctx context.Context, watched bool) {
	if watched {
		err := reply(c.x.Do(ctx, command([]any{"UNWATCH"}))).Err()
		c.dirty = c.dirty || err != nil
	}
	c.Release()
}

// exec sends MULTI, the commands and EXEC in one piece.
func (c *Conn) exec(ctx context.Context, b *Batch) ([]Value, error) {
	var all Batch
	all.add([]any{"MULTI"})
	all.buf = append(all.buf, b.buf...)
	all.n += b.n
	all.add([]any{"EXEC"})
	values := make([]Value, all.n)
	if _, err := c.x.Batch(ctx, all.request(), values); err != nil {
		return nil, err
	}
	for _, v := range values[:len(values)-1] {
		if err := v.Err(); err != nil {
			c.dirty = true
			return nil, err // what could not even be queued: EXEC says only that
		}
	}
	results, err := values[len(values)-1].Values()
	switch {
	case errors.Is(err, Nil):
		return nil, ErrConflict
	case err != nil:
		return nil, err
	case len(results) != b.n:
		c.dirty = true
		return nil, fmt.Errorf("redis: EXEC answered %d of %d commands", len(results), b.n)
	}
	return results, nil
}

// ReadTo sends a command whose reply is one string, such as GET, and copies that to w
// as it comes, however large it is. It returns how many bytes it copied. Nil is an
// error, as everywhere.
func (r *Client) ReadTo(ctx context.Context, w io.Writer, args ...any) (n int64, err error) {
	if traitsOf(args).changesState() {
		return 0, ErrState
	}
	x, err := r.shared.Exclusive(ctx)
	if err != nil {
		return 0, err
	}
	defer x.Release()
	req := command(args)
	req.Slow = -1
	var refusal error
	err = x.Raw(ctx, req, func(in *bufio.Reader) error {
		n, refusal, err = copyString(w, in)
		return err
	})
	if err == nil {
		err = refusal
	}
	return n, err
}

// copyString copies one string off the wire. A refusal leaves the stream in step, an
// error does not.
func copyString(w io.Writer, in *bufio.Reader) (n int64, refusal, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	if len(line) == 0 {
		return 0, nil, errNoString
	}
	switch kind, rest := line[0], string(line[1:]); kind {
	case '$':
		size, err := strconv.ParseInt(rest, 10, 64)
		if size == -1 || err != nil || size < 0 {
			if size == -1 && err == nil {
				return 0, Nil, nil
			}
			return 0, nil, errNoString
		}
		if n, err = io.CopyN(w, in, size); err == nil {
			_, err = in.Discard(2)
		}
		return n, nil, err
	case '_':
		return 0, Nil, nil
	case '-':
		return 0, parseError(rest), nil
	case '+', ':':
		m, err := io.WriteString(w, rest)
		return int64(m), nil, err
	}
	return 0, nil, errNoString
}

var errNoString = errors.New("redis: the reply is no string")
