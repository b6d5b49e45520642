package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"time"
)

// Step is one turn of an exchange: something is sent, something must come. A Step may do
// only one of the two.
type Step struct {
	Send   []byte         // nil sends nothing
	Expect []byte         // must be in what comes; nil expects nothing
	Match  *regexp.Regexp // must match what comes; nil expects nothing
}

// Exchange sends and expects, step by step. What comes is searched as it arrives; what was
// found, and all before it, is gone for the next step. Of what is not found at most 4 KiB
// are waited for. A wrong answer shows as one that does not come: unless the server ends the
// connection, that takes until the check's limit.
//
// Over UDP it is strict, other than [UDP]: an answer must come.
type Exchange []Step

// Probe is for holdfast.Config.Probe.
func (x Exchange) Probe(ctx context.Context, conn net.Conn) error {
	return within(ctx, conn, func() error {
		var kept []byte
		for i, step := range x {
			if len(step.Send) > 0 {
				if _, err := conn.Write(step.Send); err != nil {
					return err
				}
			}
			var err error
			if kept, err = step.await(conn, kept); err != nil {
				return fmt.Errorf("health: step %d of %d: %w", i+1, len(x), err)
			}
		}
		return nil
	})
}

// await reads until the step is content, and returns what came behind.
func (s Step) await(r io.Reader, kept []byte) ([]byte, error) {
	for {
		if end := s.find(kept); end >= 0 {
			return kept[end:], nil
		}
		if len(kept) >= maxKept {
			return nil, fmt.Errorf("%s is not in the first %d bytes: %.80q…", s, maxKept, kept)
		}
		piece := make([]byte, maxKept-len(kept))
		n, err := r.Read(piece)
		kept = append(kept, piece[:n]...)
		if n == 0 && err != nil {
			return nil, fmt.Errorf("%s did not come, but %.80q: %w", s, kept, ended(err))
		}
	}
}

// find returns where what is expected ends, −1 if it is not there.
func (s Step) find(b []byte) int {
	end := 0
	if len(s.Expect) > 0 {
		i := bytes.Index(b, s.Expect)
		if i < 0 {
			return -1
		}
		end = i + len(s.Expect)
	}
	if s.Match != nil {
		at := s.Match.FindIndex(b)
		if at == nil {
			return -1
		}
		end = max(end, at[1])
	}
	return end
}

// String is what the step expects.
func (s Step) String() string {
	if s.Match != nil {
		return fmt.Sprintf("%.80q", s.Match)
	}
	return fmt.Sprintf("%.80q", s.Expect)
}

// ended is err, where an end is one that should not be.
func ended(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// UDP sends one datagram and waits for one, for half of the time that is left. A wrong
// answer, and a refusal (an ICMP message, which the system reports on the next call), are
// failures. No answer proves nothing, datagrams get lost and firewalls are silent: the probe
// passes, and Result.Layer is then "silence" where an answer makes it "answer". Where an
// answer is a must, use [Exchange].
type UDP Step

// Probe is for holdfast.Config.Probe.
func (u UDP) Probe(ctx context.Context, conn net.Conn) error {
	wait := time.Second
	if end, ok := ctx.Deadline(); ok {
		wait = time.Until(end) / 2
	}
	return within(ctx, conn, func() error {
		if _, err := conn.Write(u.Send); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		datagram := make([]byte, maxKept)
		n, err := conn.Read(datagram)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded):
			noteOf(ctx).layer = "silence"
			return nil
		case err != nil:
			return err
		case Step(u).find(datagram[:n]) < 0:
			return fmt.Errorf("health: want %s, got %.80q", Step(u), datagram[:n])
		}
		return nil
	})
}
