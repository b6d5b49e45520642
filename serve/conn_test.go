package serve_test

import (
	"context"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/net/nettest"
)

// What a handler that reads for itself is given is a net.Conn in every respect.
func TestConnIsANetConn(t *testing.T) {
	leak.Check(t)
	for _, address := range []string{"tcp://127.0.0.1:0", "unix:@holdfast-nettest"} {
		t.Run(address, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				conns, end := make(chan *serve.Conn), make(chan struct{})
				srv := raw(func(_ context.Context, c *serve.Conn) error {
					conns <- c
					<-end
					return nil
				})
				ln, err := serve.Listen(context.Background(), address)
				if err != nil {
					return nil, nil, nil, err
				}
				served := make(chan struct{})
				go func() {
					defer close(served)
					srv.Serve(ln)
				}()
				c1, err = net.Dial(ln.Addr().Network(), ln.Addr().String())
				if err != nil {
					return nil, nil, nil, err
				}
				c2 = <-conns
				return c2, c1, func() { // it is the first that is tried in every way
					c1.Close()
					c2.Close()
					close(end)
					srv.Close()
					<-served
				}, nil
			})
		})
	}
}

// What Stats says belongs together.
func TestStatsAddUp(t *testing.T) {
	srv := echoes()
	srv.Limits.MaxConns = 3
	inWorld(t, srv, func(t *testing.T, w *world) {
		var in []*client
		for range 3 {
			c := w.client()
			c.ask("hello")
			in = append(in, c)
		}
		for range 4 {
			w.client().expectEnd()
		}
		in[0].Close()
		time.Sleep(time.Second)
		s := srv.Stats()
		if s.Accepted != 7 || s.Refused.Conns != 4 || s.Open != 2 || s.Listeners != 1 ||
			s.Messages != 3 || s.Received != 18 || s.Sent != 18 {
			t.Errorf("%+v", s)
		}
		totals := srv.Totals()
		if totals["accepted"] != 7 || totals["refused"] != 4 || totals["sent_bytes"] != 18 {
			t.Errorf("%v", totals)
		}
	})
}

// An idle Frames connection costs at most 4 KiB of user memory.
func TestIdleConnectionMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector's own memory would be measured")
	}
	leak.Check(t)
	t.Cleanup(serve.RestAfter(50 * time.Millisecond))
	const n = 1000
	srv := echoes()
	addr := start(t, srv)
	var all []*client
	for range n {
		c := dial(t, addr)
		c.ask("hello")
		all = append(all, c)
	}
	eventually(t, "they rest", func() bool { return resting() == n })
	with := used()
	for _, c := range all {
		c.CloseWrite()
		c.expectEnd()
	}
	eventually(t, "they end", func() bool { return srv.Stats().Open == 0 })
	each := (with - used()) / n
	runtime.KeepAlive(all) // the clients are no part of it
	t.Logf("%d bytes for an idle connection", each)
	if each > 4<<10+512 {
		t.Errorf("%d bytes for an idle connection, want 4 KiB", each)
	}
}

func used() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// One connection, one 64-byte message there and back. What is allocated is by the
// server: the client allocates nothing.
func BenchmarkEcho64(b *testing.B) {
	srv := &serve.Server{Handler: serve.Frames(frame.Prefix(4), echo)}
	ln, err := serve.Listen(b.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go srv.Serve(ln)
	defer srv.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	msg := append([]byte{0, 0, 0, 64}, make([]byte, 64)...)
	got := make([]byte, len(msg))
	b.ReportAllocs()
	for b.Loop() {
		conn.Write(msg)
		for n := 0; n < len(got); {
			m, err := conn.Read(got[n:])
			if err != nil {
				b.Fatal(err)
			}
			n += m
		}
	}
}
