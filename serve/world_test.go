package serve_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/serve"
)

// world is a simulated network with one server on it, at 10.0.0.1:7000. It lives in a
// synctest bubble, so times are exact.
type world struct {
	t    *testing.T
	net  *simnet.Net
	srv  *serve.Server
	ln   net.Listener
	logs logs

	mu     sync.Mutex // guards events
	events []serve.Event
}

const here = "10.0.0.1:7000"

// inWorld runs a story about a server in a bubble, and closes the server.
func inWorld(t *testing.T, srv *serve.Server, story func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: simnet.New(1), srv: srv}
		if srv.Observe == nil {
			srv.Observe = w.observe
		}
		if srv.Log == nil {
			srv.Log = w.logs.logger()
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := srv.Serve(w.listen(here)); !errors.Is(err, serve.ErrServerClosed) {
				t.Errorf("Serve: %v", err)
			}
		})
		synctest.Wait()
		defer func() {
			srv.Close()
			w.net.Close()
			serving.Wait()
		}()
		story(t, w)
	})
}

func (w *world) listen(addr string) net.Listener {
	w.t.Helper()
	ln, err := w.net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.ln = ln
	return ln
}

func (w *world) observe(e serve.Event) {
	w.mu.Lock()
	w.events = append(w.events, e)
	w.mu.Unlock()
}

// seen returns the events of one kind so far.
func (w *world) seen(kind serve.EventKind) (found []serve.Event) {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// logged returns the lines so far that have this in them.
func (w *world) logged(what string) []string {
	synctest.Wait()
	return w.logs.lines(what)
}

// client is somebody at 10.0.0.9, or elsewhere.
func (w *world) client() *client { return w.clientAt("10.0.0.9") }

func (w *world) clientAt(host string) *client {
	w.t.Helper()
	conn, err := w.net.Host(host).DialContext(w.t.Context(), "tcp", here)
	if err != nil {
		w.t.Fatal(err)
	}
	return newClient(w.t, conn)
}

// shutdown begins a Shutdown, and returns what it returns and when.
func (w *world) shutdown(limit time.Duration) func() (time.Duration, error) {
	begin := time.Now()
	type end struct {
		err  error
		took time.Duration
	}
	done := make(chan end, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err := w.srv.Shutdown(ctx)
		done <- end{err, time.Since(begin)}
	}()
	synctest.Wait()
	return func() (time.Duration, error) {
		e := <-done
		return e.took, e.err
	}
}

// client speaks lines, and fails its test when the answer is another than expected.
type client struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func newClient(t *testing.T, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	return &client{conn, t, bufio.NewReader(conn)}
}

func (c *client) write(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Errorf("write %.20q: %v", s, err)
	}
}

func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.r, got); string(got[:n]) != want {
		c.t.Errorf("read %q, %v; want %q", got[:n], err, want)
	}
}

// ask says a line, and expects it back.
func (c *client) ask(line string) {
	c.t.Helper()
	c.write(line + "\n")
	c.expect(line + "\n")
}

// expectEnd expects that nothing more comes, and returns when.
func (c *client) expectEnd() time.Time {
	c.t.Helper()
	if rest, err := io.ReadAll(c.r); err != nil || len(rest) > 0 {
		c.t.Errorf("read %q, %v; want the end", rest, err)
	}
	return time.Now()
}

// expectGone is expectEnd, but the end may be a reset.
func (c *client) expectGone() time.Time {
	c.t.Helper()
	if rest, _ := io.ReadAll(c.r); len(rest) > 0 {
		c.t.Errorf("read %q; want the end", rest)
	}
	return time.Now()
}

// logs keeps what was logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns the lines that have this in them.
func (l *logs) lines(what string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, what) {
			found = append(found, line)
		}
	}
	return found
}

func echo(_ context.Context, c *serve.Conn, line []byte) error { return c.Send(line) }

// echoes is a server of lines.
func echoes() *serve.Server {
	return &serve.Server{Handler: serve.Frames(frame.Lines(), echo)}
}

// handsOut is a handler that hands out its connection at the first message, and repeats
// the others.
func handsOut(conns chan<- *serve.Conn) serve.Handler {
	return serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
		if string(line) == "go" {
			conns <- c
			return nil
		}
		return c.Send(line)
	})
}

// raw is a server whose handler reads for itself.
func raw(f func(ctx context.Context, c *serve.Conn) error) *serve.Server {
	return &serve.Server{Handler: serve.HandlerFunc(f)}
}

// copies is a handler that echoes bytes.
func copies(_ context.Context, c *serve.Conn) error {
	_, err := io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	return err
}

// readSlowly takes 64 KiB a millisecond, until the end.
func (c *client) readSlowly() {
	var reading sync.WaitGroup
	c.t.Cleanup(func() {
		c.Close()
		reading.Wait()
	})
	reading.Go(func() {
		buf := make([]byte, 64<<10)
		for err := error(nil); err == nil; _, err = c.Read(buf) {
			time.Sleep(time.Millisecond)
		}
	})
}

// start serves on a real socket, until the end of the test.
func start(t *testing.T, s *serve.Server, address ...string) (addr net.Addr) {
	t.Helper()
	if len(address) == 0 {
		address = []string{"tcp://127.0.0.1:0"}
	}
	ln, err := serve.Listen(t.Context(), address[0])
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(ln); !errors.Is(err, serve.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		s.Close()
		serving.Wait()
	})
	return ln.Addr()
}

func dial(t *testing.T, addr net.Addr) *client {
	t.Helper()
	conn, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second)) // a test that hangs says where
	return newClient(t, conn)
}

// within fails unless a duration of the bubble's clock is in these bounds.
func within(t *testing.T, got, least, most time.Duration) {
	t.Helper()
	if got < least || got > most {
		t.Errorf("took %v, want %v to %v", got, least, most)
	}
}

// eventually waits, on real sockets, for what takes a moment.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); !is(); <-tick.C {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("never: " + what)
		}
	}
}
