package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/pipeline"
)

// outcome is what an error says of its request.
func outcome(err error) string {
	e, ok := errors.AsType[*pipeline.Error](err)
	if !ok {
		return fmt.Sprintf("%T", err)
	}
	return e.Outcome.String()
}

// P9, P10, P12: however many there are, and however the bytes are cut, each caller gets
// its own reply, and none waits for another's to be sent.
func TestRepliesReachTheirCallers(t *testing.T) {
	for name, cfg := range map[string]config{"in order": {}, "numbered": numbered(config{}), "16 bits": numbered(config{IDBits: 16}), "2 connections": {Conns: 2}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(w *world) {
				w.net.SetLink("", "", simnet.Link{Latency: 5 * time.Millisecond, Jitter: 5 * time.Millisecond})
				p := w.ready(w.lines(cfg))
				var wg sync.WaitGroup
				for i := range 300 {
					wg.Go(func() {
						for j := range 20 {
							text := fmt.Sprintf("%d of %d", j, i)
							req, want := line("%s", text), "re "+text
							if cfg.ID != nil {
								req = numberedLine(text)
							}
							got, err := p.Do(w.Context(), req)
							if err != nil || cfg.ID == nil && got != want || !strings.HasSuffix(got, text) {
								w.Errorf("%q got %q, %v", text, got, err)
							}
						}
					})
				}
				begin := time.Now()
				wg.Wait()
				if took := time.Since(begin); took > 20*25*time.Millisecond {
					w.Errorf("20 round trips of at most 20 ms took %v: somebody waited for others", took)
				}
				if s := p.Stats(); s.Requests != 6000 || s.Replies != 6000 || s.InFlight+s.Waiting != 0 || s.Failures+s.Dropped+s.Unasked != 0 {
					w.Errorf("stats: %+v", s)
				}
			})
		})
	}
}

// Replies with numbers come in any order, and a slow one holds up nobody.
func TestNumberedRepliesOvertake(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		var mu sync.Mutex
		w.servers[0].does(func(c net.Conn, line string) {
			var id, ms int
			fmt.Sscanf(line, "%d %d", &id, &ms)
			time.AfterFunc(time.Duration(ms)*time.Millisecond, func() {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(c, "re %s\n", line)
			})
		})
		p := w.ready(w.lines(numbered(config{})))
		var wg sync.WaitGroup
		begin := time.Now()
		for ms := 500; ms > 0; ms -= 5 {
			wg.Go(func() {
				got, err := p.Do(w.Context(), numberedLine(fmt.Sprint(ms)))
				if took := time.Since(begin); err != nil || !strings.HasSuffix(got, fmt.Sprint(" ", ms)) || took != time.Duration(ms)*time.Millisecond {
					w.Errorf("%d: %q, %v after %v", ms, got, err, took)
				}
			})
		}
		wg.Wait()
	})
}

// It must show 1, on a simulated network: random deadlines, cuts and delays, and never
// a reply of somebody else. The naive client is the control: it must fail.
func TestNoReplyToTheWrongCaller(t *testing.T) {
	ops := 10_000
	if testing.Short() {
		ops = 2_000
	}
	for name, cfg := range map[string]config{"in order": {}, "numbered": numbered(config{})} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 2, func(w *world) {
				p := w.lines(cfg)
				wrong, canceled := crossTalk(w, ops, func(ctx context.Context, text string) (string, error) {
					req := idempotent(line("%s", text))
					if cfg.ID != nil {
						req = idempotent(numberedLine(text))
					}
					return p.Do(ctx, req)
				})
				if wrong > 0 || canceled < ops/10 {
					w.Errorf("%d wrong replies of %d, %d canceled", wrong, ops, canceled)
				}
				w.Logf("%d of %d canceled: %+v", canceled, ops, p.Stats())
			})
		})
	}
	t.Run("naive", func(t *testing.T) {
		inWorld(t, 2, func(w *world) {
			n := &naive{dial: w.client.DialContext, addr: w.servers[0].addr}
			wrong, _ := crossTalk(w, ops, n.do)
			if wrong == 0 {
				w.Error("a client that forgets whose reply is whose was not found out")
			}
		})
	})
}

