package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/pipeline"
	"github.com/holdfast-net/holdfast/redis"
)

// clientOf makes a client of real servers.
func clientOf(t testing.TB, cfg redis.Config, addrs ...string) *redis.Client {
	t.Helper()
	c, err := holdfast.New(holdfast.Static(addrs...), holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r := redis.New(c, cfg)
	t.Cleanup(func() { r.Close(); c.Close() })
	return r
}

func password(user, word string) func(context.Context) (string, string, error) {
	return func(context.Context) (string, string, error) { return user, word, nil }
}

// P17–P19: what is asked is answered, in both protocols, over both kinds of sockets.
func TestDo(t *testing.T) {
	s := redis.StartServer(t)
	for _, protocol := range []int{2, 3} {
		for _, addr := range []string{s.Addr, "unix:" + s.Sock} {
			t.Run(fmt.Sprintf("RESP%d %.4s", protocol, addr), func(t *testing.T) {
				ctx := t.Context()
				r := clientOf(t, redis.Config{Protocol: protocol, Name: "tester"}, addr)
				r.Do(ctx, "FLUSHALL")
				if err := r.Do(ctx, "SET", "mykey", 1).Err(); err != nil {
					t.Fatal(err)
				}
				binary := "\r\n\x00\xff$5\r\n"
				r.Do(ctx, "SET", []byte(binary), binary)
				r.Do(ctx, "HSET", "h", "a", 1, "b", 2.5, "c", true)
				r.Do(ctx, "ZADD", "z", 1.5, "one")
				r.Do(ctx, "SADD", "s", "x")
				if n, err := r.Do(ctx, "INCR", "mykey").Int(); n != 2 || err != nil {
					t.Errorf("INCR: %d, %v", n, err)
				}
				if text, err := r.Do(ctx, "GET", binary).Text(); text != binary || err != nil {
					t.Errorf("GET: %q, %v", text, err)
				}
				if _, err := r.Do(ctx, "GET", "none").Text(); !errors.Is(err, redis.Nil) {
					t.Errorf("GET of none: %v", err)
				}
				if m, err := r.Do(ctx, "HGETALL", "h").Map(); fmt.Sprint(m) != "map[a:1 b:2.5 c:1]" || err != nil {
					t.Errorf("HGETALL: %v, %v", m, err)
				}
				if f, err := r.Do(ctx, "ZSCORE", "z", "one").Float(); f != 1.5 || err != nil {
					t.Errorf("ZSCORE: %v, %v", f, err)
				}
				if all, err := r.Do(ctx, "SMEMBERS", "s").Strings(); !slices.Equal(all, []string{"x"}) || err != nil {
					t.Errorf("SMEMBERS: %v, %v", all, err)
				}
				if yes, err := r.Do(ctx, "SISMEMBER", "s", "x").Bool(); !yes || err != nil {
					t.Errorf("SISMEMBER: %v, %v", yes, err)
				}
				err := r.Do(ctx, "INCR", "h").Err()
				if e, ok := errors.AsType[*redis.Error](err); !ok || e.Code != "WRONGTYPE" {
					t.Errorf("INCR of a hash: %v", err)
				}
				if _, err := r.Do(ctx, "HGETALL", "h").Int(); err == nil || errors.Is(err, redis.Nil) {
					t.Errorf("a hash as a number: %v", err)
				}
				if err := r.Do(ctx, "SET", "k", struct{}{}).Err(); err == nil || !strings.Contains(err.Error(), "struct") {
					t.Errorf("a struct as an argument: %v", err)
				}
				if list, err := r.Do(ctx, "CLIENT", "LIST").Text(); err != nil || !strings.Contains(list, "name=tester") {
					t.Errorf("CLIENT LIST: %q, %v", list, err)
				}
				if got := r.Stats(); got.Connects != 1 || got.Lost != 0 {
					t.Errorf("stats: %+v", got)
				}
			})
		}
	}
}

// P7: users and passwords come from a function, for each connection; a wrong one is
// told at once, and never what it was.
func TestCredentials(t *testing.T) {
	s := redis.StartServer(t, "--requirepass", "open sesame", "--user", "alice", "on", ">wonderland", "~*", "+@all")
	for name, c := range map[string]struct {
		user, word string
		protocol   int
		ok         bool
	}{
		"the default user":        {"", "open sesame", 3, true},
		"the default user, RESP2": {"", "open sesame", 2, true},
		"a user":                  {"alice", "wonderland", 3, true},
		"a user, RESP2":           {"alice", "wonderland", 2, true},
		"a wrong password":        {"alice", "looking-glass", 3, false},
		"a wrong password, RESP2": {"alice", "looking-glass", 2, false},
		"no password":             {"", "", 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := clientOf(t, redis.Config{Credentials: password(c.user, c.word), Protocol: c.protocol}, s.Addr)
			begin := time.Now()
			err := r.Do(t.Context(), "PING").Err()
			switch {
			case (err == nil) != c.ok:
				t.Errorf("got %v", err)
			case err != nil && c.word != "" && strings.Contains(err.Error(), c.word):
				t.Errorf("the error tells the password: %v", err)
			case err != nil && time.Since(begin) > 9*time.Second:
				t.Errorf("it took %v", time.Since(begin))
			}
		})
	}
}

