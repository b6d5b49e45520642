//go:build unix

package serve_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// to is what package restart does between two processes: the successor gets a
// descriptor of its own, and closes it if it does not refuse.
func to(successor *serve.Server) func([]byte, ...syscall.Conn) error {
	return func(state []byte, conns ...syscall.Conn) (err error) {
		rc, err := conns[0].SyscallConn()
		if err != nil {
			return err
		}
		controlErr := rc.Control(func(fd uintptr) {
			var own int
			if own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return
			}
			if err = successor.TakeOver(slices.Clone(state), []int{own}); err != nil {
				unix.Close(own)
			}
		})
		return errors.Join(controlErr, err)
	}
}

// handOver gives it 10 s.
func handOver(t *testing.T, from *serve.Server, send func([]byte, ...syscall.Conn) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return from.HandOver(ctx, send)
}

// successor is a server that accepts nobody by itself.
func successor(t *testing.T, s *serve.Server) *serve.Server {
	t.Cleanup(func() { s.Close() })
	return s
}

// No request is lost or answered twice while connections move, again and again.
func TestMoveUnderLoad(t *testing.T) {
	leak.Check(t)
	const clients = 50
	srv := echoes()
	addr := start(t, srv)
	stop := make(chan struct{})
	var talking sync.WaitGroup
	for i := range clients {
		c := dial(t, addr)
		rng := rand.New(rand.NewPCG(1, uint64(i)))
		talking.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				batch := fmt.Sprintf("%d/%d\nsecond\n%s\n", i, n, strings.Repeat("x", rng.IntN(3000)))
				for rest := batch; len(rest) > 0; { // cut anywhere
					k := 1 + rng.IntN(len(rest))
					if rng.IntN(4) == 0 {
						k = 1
					}
					c.write(rest[:k])
					rest = rest[k:]
				}
				c.expect(batch)
				if t.Failed() {
					return
				}
			}
		})
	}
	eventually(t, "all are served", func() bool { return srv.Stats().Open == clients })
	for range 20 {
		next := successor(t, echoes())
		if err := handOver(t, srv, to(next)); err != nil {
			t.Error(err)
		}
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if out, in := srv.Stats().MovedOut, next.Stats().MovedIn; out != clients || in != clients {
			t.Errorf("%d left, %d arrived, of %d", out, in, clients)
		}
		srv = next
	}
	close(stop)
	talking.Wait()
}

func TestMoveThousand(t *testing.T) {
	leak.Check(t)
	t.Cleanup(serve.RestAfter(10 * time.Millisecond)) // many of them are resting
	const n = 1000
	a, b := echoes(), successor(t, echoes())
	addr := start(t, a)
	var all []*client
	for range n {
		c := dial(t, addr)
		c.ask("hello")
		all = append(all, c)
	}
	if err := handOver(t, a, to(b)); err != nil {
		t.Error(err)
	}
	if s := b.Stats(); s.Open != n || s.MovedIn != n {
		t.Errorf("%+v", s)
	}
	eventually(t, "none is left", func() bool { return a.Stats().Open == 0 })
	for _, c := range all {
		c.ask("still here")
		c.Close()
	}
}

// gated is a server whose handler waits at "wait" until it is let go.
func gated() (srv *serve.Server, at chan struct{}, let chan struct{}) {
	at, let = make(chan struct{}, 100), make(chan struct{})
	return &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
		if string(line) == "wait" {
			at <- struct{}{}
			<-let
		}
		return c.Send(line)
	})}, at, let
}