func crossTalk(w *world, ops int, do func(context.Context, string) (string, error)) (wrong, canceled int) {
	w.net.SetLink("", "", simnet.Link{Latency: 5 * time.Millisecond, Jitter: 5 * time.Millisecond})
	var bad, late atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var cutter sync.WaitGroup
	cutter.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(r.IntN(200)) * time.Millisecond):
			}
			if all := w.client.Conns(); len(all) > 0 {
				all[r.IntN(len(all))].ResetAfter(r.IntN(100))
			}
		}
	})
	for i := range 100 {
		r := rand.New(rand.NewPCG(3, uint64(i)))
		wg.Go(func() {
			for j := range ops / 100 {
				text := fmt.Sprintf("%d-%d", i, j)
				ctx, cancel := context.WithTimeout(w.Context(), time.Duration(r.IntN(40))*time.Millisecond)
				got, err := do(ctx, text)
				switch {
				case err == nil && !strings.HasSuffix(got, text):
					bad.Add(1)
				case errors.Is(err, context.DeadlineExceeded):
					late.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	close(stop)
	cutter.Wait()
	return int(bad.Load()), int(late.Load())
}

// naive is how a pipeline should not be written: who leaves takes its place along.
type naive struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	addr string

	mu      sync.Mutex
	conn    net.Conn
	waiters []chan string
}

func (n *naive) do(ctx context.Context, text string) (string, error) {
	if err := n.connect(); err != nil {
		return "", err
	}
	n.mu.Lock()
	if n.conn == nil {
		n.mu.Unlock()
		return "", io.EOF
	}
	me := make(chan string, 1)
	n.waiters = append(n.waiters, me)
	fmt.Fprintf(n.conn, "%s\n", text)
	n.mu.Unlock()
	select {
	case got := <-me:
		return got, nil
	case <-ctx.Done():
		n.mu.Lock()
		n.waiters = slices.DeleteFunc(n.waiters, func(c chan string) bool { return c == me })
		n.mu.Unlock()
		return "", ctx.Err()
	}
}

func (n *naive) connect() error {
	n.mu.Lock()
	there := n.conn != nil
	n.mu.Unlock()
	if there {
		return nil
	}
	conn, err := n.dial(context.Background(), "tcp", n.addr)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		conn.Close()
		return nil
	}
	n.conn = conn
	go n.read(conn)
	return nil
}

func (n *naive) read(conn net.Conn) {
	b := make([]byte, 1)
	var line []byte
	for {
		if _, err := conn.Read(b); err != nil {
			n.mu.Lock()
			n.conn, n.waiters = nil, nil
			n.mu.Unlock()
			return
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		n.mu.Lock()
		if len(n.waiters) > 0 {
			n.waiters[0] <- string(line)
			n.waiters = n.waiters[1:]
		}
		n.mu.Unlock()
		line = nil
	}
}

// It must show 2: whatever byte the stream of requests is cut at, "not sent" is said
// only of what the server has not acted on, and nothing unsafe runs twice.
func TestNotSentIsTheTruth(t *testing.T) {
	const requests = 12
	total := requests * len("request 00\n")
	for n := 0; n <= total; n++ {
		for _, alone := range []bool{true, false} {
			inWorld(t, 1, func(w *world) {
				s := w.servers[0]
				s.does(func(c net.Conn, line string) { // it acts, and answers late: most are cut off from their replies
					time.AfterFunc(time.Second, func() { fmt.Fprintf(c, "re %s\n", line) })
				})
				p := w.ready(w.lines(config{Attempts: -1}))
				w.client.Conns()[0].ResetAfter(n)
				var wg sync.WaitGroup
				for i := range requests {
					if alone && i > 0 {
						break
					}
					wg.Go(func() {
						text := fmt.Sprintf("request %02d", i)
						_, err := p.Do(w.Context(), line("%s", text))
						ran := s.times(text)
						if ran > 1 || outcome(err) == "not sent" && ran > 0 {
							w.Errorf("cut at %d: %s: %v, and it ran %d times", n, text, err, ran)
						}
						if err != nil && ran == 0 && n == 0 && outcome(err) != "not sent" {
							w.Errorf("cut at 0: %s: %v", text, err)
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// Executed, and the connection gone before the reply: an unsafe request is not run
// again, one that is not sent is, and so is an idempotent one.
func TestDropAfterExecute(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		s := w.servers[0]
		s.does(func(c net.Conn, line string) {
			if s.times(line) == 1 {
				c.Close()
				return
			}
			fmt.Fprintf(c, "re %s\n", line)
		})
		p := w.ready(w.lines(config{}))
		_, err := p.Do(w.Context(), line("INCR"))
		if outcome(err) != "sent, no reply" || !errors.Is(err, io.EOF) || s.times("INCR") != 1 {
			w.Errorf("unsafe: %v, and it ran %d times", err, s.times("INCR"))
		}
		if e, _ := errors.AsType[*pipeline.Error](err); e.SafeToRetry() || e.Timeout() || e.Node != s.addr {
			w.Errorf("the error says %+v", e)
		}
		if got, err := p.Do(w.Context(), idempotent(line("GET"))); err != nil || got != "re GET" || s.times("GET") != 2 {
			w.Errorf("idempotent: %q, %v, and it ran %d times", got, err, s.times("GET"))
		}
		if p.Stats().Lost != 2 {
			w.Errorf("stats: %+v", p.Stats())
		}
	})
}

// B2: the server stalls, and everybody's deadline is kept to the nanosecond: in line, in
// the queue, in flight, and for the one whose write is stuck.
func TestDeadlinesOnAStalledServer(t *testing.T) {
	for name, cfg := range map[string]config{"in order": {}, "numbered": numbered(config{}), "tiny window": {Window: 10}} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				p := w.ready(w.lines(cfg))
				w.servers[0].host.Freeze()
				var wg sync.WaitGroup
				outcomes := map[string]int{}
				var mu sync.Mutex
				for i := range 3000 {
					wg.Go(func() {
						begin := time.Now()
						ctx, cancel := context.WithTimeout(w.Context(), 50*time.Millisecond)
						defer cancel()
						req := line("%d %s", i, strings.Repeat("x", 100))
						if cfg.ID != nil {
							req = numberedLine(strings.Repeat("x", 100))
						}
						_, err := p.Do(ctx, req)
						if took := time.Since(begin); took != 50*time.Millisecond || !errors.Is(err, context.DeadlineExceeded) {
							w.Errorf("%v after %v", err, took)
						}
						mu.Lock()
						outcomes[outcome(err)]++
						mu.Unlock()
					})
				}
				wg.Wait()
				w.Logf("%v", outcomes)
				if outcomes["not sent"] == 0 || outcomes["sent, no reply"] == 0 {
					w.Errorf("outcomes: %v", outcomes)
				}
				w.servers[0].host.Thaw()
				synctest.Wait()
				if s := p.Stats(); s.InFlight+s.Waiting != 0 || s.Dropped != uint64(outcomes["sent, no reply"]) {
					w.Errorf("afterwards %+v, of %v", s, outcomes)
				}
				if cfg.ID == nil {
					w.ask(p, "and it goes on")
				}
			})
		})
	}
}

// A caller who is alone has a deadline too, and who comes after it gets its own reply.
func TestLoneCallersDeadline(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		s := w.servers[0]
		s.does(func(c net.Conn, line string) {
			time.Sleep(time.Second)
			fmt.Fprintf(c, "re %s\n", line)
		})
		p := w.ready(w.lines(config{}))
		for i := range 20 { // again and again, so that the connection is a lone caller's
			w.ask(p, fmt.Sprint("before ", i))
		}
		begin := time.Now()
		_, err := p.Do(w.within(300*time.Millisecond), line("late"))
		if took := time.Since(begin); took != 300*time.Millisecond || outcome(err) != "sent, no reply" {
			w.Errorf("%v after %v", err, took)
		}
		w.ask(p, "after")
		ctx, cancel := context.WithCancelCause(w.Context())
		time.AfterFunc(100*time.Millisecond, func() { cancel(errors.New("enough")) })
		if _, err := p.Do(ctx, line("canceled")); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "enough") {
			w.Errorf("%v", err)
		}
		w.ask(p, "at last")
		if got := p.Stats(); got.Connects != 1 || got.Dropped != 2 {
			w.Errorf("stats: %+v", got)
		}
	})
}

// Callers go at the moment when those who wait for a connection are told that there will
// be none.
func TestLeavingAnEndedLobby(t *testing.T) {
	for range 20 {
		inWorld(t, 1, func(w *world) {
			w.servers[0].ln.Close()
			p := w.lines(config{})
			ctx, cancel := context.WithCancel(w.Context())
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					_, err := p.Do(ctx, line("x"))
					if !errors.Is(err, pipeline.ErrClosed) && !errors.Is(err, context.Canceled) || outcome(err) != "not sent" {
						w.Errorf("got %v", err)
					}
				})
			}
			synctest.Wait()
			wg.Go(cancel)
			p.Close()
			wg.Wait()
		})
	}
}

