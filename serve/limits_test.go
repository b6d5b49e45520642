package serve_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
)

// A1, A2, S2, fault 69: what happens to those who are too many.
func TestOverLimitRejects(t *testing.T) {
	limited := func(l serve.Limits) *serve.Server {
		s := echoes()
		s.Limits = l
		return s
	}
	refused := func(t *testing.T, w *world, want serve.Refusals, err error) {
		t.Helper()
		events := w.seen(serve.Refused)
		if got := w.srv.Stats().Refused; got != want {
			t.Errorf("refused %+v, want %+v", got, want)
		}
		for _, e := range events {
			if !errors.Is(e.Err, err) || e.Remote == nil {
				t.Errorf("event %+v, want %v", e, err)
			}
		}
		if len(events) == 0 {
			t.Error("no event")
		}
	}
	t.Run("close", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{MaxConns: 2}), func(t *testing.T, w *world) {
			a, b := w.client(), w.client()
			a.ask("a")
			b.ask("b")
			w.client().expectEnd()
			a.Close()
			synctest.Wait()
			w.client().ask("there is room again")
			refused(t, w, serve.Refusals{Conns: 1}, serve.ErrTooMany)
			if s := w.srv.Stats(); s.Accepted != 4 || s.Open != 2 {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("bytes", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{MaxConns: 1, RejectWith: []byte("busy\n")}), func(t *testing.T, w *world) {
			w.client().ask("a")
			c := w.client()
			c.expect("busy\n")
			c.expectEnd()
		})
	})
	t.Run("bytes per address", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{MaxPerIP: 1, RejectWith: []byte("busy\n")}), func(t *testing.T, w *world) {
			w.client().ask("a")
			c := w.client()
			c.expect("busy\n")
			c.expectEnd()
			w.clientAt("10.0.0.10").ask("others are let in")
			refused(t, w, serve.Refusals{PerIP: 1}, serve.ErrTooMany)
		})
	})
	t.Run("wait", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{MaxConns: 1, Over: serve.Wait}), func(t *testing.T, w *world) {
			a, b, c := w.client(), w.client(), w.client()
			for _, one := range []*client{a, b, c} {
				one.write("hello\n")
			}
			synctest.Wait()
			if s := w.srv.Stats(); s.Open != 1 || s.Accepted != 1 {
				t.Errorf("%+v, want the others in the backlog", s)
			}
			for _, one := range []*client{a, b, c} {
				one.expect("hello\n")
				one.Close()
				synctest.Wait()
			}
			if r := w.srv.Stats().Refused; r != (serve.Refusals{}) {
				t.Errorf("refused %+v, want nobody", r)
			}
		})
	})
	t.Run("wait, two listeners", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{MaxConns: 1, Over: serve.Wait}), func(t *testing.T, w *world) {
			second, err := w.net.Listen("tcp", "10.0.0.1:7001")
			if err != nil {
				t.Fatal(err)
			}
			go w.srv.Serve(second)
			synctest.Wait()
			a := w.client() // both loops saw that there is room, and wait in accept
			a.ask("hello")
			conn, _ := w.net.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7001")
			b := newClient(t, conn)
			b.write("hello\n")
			synctest.Wait()
			a.Close()
			b.expect("hello\n")
			if r := w.srv.Stats().Refused; r != (serve.Refusals{}) {
				t.Errorf("refused %+v, want nobody", r)
			}
		})
	})
	t.Run("rate", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{Rate: 2}), func(t *testing.T, w *world) {
			w.client().ask("a")
			w.client().ask("b")
			w.client().expectEnd()
			time.Sleep(time.Second / 2)
			w.client().ask("c")
			w.client().expectEnd()
			refused(t, w, serve.Refusals{Rate: 2}, serve.ErrTooFast)
		})
	})
	for _, rate := range []float64{0.7, 3, 7, 1000} {
		t.Run(fmt.Sprintf("rate %v, wait", rate), func(t *testing.T) {
			inWorld(t, limited(serve.Limits{Rate: rate, Over: serve.Wait}), func(t *testing.T, w *world) {
				begin := time.Now()
				const n = 50
				for range n {
					c := w.client()
					c.ask("a")
					c.Close()
				}
				free := max(rate, 1)
				least := time.Duration((n - 1 - free) / rate * float64(time.Second))
				within(t, time.Since(begin), max(least, 0), max(least, 0)+time.Duration(2/rate*float64(time.Second)))
				if r := w.srv.Stats().Refused; r != (serve.Refusals{}) {
					t.Errorf("refused %+v, want nobody", r)
				}
			})
		})
	}
	t.Run("rate per address", func(t *testing.T) {
		inWorld(t, limited(serve.Limits{RatePerIP: 1}), func(t *testing.T, w *world) {
			w.client().ask("a")
			w.client().expectEnd()
			w.clientAt("10.0.0.10").ask("b")
			time.Sleep(time.Second)
			w.client().ask("c")
			refused(t, w, serve.Refusals{RatePerIP: 1}, serve.ErrTooFast)
		})
	})
}

