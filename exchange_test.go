package holdfast_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// The protocol of these tests: a number of two bytes, then text; a reply repeats both.
func numberOf(m []byte) (uint64, bool) {
	if len(m) < 2 {
		return 0, false
	}
	return uint64(binary.BigEndian.Uint16(m)), true
}

func setNumber(m []byte, id uint64) { binary.BigEndian.PutUint16(m, uint16(id)) }

func numbered() holdfast.Datagrams {
	return holdfast.Datagrams{ID: numberOf, SetID: setNumber, Match: bytes.Equal}
}

// packets is a server of datagrams in a world. does, if it is set, says what goes back
// for each that comes; nil goes back for silence.
type packets struct {
	net.PacketConn
	wg   sync.WaitGroup
	mu   sync.Mutex // guards the rest
	does func(m []byte, from net.Addr) []byte
	got  []string
	from []string
	at   []time.Time
}

func (w *world) packets(addr string, does func([]byte, net.Addr) []byte) *packets {
	w.t.Helper()
	pc, err := w.net.ListenPacket("udp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return servePackets(w.t, pc, does)
}

func servePackets(t *testing.T, pc net.PacketConn, does func([]byte, net.Addr) []byte) *packets {
	p := &packets{PacketConn: pc, does: does}
	p.wg.Go(p.serve)
	t.Cleanup(p.stop)
	return p
}

func (p *packets) stop() {
	p.Close()
	p.wg.Wait()
}

func (p *packets) serve() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		m := bytes.Clone(buf[:n])
		p.mu.Lock()
		p.got, p.from, p.at = append(p.got, string(m)), append(p.from, from.String()), append(p.at, time.Now())
		does := p.does
		p.mu.Unlock()
		if does != nil {
			m = does(m, from)
		}
		if m != nil {
			p.WriteTo(m, from)
		}
	}
}

func (p *packets) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.got)
}

// then changes what the server does.
func (p *packets) then(does func([]byte, net.Addr) []byte) {
	p.mu.Lock()
	p.does = does
	p.mu.Unlock()
}

func mute([]byte, net.Addr) []byte { return nil }

// asks makes one exchange and checks that the reply is the request.
func asks(t *testing.T, c *holdfast.Cluster, s holdfast.Safety, text string) error {
	t.Helper()
	request := append([]byte{0, 7}, text...)
	reply, err := c.Exchange(t.Context(), s, request, nil)
	if err == nil && !bytes.Equal(reply, request) {
		t.Errorf("asked %q, the reply is %q", request, reply)
	}
	return err
}

const tick = time.Millisecond

func TestExchange(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		a, b := w.packets("10.0.0.1:53", nil), w.packets("10.0.0.2:53", nil)
		w.net.SetLink("", "", simnet.Link{Latency: 10 * tick})
		c := w.clusterOf(holdfast.Config{Datagrams: numbered(), Picker: holdfast.RoundRobin()}, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
		for i := range 10 {
			d := took(func() {
				if err := asks(t, c, holdfast.Unsafe, fmt.Sprint("hello ", i)); err != nil {
					t.Error(err)
				}
			})
			within(t, d, 20*tick, 20*tick)
		}
		if a.count() != 5 || b.count() != 5 {
			t.Errorf("%d and %d requests, want 5 each", a.count(), b.count())
		}
		s := c.Stats()
		if s.Operations != 10 || s.Successes != 10 || s.Forged+s.Late != 0 || s.Conns != 2 || s.Nodes[0].Latency == 0 {
			t.Errorf("%d operations, %d successes, %d forged, %d late, %d sockets", s.Operations, s.Successes, s.Forged, s.Late, s.Conns)
		}
		for _, n := range s.Nodes {
			if n.InFlight != 0 || n.Successes != 5 {
				t.Errorf("%s: %d in flight, %d successes", n.Node, n.InFlight, n.Successes)
			}
		}
		time.Sleep(3 * time.Minute) // idle sockets end
		if n := c.Stats().Conns; n != 0 {
			t.Errorf("%d sockets are open after three minutes without use", n)
		}
		if err := asks(t, c, holdfast.Unsafe, "again"); err != nil {
			t.Error(err)
		}
	})
}