// P29, P30: the window blocks or rejects, in requests and in bytes, and lets in whoever
// came first.
func TestWindow(t *testing.T) {
	frozen := func(w *world, cfg config) *pipeline.Client[string] {
		p := w.ready(w.lines(cfg))
		w.servers[0].does(func(c net.Conn, line string) {
			time.Sleep(100 * time.Millisecond)
			fmt.Fprintf(c, "re %s\n", line)
		})
		return p
	}
	t.Run("blocks", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			p := frozen(w, config{Window: 2})
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() { w.ask(p, fmt.Sprint(i)) })
				synctest.Wait()
			}
			if s := p.Stats(); s.InFlight != 2 || s.Waiting != 4 {
				w.Errorf("stats: %+v", s)
			}
			wg.Wait()
			if got := fmt.Sprint(w.servers[0].saw()); got != "[0 1 2 3 4 5]" {
				w.Errorf("served in the order %s", got)
			}
		})
	})
	t.Run("rejects", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			p := frozen(w, config{Window: 2, WaitFull: -1})
			for i := range 2 {
				go w.ask(p, fmt.Sprint(i))
			}
			synctest.Wait()
			_, err := p.Do(w.Context(), line("third"))
			if !errors.Is(err, pipeline.ErrFull) || outcome(err) != "not sent" {
				w.Errorf("got %v", err)
			}
			time.Sleep(time.Second)
		})
	})
	t.Run("waits so long", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			p := frozen(w, config{Window: 1, WaitFull: 30 * time.Millisecond})
			go w.ask(p, "first")
			synctest.Wait()
			begin := time.Now()
			_, err := p.Do(w.Context(), line("second"))
			if took := time.Since(begin); !errors.Is(err, pipeline.ErrFull) || took != 30*time.Millisecond {
				w.Errorf("%v after %v", err, took)
			}
			time.Sleep(time.Second)
		})
	})
	t.Run("bytes", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			p := frozen(w, config{WindowBytes: 100 << 10})
			w.client.Conns()[0].SetWriteBuffer(1000)
			big := strings.Repeat("x", 60<<10)
			for range 4 { // one was read, one is being written, one is queued, one waits
				go p.Do(w.Context(), line("%s", big))
				synctest.Wait()
			}
			if s := p.Stats(); s.InFlight != 3 || s.Waiting != 1 {
				w.Errorf("stats: %+v", s)
			}
			p.Close()
			time.Sleep(time.Second)
		})
	})
}

