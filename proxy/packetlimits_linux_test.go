package proxy_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// Each limit drops what is over it, counts it by its name, and keeps what is below.
func TestPacketLimits(t *testing.T) {
	v6 := "[::1]:0"
	for _, c := range []struct {
		name   string
		bind   string
		limits serve.Limits
		from   []string // each of another port
		open   int
		denied serve.Refusals
	}{
		{"all of them", "127.0.0.1:0", serve.Limits{MaxConns: 3}, many("127.0.0.1:0", 5), 3, serve.Refusals{Conns: 2}},
		{"one address", "127.0.0.1:0", serve.Limits{MaxPerIP: 2}, append(many("127.0.0.1:0", 4), "127.0.0.2:0"), 3, serve.Refusals{PerIP: 2}},
		{"one v6 client", v6, serve.Limits{MaxPerIP: 2}, many(v6, 4), 2, serve.Refusals{PerIP: 2}},
		{"a second", "127.0.0.1:0", serve.Limits{Rate: 0.01}, many("127.0.0.1:0", 4), 1, serve.Refusals{Rate: 3}},
		{"one client's second", "127.0.0.1:0", serve.Limits{RatePerIP: 0.01}, append(many("127.0.0.1:0", 3), "127.0.0.2:0"), 2, serve.Refusals{RatePerIP: 2}},
		{"networks", "127.0.0.1:0", serve.Limits{
			Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/29")}, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")},
		}, []string{"127.0.0.1:0", "127.0.0.3:0", "127.0.0.9:0"}, 1, serve.Refusals{Network: 2}},
		{"a second, beside those who may not", "127.0.0.1:0", serve.Limits{Rate: 0.01, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}},
			append(many("127.0.0.3:0", 3), "127.0.0.1:0"), 1, serve.Refusals{Network: 3}},
		{"a second, beside one who is too fast", "127.0.0.1:0", serve.Limits{Rate: 2, RatePerIP: 0.01},
			append(many("127.0.0.3:0", 5), "127.0.0.1:0"), 2, serve.Refusals{RatePerIP: 4}},
		{"none", "127.0.0.1:0", serve.Limits{MaxConns: -1, MaxPerIP: -1}, many("127.0.0.1:0", 300), 300, serve.Refusals{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			w.startAt(c.bind, proxy.PacketConfig{Limits: c.limits, Full: proxy.DropNew}, newNode(t, "a", "127.0.0.1:0"))
			for _, from := range c.from {
				askFrom(t, from, w.addr).Write([]byte("x"))
			}
			eventually(t, "all have come", func() bool { return w.proxy.Stats().FromClients == uint64(len(c.from)) })
			s := w.proxy.Stats()
			if s.Open != c.open || s.Denied != c.denied || s.Dropped.Denied != uint64(len(c.from)-c.open) {
				t.Errorf("%+v", s)
			}
		})
	}
}

func many(addr string, n int) (all []string) {
	for range n {
		all = append(all, addr)
	}
	return all
}

// Two addresses of one /64 are one client; another /64 is another.
func TestPacketLimitsOfV6Networks(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, a := range []string{"fd00:0:0:1::1", "fd00:0:0:1::2", "fd00:0:0:2::1"} {
		run(t, "ip", "addr", "add", a+"/128", "dev", "lo", "nodad")
	}
	w := &packetWorld{T: t}
	w.startAt("[fd00:0:0:1::1]:0", proxy.PacketConfig{Limits: serve.Limits{MaxPerIP: 1}}, newNode(t, "a", "127.0.0.1:0"))
	answered := ""
	for _, from := range []string{"fd00:0:0:1::1", "fd00:0:0:1::2", "fd00:0:0:2::1"} {
		if askFrom(t, "["+from+"]:0", w.addr).ask("x", 300*time.Millisecond) != "" {
			answered += " " + from
		}
	}
	if answered != " fd00:0:0:1::1 fd00:0:0:2::1" {
		t.Errorf("answered:%s", answered)
	}
}

// flood sends one datagram from each of n ports.
func flood(t *testing.T, to string, n int) {
	t.Helper()
	for range n {
		c, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("flood"))
		c.Close()
	}
}