// What was read and not handled moves with the connection: at every split.
func TestMoveWithUnreadBytes(t *testing.T) {
	leak.Check(t)
	story := "wait\nsecond\nthird\n"
	moved := 0 // messages that had come and were not handled here
	for cut := len("wait\n"); cut <= len(story); cut++ {
		a, at, let := gated()
		b := echoes()
		c := dial(t, start(t, a))
		c.write(story[:cut])
		<-at
		done := make(chan error)
		go func() { done <- handOver(t, a, to(b)) }()
		eventually(t, "the order is there", func() bool { return a.Drains() })
		close(let)
		if err := <-done; err != nil {
			t.Error(err)
		}
		c.write(story[cut:])
		c.expect(story)
		am, bm := a.Stats().Messages, b.Stats().Messages
		if am+bm != 3 || am > 2 { // a second one may begin before the order is heard
			t.Errorf("cut at %d: %d and %d messages were handled, want 3 in all", cut, am, bm)
		}
		if am == 1 && cut >= len("wait\nsecond\n") {
			moved++
		}
		c.Close()
		b.Shutdown(t.Context())
		a.Close()
	}
	if moved == 0 {
		t.Error("nothing that had come moved")
	}
}

// A connection that is refused there stays, and is served here: what has come is
// answered, and it says goodbye.
func TestRefusedMoveStays(t *testing.T) {
	bang := errors.New("no")
	for name, c := range map[string]struct {
		send   func([]byte, ...syscall.Conn) error
		panics uint64
	}{
		"send fails":    {send: func([]byte, ...syscall.Conn) error { return bang }},
		"Resume fails":  {send: to(&serve.Server{Handler: echoes().Handler, Resume: func(*serve.Conn, []byte) error { return bang }})},
		"Resume panics": {send: to(&serve.Server{Handler: echoes().Handler, Resume: func(*serve.Conn, []byte) error { panic(bang) }})},
		"TLS there":     {send: to(&serve.Server{Handler: echoes().Handler, TLS: newAuthority(t).serverTLS()})},
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			a, at, let := gated()
			a.Drain.Goodbye = func(_ context.Context, c *serve.Conn) error { return c.Send([]byte("bye")) }
			client := dial(t, start(t, a))
			client.write("wait\nsecond\n")
			<-at
			done := make(chan error)
			go func() { done <- handOver(t, a, c.send) }()
			eventually(t, "the order is there", func() bool { return a.Drains() })
			close(let)
			if err := <-done; err != nil {
				t.Error(err)
			}
			client.expect("wait\n")
			line, _ := client.r.ReadString('\n') // in either order: the goodbye is between two messages
			next, _ := client.r.ReadString('\n')
			if both := []string{line, next}; !slices.Contains(both, "bye\n") || !slices.Contains(both, "second\n") {
				t.Errorf("got %q", both)
			}
			client.ask("one more")
			client.Close()
			if err := a.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			if s := a.Stats(); s.MovedOut != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestTLSDoesNotMove(t *testing.T) {
	leak.Check(t)
	ca := newAuthority(t)
	a := echoes()
	a.TLS = ca.serverTLS()
	a.Drain.Goodbye = func(_ context.Context, c *serve.Conn) error { return c.Send([]byte("bye")) }
	c := newClient(t, tls.Client(dial(t, start(t, a)).Conn, ca.caller(nil)))
	c.ask("hello")
	if err := handOver(t, a, func([]byte, ...syscall.Conn) error { t.Error("it was sent"); return nil }); err != nil {
		t.Error(err)
	}
	c.expect("bye\n")
	c.ask("still here")
	c.Close()
}

// A handler that is busy for longer than the hand-over stays.
func TestMoveEndsWithItsContext(t *testing.T) {
	leak.Check(t)
	a, at, let := gated()
	c := dial(t, start(t, a))
	c.write("wait\nsecond\n")
	<-at
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.HandOver(ctx, func([]byte, ...syscall.Conn) error { t.Error("it was sent"); return nil }); err == nil {
		t.Error("no error")
	}
	close(let)
	c.expect("wait\nsecond\n")
	c.expectEnd()
}

type session struct{ user string }

func (s *session) MarshalBinary() ([]byte, error) { return []byte(s.user), nil }

// The user's state moves, as does the client's address, and the limits of the successor
// count the connection.
func TestMoveSessionAddressAndLimits(t *testing.T) {
	leak.Check(t)
	handle := func(_ context.Context, c *serve.Conn, line []byte) error {
		if user, ok := strings.CutPrefix(string(line), "login "); ok {
			c.Session = &session{user}
		}
		state, taken := c.Resumed()
		who, _ := c.Session.(*session)
		return c.Send(fmt.Appendf(nil, "%v %v %s %v", who, taken, state, c.RemoteAddr()))
	}
	limits := serve.Limits{MaxPerIP: 1}
	proxy := serve.Proxy{Trusted: prefixes("127.0.0.0/8")}
	a := &serve.Server{Handler: serve.Frames(frame.Lines(), handle), Limits: limits, Proxy: proxy}
	b := &serve.Server{Handler: a.Handler, Limits: limits, Proxy: proxy, Resume: func(c *serve.Conn, state []byte) error {
		c.Session = &session{string(state)}
		return nil
	}}
	c := dial(t, start(t, a))
	c.write(proxyV1 + "login alice\n")
	c.expect("&{alice} false  192.0.2.7:4711\n")
	if err := handOver(t, a, to(b)); err != nil {
		t.Error(err)
	}
	c.write("who\n")
	c.expect("&{alice} true alice 192.0.2.7:4711\n")
	other := dial(t, start(t, b))
	other.write(proxyV1)
	other.expectGone() // this client has one there already
	c.Close()
	eventually(t, "its place is free", func() bool { return b.Stats().Open == 0 })
	third := dial(t, start(t, b))
	third.write(proxyV1 + "who\n")
	third.expect("<nil> false  192.0.2.7:4711\n")
}

// A handler that reads for itself moves when it says where it stands.
func TestDetach(t *testing.T) {
	leak.Check(t)
	handle := func(_ context.Context, c *serve.Conn) error {
		if state, ok := c.Resumed(); ok {
			rest := make([]byte, 5)
			if _, err := io.ReadFull(c, rest); err != nil {
				return err
			}
			_, err := fmt.Fprintf(c, "%s %s", state, rest)
			return err
		}
		if err := c.Detach(nil, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Detach while nobody moves: %v", err)
		}
		buf := make([]byte, 2)
		io.ReadFull(c, buf)
		<-c.Draining()
		if err := c.Detach(buf, []byte("state")); err != nil {
			t.Error(err)
		}
		return nil
	}
	a, b := raw(handle), successor(t, raw(handle))
	c := dial(t, start(t, a))
	c.write("hello")
	eventually(t, "it is there", func() bool { return a.Stats().Received == 2 })
	if err := handOver(t, a, to(b)); err != nil {
		t.Error(err)
	}
	c.expect("state hello")
	c.expectEnd()
	if s := a.Stats(); s.MovedOut != 1 {
		t.Errorf("%+v", s)
	}
}

// What other goroutines send while a connection moves arrives once, or is an error.
func TestSendWhileMoving(t *testing.T) {
	leak.Check(t)
	conns := make(chan *serve.Conn, 1)
	a := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
		conns <- c
		return nil
	})}
	b := successor(t, echoes())
	c := dial(t, start(t, a))
	c.write("hello\n")
	conn := <-conns
	var sent atomic.Int64
	var pushing sync.WaitGroup
	pushing.Go(func() {
		for i := 0; ; i++ {
			if err := conn.Send(fmt.Appendf(nil, "push %d", i)); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
				return
			}
			sent.Add(1)
		}
	})
	got := make(chan int64)
	go func() {
		n := int64(0)
		for {
			line, err := c.r.ReadString('\n')
			if line == "over\n" || err != nil {
				got <- n
				return
			}
			if want := fmt.Sprintf("push %d\n", n); line != want {
				t.Errorf("got %q, want %q", line, want)
			}
			n++
		}
	}()
	eventually(t, "it pushes", func() bool { return sent.Load() > 100 })
	if err := handOver(t, a, to(b)); err != nil {
		t.Error(err)
	}
	pushing.Wait()
	c.write("over\n")
	if n := <-got; n != sent.Load() {
		t.Errorf("%d arrived of %d", n, sent.Load())
	}
}

