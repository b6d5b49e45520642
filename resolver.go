package holdfast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Resolver is a source of endpoints: a list, a file, a registry. Watch gives the
// full set with every change, or an error, until ctx ends. An error and an empty
// set keep the last good one. What is a name among the endpoints is looked up by
// the Cluster, whatever source it came from.
type Resolver interface {
	Watch(ctx context.Context, push func([]Endpoint, error))
}

// fixed is a source that never changes.
type fixed struct {
	endpoints []Endpoint
	err       error
}

// Static is a source of fixed addresses in the grammar of [ParseEndpoint]. [New]
// reports what is wrong with them.
func Static(addrs ...string) Resolver {
	var f fixed
	for _, a := range addrs {
		e, err := ParseEndpoint(a)
		f.endpoints = append(f.endpoints, e)
		f.err = errors.Join(f.err, err)
	}
	return f
}

func (f fixed) check() error {
	if len(f.endpoints) == 0 {
		return ErrNoEndpoint
	}
	return f.err
}

func (f fixed) Watch(ctx context.Context, push func([]Endpoint, error)) {
	push(f.endpoints, f.check())
	<-ctx.Done()
}

// File is a source that reads one address a line from a file, again whenever it
// changes; "#" begins a comment. A file with a mistake is refused whole, so that
// half an edit never takes effect.
func File(path string) Resolver { return file(path) }

type file string

const (
	filePoll = 2 * time.Second
	maxFile  = 1 << 20 // bytes
)

func (f file) Watch(ctx context.Context, push func([]Endpoint, error)) {
	var last []byte
	var lastErr string
	for {
		text, err := f.read()
		var endpoints []Endpoint
		if err == nil {
			endpoints, err = f.parse(text)
		}
		switch {
		case err != nil && err.Error() != lastErr:
			push(nil, err)
			lastErr = err.Error()
		case err == nil && (lastErr != "" || !bytes.Equal(text, last)):
			push(endpoints, nil)
			last, lastErr = text, ""
		}
		if !sleep(ctx, filePoll, nil) {
			return
		}
	}
}

func (f file) read() ([]byte, error) {
	h, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	defer h.Close()
	text, err := io.ReadAll(io.LimitReader(h, maxFile+1))
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", string(f), maxFile)
	}
	return text, err
}

func (f file) parse(text []byte) ([]Endpoint, error) {
	var endpoints []Endpoint
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line, _, _ = bytes.Cut(line, []byte("#"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		e, err := ParseEndpoint(string(line))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", string(f), number, err)
		}
		endpoints = append(endpoints, e)
	}
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("%s: %w", string(f), ErrNoEndpoint)
	}
	return endpoints, nil
}

// watch follows the source until the Cluster closes.
func (c *Cluster) watch() {
	c.source.Watch(c.ctx, func(endpoints []Endpoint, err error) {
		for _, e := range endpoints {
			err = errors.Join(err, e.check())
		}
		if err == nil && len(endpoints) == 0 {
			err = ErrNoEndpoint
		}
		if err == nil {
			c.setEndpoints(endpoints)
			return
		}
		e := &Error{Phase: PhaseResolve, Class: c.cfg.Retry.Classify(err), Err: err}
		c.mu.Lock()
		c.resolveErr = e
		c.resolved = true
		c.emitLocked(Event{Kind: EventResolve, Err: c.resolveErr})
		c.outdatedLocked()
		c.mu.Unlock()
		c.settle()
	})
}
