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