// movable says that it is a system socket, so that it can move in a bubble too.
type movable struct {
	net.Conn
	sent *atomic.Int64
}

func (m movable) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }

func (m movable) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	m.sent.Add(int64(n))
	return n, err
}

// withMovable runs a story about one connection of a server, in a bubble. What is
// written to it is counted, and waits until the client reads it.
func withMovable(t *testing.T, srv *serve.Server, story func(t *testing.T, c *client, sent *atomic.Int64)) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var sent atomic.Int64
		go srv.ServeConn(movable{ours, &sent})
		story(t, newClient(t, theirs), &sent)
		theirs.Close()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A Write has left as a whole when its connection moves, or it fails and nothing of it
// has.
func TestWriteWhileMoving(t *testing.T) {
	const size = 1 << 20
	conns := make(chan *serve.Conn, 1)
	srv := &serve.Server{Handler: handsOut(conns)}
	withMovable(t, srv, func(t *testing.T, c *client, sent *atomic.Int64) {
		c.write("go\n")
		conn := <-conns
		var left, failed int
		var mu sync.Mutex // guards both
		var writing sync.WaitGroup
		for range 3 {
			writing.Go(func() {
				n, err := conn.Write(make([]byte, size))
				mu.Lock()
				defer mu.Unlock()
				if left += n; errors.Is(err, net.ErrClosed) {
					failed++
				}
			})
		}
		synctest.Wait() // one is under way
		c.readSlowly()
		var atMove int64
		err := handOver(t, srv, func([]byte, ...syscall.Conn) error {
			atMove = sent.Load()
			return nil
		})
		writing.Wait()
		if err != nil || left == 0 || left != size*(3-failed) || atMove != int64(left) || sent.Load() != atMove {
			t.Errorf("%v; %d bytes left and %d writes failed; %d bytes at the move, and %d in the end", err, left, failed, atMove, sent.Load())
		}
	})
}

