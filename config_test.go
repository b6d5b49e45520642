package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// source is a Resolver that says one thing.
type source struct {
	endpoints []holdfast.Endpoint
	err       error
}

func (s source) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	push(s.endpoints, s.err)
	<-ctx.Done()
}

func TestNewRefusesAnEmptySet(t *testing.T) {
	for name, source := range map[string]holdfast.Resolver{"no address": holdfast.Static(), "no source": nil} {
		if c, err := holdfast.New(source, holdfast.Config{}); !errors.Is(err, holdfast.ErrNoEndpoint) || c != nil {
			t.Errorf("%s: got %v, want ErrNoEndpoint", name, err)
		}
	}
	// What New cannot know is told at once by the first use.
	inWorld(t, 0, func(t *testing.T, w *world) {
		c, err := holdfast.New(source{}, holdfast.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		within(t, took(func() { err = c.Do(t.Context(), holdfast.Unsafe, say("x")) }), 0, 0)
		if !errors.Is(err, holdfast.ErrNoEndpoint) || asError(t, err).Class != holdfast.ClassNoEndpoint {
			t.Errorf("a source that is empty: got %v, want ErrNoEndpoint", err)
		}
	})
}

// The original's constructor blocked until it was connected or had given up.
func TestNewDoesNoIO(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		var calls atomic.Int32
		cfg := holdfast.Config{
			Dial: w.meddle(func(int, *simnet.Conn) { calls.Add(1) }),
			Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				calls.Add(1)
				e.Addr = w.servers[0].addr
				return []holdfast.Endpoint{e}, 0, nil
			}},
			Pool:  holdfast.Pool{MinIdle: 2},
			Check: holdfast.Check{Interval: time.Second},
		}
		// Nor does it start anything: one that is never used need not be closed, or
		// the bubble would complain of what is left in it.
		unused, err := holdfast.New(holdfast.Static("db.example:7000"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := w.clusterOf(cfg, "db.example:7000")
		time.Sleep(time.Hour)
		unused.Stats()
		if n := calls.Load(); n != 0 {
			t.Errorf("%d lookups and dials before the first use", n)
		}
		if err := c.Do(t.Context(), holdfast.Unsafe, say("first use")); err != nil || calls.Load() == 0 {
			t.Errorf("the first use: %v after %d lookups and dials", err, calls.Load())
		}
	})
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	type cfg = holdfast.Config
	ok := holdfast.Static("10.0.0.1:7000")
	for _, row := range []struct {
		name   string
		source holdfast.Resolver
		cfg    cfg
		says   string
	}{
		{"no connection per node", ok, cfg{Pool: holdfast.Pool{Max: -1}}, "Pool.Max"},
		{"no connection at all", ok, cfg{Pool: holdfast.Pool{Total: -1}}, "Pool.Total"},
		{"more at rest than there may be", ok, cfg{Pool: holdfast.Pool{Max: 2, MinIdle: 3}}, "Pool.MinIdle"},
		{"more jitter than delay", ok, cfg{Backoff: holdfast.Backoff{Jitter: 1.5}}, "Jitter"},
		{"more jitter than delay, of retries", ok, cfg{Retry: holdfast.Retry{Backoff: holdfast.Backoff{Jitter: 1.5}}}, "Jitter"},
		{"more than all ejected", ok, cfg{Outlier: holdfast.Outlier{MaxPercent: 101}}, "percent"},
		{"panic below more than all", ok, cfg{Outlier: holdfast.Outlier{PanicPercent: 101}}, "percent"},
		{"more than all failed", ok, cfg{Outlier: holdfast.Outlier{FailurePercent: 101}}, "FailurePercent"},
		{"old TLS only", ok, cfg{TLS: &tls.Config{MaxVersion: tls.VersionTLS11}}, "TLS below 1.2"},
		{"an address without a port", holdfast.Static("10.0.0.1"), cfg{}, "10.0.0.1"},
		{"an unknown scheme", holdfast.Static("http://10.0.0.1:80"), cfg{}, "http"},
		{"a name for a connection without TLS", holdfast.Static("tcp://10.0.0.1:80?sni=x"), cfg{}, "sni"},
	} {
		if c, err := holdfast.New(row.source, row.cfg); err == nil || c != nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: got %v, want an error that says %s", row.name, err, row.says)
		}
	}
	// All that is wrong is said at once, and one bad address spoils the list: half
	// a list in service would be a surprise at the next failure.
	_, err := holdfast.New(holdfast.Static("10.0.0.1:7000", "10.0.0.2", "10.0.0.3:x"), cfg{})
	if err == nil || !strings.Contains(err.Error(), "10.0.0.2") || !strings.Contains(err.Error(), "10.0.0.3:x") {
		t.Errorf("got %v, want both mistakes", err)
	}
	_, err = holdfast.New(ok, cfg{Pool: holdfast.Pool{Max: -1, Total: -1}, Socket: holdfast.Socket{UserTimeout: time.Second}})
	for _, says := range []string{"Pool.Max", "Pool.Total", "UserTimeout"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want it to say %s too", err, says)
		}
	}
}

