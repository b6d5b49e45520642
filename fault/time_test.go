package fault_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/fault"
)

func TestLatencyPerDirection(t *testing.T) {
	plan := fault.Plan{Up: fault.Link{Latency: 10 * ms}, Down: fault.Link{Latency: 30 * ms}}
	bubble(t, plan, func(w *world) {
		w.write(w.c, "ping")
		w.now(0)
		w.reads(w.s, "ping")
		w.now(10 * ms)
		w.write(w.s, "pong")
		w.reads(w.c, "pong")
		w.now(40 * ms)
	})
}

// Latency is a pipeline: what leaves 1 ms apart arrives 1 ms apart.
func TestLatencyDoesNotSlowDown(t *testing.T) {
	link := fault.Link{Latency: 50 * ms}
	bubble(t, fault.Plan{Up: link, Down: link}, func(w *world) {
		send := func(c io.Writer) {
			for i := range 100 {
				w.write(c, fmt.Sprintf("%02d", i))
				time.Sleep(ms)
			}
		}
		go send(w.c)
		go send(w.s)
		for i := range 100 {
			w.reads(w.s, fmt.Sprintf("%02d", i))
			w.now(50*ms + time.Duration(i)*ms)
			w.reads(w.c, fmt.Sprintf("%02d", i))
			w.now(50*ms + time.Duration(i)*ms)
		}
	})
}

// What has arrived does not wait for those who come late.
func TestLateReader(t *testing.T) {
	bubble(t, fault.Plan{Down: fault.Link{Latency: 10 * ms, Bandwidth: 1000}}, func(w *world) {
		w.write(w.s, strings.Repeat("x", 200))
		w.at(time.Second)
		w.reads(w.c, strings.Repeat("x", 200))
		w.now(time.Second)
	})
}

func TestJitterIsWithinBoundsAndKeepsOrder(t *testing.T) {
	arrivals := func(seed uint64, spacing time.Duration) (times []time.Duration) {
		plan := fault.Plan{Seed: seed, Up: fault.Link{Latency: 10 * ms, Jitter: 50 * ms}}
		bubble(t, plan, func(w *world) {
			go func() {
				for i := range 200 {
					w.at(time.Duration(i) * spacing)
					w.write(w.c, string(rune('a'+i%26)))
				}
			}()
			for i := range 200 {
				b := make([]byte, 1)
				io.ReadFull(w.s, b)
				if want := byte('a' + i%26); b[0] != want {
					w.Fatalf("byte %d is %c, want %c", i, b[0], want)
				}
				times = append(times, time.Since(w.start))
			}
		})
		return times
	}
	for _, spacing := range []time.Duration{ms, 60 * ms} {
		early, late := time.Hour, time.Duration(0)
		times := arrivals(1, spacing)
		for i, at := range times {
			travelled := at - time.Duration(i)*spacing
			early, late = min(early, travelled), max(late, travelled)
		}
		if early < 10*ms || late >= 60*ms || spacing > ms && late-early < 45*ms {
			t.Errorf("travelled %v to %v, want all of 10 to 60 ms", early, late)
		}
		if !slices.Equal(times, arrivals(1, spacing)) {
			t.Error("the same seed gives other times")
		}
		if slices.Equal(times, arrivals(2, spacing)) {
			t.Error("another seed gives the same times")
		}
	}
}

func TestBandwidth(t *testing.T) {
	link := fault.Link{Latency: 5 * ms, Bandwidth: 10_000}
	bubble(t, fault.Plan{Up: link, Down: link}, func(w *world) {
		w.write(w.c, strings.Repeat("x", 20_000))
		w.now(0)
		w.reads(w.s, strings.Repeat("x", 100))
		w.now(15 * ms)
		io.CopyN(io.Discard, w.s, 19_900)
		w.now(2*time.Second + 5*ms)

		w.write(w.s, strings.Repeat("y", 1000))
		io.CopyN(io.Discard, w.c, 1000)
		w.now(2*time.Second + 10*ms + 100*ms)
	})
}

func TestOneByteAtATime(t *testing.T) {
	link := fault.Link{Slice: 1, Bandwidth: 10}
	bubble(t, fault.Plan{Up: link, Down: link}, func(w *world) {
		for i, way := range []struct {
			to   io.Writer
			from io.Reader
		}{{w.c, w.s}, {w.s, w.c}} {
			w.write(way.to, "abc")
			for j, b := range []string{"a", "b", "c"} {
				w.reads(way.from, b)
				w.now(time.Duration(3*i+j+1) * 100 * ms)
			}
		}
	})
}

