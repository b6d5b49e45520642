package serve_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/serve"
)

// D2, faults 18 and 19: however the bytes are cut, the messages are the same.
func TestFramesAtEverySplit(t *testing.T) {
	story := "a\nbc\n\n" + strings.Repeat("long ", 20) + "\nend\n"
	check := func(t *testing.T, pieces ...string) {
		t.Helper()
		inWorld(t, echoes(), func(t *testing.T, w *world) {
			c := w.client()
			for _, p := range pieces {
				c.write(p)
				synctest.Wait()
			}
			c.CloseWrite()
			c.expect(story)
			c.expectEnd()
		})
	}
	t.Run("two", func(t *testing.T) {
		for i := range len(story) {
			check(t, story[:i], story[i:])
		}
	})
	t.Run("bytes", func(t *testing.T) { check(t, strings.Split(story, "")...) })
	t.Run("on a socket", func(t *testing.T) {
		leak.Check(t)
		addr := start(t, echoes())
		c := dial(t, addr)
		for _, b := range strings.Split(story, "") {
			c.write(b)
		}
		c.expect(story)
	})
}

// Fault 19: bursts larger than any buffer, and fault 15: the half-closed client gets
// all its answers.
func TestBurstAndHalfClose(t *testing.T) {
	leak.Check(t)
	srv := echoes()
	addr := start(t, srv)
	burst := strings.Repeat("1234\n", 1<<20/5)
	for _, line := range []string{burst, strings.Repeat("x", 60_000) + "\n" + burst} {
		c := dial(t, addr)
		go func() {
			io.WriteString(c.Conn, line)
			c.CloseWrite()
		}()
		if got, err := io.ReadAll(c.r); string(got) != line || err != nil {
			t.Errorf("%d bytes of %d came back, %v", len(got), len(line), err)
		}
	}
	if n, want := srv.Stats().Messages, uint64(2*(1<<20/5)+1); n != want {
		t.Errorf("%d messages counted, want %d", n, want)
	}
}

// Faults 12, 13, 20: every end of a connection is one end, and no part of a message is
// handled.
func TestEndsOfConnections(t *testing.T) {
	for name, end := range map[string]func(c *client){
		"FIN within a message": func(c *client) { c.write("par"); synctest.Wait(); c.CloseWrite() },
		"RST":                  func(c *client) { c.Conn.(*simnet.Conn).Reset() },
		"RST within a message": func(c *client) { c.write("par"); synctest.Wait(); c.Conn.(*simnet.Conn).Reset() },
		"FIN":                  func(c *client) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var handled atomic.Int32
			srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
				handled.Add(1)
				return c.Send(line)
			})}
			inWorld(t, srv, func(t *testing.T, w *world) {
				c := w.client()
				c.ask("whole")
				end(c)
				synctest.Wait()
				if n := srv.Stats().Open; n != 0 || handled.Load() != 1 {
					t.Errorf("%d open, %d handled", n, handled.Load())
				}
			})
		})
	}
	t.Run("both close together", func(t *testing.T) {
		leak.Check(t)
		var ends atomic.Int32
		srv := raw(func(_ context.Context, c *serve.Conn) error {
			defer ends.Add(1)
			c.Read(make([]byte, 1))
			return c.Close()
		})
		addr := start(t, srv)
		for range 100 {
			c := dial(t, addr)
			c.write("x")
			c.Close()
		}
		eventually(t, "all end once", func() bool { return ends.Load() == 100 && srv.Stats().Open == 0 })
	})
}

// What cannot be a message ends the connection, after the replies to those before.
func TestBadMessages(t *testing.T) {
	small, err := frame.Length{Max: 1000}.Format()
	if err != nil {
		t.Fatal(err)
	}
	framed := func(msgs ...string) (s string) {
		for _, m := range msgs {
			s += string(binary.BigEndian.AppendUint32(nil, uint32(len(m)))) + m
		}
		return s
	}
	for name, c := range map[string]struct {
		format    frame.Format
		send, get string
	}{
		"too large":     {small, framed("one", "two") + "\xff\xff\xff\xff rest", framed("one", "two")},
		"line too long": {frame.Lines(), "one\ntwo\n" + strings.Repeat("x", 70_000), "one\ntwo\n"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, &serve.Server{Handler: serve.Frames(c.format, echo)}, func(t *testing.T, w *world) {
				one, good := w.client(), w.client()
				go io.WriteString(one.Conn, c.send)
				one.expect(c.get)
				one.expectEnd()
				one.Close()
				good.write(c.get)
				good.expect(c.get)
			})
		})
	}
}