// One lost probe must not kill a connection (grpc-go#6250).
func TestUserTimeoutShorterThanKeepAliveIsRefused(t *testing.T) {
	s := time.Second
	alive := func(idle, interval time.Duration, count int) net.KeepAliveConfig {
		return net.KeepAliveConfig{Idle: idle, Interval: interval, Count: count}
	}
	for _, row := range []struct {
		socket  holdfast.Socket
		refused bool
	}{
		{holdfast.Socket{}, false}, // 15 + 3 × 5 = 30
		{holdfast.Socket{UserTimeout: 29 * s}, true},
		{holdfast.Socket{UserTimeout: 30 * s}, false},
		{holdfast.Socket{UserTimeout: -1}, false},
		{holdfast.Socket{KeepAlive: alive(60*s, 0, 0)}, true}, // against the 30 s by default
		{holdfast.Socket{KeepAlive: alive(60*s, 0, 0), UserTimeout: 75 * s}, false},
		{holdfast.Socket{KeepAlive: alive(5*s, s, 3), UserTimeout: 8 * s}, false},
		{holdfast.Socket{KeepAlive: alive(5*s, s, 3), UserTimeout: 7 * s}, true},
		{holdfast.Socket{KeepAlive: alive(-1, 0, 0), UserTimeout: s}, false},
	} {
		if _, err := holdfast.New(holdfast.Static("10.0.0.1:7000"), holdfast.Config{Socket: row.socket}); (err != nil) != row.refused {
			t.Errorf("%+v: got %v, want refused: %t", row.socket, err, row.refused)
		}
	}
}

// In every field a negative value means off: nothing of it happens, and nothing
// else does because of it.
func TestNegativeMeansOff(t *testing.T) {
	off := holdfast.Config{
		Timeouts: holdfast.Timeouts{Dial: -1, Handshake: -1, Read: -1, Write: -1, Stagger: -1},
		Backoff:  holdfast.Backoff{Base: -1, Max: -1, Multiplier: -1, Jitter: -1, StableAfter: -1},
		Socket:   holdfast.Socket{KeepAlive: net.KeepAliveConfig{Idle: -1}, UserTimeout: -1},
		Names:    holdfast.Names{Refresh: -1},
		Retry: holdfast.Retry{Attempts: -1, PerTry: -1, Budget: &holdfast.Budget{Percent: -1},
			Backoff: holdfast.Backoff{Base: -1, Max: -1, Multiplier: -1, Jitter: -1}},
		Pool:  holdfast.Pool{MinIdle: -1, MaxDials: -1, Waiters: -1, MaxIdleTime: -1, MaxLifetime: -1, CheckIdle: -1, Ping: -1, WaitTarget: -1},
		Check: holdfast.Check{Interval: -1, Timeout: -1, Fast: -1, Rise: -1, Fall: -1},
		Outlier: holdfast.Outlier{Consecutive: -1, SuccessRate: -1, FailurePercent: -1, MaxPercent: -1, PanicPercent: -1,
			Interval: -1, Eject: -1, MaxEject: -1, SlowStart: -1},
		Probe: func(context.Context, net.Conn) error { return errors.New("nothing probes") },
	}
	t.Run("all at once", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			c := w.cluster(off)
			for range 10 {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour) // never idle too long, never too old
			}
			if n := len(w.client.Conns()); n > 2 || len(w.all(holdfast.EventCheck)) > 0 || len(w.all(holdfast.EventClose)) > 0 {
				t.Errorf("%d connections, checks %v, closes %v", n, w.all(holdfast.EventCheck), w.all(holdfast.EventClose))
			}
		})
	})
	// An unbounded backoff waits for its node all the same.
	t.Run("Backoff.Max", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			s := w.servers[0]
			s.crash()
			time.AfterFunc(50*time.Second, s.listen)
			dials := 0
			cfg := holdfast.Config{Backoff: every(time.Minute), Retry: holdfast.Retry{Backoff: holdfast.Backoff{Base: -1}}, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials++
				return w.client.DialContext(ctx, network, addr)
			}}
			cfg.Backoff.Max = -1
			c := w.cluster(cfg)
			within(t, took(func() {
				if err := c.WaitReady(t.Context()); err != nil {
					t.Error(err)
				}
			}), time.Minute, time.Minute)
			if dials != 2 {
				t.Errorf("dialed %d times, want again after the minute", dials)
			}
		})
	})
	t.Run("Check.Timeout", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.net.SetLink("", "", simnet.Link{Latency: 5 * time.Second})
			c := w.cluster(holdfast.Config{Check: holdfast.Check{Interval: time.Minute, Timeout: -1}, Timeouts: holdfast.Timeouts{Dial: -1}})
			c.Refresh(0) // begins
			time.Sleep(3 * time.Minute)
			for _, e := range w.all(holdfast.EventCheck) {
				if e.Err != nil {
					t.Errorf("a check without a limit ended with %v", e.Err)
				}
			}
		})
	})
	t.Run("Outlier.MaxEject", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			w.servers[0].does(func(net.Conn, string) bool { return false })
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Outlier: holdfast.Outlier{Consecutive: 2, Eject: time.Minute, MaxEject: -1},
				Retry: holdfast.Retry{Classify: func(error) holdfast.Class { return holdfast.ClassOther }}})
			for range 2 {
				c.Do(t.Context(), holdfast.Unsafe, say("x"))
			}
			time.Sleep(30 * time.Second)
			if s := c.Stats().Nodes[0].State; s != holdfast.StateEjected {
				t.Errorf("after half of the ejection time the node is %v, want ejected", s)
			}
		})
	})
}
