package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/fault"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// What the network does to datagrams in front is done to them alone: each reply is of its
// client's session, the counts agree, and a healthy network finds all sessions well.
func TestPacketsThroughFaults(t *testing.T) {
	leak.Check(t)
	bad := fault.Packets{Loss: 0.1, Duplicate: 0.2, Reorder: 0.2, Corrupt: 0.1, Truncate: 0.1}
	faults := fault.New(fault.Plan{Seed: 7, Up: fault.Link{Packets: bad}, Down: fault.Link{Packets: bad}})
	t.Cleanup(func() { faults.Close() })
	w := &packetWorld{T: t}
	a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
	p := w.successor(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{Picker: holdfast.RoundRobin()}, a.url(), b.url())})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveWith(t, p, faults.PacketConn(pc))
	var clients []*asker
	for range 8 {
		clients = append(clients, dialAsker(t, pc.LocalAddr().String()))
	}
	sent := 0
	for i := range 50 {
		for k, c := range clients {
			fmt.Fprintf(c, "client %d, datagram %d", k, i)
			sent++
		}
		time.Sleep(time.Millisecond)
	}
	eventually(t, "what is under way has come", func() bool {
		s := faults.Stats()
		return p.Stats().FromClients == uint64(s.DownPackets.Passed) && s.DownPackets.Sent+s.DownPackets.Duplicated == s.DownPackets.Passed+s.DownPackets.Lost+s.DownPackets.Dropped
	})
	faults.Set(fault.Plan{})
	time.Sleep(50 * time.Millisecond)
	for k, c := range clients {
		want := fmt.Sprintf("client %d, at last", k)
		c.Write([]byte(want))
		whole, wrong := 0, 0
		end := time.Now().Add(patience)
		for got := ""; !strings.HasSuffix(got, want); got = c.hear(time.Second) {
			if time.Now().After(end) {
				t.Fatalf("client %d: no answer", k)
			}
			var from, i int
			if n, _ := fmt.Sscanf(strings.TrimLeft(got, "ab"), ":client %d, datagram %d", &from, &i); n == 2 {
				whole++
				if from != k {
					wrong++
				}
			}
		}
		if whole < 10 || wrong > 3 { // one bit of a number may be wrong
			t.Errorf("client %d: %d answers of 50, and %d are another's", k, whole, wrong)
		}
	}
	if s := p.Stats(); s.Open != 8 || s.Sessions != 8 || s.Dropped != (proxy.PacketDrops{}) {
		t.Errorf("%d were sent: %+v", sent, s)
	}
}

// oversized is a socket that cuts off what does not fit.
type oversized struct {
	net.PacketConn
	once sync.Once
}

func (o *oversized) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	n, from, err = o.PacketConn.ReadFrom(b)
	if err == nil {
		o.once.Do(func() { n = len(b) })
	}
	return n, from, err
}

// What may have been cut off is not passed on.
func TestPacketsThatAreCutOff(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	p := w.successor(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, a.url())})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveWith(t, p, &oversized{PacketConn: pc})
	client := dialAsker(t, pc.LocalAddr().String())
	client.Write([]byte("x"))
	if client.ask("y", 5*time.Second) != "a:y" {
		t.Error("no answer")
	}
	if s := p.Stats(); s.Dropped.TooLong != 1 || a.got.Load() != 1 {
		t.Errorf("%+v", s)
	}
}

// A socket whose reads fail is read again, ever more seldom, and says so now and then.
type unwell struct {
	net.PacketConn
	fails atomic.Int64
	calls atomic.Int64
}

func (u *unwell) ReadFrom(b []byte) (int, net.Addr, error) {
	u.calls.Add(1)
	if u.fails.Add(-1) >= 0 {
		return 0, nil, os.NewSyscallError("recvfrom", syscall.ENOMEM)
	}
	return u.PacketConn.ReadFrom(b)
}

func TestPacketsReadErrors(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	p := w.successor(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, newNode(t, "a", "127.0.0.1:0").url())})
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	front := &unwell{PacketConn: pc}
	front.fails.Store(5) // 5, 10, 20, 40 and 80 ms
	serveWith(t, p, front)
	if dialAsker(t, pc.LocalAddr().String()).ask("x", 5*time.Second) != "a:x" {
		t.Error("it is not read any more")
	}
}

// seenErrors are the errors of dials and datagrams that a Cluster was told.
type seenErrors struct {
	mu  sync.Mutex
	all []error
}

