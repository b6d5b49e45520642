package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// node is a backend of datagrams: it says who it is, and who asked.
type node struct {
	pc   *net.UDPConn
	name string
	got  atomic.Int64
	mute atomic.Bool
	only []byte   // heed what begins like this
	seen sync.Map // of the addresses that asked
}

// ours is a loopback address of this process alone: to a port that was just closed, others
// may still send.
func ours(addr string) string {
	pid := os.Getpid()
	return strings.Replace(addr, "127.0.0.1:0", fmt.Sprintf("127.%d.%d.1:0", 64+pid>>8%128, pid%256), 1)
}

func newNode(t testing.TB, name, addr string, only ...string) *node {
	t.Helper()
	pc, err := net.ListenPacket("udp", ours(addr))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{pc: pc.(*net.UDPConn), name: name, only: []byte(strings.Join(only, ""))}
	n.pc.SetReadBuffer(4 << 20)
	var wg sync.WaitGroup
	wg.Go(n.run)
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return n
}

func (n *node) run() {
	buf := make([]byte, 1<<16)
	for {
		size, from, err := n.pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if !bytes.HasPrefix(buf[:size], n.only) {
			continue // of another test's, which had this port before
		}
		n.got.Add(1)
		n.seen.Store(from, true)
		if !n.mute.Load() {
			n.pc.WriteToUDPAddrPort(append([]byte(n.name+":"), buf[:size]...), from)
		}
	}
}

func (n *node) url() string { return "udp://" + n.pc.LocalAddr().String() }

// sources is how many addresses and ports have asked.
func (n *node) sources() (count int) {
	n.seen.Range(func(any, any) bool { count++; return true })
	return count
}

// opaquePacket hides what a *net.UDPConn can do.
type opaquePacket struct{ net.PacketConn }

// eachPacketWay runs a test with sockets that are watched, and with goroutines.
func eachPacketWay(t *testing.T, test func(t *testing.T, w *packetWorld)) {
	for _, goroutines := range []bool{false, true} {
		t.Run(fmt.Sprintf("goroutines=%t", goroutines), func(t *testing.T) {
			leak.Check(t)
			test(t, &packetWorld{T: t, goroutines: goroutines})
		})
	}
}

type packetWorld struct {
	*testing.T
	goroutines bool
	proxy      *proxy.Packets
	cluster    *holdfast.Cluster
	pc         net.PacketConn
	addr       string
}

// start serves datagrams for the nodes.
func (w *packetWorld) start(cfg proxy.PacketConfig, nodes ...*node) {
	w.Helper()
	w.startAt(ours("127.0.0.1:0"), cfg, nodes...)
}

func (w *packetWorld) startAt(addr string, cfg proxy.PacketConfig, nodes ...*node) {
	w.Helper()
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.url())
	}
	if cfg.Cluster == nil {
		w.cluster = w.clusterOf(holdfast.Config{Picker: holdfast.RoundRobin()}, urls...)
		cfg.Cluster = w.cluster
	}
	p, err := proxy.NewPackets(cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.proxy = p
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		w.Fatal(err)
	}
	pc.(*net.UDPConn).SetReadBuffer(4 << 20) // for what comes before it is served
	w.pc, w.addr = pc, pc.LocalAddr().String()
	if w.goroutines {
		pc = opaquePacket{pc}
	}
	served := make(chan error, 1)
	go func() { served <- p.ServePacket(pc) }()
	w.Cleanup(func() {
		p.Close()
		if err := <-served; err != proxy.ErrClosed {
			w.Errorf("ServePacket: %v", err)
		}
	})
}

func (w *packetWorld) clusterOf(cfg holdfast.Config, urls ...string) *holdfast.Cluster {
	return w.clusterFrom(cfg, holdfast.Static(urls...))
}

func (w *packetWorld) clusterFrom(cfg holdfast.Config, nodes holdfast.Resolver) *holdfast.Cluster {
	if w.goroutines && cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	c, err := holdfast.New(nodes, cfg)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return c
}

func (w *packetWorld) dial() *asker { return dialAsker(w.T, w.addr) }

// asker is a client.
type asker struct {
	*testing.T
	net.Conn
}

func dialAsker(t *testing.T, addr string) *asker {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &asker{t, conn}
}

// ask sends a question and returns the answer, "" if there is none in time.
func (a *asker) ask(question string, within time.Duration) string {
	a.Helper()
	if _, err := a.Write([]byte(question)); err != nil {
		a.Fatal(err)
	}
	return a.hear(within)
}

func (a *asker) hear(within time.Duration) string {
	a.Helper()
	buf := make([]byte, 1<<16)
	a.SetReadDeadline(time.Now().Add(within))
	n, err := a.Read(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// V2, S1: datagrams pass both ways, and what comes from one client goes to one node, from
// one port.
func TestPacketsSessions(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		w.start(proxy.PacketConfig{}, a, b)
		for i := range 8 {
			client := w.dial()
			first := client.ask("0", 5*time.Second)
			for k := range 5 {
				question := fmt.Sprintf("%d/%d", i, k)
				if got := client.ask(question, 5*time.Second); len(got) < 2 || got[:2] != first[:2] || got[2:] != question {
					t.Fatalf("client %d: %q, and the first was %q", i, got, first)
				}
			}
		}
		if a.sources() != 4 || b.sources() != 4 {
			t.Errorf("nodes were asked from %d and %d ports, want 4 each", a.sources(), b.sources())
		}
		s := w.proxy.Stats()
		if s.Open != 8 || s.Sessions != 8 || s.FromClients != 48 || s.FromBackends != 48 || s.Dropped != (proxy.PacketDrops{}) {
			t.Errorf("%+v", s)
		}
	})
}

