package proxy_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// handTo is the way of a connection from one Proxy to another, as restart goes it: the
// successor gets duplicates.
func handTo(t testing.TB, next interface{ TakeOver([]byte, []int) error }) func([]byte, ...syscall.Conn) error {
	return func(state []byte, conns ...syscall.Conn) error {
		var fds []int
		for _, c := range conns {
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			raw.Control(func(fd uintptr) {
				own, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
				}
				fds = append(fds, own)
			})
		}
		err := next.TakeOver(state, fds)
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
		return err
	}
}

// stream sends random bytes to an echo for as long as it is let, and reports whether all
// of them came back, and only them.
func stream(c *net.TCPConn, seed uint64, stop *atomic.Bool) error {
	var sent [32]byte
	n := make(chan int64, 1)
	go func() {
		source, h, total := rand.NewChaCha8([32]byte{byte(seed)}), sha256.New(), int64(0)
		r := rand.New(source)
		for !stop.Load() {
			b := make([]byte, 1+r.IntN(1<<(4+r.IntN(14))))
			source.Read(b)
			m, err := c.Write(b)
			h.Write(b[:m])
			total += int64(m)
			if err != nil {
				break
			}
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond) // a load that leaves the CPU to others
		}
		c.CloseWrite()
		h.Sum(sent[:0])
		n <- total
	}()
	got := sha256.New()
	m, err := io.Copy(got, c)
	total := <-n
	switch {
	case err != nil:
		return err
	case m != total || [32]byte(got.Sum(nil)) != sent:
		return errors.New("other bytes came back than were sent")
	}
	return nil
}

// P: live connections pass from one generation to the next, with what is under way.
func TestConnectionsSurviveGenerations(t *testing.T) {
	leak.Check(t)
	const held, generations = 60, 10
	back := serveEach(t, echo)
	backends := cluster(t, holdfast.Config{}, back)
	ln := listen(t)
	next := func() *proxy.Proxy {
		p, err := proxy.New(proxy.Config{Cluster: backends})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	now := next()
	serving := make(chan error, 1)
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	again := func() net.Listener {
		l, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	go func() { serving <- now.Serve(again()) }()

	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range held {
		c := dial(t, ln.Addr().String())
		wg.Go(func() {
			if err := stream(c, uint64(i), &stop); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	for range generations {
		time.Sleep(20 * time.Millisecond)
		successor := next()
		served := make(chan error, 1)
		go func() { served <- successor.Serve(again()) }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := now.HandOver(ctx, handTo(t, successor)); err != nil {
			t.Error(err)
		}
		if err := now.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		cancel()
		if err := <-serving; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
		now, serving = successor, served
	}
	stop.Store(true)
	wg.Wait()
	s := now.Stats()
	if s.MovedIn != held {
		t.Errorf("the last of them: %+v", s)
	}
	now.Close()
	<-serving
}

// A Shutdown does not end a connection that is on its way to the successor.
func TestShutdownLeavesThoseOnTheirWay(t *testing.T) {
	leak.Check(t)
	backs := cluster(t, holdfast.Config{}, serveEach(t, echo))
	p, addr := start(t, proxy.Config{Cluster: backs}, paths["loops"])
	next, err := proxy.New(proxy.Config{Cluster: backs})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	c := dial(t, addr)
	if err := ask(c, "x"); err != nil {
		t.Fatal(err)
	}
	sending, on, moved := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		moved <- p.HandOver(t.Context(), func(state []byte, conns ...syscall.Conn) error {
			close(sending)
			<-on
			return handTo(t, next)(state, conns...)
		})
	}()
	<-sending
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	p.Shutdown(ctx) // by whose end each connection has had its moment
	close(on)
	if err := <-moved; err != nil {
		t.Error(err)
	}
	if err := ask(c, "y"); err != nil {
		t.Errorf("after the move: %v", err)
	}
	if old, now := p.Stats(), next.Stats(); old.Open != 0 || old.MovedOut != 1 || now.MovedIn != 1 {
		t.Errorf("%+v, then %+v", old, now)
	}
}

// Who was accepted, and waits for room, goes to the successor.
func TestWhoWaitsForRoomMoves(t *testing.T) {
	leak.Check(t)
	backs := cluster(t, holdfast.Config{}, serveEach(t, echo))
	ln := listen(t)
	p, err := proxy.New(proxy.Config{Cluster: backs, Limits: serve.Limits{MaxConns: 1, Over: serve.Wait}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve(ln) }()
	next, err := proxy.New(proxy.Config{Cluster: backs})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	a := dial(t, ln.Addr().String())
	if err := ask(a, "x"); err != nil {
		t.Fatal(err)
	}
	b := dial(t, ln.Addr().String())
	eventually(t, "one waits", func() bool { return p.Stats().Accepted == 2 })
	ln.Close()
	<-served
	if err := p.HandOver(t.Context(), handTo(t, next)); err != nil {
		t.Error(err)
	}
	p.Close()
	for _, c := range []*net.TCPConn{a, b} {
		if err := ask(c, "y"); err != nil {
			t.Error(err)
		}
	}
}

// A hand-over that has no time says what it has left.
func TestAHandOverWithoutTimeSaysSo(t *testing.T) {
	leak.Check(t)
	p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))}, paths["loops"])
	if err := ask(dial(t, addr), "x"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.HandOver(ctx, func([]byte, ...syscall.Conn) error { return nil }); err == nil {
		t.Error("one connection stays, and no error")
	}
}
