package fault_test

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/fault"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// A post is two datagram sockets on an instant network, one of them with faults.
type post struct {
	*testing.T
	net    *simnet.Net
	faults *fault.Injector
	c      net.PacketConn // wrapped
	peer   net.PacketConn
	start  time.Time
}

func packets(t *testing.T, plan fault.Plan, story func(p *post)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &post{T: t, net: simnet.New(1), faults: fault.New(plan), start: time.Now()}
		p.c = p.faults.PacketConn(p.listen("10.0.0.9:9000"))
		p.peer = p.listen(addr)
		story(p)
		p.faults.Close()
		got := p.faults.Stats()
		if got.Open != 0 {
			t.Errorf("after Close, %d sockets are open", got.Open)
		}
		balanced(t, "up", got.UpPackets)
		balanced(t, "down", got.DownPackets)
		p.net.Close()
	})
}

func balanced(t *testing.T, way string, s fault.PacketStats) {
	t.Helper()
	if s.Sent+s.Duplicated != s.Passed+s.Lost+s.Dropped {
		t.Errorf("%s: some are not accounted for: %+v", way, s)
	}
}

func (p *post) listen(address string) net.PacketConn {
	p.Helper()
	sock, err := p.net.ListenPacket("udp", address)
	if err != nil {
		p.Fatal(err)
	}
	sock.(*simnet.PacketConn).SetReadBuffer(100 << 20)
	return sock
}

func (p *post) now(want time.Duration) {
	p.Helper()
	if d := time.Since(p.start); d != want {
		p.Fatalf("it is %v, want %v", d, want)
	}
}

func (p *post) send(from, to net.PacketConn, data ...string) {
	p.Helper()
	for _, s := range data {
		if n, err := from.WriteTo([]byte(s), to.LocalAddr()); n != len(s) || err != nil {
			p.Fatalf("send %q: %d, %v", s, n, err)
		}
	}
}

// gets wants these datagrams, in this order.
func (p *post) gets(at net.PacketConn, want ...string) {
	p.Helper()
	b := make([]byte, 1<<10)
	for _, s := range want {
		if n, from, err := at.ReadFrom(b); err != nil || from == nil || string(b[:n]) != s {
			p.Fatalf("got %q from %v, %v; want %q", b[:n], from, err, s)
		}
	}
}

// rest is what arrives until nothing has for a minute.
func (p *post) rest(at net.PacketConn) (all []string) {
	p.Helper()
	b := make([]byte, 64<<10)
	for {
		at.SetReadDeadline(time.Now().Add(time.Minute))
		n, _, err := at.ReadFrom(b)
		if isTimeout(err) {
			at.SetReadDeadline(time.Time{})
			return all
		}
		if err != nil {
			p.Fatal(err)
		}
		all = append(all, string(b[:n]))
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

func numbers(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("datagram %05d", i))
	}
	return all
}

// bothWays tells a story for each direction: src sends, dst gets.
func bothWays(t *testing.T, link fault.Link, seed uint64, story func(p *post, src, dst net.PacketConn, count func() fault.PacketStats)) {
	t.Helper()
	t.Run("up", func(t *testing.T) {
		packets(t, fault.Plan{Up: link, Seed: seed}, func(p *post) {
			story(p, p.c, p.peer, func() fault.PacketStats { return p.faults.Stats().UpPackets })
		})
	})
	t.Run("down", func(t *testing.T) {
		packets(t, fault.Plan{Down: link, Seed: seed}, func(p *post) {
			story(p, p.peer, p.c, func() fault.PacketStats { synctest.Wait(); return p.faults.Stats().DownPackets })
		})
	})
}

func TestPacketLatency(t *testing.T) {
	bothWays(t, fault.Link{Latency: 40 * ms}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		p.send(src, dst, "one")
		time.Sleep(10 * ms)
		p.send(src, dst, "", "two")
		p.now(10 * ms)
		p.gets(dst, "one")
		p.now(40 * ms)
		p.gets(dst, "", "two")
		p.now(50 * ms)
		if got := count(); got.Delayed != 3 || got.Passed != 3 {
			p.Errorf("%+v", got)
		}
	})
}

// Who reads late gets at once what has arrived meanwhile.
func TestPacketLatencyIsNotTheReaders(t *testing.T) {
	packets(t, fault.Plan{Down: fault.Link{Latency: 40 * ms}}, func(p *post) {
		p.send(p.peer, p.c, "one")
		time.Sleep(time.Second)
		p.gets(p.c, "one")
		p.now(time.Second)
	})
}

