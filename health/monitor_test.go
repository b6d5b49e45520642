package health_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

type services = map[string]health.Service

// One round over services of every kind, in every condition: nothing is raised, and each
// result says what was found.
func TestCheckAllReportsEveryService(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.net.SetLink("", "", simnet.Link{Latency: 10 * time.Millisecond}) // a dial takes 20 ms, an exchange too
		w.net.SetLink("10.0.0.8", "", simnet.Link{Reject: syscall.EHOSTUNREACH})
		secure, pool := certificate(t, "10.0.0.3", 10*24*time.Hour)
		w.serve("10.0.0.1:80", page("200 OK", nil))
		w.serve("10.0.0.2:80", page("503 Service Unavailable", nil))
		w.serve("10.0.0.3:443", func(conn net.Conn) { page("200 OK", nil)(tls.Server(conn, secure)) })
		w.serve("10.0.0.4:80", silence)
		w.serve("10.0.0.5:6379", redisServer(map[string]string{"PING": "+PONG\r\n"}))
		w.answer("10.0.0.6:53", "")
		at := func(addr, kind string, cfg ...func(*holdfast.Config)) health.Service {
			s := w.service(addr, kind)
			s.Config.TLS = &tls.Config{RootCAs: pool}
			for _, f := range cfg {
				f(&s.Config)
			}
			return s
		}
		own := func(err error) func(*holdfast.Config) {
			return func(cfg *holdfast.Config) {
				cfg.Probe = func(context.Context, net.Conn) error {
					if err == nil {
						panic("a probe's mistake")
					}
					return err
				}
			}
		}
		m := newMonitor(t, health.Config{Services: services{
			"connects":    at("10.0.0.1:80", ""),
			"path":        at("10.0.0.1:80", "http /status"),
			"503":         at("10.0.0.2:80", "http /status"),
			"secure":      at("tls://10.0.0.3:443", ""),
			"secure path": at("tls://10.0.0.3:443", "http /"),
			"expiring":    at("tls://10.0.0.3:443", "tls 14"),
			"own TLS":     at("tcp://10.0.0.3:443", "tls"),
			"no TLS":      at("tls://10.0.0.1:80", ""),
			"silent":      at("10.0.0.4:80", "http /"),
			"cache":       at("10.0.0.5:6379", "redis"),
			"udp":         at("udp://10.0.0.6:53", "udp send x"),
			"udp refused": at("udp://10.0.0.7:53", "udp send x"),
			"refused":     at("10.0.0.7:80", ""),
			"no probe":    at("10.0.0.1:80", "", own(errors.New("I do not like it"))),
			"panics":      at("10.0.0.1:80", "", own(nil)),
		}})
		start := time.Now()
		got := m.CheckAll(t.Context())
		if took := time.Since(start); took != time.Second {
			t.Errorf("the round took %v, want the second of the silent one", took)
		}
		for name, want := range map[string]string{
			"connects":    "true connect connect 20ms ",
			"path":        "true http answer 40ms ",
			"503":         "false http answer 0s status 503",
			"secure":      "true tls tls 40ms ",
			"secure path": "true http answer 60ms ",
			"expiring":    "false tls tls 0s expires on 2000-01-11",
			"own TLS":     "true tls tls 40ms ",
			"no TLS":      "false tls tls 0s ",
			"silent":      "false http answer 0s i/o timeout",
			"cache":       "true redis answer 40ms ",
			"udp":         "true udp silence 500ms ",
			"udp refused": "false udp answer 0s refused",
			"refused":     "false connect connect 0s refused",
			"no probe":    "false probe answer 0s I do not like it",
			"panics":      "false probe answer 0s a probe's mistake",
		} {
			r := got[name]
			have := fmt.Sprintln(r.Healthy, r.Kind, r.Layer, r.Response, r.Err)
			wanted := strings.SplitAfterN(want, " ", 5)
			if !strings.HasPrefix(have, strings.Join(wanted[:4], "")) || !strings.Contains(have, wanted[4]) {
				t.Errorf("%s: %swant %s", name, have, want)
			}
			if r.Healthy != (r.Err == nil) || r.Checked.Before(start) || r.Since != r.Checked || r.Rise+r.Fall != 1 || (r.Rise == 1) != r.Healthy {
				t.Errorf("%s: %+v", name, r)
			}
			if secure := strings.Contains(name, "secure") || name == "expiring" || name == "own TLS"; secure == r.Expires.IsZero() {
				t.Errorf("%s: the certificate expires %v", name, r.Expires)
			}
			if up := map[bool]int{true: 1}[r.Healthy]; r.Addrs != 1 || r.Up != up {
				t.Errorf("%s: %d of %d addresses", name, r.Up, r.Addrs)
			}
		}
		if len(got) != 15 {
			t.Errorf("%d results", len(got))
		}
		if want := []string{"cache", "connects", "own TLS", "path", "secure", "secure path", "udp"}; !slices.Equal(m.Healthy(), want) {
			t.Errorf("healthy are %q, want %q", m.Healthy(), want)
		}
		if !maps.Equal(m.Results(), got) {
			t.Error("Results are not what CheckAll returned")
		}
	})
}

