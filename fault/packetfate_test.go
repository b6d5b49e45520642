package fault_test

import (
	"bytes"
	"math"
	"math/bits"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/fault"
)

func TestPacketLoss(t *testing.T) {
	const all = 5000
	var before []string
	for _, share := range []float64{0.01, 0.05, 0.2, 1} {
		link := fault.Link{Buffer: -1, Packets: fault.Packets{Loss: share}}
		bothWays(t, link, 7, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
			sent := numbers(all)
			p.send(src, dst, sent...)
			got := p.rest(dst)
			if !slices.IsSorted(got) || int64(len(got)) != count().Passed {
				p.Errorf("of %d that arrived %+v", len(got), count())
			}
			near(p.T, "lost", float64(count().Lost)/all, share, 4*math.Sqrt(share*(1-share)/all))
			if src == p.c { // the same choices, so the same ones and more
				for _, s := range got {
					if _, had := slices.BinarySearch(before, s); len(before) > 0 && !had {
						p.Errorf("%q is lost at less, and not at %v", s, share)
						break
					}
				}
				before = got
			}
		})
	}
}

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if got < want-within || got > want+within {
		t.Errorf("%s: %v, want %v ± %v", what, got, want, within)
	}
}

// A sink counts what it is to send.
type sink struct {
	net.PacketConn
	got int
}

func (s *sink) WriteTo(b []byte, _ net.Addr) (int, error) { s.got++; return len(b), nil }
func (s *sink) LocalAddr() net.Addr                       { return &net.UDPAddr{} }
func (s *sink) Close() error                              { return nil }

// Bursts have the frequency and the length that was asked for, in the mean.
func TestPacketBurst(t *testing.T) {
	const all = 100_000
	runs := func(burst fault.Burst, loss float64) (lost, length, gap float64) {
		faults := fault.New(fault.Plan{Up: fault.Link{Packets: fault.Packets{Burst: burst, Loss: loss}}, Seed: 3})
		defer faults.Close()
		var below sink
		c := faults.PacketConn(&below)
		n, before := 0, true
		for range all {
			had := below.got
			c.WriteTo([]byte("x"), &net.UDPAddr{})
			now := below.got > had
			if before && !now {
				n++
			}
			before = now
		}
		gone := float64(faults.Stats().UpPackets.Lost)
		if below.got != all-int(gone) {
			t.Errorf("%d arrived: %+v", below.got, faults.Stats().UpPackets)
		}
		return gone / all, gone / float64(n), (all - gone) / float64(n)
	}
	lost, length, gap := runs(fault.Burst{Gap: 95, Length: 5}, 0)
	near(t, "lost", lost, 0.05, 0.005)
	near(t, "length", length, 5, 0.5)
	near(t, "gap", gap, 95, 9.5)

	lost, length, _ = runs(fault.Burst{Gap: 20}, 0) // one by one, or nearly: a burst may follow at once
	near(t, "single", lost, 1.0/21, 0.005)
	near(t, "length of singles", length, 1, 0.1)

	lost, _, _ = runs(fault.Burst{Gap: 90, Length: 10, Loss: 0.5}, 0.01)
	near(t, "Elliott", lost, 0.9*0.01+0.1*0.5, 0.006)
}

func TestPacketDuplicate(t *testing.T) {
	bothWays(t, fault.Link{Packets: fault.Packets{Duplicate: 1}}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		p.send(src, dst, "a", "", "b")
		if got := p.rest(dst); !slices.Equal(got, []string{"a", "a", "", "", "b", "b"}) {
			p.Errorf("got %q", got)
		}
		if got, want := count(), (fault.PacketStats{Sent: 3, Passed: 6, Duplicated: 3}); got != want {
			p.Errorf("%+v, want %+v", got, want)
		}
	})
	bothWays(t, fault.Link{Buffer: -1, Packets: fault.Packets{Duplicate: 0.1}}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		p.send(src, dst, numbers(10_000)...)
		got := p.rest(dst)
		near(p.T, "arrived", float64(len(got)), 11_000, 100)
		if !slices.IsSorted(got) || len(slices.Compact(got)) != 10_000 {
			p.Error("something else happened to them")
		}
	})
}

