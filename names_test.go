package holdfast_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/holdfast-net/holdfast"
)

// byName makes a Cluster over names that directory knows, and waits until they are
// looked up.
func (w *world) byName(cfg holdfast.Config, directory *names, addrs ...string) *holdfast.Cluster {
	w.t.Helper()
	cfg.Names.Lookup = directory.lookup
	if cfg.Dial == nil {
		cfg.Dial = w.dualStack()
	}
	c := w.clusterOf(cfg, addrs...)
	w.resolved(c)
	return c
}

// nodesOf lists the addresses of the nodes as Stats tells them, "10.0.0.1 ready".
func nodesOf(c *holdfast.Cluster) []string {
	var all []string
	for _, n := range c.Stats().Nodes {
		host := n.Node
		if _, ip, ok := strings.Cut(host, "["); ok {
			host, _, _ = strings.Cut(ip, "]")
		}
		host, _, _ = strings.Cut(host, ":7000")
		all = append(all, host+" "+n.State.String())
	}
	slices.Sort(all)
	return all
}

func TestNameBecomesOneNodePerAddress(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		directory := newNames()
		directory.answer("db.example", "10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.1")
		for _, addr := range []string{"10.0.0.1:7000", "10.0.0.2:7000", "[fd00::1]:7000"} {
			w.servers = append(w.servers, w.start(addr))
		}
		c := w.byName(holdfast.Config{Picker: holdfast.RoundRobin()}, directory, "tcp://db.example:7000")

		var told []string
		for _, n := range c.Stats().Nodes {
			told = append(told, n.Node)
		}
		want := []string{"db.example[10.0.0.1]:7000", "db.example[10.0.0.2]:7000", "db.example[fd00::1]:7000"}
		if !slices.Equal(told, want) {
			t.Fatalf("nodes %q, want %q", told, want)
		}
		for range 30 {
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range w.servers {
			if n := len(s.got()); n != 10 {
				t.Errorf("%s got %d operations of 30, want 10", s.addr, n)
			}
		}

		// Each address fails for itself.
		w.servers[1].crash()
		time.Sleep(2 * time.Second) // the connection at rest is found dead
		if _, err := c.DialContext(t.Context(), "tcp", "10.0.0.2:7000"); err == nil {
			t.Fatal("a dead server answered")
		}
		if got, want := nodesOf(c), []string{"10.0.0.1 ready", "10.0.0.2 backoff", "fd00::1 ready"}; !slices.Equal(got, want) {
			t.Errorf("with one address dead: %q, want %q", got, want)
		}
	})
}

// The defect of the original: one name that did not resolve, and no server was tried.
func TestBadNameDoesNotHideTheOthers(t *testing.T) {
	t.Run("first in the list", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			directory := newNames()
			directory.answer("good", "10.0.0.1")
			c := w.byName(holdfast.Config{Picker: holdfast.Ordered()}, directory, "tcp://bad:7000", "tcp://good:7000")
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Error(err)
			}
			failed := w.seen(holdfast.EventResolve)
			if !slices.ContainsFunc(failed, func(e holdfast.Event) bool {
				return e.Err != nil && strings.Contains(e.Cause, "bad:7000")
			}) {
				t.Errorf("no event names the bad name: %v", failed)
			}
		})
	})
	t.Run("one that takes its time", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			directory := newNames()
			directory.says("slow", entry{after: time.Minute})
			directory.answer("good", "10.0.0.1")
			c := w.byName(holdfast.Config{}, directory, "tcp://slow:7000", "tcp://good:7000")
			within(t, took(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Error(err)
				}
			}), 0, 0)
		})
	})
	t.Run("when all are bad, each is named", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			directory := newNames()
			directory.says("broken", entry{err: &net.DNSError{Err: "server misbehaving", Name: "broken", IsTemporary: true}})
			c := w.byName(holdfast.Config{}, directory, "tcp://bad:7000", "tcp://broken:7000")
			_, err := c.DialContext(t.Context(), "tcp", "")
			e := asError(t, err)
			if e.Phase != holdfast.PhaseResolve || !errors.Is(err, holdfast.ErrNoEndpoint) {
				t.Errorf("phase %v: %v", e.Phase, err)
			}
			for _, name := range []string{"bad", "broken"} {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("the error does not name %s: %v", name, err)
				}
			}
		})
	})
	t.Run("and comes in when it is mended", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			directory := newNames()
			directory.answer("good", "10.0.0.1")
			c := w.byName(holdfast.Config{}, directory, "tcp://bad:7000", "tcp://good:7000")
			directory.answer("bad", "10.0.0.2")
			time.Sleep(5 * time.Second)
			if got, want := nodesOf(c), []string{"10.0.0.1 idle", "10.0.0.2 idle"}; !slices.Equal(got, want) {
				t.Errorf("nodes %q, want %q", got, want)
			}
		})
	})
}