// A hundred services far away, one of them in a black hole: those who answer have theirs
// after a round trip, the hole takes its limit, and that is all it takes.
func TestBlackholeDelaysNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.net.SetLink("", "", simnet.Link{Latency: 150 * time.Millisecond})
		w.net.Partition("10.0.0.50", "")
		all := services{}
		for i := range 100 {
			addr := fmt.Sprintf("10.0.0.%d:80", i)
			w.serve(addr, page("200 OK", nil))
			all[addr] = w.service(addr, "http /")
		}
		var mu sync.Mutex
		at := map[time.Duration]int{} // results by the time they came
		start := time.Now()
		m := newMonitor(t, health.Config{Services: all, Observe: func(string, health.Result) {
			mu.Lock()
			defer mu.Unlock()
			at[time.Since(start)]++
		}})
		got := m.CheckAll(t.Context())
		if took := time.Since(start); took != time.Second || len(got) != 100 || len(m.Healthy()) != 99 {
			t.Errorf("%d healthy of %d, after %v", len(m.Healthy()), len(got), took)
		}
		if want := map[time.Duration]int{600 * time.Millisecond: 99, time.Second: 1}; !maps.Equal(at, want) {
			t.Errorf("results came %v, want %v", at, want)
		}
	})
}

// The first check decides; then two good ones and three bad ones in a row do. A change is
// logged once, a check always.
func TestVerdictsChangeByRiseAndFall(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var broken atomic.Bool
		w.serve("10.0.0.1:80", func(conn net.Conn) {
			if broken.Load() {
				page("500 Oops", nil)(conn)
			} else {
				page("200 OK", nil)(conn)
			}
		})
		log := &ledger{}
		var story []string
		told := make(chan struct{}) // all of it
		s := w.service("10.0.0.1:80", "http /")
		s.Config.Check = holdfast.Check{Interval: 10 * time.Second, Fast: 10 * time.Second}
		m := newMonitor(t, health.Config{Services: services{"web": s}, Log: slog.New(log), Observe: func(name string, r health.Result) {
			word := "down"
			if r.Healthy {
				word = "up"
			}
			if r.Since == r.Checked {
				word += "!"
			}
			story = append(story, fmt.Sprintf("%s %d/%d", word, r.Rise, r.Fall))
			switch len(story) {
			case 2, 6, 10, 12:
				broken.Store(true)
			case 4, 9, 11, 15:
				broken.Store(false)
			case 17:
				close(told)
			}
		}})
		stop := running(t, m)
		<-told
		stop()
		want := []string{
			"up! 1/0", "up 2/0", "up 0/1", "up 0/2", "up 1/0", "up 2/0", // two failures are not enough
			"up 0/1", "up 0/2", "down! 0/3", "down 1/0", // three are, and one good one is not
			"down 0/1", "down 1/0", "down 0/1", "down 0/2", "down 0/3", "down 1/0", "up! 2/0",
		}
		if !slices.Equal(story, want) {
			t.Errorf("got  %q\nwant %q", story, want)
		}
		if got, want := log.at(slog.LevelInfo), []string{"INFO service healthy web", "INFO service healthy web"}; !slices.Equal(got, want) {
			t.Errorf("logged %q, want %q", got, want)
		}
		if got, want := log.at(slog.LevelError), []string{"ERROR service unhealthy web"}; !slices.Equal(got, want) {
			t.Errorf("logged %q, want %q", got, want)
		}
		if got := log.at(slog.LevelDebug); len(got) != len(want) {
			t.Errorf("%d checks were logged, want all %d", len(got), len(want))
		}
	})
}

