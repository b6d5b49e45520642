package serve_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

func echo(ctx context.Context, c *serve.Conn, line []byte) error { return c.Send(line) }

func start(t *testing.T, s *serve.Server) string {
	ln, err := serve.Listen(t.Context(), "tcp://127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return ln.Addr().String()
}

func TestSmoke(t *testing.T) {
	s := &serve.Server{Handler: serve.Frames(frame.Lines(), echo)}
	addr := start(t, s)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			for n := range 200 {
				want := fmt.Sprintf("%d/%d\n", i, n)
				io.WriteString(conn, want)
				if got, err := r.ReadString('\n'); got != want || err != nil {
					t.Error(got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	t.Logf("%+v", s.Stats())
}

func TestSmokeMove(t *testing.T) {
	a := &serve.Server{Handler: serve.Frames(frame.Lines(), echo)}
	b := &serve.Server{Handler: serve.Frames(frame.Lines(), echo)}
	addr := start(t, a)
	start(t, b)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprintf("%d/%d\n", i, n)
				io.WriteString(conn, want)
				if got, err := r.ReadString('\n'); got != want || err != nil {
					t.Error(got, err)
					return
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	err := a.HandOver(t.Context(), func(state []byte, conns ...syscall.Conn) error {
		raw, err := conns[0].SyscallConn()
		if err != nil {
			return err
		}
		raw.Control(func(fd uintptr) {
			var own int
			if own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				err = b.TakeOver(state, []int{own})
			}
		})
		return err
	})
	t.Log(err, time.Since(begin))
	time.Sleep(200 * time.Millisecond)
	close(stop)
	wg.Wait()
	a.Close()
	t.Logf("%+v\n%+v", a.Stats(), b.Stats())
}