// Nobody answers: each send is at the time that RFC 6298 and 7252 say.
func TestExchangeSchedule(t *testing.T) {
	sends := func(t *testing.T, p *packets, from time.Time, want ...time.Duration) {
		t.Helper()
		if len(p.at) != len(want) {
			t.Fatalf("%d sends, want %d", len(p.at), len(want))
		}
		last := from
		for i, d := range want {
			gap := p.at[i].Sub(last)
			if gap < d || gap > d*3/2 {
				t.Errorf("send %d came %v after the one before, want %v to %v", i+1, gap, d, d*3/2)
			}
			last = p.at[i]
			if p.from[i] != p.from[0] || p.got[i] != p.got[0] {
				t.Errorf("send %d is %q from %s, the first is %q from %s", i+1, p.got[i], p.from[i], p.got[0], p.from[0])
			}
		}
	}
	for _, test := range []struct {
		name   string
		safety holdfast.Safety
		change func(*holdfast.Datagrams)
		want   []time.Duration
		end    time.Duration // the last wait
	}{
		{"idempotent", holdfast.Idempotent, nil, []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second}, 8 * time.Second},
		{"unsafe", holdfast.Unsafe, nil, []time.Duration{0}, time.Second},
		{"unsafe, deduplicated", holdfast.Unsafe, func(d *holdfast.Datagrams) { d.Deduplicates = true },
			[]time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second}, 8 * time.Second},
		{"own numbers", holdfast.Idempotent, func(d *holdfast.Datagrams) { d.Sends, d.First, d.Most = 5, 2*time.Second, 5*time.Second },
			[]time.Duration{0, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}, 5 * time.Second},
		{"once", holdfast.Idempotent, func(d *holdfast.Datagrams) { d.Sends = -1 }, []time.Duration{0}, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				p := w.packets("10.0.0.1:53", mute)
				d := numbered()
				if test.change != nil {
					test.change(&d)
				}
				c := w.clusterOf(holdfast.Config{Datagrams: d}, "udp://10.0.0.1:53")
				start := time.Now()
				err := asks(t, c, test.safety, "x")
				end := time.Now()
				synctest.Wait()
				sends(t, p, start, test.want...)
				within(t, end.Sub(p.at[len(p.at)-1]), test.end, test.end*3/2)
				if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseRead || e.SafeToRetry() || e.Attempt != len(test.want) || e.Written != 3 {
					t.Errorf("%+v", e)
				}
			})
		})
	}

	t.Run("by round trips", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			p := w.packets("10.0.0.1:53", nil)
			w.net.SetLink("", "", simnet.Link{Latency: 200 * tick})
			c := w.clusterOf(holdfast.Config{Datagrams: numbered()}, "udp://10.0.0.1:53")
			ask := func() (sent int, d time.Duration) {
				t.Helper()
				before := p.count()
				d = took(func() {
					if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
						t.Error(err)
					}
				})
				time.Sleep(5 * time.Second)
				return p.count() - before, d
			}
			for range 30 { // srtt 400 ms; rttvar goes to 0
				if n, d := ask(); n != 1 || d != 400*tick {
					t.Fatalf("%d sends, %v", n, d)
				}
			}
			if late := c.Stats().Late; late != 0 {
				t.Errorf("%d late replies", late)
			}
			// The node is suddenly slower than any timeout so far: by Karn's rule nothing is
			// learned from a reply to a repeated request but the timeout that sufficed, so
			// the next one is not repeated, gives a sample, and all is well again.
			w.net.SetLink("", "", simnet.Link{Latency: 300 * tick})
			if n, d := ask(); n != 2 || d != 600*tick {
				t.Errorf("slower: %d sends, %v", n, d)
			}
			for range 10 {
				if n, d := ask(); n != 1 || d != 600*tick {
					t.Errorf("then: %d sends, %v", n, d)
				}
			}
			if late := c.Stats().Late; late != 1 {
				t.Errorf("%d late replies, want that to the second send", late)
			}
		})
	})
}