func (s *seenErrors) observe(e holdfast.Event) {
	if e.Err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all = append(s.all, e.Err)
	}
}

func (s *seenErrors) has(class holdfast.Class, target error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, err := range s.all {
		if holdfast.Classify(err) == class && errors.Is(err, target) {
			return true
		}
	}
	return false
}

// Refused, host and network unreachable, and forbidden are told apart, and whoever of them
// is chosen, the client is answered by another.
func TestPacketErrorsAreTyped(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	run(t, "ip", "route", "add", "unreachable", "10.9.1.0/24")
	run(t, "ip", "route", "add", "prohibit", "10.9.2.0/24")
	a, shut := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
	shut.pc.Close()
	for _, c := range []struct {
		url    string
		class  holdfast.Class
		target error
	}{
		{shut.url(), holdfast.ClassRefused, syscall.ECONNREFUSED},
		{"udp://10.9.1.1:53", holdfast.ClassUnreachable, syscall.EHOSTUNREACH},
		{"udp://10.8.0.1:53", holdfast.ClassUnreachable, syscall.ENETUNREACH},
		{"udp://10.9.2.1:53", holdfast.ClassDenied, syscall.EACCES},
	} {
		var seen seenErrors
		w := &packetWorld{T: t}
		w.start(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{Picker: holdfast.RoundRobin(), Observe: seen.observe}, c.url, a.url())})
		for range 2 {
			if got := w.dial().ask("x", 5*time.Second); got != "a:x" {
				t.Errorf("%s: %q", c.url, got)
			}
		}
		eventually(t, fmt.Sprint(c.url, " is ", c.target), func() bool { return seen.has(c.class, c.target) })
		w.proxy.Close()
	}
}

// An ICMP error that comes later concerns the session it is about, and no other one.
func TestRefusedLater(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
	w.start(proxy.PacketConfig{}, a, b)
	one, two := w.dial(), w.dial()
	first, second := one.ask("x", 5*time.Second), two.ask("x", 5*time.Second)
	a.pc.Close()
	for range 3 {
		one.ask("y", 300*time.Millisecond)
		two.ask("y", 300*time.Millisecond)
	}
	if first == second || one.ask("z", 5*time.Second) != "b:z" || two.ask("z", 5*time.Second) != "b:z" {
		t.Errorf("first %q and %q", first, second)
	}
	if n := b.sources(); n != 2 {
		t.Errorf("b was asked from %d ports: the session that was there moved too", n)
	}
}

// changing is a source of endpoints that a test changes.
type changing struct{ updates chan []string }

func (c *changing) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case urls := <-c.updates:
			var all []holdfast.Endpoint
			for _, u := range urls {
				e, err := holdfast.ParseEndpoint(u)
				if err != nil {
					panic(err)
				}
				all = append(all, e)
			}
			push(all, nil)
		}
	}
}

// Nodes come and go. A session whose node was removed stays for as long as that is well;
// new ones go to the others; when there is none, their datagrams are dropped.
func TestPacketsOfChangingNodes(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		nodes := &changing{make(chan []string)}
		c := w.clusterFrom(holdfast.Config{}, nodes)
		c.Pick(0, nil)
		w.start(proxy.PacketConfig{Cluster: c})
		client := w.dial()
		until := func(what, want string) {
			t.Helper()
			eventually(t, what, func() bool { return client.ask("x", 50*time.Millisecond) == want })
		}
		client.Write([]byte("x")) // there is nobody yet
		eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped.NoBackend == 1 })
		nodes.updates <- []string{a.url()}
		until("a answers", "a:x")
		nodes.updates <- []string{b.url()}
		eventually(t, "b answers who is new", func() bool { return w.dial().ask("x", 50*time.Millisecond) == "b:x" })
		until("a goes on", "a:x")
		nodes.updates <- []string{}
		eventually(t, "nobody answers who is new", func() bool { return w.dial().ask("x", 50*time.Millisecond) == "" })
		a.pc.Close()
		nodes.updates <- []string{b.url()}
		until("a has refused, and b answers", "b:x")
	})
}

