package restart

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Limits of calls.
const (
	maxCall   = 1 << 20 // bytes of a request, and of an answer
	maxCalls  = 16      // under way at once; the others wait for their turn
	maxRepeat = 32      // requests that are made again at a successor
	callTime  = 10 * time.Second
)

// Call makes a request of the worker that serves, and returns what its Config.Call does.
// A request and its answer are at most 1 MiB, and 10 s apart, or as far as ctx lets them.
//
// A restart loses nothing that a call has changed: what is called while one is under way
// is made again at the successor, which may have been told of the state of before. So
// a request says what is to be, and not what to do with what is: it can be repeated.
func Call(ctx context.Context, admin string, request []byte) ([]byte, error) {
	if len(request) > maxCall {
		return nil, fmt.Errorf("restart: a request of %d bytes, the limit is %d", len(request), maxCall)
	}
	o := order{Verb: "call", Request: request, Within: callTime}
	if end, ok := ctx.Deadline(); ok {
		o.Within = min(time.Until(end), callTime)
	}
	var r reply
	if err := send(ctx, admin, o, &r); err != nil {
		return nil, err
	}
	if r.Err != "" {
		return nil, errors.New(r.Err)
	}
	return r.Answer, nil
}

// Caller is who asks, as the control socket knows it.
type Caller struct {
	UID int // of its process; -1 where the system does not tell
}

// call is a request on its way to a worker.
type call struct {
	ID      uint64        // 0: nobody waits for the answer
	Within  time.Duration // of which the worker has to answer
	UID     int
	Request []byte

	end time.Time // of Within, for the worker
}

// reply answers a call, at the control socket and on the link.
type reply struct {
	ID     uint64 `json:"id,omitempty"`
	Answer []byte `json:"answer,omitempty"`
	Err    string `json:"error,omitempty"`
}

var (
	errNoCalls  = errors.New("restart: this service takes no calls")
	errNobody   = errors.New("restart: nobody serves just now")
	errStopping = errors.New("restart: the service is stopping")
)

func refusal(err error) reply { return reply{Err: clip(err.Error())} }

// answerCall runs the user's function.
func (cfg Config) answerCall(ctx context.Context, c call) reply {
	ctx, cancel := context.WithDeadline(ctx, c.end)
	defer cancel()
	if ctx.Err() != nil { // who asked has gone, while others were served
		return refusal(ctx.Err())
	}
	answer, err := cfg.Call(ctx, Caller{UID: c.UID}, c.Request)
	switch {
	case err != nil:
		return refusal(err)
	case len(answer) > maxCall:
		return refusal(fmt.Errorf("restart: an answer of %d bytes, the limit is %d", len(answer), maxCall))
	}
	return reply{Answer: answer}
}