// What the schedule promises on a network that loses datagrams: an exchange fails when
// each of its four sends, or the reply to it, is lost.
func TestExchangeUnderLoss(t *testing.T) {
	const exchanges, latency, rto = 4000, 10 * tick, 200 * tick
	for _, loss := range []float64{0.01, 0.05, 0.20} {
		t.Run(fmt.Sprintf("%v %%", loss*100), func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				w.packets("10.0.0.1:53", nil)
				w.net.SetLink("", "", simnet.Link{Latency: latency})
				c := w.clusterOf(holdfast.Config{
					Datagrams: numbered(), Retry: holdfast.Retry{Budget: &holdfast.Budget{Percent: -1}},
					Outlier: holdfast.Outlier{Consecutive: -1},
				}, "udp://10.0.0.1:53")
				for range 10 {
					asks(t, c, holdfast.Idempotent, "warm")
				}
				w.net.SetLink("", "", simnet.Link{Latency: latency, Loss: loss})
				var times []time.Duration
				failed := 0
				for range exchanges {
					d := took(func() {
						if asks(t, c, holdfast.Idempotent, "x") != nil {
							failed++
						}
					})
					times = append(times, d)
				}
				slices.Sort(times)
				lost := 1 - (1-loss)*(1-loss) // of a send or its reply
				first := 0
				for _, d := range times {
					if d == 2*latency {
						first++
					}
				}
				expect := func(what string, got int, p float64) {
					t.Helper()
					mean, dev := p*exchanges, math.Sqrt(p*(1-p)*exchanges)
					if math.Abs(float64(got)-mean) > 4*dev+1 {
						t.Errorf("%s: %d of %d, want %.0f ± %.0f", what, got, exchanges, mean, 4*dev)
					}
				}
				expect("answered at once", first, 1-lost)
				expect("failed", failed, math.Pow(lost, 4))
				// How many waits, of RTO, 2 RTO …, each up to 1.5 times that, were before the
				// end of the exchange at the 99th percentile, within four deviations of it.
				waits := func(tail float64) int { return min(4, int(math.Ceil(math.Log(tail)/math.Log(lost)))-1) }
				dev := 4 * math.Sqrt(0.01*0.99/exchanges)
				least := rto * time.Duration(1<<waits(0.01+dev)-1)
				most := 2*latency + rto*time.Duration(1<<waits(0.01-dev)-1)*3/2
				p99 := times[exchanges*99/100]
				within(t, p99, least, most)
				t.Logf("%v %% loss: %d of %d failed, p50 %v, p99 %v", loss*100, failed, exchanges, times[exchanges/2], p99)
			})
		})
	}
}

// The node dies; later sends go to the other, and soon all do.
func TestExchangeGoesElsewhere(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		a, b := w.packets("10.0.0.1:53", nil), w.packets("10.0.0.2:53", nil)
		w.net.SetLink("", "", simnet.Link{Latency: tick})
		c := w.clusterOf(holdfast.Config{Datagrams: numbered(), Picker: holdfast.Ordered()}, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
		for range 5 {
			if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
				t.Fatal(err)
			}
		}
		w.net.Partition(clientIP, "10.0.0.1")
		before := a.count()
		for range 20 {
			d := took(func() {
				if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
					t.Error(err)
				}
			})
			within(t, d, 2*tick, 302*tick)
		}
		if got := b.count(); got != 20 || a.count() != before {
			t.Errorf("the other got %d of 20", got)
		}
		if s := c.Stats(); s.Nodes[0].State != holdfast.StateEjected || s.Nodes[0].Failures != 5 || s.Hidden != 5 || s.Failures != 0 {
			t.Errorf("the dead node is %v with %d failures; %d hidden", s.Nodes[0].State, s.Nodes[0].Failures, s.Hidden)
		}
	})

	// An unsafe request that may have been acted on goes nowhere else.
	t.Run("unsafe", func(t *testing.T) {
		for _, dedup := range []bool{false, true} {
			inWorld(t, 0, func(t *testing.T, w *world) {
				a, b := w.packets("10.0.0.1:53", mute), w.packets("10.0.0.2:53", nil)
				d := numbered()
				d.Deduplicates = dedup
				c := w.clusterOf(holdfast.Config{Datagrams: d, Picker: holdfast.Ordered()}, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
				err := asks(t, c, holdfast.Unsafe, "pay")
				synctest.Wait()
				want := 1
				if dedup {
					want = 4
				}
				if a.count() != want || b.count() != 0 || err == nil {
					t.Errorf("sent %d and %d times: %v", a.count(), b.count(), err)
				}
			})
		}
	})

	// A late reply of the node asked first is as good as any.
	t.Run("late", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			w.packets("10.0.0.1:53", nil)
			w.packets("10.0.0.2:53", mute)
			w.net.SetLink("10.0.0.1", clientIP, simnet.Link{Latency: 1700 * tick})
			c := w.clusterOf(holdfast.Config{Datagrams: numbered(), Picker: holdfast.Ordered()}, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
			d := took(func() {
				if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
					t.Error(err)
				}
			})
			within(t, d, 1700*tick, 1700*tick)
			if n := c.Stats().Nodes[0]; n.Successes != 1 {
				t.Errorf("%+v", n)
			}
		})
	})
}