// However many send, a connection soon stops for its move.
func TestMoveAmongManySenders(t *testing.T) {
	conns := make(chan *serve.Conn, 1)
	srv := &serve.Server{Handler: handsOut(conns)}
	withMovable(t, srv, func(t *testing.T, c *client, sent *atomic.Int64) {
		c.write("go\n")
		conn := <-conns
		var sending sync.WaitGroup
		for range 16 {
			sending.Go(func() {
				for conn.Send(make([]byte, 8<<10)) == nil {
				}
			})
		}
		c.readSlowly()
		time.Sleep(20 * time.Millisecond)
		begin := time.Now()
		if err := handOver(t, srv, func([]byte, ...syscall.Conn) error { return nil }); err != nil {
			t.Error(err)
		}
		within(t, time.Since(begin), 0, 20*time.Millisecond)
		sending.Wait() // they were told
		if n := srv.Stats().MovedOut; n != 1 {
			t.Errorf("%d moved", n)
		}
	})
}

// The session's panic is its connection's, which stays, and goes on as after a refusal.
func TestPanicInMarshalBinaryStays(t *testing.T) {
	conns := make(chan *serve.Conn, 1)
	srv := &serve.Server{Handler: handsOut(conns)}
	srv.Drain.Goodbye = func(context.Context, *serve.Conn) error { return nil }
	withMovable(t, srv, func(t *testing.T, c *client, _ *atomic.Int64) {
		c.write("go\n")
		(<-conns).Session = bomb{}
		if err := handOver(t, srv, func([]byte, ...syscall.Conn) error { t.Error("it was sent"); return nil }); err != nil {
			t.Error(err)
		}
		c.ask("still here")
		c.Close()
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if s := srv.Stats(); s.Panics != 1 || s.MovedOut != 0 {
			t.Errorf("%+v", s)
		}
	})
}

type bomb struct{}

func (bomb) MarshalBinary() ([]byte, error) { panic("boom") }