func TestPacketJitter(t *testing.T) {
	bothWays(t, fault.Link{Latency: 40 * ms, Jitter: 20 * ms}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		sent := numbers(100)
		var first, last time.Duration
		p.send(src, dst, sent...)
		start, got := time.Now(), []string(nil)
		for range sent {
			b := make([]byte, 100)
			n, _, _ := dst.ReadFrom(b)
			got = append(got, string(b[:n]))
			last = time.Since(start)
			first = cmp.Or(first, last)
		}
		if first < 40*ms || first > 43*ms || last < 57*ms || last >= 60*ms {
			p.Errorf("they arrived from %v to %v", first, last)
		}
		if slices.IsSorted(got) {
			p.Error("nobody overtook anybody")
		}
		if slices.Sort(got); !slices.Equal(got, sent) {
			p.Errorf("got %q", got)
		}
		if got := count(); got.Passed != 100 || got.Reordered != 0 { // that counts what Reorder does
			p.Errorf("%+v", got)
		}
	})
}

func TestPacketBandwidth(t *testing.T) {
	bothWays(t, fault.Link{Bandwidth: 1000}, 1, func(p *post, src, dst net.PacketConn, _ func() fault.PacketStats) {
		big := strings.Repeat("x", 100)
		p.send(src, dst, big, "", big)
		p.gets(dst, big, "")
		p.now(100 * ms)
		p.gets(dst, big)
		p.now(200 * ms)
		time.Sleep(time.Second) // which saves nothing up
		p.send(src, dst, big)
		p.gets(dst, big)
		p.now(1300 * ms)
	})
}

// A full Buffer drops, and counts; small datagrams and empty ones weigh something too.
func TestPacketBuffer(t *testing.T) {
	bothWays(t, fault.Link{Latency: 40 * ms, Buffer: 10 * (512 + 14)}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		sent := numbers(25)
		p.send(src, dst, sent...)
		if got := count(); got.Dropped != 15 || got.Sent != 25 {
			p.Errorf("%+v", got)
		}
		if got := p.rest(dst); !slices.Equal(got, sent[:10]) {
			p.Errorf("got %q", got)
		}
		p.send(src, dst, make([]string, 1000)...)
		if got := len(p.rest(dst)); got != 10 {
			p.Errorf("%d empty ones arrived", got)
		}
	})
	bothWays(t, fault.Link{Latency: 40 * ms, Buffer: -1}, 1, func(p *post, src, dst net.PacketConn, _ func() fault.PacketStats) {
		p.send(src, dst, numbers(4000)...)
		if got := len(p.rest(dst)); got != 4000 {
			p.Errorf("%d arrived", got)
		}
	})
}

// fates is what arrives when of 500 datagrams a millisecond apart, on one socket of two.
func fates(t *testing.T, plan fault.Plan) (log []string) {
	t.Helper()
	packets(t, plan, func(p *post) {
		other := p.faults.PacketConn(p.listen("10.0.0.8:8000"))
		arrived := make(chan []string)
		go func() {
			var log []string
			b := make([]byte, 100)
			for {
				n, from, err := p.peer.ReadFrom(b)
				if err != nil {
					arrived <- log
					return
				}
				if from.String() == p.c.LocalAddr().String() {
					log = append(log, fmt.Sprintf("%v %q", time.Since(p.start), b[:n]))
				}
			}
		}()
		for i, s := range numbers(500) {
			p.send(p.c, p.peer, s)
			if plan.Seed%2 == uint64(i%2) {
				p.send(other, p.peer, s) // which changes nothing for the first
			}
			time.Sleep(ms)
		}
		time.Sleep(time.Second)
		p.peer.SetReadDeadline(time.Now())
		log = <-arrived
	})
	return log
}

func TestPacketsAreReproducible(t *testing.T) {
	plan := fault.Plan{Seed: 42, Up: fault.Link{Latency: 10 * ms, Jitter: 5 * ms, Packets: fault.Packets{
		Loss: 0.05, Burst: fault.Burst{Gap: 50, Length: 3}, Duplicate: 0.05, Reorder: 0.05, Corrupt: 0.05, Truncate: 0.05,
	}}}
	first := fates(t, plan)
	for range 3 {
		if again := fates(t, plan); !slices.Equal(first, again) {
			t.Fatalf("the same seed gave\n%q\nand then\n%q", first, again)
		}
	}
	plan.Seed = 44
	if slices.Equal(first, fates(t, plan)) {
		t.Error("another seed gave the same")
	}
}