// A node that was removed, and does not answer any more, loses its sessions: it may be
// dead, and nobody would say so.
func TestPacketsOfADeadNode(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		nodes := &changing{make(chan []string)}
		c := w.clusterFrom(holdfast.Config{}, nodes)
		c.Pick(0, nil)
		nodes.updates <- []string{a.url()}
		w.start(proxy.PacketConfig{Cluster: c})
		client := w.dial()
		eventually(t, "a answers", func() bool { return client.ask("x", 50*time.Millisecond) == "a:x" })
		a.mute.Store(true)
		nodes.updates <- []string{b.url()}
		eventually(t, "b answers", func() bool { return client.ask("y", 50*time.Millisecond) == "b:y" })
		if s := w.proxy.Stats(); s.Open != 1 || s.Moved != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A node that fails its checks loses its sessions, silent as it is; one that is drained
// keeps them.
func TestPacketsOfUnwellNodes(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		var bad atomic.Pointer[string]
		none := ""
		bad.Store(&none)
		c := w.clusterOf(holdfast.Config{
			Picker: holdfast.RoundRobin(),
			Check:  holdfast.Check{Interval: 20 * time.Millisecond, Fall: 2, Rise: 1},
			Probe: func(_ context.Context, conn net.Conn) error {
				if conn.RemoteAddr().String() == *bad.Load() {
					return errors.New("it is unwell")
				}
				return nil
			},
		}, a.url(), b.url())
		w.start(proxy.PacketConfig{Cluster: c})
		client := w.dial()
		was := client.ask("x", 5*time.Second)
		at, other := a, "b:x"
		if was == "b:x" {
			at, other = b, "a:x"
		}
		at.mute.Store(true)
		addr := at.pc.LocalAddr().String()
		bad.Store(&addr)
		eventually(t, "the other one answers", func() bool { return client.ask("x", 50*time.Millisecond) == other })
		if s := w.proxy.Stats(); s.Moved == 0 || s.Open != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// Several sockets in front, one of which may be read in runs.
func TestSeveralFronts(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Socket: serve.PacketSocket{GRO: true}}, a)
	addrs := []string{w.addr}
	shards, err := serve.ListenShards(t.Context(), "udp://127.0.0.1:0", 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, pc := range shards {
		serveWith(t, w.proxy, pc)
	}
	addrs = append(addrs, shards[0].LocalAddr().String())
	for range 10 {
		for _, addr := range addrs {
			c := dialAsker(t, addr)
			for range 3 {
				if got := c.ask("x", 5*time.Second); got != "a:x" {
					t.Fatalf("%q", got)
				}
			}
		}
	}
	if s := w.proxy.Stats(); s.Open != 20 || s.Sessions != 20 {
		t.Errorf("%+v", s)
	}
}

// Runs that came as one are taken apart again.
func TestPacketsInRuns(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Socket: serve.PacketSocket{GRO: true}}, a)
	client := w.dial()
	raw, _ := client.Conn.(*net.UDPConn).SyscallConn()
	raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, 100) })
	data := make([]byte, 30*100+7)
	for i := range data {
		data[i] = byte(i / 100)
	}
	if _, err := client.Write(data); err != nil {
		t.Skip("no UDP_SEGMENT here: ", err)
	}
	var got []byte
	for range 31 {
		got = append(got, strings.TrimPrefix(client.hear(5*time.Second), ":")...)
	}
	if string(got) != string(data) {
		t.Errorf("%d bytes came back, or others", len(got))
	}
	if s := w.proxy.Stats(); s.FromClients != 31 || s.FromClientsBytes != uint64(len(data)) {
		t.Errorf("%+v", s)
	}
}

// busy keeps a proxy busy until it is stopped.
func (w *packetWorld) busy(clients int) (answers *atomic.Int64, stop func()) {
	var over atomic.Bool
	var all sync.WaitGroup
	answers = new(atomic.Int64)
	for range clients {
		c := w.dial()
		all.Go(func() {
			for !over.Load() {
				c.SetDeadline(time.Now().Add(20 * time.Millisecond))
				c.Write([]byte("x"))
				if n, _ := c.Read(make([]byte, 100)); n > 0 {
					answers.Add(1)
				}
			}
		})
	}
	return answers, func() { over.Store(true); all.Wait() }
}

// Configurations change under load, and sessions stay.
func TestPacketsUpdateUnderLoad(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "a", "127.0.0.1:0")
		w.start(proxy.PacketConfig{}, a)
		answers, stop := w.busy(8)
		for i := range 100 {
			had := answers.Load()
			if err := w.proxy.Update(proxy.PacketConfig{Cluster: w.cluster, Idle: time.Duration(i+1) * time.Second, Full: proxy.Full(i % 3)}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it goes on", func() bool { return answers.Load() > had+10 })
		}
		stop()
		if err := w.proxy.Update(proxy.PacketConfig{}); err == nil {
			t.Error("a configuration without a Cluster was taken")
		}
		if s := w.proxy.Stats(); s.Sessions != 8 || a.sources() != 8 {
			t.Errorf("%+v", s)
		}
	})
}

