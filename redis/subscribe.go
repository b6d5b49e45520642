package redis

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/pipeline"
)

// Message is one that was published, or the notice that some may have been missed.
type Message struct {
	Channel string
	Pattern string // that it matched, for those of PSubscribe
	Payload string

	// Gap is not nil where the connection was lost: what was published since the
	// message before this one may be missing. Such a Message says nothing else.
	Gap error
}

// Subscription receives what is published on channels. It has a connection of its own
// and reads it only in Receive: who is slow holds up the server, which has a limit of
// its own (client-output-buffer-limit) and cuts those who exceed it. Receive is for one
// goroutine at a time, all else for any. Close ends it.
type Subscription struct {
	r    *Client
	gap  error // to be told
	done context.Context
	end  context.CancelFunc

	mu     sync.Mutex
	at     *line             // nil while there is no connection
	wanted map[string]string // name → command that subscribes to it
}

// line is a connection that several may use at once, and that the last of them ends.
// The Subscription's mu guards it.
type line struct {
	x     *pipeline.Exclusive[Value]
	users int
	over  bool
	why   error
}

// use returns the connection, nil if there is none; leave follows it.
func (s *Subscription) use() *line {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != nil {
		s.at.users++
	}
	return s.at
}

func (s *Subscription) leave(l *line) {
	s.mu.Lock()
	l.users--
	last := l.over && l.users == 0
	s.mu.Unlock()
	if last {
		l.x.Discard(l.why)
	}
}

// drop ends a connection, as soon as nobody uses it.
func (s *Subscription) drop(l *line, why error) {
	s.mu.Lock()
	last := !l.over && l.users == 0
	l.over, l.why = true, why
	if s.at == l {
		s.at = nil
	}
	s.mu.Unlock()
	if last {
		l.x.Discard(why)
	}
}

// Subscribe receives what is published on channels. It returns when the server has been
// asked. With no channels it only connects.
func (r *Client) Subscribe(ctx context.Context, channels ...string) (*Subscription, error) {
	return r.subscribe(ctx, "SUBSCRIBE", channels)
}

// PSubscribe receives what is published on channels that match patterns.
func (r *Client) PSubscribe(ctx context.Context, patterns ...string) (*Subscription, error) {
	return r.subscribe(ctx, "PSUBSCRIBE", patterns)
}

// SSubscribe receives what is published on sharded channels (Redis 7).
func (r *Client) SSubscribe(ctx context.Context, channels ...string) (*Subscription, error) {
	return r.subscribe(ctx, "SSUBSCRIBE", channels)
}