func TestGate(t *testing.T) {
	enter := func(g *serve.Gate, addr string) (*serve.Pass, error) {
		p := new(serve.Pass)
		if err := g.Enter(p); err != nil {
			return nil, err
		}
		if err := p.Admit(netip.MustParseAddr(addr)); err != nil {
			p.Leave()
			return nil, err
		}
		return p, nil
	}
	t.Run("a v6 client is its /64", func(t *testing.T) {
		g := &serve.Gate{Limits: serve.Limits{MaxPerIP: 1}}
		first, _ := enter(g, "2001:db8::1")
		if _, err := enter(g, "2001:db8::ffff:1%eth0"); !errors.Is(err, serve.ErrTooMany) {
			t.Errorf("same /64: %v", err)
		}
		if _, err := enter(g, "2001:db8:0:1::1"); err != nil {
			t.Errorf("next /64: %v", err)
		}
		if _, err := enter(g, "10.0.0.1"); err != nil {
			t.Error(err)
		}
		if _, err := enter(g, "::ffff:10.0.0.1"); !errors.Is(err, serve.ErrTooMany) {
			t.Errorf("the same client as v4-mapped: %v", err)
		}
		first.Leave()
		first.Leave() // the second time nothing
		if _, err := enter(g, "2001:db8::2"); err != nil {
			t.Errorf("there is room: %v", err)
		}
	})
	t.Run("the table is bounded", func(t *testing.T) {
		g := &serve.Gate{Limits: serve.Limits{RatePerIP: 1, MaxConns: -1}}
		for i := range 3 * serve.MaxClients {
			addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			p := new(serve.Pass)
			g.Enter(p)
			p.Admit(addr)
			p.Leave()
		}
		if n := g.Clients(); n > serve.MaxClients {
			t.Errorf("%d clients are remembered, want at most %d", n, serve.MaxClients)
		}
	})
	t.Run("a full table of open connections costs no more per client", func(t *testing.T) {
		g := &serve.Gate{Limits: serve.Limits{MaxPerIP: 1, MaxConns: -1}}
		for i := range serve.MaxClients + 20_000 { // each looking at all would take a minute
			p := new(serve.Pass)
			g.Enter(p)
			if err := p.Admit(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("nothing allocates", func(t *testing.T) {
		g := &serve.Gate{Limits: serve.Limits{
			MaxPerIP: 10, RatePerIP: 1e9, Rate: 1e9,
			Allow: prefixes("10.0.0.0/8"), Deny: prefixes("10.1.0.0/16"),
		}}
		addr := netip.MustParseAddr("10.0.0.1")
		if n := testing.AllocsPerRun(100, func() {
			var p serve.Pass
			g.Enter(&p)
			p.Admit(addr)
			p.Leave()
		}); n > 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func prefixes(all ...string) (p []netip.Prefix) {
	for _, s := range all {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// U16, fault 87: networks are checked before TLS, and a v4 client is one however its
// address, or the network, is written.
func TestAllowAndDeny(t *testing.T) {
	for _, c := range []struct {
		name        string
		allow, deny []string
		in, out     []string
	}{
		{"everybody", nil, nil, []string{"10.0.0.9", "fd00::9"}, nil},
		{"allowed", []string{"10.0.0.0/24"}, nil, []string{"10.0.0.9"}, []string{"10.0.1.9", "fd00::9"}},
		{"denied", nil, []string{"10.0.0.0/24"}, []string{"10.0.1.9", "fd00::9"}, []string{"10.0.0.9"}},
		{"denied wins", []string{"10.0.0.0/8"}, []string{"10.0.0.9/32"}, []string{"10.0.0.10"}, []string{"10.0.0.9"}},
		{"mapped network allows", []string{"::ffff:10.0.0.0/120"}, nil, []string{"10.0.0.9"}, []string{"10.0.1.9"}},
		{"mapped network denies", nil, []string{"::ffff:10.0.0.0/120"}, []string{"10.0.1.9"}, []string{"10.0.0.9"}},
		{"all of v6 is not v4", nil, []string{"::/0"}, []string{"10.0.0.9"}, []string{"fd00::9"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &serve.Gate{Limits: serve.Limits{Allow: prefixes(c.allow...), Deny: prefixes(c.deny...)}}
			check := func(addr netip.Addr, want bool) {
				t.Helper()
				var p serve.Pass
				g.Enter(&p)
				defer p.Leave()
				if err := p.Admit(addr); (err == nil) != want || (err != nil && !errors.Is(err, serve.ErrDenied)) {
					t.Errorf("%v: %v", addr, err)
				}
			}
			for i, all := range [][]string{c.in, c.out} {
				for _, s := range all {
					addr := netip.MustParseAddr(s)
					check(addr, i == 0)
					if addr.Is4() {
						check(netip.AddrFrom16(addr.As16()), i == 0) // ::ffff:…
					}
				}
			}
			if got := g.Refused().Network; (got > 0) != (len(c.out) > 0) {
				t.Errorf("%d refused", got)
			}
		})
	}
	t.Run("before TLS", func(t *testing.T) {
		srv := echoes()
		srv.TLS = newAuthority(t).serverTLS()
		srv.Limits.Deny = prefixes("10.0.0.9/32")
		inWorld(t, srv, func(t *testing.T, w *world) {
			begin := time.Now()
			within(t, w.client().expectEnd().Sub(begin), 0, 0) // without a byte of a handshake
			if s := srv.Stats(); s.Refused.Network != 1 || s.HandshakeFailures != 0 {
				t.Errorf("%+v", s)
			}
			if events := w.seen(serve.Refused); len(events) != 1 || !errors.Is(events[0].Err, serve.ErrDenied) {
				t.Errorf("events %v", events)
			}
		})
	})
	t.Run("v4-mapped on a v6 socket", func(t *testing.T) {
		leak.Check(t)
		srv := echoes()
		srv.Limits.Allow = prefixes("127.0.0.0/8")
		addr := start(t, srv, "tcp://[::]:0").(*net.TCPAddr)
		dial(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: addr.Port}).ask("hello")
		dial(t, &net.TCPAddr{IP: net.IPv6loopback, Port: addr.Port}).expectGone()
	})
}

// U16: who is at the other end of a Unix socket.
func TestAllowUIDs(t *testing.T) {
	leak.Check(t)
	for _, c := range []struct {
		uid int
		in  bool
	}{{os.Getuid(), true}, {os.Getuid() + 1, false}} {
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), echo), Limits: serve.Limits{AllowUIDs: []int{c.uid}}}
		addr := start(t, srv, "unix:"+filepath.Join(t.TempDir(), "s"))
		if who := dial(t, addr); c.in {
			who.ask("hello")
		} else {
			who.expectGone()
			if n := srv.Stats().Refused.UnixUID; n != 1 {
				t.Errorf("%d refused", n)
			}
		}
	}
}

// Limits of a Gate can change under those who are in.
func TestGateUpdate(t *testing.T) {
	gate := serve.Gate{Limits: serve.Limits{MaxConns: 1, MaxPerIP: 2}}
	var a, b, c serve.Pass
	if err := gate.Enter(&a); err != nil {
		t.Fatal(err)
	}
	if err := gate.Enter(&b); !errors.Is(err, serve.ErrTooMany) {
		t.Fatalf("the second of one: %v", err)
	}
	gate.Update(serve.Limits{MaxConns: 3, MaxPerIP: 2})
	addr := netip.MustParseAddr("10.0.0.1")
	if err := errors.Join(a.Admit(addr), gate.Enter(&b), b.Admit(addr)); err != nil {
		t.Fatalf("after the limit was raised: %v", err)
	}
	if err := gate.Enter(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Admit(addr); !errors.Is(err, serve.ErrTooMany) {
		t.Errorf("the third of two from one address: %v", err)
	}
	c.Leave()
	gate.EnterAnyway(&c, addr) // its predecessor let it in
	gate.Update(serve.Limits{MaxConns: 1})
	var d serve.Pass
	if err := gate.Enter(&d); !errors.Is(err, serve.ErrTooMany) {
		t.Errorf("after the limit was lowered: %v", err)
	}
	for _, p := range []*serve.Pass{&a, &b, &c} {
		p.Leave()
	}
	if err := gate.Enter(&d); err != nil {
		t.Errorf("when all have left: %v", err)
	}
}

// Two servers with one Gate share its limits.
func TestServersShareAGate(t *testing.T) {
	leak.Check(t)
	gate := &serve.Gate{Limits: serve.Limits{MaxConns: 1}}
	wait := func(ctx context.Context, c *serve.Conn) error { _, err := io.Copy(c, c); return err }
	one, two := raw(wait), raw(wait)
	one.Gate, two.Gate = gate, gate
	c := dial(t, start(t, one))
	c.write("a")
	c.expect("a")
	dial(t, start(t, two)).expectEnd()
	if n := gate.Refused().Conns; n != 1 {
		t.Errorf("%d refused", n)
	}
}

// Who was let in while there was no limit for one client is not counted against it.
func TestGateCountsOnlyWhomItCounted(t *testing.T) {
	var gate serve.Gate
	addr := netip.MustParseAddr("10.0.0.1")
	var moved, a, b serve.Pass
	gate.EnterAnyway(&moved, addr)
	gate.Update(serve.Limits{MaxPerIP: 1})
	if err := errors.Join(gate.Enter(&a), a.Admit(addr)); err != nil {
		t.Fatal(err)
	}
	moved.Leave()
	if err := errors.Join(gate.Enter(&b), b.Admit(addr)); !errors.Is(err, serve.ErrTooMany) {
		t.Errorf("the second of one: %v", err)
	}
}