func TestPacketBlackHole(t *testing.T) {
	bothWays(t, fault.Link{}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		hole := fault.Link{After: 6, Then: fault.BlackHole}
		p.faults.Set(fault.Plan{Up: hole, Down: hole})
		p.send(src, dst, "one", "two", "three", "")
		if got := p.rest(dst); !slices.Equal(got, []string{"one", "two"}) {
			p.Errorf("got %q", got)
		}
		if got := count(); got.Lost != 2 || p.faults.Stats().BlackHoles != 1 {
			p.Errorf("%+v", p.faults.Stats())
		}
		p.faults.Set(fault.Plan{})
		p.send(src, dst, "four")
		p.gets(dst, "four")
		p.faults.Set(fault.Plan{Up: fault.Link{Then: fault.BlackHole}, Down: fault.Link{Then: fault.BlackHole}})
		if got := p.faults.Stats().BlackHoles; got != 3 {
			p.Errorf("%d directions fell into one, want 3", got)
		}
	})
}

// Cut and Reset are of streams.
func TestPacketsAreNotCut(t *testing.T) {
	packets(t, fault.Plan{Up: fault.Link{Then: fault.Cut}, Down: fault.Link{Then: fault.Reset, Slice: 1}}, func(p *post) {
		p.faults.Cut()
		p.faults.Reset()
		p.send(p.c, p.peer, "one")
		p.gets(p.peer, "one")
		p.send(p.peer, p.c, "two")
		p.gets(p.c, "two")
		if got := p.faults.Stats(); got.Cuts+got.Resets != 0 || got.Up != 3 || got.Down != 3 {
			p.Errorf("%+v", got)
		}
	})
}

// A plan reaches a read that waits, and leaves alone what is under way.
func TestPacketSet(t *testing.T) {
	packets(t, fault.Plan{}, func(p *post) {
		got := make(chan string, 10)
		go func() {
			for {
				b := make([]byte, 100)
				n, _, err := p.c.ReadFrom(b)
				if err != nil {
					close(got)
					return
				}
				got <- string(b[:n])
			}
		}()
		synctest.Wait()
		p.send(p.peer, p.c, "direct")
		synctest.Wait()
		p.faults.Set(fault.Plan{Down: fault.Link{Latency: 40 * ms}})
		if s := <-got; s != "direct" {
			p.Errorf("got %q", s)
		}
		synctest.Wait()
		p.send(p.peer, p.c, "slow")
		synctest.Wait()
		p.faults.Set(fault.Plan{})
		p.send(p.peer, p.c, "fast")
		if s := <-got; s != "fast" {
			p.Errorf("got %q", s)
		}
		p.now(0)
		if s := <-got; s != "slow" {
			p.Errorf("got %q", s)
		}
		p.now(40 * ms)
		p.c.Close()
		if s, more := <-got; more {
			p.Errorf("got %q", s)
		}
	})
}

// A user's deadlines are the user's: what has been sent leaves, and clean or not they
// end calls at their time.
func TestPacketDeadlines(t *testing.T) {
	slow := fault.Link{Latency: 40 * ms}
	packets(t, fault.Plan{Up: slow, Down: slow}, func(p *post) {
		p.c.SetDeadline(p.start.Add(10 * ms))
		p.send(p.c, p.peer, "one")
		if _, _, err := p.c.ReadFrom(make([]byte, 1)); !isTimeout(err) {
			p.Error(err)
		}
		p.now(10 * ms)
		if _, err := p.c.WriteTo([]byte("two"), addrOf(p.peer)); !isTimeout(err) {
			p.Error(err)
		}
		p.gets(p.peer, "one")
		p.now(40 * ms)
		p.c.SetDeadline(time.Time{})
		p.send(p.c, p.peer, "three")
		p.gets(p.peer, "three")
		p.now(80 * ms)
	})
}

func addrOf(c net.PacketConn) net.Addr { return c.LocalAddr() }

