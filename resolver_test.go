package holdfast_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

// clusterFrom makes a Cluster over a source, begins it, and waits until it has
// taken in what the source had to say.
func (w *world) clusterFrom(cfg holdfast.Config, source holdfast.Resolver) *holdfast.Cluster {
	w.t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = w.client.DialContext
	}
	if cfg.Observe == nil {
		cfg.Observe = w.note
	}
	c, err := holdfast.New(source, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	w.resolved(c)
	return c
}

// resolved begins the Cluster and waits until all is looked up that can be now.
func (w *world) resolved(c *holdfast.Cluster) {
	if lease, err := c.Pick(0, nil); err == nil {
		lease.Done()
	}
	synctest.Wait()
}

const clientIP = "10.0.1.1" // of every world

func (w *world) note(e holdfast.Event) {
	w.mu.Lock()
	w.events = append(w.events, e)
	w.mu.Unlock()
}

// feed is a source that says what the story tells it to.
type feed struct{ updates chan update }

type update struct {
	set []holdfast.Endpoint
	err error
}

func newFeed() *feed { return &feed{make(chan update, 16)} }

func (f *feed) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	for {
		select {
		case u := <-f.updates:
			push(u.set, u.err)
		case <-ctx.Done():
			return
		}
	}
}

// set makes these addresses the source's word, and waits until it was heard by
// who listens.
func (f *feed) set(addrs ...string) {
	var set []holdfast.Endpoint
	for _, a := range addrs {
		e, err := holdfast.ParseEndpoint(a)
		if err != nil {
			panic(err)
		}
		set = append(set, e)
	}
	f.say(set, nil)
}

func (f *feed) say(set []holdfast.Endpoint, err error) {
	f.updates <- update{set, err}
	synctest.Wait()
}

// names is a directory for Config.Names.Lookup: it knows what the story told it
// and when it was asked.
type names struct {
	mu    sync.Mutex // guards the rest
	known map[string]entry
	asked map[string][]time.Time
}

type entry struct {
	addrs []string
	ttl   time.Duration
	err   error
	after time.Duration
}

func newNames() *names {
	return &names{known: map[string]entry{}, asked: map[string][]time.Time{}}
}

// answer makes a host stand for these addresses from now on.
func (d *names) answer(host string, addrs ...string) { d.says(host, entry{addrs: addrs}) }

func (d *names) says(host string, a entry) {
	d.mu.Lock()
	d.known[host] = a
	d.mu.Unlock()
}

// times returns when the host was asked for.
func (d *names) times(host string) []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]time.Time(nil), d.asked[host]...)
}

