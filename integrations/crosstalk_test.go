package integrations

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/fault"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/pipeline"
	"github.com/holdfast-net/holdfast/redis"
	"github.com/holdfast-net/holdfast/serve"
)

// asker sends a text of its own and returns what came back for it.
type asker func(ctx context.Context, text string) (string, error)

// crossTalk lets 100 goroutines ask with random deadlines of 0 to 14 ms through a
// network that delays by up to 10 ms and resets connections at random, and counts the
// replies that were somebody else's.
func crossTalk(t *testing.T, faults *fault.Injector, ops int, ask asker) (wrong, late, ok int64) {
	stop := make(chan struct{})
	var cutter, askers sync.WaitGroup
	cutter.Go(func() {
		r := rand.New(rand.NewPCG(1, 1))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(50+r.IntN(300)) * time.Millisecond):
				faults.Reset()
			}
		}
	})
	var counts struct{ wrong, late, ok atomic.Int64 }
	for i := range 100 {
		r := rand.New(rand.NewPCG(2, uint64(i)))
		askers.Go(func() {
			for j := range ops / 100 {
				text := fmt.Sprint(i, "-", j)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(r.Int64N(int64(14*time.Millisecond))))
				got, err := ask(ctx, text)
				cancel()
				switch {
				case err == nil && got == text:
					counts.ok.Add(1)
				case err == nil:
					counts.wrong.Add(1)
				case errors.Is(err, context.DeadlineExceeded):
					counts.late.Add(1)
				}
			}
		})
	}
	askers.Wait()
	close(stop)
	cutter.Wait()
	return counts.wrong.Load(), counts.late.Load(), counts.ok.Load()
}

func delaying() *fault.Injector {
	return fault.New(fault.Plan{Down: fault.Link{Jitter: 10 * time.Millisecond}, Seed: 1})
}

// It must show 1: no reply reaches another caller, of a real redis-server and of a
// server of frames, while callers leave at random and connections are reset. The naive
// client is the control: the same test finds it out.
func TestNoReplyToTheWrongCaller(t *testing.T) {
	ops := 100_000
	if os.Getenv("HOLDFAST_SOAK") != "" {
		ops = 10_000_000
	}
	for name, start := range map[string]func(*testing.T, *fault.Injector) asker{
		"redis": redisAsker, "frames": framesAsker, "numbers": numbersAsker,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			faults := delaying()
			t.Cleanup(func() { faults.Close() })
			wrong, late, ok := crossTalk(t, faults, ops, start(t, faults))
			t.Logf("%d answered, %d late of %d; %+v", ok, late, ops, faults.Stats())
			if wrong > 0 || late < int64(ops/10) || ok < int64(ops/100) || faults.Stats().Resets < 3 {
				t.Errorf("%d wrong, %d late, %d right replies of %d", wrong, late, ok, ops)
			}
		})
	}
	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		faults := delaying()
		t.Cleanup(func() { faults.Close() })
		n := &naive{dial: faults.Dial(nil), addr: startRedis(t).addr}
		if wrong, _, _ := crossTalk(t, faults, 20_000, n.echo); wrong == 0 {
			t.Error("a client that forgets whose reply is whose was not found out")
		}
	})
}

// through has connections that are reset all the time. The backoff is short, or there
// would be none for most of the test, and nothing answered.
func through(faults *fault.Injector) holdfast.Config {
	return holdfast.Config{Dial: faults.Dial(nil), Backoff: holdfast.Backoff{Base: 5 * time.Millisecond, Max: 20 * time.Millisecond}}
}

func redisAsker(t *testing.T, faults *fault.Injector) asker {
	c := clusterOf(t, through(faults), startRedis(t).addr)
	r := redis.New(c, redis.Config{})
	t.Cleanup(func() { r.Close() })
	return func(ctx context.Context, text string) (string, error) { return r.Do(ctx, "ECHO", text).Text() }
}

// framed is a server of ours that sends each message back.
func framed(t *testing.T, format frame.Format) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &serve.Server{Handler: serve.Frames(format, func(ctx context.Context, c *serve.Conn, msg []byte) error { return c.Send(msg) })}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln) })
	t.Cleanup(func() { srv.Close(); wg.Wait() })
	return ln.Addr().String()
}

func framesAsker(t *testing.T, faults *fault.Injector) asker {
	format := frame.Prefix(4)
	c := clusterOf(t, through(faults), framed(t, format))
	p, err := pipeline.New(c, pipeline.Config[string]{Decoder: pipeline.Frames(format, func(msg []byte) (string, error) { return string(msg), nil })})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return func(ctx context.Context, text string) (string, error) {
		return p.Do(ctx, pipeline.Request{Safety: holdfast.Idempotent,
			Encode: func(dst []byte, _ uint64) ([]byte, error) { return format.Append(dst, []byte(text)) }})
	}
}

func numbersAsker(t *testing.T, faults *fault.Injector) asker {
	format := frame.Lines()
	c := clusterOf(t, through(faults), framed(t, format))
	type reply struct {
		id   uint64
		text string
	}
	p, err := pipeline.New(c, pipeline.Config[reply]{
		Decoder: pipeline.Frames(format, func(msg []byte) (reply, error) {
			number, text, _ := strings.Cut(string(msg), " ")
			id, err := strconv.ParseUint(number, 10, 64)
			return reply{id, text}, err
		}),
		ID: func(r reply) (uint64, bool) { return r.id, true }, IDBits: 16,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return func(ctx context.Context, text string) (string, error) {
		r, err := p.Do(ctx, pipeline.Request{Safety: holdfast.Idempotent,
			Encode: func(dst []byte, id uint64) ([]byte, error) {
				return format.Append(dst, fmt.Appendf(nil, "%d %s", id, text))
			}})
		return r.text, err
	}
}

// naive is a client as it should not be: who leaves takes its place in the line along.
type naive struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	addr string

	mu      sync.Mutex
	conn    net.Conn
	waiters []chan string
}

func (n *naive) echo(ctx context.Context, text string) (string, error) {
	me := make(chan string, 1)
	if err := n.send(me, text); err != nil {
		return "", err
	}
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

func (n *naive) send(me chan string, text string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		conn, err := n.dial(context.Background(), "tcp", n.addr)
		if err != nil {
			return err
		}
		n.conn = conn
		go n.read(conn)
	}
	n.waiters = append(n.waiters, me)
	_, err := fmt.Fprintf(n.conn, "*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n", len(text), text)
	return err
}

func (n *naive) read(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		header, err := r.ReadString('\n')
		size, _ := strconv.Atoi(strings.Trim(header, "$\r\n"))
		text := make([]byte, size+2)
		if err == nil {
			_, err = io.ReadFull(r, text)
		}
		n.mu.Lock()
		if err != nil {
			n.conn, n.waiters = nil, nil
			n.mu.Unlock()
			return
		}
		if len(n.waiters) > 0 {
			n.waiters[0] <- string(text[:size])
			n.waiters = n.waiters[1:]
		}
		n.mu.Unlock()
	}
}