func TestSlicesAreRandomAndBounded(t *testing.T) {
	bubble(t, fault.Plan{Down: fault.Link{Slice: 10}}, func(w *world) {
		w.write(w.s, strings.Repeat("x", 1000))
		synctest.Wait()
		sizes := map[int]bool{}
		for got := 0; got < 1000; {
			n, err := w.c.Read(make([]byte, 100))
			if n < 1 || n > 10 || err != nil {
				t.Fatal(n, err)
			}
			sizes[n] = true
			got += n
		}
		if len(sizes) != 10 {
			t.Errorf("sizes %v, want all of 1 to 10", sizes)
		}
		w.now(0)
	})
}

// The k-th connection of a plan fares as the k-th of the same plan.
func TestSeedPerConnection(t *testing.T) {
	sizes := func(seed uint64) (all [][]int) {
		bubble(t, fault.Plan{Seed: seed, Down: fault.Link{Slice: 100}}, func(w *world) {
			for range 3 {
				c, s := w.connect()
				w.write(s, strings.Repeat("x", 1000))
				synctest.Wait()
				var mine []int
				for got := 0; got < 1000; {
					n, _ := c.Read(make([]byte, 100))
					mine = append(mine, n)
					got += n
				}
				all = append(all, mine)
			}
		})
		return all
	}
	one, again, two := sizes(1), sizes(1), sizes(2)
	if fmt.Sprint(one) != fmt.Sprint(again) {
		t.Error("the same seed gives other slices")
	}
	if fmt.Sprint(one) == fmt.Sprint(two) || slices.Equal(one[0], one[1]) {
		t.Error("another seed or connection gives the same slices")
	}
}

func TestWriteWaitsWhenTheBufferIsFull(t *testing.T) {
	bubble(t, fault.Plan{Up: fault.Link{Latency: 100 * ms, Buffer: 10}}, func(w *world) {
		w.write(w.c, "0123456789")
		w.now(0)
		go io.Copy(io.Discard, w.s)
		w.write(w.c, "x")
		w.now(100 * ms)
		w.c.SetWriteDeadline(time.Now().Add(50 * ms))
		n, err := w.c.Write([]byte("0123456789"))
		w.now(150 * ms)
		if n != 9 {
			t.Errorf("%d bytes were taken, want 9", n)
		}
		w.fails(err, "write", os.ErrDeadlineExceeded)
	})
}

func TestDefaultBuffer(t *testing.T) {
	hole := fault.Link{Then: fault.BlackHole}
	bubble(t, fault.Plan{Up: hole, Down: hole}, func(w *world) {
		w.c.SetWriteDeadline(time.Now().Add(ms))
		if n, err := w.c.Write(make([]byte, 1<<20)); n != 64<<10 {
			t.Errorf("%d bytes were taken, %v; want 64 KiB", n, err)
		}
		w.s.SetWriteDeadline(time.Now().Add(ms)) // simnet holds as much again
		if n, err := w.s.Write(make([]byte, 1<<20)); n != 128<<10 {
			t.Errorf("the peer got rid of %d bytes, %v; want 128 KiB", n, err)
		}
	})
}

func TestDeadlineDuringLatency(t *testing.T) {
	bubble(t, fault.Plan{Down: fault.Link{Latency: 100 * ms}}, func(w *world) {
		w.write(w.s, "late")
		w.c.SetReadDeadline(time.Now().Add(30 * ms))
		w.readFails(w.c, os.ErrDeadlineExceeded)
		w.now(30 * ms)
		w.c.SetDeadline(time.Time{})
		w.reads(w.c, "late")
		w.now(100 * ms)

		time.AfterFunc(time.Second, func() { w.c.SetReadDeadline(time.Unix(1, 0)) })
		w.readFails(w.c, os.ErrDeadlineExceeded)
		w.now(1100 * ms)
	})
}

func TestWritesDoNotMix(t *testing.T) {
	bubble(t, fault.Plan{Up: fault.Link{Latency: ms, Buffer: 7}}, func(w *world) {
		for _, letter := range []string{"a", "b", "c", "d"} {
			go func() { w.c.Write([]byte(strings.Repeat(letter, 100) + "\n")) }()
		}
		all := make([]byte, 404)
		io.ReadFull(w.s, all)
		for line := range bytes.Lines(all) {
			if len(line) != 101 || strings.Trim(string(line), string(line[:1])) != "\n" {
				t.Errorf("mixed: %q", line)
			}
		}
	})
}