// All services at once, then each by its own interval; the end of Run is the end of all.
func TestRunChecksByTheInterval(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var checks [2]atomic.Int32
		all := services{}
		for i := range checks {
			addr := fmt.Sprintf("10.0.0.%d:80", i)
			w.serve(addr, func(conn net.Conn) { checks[i].Add(1); silence(conn) })
			s := w.service(addr, "")
			s.Config.Check.Interval = time.Duration(i+1) * 10 * time.Second
			all[addr] = s
		}
		m := newMonitor(t, health.Config{Services: all})
		stop := running(t, m)
		synctest.Wait()
		if len(m.Healthy()) != 2 {
			t.Errorf("at the start %q are healthy", m.Healthy())
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a second Run went unnoticed")
				}
			}()
			m.Run(t.Context())
		}()
		time.Sleep(10 * time.Minute)
		stop()
		for i, want := range []int32{60, 30} {
			if got := checks[i].Load(); got < want*9/10 || got > want*12/10 {
				t.Errorf("service %d was checked %d times in ten minutes, want about %d", i, got, want)
			}
		}
		before := checks[0].Load()
		time.Sleep(time.Minute)
		if checks[0].Load() != before || len(w.client.Conns()) != 0 {
			t.Error("after its end it goes on")
		}
		running(t, m)() // and may run again
	})
}

// A round while Run is at work is its own: what Run knows changes only by its checks.
func TestCheckAllLeavesARunAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("10.0.0.1:80", silence)
		log := &ledger{}
		m := newMonitor(t, health.Config{Services: services{"a": w.service("10.0.0.1:80", "")}, Log: slog.New(log)})
		stop := running(t, m)
		defer stop()
		synctest.Wait()
		w.net.Host("10.0.0.1").Kill()
		if r := m.CheckAll(t.Context())["a"]; r.Healthy || r.Err == nil || r.Since != r.Checked {
			t.Errorf("the round found %+v", r)
		}
		if r := m.Results()["a"]; !r.Healthy || len(log.at(slog.LevelError)) != 0 {
			t.Errorf("the run was told %+v, %q", r, log.at(slog.LevelError))
		}
		time.Sleep(10 * time.Second)
		if len(m.Healthy()) != 0 || len(log.at(slog.LevelError)) != 1 {
			t.Errorf("the run does not see for itself: %q", log.at(slog.LevelError))
		}
	})
}