// P3, P4: what is asked while nothing is connected waits, and goes out in that order.
func TestWaitsForAConnection(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		s := w.servers[0]
		s.host.Kill()
		p := w.lines(config{WaitDown: time.Minute})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() { w.ask(p, fmt.Sprint(i)) })
			synctest.Wait()
		}
		time.Sleep(5 * time.Second)
		if p.Stats().Waiting != 20 || p.Stats().ConnectFailures == 0 {
			w.Errorf("stats: %+v", p.Stats())
		}
		s.listen(w)
		wg.Wait()
		if got := fmt.Sprint(s.saw()); got != "[0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19]" {
			w.Errorf("served in the order %s", got)
		}
	})
}

func TestDown(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		w.servers[0].host.Kill()
		t.Run("rejects", func(*testing.T) {
			p := w.lines(config{WaitDown: -1})
			time.Sleep(time.Second)
			_, err := p.Do(w.Context(), line("x"))
			if !errors.Is(err, pipeline.ErrDown) || outcome(err) != "not sent" || !strings.Contains(err.Error(), "refused") {
				w.Errorf("got %v", err)
			}
		})
		t.Run("waits so long", func(*testing.T) {
			p := w.lines(config{WaitDown: 3 * time.Second})
			begin := time.Now()
			_, err := p.Do(w.Context(), line("x"))
			if took := time.Since(begin); !errors.Is(err, pipeline.ErrDown) || took != 3*time.Second {
				w.Errorf("%v after %v", err, took)
			}
		})
		t.Run("by its context", func(*testing.T) {
			p := w.lines(config{})
			_, err := p.Do(w.within(time.Second), line("x"))
			if !errors.Is(err, context.DeadlineExceeded) || outcome(err) != "not sent" {
				w.Errorf("got %v", err)
			}
			if err := p.WaitReady(w.within(time.Second)); !errors.Is(err, context.DeadlineExceeded) {
				w.Errorf("WaitReady: %v", err)
			}
		})
	})
}