// What is short, long or empty passes as it is.
func TestPacketsOfAllSizes(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "", "127.0.0.1:0")
		w.start(proxy.PacketConfig{}, a)
		client := w.dial()
		for _, size := range []int{0, 1, 1472, 9000, 65506} {
			question := string(make([]byte, size))
			if got := client.ask(question, 5*time.Second); got != ":"+question {
				t.Errorf("%d bytes: %d came back", size, len(got)-1)
			}
		}
		if s := w.proxy.Stats(); s.Open != 1 || s.FromClientsBytes != 1+1472+9000+65506 {
			t.Errorf("%+v", s)
		}
	})
}

// A node that refuses is passed over, with the very first datagram already.
func TestPacketsPassOverWhoRefuses(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		b.pc.Close() // nobody is there
		w.start(proxy.PacketConfig{}, b, a)
		for range 20 {
			if got := w.dial().ask("x", 5*time.Second); got != "a:x" {
				t.Fatalf("got %q", got)
			}
		}
		s := w.proxy.Stats()
		if s.Refused == 0 || s.Moved == 0 || s.Dropped.NoBackend != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A session whose node goes away goes on at another.
func TestPacketsRepick(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		w.start(proxy.PacketConfig{}, a, b)
		client := w.dial()
		was := client.ask("x", 5*time.Second)
		gone, stays := a, "b:"
		if was == "b:x" {
			gone, stays = b, "a:"
		}
		gone.pc.Close()
		got := ""
		for i := 0; i < 5 && got == ""; i++ { // the first finds out
			got = client.ask("y", time.Second)
		}
		if got != stays+"y" {
			t.Errorf("first %q, then %q", was, got)
		}
		if s := w.proxy.Stats(); s.Open != 1 || s.Moved == 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A session ends when it is idle, when it was answered, and when the proxy ends.
func TestPacketsEnd(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "a", "127.0.0.1:0")
		w.start(proxy.PacketConfig{Idle: 300 * time.Millisecond}, a)
		w.dial().ask("x", 5*time.Second)
		eventually(t, "it is idle", func() bool { s := w.proxy.Stats(); return s.Open == 0 && s.Ends[proxy.Idle] == 1 })

		cfg := proxy.PacketConfig{Cluster: w.cluster, Responses: 1}
		if err := w.proxy.Update(cfg); err != nil {
			t.Fatal(err)
		}
		client := w.dial()
		client.ask("x", 5*time.Second)
		client.ask("x", 5*time.Second)
		eventually(t, "it was answered", func() bool { s := w.proxy.Stats(); return s.Open == 0 && s.Ends[proxy.Answered] == 2 })

		cfg.Responses = 0
		w.proxy.Update(cfg)
		client.ask("x", 5*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := w.proxy.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if s := w.proxy.Stats(); s.Ends[proxy.Drained] != 1 || s.Open != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Each datagram by itself: they are spread over the nodes, and all replies come.
func TestPacketsEachByItself(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		w.start(proxy.PacketConfig{Requests: 1, Responses: 1}, a, b)
		client := w.dial()
		for range 10 {
			client.Write([]byte("x"))
		}
		count := map[string]int{}
		for range 10 {
			count[client.hear(5*time.Second)]++
		}
		if count["a:x"] != 5 || count["b:x"] != 5 {
			t.Errorf("%v", count)
		}
		eventually(t, "nothing is left", func() bool { return w.proxy.Stats().Open == 0 })
	})
}

// One way: no sessions, and who refuses is passed over.
func TestPacketsOneWay(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b, c := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0"), newNode(t, "c", "127.0.0.1:0")
		c.pc.Close()
		w.start(proxy.PacketConfig{Requests: 1, Responses: -1, Limits: serve.Limits{MaxPerIP: 8}}, a, b, c)
		client := w.dial()
		for range 100 {
			client.Write([]byte("x"))
			time.Sleep(time.Millisecond)
		}
		eventually(t, "all but those that c refused have come", func() bool { return a.got.Load()+b.got.Load() >= 90 })
		if a.got.Load() < 30 || b.got.Load() < 30 || a.sources() != 1 {
			t.Errorf("%d and %d, from %d ports", a.got.Load(), b.got.Load(), a.sources())
		}
		if s := w.proxy.Stats(); s.Sessions != 0 || s.Refused == 0 || s.Dropped.Denied != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// That all nodes wait out their backoffs, which may be long, does not shut out clients
// when one is back.
func TestANodeIsUsedBeforeItsBackoffIsOver(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		c := w.clusterOf(holdfast.Config{
			Picker:  holdfast.Ordered(),
			Backoff: holdfast.Backoff{Base: 20 * time.Millisecond, Multiplier: 10_000, Max: time.Hour, Jitter: -1},
		}, a.url(), b.url())
		w.start(proxy.PacketConfig{Cluster: c})
		first := a.pc.LocalAddr().String()
		a.pc.Close()
		eventually(t, "the first has a long backoff", func() bool {
			w.dial().ask("x", 50*time.Millisecond)
			return w.proxy.Stats().Refused >= 2
		})
		newNode(t, "a", first)
		b.pc.Close()
		eventually(t, "the first is used again", func() bool { return w.dial().ask("x", 50*time.Millisecond) == "a:x" })
	})
}