// A name of two addresses is as healthy as the better one.
func TestServiceIsHealthyWhileOneAddressIs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var name atomic.Pointer[[]string] // what it stands for
		stands := func(addrs ...string) { name.Store(&addrs) }
		stands("10.0.0.1:80", "10.0.0.2:80")
		w.net.SetLink("10.0.0.1", "", simnet.Link{Latency: 50 * time.Millisecond})
		for _, addr := range *name.Load() {
			w.serve(addr, silence)
		}
		s := w.service("web.example:80", "")
		s.Config.Names.Refresh = 5 * time.Second
		s.Config.Names.Lookup = func(_ context.Context, e holdfast.Endpoint) (found []holdfast.Endpoint, _ time.Duration, _ error) {
			for _, addr := range *name.Load() {
				e.Addr = addr
				found = append(found, e)
			}
			if found == nil {
				return nil, 0, errors.New("no answer")
			}
			return found, 0, nil
		}
		m := newMonitor(t, health.Config{Services: services{"web": s}})
		shows := func(when string, healthy bool, addrs, up int) {
			t.Helper()
			synctest.Wait()
			if r := m.Results()["web"]; r.Healthy != healthy || r.Addrs != addrs || r.Up != up {
				t.Errorf("%s: %+v", when, r)
			}
		}
		defer running(t, m)()
		time.Sleep(time.Second)
		shows("both up", true, 2, 2)
		if r := m.Results()["web"]; r.Response != 0 {
			t.Errorf("the response took %v, that of the faster one is instant", r.Response)
		}
		w.net.Host("10.0.0.2").Kill()
		time.Sleep(10 * time.Second)
		shows("one down", true, 2, 1)
		w.net.Host("10.0.0.1").Kill()
		time.Sleep(10 * time.Second)
		shows("both down", false, 2, 0)
		w.serve("10.0.0.2:80", silence)
		time.Sleep(10 * time.Second)
		shows("one back", true, 2, 1)
		stands("10.0.0.2:80")
		time.Sleep(10 * time.Second)
		shows("the other one gone from the name", true, 1, 1)
		stands()
		time.Sleep(time.Minute)
		shows("a name that is no longer found keeps its address", true, 1, 1)
	})
}

func TestNameThatIsNotFound(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		lookup := func(f func(context.Context) error) health.Service {
			s := w.service("web.example:80", "http /")
			s.Config.Names.Lookup = func(ctx context.Context, _ holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
				return nil, 0, f(ctx)
			}
			return s
		}
		m := newMonitor(t, health.Config{Services: services{
			"not there": lookup(func(context.Context) error { return &net.DNSError{Err: "no such host", IsNotFound: true} }),
			"no answer": lookup(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }),
		}})
		start := time.Now()
		got := m.CheckAll(t.Context())
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("took %v, want 2s for the one without an answer", took)
		}
		for name, r := range got {
			if r.Healthy || r.Layer != "resolve" || r.Err == nil || r.Kind != "http" || r.Fall != 1 || r.Addrs != 0 {
				t.Errorf("%s: %+v", name, r)
			}
		}
		if class := holdfast.Classify(got["not there"].Err); class != holdfast.ClassDNSNotFound {
			t.Errorf("class %v", class)
		}

		stop := running(t, m)
		time.Sleep(time.Minute)
		stop()
		if r := m.Results()["not there"]; r.Fall < 2 || r.Layer != "resolve" {
			t.Errorf("after a minute: %+v", r)
		}
	})
}

// Who called CheckAll and leaves has a map nevertheless.
func TestCheckAllEndsWithItsContext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve("10.0.0.1:80", silence)
		w.net.Partition("10.0.0.2", "")
		m := newMonitor(t, health.Config{Services: services{"up": w.service("10.0.0.1:80", ""), "hole": w.service("10.0.0.2:80", "")}})
		reason := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, reason)
		defer cancel()
		start := time.Now()
		got := m.CheckAll(ctx)
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if r := got["hole"]; r.Healthy || !errors.Is(r.Err, reason) || r.Layer != "connect" || !got["up"].Healthy {
			t.Errorf("%+v", got)
		}
	})
}

