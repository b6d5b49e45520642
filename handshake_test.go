package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast"
)

// With the original any error of on_connect ended the whole connect.
func TestHandshakeFailureMovesOn(t *testing.T) {
	notPrimary := errors.New("not the primary")
	silence := func(conn *holdfast.Conn) error { _, err := conn.Read(make([]byte, 1)); return err }
	for _, row := range []struct {
		name  string
		fails func(w *world, conn *holdfast.Conn) error
	}{
		{"an error of its own", func(*world, *holdfast.Conn) error { return notPrimary }},
		{"the server hangs up", func(w *world, conn *holdfast.Conn) error { w.servers[0].hangUp(); return silence(conn) }},
		{"the server says nothing", func(_ *world, conn *holdfast.Conn) error { return silence(conn) }},
		{"it panics", func(*world, *holdfast.Conn) error { panic("handshake") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				var shaken []string
				c := w.cluster(holdfast.Config{
					Picker:   holdfast.Ordered(),
					Timeouts: holdfast.Timeouts{Handshake: time.Second, Stagger: -1},
					Handshake: func(_ context.Context, conn *holdfast.Conn) error {
						shaken = append(shaken, conn.Node().Addr())
						if len(shaken) == 1 {
							return row.fails(w, conn)
						}
						return nil
					},
				})
				for range 3 {
					if err := c.Do(t.Context(), holdfast.Unsafe, say("x")); err != nil {
						t.Fatal(err)
					}
				}
				if fmt.Sprint(shaken) != "[10.0.0.1:7000 10.0.0.2:7000]" {
					t.Errorf("handshakes with %v, want one with each", shaken)
				}
				if n := len(w.servers[1].got()); n != 3 {
					t.Errorf("the other server got %d operations, want 3", n)
				}
				if n := len(w.client.Conns()); n != 1 {
					t.Errorf("%d connections are open, want the good one", n)
				}
			})
		})
	}
}

// A wrong password is wrong everywhere: asking on would lock the account.
func TestPermanentHandshakeErrorEndsTheCall(t *testing.T) {
	denied := fmt.Errorf("password authentication failed: %w", io.EOF) // which else would be worth a retry
	for _, way := range waysIn {
		t.Run(way.name, func(t *testing.T) {
			inWorld(t, 3, func(t *testing.T, w *world) {
				tried := 0
				c := w.cluster(holdfast.Config{
					Picker: holdfast.Ordered(),
					Handshake: func(context.Context, *holdfast.Conn) error {
						tried++
						return holdfast.Permanent(denied)
					},
				})
				var err error
				within(t, took(func() { err = way.take(t.Context(), c) }), 0, 0)
				if !errors.Is(err, denied) || asError(t, err).Phase != holdfast.PhaseHandshake {
					t.Errorf("got %v, want the refusal, of the handshake", err)
				}
				if tried != 1 || w.servers[1].dials()+w.servers[2].dials() != 0 {
					t.Errorf("%d handshakes, %d and %d dials of the other nodes", tried, w.servers[1].dials(), w.servers[2].dials())
				}
			})
		})
	}
}

// user_data of the original outlived its connection.
func TestSessionIsEmptyOnEachNewConn(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		greeted := 0
		c := w.cluster(holdfast.Config{Handshake: func(_ context.Context, conn *holdfast.Conn) error {
			if conn.Session != nil {
				t.Errorf("a new connection comes with the session %v", conn.Session)
			}
			greeted++
			conn.Session = greeted * 100
			return nil
		}})
		count := func() (n int) {
			if err := c.Do(t.Context(), holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				n = conn.Session.(int) + 1
				conn.Session = n
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		got := []int{count(), count()}
		synctest.Wait() // the server has accepted
		w.servers[0].hangUp()
		time.Sleep(time.Second)
		got = append(got, count(), count())
		if want := "[101 102 201 202]"; fmt.Sprint(got) != want {
			t.Errorf("the sessions went %v, want %s", got, want)
		}
	})
}

// A set-up step that times out, its error ignored, once shifted every reply of the
// connection's life by one (go-redis, CVE-2025-29923).
func TestHandshakeTimeoutNeverEntersThePool(t *testing.T) {
	step := func(_ context.Context, conn *holdfast.Conn) error {
		if _, err := io.WriteString(conn, "HELLO\n"); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 6))
		return err
	}
	for _, row := range []struct {
		name      string
		handshake func(context.Context, *holdfast.Conn) error
	}{
		{"reported", step},
		{"ignored", func(ctx context.Context, conn *holdfast.Conn) error { step(ctx, conn); return nil }},
		{"ignored, by a deadline of its own", func(ctx context.Context, conn *holdfast.Conn) error {
			conn.SetDeadline(time.Now().Add(time.Millisecond))
			step(ctx, conn)
			return conn.SetDeadline(time.Time{})
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			inWorld(t, 2, func(t *testing.T, w *world) {
				w.servers[0].does(func(conn net.Conn, line string) bool {
					time.Sleep(2 * time.Second) // the reply to HELLO comes, late
					return reply(conn, line)
				})
				c := w.cluster(holdfast.Config{
					Picker:    holdfast.Ordered(),
					Timeouts:  holdfast.Timeouts{Handshake: time.Second, Stagger: -1},
					Handshake: row.handshake,
				})
				for range 5 {
					if err := c.Do(t.Context(), holdfast.Unsafe, say("question")); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second)
				}
				for _, line := range w.servers[0].got() {
					if line != "HELLO" {
						t.Errorf("the slow server was asked %q on a connection that never finished its handshake", line)
					}
				}
				if s := c.Stats().Nodes[0]; s.Dials == 0 || s.Conns != 0 {
					t.Errorf("the slow node was dialed %d times and has %d connections, want none", s.Dials, s.Conns)
				}
			})
		})
	}
}