// A batch has an error for each command, and goes out as one.
func TestBatch(t *testing.T) {
	r := clientOf(t, redis.Config{}, redis.StartServer(t).Addr)
	var b redis.Batch
	b.Add("SET", "k", "v")
	b.Add("INCR", "k")
	b.Add("GET", "k")
	b.Add("GET", "none")
	b.Eval(redis.NewScript("return ARGV[1]"), nil, "script")
	for range 2 {
		all, err := r.Run(t.Context(), &b)
		if err != nil || len(all) != 5 {
			t.Fatalf("%d replies, %v", len(all), err)
		}
		text, _ := all[2].Text()
		script, _ := all[4].Text()
		if all[0].Err() != nil || all[1].Err() == nil || text != "v" || !errors.Is(all[3].Err(), redis.Nil) || script != "script" {
			t.Errorf("replies: %v", all)
		}
	}
	b.Reset()
	if all, err := r.Run(t.Context(), &b); len(all) != 0 || err != nil {
		t.Errorf("an empty batch: %v, %v", all, err)
	}
	b.Add("GET", "k")
	b.Add("SUBSCRIBE", "x")
	if _, err := r.Run(t.Context(), &b); !errors.Is(err, redis.ErrState) {
		t.Errorf("got %v", err)
	}
	b.Reset()
	b.Add("GET", nil)
	if _, err := r.Run(t.Context(), &b); err == nil {
		t.Error("nil was sent")
	}
	b.Reset()
	for i := range 20_000 {
		b.Add("SET", fmt.Sprint("key", i), strings.Repeat("x", 100))
	}
	if all, err := r.Run(t.Context(), &b); len(all) != 20_000 || err != nil || all[19_999].Err() != nil {
		t.Errorf("a large batch: %d, %v", len(all), err)
	}
}