// The network says that nobody listens, or that there is no way.
func TestExchangeHearsICMP(t *testing.T) {
	for errno, class := range map[syscall.Errno]holdfast.Class{
		syscall.ECONNREFUSED: holdfast.ClassRefused,
		syscall.EHOSTUNREACH: holdfast.ClassUnreachable,
		syscall.ENETUNREACH:  holdfast.ClassUnreachable,
	} {
		t.Run(errno.Error(), func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				b := w.packets("10.0.0.2:53", nil)
				w.net.SetLink("", "", simnet.Link{Latency: tick})
				w.net.SetLink(clientIP, "10.0.0.1", simnet.Link{Latency: tick, Reject: errno})
				cfg := holdfast.Config{Datagrams: numbered(), Picker: holdfast.Ordered()}
				c := w.clusterOf(cfg, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
				d := took(func() {
					if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
						t.Error(err)
					}
				})
				within(t, d, 4*tick, 4*tick) // 2 ms to hear of it, 2 ms for the other
				if s := c.Stats().Nodes[0]; s.State != holdfast.StateBackoff {
					t.Errorf("the node is %v", s.State)
				}
				for range 10 {
					if d := took(func() { asks(t, c, holdfast.Idempotent, "x") }); d != 2*tick {
						t.Errorf("while it backs off: %v", d)
					}
				}
				if b.count() != 11 {
					t.Errorf("%d requests", b.count())
				}

				// Unsafe and alone it fails at once, by its own name.
				alone := w.clusterOf(cfg, "udp://10.0.0.1:53")
				var err error
				d = took(func() { err = asks(t, alone, holdfast.Unsafe, "x") })
				within(t, d, 2*tick, 2*tick)
				if e := asError(t, err); e.Class != class || !errors.Is(err, errno) || e.SafeToRetry() || e.Phase != holdfast.PhaseRead {
					t.Errorf("%v: %+v", e, e)
				}
				// Idempotent it is tried again as the backoff allows, four times in all.
				w.net.SetLink(clientIP, "10.0.0.1", simnet.Link{Latency: tick, Reject: errno})
				d = took(func() { err = asks(t, alone, holdfast.Idempotent, "x") })
				within(t, d, 600*tick, 3*time.Second)
				if e := asError(t, err); e.Class != class || e.Attempt != 4 {
					t.Errorf("%v", e)
				}
			})
		})
	}

	// A hint is not the end of a socket: who restarts is found again, on the same one.
	t.Run("comes back", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			c := w.clusterOf(holdfast.Config{Datagrams: numbered()}, "udp://10.0.0.1:53")
			back := make(chan *packets, 1)
			time.AfterFunc(300*tick, func() { back <- w.packets("10.0.0.1:53", nil) })
			if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
				t.Error(err)
			}
			if s := c.Stats(); s.Conns != 1 || s.Nodes[0].State != holdfast.StateReady {
				t.Errorf("%d sockets, %v", s.Conns, s.Nodes[0].State)
			}
			(<-back).stop()
		})
	})
}

// What does not answer the request is no reply, whatever it looks like.
func TestExchangeForgedReplies(t *testing.T) {
	const forged = 100_000
	for _, unconnected := range []bool{false, true} {
		t.Run(map[bool]string{false: "connected", true: "unconnected"}[unconnected], func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				other, err := w.net.ListenPacket("udp", "10.0.0.66:53")
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				samePort, err := w.net.ListenPacket("udp", "10.0.0.1:54")
				if err != nil {
					t.Fatal(err)
				}
				defer samePort.Close()
				server := w.packets("10.0.0.1:53", nil)
				server.then(func(m []byte, from net.Addr) []byte {
					for i := range forged / 10 {
						f := append([]byte(nil), m...)
						switch i % 5 {
						case 0: // the right number from elsewhere
							other.WriteTo(f, from)
						case 1:
							samePort.WriteTo(f, from)
						case 2: // a wrong number
							id, _ := numberOf(m)
							setNumber(f, id+uint64(i)+1)
							server.WriteTo(f, from)
						case 3: // the right number, another question
							server.WriteTo(append(f, '!'), from)
						case 4: // none at all
							server.WriteTo(f[:1], from)
						}
						if i%100 == 0 {
							time.Sleep(tick / 10) // its reader has a buffer of 208 KiB
						}
					}
					return m
				})
				d := numbered()
				if unconnected {
					d.Listen = func(context.Context) (net.PacketConn, error) { return w.net.ListenPacket("udp", clientIP+":0") }
				}
				c := w.clusterOf(holdfast.Config{Datagrams: d}, "udp://10.0.0.1:53")
				for i := range 10 {
					if err := asks(t, c, holdfast.Unsafe, fmt.Sprint("question ", i)); err != nil {
						t.Error(err)
					}
				}
				want := uint64(forged * 3 / 5) // the kernel keeps the others from a connected socket
				if unconnected {
					want = forged
				}
				if s := c.Stats(); s.Forged+s.Late != want || s.Successes != 10 {
					t.Errorf("%d forged, %d late, want %d; %d answered", s.Forged, s.Late, want, s.Successes)
				}
			})
		})
	}
}