// Messages from many goroutines leave whole, and each one's in its order.
func TestSendFromManyGoroutines(t *testing.T) {
	leak.Check(t)
	const senders, each = 20, 500
	srv := &serve.Server{Handler: serve.Frames(frame.Prefix(4), func(_ context.Context, c *serve.Conn, _ []byte) error {
		var wg sync.WaitGroup
		for s := range senders {
			wg.Go(func() {
				for n := range each {
					msg := bytes.Repeat([]byte{byte(s)}, 3+(n*37)%2000)
					binary.BigEndian.PutUint16(msg[1:], uint16(n))
					if err := c.Send(msg); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return nil
	})}
	c := dial(t, start(t, srv))
	c.write("\x00\x00\x00\x01x")
	next := [senders]int{}
	messages := frame.NewReader(c.r, frame.Prefix(4))
	for range senders * each {
		msg, err := messages.Next()
		if err != nil {
			t.Fatal(err)
		}
		s, n := int(msg[0]), int(binary.BigEndian.Uint16(msg[1:]))
		if n != next[s] || len(msg) != 3+(n*37)%2000 || bytes.Count(msg[3:], msg[:1]) != len(msg)-3 {
			t.Fatalf("sender %d: message %d of %d bytes, want %d", s, n, len(msg), next[s])
		}
		next[s]++
	}
}

// A Write of any length is whole: nobody else's bytes are within.
func TestWriteIsWhole(t *testing.T) {
	const size = 1 << 20
	write := func(c *serve.Conn) {
		var writing sync.WaitGroup
		for i := range 4 {
			writing.Go(func() {
				if n, err := c.Write(bytes.Repeat([]byte{byte('a' + i)}, size)); n != size || err != nil {
					t.Errorf("wrote %d, %v", n, err)
				}
			})
		}
		writing.Wait()
	}
	for name, srv := range map[string]*serve.Server{
		"raw": raw(func(_ context.Context, c *serve.Conn) error {
			write(c)
			return nil
		}),
		"frames": {Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
			for i := range 100 {
				go c.Send([]byte{byte('A' + i%26)})
			}
			write(c)
			return io.EOF
		})},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				go srv.ServeConn(ours)
				c := newClient(t, theirs)
				go io.WriteString(c.Conn, "go\n") // the raw handler does not look
				all, err := io.ReadAll(c.r)
				for i := range 4 {
					if whole := bytes.Repeat([]byte{byte('a' + i)}, size); !bytes.Contains(all, whole) {
						t.Errorf("write %d is not whole among %d bytes, %v", i, len(all), err)
					}
				}
				srv.Close()
			})
		})
	}
}

// Where a Write ended in the middle nothing may follow.
func TestNothingFollowsABrokenWrite(t *testing.T) {
	conns := make(chan *serve.Conn, 1)
	srv := &serve.Server{Handler: handsOut(conns)}
	inWorld(t, srv, func(t *testing.T, w *world) {
		c := w.client()
		c.write("go\n")
		conn := <-conns
		n, err := conn.Write(make([]byte, 8<<20)) // nobody reads
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d, %v", n, err)
		}
		go io.Copy(io.Discard, c)
		time.Sleep(time.Second)
		if err := conn.Send([]byte("news")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Send: %v", err)
		}
	})
}

// However much others send, to a client that is slow, the read loop is not kept from its
// requests by writing for them.
func TestReadLoopIsNotTheWriterForEver(t *testing.T) {
	srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
		if string(line) == "stop" {
			return c.Close()
		}
		go func() {
			time.Sleep(time.Millisecond) // until the handler is the writer
			for c.Send(make([]byte, 8<<10)) == nil {
			}
		}()
		return c.Send(make([]byte, 40<<10))
	})}
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		go srv.ServeConn(ours)
		c := newClient(t, theirs)
		c.write("go\n")
		time.Sleep(2 * time.Millisecond)
		c.readSlowly()
		c.SetWriteDeadline(time.Now().Add(time.Second))
		c.write("stop\n")
		srv.Close()
	})
}

