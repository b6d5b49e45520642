package pipeline_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/pipeline"
)

// Each request is the policy's choice, and tells it how it fared: a node that is slow
// gets less to do.
func TestRequestsAreBalanced(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		w.servers[0].does(func(c net.Conn, line string) {
			time.Sleep(20 * time.Millisecond)
			fmt.Fprintf(c, "re %s\n", line)
		})
		w.servers[1].does(func(c net.Conn, line string) {
			time.Sleep(time.Millisecond)
			fmt.Fprintf(c, "re %s\n", line)
		})
		p := w.ready(w.over(w.cluster(holdfast.Config{Picker: holdfast.PeakEWMA()}), config{}))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range 200 {
					w.ask(p, fmt.Sprint(i))
				}
			})
		}
		wg.Wait()
		slow, fast := len(w.servers[0].saw()), len(w.servers[1].saw())
		if fast < 5*slow || slow == 0 {
			w.Errorf("the slow one served %d, the fast one %d", slow, fast)
		}
	})
}

// A node that goes away takes its connection along when what is under way has ended.
func TestRemovedNodeDrains(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		push := make(chan []holdfast.Endpoint)
		c, err := holdfast.New(source{push}, holdfast.Config{Dial: w.client.DialContext, Picker: holdfast.Ordered()})
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { c.Close() })
		both := []holdfast.Endpoint{{Network: "tcp", Addr: w.servers[0].addr}, {Network: "tcp", Addr: w.servers[1].addr}}
		p := w.over(c, config{})
		push <- both
		w.ready(p)
		w.servers[0].does(func(c net.Conn, line string) {
			time.Sleep(5 * time.Second)
			fmt.Fprintf(c, "re %s\n", line)
		})
		go w.ask(p, "under way")
		synctest.Wait()
		push <- both[1:]
		time.Sleep(2 * time.Second)
		w.ask(p, "elsewhere")
		if w.servers[1].times("elsewhere") != 1 || len(w.client.Conns()) != 2 {
			w.Errorf("connections: %d", len(w.client.Conns()))
		}
		time.Sleep(10 * time.Second)
		if len(w.client.Conns()) != 1 {
			w.Errorf("afterwards there are %d connections", len(w.client.Conns()))
		}
	})
}

// source is a Resolver that is told what to say.
type source struct{ push chan []holdfast.Endpoint }

func (s source) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	for {
		select {
		case all := <-s.push:
			push(all, nil)
		case <-ctx.Done():
			return
		}
	}
}

// The end of an idle connection is noticed, and another one is there before anybody
// asks: both when the reader watches it and when it was left to lone callers.
func TestIdleConnectionIsWatched(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		p := w.ready(w.lines(config{}))
		for i := range 20 {
			w.ask(p, fmt.Sprint(i))
		}
		w.servers[0].host.Conns()[0].Close()
		time.Sleep(2 * time.Second)
		if s := p.Stats(); s.Lost != 1 || s.Connects != 2 || s.Conns != 1 {
			w.Errorf("stats: %+v", s)
		}
		w.ask(p, "and on")
	})
}

// The bound on memory that Config.Window states, with a peer that takes nothing and
// callers who want everything.
func TestMemoryIsBounded(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := holdfast.New(holdfast.Static(ln.Addr().String()), holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const window, bytes, size = 512, 256 << 10, 4 << 10
	p, err := pipeline.New(c, config{Decoder: texts, Window: window, WindowBytes: bytes, WaitFull: -1, Stall: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := heap()
	big := strings.Repeat("x", size-1) + "\n"
	req := pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return append(dst, big...), nil }}
	var wg sync.WaitGroup
	for i := range uint64(4000) { // one after the other, or their goroutines take memory too: what is refused leaves at once
		wg.Go(func() { p.Do(t.Context(), req) })
		for s := p.Stats(); s.Failures+uint64(s.InFlight) <= i; s = p.Stats() {
			runtime.Gosched()
		}
	}
	most := uint64(2*bytes + window*2560 + 256<<10)
	if grown := heap() - before; grown > most {
		t.Errorf("%d KiB for %d in flight, want at most %d", grown>>10, p.Stats().InFlight, most>>10)
	}
	p.Close()
	wg.Wait()
}

func heap() uint64 {
	runtime.GC() // the first one leaves what is in pools
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Nothing is left after the end: no goroutine, no descriptor.
func TestNothingIsLeft(t *testing.T) {
	leak.Check(t)
	addr := echo(t)
	for range 5 {
		c, err := holdfast.New(holdfast.Static(addr), holdfast.Config{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := pipeline.New(c, config{Decoder: texts})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { p.Do(t.Context(), line("x")) })
		}
		x, err := p.Exclusive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		x.Release()
		wg.Wait()
		p.Close()
		c.Close()
	}
}

// P31: a request costs no allocation of ours, alone or in a crowd.
func TestRequestsDoNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	c, err := holdfast.New(holdfast.Static(echo(t)), holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := pipeline.New(c, pipeline.Config[int]{Decoder: func() pipeline.Decoder[int] { return newlines{} }})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	req := pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return append(dst, "GET key\n"...), nil }}
	var ctx context.Context = noEnd{t.Context()}
	do := func() {
		if _, err := p.Do(ctx, req); err != nil {
			t.Error(err)
		}
	}
	do()
	alone := testing.AllocsPerRun(2000, do)
	const callers = 50
	crowd := testing.AllocsPerRun(200, func() {
		var wg sync.WaitGroup
		for range callers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 20 {
					do()
				}
			}()
		}
		wg.Wait()
	}) / (callers * 20)
	if alone >= 0.1 || crowd >= 0.5 {
		t.Errorf("%.2f allocations alone, %.2f in a crowd", alone, crowd)
	}
}

// noEnd is a context that cannot end: waiting for one that can has its price.
type noEnd struct{ context.Context }

func (noEnd) Done() <-chan struct{} { return nil }

// newlines counts lines, and keeps nothing of them.
type newlines struct{}

func (newlines) Decode(b []byte) (reply, n int, done bool, err error) {
	i := bytes.IndexByte(b, '\n')
	return i, i + 1, i >= 0, nil
}

// echo is a server on a real socket that allocates nothing per line.
func echo(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				r, w := bufio.NewReader(c), bufio.NewWriter(c)
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					w.Write(line)
					if r.Buffered() == 0 {
						w.Flush()
					}
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// A link that fails while its callers leave: in line, queued, in flight and alone. Each
// is told once, and nothing is anybody's twice.
func TestEverythingEndsAtOnce(t *testing.T) {
	for round := range 100 {
		inWorld(t, 1, func(w *world) {
			p := w.ready(w.lines(config{Window: 1 + round%3, Attempts: 1 + round%2}))
			w.servers[0].host.Freeze()
			var wg sync.WaitGroup
			for i := range 30 {
				wg.Go(func() {
					for range 3 {
						if _, err := p.Do(w.within(10*time.Millisecond), line("%d", i)); err == nil {
							w.Error("a frozen server answered")
						}
					}
				})
			}
			for range 3 {
				time.Sleep(10 * time.Millisecond)
				for _, c := range w.client.Conns() {
					c.Reset()
				}
			}
			wg.Wait()
			w.servers[0].host.Thaw()
			p.Close()
			if s := p.Stats(); s.InFlight+s.Waiting+s.Conns != 0 {
				w.Errorf("stats: %+v", s)
			}
		})
	}
}
