//go:build unix

package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

func packetsOn(t *testing.T, addr string, does func([]byte, net.Addr) []byte) *packets {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Skipf("no such address here: %v", err)
	}
	return servePackets(t, pc, does)
}

// anySocket is a dual-stack socket, which has the addresses of v4 in v6 form.
func anySocket(ctx context.Context) (net.PacketConn, error) {
	return (&net.ListenConfig{}).ListenPacket(ctx, "udp", ":0")
}

func TestExchangeOnSockets(t *testing.T) {
	leak.Check(t)
	a, b := packetsOn(t, "127.0.0.1:0", nil), packetsOn(t, "127.0.0.1:0", nil)
	for name, d := range map[string]holdfast.Datagrams{
		"connected":        numbered(),
		"one for all":      {ID: numberOf, SetID: setNumber, Match: bytes.Equal, Listen: anySocket},
		"one per exchange": {},
		"a port each":      {ID: numberOf, SetID: setNumber, Uses: 1},
	} {
		t.Run(name, func(t *testing.T) {
			d.Max = -1
			c := clusterAt(t, holdfast.Config{Datagrams: d, Picker: holdfast.RoundRobin()}, url(a.LocalAddr()), url(b.LocalAddr()))
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					for k := range 20 {
						if err := asks(t, c, holdfast.Idempotent, fmt.Sprint(i, k)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if err := asks(t, c, holdfast.Idempotent, strings.Repeat("x", 65505)); err != nil {
				t.Error(err)
			}
			if err := c.Send(t.Context(), nil); err != nil {
				t.Error(err)
			}
			if s := c.Stats(); s.Successes != 401 || s.Nodes[0].Successes == 0 || s.Nodes[1].Successes == 0 {
				t.Errorf("%d successes, %d and %d", s.Successes, s.Nodes[0].Successes, s.Nodes[1].Successes)
			}
			c.Close()
		})
	}
	t.Run("truncated", func(t *testing.T) {
		c := clusterAt(t, holdfast.Config{Datagrams: holdfast.Datagrams{Max: 100}}, url(packetsOn(t, "127.0.0.1:0",
			func([]byte, net.Addr) []byte { return make([]byte, 9000) }).LocalAddr()))
		reply, err := c.Exchange(t.Context(), holdfast.Unsafe, []byte("x"), nil)
		if len(reply) != 100 || !errors.Is(err, holdfast.ErrTruncated) {
			t.Errorf("%d of 9000 bytes: %v", len(reply), err)
		}
	})
	t.Run("IPv6", func(t *testing.T) {
		v6 := packetsOn(t, "[::1]:0", nil)
		for _, listen := range []func(context.Context) (net.PacketConn, error){nil, anySocket} {
			d := numbered()
			d.Listen = listen
			c := clusterAt(t, holdfast.Config{Datagrams: d, Picker: holdfast.RoundRobin()}, url(v6.LocalAddr()), url(a.LocalAddr()))
			for range 4 {
				if err := asks(t, c, holdfast.Unsafe, "x"); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

// Nobody listens: ICMP says so at once, for as long as it is so.
func TestExchangeRefusedOnSockets(t *testing.T) {
	nobody := packetsOn(t, "127.0.0.1:0", nil)
	addr := nobody.LocalAddr()
	nobody.stop()
	c := clusterAt(t, holdfast.Config{Datagrams: numbered(), Picker: holdfast.Ordered()}, url(addr))
	begin := time.Now()
	err := asks(t, c, holdfast.Unsafe, "x")
	if e := asError(t, err); e.Class != holdfast.ClassRefused || !errors.Is(err, syscall.ECONNREFUSED) || e.Phase != holdfast.PhaseRead {
		t.Errorf("class %v in phase %v: %v", e.Class, e.Phase, err)
	}
	if d := time.Since(begin); d > 900*time.Millisecond {
		t.Errorf("after %v: that was the timeout", d)
	}
	if err := asks(t, c, holdfast.Idempotent, "x"); asError(t, err).Class != holdfast.ClassRefused {
		t.Errorf("%v", err)
	}
	packetsOn(t, addr.String(), nil)
	c.ResetBackoff()
	if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
		t.Errorf("it is back: %v", err)
	}
	if n := c.Stats().Conns; n != 1 {
		t.Errorf("%d sockets: a refusal is not a socket's end", n)
	}
}

// A hostile neighbour sends what it likes to the right port, on the socket that listens
// to all, and the right source to the wrong port of the other.
func TestExchangeForgedOnSockets(t *testing.T) {
	other := packetsOn(t, "127.0.0.1:0", mute)
	server := packetsOn(t, "127.0.0.1:0", nil)
	server.then(func(m []byte, from net.Addr) []byte {
		for i := range 50 {
			other.WriteTo(m, from)
			f := slices.Clone(m)
			setNumber(f, uint64(m[0])<<8+uint64(m[1])+uint64(i)+1)
			server.WriteTo(f, from)
		}
		return m
	})
	for _, listen := range []func(context.Context) (net.PacketConn, error){nil, anySocket} {
		d := numbered()
		d.Listen = listen
		c := clusterAt(t, holdfast.Config{Datagrams: d}, url(server.LocalAddr()))
		for range 20 {
			if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
				t.Error(err)
			}
		}
		if n := c.Stats().Forged; n == 0 {
			t.Error("none was counted")
		}
	}
}

// quickEcho answers without an allocation.
func quickEcho(t testing.TB) net.Addr {
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { pc.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			pc.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return pc.LocalAddr()
}

func TestExchangeAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector a sync.Pool drops what it is given")
	}
	for name, d := range map[string]holdfast.Datagrams{"connected": numbered(), "one for all": {ID: numberOf, SetID: setNumber, Listen: anySocket}} {
		c := clusterAt(t, holdfast.Config{Datagrams: d}, url(quickEcho(t)))
		request, buf := make([]byte, 64), make([]byte, 0, 64)
		allocs := testing.AllocsPerRun(500, func() {
			if _, err := c.Exchange(t.Context(), holdfast.Idempotent, request, buf); err != nil {
				t.Error(err)
			}
		})
		if allocs > 0 {
			t.Errorf("%s: %v allocations for an exchange", name, allocs)
		}
	}
}

func BenchmarkExchange(b *testing.B) {
	addr := quickEcho(b)
	for name, d := range map[string]holdfast.Datagrams{
		"connected": numbered(), "one-for-all": {ID: numberOf, SetID: setNumber, Listen: anySocket}, "port-each": {ID: numberOf, SetID: setNumber, Uses: 1},
	} {
		c, err := holdfast.New(holdfast.Static(url(addr)), holdfast.Config{Datagrams: d})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			request, buf := make([]byte, 64), make([]byte, 0, 64)
			for b.Loop() {
				if _, err := c.Exchange(context.Background(), holdfast.Idempotent, request, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		if name != "port-each" {
			b.Run(name+"/256", func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(128)
				b.RunParallel(func(pb *testing.PB) {
					request, buf := make([]byte, 64), make([]byte, 0, 64)
					for pb.Next() {
						if _, err := c.Exchange(context.Background(), holdfast.Idempotent, request, buf); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
		c.Close()
	}
}

// fails is a socket whose writes to some addresses fail on this host.
type fails struct {
	net.PacketConn
	to  string
	err error
}

func (f *fails) WriteTo(m []byte, to net.Addr) (int, error) {
	if to.String() == f.to {
		return 0, &net.OpError{Op: "write", Err: f.err}
	}
	return f.PacketConn.WriteTo(m, to)
}

// A socket for all nodes has no way to one of them: that is no word on the others.
func TestExchangeWithOneNodeOutOfReach(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		a := w.packets("10.0.0.1:53", nil)
		w.net.SetLink("", "", simnet.Link{Latency: 100 * tick})
		d := numbered()
		d.Listen = func(context.Context) (net.PacketConn, error) {
			pc, err := w.net.ListenPacket("udp", clientIP+":0")
			return &fails{pc, "10.0.0.2:53", syscall.ENETUNREACH}, err
		}
		c := w.clusterOf(holdfast.Config{Datagrams: d, Picker: holdfast.RoundRobin()}, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * tick)
				if err := asks(t, c, holdfast.Unsafe, "x"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if a.count() != 4 {
			t.Errorf("%d datagrams for 4 exchanges", a.count())
		}
	})
}

// firstOnly takes one datagram, and fails from then on as after an ICMP error.
type firstOnly struct {
	net.Conn
	sent bool
}

func (f *firstOnly) Write(p []byte) (int, error) {
	if f.sent {
		return 0, &net.OpError{Op: "write", Err: syscall.ECONNREFUSED}
	}
	f.sent = true
	return f.Conn.Write(p)
}

// A send that the kernel did not take is none: the reply to the one before says how long
// that took.
func TestExchangeSampleBesideAFailedSend(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		w.packets("10.0.0.1:53", nil)
		w.net.SetLink("", "", simnet.Link{Latency: 800 * tick})
		c := w.clusterOf(holdfast.Config{
			Datagrams: numbered(), Backoff: holdfast.Backoff{Base: 5 * time.Second, Jitter: -1},
			Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := w.client.DialContext(ctx, network, addr)
				return &firstOnly{Conn: conn}, err
			},
		}, "udp://10.0.0.1:53")
		if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
			t.Error(err)
		}
		if d := c.Stats().Nodes[0].Latency; d != 1600*tick {
			t.Errorf("the node's latency is %v, and it replied after 1.6 s", d)
		}
	})
}

// Without a longest wait it doubles all the same.
func TestExchangeWaitsWithoutBound(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		p := w.packets("10.0.0.1:53", mute)
		d := numbered()
		d.Most = -1
		c := w.clusterOf(holdfast.Config{Datagrams: d}, "udp://10.0.0.1:53")
		took := took(func() { asks(t, c, holdfast.Idempotent, "x") })
		if p.count() != 4 || took < 15*time.Second || took > 23*time.Second {
			t.Errorf("%d sends in %v; four take 15 s, and up to half as long again", p.count(), took)
		}
	})
}