// counting counts writes.
type counting struct {
	net.Conn
	writes atomic.Int32
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestRepliesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		defer n.Close()
		ln, _ := n.Listen("tcp", here)
		srv := echoes()
		w := &world{t: t, net: n, srv: srv}
		c := w.client()
		conn, _ := ln.Accept()
		server := &counting{Conn: conn}
		go srv.ServeConn(server)
		for i, lines := range []int{1, 100, 5000} {
			burst := strings.Repeat("hello\n", lines)
			c.write(burst)
			c.expect(burst)
			synctest.Wait()
			if n, most := server.writes.Swap(0), int32(1+len(burst)/(16<<10)); n > most {
				t.Errorf("burst %d: %d writes for %d replies, want at most %d", i, n, lines, most)
			}
		}
		srv.Close()
	})
}

// A handler may read the stream behind its message, and write to it: all in order.
func TestStreamWithinFrames(t *testing.T) {
	put := func(_ context.Context, c *serve.Conn, line []byte) error {
		verb, arg, _ := strings.Cut(string(line), " ")
		if verb != "put" {
			return c.Send(line)
		}
		var size int
		fmt.Sscan(arg, &size)
		c.Send([]byte("go on"))
		body := make([]byte, size)
		if _, err := io.ReadFull(c, body); err != nil {
			return err
		}
		c.Send([]byte("got"))
		c.Write(body)
		return c.Send([]byte("done"))
	}
	srv := &serve.Server{Handler: serve.Frames(frame.Lines(), put)}
	for _, size := range []int{0, 1, 5, 50_000, 300_000} {
		body := strings.Repeat("b", size)
		whole := fmt.Sprintf("put %d\n", size) + body + "next\n"
		answer := "go on\ngot\n" + body + "done\nnext\n"
		t.Run(fmt.Sprint(size, " together"), func(t *testing.T) {
			inWorld(t, &serve.Server{Handler: srv.Handler}, func(t *testing.T, w *world) {
				c := w.client()
				go io.WriteString(c.Conn, whole)
				c.expect(answer)
			})
		})
		t.Run(fmt.Sprint(size, " in turns"), func(t *testing.T) {
			inWorld(t, &serve.Server{Handler: srv.Handler}, func(t *testing.T, w *world) {
				c := w.client()
				c.write(fmt.Sprintf("put %d\n", size))
				c.expect("go on\n")
				go io.WriteString(c.Conn, body+"next\n")
				c.expect(answer[len("go on\n"):])
			})
		})
	}
	t.Run("while the server drains", func(t *testing.T) { // orders do not interrupt a handler
		inWorld(t, &serve.Server{Handler: srv.Handler}, func(t *testing.T, w *world) {
			c := w.client()
			c.write("put 4\nbo")
			c.expect("go on\n")
			end := w.shutdown(time.Minute)
			time.Sleep(5 * time.Second)
			c.write("dy")
			c.expect("got\nbodydone\n")
			c.expectEnd()
			c.Close()
			if took, err := end(); err != nil || took != 5*time.Second {
				t.Error(err, took)
			}
		})
	})
	t.Run("Flush", func(t *testing.T) {
		srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, _ []byte) error {
			for i := range 3 {
				c.Send([]byte{'0' + byte(i)})
				c.Flush()
				time.Sleep(time.Second)
			}
			return nil
		})}
		inWorld(t, srv, func(t *testing.T, w *world) {
			c := w.client()
			c.write("x\n")
			for i := range 3 {
				begin := time.Now()
				c.expect(fmt.Sprintf("%d\n", i))
				within(t, time.Since(begin), 0, time.Second)
			}
			if d := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); d > 2*time.Second {
				t.Errorf("the last progress came after %v", d)
			}
		})
	})
}