func TestFailedLookupKeepsTheLastSet(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		directory := newNames()
		directory.answer("db", "10.0.0.1", "10.0.0.2")
		c := w.byName(holdfast.Config{}, directory, "tcp://db:7000")
		before := nodesOf(c)

		// The directory is down for a day.
		for _, err := range []error{
			&net.DNSError{Err: "no such host", Name: "db", IsNotFound: true},
			&net.DNSError{Err: "server misbehaving", Name: "db", IsTemporary: true},
			&net.DNSError{Err: "i/o timeout", Name: "db", IsTimeout: true},
			errors.New("refused"),
		} {
			directory.says("db", entry{err: err})
			asked := len(directory.times("db"))
			time.Sleep(6 * time.Hour)
			if n := len(directory.times("db")) - asked; n < 600 {
				t.Errorf("in six hours of %v the name was asked for %d times", err, n)
			}
			if got := nodesOf(c); !slices.Equal(got, before) {
				t.Fatalf("after %v: nodes %q, want %q as before", err, got, before)
			}
		}
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Error(err)
		}
		for _, e := range w.seen(holdfast.EventState) {
			if e.To == holdfast.StateDraining {
				t.Errorf("a node was given up: %v", e)
			}
		}
	})
}

func TestEmptyAnswerKeepsTheLastSet(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		directory := newNames()
		directory.answer("db", "10.0.0.1")
		c := w.byName(holdfast.Config{}, directory, "tcp://db:7000")
		directory.answer("db")
		time.Sleep(time.Hour)
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Error(err)
		}
		resolve := w.seen(holdfast.EventResolve)
		if last := resolve[len(resolve)-1]; asError(t, last.Err).Class != holdfast.ClassDNSEmpty {
			t.Errorf("an empty answer is of class %v: %v", asError(t, last.Err).Class, last.Err)
		}

		// What cannot be dialed is no answer either.
		directory.answer("db", "")
		time.Sleep(time.Hour)
		if got, want := nodesOf(c), []string{"10.0.0.1 idle"}; !slices.Equal(got, want) {
			t.Errorf("nodes %q, want %q", got, want)
		}
	})

	t.Run("when it is the first, the error says so", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			directory := newNames()
			directory.answer("db")
			c := w.byName(holdfast.Config{}, directory, "tcp://db:7000")
			_, err := c.Acquire(t.Context())
			if e := asError(t, err); e.Phase != holdfast.PhaseResolve || e.Class != holdfast.ClassDNSEmpty {
				t.Errorf("phase %v, class %v: %v", e.Phase, e.Class, err)
			}
		})
	})
}