// A flood of sources that say something once drives out itself, and not those who are
// served; under the other policies nobody new, and whoever is the idlest.
func TestFloods(t *testing.T) {
	for _, c := range []struct {
		full proxy.Full
		kept bool // those who are served
		new  bool // one more is let in
	}{
		{proxy.EvictUnassured, true, true},
		{proxy.DropNew, true, false},
		{proxy.EvictIdlest, false, true},
	} {
		t.Run(fmt.Sprint(c.full), func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			a := newNode(t, "a", "127.0.0.1:0")
			w.start(proxy.PacketConfig{Full: c.full, Limits: serve.Limits{MaxConns: 40, MaxPerIP: -1}}, a)
			var served []*asker
			for range 20 {
				s := w.dial()
				s.ask("x", 5*time.Second)
				s.ask("y", 5*time.Second)
				served = append(served, s)
			}
			flood(t, w.addr, 1000)
			eventually(t, "the flood is over", func() bool { return w.proxy.Stats().FromClients >= 1040 })
			if s := w.proxy.Stats(); s.Open != 40 {
				t.Errorf("%+v", s)
			}
			begun := w.proxy.Stats().Sessions
			for i, s := range served {
				if s.ask("z", 5*time.Second) != "a:z" && c.kept {
					t.Errorf("client %d has no answer", i)
				}
				if !c.kept {
					break
				}
			}
			if began := w.proxy.Stats().Sessions > begun; began == c.kept {
				t.Errorf("those who were served were driven out: %t", began)
			}
			if got := w.dial().ask("x", 300*time.Millisecond) != ""; got != c.new {
				t.Errorf("one more is served: %t", got)
			}
		})
	}
}

// A flood at one address shuts out nobody at another, though they have one table.
func TestFloodAtAnotherAddress(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Limits: serve.Limits{MaxConns: 40, MaxPerIP: -1}}, a)
	other, err := net.ListenPacket("udp", ours("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	serveWith(t, w.proxy, other)
	for range 5 {
		flood(t, w.addr, 200)
		eventually(t, "the table is full", func() bool { return w.proxy.Stats().Open >= 40 })
		client := dialAsker(t, other.LocalAddr().String())
		eventually(t, "a client of the other address is served", func() bool { return client.ask("x", 100*time.Millisecond) == "a:x" })
	}
	flood(t, w.addr, 200)
	eventually(t, "nobody is in the books twice", func() bool { return w.proxy.Stats().Open <= 40 })
}

// A table that was made smaller shrinks as others come, who are served.
func TestTableThatWasMadeSmaller(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	cfg := proxy.PacketConfig{Limits: serve.Limits{MaxConns: 40, MaxPerIP: -1}}
	w.start(cfg, a)
	flood(t, w.addr, 100)
	eventually(t, "the table is full", func() bool { return w.proxy.Stats().Open == 40 })
	cfg.Cluster, cfg.Limits.MaxConns = w.cluster, 20
	if err := w.proxy.Update(cfg); err != nil {
		t.Fatal(err)
	}
	flood(t, w.addr, 30)
	eventually(t, "it is as small as it is to be", func() bool { return w.proxy.Stats().Open == 20 })
	if got := w.dial().ask("x", 5*time.Second); got != "a:x" {
		t.Errorf("%q", got)
	}
}

// 20,000 source ports: the table is at its cap, memory is bounded, and others are served.
func TestTwentyThousandSources(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Limits: serve.Limits{MaxConns: 1000, MaxPerIP: -1}}, a)
	client := w.dial()
	client.ask("x", 5*time.Second)
	before := heap()
	most := 0
	for range 20 {
		flood(t, w.addr, 1000)
		most = max(most, w.proxy.Stats().Open)
		if client.ask("y", 5*time.Second) != "a:y" {
			t.Fatal("a client that is served has no answer")
		}
	}
	grown := heap() - before
	s := w.proxy.Stats()
	if most != 1000 || s.Open != 1000 || s.Ends[proxy.Evicted] < 10_000 {
		t.Errorf("%d sessions at most: %+v", most, s)
	}
	if grown > 10<<20 {
		t.Errorf("%d bytes more", grown)
	}
	t.Logf("%d sources heard, %d KiB more", s.Sessions, grown>>10)
}

func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// What a session costs this process; the kernel has a socket besides.
func TestMemoryOfSessions(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Limits: serve.Limits{MaxConns: -1, MaxPerIP: -1}}, a)
	w.dial().ask("x", 5*time.Second)
	before := heap()
	const n = 4000
	for i := range n {
		flood(t, w.addr, 1)
		if i%500 == 499 {
			eventually(t, "they have come", func() bool { return w.proxy.Stats().FromClients == uint64(i+2) })
		}
	}
	each := (heap() - before) / (w.proxy.Stats().Open - 1)
	if each > 4096 {
		t.Errorf("%d bytes for each session", each)
	}
	t.Logf("%d bytes for each session", each)
}

// PerNode: a node that is full is passed over, and when all are there is none.
func TestPacketsPerNode(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a, b := newNode(t, "a", "127.0.0.1:0"), newNode(t, "b", "127.0.0.1:0")
		w.start(proxy.PacketConfig{PerNode: 3}, a, b)
		for range 8 {
			w.dial().Write([]byte("x"))
		}
		eventually(t, "all have come", func() bool { return w.proxy.Stats().FromClients == 8 && a.got.Load()+b.got.Load() == 6 })
		if s := w.proxy.Stats(); a.sources() != 3 || b.sources() != 3 || s.Dropped.NoBackend != 2 || s.Open != 6 {
			t.Errorf("%d and %d: %+v", a.sources(), b.sources(), s)
		}
	})
}