// P5, P7: the handshake runs before everything else, is told that a connection was
// lost, and a permanent failure is told to those who wait at once.
func TestHandshake(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		var lost []error
		password := "right"
		p := w.lines(config{WaitDown: time.Minute, Handshake: func(ctx context.Context, s *pipeline.Setup[string]) error {
			lost = append(lost, s.Lost)
			got, err := s.Do(line("AUTH %s", password))
			if err == nil && got != "re AUTH right" {
				return holdfast.Permanent(fmt.Errorf("the server says %q", got))
			}
			return err
		}})
		w.ask(p, "first")
		w.client.Conns()[0].Reset()
		time.Sleep(2 * time.Second)
		w.ask(p, "second")
		if len(lost) != 2 || lost[0] != nil || lost[1] == nil {
			w.Errorf("the handshakes were told %v", lost)
		}
		if got := fmt.Sprint(w.servers[0].saw()); got != "[AUTH right first AUTH right second]" {
			w.Errorf("the server saw %s", got)
		}
		password = "wrong"
		w.client.Conns()[0].Reset()
		begin := time.Now()
		_, err := p.Do(w.Context(), line("third"))
		if err == nil || !strings.Contains(err.Error(), "AUTH wrong") || outcome(err) != "not sent" || time.Since(begin) > 2*time.Second {
			w.Errorf("after %v: %v", time.Since(begin), err)
		}
		if err := p.WaitReady(w.Context()); err == nil || !strings.Contains(err.Error(), "AUTH wrong") {
			w.Errorf("WaitReady: %v", err)
		}
	})
}

// E9: a connection whose oldest request gets nowhere is given up, an idle one is not,
// and one that was declared slow gets its time.
func TestStall(t *testing.T) {
	for name, cfg := range map[string]config{"in order": {Stall: time.Second}, "numbered": numbered(config{Stall: time.Second})} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				s := w.servers[0]
				client := w.ready(w.lines(cfg))
				do := func(text string, slow time.Duration) (time.Duration, error) {
					req := line("%s", text)
					if cfg.ID != nil {
						req = numberedLine(text)
					}
					req.Slow = slow
					begin := time.Now()
					_, err := client.Do(w.Context(), req)
					return time.Since(begin), err
				}
				do("before", 0)
				time.Sleep(time.Hour)
				if got := client.Stats(); got.Lost != 0 {
					w.Errorf("an idle connection: %+v", got)
				}
				s.does(func(net.Conn, string) {})
				took, err := do("lost", 0)
				if !errors.Is(err, pipeline.ErrStalled) || outcome(err) != "sent, no reply" || took < time.Second || took > 1500*time.Millisecond {
					w.Errorf("%v after %v", err, took)
				}
				s.does(func(c net.Conn, line string) {
					time.AfterFunc(5*time.Second, func() { fmt.Fprintf(c, "re %s\n", line) })
				})
				if took, err := do("slow", 6*time.Second); err != nil || took < 5*time.Second {
					w.Errorf("%v after %v", err, took)
				}
				if client.Stats().Stalls != 1 {
					w.Errorf("stats: %+v", client.Stats())
				}
			})
		})
	}
}