// A node that is gone from the answer serves its operations to their end, and
// nothing new.
func TestRemovedNodeDrains(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		directory := newNames()
		directory.answer("db", "10.0.0.1")
		c := w.byName(holdfast.Config{Pool: holdfast.Pool{Max: 2}}, directory, "tcp://db:7000")
		held, err := c.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil { // leaves one at rest
			t.Fatal(err)
		}
		full, err := c.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		own, err := c.DialContext(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		waiter := make(chan *holdfast.Conn, 1)
		go func() {
			conn, err := c.Acquire(t.Context()) // the pool of the one node is full
			if err != nil {
				t.Error(err)
			}
			waiter <- conn
		}()
		synctest.Wait()

		directory.answer("db", "10.0.0.2")
		c.Refresh(0)
		conn := <-waiter
		if conn == nil || conn.Node().Addr() != "10.0.0.2:7000" {
			t.Fatalf("who waited for the removed node was not sent to the new one, but to %v", conn)
		}
		conn.Release()
		full.Release()
		synctest.Wait()
		if got, want := nodesOf(c), []string{"10.0.0.1 draining", "10.0.0.2 ready"}; !slices.Equal(got, want) {
			t.Fatalf("nodes %q, want %q", got, want)
		}
		if s := c.Stats().Nodes; s[0].Idle+s[1].Idle != 1 || w.servers[0].dials() != 3 {
			t.Errorf("a connection rests on the removed node: %+v", s)
		}
		for range 10 {
			if n := choose(t, c); n.Addr() != "10.0.0.2:7000" {
				t.Fatalf("the removed node was chosen")
			}
		}

		// In peace.
		time.Sleep(time.Hour)
		if err := exchange(held, "still"); err != nil {
			t.Errorf("the operation on the removed node: %v", err)
		}
		if err := exchange(own, "here"); err != nil {
			t.Errorf("a driver's connection to the removed node: %v", err)
		}
		held.Release()
		own.Close()
		synctest.Wait()
		if got, want := nodesOf(c), []string{"10.0.0.2 idle"}; !slices.Equal(got, want) {
			t.Errorf("with its last connection gone: nodes %q, want %q", got, want)
		}
		if n := len(w.client.Conns()); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		i := slices.IndexFunc(w.seen(holdfast.EventState), func(e holdfast.Event) bool { return e.To == holdfast.StateDraining })
		if i < 0 || w.seen(holdfast.EventState)[i].Cause != "removed" {
			t.Error("no event tells that the node was removed")
		}
	})
}

// What rests on a node that goes is closed there and then.
func TestRemovedNodeClosesWhatRests(t *testing.T) {
	inWorld(t, 2, func(t *testing.T, w *world) {
		source := newFeed()
		source.set(w.servers[0].addr)
		c := w.clusterFrom(holdfast.Config{}, source)
		if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
			t.Fatal(err)
		}
		source.set(w.servers[1].addr)
		if n := len(w.client.Conns()); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		if got, want := nodesOf(c), []string{"10.0.0.2 idle"}; !slices.Equal(got, want) {
			t.Errorf("nodes %q, want %q", got, want)
		}
	})
}

// gaps returns the times between questions.
func gaps(times []time.Time) []time.Duration {
	var out []time.Duration
	for i := 1; i < len(times); i++ {
		out = append(out, times[i].Sub(times[i-1]))
	}
	return out
}

func TestRefreshIsPeriodicAndJittered(t *testing.T) {
	for _, period := range []struct {
		name    string
		refresh time.Duration // Names.Refresh
		ttl     time.Duration // of the answers
		every   time.Duration
	}{
		{"every 30 s", 0, 0, 30 * time.Second},
		{"as configured", 2 * time.Minute, 0, 2 * time.Minute},
		{"a shorter TTL is honoured", 0, 10 * time.Second, 10 * time.Second},
		{"down to 5 s", 0, time.Second, 5 * time.Second},
		{"a longer TTL changes nothing", 0, time.Hour, 30 * time.Second},
	} {
		t.Run(period.name, func(t *testing.T) {
			inWorld(t, 1, func(t *testing.T, w *world) {
				directory := newNames()
				directory.says("db", entry{addrs: []string{"10.0.0.1"}, ttl: period.ttl})
				w.byName(holdfast.Config{Names: holdfast.Names{Refresh: period.refresh}}, directory, "tcp://db:7000")
				time.Sleep(100 * period.every)

				all := gaps(directory.times("db"))
				if len(all) < 90 || len(all) > 115 {
					t.Errorf("%d questions in a hundred periods", len(all))
				}
				for _, d := range all {
					within(t, d, period.every*8/10, period.every*12/10)
				}
				least, most := slices.Min(all), slices.Max(all)
				if least > period.every*9/10 || most < period.every*11/10 {
					t.Errorf("jitter: the gaps span %v to %v only", least, most)
				}
			})
		})
	}

	t.Run("never, when it is off", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			directory := newNames()
			directory.says("db", entry{addrs: []string{"10.0.0.1"}, ttl: time.Second})
			w.byName(holdfast.Config{Names: holdfast.Names{Refresh: -1}}, directory, "tcp://db:7000")
			time.Sleep(24 * time.Hour)
			if n := len(directory.times("db")); n != 1 {
				t.Errorf("asked %d times", n)
			}
		})
	})

	// Nodes that fail may have moved: the name is asked for, but not more often than
	// every 5 s.
	t.Run("soon, when all nodes fail", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			directory := newNames()
			directory.answer("db", "10.0.0.1")
			c := w.byName(holdfast.Config{Names: holdfast.Names{Refresh: -1}}, directory, "tcp://db:7000")
			time.Sleep(time.Hour)
			w.servers[0].crash()
			start := time.Now()
			for time.Since(start) < time.Minute {
				c.DialContext(t.Context(), "tcp", "")
				time.Sleep(100 * time.Millisecond)
			}
			times := directory.times("db")[1:]
			if len(times) == 0 || !times[0].Equal(start) {
				t.Fatalf("asked %v after the node failed, want at once", times)
			}
			for _, d := range gaps(times) {
				within(t, d, 5*time.Second, 6*time.Second)
			}

			directory.answer("db", "10.0.0.2")
			time.Sleep(5 * time.Second)
			if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
				t.Errorf("the node moved and was not followed: %v", err)
			}
		})
	})
	t.Run("soon, when a node is ejected", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			directory := newNames()
			directory.answer("db", "10.0.0.1", "10.0.0.2")
			c := w.byName(holdfast.Config{Names: holdfast.Names{Refresh: -1}}, directory, "tcp://db:7000")
			time.Sleep(2 * time.Second)
			eject(t, c, "10.0.0.1:7000")
			time.Sleep(time.Minute)
			times := directory.times("db")
			if len(times) != 2 || times[1].Sub(times[0]) != 5*time.Second {
				t.Errorf("asked %v: want once more, 5 s after the first", gaps(times))
			}
		})
	})
}