// Datagrams that need no session take none of a node's places.
func TestPacketsPerNodeWithoutSessions(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "a", "127.0.0.1:0")
		w.start(proxy.PacketConfig{PerNode: 1, Requests: 1, Responses: -1}, a)
		client := w.dial()
		for i := range 10 {
			client.Write([]byte("x"))
			eventually(t, "it has come", func() bool { return a.got.Load() == int64(i+1) })
		}
	})
}

// A client is sent so many bytes for its own, until it was heard after a reply.
func TestPacketsAmplification(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, strings.Repeat("a", 99), "127.0.0.1:0") // 100 bytes more in each reply
		w.start(proxy.PacketConfig{Amplification: 15}, a)
		client := w.dial()
		if got := client.ask("0123456789", 5*time.Second); len(got) != 110 { // of 150
			t.Errorf("%d bytes came", len(got))
		}
		a.seen.Range(func(from, _ any) bool { // once more, and nobody asked
			a.pc.WriteToUDPAddrPort(make([]byte, 100), from.(netip.AddrPort))
			return true
		})
		eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped.Amplified == 1 })
		for range 3 { // now it is known to be there
			if got := client.ask("0123456789", 5*time.Second); len(got) != 110 {
				t.Errorf("%d bytes came", len(got))
			}
		}
	})
}

// lines counts what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// No file is left: no new session, those there are go on, the log is bounded, no node is
// blamed and nothing spins.
func TestPacketsWithoutFiles(t *testing.T) {
	if !inChild(t, nil) {
		return
	}
	var log lines
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}, a)
	first := w.dial()
	first.ask("x", 5*time.Second)
	var others []*asker
	for range 10 {
		others = append(others, w.dial())
	}
	free, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(free)
	var was unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &was)
	none := was
	none.Cur = uint64(free)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		for _, o := range others {
			o.Write([]byte("x"))
		}
		if first.ask("y", 5*time.Second) != "a:y" {
			t.Fatal("a session that was there has no answer")
		}
	}
	if n := w.cluster.Stats().Nodes[0]; !n.State.Usable() {
		t.Errorf("the node is blamed: %+v", n)
	}
	before := cpuTime(t)
	time.Sleep(300 * time.Millisecond)
	if took := cpuTime(t) - before; took > 100*time.Millisecond {
		t.Errorf("%v of CPU for nothing", took)
	}
	unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	for _, o := range others {
		if o.ask("z", 5*time.Second) != "a:z" {
			t.Error("no answer, although there are files again")
		}
	}
	if n := log.count("no socket for a session"); n < 1 || n > 5 {
		t.Errorf("%d records of 300 failures", n)
	}
	if s := w.proxy.Stats(); s.Dropped.NoBackend != 300 || s.Open != 11 {
		t.Errorf("%+v", s)
	}
}

// What nodes send comes through while the socket in front is never empty.
func TestFloodStarvesNoReplies(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:0")
	w.start(proxy.PacketConfig{Limits: serve.Limits{MaxPerIP: 1}}, a)
	client := w.dial()
	client.ask("x", 5*time.Second)
	var over atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		c := w.dial() // which has no session
		all.Go(func() {
			for !over.Load() {
				c.Write([]byte("flood"))
			}
		})
	}
	eventually(t, "it is flooded", func() bool { return w.proxy.Stats().Dropped.Denied > 1000 })
	for i := range 20 {
		a.seen.Range(func(from, _ any) bool {
			a.pc.WriteToUDPAddrPort([]byte("news"), from.(netip.AddrPort))
			return true
		})
		if client.hear(5*time.Second) != "news" {
			t.Errorf("datagram %d did not come", i)
			break
		}
	}
	over.Store(true)
	all.Wait()
}

// No port is left: that is no fault of the node either.
func TestPacketsWithoutPorts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40009"), 0); err != nil {
		t.Skip(err)
	}
	w := &packetWorld{T: t}
	a := newNode(t, "a", "127.0.0.1:5001")
	w.startAt("127.0.0.1:5000", proxy.PacketConfig{}, a)
	first := askFrom(t, "127.0.0.1:6000", w.addr)
	first.ask("x", 5*time.Second)
	for i := 0; w.proxy.Stats().Dropped.NoBackend == 0 && i < 30; i++ {
		askFrom(t, fmt.Sprint("127.0.0.1:", 6001+i), w.addr).ask("x", 100*time.Millisecond)
	}
	other := askFrom(t, "127.0.0.1:7000", w.addr)
	other.Write([]byte("x"))
	eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped.NoBackend == 2 })
	if n := w.cluster.Stats().Nodes[0]; !n.State.Usable() || first.ask("y", 5*time.Second) != "a:y" {
		t.Errorf("the node is blamed: %+v", n)
	}
	if s := w.proxy.Stats(); s.Open < 5 || s.Open > 10 {
		t.Errorf("%+v", s)
	}
}
