package dns

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// bubble is a lookup of db.example. on the bubble's clock. The system is left out:
// it has no clock of ours.
type bubble struct {
	*Client
	conf *config
}

func newBubble(t *testing.T, servers map[string]handler, order ...string) bubble {
	t.Cleanup(func() { time.Sleep(24 * time.Hour) }) // lets slow servers find their pipes closed
	return bubble{
		&Client{Servers: order, Dial: pipes(servers), Timeout: time.Second, Attempts: 2},
		&config{ndots: 1},
	}
}

// lookup returns how long it took, too.
func (b bubble) lookup(ctx context.Context) (answer, time.Duration, error) {
	start := time.Now()
	a, err := b.askBoth(ctx, b.conf, "db.example.")
	return a, time.Since(start), err
}

// later answers after a delay, on a goroutine of its own as a network would.
func later(delay time.Duration, h handler) handler {
	return func(network string, query []byte, send func([]byte)) {
		time.Sleep(delay)
		h(network, query, send)
	}
}

func TestTimeoutsBoundALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, map[string]handler{"one": silent, "two": silent, "three": silent}, "one", "two", "three")
		_, took, err := b.lookup(t.Context())
		if took != 6*time.Second || kindOf(t, err) != Timeout {
			t.Errorf("2 rounds over 3 silent servers of 1 s each took %v: %v", took, err)
		}
		var e *Error
		if !errors.As(err, &e) || !e.Timeout() || e.Server != "one" {
			t.Errorf("%+v", e)
		}
	})
}

func TestDefaultTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, map[string]handler{"one": silent}, "one")
		b.Timeout, b.Attempts = 0, 0
		b.conf.timeout, b.conf.attempts = 3*time.Second, 3
		if _, took, _ := b.lookup(t.Context()); took != 9*time.Second {
			t.Errorf("3 rounds of 3 s took %v", took)
		}
	})
}

func TestContextEndsALookup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, map[string]handler{"one": silent}, "one")
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		_, took, err := b.lookup(ctx)
		var e *Error
		if took != 1500*time.Millisecond || !errors.As(err, &e) || !e.Timeout() || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it took %v: %v", took, err)
		}

		reason := errors.New("enough")
		ctx, stop := context.WithCancelCause(t.Context())
		time.AfterFunc(300*time.Millisecond, func() { stop(reason) })
		if _, took, err = b.lookup(ctx); took != 300*time.Millisecond || !errors.Is(err, reason) {
			t.Errorf("cancelled, it took %v: %v", took, err)
		}
	})
}

func TestServersInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, map[string]handler{"dead": silent, "good": both.handle}, "dead", "good")
		a, took, err := b.lookup(t.Context())
		if err != nil || took != time.Second || len(a.addrs) != 3 {
			t.Errorf("%v after %v, %v", a.addrs, took, err)
		}
	})
}

// A lost packet costs one timeout.
func TestQuestionIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen asked
		lossy := func(network string, query []byte, send func([]byte)) {
			if len(seen.all()) > 2 { // the first of each family is lost
				both.handle(network, query, send)
			}
		}
		b := newBubble(t, map[string]handler{"one": seen.by(lossy)}, "one")
		a, took, err := b.lookup(t.Context())
		if err != nil || took != time.Second || len(a.addrs) != 3 {
			t.Errorf("%v after %v, %v", a.addrs, took, err)
		}
	})
}

// An answer that comes after its time is not taken for that of the next server.
func TestLateAnswerIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := zone{"db.example.": {ip(60, "203.0.113.1")}}
		b := newBubble(t, map[string]handler{
			"slow": later(1100*time.Millisecond, old.handle), "good": later(500*time.Millisecond, both.handle),
		}, "slow", "good")
		a, took, err := b.lookup(t.Context())
		if err != nil || took != 1500*time.Millisecond {
			t.Errorf("after %v: %v", took, err)
		}
		same(t, "addresses", texts(a.addrs), "2001:db8::1", "192.0.2.1", "192.0.2.2")
	})
}

// Forgeries do not put the end off.
func TestForgeriesDoNotExtendTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		flood := func(_ string, query []byte, send func([]byte)) {
			m := both.message(parse(query))
			m.ID++
			for range 50 {
				time.Sleep(100 * time.Millisecond)
				send(pack(m))
			}
		}
		b := newBubble(t, map[string]handler{"one": flood}, "one")
		_, took, err := b.lookup(t.Context())
		if took != 2*time.Second || kindOf(t, err) != Timeout {
			t.Errorf("2 attempts of 1 s took %v: %v", took, err)
		}
	})
}

// The limit of a question holds for UDP and TCP together.
func TestSlowStreamTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cut := func(network string, query []byte, send func([]byte)) {
			if network == "tcp" {
				time.Sleep(time.Hour)
				return
			}
			time.Sleep(400 * time.Millisecond)
			m := both.message(parse(query))
			m.Truncated = true
			send(pack(m))
		}
		b := newBubble(t, map[string]handler{"one": cut}, "one")
		b.Attempts = 1
		if _, took, err := b.lookup(t.Context()); took != time.Second || kindOf(t, err) != Timeout {
			t.Errorf("it took %v: %v", took, err)
		}
	})
}

func TestSlowFamilyDoesNotSpoilTheOther(t *testing.T) {
	v4 := strings.Fields("192.0.2.1 192.0.2.2")
	all := append([]string{"2001:db8::1"}, v4...)
	for name, c := range map[string]struct {
		aaaa handler
		want []string
		took time.Duration
	}{
		"never answers":    {silent, v4, grace},
		"answers in time":  {later(grace-1, both.handle), all, grace - 1},
		"answers too late": {later(grace+1, both.handle), v4, grace},
		"makes no sense":   {func(_ string, _ []byte, send func([]byte)) { send([]byte("?")) }, v4, grace},
		"fails at once":    {rcode(dnsmessage.RCodeServerFailure), v4, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBubble(t, map[string]handler{"one": byType(c.aaaa, both.handle)}, "one")
			b.Timeout = 10 * time.Second
			a, took, err := b.lookup(t.Context())
			if (err == nil) != (len(a.addrs) == len(all)) || took != c.took {
				t.Errorf("AAAA %s: after %v, %v; want %v", name, took, err, c.took)
			}
			same(t, "AAAA "+name, texts(a.addrs), c.want...)
		})
	}
}

// Without an answer for the other family there is nothing to hurry for.
func TestSlowFamilyIsWaitedForIfTheOtherIsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v4 := zone{"db.example.": {ip(60, "192.0.2.1")}}
		slow := func(network string, query []byte, send func([]byte)) {
			if parse(query).Questions[0].Type == dnsmessage.TypeA {
				time.Sleep(3 * grace)
			}
			v4.handle(network, query, send)
		}
		b := newBubble(t, map[string]handler{"one": slow}, "one")
		b.Timeout = 10 * time.Second
		a, took, err := b.lookup(t.Context())
		if err != nil || took != 3*grace || len(a.addrs) != 1 {
			t.Errorf("%v after %v, %v", a.addrs, took, err)
		}
	})
}

func TestDialIsGivenTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, nil, "one")
		b.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		}
		_, took, err := b.lookup(t.Context())
		if took != 2*time.Second || kindOf(t, err) != Timeout {
			t.Errorf("it took %v: %v", took, err)
		}
	})
}