// Duplicates and late replies answer nobody else, whatever is asked next, and with
// whatever number.
func TestExchangeLateReplies(t *testing.T) {
	for name, d := range map[string]holdfast.Datagrams{
		"drawn numbers":    {ID: numberOf, SetID: setNumber},
		"the same number":  {ID: numberOf},
		"no number":        {},
		"one per exchange": {ID: numberOf, SetID: setNumber, Uses: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 0, func(t *testing.T, w *world) {
				w.packets("10.0.0.1:53", nil)
				w.net.SetLink("", "", simnet.Link{Latency: tick, Jitter: 100 * tick, Duplicate: 0.5})
				d.First, d.Least = 10*tick, 10*tick // repeats nearly everything
				c := w.clusterOf(holdfast.Config{Datagrams: d, Retry: holdfast.Retry{Budget: &holdfast.Budget{Percent: -1}},
					Outlier: holdfast.Outlier{Consecutive: -1}}, "udp://10.0.0.1:53")
				answered := 0
				for i := range 500 {
					if asks(t, c, holdfast.Idempotent, fmt.Sprint(i)) == nil { // it compares
						answered++
					}
				}
				if answered < 400 {
					t.Errorf("%d of 500 answered", answered)
				}
				s := c.Stats()
				if name == "drawn numbers" && s.Late < 100 {
					t.Errorf("%d late: no test of it", s.Late)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if n := c.Stats().Conns; n > 1 {
					t.Errorf("%d sockets at rest", n)
				}
			})
		})
	}
}

func TestExchangeSizes(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		size := 0
		w.packets("10.0.0.1:53", func(m []byte, _ net.Addr) []byte {
			if size == 0 {
				return m
			}
			return append(m[:2:2], make([]byte, size-2)...)
		})
		ask := func(max, request, reply int) (int, error) {
			size = reply
			c := w.clusterOf(holdfast.Config{Datagrams: holdfast.Datagrams{ID: numberOf, SetID: setNumber, Max: max}}, "udp://10.0.0.1:53")
			defer c.Close()
			got, err := c.Exchange(t.Context(), holdfast.Unsafe, make([]byte, request), make([]byte, 0, 10))
			return len(got), err
		}
		for _, test := range []struct{ max, request, reply, want int }{
			{0, 2, 1232, 1232}, {0, 1232, 2, 2}, {65507, 65507, 65507, 65507}, {-1, 65507, 65507, 65507}, {16, 16, 16, 16},
		} {
			if n, err := ask(test.max, test.request, test.reply); err != nil || n != test.want {
				t.Errorf("%+v: %d bytes, %v", test, n, err)
			}
		}
		for _, max := range []int{0, 16} {
			room := max
			if max == 0 {
				room = 1232
			}
			n, err := ask(max, 16, room+1)
			if e := asError(t, err); n != room || !errors.Is(err, holdfast.ErrTruncated) || e.Class.Transient() || e.SafeToRetry() {
				t.Errorf("%d of %d bytes: %v", n, room+1, err)
			}
			if _, err := ask(max, room+1, 2); !errors.Is(err, syscall.EMSGSIZE) || !asError(t, err).SafeToRetry() {
				t.Errorf("a request that is too long: %v", err)
			}
		}
		if _, err := ask(0, 1, 2); asError(t, err).Phase != holdfast.PhaseWrite {
			t.Errorf("a request without a number: %v", err)
		}
	})
	t.Run("empty", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			p := w.packets("10.0.0.1:53", func([]byte, net.Addr) []byte { return []byte{} })
			c := w.clusterOf(holdfast.Config{}, "udp://10.0.0.1:53")
			if reply, err := c.Exchange(t.Context(), holdfast.Unsafe, nil, nil); err != nil || len(reply) != 0 {
				t.Errorf("%q, %v", reply, err)
			}
			if err := c.Send(t.Context(), nil); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if p.count() != 2 {
				t.Errorf("%d datagrams", p.count())
			}
			p.then(mute)
			if _, err := c.Exchange(t.Context(), holdfast.Unsafe, nil, nil); asError(t, err).SafeToRetry() {
				t.Errorf("it was sent: %v", err)
			}
		})
	})
}