// Shutdown cuts who does not become quiet, and says how many; nothing begins meanwhile.
func TestPacketsShutdownCuts(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		w.start(proxy.PacketConfig{}, newNode(t, "a", "127.0.0.1:0"))
		answers, stop := w.busy(4)
		defer stop()
		eventually(t, "all are served", func() bool { return w.proxy.Stats().Open == 4 && answers.Load() > 4 })
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		had := answers.Load()
		err := w.proxy.Shutdown(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "4 sessions") {
			t.Errorf("Shutdown: %v", err)
		}
		if s := w.proxy.Stats(); s.Ends[proxy.Cut] != 4 || s.Open != 0 || answers.Load() == had {
			t.Errorf("%+v", s)
		}
	})
}

// Close ends it in the middle of everything, again and again.
func TestPacketsCloseWhileBusy(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "a", "127.0.0.1:0")
		for range 10 {
			w.start(proxy.PacketConfig{}, a)
			answers, stop := w.busy(4)
			eventually(t, "it is busy", func() bool { return answers.Load() > 20 })
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() { w.proxy.Close() })
			}
			all.Wait()
			stop()
			if s := w.proxy.Stats(); s.Open != 0 || w.cluster.Stats().Nodes[0].InFlight != 0 {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// A socket that is closed already, and a Packets that is.
func TestServePacketTooLate(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		p := w.successor(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, "udp://127.0.0.1:9")})
		serveOne := func(closed bool) error {
			var pc net.PacketConn
			pc, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if w.goroutines {
				pc = opaquePacket{pc}
			}
			if closed {
				pc.Close()
			}
			err = p.ServePacket(pc)
			if pc.SetDeadline(time.Now()) == nil {
				t.Error("the socket is open")
			}
			return err
		}
		if err := serveOne(true); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ServePacket: %v", err)
		}
		p.Close()
		if err := serveOne(false); err != proxy.ErrClosed {
			t.Errorf("ServePacket: %v", err)
		}
		if err := p.TakeOver([]byte{1}, nil); err == nil {
			t.Error("TakeOver: no error")
		}
		if err := p.HandOver(t.Context(), nil); err != proxy.ErrClosed {
			t.Errorf("HandOver: %v", err)
		}
	})
}

// Who answers is a matter of Requests and Responses.
func TestRequestsAndResponses(t *testing.T) {
	for _, c := range []struct {
		requests, responses int
		sent                int
		sessions            uint64
		open                int    // when all answers are there
		heard               int    // of what the node answers
		unwanted            uint64 // in all, at least
	}{
		{0, 0, 4, 1, 1, 4, 0},
		{0, 1, 4, 4, 0, 4, 0},  // one after the other
		{0, -1, 4, 1, 1, 0, 1}, // a session, and nothing comes back
		{2, 0, 4, 2, 2, 4, 0},
		{2, 1, 4, 4, 0, 4, 0}, // each is over when it was answered
		{1, 1, 4, 4, 0, 4, 0},
		{1, 2, 4, 4, 4, 4, 0}, // there is one missing
		{2, -1, 4, 2, 0, 0, 0},
		{1, -1, 4, 0, 0, 0, 1},
	} {
		t.Run(fmt.Sprintf("%d and %d", c.requests, c.responses), func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			a := newNode(t, "a", "127.0.0.1:0")
			w.start(proxy.PacketConfig{Requests: c.requests, Responses: c.responses}, a)
			client := w.dial()
			heard := 0
			for i := range c.sent {
				client.Write([]byte("x"))
				eventually(t, "it has come", func() bool { return a.got.Load() == int64(i+1) })
				if c.heard > 0 && client.hear(5*time.Second) != "" {
					heard++
				}
			}
			eventually(t, "all is counted", func() bool {
				s := w.proxy.Stats()
				return heard == c.heard && s.Sessions == c.sessions && s.Open == c.open && s.Dropped.Unwanted >= c.unwanted
			})
			if c.heard == 0 && client.hear(50*time.Millisecond) != "" {
				t.Error("something came back")
			}
		})
	}
}
