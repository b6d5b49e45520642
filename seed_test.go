package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

// The original's own test suite, over plain TCP.
func TestNetTCPClientSuite(t *testing.T) {
	t.Run("refused after n retries", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Retry: holdfast.Retry{Attempts: 3, Backoff: every(100 * time.Millisecond)}, Backoff: every(10 * time.Millisecond)})
			var err error
			within(t, took(func() { err = c.Do(t.Context(), holdfast.Unsafe, say("x")) }), 200*time.Millisecond, 200*time.Millisecond)
			if e := asError(t, err); e.Class != holdfast.ClassRefused || e.Attempt != 3 || len(e.Tried) != 2 {
				t.Errorf("got %v, want three refusals", err)
			}
		})
	})
	t.Run("read timeout, then the late reply", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(conn net.Conn, line string) bool {
				time.Sleep(2 * time.Second)
				return reply(conn, line)
			})
			c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Read: time.Second}})
			err := c.Do(t.Context(), holdfast.Unsafe, say("first"))
			if e := asError(t, err); !e.Timeout() || e.Phase != holdfast.PhaseRead {
				t.Errorf("got %v, want a read timeout", err)
			}
			time.Sleep(5 * time.Second)
			w.servers[0].does(nil)
			if err := c.Do(t.Context(), holdfast.Unsafe, say("second")); err != nil {
				t.Errorf("after the late reply: %v", err)
			}
		})
	})
	t.Run("infinite timeout", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(conn net.Conn, line string) bool {
				time.Sleep(2 * time.Hour)
				return reply(conn, line)
			})
			c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Dial: -1, Read: -1, Write: -1}})
			within(t, took(func() {
				if err := c.Do(t.Context(), holdfast.Unsafe, say("patient")); err != nil {
					t.Error(err)
				}
			}), 2*time.Hour, 2*time.Hour)
		})
	})
	t.Run("on_connect and user_data", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{Handshake: func(_ context.Context, conn *holdfast.Conn) error {
				conn.Session = 1 // the original's example: a sequence number that begins anew
				return exchange(conn, "logon")
			}})
			for want := 1; want <= 3; want++ {
				if err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
					n := conn.Session.(int)
					conn.Session = n + 1
					return exchange(conn, fmt.Sprint("message ", n))
				}); err != nil {
					t.Fatal(err)
				}
			}
			if got := fmt.Sprintf("%q", w.servers[0].got()); got != `["logon" "message 1" "message 2" "message 3"]` {
				t.Errorf("the server got %s", got)
			}
		})
	})
	t.Run("second server when the first is down", func(t *testing.T) {
		inWorld(t, 2, func(t *testing.T, w *world) {
			w.servers[0].crash()
			c := w.cluster(holdfast.Config{Picker: holdfast.Ordered()})
			conn, err := c.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if addr := conn.Node().Addr(); addr != w.servers[1].addr || conn.RemoteAddr().String() != addr {
				t.Errorf("connected to %s, %s", addr, conn.RemoteAddr())
			}
			conn.Release()
		})
	})
	t.Run("close twice", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			conn, err := w.cluster(holdfast.Config{}).DialContext(t.Context(), "tcp", w.servers[0].addr)
			if err != nil {
				t.Fatal(err)
			}
			if first, second := conn.Close(), conn.Close(); first != nil || !errors.Is(second, net.ErrClosed) {
				t.Errorf("closed: %v, then %v", first, second)
			}
		})
	})
	t.Run("a timeout closes", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			w.servers[0].does(func(net.Conn, string) bool { return true })
			c := w.cluster(holdfast.Config{Timeouts: holdfast.Timeouts{Read: time.Second}})
			c.Do(t.Context(), holdfast.Unsafe, say("x"))
			synctest.Wait()
			if n := len(w.client.Conns()); n != 0 {
				t.Errorf("%d connections are open after the timeout", n)
			}
		})
	})
	t.Run("retry on a dropped connection", func(t *testing.T) {
		inWorld(t, 1, func(t *testing.T, w *world) {
			c := w.cluster(holdfast.Config{})
			dropped := false
			w.servers[0].does(func(conn net.Conn, line string) bool {
				if line == "drop\n" && !dropped {
					dropped = true
					return false
				}
				return reply(conn, line)
			})
			for _, line := range []string{"keep", "drop", "keep"} {
				if err := c.Do(t.Context(), holdfast.Idempotent, say(line)); err != nil {
					t.Errorf("%s: %v", line, err)
				}
			}
			if got := fmt.Sprint(w.servers[0].got()); got != "[keep drop drop keep]" {
				t.Errorf("the server got %s", got)
			}
		})
	})
	for name, policy := range map[string]holdfast.Picker{"ordered": holdfast.Ordered(), "random": holdfast.Random(), "of one's own": lastFirst} {
		for _, n := range []int{0, 1, 3} {
			t.Run(fmt.Sprintf("policy %s over %d servers", name, n), func(t *testing.T) {
				inWorld(t, n, func(t *testing.T, w *world) {
					if n == 0 {
						_, err := holdfast.New(holdfast.Static(), holdfast.Config{Picker: policy})
						if !errors.Is(err, holdfast.ErrNoEndpoint) {
							t.Errorf("got %v, want ErrNoEndpoint", err)
						}
						return
					}
					for _, s := range w.servers {
						s.crash()
					}
					c := w.cluster(holdfast.Config{Picker: policy, Retry: holdfast.Retry{Attempts: -1}})
					c.Do(t.Context(), holdfast.Unsafe, say("x"))
					dialed := map[string]int{}
					for _, e := range w.all(holdfast.EventDial) {
						dialed[e.Node.Addr()]++
					}
					for _, s := range w.servers {
						if dialed[s.addr] != 1 {
							t.Errorf("%s was dialed %d times in one pass, want once", s.addr, dialed[s.addr])
						}
					}
				})
			})
		}
	}
}