// What SRV records say becomes priority and weight, below the endpoint's own.
func TestSRVBecomesEndpoints(t *testing.T) {
	t.Run("through Names.Lookup", func(t *testing.T) {
		inWorld(t, 3, func(t *testing.T, w *world) {
			var asked []string
			c := w.clusterOf(holdfast.Config{
				Picker: holdfast.RoundRobin(),
				Names: holdfast.Names{Lookup: func(_ context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
					asked = append(asked, e.Network+" "+e.Addr)
					return []holdfast.Endpoint{
						{Network: "tcp", Addr: "10.0.0.1:7000", Weight: 3},
						{Network: "tcp", Addr: "10.0.0.2:7000", Weight: 1},
						{Network: "tcp", Addr: "10.0.0.3:7000", Priority: 1},
						{Network: "carrier pigeon", Addr: "10.0.0.4:7000"}, // cannot be dialed
					}, 0, nil
				}},
			}, "srv://_line._tcp.example.com")
			w.resolved(c)
			if want := []string{"srv _line._tcp.example.com"}; !slices.Equal(asked, want) {
				t.Errorf("asked for %q, want %q", asked, want)
			}
			if got := chosen(t, c, 8); strings.Count(got, "a") != 6 || strings.Count(got, "b") != 2 {
				t.Errorf("eight choices by weight 3 and 1, and a lower level: %s", got)
			}
			if n := len(c.Stats().Nodes); n != 3 {
				t.Errorf("%d nodes, want 3", n)
			}
		})
	})

	t.Run("through DNS, on real sockets", func(t *testing.T) {
		var servers [3]*realServer
		port := [3]uint16{}
		for i := range servers {
			servers[i] = serveLines(t)
			port[i] = uint16(servers[i].Addr().(*net.TCPAddr).Port)
		}
		srv := func(priority, weight, port uint16, target string) dnsmessage.ResourceBody {
			return &dnsmessage.SRVResource{Priority: priority, Weight: weight, Port: port, Target: dnsmessage.MustNewName(target)}
		}
		local := []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}
		server := serveDNS(t, map[string][]dnsmessage.ResourceBody{
			"_line._tcp.example.test. SRV": {
				srv(10, 3, port[0], "one.example.test."), srv(10, 0, port[1], "two.example.test."),
				srv(20, 9, port[2], "far.example.test."), srv(10, 9, 9, "gone.example.test."),
			},
			"one.example.test. A": local, "two.example.test. A": local, "far.example.test. A": local,
		})
		c, err := holdfast.New(holdfast.Static("srv://_line._tcp.example.test"), holdfast.Config{Picker: holdfast.RoundRobin()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.AskDNS(server)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		operate := func(n int) (got [3]int) {
			t.Helper()
			for range n {
				if err := c.Do(ctx, holdfast.Idempotent, say("x")); err != nil {
					t.Fatal(err)
				}
			}
			for i, s := range servers {
				got[i] = int(s.lines.Swap(0))
			}
			return got
		}

		// Weight 3 to 0, which counts as 1; nothing for the lower level; and the host
		// that does not exist does not spoil the others.
		if got := operate(8); got != [3]int{6, 2, 0} {
			t.Errorf("eight operations fell as %v, want 6, 2, 0", got)
		}
		var told []string
		for _, n := range c.Stats().Nodes {
			told = append(told, n.Node)
		}
		want := []string{
			fmt.Sprintf("one.example.test[127.0.0.1]:%d", port[0]),
			fmt.Sprintf("two.example.test[127.0.0.1]:%d", port[1]),
			fmt.Sprintf("far.example.test[127.0.0.1]:%d", port[2]),
		}
		if !slices.Equal(told, want) {
			t.Errorf("nodes %q, want %q", told, want)
		}
		servers[0].stop()
		servers[1].stop()
		if got := operate(1); got != [3]int{0, 0, 1} {
			t.Errorf("with the first level down an operation went %v", got)
		}
	})
}

// realServer answers lines with themselves, on a real socket.
type realServer struct {
	net.Listener
	lines atomic.Int64
	mu    sync.Mutex // guards conns
	conns []net.Conn
	wg    sync.WaitGroup
}

func serveLines(t *testing.T) *realServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &realServer{Listener: ln}
	s.wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			s.wg.Go(func() {
				r := bufio.NewReader(conn)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					s.lines.Add(1)
					io.WriteString(conn, line)
				}
			})
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *realServer) stop() {
	s.Close()
	s.mu.Lock()
	for _, conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// serveDNS answers questions from a zone, "name. TYPE" to records, on a real socket.
func serveDNS(t *testing.T, zone map[string][]dnsmessage.ResourceBody) (addr string) {
	t.Helper()
	return newDNS(t, zone).addr
}

// fakeDNS is a server whose zone may change, and that may fail for questions of a type.
type fakeDNS struct {
	addr  string
	mu    sync.Mutex // guards the rest
	zone  map[string][]dnsmessage.ResourceBody
	fails string
}

func (d *fakeDNS) become(zone map[string][]dnsmessage.ResourceBody, fails ...string) {
	d.mu.Lock()
	d.zone, d.fails = zone, strings.Join(fails, "")
	d.mu.Unlock()
}

func (d *fakeDNS) reply(m dnsmessage.Message) dnsmessage.Message {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := m.Questions[0]
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}, Questions: m.Questions}
	if "Type"+d.fails == q.Type.String() {
		reply.RCode = dnsmessage.RCodeServerFailure
		return reply
	}
	for key, bodies := range d.zone {
		name, kind, _ := strings.Cut(key, " ")
		if name != q.Name.String() {
			continue
		}
		reply.RCode = dnsmessage.RCodeSuccess
		if "Type"+kind != q.Type.String() {
			continue
		}
		for _, body := range bodies {
			reply.Answers = append(reply.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: body})
		}
	}
	return reply
}