// One socket, many destinations; a port in the name of a node alone makes a difference.
func TestExchangeFromOneSocket(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		var addrs []string
		for i := range 50 {
			addr := fmt.Sprintf("10.0.%d.1:%d", 2+i/2, 53+i%2)
			addrs = append(addrs, "udp://"+addr)
			w.packets(addr, func(m []byte, _ net.Addr) []byte { return append(m, addr...) })
		}
		w.net.SetLink("", "", simnet.Link{Latency: tick, Jitter: 10 * tick})
		made := 0
		d := holdfast.Datagrams{ID: numberOf, Listen: func(context.Context) (net.PacketConn, error) { // all with one number
			made++
			return w.net.ListenPacket("udp", clientIP+":0")
		}}
		c := w.clusterOf(holdfast.Config{Datagrams: d, Picker: holdfast.RoundRobin()}, addrs...)
		var wg sync.WaitGroup
		seen := map[string]bool{}
		var mu sync.Mutex
		for range 50 {
			wg.Go(func() {
				reply, err := c.Exchange(t.Context(), holdfast.Unsafe, []byte{0, 1}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen["udp://"+string(reply[2:])] = true
				mu.Unlock()
			})
		}
		wg.Wait()
		if len(seen) != 50 || made != 1 {
			t.Errorf("%d nodes replied, over %d sockets", len(seen), made)
		}
		for _, n := range c.Stats().Nodes {
			if n.Successes != 1 || n.BytesWritten == 0 {
				t.Errorf("%s: %+v", n.Node, n)
			}
		}
	})
}

func TestExchangeManyInFlight(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		w.packets("10.0.0.1:53", nil)
		w.net.SetLink("", "", simnet.Link{Latency: tick, Jitter: 50 * tick})
		c := w.clusterOf(holdfast.Config{Datagrams: numbered()}, "udp://10.0.0.1:53")
		var wg sync.WaitGroup
		for i := range 3000 {
			wg.Go(func() {
				if err := asks(t, c, holdfast.Unsafe, fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(tick / 2)
		if n := c.Stats().Conns; n != 3 {
			t.Errorf("%d sockets for 3,000 requests in flight, want one for each 1,024", n)
		}
		wg.Wait()
		synctest.Wait()
		if s := c.Stats(); s.Conns != 1 || s.Nodes[0].InFlight != 0 {
			t.Errorf("then %d sockets, %d in flight", s.Conns, s.Nodes[0].InFlight)
		}
	})
	t.Run("bounded", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			w.packets("10.0.0.1:53", mute)
			d := numbered()
			d.Uses, d.Sockets = 4, 2
			c := w.clusterOf(holdfast.Config{Datagrams: d}, "udp://10.0.0.1:53")
			var wg sync.WaitGroup
			var full atomic.Int32
			for range 20 {
				wg.Go(func() {
					if err := asks(t, c, holdfast.Unsafe, "x"); errors.Is(err, holdfast.ErrPoolExhausted) {
						full.Add(1)
					}
				})
			}
			wg.Wait()
			if full.Load() != 12 {
				t.Errorf("%d of 20 found no room, want 12", full.Load())
			}
		})
	})
	t.Run("ports", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			p := w.packets("10.0.0.1:53", nil)
			d := numbered()
			d.Uses = 1
			c := w.clusterOf(holdfast.Config{Datagrams: d}, "udp://10.0.0.1:53")
			for range 100 {
				if err := asks(t, c, holdfast.Unsafe, "x"); err != nil {
					t.Error(err)
				}
			}
			slices.Sort(p.from)
			slices.Sort(p.got)
			if n := len(slices.Compact(p.from)); n != 100 {
				t.Errorf("%d ports for 100 exchanges", n)
			}
			if n := len(slices.Compact(p.got)); n < 98 {
				t.Errorf("%d numbers for 100 exchanges", n)
			}
		})
	})
}