// The counters of a generation only grow, and add up over generations.
func TestTotals(t *testing.T) {
	leak.Check(t)
	a, b := echoes(), successor(t, echoes())
	c := dial(t, start(t, a))
	before := a.Totals()
	for i := range 10 {
		if c.ask("hello"); i == 5 {
			handOver(t, a, to(b))
		}
		now := a.Totals()
		for name, n := range now {
			if n < before[name] {
				t.Errorf("%s went from %d to %d", name, before[name], n)
			}
		}
		before = now
	}
	c.Close()
	eventually(t, "all has ended", func() bool { return b.Stats().Open == 0 })
	sum := func(name string) int64 { return a.Totals()[name] + b.Totals()[name] }
	if sum("accepted") != 1 || sum("moved_out") != 1 || sum("moved_in") != 1 || sum("messages") != 10 ||
		sum("received_bytes") != 60 || sum("sent_bytes") != 60 {
		t.Errorf("%v\n%v", a.Totals(), b.Totals())
	}
}

// Whatever the successor is given, it refuses or serves, and the descriptor has one owner.
func TestTakeOverRefuses(t *testing.T) {
	leak.Check(t)
	good := serve.Record("", nil, nil)
	file := func() int {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	srv := successor(t, echoes())
	for name, c := range map[string]struct {
		state []byte
		fds   int
	}{
		"empty":           {nil, 1},
		"no connection":   {good, 1},
		"no descriptor":   {good, 0},
		"two descriptors": {good, 2},
		"cut":             {good[:len(good)-1], 1},
		"no address":      {serve.Record("nonsense", nil, nil), 1},
		"huge length":     {binary.AppendUvarint([]byte{1}, 1<<63), 1},
	} {
		var fds []int
		for range c.fds {
			fds = append(fds, file())
		}
		if err := srv.TakeOver(c.state, fds); err == nil {
			t.Errorf("%s: taken", name)
		}
		for _, fd := range fds {
			if err := unix.Close(fd); err != nil {
				t.Errorf("%s: the descriptor is gone: %v", name, err)
			}
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(serve.Record("", nil, nil))
	f.Add(serve.Record("192.0.2.7:4711", []byte("state"), []byte("unread")))
	f.Add(serve.Record("unix:@a\x00b", bytes.Repeat([]byte("s"), 300), nil))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		client, state, unread, err := serve.ReadRecord(b)
		if err != nil {
			return
		}
		if len(client)+len(state)+len(unread) > len(b) {
			t.Fatalf("%d bytes out of %d", len(client)+len(state)+len(unread), len(b))
		}
		c, s, u, err := serve.ReadRecord(serve.Record(client, state, unread))
		if err != nil || c != client || !bytes.Equal(s, state) || !bytes.Equal(u, unread) {
			t.Fatalf("%q %q %q %v", c, s, u, err)
		}
	})
}

// Orders that change nothing, again and again, harm no read and lose no request.
func TestOrdersInterruptNothing(t *testing.T) {
	leak.Check(t)
	t.Cleanup(serve.RestAfter(time.Millisecond)) // also between two rests
	srv := echoes()
	srv.Timeouts.Idle = -1
	srv.Drain = serve.Drain{Wait: time.Minute, Goodbye: func(context.Context, *serve.Conn) error { return nil }}
	addr := start(t, srv)
	stop := make(chan struct{})
	var talking sync.WaitGroup
	for i := range 20 {
		c := dial(t, addr)
		c.ask("hello")
		talking.Go(func() {
			pause := time.NewTicker(time.Duration(i)*200*time.Microsecond/2 + 1)
			defer pause.Stop()
			for n := 0; !t.Failed(); n++ {
				select {
				case <-stop:
					return
				case <-pause.C:
				}
				line := fmt.Sprint(n)
				c.write(line[:1])
				c.write(line[1:] + "\n")
				c.expect(line + "\n")
			}
		})
	}
	for range 300 {
		if err := handOver(t, srv, func([]byte, ...syscall.Conn) error { return errors.New("no") }); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	talking.Wait()
}