// P13: a reply that nobody asked for is a protocol error of that connection, never a
// panic, and a bad one is its request's alone.
func TestBadReplies(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		s := w.servers[0]
		decoder := pipeline.Frames(frame.Lines(), func(line []byte) (string, error) {
			if string(line) == "re bad" {
				return "", errors.New("it is bad")
			}
			return string(line), nil
		})
		p := w.ready(w.lines(config{Decoder: decoder}))
		_, err := p.Do(w.Context(), line("bad"))
		if outcome(err) != "bad reply" || !strings.Contains(err.Error(), "it is bad") {
			w.Errorf("got %v", err)
		}
		w.ask(p, "good")
		if p.Stats().Lost != 0 {
			w.Error("a bad reply cost the connection")
		}
		s.does(func(c net.Conn, line string) { fmt.Fprintf(c, "re %s\nand more\n", line) })
		w.ask(p, "more than was asked")
		time.Sleep(time.Second)
		if got := p.Stats(); got.Lost != 1 {
			w.Errorf("stats: %+v", got)
		}
		s.does(func(c net.Conn, line string) { c.Write(make([]byte, 1<<20)) })
		if _, err := p.Do(w.Context(), line("no end of a line")); outcome(err) != "sent, no reply" || !strings.Contains(err.Error(), "too large") {
			w.Errorf("got %v", err)
		}
		s.does(nil)
		w.ask(p, "good again")
	})
}

// P14: what the peer sends by itself waits in order, up to a limit; then it is dropped
// and counted. Replies go on.
func TestPushes(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		var got []string
		gate := make(chan struct{})
		p := w.ready(w.lines(config{
			Push:   func(r string) bool { return strings.HasPrefix(r, "push") },
			OnPush: func(r string) { <-gate; got = append(got, r) },
		}))
		w.servers[0].does(func(c net.Conn, line string) {
			for i := range 1500 {
				fmt.Fprintf(c, "push %d\n", i)
			}
			fmt.Fprintf(c, "re %s\n", line)
		})
		w.ask(p, "one")
		if s := p.Stats(); s.Pushes != 1500 || s.PushesDropped != 1500-1025 {
			w.Errorf("stats: %+v", s)
		}
		close(gate)
		synctest.Wait()
		if len(got) != 1025 || got[0] != "push 0" || got[1024] != "push 1024" {
			w.Errorf("%d came", len(got))
		}
		w.ask(p, "two")
	})
}

// A batch is contiguous, and its replies are its own.
func TestBatch(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		p := w.ready(w.lines(config{}))
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				replies := make([]string, 3)
				n, err := p.Batch(w.Context(), line("%d a\n%d b\n%d c", i, i, i), replies)
				want := fmt.Sprintf("[re %d a re %d b re %d c]", i, i, i)
				if n != 3 || err != nil || fmt.Sprint(replies) != want {
					w.Errorf("%d, %v: %q", n, err, replies)
				}
			})
		}
		wg.Wait()
		saw := w.servers[0].saw()
		for i := 0; i < len(saw); i += 3 {
			if saw[i][:2] != saw[i+1][:2] || saw[i][:2] != saw[i+2][:2] {
				w.Fatalf("something came between: %q", saw[i:i+3])
			}
		}
		w.servers[0].does(func(c net.Conn, line string) {
			if line == "third" {
				c.Close()
				return
			}
			fmt.Fprintf(c, "re %s\n", line)
		})
		replies := make([]string, 4)
		n, err := p.Batch(w.Context(), line("first\nsecond\nthird\nfourth"), replies)
		if n != 2 || outcome(err) != "sent, no reply" || replies[1] != "re second" {
			w.Errorf("%d, %v: %q", n, err, replies)
		}
		if n, err := p.Batch(w.Context(), line("nothing"), nil); n != 0 || err != nil {
			w.Errorf("an empty batch: %d, %v", n, err)
		}
	})
}

// What was not sent goes to another node, what was refused too, and what may have run
// only if that does no harm.
func TestFailover(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		refusing := func(r string) error {
			if strings.HasPrefix(r, "LOADING") {
				return errors.New(r)
			}
			return nil
		}
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
		p := w.ready(w.over(c, config{Refused: refusing}))
		time.Sleep(time.Second)
		w.servers[0].does(func(c net.Conn, line string) { fmt.Fprintln(c, "LOADING the data") })
		w.ask(p, "refused by the first")
		for _, s := range w.servers {
			s.does(func(c net.Conn, line string) { fmt.Fprintln(c, "LOADING the data") })
		}
		if got, err := p.Do(w.Context(), line("refused by all")); err != nil || got != "LOADING the data" {
			w.Errorf("%q, %v: a reply is a reply", got, err)
		}
		for _, s := range w.servers {
			s.does(nil)
		}
		w.servers[0].host.Kill()
		time.Sleep(100 * time.Millisecond)
		w.ask(p, "unsafe, after the first has died")
		w.servers[1].does(func(c net.Conn, line string) { c.Close() })
		if got, err := p.Do(w.Context(), idempotent(line("cut by the second"))); err != nil || got != "re cut by the second" {
			w.Errorf("%q, %v", got, err)
		}
	})
}

