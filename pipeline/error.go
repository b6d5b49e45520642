package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/holdfast-net/holdfast"
)

// Why a request could not be served. They are wrapped in an [*Error].
var (
	ErrClosed  error = closedError("pipeline: client closed") // matches net.ErrClosed
	ErrFull          = errors.New("pipeline: window full")
	ErrDown          = errors.New("pipeline: no connection")
	ErrStalled       = errors.New("pipeline: the oldest request is without a reply for too long")

	errDraining error = closedError("pipeline: draining")
	errUnasked        = errors.New("pipeline: a reply that nobody asked for")
)

type closedError string

func (e closedError) Error() string        { return string(e) }
func (e closedError) Is(target error) bool { return target == net.ErrClosed }

// Outcome is what is known of a request that failed.
type Outcome uint8

const (
	NotSent Outcome = iota // the peer cannot have seen all of it
	Unknown                // it was sent, and no reply came: the peer may have acted
	Replied                // the peer has answered, and the answer is no good
)

func (o Outcome) String() string {
	switch o {
	case NotSent:
		return "not sent"
	case Unknown:
		return "sent, no reply"
	}
	return "bad reply"
}

// Error is why a request has no reply, and what is known of it.
type Error struct {
	Outcome Outcome
	Node    string // it was meant for; "" when none was chosen
	Err     error  // the cause
}

func (e *Error) Error() string {
	if e.Node == "" {
		return fmt.Sprintf("pipeline: %s: %v", e.Outcome, e.Err)
	}
	return fmt.Sprintf("pipeline: %s: %s: %v", e.Node, e.Outcome, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// SafeToRetry reports that the peer cannot have acted on the request.
func (e *Error) SafeToRetry() bool { return e.Outcome == NotSent }

// Timeout reports whether a time limit ended it, the caller's or one of ours.
func (e *Error) Timeout() bool {
	return errors.Is(e.Err, ErrStalled) || holdfast.Classify(e.Err) == holdfast.ClassTimeout
}

// Temporary completes net.Error.
func (e *Error) Temporary() bool { return e.Outcome == NotSent }

// ended is the end of ctx with its cause.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return fmt.Errorf("%w: %w", ctx.Err(), cause)
	}
	return ctx.Err()
}