func (d *names) lookup(ctx context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
	host, port, _ := net.SplitHostPort(e.Addr)
	d.mu.Lock()
	a, ok := d.known[host]
	d.asked[host] = append(d.asked[host], time.Now())
	d.mu.Unlock()
	if !ok {
		a.err = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	select {
	case <-time.After(a.after):
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	var found []holdfast.Endpoint
	for _, ip := range a.addrs {
		e.Addr = net.JoinHostPort(ip, port)
		found = append(found, e)
	}
	return found, a.ttl, a.err
}

// A file is read again when it changes, and taken whole or not at all.
func TestFileSource(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		path := filepath.Join(t.TempDir(), "endpoints")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // the longest until it is looked at
			synctest.Wait()
		}
		write("# the line servers\n10.0.0.1:7000\n\n  tcp://10.0.0.2:7000?weight=2 # the big one\r\n")
		c := w.clusterFrom(holdfast.Config{Picker: holdfast.RoundRobin()}, holdfast.File(path))
		expect := func(what string, want ...string) {
			t.Helper()
			if got := nodesOf(c); !slices.Equal(got, want) {
				t.Errorf("%s: nodes %q, want %q", what, got, want)
			}
		}
		refused := func(what, text string) {
			t.Helper()
			resolve := w.seen(holdfast.EventResolve)
			if last := resolve[len(resolve)-1]; last.Err == nil || !strings.Contains(last.Err.Error(), text) {
				t.Errorf("%s: the last event is %q with error %v, want %q", what, last.Cause, last.Err, text)
			}
		}
		expect("at first", "10.0.0.1 idle", "10.0.0.2 idle")
		if got := chosen(t, c, 6); strings.Count(got, "b") != 4 {
			t.Errorf("by weight 1 : 2 six choices fell as %s", got)
		}

		write("10.0.0.2:7000\n10.0.0.3:7000\n")
		expect("changed", "10.0.0.2 idle", "10.0.0.3 idle")

		write("10.0.0.1:7000\n\n10.0.0.2:bad\n10.0.0.3:7000\n")
		expect("with a mistake", "10.0.0.2 idle", "10.0.0.3 idle")
		refused("with a mistake", path+":3: ")

		write("10.0.0.1:7000?wieght=3\n")
		expect("with an unknown parameter", "10.0.0.2 idle", "10.0.0.3 idle")
		refused("with an unknown parameter", path+":1: ")

		write("# nothing but this\n")
		expect("empty", "10.0.0.2 idle", "10.0.0.3 idle")
		refused("empty", path)

		write("10.0.0.1:7000\n" + strings.Repeat("#", 1<<20))
		expect("too large", "10.0.0.2 idle", "10.0.0.3 idle")
		refused("too large", "larger than 1048576 bytes")

		for range 2 {
			write("10.0.0.2:7000\n10.0.0.3:7000\n")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			before := len(w.seen(holdfast.EventResolve))
			time.Sleep(time.Hour)
			expect("gone", "10.0.0.2 idle", "10.0.0.3 idle")
			refused("gone", "no such file")
			if n := len(w.seen(holdfast.EventResolve)) - before; n != 1 {
				t.Errorf("a file that stays away is told %d times, want once", n)
			}
		}
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Errorf("while the file is gone: %v", err)
		}

		write("10.0.0.1:7000\n")
		if got := nodesOf(c); !slices.Equal(got, []string{"10.0.0.1 idle"}) {
			t.Errorf("the file is back: nodes %q", got)
		}
		before := len(w.seen(holdfast.EventResolve))
		write("10.0.0.1:7000\n")
		if n := len(w.seen(holdfast.EventResolve)) - before; n != 0 {
			t.Errorf("the same text, written again, made %d events", n)
		}
	})

	t.Run("missing at first, it is said and waited for", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			path := filepath.Join(t.TempDir(), "endpoints")
			c := w.clusterFrom(holdfast.Config{}, holdfast.File(path))
			_, err := c.DialContext(t.Context(), "tcp", "")
			if e := asError(t, err); e.Phase != holdfast.PhaseResolve || !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, holdfast.ErrNoEndpoint) {
				t.Errorf("phase %v: %v", e.Phase, err)
			}
			if err := os.WriteFile(path, []byte("10.0.0.1:7000"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.WaitReady(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
}

// A registry of the user's own is as good a source as ours.
func TestResolverOfOnesOwn(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		source := newFeed()
		directory := newNames()
		directory.answer("db", "10.0.0.1", "10.0.0.2")
		c := w.clusterFrom(holdfast.Config{Names: holdfast.Names{Lookup: directory.lookup}}, source)
		expect := func(what string, want ...string) {
			t.Helper()
			if got := nodesOf(c); !slices.Equal(got, want) {
				t.Errorf("%s: nodes %q, want %q", what, got, want)
			}
		}

		// Nothing was said yet: callers wait, as long as their context lets them.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var err error
		within(t, took(func() { _, err = c.Acquire(ctx) }), time.Minute, time.Minute)
		if e := asError(t, err); e.Phase != holdfast.PhaseResolve || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the source's first word: phase %v, %v", e.Phase, err)
		}

		source.set("tcp://db:7000")
		expect("a name from a source is looked up", "10.0.0.1 idle", "10.0.0.2 idle")
		source.set("10.0.0.3:7000", "tcp://db:7000", "10.0.0.1:7000")
		expect("more, and one address twice", "10.0.0.1 idle", "10.0.0.2 idle", "10.0.0.3 idle")
		if n := len(directory.times("db")); n != 1 {
			t.Errorf("a name that stayed was looked up %d times", n)
		}

		registry := errors.New("the registry is down")
		for what, u := range map[string]update{
			"an error":            {nil, registry},
			"an error with a set": {[]holdfast.Endpoint{{Network: "tcp", Addr: "10.0.0.9:7000"}}, registry},
			"an empty set":        {nil, nil},
			"a set with a mistake": {[]holdfast.Endpoint{
				{Network: "tcp", Addr: "10.0.0.9:7000"}, {Network: "tcp", Addr: "10.0.0.9"}}, nil},
		} {
			source.say(u.set, u.err)
			expect(what, "10.0.0.1 idle", "10.0.0.2 idle", "10.0.0.3 idle")
			resolve := w.seen(holdfast.EventResolve)
			if e := resolve[len(resolve)-1]; e.Err == nil || u.err != nil && !errors.Is(e.Err, registry) {
				t.Errorf("%s: the last event has the error %v", what, e.Err)
			}
		}
		source.set("10.0.0.3:7000")
		expect("the registry is back", "10.0.0.3 idle")
	})

	// Close ends Watch's context and waits for it.
	t.Run("ends with the cluster", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			slow := slowToEnd{ended: make(chan time.Time, 1)}
			c := w.clusterFrom(holdfast.Config{}, slow)
			start := time.Now()
			within(t, took(func() { c.Close() }), time.Second, time.Second)
			if at := <-slow.ended; at.Sub(start) != time.Second {
				t.Errorf("Watch ended %v after Close began", at.Sub(start))
			}
		})
	})
}

// slowToEnd is a source that takes a second to say goodbye to its registry.
type slowToEnd struct{ ended chan time.Time }

func (s slowToEnd) Watch(ctx context.Context, _ func([]holdfast.Endpoint, error)) {
	<-ctx.Done()
	time.Sleep(time.Second)
	s.ended <- time.Now()
}