// Repeating what may have run is paid for: when everything fails, requests are not
// multiplied.
func TestBudget(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		s := w.servers[0]
		p := w.ready(w.lines(config{Budget: &holdfast.Budget{Percent: 20, PerSecond: 1}}))
		s.does(func(c net.Conn, line string) { c.Close() })
		for i := range 100 {
			p.Do(w.Context(), idempotent(line("%d", i)))
		}
		if n := len(s.saw()); n > 100+20+20 {
			w.Errorf("100 requests became %d", n)
		}
	})
}

// P34: a drain refuses what is new, finishes what is under way, and has a limit.
func TestShutdown(t *testing.T) {
	slow := func(w *world) *pipeline.Client[string] {
		p := w.ready(w.lines(config{}))
		w.servers[0].does(func(c net.Conn, line string) {
			time.Sleep(time.Second)
			fmt.Fprintf(c, "re %s\n", line)
		})
		return p
	}
	t.Run("in peace", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			p := slow(w)
			for i := range 3 {
				go w.ask(p, fmt.Sprint(i))
			}
			synctest.Wait()
			ended := make(chan error)
			go func() { ended <- p.Shutdown(w.Context()) }()
			synctest.Wait()
			if _, err := p.Do(w.Context(), line("new")); !errors.Is(err, net.ErrClosed) || outcome(err) != "not sent" {
				w.Errorf("a new request: %v", err)
			}
			begin := time.Now()
			if err := <-ended; err != nil || time.Since(begin) != 3*time.Second {
				w.Errorf("%v after %v", err, time.Since(begin))
			}
			if len(w.client.Conns()) != 0 {
				w.Error("a connection is open")
			}
			if p.Shutdown(w.Context()) != nil || p.Close() != nil {
				w.Error("the second end failed")
			}
		})
	})
	t.Run("cut", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			p := slow(w)
			failed := make(chan error)
			go func() { _, err := p.Do(w.Context(), line("x")); failed <- err }()
			synctest.Wait()
			go func() {
				if err := p.Shutdown(w.within(100 * time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
					w.Errorf("Shutdown: %v", err)
				}
			}()
			if err := <-failed; !errors.Is(err, pipeline.ErrClosed) || outcome(err) != "sent, no reply" {
				w.Errorf("got %v", err)
			}
			synctest.Wait()
		})
	})
	t.Run("with nothing there", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			w.servers[0].host.Kill()
			p := w.lines(config{})
			go func() {
				if _, err := p.Do(w.Context(), line("x")); !errors.Is(err, net.ErrClosed) {
					w.Errorf("got %v", err)
				}
			}()
			synctest.Wait()
			if err := p.Shutdown(w.Context()); err != nil {
				w.Error(err)
			}
		})
	})
	t.Run("of the cluster", func(t *testing.T) {
		inWorld(t, 1, func(w *world) {
			c := w.cluster(holdfast.Config{})
			p := w.ready(w.over(c, config{}))
			c.Close()
			if _, err := p.Do(w.Context(), line("x")); !errors.Is(err, net.ErrClosed) {
				w.Errorf("got %v", err)
			}
		})
	})
}

// Misuse is told at once.
func TestConfig(t *testing.T) {
	inWorld(t, 1, func(w *world) {
		c := w.cluster(holdfast.Config{})
		for name, cfg := range map[string]config{
			"no Decoder": {},
			"too narrow": {Decoder: texts, IDBits: 8, Window: 1000},
			"no bits":    {Decoder: texts, IDBits: -1},
			"65 of them": {Decoder: texts, IDBits: 65},
		} {
			if _, err := pipeline.New(c, cfg); err == nil {
				w.Errorf("%s was taken", name)
			}
		}
		p := w.lines(config{})
		why := errors.New("too long")
		if _, err := p.Do(w.Context(), pipeline.Request{Encode: func([]byte, uint64) ([]byte, error) { return nil, why }}); err != why {
			w.Errorf("what Encode says became %v", err)
		}
		if _, err := p.Do(w.Context(), pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return dst, nil }}); err == nil {
			w.Error("an empty request was taken")
		}
		ctx, cancel := context.WithCancel(w.Context())
		cancel()
		if _, err := p.Do(ctx, line("x")); !errors.Is(err, context.Canceled) || outcome(err) != "not sent" {
			w.Errorf("got %v", err)
		}
	})
}

