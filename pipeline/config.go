package pipeline

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Config says what the protocol is and how much may be under way. Only Decoder is
// needed.
type Config[R any] struct {
	// Decoder makes the reader of the replies of one new connection; see [Frames].
	Decoder func() Decoder[R]

	// ID returns the number that a reply repeats; not ok is a push. Nil means that
	// replies come in the order of the requests. IDBits is how wide the numbers of the
	// protocol are; 0 means 32. They are given out in sequence from a random start, and
	// none again before its reply has come.
	ID     func(reply R) (id uint64, ok bool)
	IDBits int

	// Push tells what the peer sends by itself from replies; nil means that there is
	// nothing of the kind. OnPush gets it, in order, from a goroutine of its own per
	// connection; while it is slow 1,024 wait, and further ones are dropped and
	// counted. nil drops all.
	Push   func(reply R) bool
	OnPush func(push R)

	// Refused looks at each reply. An error means that the peer said it did not act
	// and will not, such as "loading": the request is tried on another node, whatever
	// its Safety, and the reply is returned if that does not help.
	Refused func(reply R) error

	// Handshake prepares each new connection, shared or exclusive, before its first
	// request. A failure counts against the node; one wrapped by holdfast.Permanent
	// fails those who wait at once.
	Handshake func(ctx context.Context, s *Setup[R]) error

	// Conns is how many connections there are to a node; 0 means 1, which is mostly
	// the fastest: what goes together costs one system call.
	Conns int

	// Window is how many requests may be queued or in flight on a connection; 0 means
	// 1,024. WindowBytes is how many bytes of requests may be queued; 0 means 1 MiB, and
	// one request is always let in. What a connection holds at most is
	//
	//	2 × WindowBytes + Window × 2.5 KiB + 256 KiB + the replies that the callers have
	//	not picked up + twice the longest reply, where the Decoder wants it whole
	Window, WindowBytes int

	// WaitFull and WaitDown are how long a request may wait for room in the window and
	// for a connection, besides its context: 0 means 10 s, negative fails at once.
	WaitFull, WaitDown time.Duration

	// Stall is how long the oldest request of a connection may be without a reply; then
	// the connection is given up. 0 means 10 s (rueidis' I/O timeout), negative is never.
	Stall time.Duration

	// Attempts is how often a request is tried, in all; 0 means 3, negative means 1.
	// Budget bounds what may have been sent before to a share of the requests; nil
	// means one of this Client's own.
	Attempts int
	Budget   *holdfast.Budget
}

const (
	never       = 1<<63 - 1
	maxPushes   = 1024
	smallBuffer = 16 << 10 // of replies, to begin with
	largeBuffer = 64 << 10 // of replies and requests, when there is much to do
)

func (cfg Config[R]) withDefaults() (Config[R], error) {
	if cfg.Decoder == nil {
		return cfg, errors.New("pipeline: Config.Decoder is needed")
	}
	cfg.IDBits = cmp.Or(cfg.IDBits, 32)
	cfg.Conns = max(cmp.Or(cfg.Conns, 1), 1)
	cfg.Window = max(cmp.Or(cfg.Window, 1024), 1)
	cfg.WindowBytes = max(cmp.Or(cfg.WindowBytes, 1<<20), 1)
	cfg.WaitFull = cmp.Or(cfg.WaitFull, 10*time.Second)
	cfg.WaitDown = cmp.Or(cfg.WaitDown, 10*time.Second)
	cfg.Attempts = max(cmp.Or(cfg.Attempts, 3), 1)
	if cfg.Stall = cmp.Or(cfg.Stall, 10*time.Second); cfg.Stall < 0 {
		cfg.Stall = never
	}
	if cfg.Budget == nil {
		cfg.Budget = &holdfast.Budget{}
	}
	if cfg.IDBits < 1 || cfg.IDBits > 64 || (cfg.IDBits < 63 && cfg.Window > 1<<(cfg.IDBits-1)) {
		return cfg, errors.New("pipeline: Config.Window must be at most half of the numbers that IDBits can express")
	}
	return cfg, nil
}

// Request is one request.
type Request struct {
	// Encode appends the request to dst. It may be called for each attempt, before it
	// waits for anything, and must not keep dst. id is the number that its reply will
	// repeat, 0 without Config.ID. An error is returned as it is, and nothing is sent.
	Encode func(dst []byte, id uint64) ([]byte, error)

	// Safety says whether the request may be repeated after it may have been acted on.
	Safety holdfast.Safety

	// Slow is how long the peer may take before it begins to answer, where that is
	// longer than Config.Stall. Requests behind it wait as long.
	Slow time.Duration
}

// Decoder cuts the stream of one connection into replies. It is used by one goroutine
// at a time.
type Decoder[R any] interface {
	// Decode looks at b, what has arrived and is not consumed, and says how many bytes
	// it consumed: n. With done they completed a reply, which must not refer to b. An
	// error with done is this reply's alone; without, the stream is broken for good.
	// What is not consumed comes again with more behind it, so a Decoder that waits for
	// a whole frame must have a limit.
	Decode(b []byte) (reply R, n int, done bool, err error)
}
