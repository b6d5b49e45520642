package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/pipeline"
)

// Config says how a Client speaks. The zero value is right for a server without a
// password.
type Config struct {
	// Credentials gives the name and the password of an ACL user, "" for the default
	// one; no password at all is no AUTH. It is asked for each new connection and what
	// it says is neither kept nor logged.
	Credentials func(ctx context.Context) (user, password string, err error)

	DB       int    // SELECT; 0 is the first
	Name     string // CLIENT SETNAME; "" is none
	Protocol int    // 2 or 3; 0 means 3, and 2 where the server knows no better
	Role     Role   // which servers are used; 0 means any

	// OnPush gets what the server sends by itself on shared connections, such as
	// invalidations. See pipeline.Config.
	OnPush func(Value)

	// These are pipeline.Config's, with its defaults.
	Conns              int
	Window             int
	WaitFull, WaitDown time.Duration
	Stall              time.Duration
	Attempts           int
	Budget             *holdfast.Budget
}

// Role is what a server must be, by its own word, to be used.
type Role uint8

const (
	AnyRole Role = iota
	Primary
	Replica
)

// Client sends commands. Make one with New or Open and close it; all methods are safe
// for concurrent use.
type Client struct {
	cfg     Config
	cluster *holdfast.Cluster
	own     bool // Close closes the Cluster too
	shared  *pipeline.Client[Value]
}

// New returns a Client over the nodes of a Cluster, which stays the caller's, and begins
// to connect. A Protocol that there is not panics.
func New(c *holdfast.Cluster, cfg Config) *Client {
	if cfg.Protocol = cmp.Or(cfg.Protocol, 3); cfg.Protocol != 2 && cfg.Protocol != 3 {
		panic(fmt.Sprintf("redis: there is no protocol %d", cfg.Protocol))
	}
	r := &Client{cfg: cfg, cluster: c}
	shared, err := pipeline.New(c, pipeline.Config[Value]{
		Decoder:   func() pipeline.Decoder[Value] { return new(decoder) },
		Push:      func(v Value) bool { return v.Kind() == KindPush },
		OnPush:    cfg.OnPush,
		Refused:   r.refused,
		Handshake: r.greet,
		Conns:     cfg.Conns, Window: cfg.Window, WaitFull: cfg.WaitFull, WaitDown: cfg.WaitDown,
		Stall: cfg.Stall, Attempts: cfg.Attempts, Budget: cfg.Budget,
	})
	if err != nil {
		panic(err)
	}
	r.shared = shared
	return r
}

// WaitReady returns when there is a connection, or with why there is none.
func (r *Client) WaitReady(ctx context.Context) error { return r.shared.WaitReady(ctx) }

// Stats returns the counters of the shared connections.
func (r *Client) Stats() pipeline.Stats { return r.shared.Stats() }

// Shutdown refuses new commands, waits for those under way, and closes.
func (r *Client) Shutdown(ctx context.Context) error {
	err := r.shared.Shutdown(ctx)
	return errors.Join(err, r.Close())
}

// Close cuts every shared connection and waits until nothing is left of the Client.
func (r *Client) Close() error {
	err := r.shared.Close()
	if r.own {
		err = errors.Join(err, r.cluster.Close())
	}
	return err
}

// ErrState refuses a command that would change the state of a shared connection.
var ErrState = errors.New("redis: it changes the state of a connection that others share: see Exclusive, Tx and Subscribe")

// Do sends a command. What only reads may be sent again when a connection is lost.
func (r *Client) Do(ctx context.Context, args ...any) Value {
	k := traitsOf(args)
	switch {
	case k.changesState():
		return failure(ErrState)
	case k.blocks():
		return r.doAlone(ctx, args)
	}
	req := command(args)
	req.Safety = k.safety()
	return reply(r.shared.Do(ctx, req))
}

// doAlone is for a command that blocks.
func (r *Client) doAlone(ctx context.Context, args []any) Value {
	x, err := r.shared.Exclusive(ctx)
	if err != nil {
		return failure(err)
	}
	defer x.Release()
	req := command(args)
	req.Slow = -1
	return reply(x.Do(ctx, req))
}

// command is the request for a command. It must stay small enough to be inlined: only
// then does the func need no allocation.
func command(args []any) pipeline.Request {
	return pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return appendCommand(dst, args) }}
}

// reply joins the error of a transport and that of a server.
func reply(v Value, err error) Value {
	if err != nil {
		return failure(err)
	}
	return v
}

// refused is what a server said it did not run.
func (r *Client) refused(v Value) error {
	if v.Kind() != KindError {
		return nil
	}
	e := v.Err()
	if !notRun(e) {
		return nil
	}
	if demoted(e) {
		r.cluster.Refresh(0) // it has become a replica: who is the primary now?
	}
	return e
}

// Batch is several commands that are sent together, in order, and nothing between them.
// The zero value is empty. It is for one goroutine at a time, and can be run again.
type Batch struct {
	buf []byte
	n   int
	err error // of the first command that cannot be sent
}

// Add appends a command.
func (b *Batch) Add(args ...any) {
	k := traitsOf(args)
	if k.changesState() || k.blocks() {
		b.fail(fmt.Errorf("%w: command %d of a batch", ErrState, b.n+1))
		return
	}
	b.add(args)
}

func (b *Batch) add(args []any) {
	buf, err := appendCommand(b.buf, args)
	if err != nil {
		b.fail(fmt.Errorf("command %d of a batch: %w", b.n+1, err))
		return
	}
	b.buf = buf
	b.n++
}

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// Len is how many commands there are.
func (b *Batch) Len() int { return b.n }

// Reset empties the batch and keeps its memory.
func (b *Batch) Reset() { b.buf, b.n, b.err = b.buf[:0], 0, nil }

// Run sends a batch and returns the reply to each of its commands, one of which may be
// an error of its own. err is why there are not all: then the replies that are missing
// have it too.
func (r *Client) Run(ctx context.Context, b *Batch) ([]Value, error) {
	if b.err != nil || b.n == 0 {
		return nil, b.err
	}
	values := make([]Value, b.n)
	n, err := r.shared.Batch(ctx, b.request(), values)
	return replies(values, n, err), err
}

func (b *Batch) request() pipeline.Request {
	return pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return append(dst, b.buf...), nil }}
}

func replies(values []Value, n int, err error) []Value {
	for i := n; i < len(values); i++ {
		values[i] = failure(err)
	}
	return values
}
