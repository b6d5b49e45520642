package restart

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Result is how a restart went.
type Result struct {
	OK         bool   `json:"ok"`
	Generation int    `json:"generation,omitempty"` // that serves now
	PID        int    `json:"pid,omitempty"`        // of its worker
	Coalesced  bool   `json:"coalesced,omitempty"`  // one restart answered several requests
	Err        string `json:"error,omitempty"`      // why it was rolled back
}

// Status is what a supervisor knows.
type Status struct {
	Name        string             `json:"name"`
	PID         int                `json:"pid"` // of the supervisor
	Started     time.Time          `json:"started"`
	Generation  int                `json:"generation"` // that serves; 0 is none
	Generations []GenerationStatus `json:"generations"`
	Sockets     []string           `json:"sockets"`
	Restarts    int                `json:"restarts"` // that were asked for and committed
	RolledBack  int                `json:"rolled_back"`
	Crashed     int                `json:"crashed"`
	LastError   string             `json:"last_error,omitempty"`
	LastErrorAt time.Time          `json:"last_error_at,omitzero"`
	Totals      map[string]int64   `json:"totals,omitempty"` // over all generations
	Calls       bool               `json:"calls,omitempty"`  // it has Config.Call
}

// GenerationStatus is one worker.
type GenerationStatus struct {
	Generation int     `json:"generation"`
	PID        int     `json:"pid"`
	Phase      string  `json:"phase"` // starting, ready, serving or leaving
	Age        float64 `json:"age"`   // seconds
}

// AdminPath is where the control socket of a service of this name is unless
// Config.Admin says otherwise.
func AdminPath(name string) string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = "/run"
	}
	return filepath.Join(dir, "holdfast", name+".sock")
}

// Restart asks the supervisor behind a control socket for a restart, and waits for
// its end. The error is that of asking; a restart that was rolled back is a Result
// that is not OK.
func Restart(ctx context.Context, admin string) (r Result, err error) {
	return r, ask(ctx, admin, "restart", &r)
}

// Begin asks for a restart and does not wait for it: the error is that of asking, or
// what failed at once. How it goes on is in the log, and in what [Ask] returns.
func Begin(ctx context.Context, admin string) error { return do(ctx, admin, "begin") }

// Drain asks a supervisor to drain and exit, and waits until it has. What had to be
// killed on the way is an error.
func Drain(ctx context.Context, admin string) error { return untilGone(ctx, admin, "drain") }

// Stop asks a supervisor to close what is open and exit, and waits until it has.
func Stop(ctx context.Context, admin string) error { return untilGone(ctx, admin, "stop") }

func untilGone(ctx context.Context, admin, verb string) error {
	var r Result
	err := ask(ctx, admin, verb, &r)
	switch {
	case errors.Is(err, io.EOF): // it was in too much of a hurry to answer
		return nil
	case err == nil && !r.OK:
		return errors.New(r.Err)
	}
	return err
}

// Reopen has a service open its log files anew, as Config.Reopen does it.
func Reopen(ctx context.Context, admin string) error { return do(ctx, admin, "reopen") }

func do(ctx context.Context, admin, verb string) error {
	var r Result
	if err := ask(ctx, admin, verb, &r); err != nil {
		return err
	}
	if !r.OK {
		return errors.New(r.Err)
	}
	return nil
}

// Ask asks a supervisor how it is.
func Ask(ctx context.Context, admin string) (s Status, err error) {
	return s, ask(ctx, admin, "status", &s)
}

// order is what is asked of a control socket: one line of JSON, answered by one.
type order struct {
	Verb    string        `json:"verb"`
	Request []byte        `json:"request,omitempty"` // of "call"
	Within  time.Duration `json:"within,omitempty"`

	uid int // whose it is
}

// maxOrder bounds what is read of an order or an answer.
const maxOrder = 4 << 20

func ask(ctx context.Context, admin, verb string, answer any) error {
	return send(ctx, admin, order{Verb: verb}, answer)
}

func send(ctx context.Context, admin string, o order, answer any) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", admin)
	if err != nil {
		return fmt.Errorf("restart: nobody answers at %s: %w", admin, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxOrder)).ReadBytes('\n')
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("restart: %s ended before it answered: %w", admin, err)
	}
	return json.Unmarshal(line, answer)
}
