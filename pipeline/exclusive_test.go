package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/pipeline"
)

func (w *world) exclusive(p *pipeline.Client[string]) *pipeline.Exclusive[string] {
	w.Helper()
	x, err := p.Exclusive(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	return x
}

// P21: connections of one's own come out of the Cluster's pool, are prepared once, and
// go back; a broken one is replaced.
func TestExclusive(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		handshakes := 0
		p := w.lines(config{Handshake: func(ctx context.Context, s *pipeline.Setup[string]) error {
			handshakes++
			_, err := s.Do(line("HELLO"))
			return err
		}})
		w.ask(p, "shared")
		for i := range 3 {
			x := w.exclusive(p)
			if got, err := x.Do(w.Context(), line("mine %d", i)); err != nil || got != fmt.Sprint("re mine ", i) {
				w.Errorf("%q, %v", got, err)
			}
			replies := make([]string, 2)
			if n, err := x.Batch(w.Context(), line("a\nb"), replies); n != 2 || err != nil || replies[1] != "re b" {
				w.Errorf("%d, %v, %q", n, err, replies)
			}
			x.Release()
		}
		if handshakes != 2 {
			w.Errorf("%d handshakes for a shared and an exclusive connection", handshakes)
		}
		x := w.exclusive(p)
		w.servers[0].does(func(c net.Conn, line string) { c.Close() })
		if _, err := x.Do(w.Context(), line("cut")); outcome(err) != "sent, no reply" {
			w.Errorf("got %v", err)
		}
		if _, err := x.Do(w.Context(), line("again")); outcome(err) != "not sent" {
			w.Errorf("on a broken connection: %v", err)
		}
		x.Release()
		w.servers[0].does(nil)
		x = w.exclusive(p)
		defer x.Release()
		if got, err := x.Do(w.Context(), line("new")); err != nil || got != "re new" || handshakes != 3 {
			w.Errorf("%q, %v, %d handshakes", got, err, handshakes)
		}
	})
}

// P15: who does not receive holds the peer up, and not this process's memory; the end
// of a wait costs nothing.
func TestReceiveIsOnePullAtATime(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		var sent atomic.Int64
		w.servers[0].does(func(c net.Conn, line string) {
			go func() {
				for ; ; sent.Add(1) {
					if _, err := fmt.Fprintf(c, "message %d %s\n", sent.Load(), strings.Repeat(".", 100)); err != nil {
						return
					}
				}
			}()
		})
		p := w.lines(config{})
		x := w.exclusive(p)
		if err := x.Send(w.Context(), line("SUBSCRIBE")); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := sent.Load(); n > 2000 {
			w.Errorf("the peer could send %d messages that nobody received", n)
		}
		for i := range 5000 {
			got, err := x.Receive(w.Context())
			if err != nil || !strings.HasPrefix(got, fmt.Sprintf("message %d ", i)) {
				w.Fatalf("%d: %q, %v", i, got, err)
			}
		}
		x.Discard(nil)
	})
	inWorld(t, 1, func(w *world) {
		w.servers[0].does(func(c net.Conn, line string) {
			time.Sleep(time.Second)
			fmt.Fprint(c, "half of a ")
			time.Sleep(time.Second)
			fmt.Fprint(c, "message\n")
		})
		x := w.exclusive(w.lines(config{}))
		x.Send(w.Context(), line("go"))
		for i := range 3 {
			begin := time.Now()
			if _, err := x.Receive(w.within(600 * time.Millisecond)); err != context.DeadlineExceeded || time.Since(begin) != 600*time.Millisecond {
				w.Errorf("%d: %v", i, err)
			}
		}
		if got, err := x.Receive(w.Context()); err != nil || got != "half of a message" {
			w.Errorf("%q, %v", got, err)
		}
		x.Discard(nil)
	})
}

// Do on an exclusive connection is bounded by Stall, unless it is declared slow, and by
// its context always.
func TestExclusiveWaits(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.servers[0].does(func(c net.Conn, line string) {
			time.Sleep(time.Minute)
			fmt.Fprintf(c, "re %s\n", line)
		})
		p := w.lines(config{Stall: time.Second})
		for _, c := range []struct {
			slow, own, took time.Duration
			ok              bool
			err             error
		}{
			{took: time.Second, err: pipeline.ErrStalled},
			{slow: 2 * time.Minute, took: time.Minute, ok: true},
			{slow: -1, took: time.Minute, ok: true},
			{slow: -1, own: 10 * time.Second, took: 10 * time.Second, err: context.DeadlineExceeded},
		} {
			x := w.exclusive(p)
			ctx := w.Context()
			if c.own > 0 {
				ctx = w.within(c.own)
			}
			req := line("BLPOP")
			req.Slow = c.slow
			begin := time.Now()
			_, err := x.Do(ctx, req)
			if took := time.Since(begin); took != c.took || (err == nil) != c.ok || c.err != nil && !errors.Is(err, c.err) {
				w.Errorf("%+v: %v after %v", c, err, took)
			}
			x.Release()
		}
	})
}

// A handshake that fails sends one on to the next node, and a permanent one does not.
func TestExclusiveHandshakeFails(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		bad := w.servers[0].addr
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Outlier: holdfast.Outlier{Consecutive: 1}})
		p := w.over(c, config{Handshake: func(ctx context.Context, s *pipeline.Setup[string]) error {
			if s.Conn.Node().Addr() == bad {
				return errors.New("not this one")
			}
			return nil
		}})
		x := w.exclusive(p)
		if x.Node().Addr() == bad {
			w.Error("it is of the node that refused")
		}
		x.Release()
		q := w.over(c, config{Handshake: func(context.Context, *pipeline.Setup[string]) error {
			return holdfast.Permanent(errors.New("wrong password"))
		}})
		if _, err := q.Exclusive(w.Context()); outcome(err) != "not sent" || !strings.Contains(err.Error(), "wrong password") {
			w.Errorf("got %v", err)
		}
		q.Close()
		if _, err := q.Exclusive(w.Context()); !errors.Is(err, net.ErrClosed) {
			w.Errorf("of a closed client: %v", err)
		}
	})
}

// A connection that another client of the same Cluster prepared is not ours.
func TestExclusiveOfAnotherClient(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		c := w.cluster(holdfast.Config{})
		greeting := func(text string) config {
			return config{Handshake: func(ctx context.Context, s *pipeline.Setup[string]) error {
				_, err := s.Do(line("%s", text))
				return err
			}}
		}
		a, b := w.over(c, greeting("SELECT 1")), w.over(c, greeting("SELECT 2"))
		synctest.Wait()
		for range 2 {
			w.exclusive(a).Release()
			w.exclusive(b).Release()
		}
		if got := w.servers[0].times("SELECT 1") + w.servers[0].times("SELECT 2"); got != 6 {
			w.Errorf("%d handshakes for two shared and four exclusive connections", got)
		}
	})
}