// This process stood still for a while, or has no descriptors: that says nothing about
// the services. A bubble's clock cannot stop, so a probe that is held up does it.
func TestOurOwnTroubleIsNoVerdict(t *testing.T) {
	for name, trouble := range map[string]func(*holdfast.Config, *atomic.Bool){
		"stopped": func(cfg *holdfast.Config, on *atomic.Bool) {
			cfg.Probe = func(ctx context.Context, _ net.Conn) error {
				if on.Load() {
					time.Sleep(4 * time.Second)
				}
				return ctx.Err()
			}
		},
		"out of files": func(cfg *holdfast.Config, on *atomic.Bool) {
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				if on.Load() {
					return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}
				}
				return dial(ctx, network, addr)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.serve("10.0.0.1:80", silence)
				s := w.service("10.0.0.1:80", "")
				var on atomic.Bool
				trouble(&s.Config, &on)
				log := &ledger{}
				m := newMonitor(t, health.Config{Services: services{"web": s}, Log: slog.New(log)})
				stop := running(t, m)
				time.Sleep(5 * time.Second)
				on.Store(true)
				time.Sleep(time.Minute)
				if r := m.Results()["web"]; !r.Healthy || r.Fall != 0 || r.Err != nil {
					t.Errorf("our own trouble is held against it: %+v", r)
				}
				if len(log.at(slog.LevelWarn)) < 10 {
					t.Errorf("for a minute nothing was checked, and that was told %d times", len(log.at(slog.LevelWarn)))
				}
				stop()

				// Asked once, there is no result to fall back on, and that is said.
				r := m.CheckAll(t.Context())["web"]
				if r.Healthy || name == "out of files" && holdfast.Classify(r.Err) != holdfast.ClassResource {
					t.Errorf("one check: %+v", r)
				}
				on.Store(false)
				if r := m.CheckAll(t.Context())["web"]; !r.Healthy {
					t.Errorf("when it is over: %+v", r)
				}
			})
		})
	}
}

func TestNewRefuses(t *testing.T) {
	probe := func(context.Context, net.Conn) error { return nil }
	for want, s := range map[string]health.Service{
		"port":                      {Addr: "10.0.0.1"},
		"want connect, tls":         {Addr: "10.0.0.1:80", Kind: "ftp"},
		"want one of them":          {Addr: "10.0.0.1:80", Kind: "connect", Config: holdfast.Config{Probe: probe}},
		"says nothing unless asked": {Addr: "udp://10.0.0.1:53"},
		"checks cannot be off":      {Addr: "10.0.0.1:80", Config: holdfast.Config{Check: holdfast.Check{Interval: -1}}},
		"kind http over udp://":     {Addr: "udp://10.0.0.1:53", Kind: "http"},
		"want udp://":               {Addr: "10.0.0.1:53", Kind: "udp send x"},
	} {
		_, err := health.New(health.Config{Services: services{"good": {Addr: "10.0.0.1:80"}, "bad": s}})
		wantError(t, err, want)
		wantError(t, err, "service bad")
	}
	_, err := health.New(health.Config{})
	wantError(t, err, "no service")
}

// A certificate that is renewed is seen by the next check.
func TestRenewedCertificateIsSeen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		old, oldPool := certificate(t, "10.0.0.1", 24*time.Hour)
		renewed, _ := certificate(t, "10.0.0.1", 90*24*time.Hour)
		oldPool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: renewed.Certificates[0].Certificate[0]}))
		var now atomic.Pointer[tls.Certificate]
		now.Store(&old.Certificates[0])
		server := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return now.Load(), nil }}
		w.serve("10.0.0.1:443", func(conn net.Conn) { page("200 OK", nil)(tls.Server(conn, server)) })
		s := w.service("tls://10.0.0.1:443", "http /")
		s.Config.TLS = &tls.Config{RootCAs: oldPool, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
		m := newMonitor(t, health.Config{Services: services{"web": s}})
		defer running(t, m)()
		days := func() int {
			time.Sleep(5 * time.Second)
			r := m.Results()["web"]
			if !r.Healthy {
				t.Errorf("%+v", r)
			}
			return int(r.Expires.Sub(r.Checked).Hours()+1) / 24
		}
		if got := days(); got != 1 {
			t.Errorf("the old certificate has %d days left", got)
		}
		now.Store(&renewed.Certificates[0])
		if got := days(); got != 90 {
			t.Errorf("after the renewal %d days are left, want 90", got)
		}
	})
}