// Every wait ends with its context, with Close, and in peace with Shutdown.
func TestExchangeEnds(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		w.packets("10.0.0.1:53", mute)
		c := w.clusterOf(holdfast.Config{Datagrams: numbered()}, "udp://10.0.0.1:53")
		ctx, cancel := context.WithTimeout(t.Context(), 300*tick)
		defer cancel()
		var err error
		d := took(func() { _, err = c.Exchange(ctx, holdfast.Idempotent, []byte("x1"), nil) })
		within(t, d, 300*tick, 300*tick)
		if e := asError(t, err); !e.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if n := c.Stats().Nodes[0].Failures; n != 1 {
			t.Errorf("%d failures of a silent node", n)
		}
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(100*tick, stop)
		d = took(func() { _, err = c.Exchange(ctx, holdfast.Idempotent, []byte("x1"), nil) })
		within(t, d, 100*tick, 100*tick)
		if e := asError(t, err); e.Class != holdfast.ClassCanceled {
			t.Errorf("%v", err)
		}
		if n := c.Stats().Nodes[0].Failures; n != 1 {
			t.Errorf("%d failures: a cancellation is not the node's", n)
		}

		time.AfterFunc(100*tick, func() { c.Close() })
		d = took(func() { err = asks(t, c, holdfast.Idempotent, "x") })
		within(t, d, 100*tick, 100*tick)
		if !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%v", err)
		}
		if err := asks(t, c, holdfast.Unsafe, "x"); !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%v", err)
		}
		if err := c.Send(t.Context(), nil); !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%v", err)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			w.packets("10.0.0.1:53", nil)
			w.net.SetLink("", "", simnet.Link{Latency: 100 * tick})
			c := w.clusterOf(holdfast.Config{Datagrams: numbered()}, "udp://10.0.0.1:53")
			c.Send(t.Context(), nil)
			var wg sync.WaitGroup
			wg.Go(func() {
				if err := asks(t, c, holdfast.Unsafe, "x"); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(50 * tick)
			d := took(func() {
				if err := c.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
			})
			within(t, d, 150*tick, 150*tick)
			wg.Wait()
		})
	})
	t.Run("budget", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			p := w.packets("10.0.0.1:53", mute)
			c := w.clusterOf(holdfast.Config{Datagrams: numbered(), Retry: holdfast.Retry{Budget: &holdfast.Budget{Percent: 1, PerSecond: -1}}}, "udp://10.0.0.1:53")
			err := asks(t, c, holdfast.Idempotent, "x")
			if e := asError(t, err); !errors.Is(err, holdfast.ErrRetryBudget) || !e.Timeout() || p.count() != 1 || c.Stats().BudgetDenied != 1 {
				t.Errorf("sent %d times: %v", p.count(), err)
			}
		})
	})
	t.Run("nothing to send to", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			for _, err := range []error{asks(t, c, holdfast.Unsafe, "x"), c.Send(t.Context(), nil)} {
				if !errors.Is(err, holdfast.ErrNoEndpoint) {
					t.Errorf("%v", err)
				}
			}
			c = w.clusterOf(holdfast.Config{}, w.servers[0].addr, "udp://10.0.0.9:53", "udp://10.0.0.9:54")
			w.packets("10.0.0.9:53", nil)
			for range 5 {
				if err := asks(t, c, holdfast.Idempotent, "x"); err != nil {
					t.Error(err)
				}
			}
		})
	})
	t.Run("panic", func(t *testing.T) {
		inWorld(t, 0, func(t *testing.T, w *world) {
			w.packets("10.0.0.1:53", nil)
			d := numbered()
			d.Match = func(_, reply []byte) bool {
				if strings.Contains(string(reply), "bad") {
					panic("oh")
				}
				return true
			}
			c := w.clusterOf(holdfast.Config{Datagrams: d}, "udp://10.0.0.1:53")
			if err := asks(t, c, holdfast.Unsafe, "bad"); !asError(t, err).Timeout() {
				t.Errorf("%v", err)
			}
			if err := asks(t, c, holdfast.Unsafe, "good"); err != nil || c.Stats().Forged != 1 {
				t.Errorf("%v, %d forged", err, c.Stats().Forged)
			}
		})
	})
}