// Who is held back arrives behind the next one, at the time of that one.
func TestPacketReorder(t *testing.T) {
	bothWays(t, fault.Link{Latency: 10 * ms, Packets: fault.Packets{Reorder: 1}}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		p.send(src, dst, "one")
		time.Sleep(50 * ms)
		p.send(src, dst, "two", "three", "four", "five")
		p.gets(dst, "two", "one", "four", "three")
		p.now(60 * ms)
		p.gets(dst, "five") // nobody followed
		p.now(160 * ms)
		if got, want := count(), (fault.PacketStats{Sent: 5, Passed: 5, Reordered: 2, Delayed: 5}); got != want {
			p.Errorf("%+v, want %+v", got, want)
		}
	})
	bothWays(t, fault.Link{Packets: fault.Packets{Reorder: 1}}, 1, func(p *post, src, dst net.PacketConn, _ func() fault.PacketStats) {
		p.send(src, dst, "one", "two", "three", "four")
		p.gets(dst, "two", "one", "four", "three")
		p.now(0)
	})
	bothWays(t, fault.Link{Buffer: -1, Packets: fault.Packets{Reorder: 0.1}}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		sent := numbers(10_000)
		p.send(src, dst, sent...)
		got := p.rest(dst)
		behind := 0
		for i := range len(got) - 1 {
			if got[i] > got[i+1] {
				behind++
			}
		}
		if int64(behind) != count().Reordered {
			p.Errorf("%d are behind their successors: %+v", behind, count())
		}
		near(p.T, "reordered", float64(behind), 10_000*0.1/1.1, 80) // who overtakes is not held back
		if slices.Sort(got); !slices.Equal(got, sent) {
			p.Error("something else happened to them")
		}
	})
}

// The copy is of the datagram as it arrives, and both follow who overtakes.
func TestPacketReorderWithCopies(t *testing.T) {
	packets(t, fault.Plan{Up: fault.Link{Packets: fault.Packets{Reorder: 1, Duplicate: 1, Corrupt: 1}}}, func(p *post) {
		p.send(p.c, p.peer, "one", "two")
		got := p.rest(p.peer)
		if len(got) != 4 || len(slices.Compact(slices.Sorted(slices.Values(got)))) != 2 {
			p.Errorf("got %q", got)
		}
	})
}

func TestPacketCorrupt(t *testing.T) {
	bothWays(t, fault.Link{Buffer: -1, Packets: fault.Packets{Corrupt: 0.5}}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		const all, size = 4000, 4
		hits := make([]int, 8*size)
		data := []byte{0, 0xff, 0x55, 0}
		for range all {
			src.WriteTo(data, dst.LocalAddr())
		}
		if !bytes.Equal(data, []byte{0, 0xff, 0x55, 0}) {
			p.Fatal("the sender's bytes were changed")
		}
		wrong := 0
		for _, s := range p.rest(dst) {
			flipped := 0
			for i := range size {
				diff := s[i] ^ data[i]
				flipped += bits.OnesCount8(diff)
				if diff != 0 {
					hits[8*i+bits.TrailingZeros8(diff)]++
				}
			}
			if len(s) != size || flipped > 1 {
				p.Fatalf("%x has become %x", data, s)
			}
			wrong += flipped
		}
		if int64(wrong) != count().Corrupted {
			p.Errorf("%d are wrong: %+v", wrong, count())
		}
		near(p.T, "wrong", float64(wrong), all/2, 100)
		if slices.Min(hits) < 30 || slices.Max(hits) > 100 { // 62.5 in the mean
			p.Errorf("not all bits alike: %v", hits)
		}
		p.send(src, dst, "", "")
		if got := p.rest(dst); !slices.Equal(got, []string{"", ""}) {
			p.Errorf("of nothing came %q", got)
		}
	})
}

func TestPacketTruncate(t *testing.T) {
	bothWays(t, fault.Link{Buffer: -1, Packets: fault.Packets{Truncate: 1}}, 1, func(p *post, src, dst net.PacketConn, count func() fault.PacketStats) {
		const all = 2000
		whole := "0123456789"
		lengths := make([]int, len(whole))
		p.send(src, dst, slices.Repeat([]string{whole}, all)...)
		for _, s := range p.rest(dst) {
			if len(s) >= len(whole) || !strings.HasPrefix(whole, s) {
				p.Fatalf("got %q", s)
			}
			lengths[len(s)]++
		}
		if slices.Min(lengths) < 150 || slices.Max(lengths) > 250 { // 200 in the mean
			p.Errorf("not all lengths alike: %v", lengths)
		}
		p.send(src, dst, "")
		p.gets(dst, "")
		if got := count(); got.Truncated != all || got.Passed != all+1 {
			p.Errorf("%+v", got)
		}
	})
}
