package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

func refused() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// Who connects by other means than Dial tells how it went, and the node is treated as if
// Dial had done it.
func TestDialedKeepsTheBooks(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		var events []holdfast.Event
		c := w.cluster(holdfast.Config{
			Picker:  holdfast.Ordered(),
			Backoff: holdfast.Backoff{Base: time.Second, Jitter: -1},
			Observe: func(e holdfast.Event) { events = append(events, e) },
		})
		pick := func() holdfast.Lease {
			t.Helper()
			lease, err := c.Pick(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			return lease
		}
		first := pick()
		first.Dialed(time.Millisecond, refused())
		first.Done()
		synctest.Wait()
		if s := first.Node().State(); s != holdfast.StateBackoff {
			t.Errorf("after a refused connect the node is %v", s)
		}
		other := pick()
		if other.Node() == first.Node() {
			t.Error("a node in backoff was chosen")
		}
		other.Dialed(2*time.Millisecond, nil)
		other.Done()
		time.Sleep(time.Second)
		synctest.Wait()
		if again := pick(); again.Node() != first.Node() {
			t.Error("after the backoff the node is not back")
		} else {
			again.Dialed(time.Millisecond, syscall.EMFILE) // this host's trouble
			if s := again.Node().State(); !s.Usable() {
				t.Errorf("for want of files here the node is %v", s)
			}
			again.Dialed(time.Millisecond, refused())
			again.Done()
		}
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if s := first.Node().State(); s != holdfast.StateBackoff {
			t.Errorf("the second backoff is not longer: %v", s)
		}

		s := c.Stats()
		a, b := s.Nodes[0], s.Nodes[1]
		if a.Dials != 3 || a.DialFailures != 3 || b.Dials != 1 || b.DialFailures != 0 || b.DialTime.Count != 1 {
			t.Errorf("the books: %+v, %+v", a, b)
		}
		dials := 0
		for _, e := range events {
			if e.Kind == holdfast.EventDial {
				dials++
			}
		}
		if dials != 4 {
			t.Errorf("%d events of dials", dials)
		}
	})
}

// A connect that went well long after the last failure ends the growth of the backoff.
func TestDialedEndsTheBackoffInTime(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Backoff: holdfast.Backoff{Base: time.Second, Multiplier: 4, Jitter: -1, StableAfter: time.Minute}})
		tell := func(err error) *holdfast.Node {
			lease, perr := c.Pick(0, nil)
			if perr != nil {
				t.Fatal(perr)
			}
			defer lease.Done()
			lease.Dialed(time.Millisecond, err)
			return lease.Node()
		}
		n := tell(refused())
		time.Sleep(time.Second)
		synctest.Wait()
		tell(nil) // too soon to trust it
		tell(refused())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n.State() != holdfast.StateBackoff {
			t.Error("a success right after a failure made the backoff short again")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		tell(nil)
		tell(refused())
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if !n.State().Usable() {
			t.Error("a success long after the last failure did not make the backoff short again")
		}
	})
}

func TestPlainIsNoMoreThanAConnect(t *testing.T) {
	shake := func(context.Context, *holdfast.Conn) error { return nil }
	socks := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") }
	for name, c := range map[string]struct {
		addr string
		cfg  holdfast.Config
		want bool
	}{
		"tcp":          {"tcp://10.0.0.1:1", holdfast.Config{}, true},
		"unix":         {"unix:/run/x", holdfast.Config{}, true},
		"tls":          {"tls://10.0.0.1:1?sni=a", holdfast.Config{TLS: &tls.Config{}}, false},
		"a dialer":     {"tcp://10.0.0.1:1", holdfast.Config{Dial: socks}, false},
		"a handshake":  {"tcp://10.0.0.1:1", holdfast.Config{Handshake: shake}, false},
		"with options": {"tcp://10.0.0.1:1", holdfast.Config{Socket: holdfast.Socket{Nagle: true}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			cl, err := holdfast.New(holdfast.Static(c.addr), c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if err := cl.WaitUsable(t.Context()); err != nil {
				t.Fatal(err)
			}
			lease, err := cl.Pick(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer lease.Done()
			if o, plain := lease.Plain(); plain != c.want || plain && o.Nagle != c.cfg.Socket.Nagle {
				t.Errorf("plain %v with %+v", plain, o)
			}
		})
	}
}

func TestPickAddr(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Backoff: holdfast.Backoff{Base: time.Hour}})
		first := choose(t, c)
		lease, ok := c.PickAddr(first.Addr())
		if !ok || lease.Node() != first || first.InFlight() != 1 {
			t.Fatalf("%v, %v", lease.Node(), ok)
		}
		lease.Dialed(0, refused())
		again, ok := c.PickAddr(first.Addr())
		if !ok || first.InFlight() != 2 {
			t.Error("a node that is not usable has no connections any more")
		}
		again.Done()
		lease.Done()
		if _, ok := c.PickAddr("10.9.9.9:1"); ok {
			t.Error("a node was found that there is not")
		}
	})
}

// Who cannot wait for a backoff to end finds out whether the node is back, one at a time.
func TestPickDown(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Backoff: holdfast.Backoff{Base: time.Second, Multiplier: 1000, Max: time.Hour, Jitter: -1}})
		first := choose(t, c)
		if _, ok := c.PickDown(nil); ok {
			t.Error("a node was chosen that is not down")
		}
		down := func(addr string) {
			lease, ok := c.PickAddr(addr)
			if !ok {
				t.Fatal("no such node")
			}
			lease.Dialed(0, refused())
			lease.Done()
		}
		second := w.servers[1].addr
		down(first.Addr())
		time.Sleep(500 * time.Millisecond)
		down(second)
		if _, ok := c.PickDown(nil); ok {
			t.Error("a node was chosen that was tried less than a backoff ago")
		}
		time.Sleep(500 * time.Millisecond) // now the first may be picked; it fails anew, for long
		down(first.Addr())
		time.Sleep(500 * time.Millisecond)
		down(second)
		time.Sleep(time.Minute)
		if _, err := c.Pick(0, nil); err == nil {
			t.Fatal("they should be down for a quarter of an hour")
		}
		one, ok := c.PickDown(nil)
		if !ok || one.Node() != first {
			t.Fatalf("%v, %v; the first was tried longest ago", one, ok)
		}
		other, ok := c.PickDown(nil)
		if !ok || other.Node() == first {
			t.Errorf("%v, %v; the first was chosen a moment ago", other, ok)
		}
		if _, ok := c.PickDown(nil); ok {
			t.Error("a third was chosen of two")
		}
		if _, ok := c.PickDown([]*holdfast.Node{first, other.Node()}); ok {
			t.Error("one was chosen that was tried")
		}
		one.Dialed(time.Millisecond, nil)
		synctest.Wait()
		if n := choose(t, c); n != first {
			t.Errorf("%v; the first is back", n)
		}
		one.Done()
		other.Done()
	})
}

// Connections that are there belong to a node that is drained, too.
func TestPickAddrOfADrainedNode(t *testing.T) {
	c, err := holdfast.New(holdfast.Static("tcp://10.0.0.1:1?weight=-1", "tcp://10.0.0.2:1"), holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitUsable(t.Context()); err != nil {
		t.Fatal(err)
	}
	lease, ok := c.PickAddr("10.0.0.1:1")
	if !ok {
		t.Fatal("it is not found")
	}
	lease.Done()
}