func newDNS(t *testing.T, zone map[string][]dnsmessage.ResourceBody) *fakeDNS {
	t.Helper()
	d := &fakeDNS{zone: zone}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			reply := d.reply(m)
			if packed, err := reply.Pack(); err == nil {
				pc.WriteTo(packed, from)
			}
		}
	}()
	t.Cleanup(func() { pc.Close(); <-done })
	d.addr = pc.LocalAddr().String()
	return d
}

// The answer changes under load: new connections go where the name leads now, old
// ones end in peace, and what did not change is not touched.
func TestDynamicDNSMovesConnections(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		for _, s := range w.servers {
			s.does(after(10*time.Millisecond, reply))
		}
		directory := newNames()
		directory.answer("db", "10.0.0.1", "10.0.0.2")
		c := w.byName(holdfast.Config{Picker: holdfast.RoundRobin()}, directory, "tcp://db:7000")
		stop := w.load(c, 2)

		time.Sleep(2 * time.Minute) // four refreshes
		before := w.servers[1].dials()
		if n := w.servers[0].dials() + before; n > 4 {
			t.Errorf("answers that did not change cost %d connections for 2 callers", n)
		}

		directory.answer("db", "10.0.0.2", "10.0.0.3")
		time.Sleep(40 * time.Second) // within a refresh
		left := len(w.servers[0].got())
		if got, want := nodesOf(c), []string{"10.0.0.2 ready", "10.0.0.3 ready"}; !slices.Equal(got, want) {
			t.Errorf("nodes %q, want %q", got, want)
		}
		time.Sleep(10 * time.Second)
		if n := len(w.servers[0].got()); n != left {
			t.Errorf("the removed node got %d further operations", n-left)
		}
		if n := len(w.servers[2].got()); n < 50 {
			t.Errorf("in at least ten seconds the new node got %d operations of about 18 a second", n)
		}
		if n := w.servers[1].dials(); n != before {
			t.Errorf("the node that stayed was dialed %d times more", n-before)
		}

		// The same answer in another order is the same answer.
		events, dials := len(w.seen(holdfast.EventState)), w.net.Stats().Dials
		for range 2 {
			directory.answer("db", "10.0.0.3", "10.0.0.2")
			time.Sleep(40 * time.Second)
			directory.answer("db", "10.0.0.2", "10.0.0.3")
			time.Sleep(40 * time.Second)
		}
		if n := len(w.seen(holdfast.EventState)) - events; n != 0 {
			t.Errorf("answers in another order made %d state events", n)
		}
		if n := w.net.Stats().Dials - dials; n != 0 {
			t.Errorf("answers in another order cost %d dials", n)
		}

		if failed := stop(); failed != 0 {
			t.Errorf("%d operations failed", failed)
		}
	})

	// A weight is no new name: its nodes keep their connections.
	t.Run("a change of weight moves the load alone", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			directory := newNames()
			directory.says("db", entry{addrs: []string{"10.0.0.1"}})
			directory.says("backup", entry{addrs: []string{"10.0.0.2"}})
			source := newFeed()
			source.set("tcp://db:7000", "tcp://backup:7000")
			c := w.clusterFrom(holdfast.Config{
				Picker: holdfast.RoundRobin(), Names: holdfast.Names{Lookup: directory.lookup},
			}, source)
			for range 4 {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
					t.Fatal(err)
				}
			}
			directory.says("db", entry{addrs: []string{"10.0.0.1"}, after: time.Second})
			source.set("tcp://db:7000?weight=3", "tcp://backup:7000")
			if got, want := nodesOf(c), []string{"10.0.0.1 ready", "10.0.0.2 ready"}; !slices.Equal(got, want) {
				t.Errorf("nodes %q, want %q", got, want)
			}
			for range 2 { // at once, and when the name was looked up again
				if got := chosen(t, c, 8); strings.Count(got, "a") != 6 {
					t.Errorf("by 3 : 1 eight choices fell as %s", got)
				}
				time.Sleep(2 * time.Second)
			}
			if n := w.net.Stats().Dials; n != 2 {
				t.Errorf("%d dials, want the first two", n)
			}
		})
	})
}