// Fault 37: a handshake that stalls or panics never makes a connection that is used.
func TestHandshakeThatStalls(t *testing.T) {
	inWorld(t, 2, func(w *world) {
		w.servers[0].does(func(net.Conn, string) {})
		c := w.cluster(holdfast.Config{Picker: holdfast.Ordered(), Timeouts: holdfast.Timeouts{Handshake: time.Second}})
		p := w.over(c, config{Handshake: func(ctx context.Context, s *pipeline.Setup[string]) error {
			_, err := s.Do(line("HELLO"))
			return err
		}})
		begin := time.Now()
		w.ask(p, "over the other one")
		if took := time.Since(begin); took > 500*time.Millisecond {
			w.Errorf("it took %v", took)
		}
		time.Sleep(5 * time.Second)
		if n := w.servers[0].times("over the other one"); n > 0 {
			w.Error("the first one was used")
		}
		q := w.over(c, config{WaitDown: time.Second, Handshake: func(context.Context, *pipeline.Setup[string]) error { panic("at the disco") }})
		if _, err := q.Do(w.Context(), line("x")); !errors.Is(err, pipeline.ErrDown) || !strings.Contains(err.Error(), "disco") {
			w.Errorf("got %v", err)
		}
		if _, err := q.Exclusive(w.Context()); outcome(err) != "not sent" || !strings.Contains(err.Error(), "disco") {
			w.Errorf("got %v", err)
		}
	})
}

// Fault 38: a panic in the user's code ends what it is about, and leaves nothing behind.
func TestPanics(t *testing.T) {
	boom := func(r string) {
		if strings.HasSuffix(r, "boom") {
			panic("boom")
		}
	}
	for name, cfg := range map[string]config{
		"Decoder": {Decoder: pipeline.Frames(frame.Lines(), func(line []byte) (string, error) { boom(string(line)); return string(line), nil })},
		"Push":    {Push: func(r string) bool { boom(r); return false }},
		"ID":      {ID: func(r string) (uint64, bool) { boom(r); return numbered(config{}).ID(r) }},
		"OnPush":  {Push: func(r string) bool { return strings.HasSuffix(r, "boom") }, OnPush: func(r string) { boom(r) }},
		"Refused": {Refused: func(r string) error { boom(r); return nil }},
		"Encode":  {},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 1, func(w *world) {
				c := w.cluster(holdfast.Config{})
				p := w.ready(w.over(c, cfg))
				ask := func(text string) (got string, err error) {
					defer func() {
						if p := recover(); p != nil {
							err = fmt.Errorf("panicked: %v", p)
						}
					}()
					if cfg.ID != nil {
						return p.Do(w.Context(), numberedLine(text))
					}
					req := line("%s", text)
					if name == "Encode" && text == "boom" {
						req.Encode = func([]byte, uint64) ([]byte, error) { panic("boom") }
					}
					return p.Do(w.Context(), req)
				}
				for range 3 { // a lone caller's
					for range 20 {
						if _, err := ask("well"); err != nil {
							w.Error(err)
						}
					}
					if _, err := ask("boom"); err == nil || !strings.Contains(err.Error(), "boom") {
						w.Errorf("got %v", err)
					}
				}
				var wg sync.WaitGroup
				for i := range 20 { // and in a crowd
					wg.Go(func() { ask([]string{"well", "boom"}[i%2]) })
				}
				wg.Wait()
				if _, err := ask("well"); err != nil {
					w.Error(err)
				}
				synctest.Wait() // a call is answered before its link counts it off
				if s, n := p.Stats(), c.Stats().Nodes[0].InFlight; s.InFlight+s.Waiting+n != 0 {
					w.Errorf("something stayed: %+v, %d leases", s, n)
				}
			})
		})
	}
}