// Close does not wait, and what is under way up still leaves.
func TestPacketCloseLingers(t *testing.T) {
	packets(t, fault.Plan{Up: fault.Link{Latency: 40 * ms, Bandwidth: 1}}, func(p *post) {
		p.send(p.c, p.peer, "x")
		p.send(p.c, p.peer, strings.Repeat("y", 100)) // takes longer than a minute
		p.c.Close()
		p.now(0)
		if _, err := p.c.WriteTo(nil, addrOf(p.peer)); err == nil {
			p.Error("wrote after Close")
		}
		p.gets(p.peer, "x")
		p.now(1040 * ms)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := p.faults.Stats(); got.Open != 0 || got.UpPackets.Dropped != 1 {
			p.Errorf("%+v", got)
		}
		p.listen("10.0.0.9:9000") // free again
	})
}

func TestPacketInjectorClose(t *testing.T) {
	packets(t, fault.Plan{Up: fault.Link{Latency: 40 * ms}, Down: fault.Link{Latency: 40 * ms}}, func(p *post) {
		p.send(p.c, p.peer, "x")
		p.send(p.peer, p.c, "y")
		p.c.Close()
		p.faults.Close()
		p.now(0)
		if err := p.faults.PacketConn(p.listen("10.0.0.9:9000")).Close(); err != nil {
			p.Error(err)
		}
		if got := p.rest(p.peer); got != nil {
			p.Errorf("got %q", got)
		}
	})
}

// An ICMP answer reaches the user, once, whoever's call of inner's gets it.
func TestPacketRefused(t *testing.T) {
	for _, plan := range []fault.Plan{
		{}, {Down: fault.Link{Latency: ms}}, {Up: fault.Link{Latency: ms}}, {Up: fault.Link{Latency: ms}, Down: fault.Link{Latency: ms}},
	} {
		packets(t, plan, func(p *post) {
			raw, err := p.net.Host("10.0.0.7").DialContext(p.Context(), "udp", "10.0.0.1:1")
			if err != nil {
				p.Fatal(err)
			}
			c := p.faults.Conn(raw)
			defer c.Close()
			for range 2 {
				c.Write([]byte("anyone?"))
				c.SetReadDeadline(time.Now().Add(time.Second))
				if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) || !strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()) {
					p.Errorf("%+v: %v", plan, err)
				}
				c.SetReadDeadline(time.Now().Add(time.Second))
				if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
					p.Errorf("%+v: told again, or otherwise: %v", plan, err)
				}
			}
		})
	}
}

// A connected socket, as a client dials it.
func TestPacketDial(t *testing.T) {
	packets(t, fault.Plan{Up: fault.Link{Latency: 40 * ms}, Down: fault.Link{Packets: fault.Packets{Duplicate: 1}}}, func(p *post) {
		c, err := p.faults.Dial(p.net.Host("10.0.0.7").DialContext)(p.Context(), "udp", addr)
		if err != nil {
			p.Fatal(err)
		}
		if _, ok := c.(net.PacketConn); !ok {
			p.Error("a *net.UDPConn would be a net.PacketConn")
		}
		fmt.Fprint(c, "ping")
		fmt.Fprint(c, "pong") // which stay two
		b := make([]byte, 100)
		n, from, err := p.peer.ReadFrom(b)
		if err != nil || string(b[:n]) != "ping" || from.String() != c.LocalAddr().String() {
			p.Fatalf("%q from %v, %v", b[:n], from, err)
		}
		p.now(40 * ms)
		p.peer.WriteTo([]byte("answer"), from)
		for range 2 {
			if n, err := c.Read(b); string(b[:n]) != "answer" || err != nil {
				p.Fatalf("%q, %v", b[:n], err)
			}
		}
		alive := c.(interface{ Alive() error }).Alive
		if err := alive(); err != nil {
			p.Error(err)
		}
		p.peer.WriteTo([]byte("late"), from)
		synctest.Wait()
		if alive() == nil {
			p.Error("it has a late answer in store")
		}
		c.Close()
		if err := alive(); err == nil {
			p.Error("it is closed")
		}
		if _, err := c.Read(b); !strings.Contains(err.Error(), net.ErrClosed.Error()) || c.RemoteAddr().String() != addr {
			p.Error(err, c.RemoteAddr())
		}
	})
}

// An address belongs to the caller again when WriteTo has returned.
func TestPacketAddressIsCopied(t *testing.T) {
	packets(t, fault.Plan{Up: fault.Link{Latency: ms}}, func(p *post) {
		to := *p.peer.LocalAddr().(*net.UDPAddr)
		data := []byte("data")
		p.c.WriteTo(data, &to)
		to.Port, to.IP = 1, nil
		copy(data, "DATA")
		p.gets(p.peer, "data")
	})
}