// An address has one node, whatever comes and goes while its connections are made.
func TestAnAddressHasOneNode(t *testing.T) {
	const a, b = "10.0.0.1:7000", "10.0.0.2:7000"
	inWorld(t, 2, func(t *testing.T, w *world) {
		source := newFeed()
		source.set(a)
		dialing, goOn := make(chan struct{}), make(chan struct{})
		c := w.clusterFrom(holdfast.Config{
			Timeouts: holdfast.Timeouts{Stagger: -1},
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if addr == a {
					dialing <- struct{}{}
					select {
					case <-goOn:
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				}
				return w.client.DialContext(ctx, network, addr)
			},
		}, source)
		once := func(when string) {
			t.Helper()
			seen := map[string]bool{}
			for _, n := range c.Stats().Nodes {
				if seen[n.Node] {
					t.Errorf("%s: two nodes of %s: %q", when, n.Node, nodesOf(c))
				}
				seen[n.Node] = true
			}
		}
		dial := func(lease holdfast.Lease) <-chan *holdfast.Conn {
			made := make(chan *holdfast.Conn, 1)
			go func() {
				conn, _ := lease.Dial(t.Context(), nil)
				made <- conn
			}()
			return made
		}
		lease := func() holdfast.Lease {
			t.Helper()
			l, err := c.Pick(0, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.Done)
			return l
		}

		// Forgotten and known again, several times, while it is dialed.
		first := lease()
		made := dial(first)
		<-dialing
		for range 3 {
			source.set(b)
			once("removed while it is dialed")
			source.set(a)
			once("added again")
		}
		again := lease()
		if again.Node() != first.Node() {
			t.Error("it became another node while it was dialed")
		}
		madeAgain := dial(again)
		<-dialing
		goOn <- struct{}{}
		one := <-made
		once("with the first connection")
		source.set(b)
		goOn <- struct{}{}
		two := <-madeAgain
		once("with the second, removed again")
		one.Close()
		two.Close()
		if got, want := nodesOf(c), []string{"10.0.0.2 idle"}; !slices.Equal(got, want) {
			t.Errorf("with its connections gone: %q, want %q", got, want)
		}

		// A lease outlives its node: it may bring that back, but not beside another.
		made = dial(first)
		<-dialing
		goOn <- struct{}{}
		one = <-made
		if got, want := nodesOf(c), []string{"10.0.0.1 draining", "10.0.0.2 idle"}; one == nil || !slices.Equal(got, want) {
			t.Errorf("dialed with an old lease: %q, want %q", got, want)
		}
		one.Close()
		source.set(a)
		if _, err := first.Dial(t.Context(), nil); asError(t, err).Class != holdfast.ClassNoEndpoint {
			t.Errorf("dialed beside its successor: %v", err)
		}
		once("with an old lease")
	})
}

