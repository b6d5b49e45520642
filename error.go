package holdfast

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// The states that end an operation. ErrClosed and ErrDraining match
// [net.ErrClosed] under errors.Is.
var (
	ErrClosed        error = closedError("holdfast: cluster closed")
	ErrDraining      error = closedError("holdfast: cluster draining")
	ErrNoEndpoint          = errors.New("holdfast: no usable endpoint")
	ErrPoolExhausted       = errors.New("holdfast: pool exhausted")
	ErrRetryBudget         = errors.New("holdfast: retry budget spent")
)

type closedError string

func (e closedError) Error() string        { return string(e) }
func (e closedError) Is(target error) bool { return target == net.ErrClosed }

// Phase is the step of an operation that failed.
type Phase uint8

const (
	PhaseResolve   Phase = iota // a name was looked up
	PhaseAcquire                // a node was chosen, a pooled connection waited for
	PhaseDial                   // the connection was made
	PhaseHandshake              // TLS or Config.Handshake
	PhaseWrite                  // the operation wrote
	PhaseRead                   // the operation read
	PhaseUse                    // the operation failed without an I/O error
)

var phaseNames = [...]string{"resolve", "acquire", "dial", "handshake", "write", "read", "use"}

func (p Phase) String() string               { return phaseNames[p] }
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Error says what failed, where, and what had been sent by then. The outermost
// *Error of a returned error is about the last attempt; the earlier ones are in
// Tried, and errors.Is and errors.As see them all.
type Error struct {
	Phase    Phase
	Class    Class
	Endpoint Endpoint // zero when no node was involved
	Node     string   // "name[address]:port" of the node; "" when none was involved
	Attempt  int      // 1 for the first
	Written  int64    // bytes this attempt handed to its connection
	Reused   bool     // the connection had served before
	Tried    []*Error // what failed before this, oldest first
	Err      error    // the cause
}

// Error names the phase, the node, the cause, and what was tried before.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("holdfast: ")
	e.describe(&b)
	for i, t := range e.Tried {
		if i == 0 {
			b.WriteString("; before that ")
		} else {
			b.WriteString(", ")
		}
		t.describe(&b)
	}
	return b.String()
}

func (e *Error) describe(b *strings.Builder) {
	b.WriteString(e.Phase.String())
	if e.Node != "" {
		b.WriteString(" " + e.Node)
	}
	if e.Attempt > 1 {
		fmt.Fprintf(b, " (attempt %d)", e.Attempt)
	}
	if e.Written > 0 {
		fmt.Fprintf(b, " after %d bytes written", e.Written)
	}
	fmt.Fprintf(b, ": %v", e.Err)
}

// Unwrap gives the cause and every earlier attempt.
func (e *Error) Unwrap() []error {
	all := make([]error, 0, 1+len(e.Tried))
	all = append(all, e.Err)
	for _, t := range e.Tried {
		all = append(all, t)
	}
	return all
}

// SafeToRetry reports that nothing was written in any attempt, so the peer cannot
// have acted on the operation. pgconn.SafeToRetry looks for this method.
func (e *Error) SafeToRetry() bool {
	for _, t := range e.Tried {
		if !t.SafeToRetry() {
			return false
		}
	}
	return e.Written == 0 || e.Class == ClassUnprocessed
}

// Permanent reports that the error was marked by [Permanent].
func (e *Error) Permanent() bool { return has(e, permanent) }

// Timeout reports whether the last attempt ended by a time limit.
func (e *Error) Timeout() bool { return e.Class == ClassTimeout || e.Class == ClassDNSTimeout }

// Temporary completes [net.Error]. Class says more.
func (e *Error) Temporary() bool { return e.Class.Transient() }

// Permanent marks an error of Config.Handshake or of an operation as one that no
// other node will cure, such as a wrong password: it ends the operation at once.
func Permanent(err error) error { return mark(err, permanent) }

// Reusable marks an error of an operation that left its connection in a known
// state, such as an error reply read to its end: the connection goes back to the
// pool, the node is not blamed, and Do returns err itself.
func Reusable(err error) error { return mark(err, reusable) }

// Unprocessed marks an error of an operation as the peer's own word that it did
// not act on it and will not, such as a demoted primary's "read only": the
// connection is closed, the node is blamed, and the operation runs again
// elsewhere even if it is Unsafe.
func Unprocessed(err error) error { return mark(err, unprocessed) }

type marker uint8

func (marker) Error() string { return "holdfast: a marker" } // so that errors.Is can look for it

const (
	permanent marker = iota + 1
	reusable
	unprocessed
)

// marked carries one of the three markers around an error.
type marked struct {
	err  error
	what marker
}

func mark(err error, what marker) error {
	if err == nil {
		return nil
	}
	return &marked{err, what}
}

func (m *marked) Error() string        { return m.err.Error() }
func (m *marked) Unwrap() error        { return m.err }
func (m *marked) Is(target error) bool { return target == m.what }

// has reports whether err carries the marker, perhaps beneath others.
func has(err error, what marker) bool { return err != nil && errors.Is(err, what) }