// Datagrams that nobody answers follow the set of nodes and what is known of them.
func TestSend(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		a, b := w.packets("10.0.0.1:125", mute), w.packets("10.0.0.2:125", mute)
		now := []string{"10.0.0.1:125"}
		lookup := func(context.Context, holdfast.Endpoint) (found []holdfast.Endpoint, _ time.Duration, _ error) {
			for _, addr := range now {
				found = append(found, holdfast.Endpoint{Network: "udp", Addr: addr})
			}
			return found, 0, nil
		}
		c := w.clusterOf(holdfast.Config{Picker: holdfast.Ordered(), Names: holdfast.Names{Lookup: lookup}}, "udp://metrics:125")
		send := func(n int) {
			t.Helper()
			for range n {
				if err := c.Send(t.Context(), []byte("up:1|c")); err != nil {
					t.Error(err)
				}
				time.Sleep(tick)
			}
			synctest.Wait()
		}
		send(10)
		now = []string{"10.0.0.2:125", "10.0.0.1:125"}
		c.Refresh(0)
		synctest.Wait()
		send(10)
		if a.count() != 10 || b.count() != 10 {
			t.Errorf("%d and %d, want 10 before the refresh and 10 after", a.count(), b.count())
		}
		b.stop() // refuses from now on
		send(10)
		if n := a.count(); n < 18 {
			t.Errorf("%d of 10 went to the node that is left", n-10)
		}
	})
}

// once fails the first write, as a socket does that has an ICMP error to tell.
type once struct {
	net.Conn
	err error
}

func (o *once) Write(p []byte) (int, error) {
	if err := o.err; err != nil {
		o.err = nil
		return 0, err
	}
	return o.Conn.Write(p)
}

// What fails on this host, or before the datagram was sent.
func TestExchangeLocalFailures(t *testing.T) {
	inWorld(t, 0, func(t *testing.T, w *world) {
		p := w.packets("10.0.0.1:53", nil)
		var first error
		cfg := holdfast.Config{Datagrams: numbered(), Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := w.client.DialContext(ctx, network, addr)
			return &once{conn, first}, err
		}}
		first = &net.OpError{Op: "write", Err: syscall.ECONNREFUSED} // of an earlier one: it is sent again
		for _, ask := range []func(*holdfast.Cluster) error{
			func(c *holdfast.Cluster) error { return asks(t, c, holdfast.Unsafe, "x") },
			func(c *holdfast.Cluster) error { return c.Send(t.Context(), []byte("x")) },
		} {
			if err := ask(w.clusterOf(cfg, "udp://10.0.0.1:53")); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if p.count() != 2 {
			t.Errorf("%d datagrams arrived", p.count())
		}

		first = &net.OpError{Op: "write", Err: syscall.ENOBUFS} // not sent: so it may be, once more
		if err := asks(t, w.clusterOf(cfg, "udp://10.0.0.1:53"), holdfast.Unsafe, "x"); asError(t, err).Class != holdfast.ClassResource || !asError(t, err).SafeToRetry() {
			t.Errorf("%v", err)
		}
		c := w.clusterOf(cfg, "udp://10.0.0.1:53", "udp://10.0.0.2:53")
		if err := c.Send(t.Context(), nil); asError(t, err).Class != holdfast.ClassResource || len(asError(t, err).Tried) != 1 {
			t.Errorf("%v", err)
		}

		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: syscall.EMFILE}
		}
		c = w.clusterOf(cfg, "udp://10.0.0.1:53")
		for _, err := range []error{asks(t, c, holdfast.Unsafe, "x"), c.Send(t.Context(), nil)} {
			if e := asError(t, err); e.Class != holdfast.ClassResource || !e.SafeToRetry() || e.Phase != holdfast.PhaseDial {
				t.Errorf("%v", err)
			}
		}
		if n := c.Stats().Nodes[0]; n.Failures != 0 || n.InFlight != 0 {
			t.Errorf("%d failures, %d in flight", n.Failures, n.InFlight)
		}

		cfg.Datagrams.Listen = func(context.Context) (net.PacketConn, error) { panic("oh") }
		c = w.clusterOf(cfg, "udp://10.0.0.1:53")
		for range 2 {
			if err := asks(t, c, holdfast.Unsafe, "x"); err == nil || !strings.Contains(err.Error(), "oh") {
				t.Errorf("%v", err)
			}
		}
	})
}