// Transactions that fight over a key all go through, and none is lost.
func TestTx(t *testing.T) {
	r := clientOf(t, redis.Config{}, redis.StartServer(t).Addr)
	ctx := t.Context()
	var wg sync.WaitGroup
	const each = 10
	for range 4 {
		wg.Go(func() {
			for done := 0; done < each; {
				_, err := r.Tx(ctx, []string{"n"}, func(tx *redis.Tx) error {
					n, err := tx.Do(ctx, "GET", "n").Int()
					if err != nil && !errors.Is(err, redis.Nil) {
						return err
					}
					tx.Add("SET", "n", n+1)
					return nil
				})
				if err == nil {
					done++
				} else if !errors.Is(err, redis.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n, err := r.Do(ctx, "GET", "n").Int(); n != 4*each || err != nil {
		t.Errorf("%d, %v: want %d", n, err, 4*each)
	}
	all, err := r.Tx(ctx, nil, func(tx *redis.Tx) error {
		tx.Add("INCR", "n")
		tx.Add("LPUSH", "n", "x") // fails when it runs: the others do run
		tx.Add("GET", "none")
		return nil
	})
	if err != nil || len(all) != 3 || all[1].Err() == nil || !errors.Is(all[2].Err(), redis.Nil) {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := r.Tx(ctx, nil, func(tx *redis.Tx) error { tx.Add("NOSUCHCOMMAND"); return nil }); err == nil {
		t.Error("a command that cannot be queued was run")
	}
	why := errors.New("changed my mind")
	if _, err := r.Tx(ctx, []string{"n"}, func(tx *redis.Tx) error { tx.Add("DEL", "n"); return why }); err != why {
		t.Errorf("got %v", err)
	}
	if n, _ := r.Do(ctx, "GET", "n").Int(); n != 4*each+1 {
		t.Errorf("n is %d", n)
	}
}

func TestScript(t *testing.T) {
	r := clientOf(t, redis.Config{}, redis.StartServer(t).Addr)
	s := redis.NewScript("return {KEYS[1], ARGV[1], redis.call('INCR', KEYS[1])}")
	for i := range 3 {
		got, err := r.Eval(t.Context(), s, []string{"counter"}, "arg").Strings()
		if want := []string{"counter", "arg", fmt.Sprint(i + 1)}; !slices.Equal(got, want) || err != nil {
			t.Errorf("%v, %v", got, err)
		}
		if i == 1 {
			r.Do(t.Context(), "SCRIPT", "FLUSH")
		}
	}
}

// What blocks has a connection of its own: it holds up nobody, and ends with its
// context.
func TestBlocking(t *testing.T) {
	r := clientOf(t, redis.Config{}, redis.StartServer(t).Addr)
	ctx := t.Context()
	popped := make(chan string)
	go func() {
		parts, err := r.Do(ctx, "BLPOP", "queue", 0).Strings()
		if err != nil {
			t.Error(err)
		}
		popped <- strings.Join(parts, " ")
	}()
	for range 100 {
		if err := r.Do(ctx, "PING").Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Do(ctx, "RPUSH", "queue", "job").Err(); err != nil {
		t.Fatal(err)
	}
	if got := <-popped; got != "queue job" {
		t.Errorf("got %q", got)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := r.Do(short, "XREAD", "BLOCK", 0, "STREAMS", "s", "$").Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := r.Do(ctx, "PING").Err(); err != nil {
		t.Error(err)
	}
}

func TestStateIsRefusedOnSharedConnections(t *testing.T) {
	r := clientOf(t, redis.Config{DB: 3}, redis.StartServer(t).Addr)
	ctx := t.Context()
	for _, args := range [][]any{{"SELECT", 1}, {"multi"}, {"Watch", "k"}, {"SUBSCRIBE", "c"}, {"CLIENT", "REPLY", "OFF"}, {"client", "tracking", "on"},
		{"MONITOR"}, {"RESET"}, {"QUIT"}, {"HELLO", 2}, {"AUTH", "x"}} {
		if err := r.Do(ctx, args...).Err(); !errors.Is(err, redis.ErrState) {
			t.Errorf("%v: %v", args, err)
		}
	}
	r.Do(ctx, "SET", "where", "three")
	c, err := r.Exclusive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Do(ctx, "SELECT", 1).Err(); err != nil {
		t.Error(err)
	}
	if err := c.Do(ctx, "GET", "where").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("in another database: %v", err)
	}
	c.Release()
	c, err = r.Exclusive(ctx) // the one before did not go back
	if err != nil {
		t.Fatal(err)
	}
	if text, err := c.Do(ctx, "GET", "where").Text(); text != "three" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	c.Release()
}

func TestScan(t *testing.T) {
	r := clientOf(t, redis.Config{}, redis.StartServer(t).Addr)
	ctx := t.Context()
	var b redis.Batch
	for i := range 500 {
		b.Add("SET", fmt.Sprint("user:", i), i)
		b.Add("HSET", "h", fmt.Sprint("f", i), strings.Repeat("x", 100))
	}
	if _, err := r.Run(ctx, &b); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for key, err := range r.Scan(ctx, "SCAN", "MATCH", "user:*", "COUNT", 50) {
		if err != nil {
			t.Fatal(err)
		}
		seen[key] = true
	}
	if len(seen) != 500 {
		t.Errorf("%d keys", len(seen))
	}
	n := 0
	for _, err := range r.Scan(ctx, "HSCAN", "h", "COUNT", 10) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 30 {
			break
		}
	}
	for _, err := range r.Scan(ctx, "KEYS", "*") {
		if err == nil {
			t.Error("KEYS is no scan")
		}
	}
}

// A value larger than anybody wants in memory goes by.
func TestReadTo(t *testing.T) {
	r := clientOf(t, redis.Config{}, redis.StartServer(t).Addr)
	ctx := t.Context()
	big := bytes.Repeat([]byte("0123456789\r\n"), 1<<20)
	if err := r.Do(ctx, "SET", "big", big).Err(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if n, err := r.ReadTo(ctx, &got, "GET", "big"); n != int64(len(big)) || err != nil || !bytes.Equal(got.Bytes(), big) {
		t.Errorf("%d bytes, %v", n, err)
	}
	for range 3 { // the connection is in step
		if n, err := r.ReadTo(ctx, io.Discard, "GET", "none"); n != 0 || !errors.Is(err, redis.Nil) {
			t.Errorf("%d, %v", n, err)
		}
	}
	r.Do(ctx, "RPUSH", "list", 1)
	if _, err := r.ReadTo(ctx, io.Discard, "GET", "list"); err == nil || !strings.Contains(err.Error(), "WRONGTYPE") {
		t.Errorf("got %v", err)
	}
	if _, err := r.ReadTo(ctx, io.Discard, "LRANGE", "list", 0, -1); err == nil {
		t.Error("a list is no string")
	}
	if _, err := r.ReadTo(ctx, full{}, "GET", "big"); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
	if err := r.Do(ctx, "PING").Err(); err != nil {
		t.Error(err)
	}
}

var errFull = errors.New("full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// What is published comes, on a connection that is made anew when it is lost, and the
// gap is told.
func TestSubscribe(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			r := clientOf(t, redis.Config{Protocol: protocol}, redis.StartServer(t).Addr)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			news, err := r.Subscribe(ctx, "news")
			if err != nil {
				t.Fatal(err)
			}
			defer news.Close()
			if err := news.Add(ctx, "PSUBSCRIBE", "sport.*"); err != nil {
				t.Fatal(err)
			}
			published(t, r, "news", "one")
			published(t, r, "sport.chess", "two")
			expect(t, ctx, news, redis.Message{Channel: "news", Payload: "one"})
			expect(t, ctx, news, redis.Message{Channel: "sport.chess", Pattern: "sport.*", Payload: "two"})
			r.Do(ctx, "CLIENT", "KILL", "TYPE", "pubsub")
			if m, err := news.Receive(ctx); err != nil || m.Gap == nil {
				t.Errorf("%+v, %v: want a gap", m, err)
			}
			published(t, r, "news", "three")
			expect(t, ctx, news, redis.Message{Channel: "news", Payload: "three"})
			if err := news.Remove(ctx, "news"); err != nil {
				t.Fatal(err)
			}
			published(t, r, "sport.go", "four")
			r.Do(ctx, "PUBLISH", "news", "nobody hears it")
			published(t, r, "sport.go", "five")
			expect(t, ctx, news, redis.Message{Channel: "sport.go", Pattern: "sport.*", Payload: "four"})
			expect(t, ctx, news, redis.Message{Channel: "sport.go", Pattern: "sport.*", Payload: "five"})
			short, end := context.WithTimeout(ctx, 20*time.Millisecond)
			if _, err := news.Receive(short); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			end()
			ended := make(chan error)
			go func() {
				for _, err := range news.All(ctx) {
					ended <- err
				}
			}()
			news.Close()
			if err := <-ended; !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// published publishes once somebody listens.
func published(t *testing.T, r *redis.Client, channel, text string) {
	t.Helper()
	for range 1000 {
		n, err := r.Do(t.Context(), "PUBLISH", channel, text).Int()
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("nobody subscribes to %s", channel)
}

func expect(t *testing.T, ctx context.Context, s *redis.Subscription, want redis.Message) {
	t.Helper()
	if m, err := s.Receive(ctx); err != nil || m != want {
		t.Errorf("%+v, %v; want %+v", m, err, want)
	}
}

// What the server did not run goes to another one, and a demoted primary is not
// written to again.
func TestReadOnlyServerIsPassedOver(t *testing.T) {
	primary := redis.StartServer(t)
	replica := redis.StartServer(t, "--replicaof", "127.0.0.1 "+primary.Port)
	c, err := holdfast.New(holdfast.Static(replica.Addr, primary.Addr), holdfast.Config{Picker: holdfast.Ordered()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := redis.New(c, redis.Config{})
	defer r.Close()
	for i := range 5 {
		if err := r.Do(t.Context(), "SET", "k", i).Err(); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	only := redis.New(c, redis.Config{Role: redis.Primary})
	defer only.Close()
	if err := only.Do(t.Context(), "SET", "k", "v").Err(); err != nil || only.Stats().Conns != 1 {
		t.Errorf("%v, %+v", err, only.Stats())
	}
}

// It must show 2, against a real server: INCR through something that executes and then
// cuts is never run twice, and what is said of it is true.
func TestIncrIsNeverRunTwice(t *testing.T) {
	s := redis.StartServer(t)
	direct := clientOf(t, redis.Config{}, s.Addr)
	cut := newCutter(t, s.Addr)
	r := clientOf(t, redis.Config{}, cut.addr)
	ctx := t.Context()
	ok, unknown := 0, 0
	for i := range 60 {
		cut.after(i % 4) // replies, and then the connection is gone
		err := r.Do(ctx, "INCR", "n").Err()
		e, failed := errors.AsType[*pipeline.Error](err)
		switch {
		case err == nil:
			ok++
		case failed && e.Outcome == pipeline.Unknown:
			unknown++
		case !failed:
			t.Error(err)
		}
	}
	n, err := direct.Do(ctx, "GET", "n").Int()
	if err != nil || n < int64(ok) || n > int64(ok+unknown) {
		t.Errorf("it ran %d times, %v; %d succeeded and %d are unknown", n, err, ok, unknown)
	}
	if unknown == 0 {
		t.Error("nothing was cut: the test proves nothing")
	}
}

// cutter stands in front of a server and cuts connections after so many replies.
type cutter struct {
	addr string
	mu   sync.Mutex
	left int
}

func newCutter(t *testing.T, server string) *cutter {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: ln.Addr().String(), left: 1 << 30}
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				down.Close()
				continue
			}
			wg.Go(func() { defer up.Close(); io.Copy(up, down) })
			wg.Go(func() { defer down.Close(); defer up.Close(); c.relay(down, up) })
		}
	})
	return c
}

func (c *cutter) after(replies int) {
	c.mu.Lock()
	c.left = replies
	c.mu.Unlock()
}

func (c *cutter) relay(down, up net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		if buf[0] == ':' {
			c.mu.Lock()
			c.left--
			gone := c.left < 0
			c.mu.Unlock()
			if gone {
				return
			}
		}
		down.Write(buf[:n])
	}
}

// Addresses say what they mean, and what is wrong with them, and never a password.
func TestOpen(t *testing.T) {
	s := redis.StartServer(t, "--requirepass", "secret")
	for _, address := range []string{
		"redis://:secret@" + s.Addr,
		"redis://default:secret@" + s.Addr + "/3?protocol=2&name=me",
		"redis://:secret@127.0.0.1:1," + s.Addr + "/?db=2",
		"unix://:secret@" + s.Sock + "?db=1",
	} {
		r, err := redis.Open(address)
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if err := r.Do(t.Context(), "PING").Err(); err != nil {
			t.Errorf("%s: %v", address, err)
		}
		r.Close()
	}
	for address, says := range map[string]string{
		"http://x":                       "scheme",
		"redis://":                       "host is missing",
		"redis://x/notanumber":           "no number",
		"redis://:secret@x?protocol=4":   "no protocol",
		"redis://:secret@x?colour=blue":  "no parameter",
		"redis://:secret@x?role=captain": "no role",
		"sentinel://x":                   "name of the service",
		"redis://:sec%ret@x":             "no URL",
	} {
		if _, err := redis.Open(address); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "sec%ret") {
			t.Errorf("%s: %v, want %q", address, err, says)
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	s := redis.StartServer(t)
	leak.Check(t)
	for range 3 {
		r, err := redis.Open("redis://" + s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		sub, err := r.Subscribe(t.Context(), "c")
		if err != nil {
			t.Fatal(err)
		}
		r.Do(t.Context(), "PING")
		sub.Close()
		if err := r.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