func (r *Client) subscribe(ctx context.Context, verb string, names []string) (*Subscription, error) {
	s := &Subscription{r: r, wanted: map[string]string{}}
	s.done, s.end = context.WithCancel(context.Background())
	for _, name := range names {
		s.wanted[name] = verb
	}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// connect makes the connection and asks for everything that is wanted.
func (s *Subscription) connect(ctx context.Context) error {
	x, err := s.r.shared.Exclusive(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	wanted := maps.Clone(s.wanted)
	s.mu.Unlock()
	for _, verb := range []string{"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE"} {
		if err := send(ctx, x, verb, namesOf(wanted, verb)); err != nil {
			x.Discard(err)
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done.Err() != nil {
		x.Discard(nil)
		return errClosed
	}
	s.at = &line{x: x}
	return nil
}

func namesOf(wanted map[string]string, verb string) (names []string) {
	for name, v := range wanted {
		if v == verb {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func send(ctx context.Context, x *pipeline.Exclusive[Value], verb string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	args := []any{verb}
	for _, name := range names {
		args = append(args, name)
	}
	return x.Send(ctx, command(args))
}

var errClosed = fmt.Errorf("redis: subscription closed: %w", pipeline.ErrClosed)

// Add subscribes to further names with "SUBSCRIBE", "PSUBSCRIBE" or "SSUBSCRIBE", and
// Remove takes names out again. They hold from the next connection on in any case.
func (s *Subscription) Add(ctx context.Context, verb string, names ...string) error {
	if verb != "SUBSCRIBE" && verb != "PSUBSCRIBE" && verb != "SSUBSCRIBE" {
		return fmt.Errorf("redis: %q subscribes to nothing", verb)
	}
	s.mu.Lock()
	for _, name := range names {
		s.wanted[name] = verb
	}
	s.mu.Unlock()
	l := s.use()
	if l == nil {
		return nil
	}
	defer s.leave(l)
	return send(ctx, l.x, verb, names)
}

// Remove ends the subscription to names.
func (s *Subscription) Remove(ctx context.Context, names ...string) error {
	byVerb := map[string][]string{}
	s.mu.Lock()
	for _, name := range names {
		if verb := s.wanted[name]; verb != "" {
			byVerb[verb] = append(byVerb[verb], name)
			delete(s.wanted, name)
		}
	}
	s.mu.Unlock()
	l := s.use()
	if l == nil {
		return nil
	}
	defer s.leave(l)
	for verb, names := range byVerb {
		un := map[string]string{"SUBSCRIBE": "UNSUBSCRIBE", "PSUBSCRIBE": "PUNSUBSCRIBE", "SSUBSCRIBE": "SUNSUBSCRIBE"}[verb]
		if err := send(ctx, l.x, un, names); err != nil {
			return err
		}
	}
	return nil
}

// Receive waits for the next message. When the connection is lost it makes another and
// subscribes again, for as long as ctx lets it, and says so by a Message with a Gap.
func (s *Subscription) Receive(ctx context.Context) (Message, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.done, func() { cancel(errClosed) })()
	for attempt := 0; ; attempt++ {
		if s.done.Err() != nil {
			return Message{}, errClosed
		}
		m, err := s.receive(ctx)
		switch {
		case s.done.Err() != nil:
			return Message{}, errClosed
		case err == nil, ctx.Err() != nil:
			return m, err
		case errors.Is(err, pipeline.ErrClosed):
			return Message{}, err
		}
		s.pause(ctx, attempt)
	}
}

// pause is full jitter, and nothing at first.
func (s *Subscription) pause(ctx context.Context, attempt int) {
	if attempt == 0 {
		return
	}
	select {
	case <-time.After(rand.N(25 * time.Millisecond << min(attempt, 6))):
	case <-ctx.Done():
	}
}

// receive is one attempt: a message, a gap after a connection was made anew, or why
// there is none.
func (s *Subscription) receive(ctx context.Context) (Message, error) {
	l := s.use()
	if l == nil {
		if err := s.connect(ctx); err != nil {
			return Message{}, err
		}
		gap := s.gap
		s.gap = nil
		return Message{Gap: gap}, nil
	}
	defer s.leave(l)
	for {
		v, err := l.x.Receive(ctx)
		if err == nil {
			err = v.Err()
		}
		if err != nil {
			if ctx.Err() == nil {
				s.gap = err
				s.drop(l, err)
			}
			return Message{}, err
		}
		if m, ok := messageOf(v); ok {
			return m, nil
		}
	}
}

// messageOf reads what the server sent: a push, or in RESP2 an array. What is no
// message acknowledges something.
func messageOf(v Value) (m Message, ok bool) {
	parts, err := v.Strings()
	if err != nil || len(parts) == 0 {
		return m, false
	}
	switch {
	case (parts[0] == "message" || parts[0] == "smessage") && len(parts) == 3:
		return Message{Channel: parts[1], Payload: parts[2]}, true
	case parts[0] == "pmessage" && len(parts) == 4:
		return Message{Pattern: parts[1], Channel: parts[2], Payload: parts[3]}, true
	}
	return m, false
}

// All iterates over the messages until ctx ends or the Subscription is closed; the last
// one has the reason.
func (s *Subscription) All(ctx context.Context) iter.Seq2[Message, error] {
	return func(yield func(Message, error) bool) {
		for {
			m, err := s.Receive(ctx)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// Close ends the Subscription, and what is under way on it.
func (s *Subscription) Close() error {
	s.end()
	s.mu.Lock()
	l := s.at
	s.mu.Unlock()
	if l != nil {
		s.drop(l, nil)
	}
	return nil
}