// What DialAddr did not need is forgotten with the rest.
func TestDialAddrLeavesNoNodes(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		directory := newNames()
		directory.answer("other", "10.0.0.1", "10.0.0.8", "fd00::9")
		c := w.clusterOf(holdfast.Config{Names: holdfast.Names{Lookup: directory.lookup}, Dial: w.dualStack()}, "10.0.0.7:7000")
		conn, err := c.DialAddr(t.Context(), "tcp", "other:7000")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := nodesOf(c), []string{"10.0.0.1 draining", "10.0.0.7 idle"}; !slices.Equal(got, want) {
			t.Errorf("nodes %q, want %q", got, want)
		}
		conn.Close()
		if got, want := nodesOf(c), []string{"10.0.0.7 idle"}; !slices.Equal(got, want) {
			t.Errorf("nodes %q, want %q", got, want)
		}
	})
}

// A server that has no answer for one address family says nothing about it: only the
// other one follows its answer.
func TestFailedFamilyKeepsItsLastSet(t *testing.T) {
	v4 := func(last byte) dnsmessage.ResourceBody { return &dnsmessage.AResource{A: [4]byte{127, 0, 0, last}} }
	v6 := func(last byte) dnsmessage.ResourceBody {
		return &dnsmessage.AAAAResource{AAAA: [16]byte{0xfd, 15: last}}
	}
	type zone = map[string][]dnsmessage.ResourceBody
	for endpoint, service := range map[string][]dnsmessage.ResourceBody{
		"tcp://db.test:7000": nil,
		"srv://_x._tcp.test": {&dnsmessage.SRVResource{Port: 7000, Target: dnsmessage.MustNewName("db.test.")}},
	} {
		t.Run(endpoint, func(t *testing.T) {
			answers := newDNS(t, zone{"_x._tcp.test. SRV": service, "db.test. A": {v4(1)}, "db.test. AAAA": {v6(1), v6(2)}})
			c := clusterAt(t, holdfast.Config{}, endpoint)
			c.AskDNS(answers.addr)
			begin := func(want ...string) {
				t.Helper()
				c.Refresh(0)
				eventually(t, strings.Join(want, ", "), func() bool { return slices.Equal(nodesOf(c), want) })
			}
			begin("127.0.0.1 idle", "fd00::1 idle", "fd00::2 idle")
			answers.become(zone{"_x._tcp.test. SRV": service, "db.test. A": {v4(2)}, "db.test. AAAA": nil}, "AAAA")
			begin("127.0.0.2 idle", "fd00::1 idle", "fd00::2 idle")
			answers.become(zone{"_x._tcp.test. SRV": service, "db.test. A": nil, "db.test. AAAA": {v6(3)}}, "A")
			begin("127.0.0.2 idle", "fd00::3 idle")
			answers.become(zone{"_x._tcp.test. SRV": service, "db.test. A": nil, "db.test. AAAA": {v6(3)}})
			begin("fd00::3 idle") // no records is an answer
		})
	}
}
