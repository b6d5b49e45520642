package serve_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/mmsg"
	"github.com/holdfast-net/holdfast/internal/simnet"
	"github.com/holdfast-net/holdfast/serve"
)

func echoPacket(_ context.Context, p *serve.Packet) error { return p.Reply(p.Data) }

// inPacketWorld runs a story about a server of datagrams at 10.0.0.1:7000 in a bubble.
func inPacketWorld(t *testing.T, srv *serve.Packets, story func(t *testing.T, w *packetWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &packetWorld{T: t, net: simnet.New(1), srv: srv}
		if srv.Log == nil {
			srv.Log = w.logs.logger()
		}
		pc, err := w.net.ListenPacket("udp", here)
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := srv.ServePacket(pc); !errors.Is(err, serve.ErrServerClosed) {
				t.Errorf("ServePacket: %v", err)
			}
		})
		synctest.Wait()
		story(t, w)
		srv.Close()
		serving.Wait()
		w.net.Close()
	})
}

type packetWorld struct {
	*testing.T
	net  *simnet.Net
	srv  *serve.Packets
	logs logs
}

// at is a socket of a client that hears the server only.
func (w *packetWorld) at(host string) *asker {
	w.Helper()
	conn, err := w.net.Host(host).DialContext(w.Context(), "udp", here)
	if err != nil {
		w.Fatal(err)
	}
	return newAsker(w.T, conn)
}

// asker sends datagrams, and fails its test when what comes is not expected.
type asker struct {
	net.Conn
	t *testing.T
}

func newAsker(t *testing.T, conn net.Conn) *asker {
	t.Cleanup(func() { conn.Close() })
	return &asker{conn, t}
}

func askerAt(t *testing.T, addr string) *asker {
	t.Helper()
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newAsker(t, conn)
}

func (a *asker) say(text string) {
	a.t.Helper()
	if _, err := a.Write([]byte(text)); err != nil {
		a.t.Errorf("send %.20q: %v", text, err)
	}
}

func (a *asker) hear(want string) {
	a.t.Helper()
	a.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1<<16)
	if n, err := a.Read(b); err != nil || string(b[:n]) != want {
		a.t.Errorf("heard %.40q of %d bytes, %v; want %.40q of %d", b[:n], n, err, want, len(want))
	}
}

func (a *asker) ask(text, want string) {
	a.t.Helper()
	a.say(text)
	a.hear(want)
}

// silence is that nothing comes; only in a bubble is it quick.
func (a *asker) silence() {
	a.t.Helper()
	a.SetReadDeadline(time.Now().Add(time.Second))
	b := make([]byte, 100)
	if n, err := a.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		a.t.Errorf("heard %q, %v; want silence", b[:n], err)
	}
}

// startPackets serves on a real socket, and ends with the test.
func startPackets(t *testing.T, srv *serve.Packets, bind string) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", bind)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServePacket(pc) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, serve.ErrServerClosed) {
			t.Errorf("ServePacket: %v", err)
		}
	})
	return pc.LocalAddr().String()
}

// The protocol of checks: PING is answered by PONG, and nothing else is.
func TestPong(t *testing.T) {
	inPacketWorld(t, &serve.Packets{Handler: serve.Pong}, func(t *testing.T, w *packetWorld) {
		a := w.at("10.0.0.9")
		a.ask("PING", "PONG")
		a.ask("PING 17", "PONG")
		for _, other := range []string{"", "PIN", "ping", "PONG", " PING"} {
			a.say(other)
		}
		a.silence()
	})
}

func TestPacketSizes(t *testing.T) {
	leak.Check(t)
	srv := &serve.Packets{Handler: echoPacket}
	a := askerAt(t, startPackets(t, srv, "127.0.0.1:0"))
	for _, size := range []int{0, 1, 1472, 9000, 65507} {
		text := strings.Repeat("x", size)
		a.ask(text, text)
	}
	s := srv.Stats()
	if s.Received != 5 || s.Sent != 5 || s.ReceivedBytes != s.SentBytes || s.ReceivedBytes != 1+1472+9000+65507 {
		t.Errorf("%+v", s)
	}

	// One that is too long is dropped, never handed on in part.
	small := &serve.Packets{Handler: echoPacket, MaxPacket: 100}
	a = askerAt(t, startPackets(t, small, "127.0.0.1:0"))
	for _, size := range []int{101, 5000, 65507} {
		a.say(strings.Repeat("x", size))
	}
	a.ask(strings.Repeat("y", 100), strings.Repeat("y", 100))
	if d := small.Stats().Dropped; d != (serve.Drops{TooLong: 3}) {
		t.Errorf("%+v", d)
	}
}

// Who does not answer from the address that was asked is not heard.
func TestPacketsReplyFromTheAddressThatWasAsked(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs 127.0.0.2")
	}
	srv := &serve.Packets{Handler: func(_ context.Context, p *serve.Packet) error {
		return p.Reply([]byte(p.Local.String()))
	}}
	_, port, _ := net.SplitHostPort(startPackets(t, srv, "0.0.0.0:0"))
	askerAt(t, "127.0.0.2:"+port).ask("which?", "127.0.0.2")
	askerAt(t, "127.0.0.1:"+port).ask("which?", "127.0.0.1")
}

// Runs come and go as one, and are handled as the datagrams they are.
func TestPacketRuns(t *testing.T) {
	srv := &serve.Packets{Handler: echoPacket, Workers: 1, Socket: serve.PacketSocket{GRO: true}}
	a := askerAt(t, startPackets(t, srv, "127.0.0.1:0"))
	c := mmsg.New(a.Conn.(net.PacketConn), mmsg.Options{})
	var out []mmsg.Message
	for i := range 200 {
		out = append(out, mmsg.Message{Buf: fmt.Appendf(nil, "%03d", i)})
	}
	if _, err := c.Send(out); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		a.hear(fmt.Sprintf("%03d", i))
	}
	if s := srv.Stats(); s.Received != 200 || s.Sent != 200 || s.SentBytes != 600 {
		t.Errorf("%+v", s)
	}
}

// A panic or an error concerns one datagram: those of the same batch are answered.
func TestPacketHandlersThatFail(t *testing.T) {
	for _, workers := range []int{1, 5} {
		srv := &serve.Packets{Workers: workers, Handler: func(_ context.Context, p *serve.Packet) error {
			switch string(p.Data) {
			case "panic":
				p.Reply([]byte("never"))
				panic("oh")
			case "fail":
				return errors.New("cannot")
			}
			return p.Reply(p.Data)
		}}
		var events atomic.Int64
		srv.Observe = func(e serve.Event) {
			if e.Kind == serve.Panicked && len(e.Stack) > 0 && e.Remote.(*net.UDPAddr).Port > 0 {
				events.Add(1)
			}
		}
		inPacketWorld(t, srv, func(t *testing.T, w *packetWorld) {
			a := w.at("10.0.0.9")
			for range 10 {
				a.say("panic")
				a.say("fail")
				a.say("well")
			}
			for range 10 {
				a.hear("well")
			}
			a.silence()
			if s := srv.Stats(); s.Panics != 10 || s.Errors != 10 || s.Sent != 10 || s.SentBytes != 40 || events.Load() != 10 {
				t.Errorf("%+v, %d events", s, events.Load())
			}
			if n := len(w.logs.lines("panic in a packet handler")); n != 10 {
				t.Errorf("%d panics were logged", n)
			}
		})
	}
}

// An unvalidated source gets three bytes for one, whatever the handler wants; one that
// has proved itself gets all, for a minute after that.
func TestAmplification(t *testing.T) {
	srv := &serve.Packets{Handler: func(_ context.Context, p *serve.Packet) error {
		if bytes.HasPrefix(p.Data, []byte("cookie")) {
			p.Validate()
		}
		if err := p.Reply(make([]byte, 2*len(p.Data))); err != nil {
			return err
		}
		err := p.Reply(bytes.Repeat([]byte("z"), 1000))
		if errors.Is(err, serve.ErrAmplification) {
			return p.Reply(p.Data)
		}
		return err
	}}
	inPacketWorld(t, srv, func(t *testing.T, w *packetWorld) {
		a, other := w.at("10.0.0.9"), w.at("10.0.0.9")
		long := strings.Repeat("z", 1000)
		short := func() { a.ask("ask", "\x00\x00\x00\x00\x00\x00"); a.hear("ask") }
		short()
		short() // a second datagram proves nothing
		a.ask("cookie", strings.Repeat("\x00", 12))
		a.hear(long)
		a.ask("ask", strings.Repeat("\x00", 6))
		a.hear(long)
		other.ask("ask", strings.Repeat("\x00", 6)) // another port is another source
		other.hear("ask")
		time.Sleep(2 * time.Minute)
		short()
		if s := srv.Stats(); s.Amplified != 4 || s.Errors != 0 {
			t.Errorf("%+v", s)
		}
	})
	free := &serve.Packets{Handler: srv.Handler, Limits: serve.PacketLimits{Amplification: -1}}
	inPacketWorld(t, free, func(t *testing.T, w *packetWorld) {
		a := w.at("10.0.0.9")
		a.ask("ask", strings.Repeat("\x00", 6))
		a.hear(strings.Repeat("z", 1000))
	})
}

func TestPacketLimits(t *testing.T) {
	limits := serve.PacketLimits{
		Rate: 10, RatePerIP: 4,
		Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Deny:  []netip.Prefix{netip.MustParsePrefix("10.0.0.66/32")},
	}
	srv := &serve.Packets{Handler: echoPacket, Limits: limits}
	inPacketWorld(t, srv, func(t *testing.T, w *packetWorld) {
		burst := func(host string, n, want int) {
			t.Helper()
			a := w.at(host)
			for range n {
				a.say("x")
			}
			for range want {
				a.hear("x")
			}
			a.silence() // for a second
		}
		burst("10.0.0.66", 1, 0)
		burst("10.0.1.1", 1, 0)
		burst("10.0.0.1", 9, 4) // whichever ports they come from
		burst("10.0.0.1", 9, 4)
		all := []*asker{w.at("10.0.0.2"), w.at("10.0.0.3"), w.at("10.0.0.4"), w.at("10.0.0.5")}
		for _, a := range all {
			for range 4 {
				a.say("x")
			}
		}
		synctest.Wait()
		time.Sleep(time.Second)
		s := srv.Stats()
		if want := (serve.Drops{Network: 2, RatePerIP: 10, Rate: 6}); s.Dropped != want || s.Sent != 4+4+10 {
			t.Errorf("%+v, %d sent", s.Dropped, s.Sent)
		}
	})
}

// A datagram that comes again gets the reply that the first one got, and is handled once.
func TestDuplicatedPackets(t *testing.T) {
	var handled atomic.Int64
	handler := func(_ context.Context, p *serve.Packet) error {
		n := handled.Add(1)
		switch string(p.Data) {
		case "silent":
			return nil
		case "fails":
			return errors.New("not now")
		case "slow":
			time.Sleep(time.Second)
		}
		p.Reply([]byte("number"))
		return p.Reply(fmt.Appendf(nil, "%d", n))
	}
	limits := serve.PacketLimits{Amplification: -1}
	inPacketWorld(t, &serve.Packets{Handler: handler, Limits: limits, Dedup: time.Minute, Workers: 3}, func(t *testing.T, w *packetWorld) {
		a, b := w.at("10.0.0.9"), w.at("10.0.0.9")
		both := func(c *asker, say, number string) {
			t.Helper()
			c.ask(say, "number")
			c.hear(number)
		}
		both(a, "one", "1")
		both(a, "one", "1")
		both(b, "one", "2") // from another port it is another request
		both(a, "two", "3")
		both(a, "one", "1")
		time.Sleep(2 * time.Minute)
		both(a, "one", "4")
		a.say("silent") // 5
		a.say("silent")
		a.say("fails") // 6
		synctest.Wait()
		a.say("fails") // 7: what failed may be tried again
		a.say("slow")  // 8
		synctest.Wait()
		a.say("slow") // it will be answered
		a.hear("number")
		a.hear("8")
		a.silence()
		if n, d := handled.Load(), w.srv.Stats().Duplicates; n != 8 || d != 4 {
			t.Errorf("%d were handled, %d came again", n, d)
		}
	})
}

// Two servers that answer each other never stop: nothing is answered that comes from
// this one, or from who answers anything.
func TestPacketsDoNotLoop(t *testing.T) {
	inPacketWorld(t, &serve.Packets{Handler: echoPacket}, func(t *testing.T, w *packetWorld) {
		for _, from := range []string{"10.0.0.2:7", "10.0.0.2:13", "10.0.0.2:17", "10.0.0.2:19"} {
			pc, err := w.net.ListenPacket("udp", from)
			if err != nil {
				t.Fatal(err)
			}
			pc.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(here)))
		}
		same, err := w.net.ListenPacket("udp", "10.0.0.2:7000") // the same port elsewhere is nobody's loop
		if err != nil {
			t.Fatal(err)
		}
		same.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(here)))
		time.Sleep(time.Second)
		if s := w.srv.Stats(); s.Dropped.Loops != 4 || s.Sent != 1 {
			t.Errorf("%+v", s)
		}
	})
	for _, bind := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		pc, err := net.ListenPacket("udp", bind)
		if err != nil {
			t.Skip(err)
		}
		srv := &serve.Packets{Handler: echoPacket}
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), pc.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		for range 10 {
			pc.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(addr)) // as if forged
		}
		done := make(chan error, 1)
		go func() { done <- srv.ServePacket(pc) }()
		askerAt(t, addr.String()).ask("y", "y")
		srv.Close()
		<-done
		if s := srv.Stats(); s.Dropped.Loops != 10 || s.Sent != 1 {
			t.Errorf("%s: %+v", bind, s)
		}
	}
}

// Whoever they say they are, the memory for them is bounded.
func TestManySources(t *testing.T) {
	const sources = 20_000
	srv := &serve.Packets{
		Limits: serve.PacketLimits{RatePerIP: 1e6}, Dedup: time.Hour, MaxPacket: 1500,
		Handler: func(_ context.Context, p *serve.Packet) error {
			p.Validate()
			return p.Reply(p.Data)
		},
	}
	srv.ShrinkTables(4096)
	one := askerAt(t, startPackets(t, srv, "127.0.0.1:0"))
	one.ask("first", "first")
	for i := range sources {
		srv.Meet(netip.AddrPortFrom(netip.MustParseAddr("10.1.0.0"), uint16(i+1024)), make([]byte, 1000))
	}
	for i := range sources {
		srv.Meet(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}), 99), make([]byte, 1000))
	}
	if v, c, r := srv.Tables(); v > 4096 || c > 4096 || r > 4096 {
		t.Errorf("%d validated, %d clients, %d answers are kept", v, c, r)
	}
	one.ask("last", "last")
}

// Shutdown is prompt, and what was read is answered.
func TestPacketsShutdown(t *testing.T) {
	var entered, leave chan bool
	srv := &serve.Packets{Workers: 3, Batch: 1, Handler: func(_ context.Context, p *serve.Packet) error {
		entered <- true
		<-leave
		return p.Reply(p.Data)
	}}
	inPacketWorld(t, srv, func(t *testing.T, w *packetWorld) {
		entered, leave = make(chan bool, 10), make(chan bool) // the bubble's own
		a := w.at("10.0.0.9")
		a.say("one")
		a.say("two")
		<-entered
		<-entered // both are handled, the third worker waits for more
		done := make(chan error, 1)
		begin := time.Now()
		go func() { done <- srv.Shutdown(context.Background()) }()
		synctest.Wait()
		a.say("three") // belongs to the next generation
		close(leave)
		if err := <-done; err != nil || time.Since(begin) != 0 {
			t.Errorf("Shutdown: %v after %v", err, time.Since(begin))
		}
		pc, _ := w.net.ListenPacket("udp", here)
		if err := srv.ServePacket(pc); !errors.Is(err, net.ErrClosed) {
			t.Errorf("ServePacket after Shutdown: %v", err)
		}
		if s := srv.Stats(); s.Received != 2 || s.Sent != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// A handler that does not end is cut when the context of Shutdown ends.
func TestPacketsShutdownCuts(t *testing.T) {
	srv := &serve.Packets{Handler: func(ctx context.Context, p *serve.Packet) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	inPacketWorld(t, srv, func(t *testing.T, w *packetWorld) {
		w.at("10.0.0.9").say("one")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		begin := time.Now()
		if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Minute {
			t.Errorf("Shutdown: %v after %v", err, time.Since(begin))
		}
	})
}

// Nobody polls: an idle server ends at once, on a real socket too.
func TestPacketsEndAtOnce(t *testing.T) {
	leak.Check(t)
	for _, workers := range []int{0, 1, 5} {
		srv := &serve.Packets{Handler: serve.Pong, Workers: workers}
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- srv.ServePacket(pc) }()
		askerAt(t, pc.LocalAddr().String()).ask("PING", "PONG")
		begin := time.Now()
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-done
		if took := time.Since(begin); took > 500*time.Millisecond {
			t.Errorf("%d workers took %v", workers, took)
		}
	}
}

// The rate is of the time that has passed.
func TestPacketStatistics(t *testing.T) {
	inPacketWorld(t, &serve.Packets{Handler: echoPacket}, func(t *testing.T, w *packetWorld) {
		a := w.at("10.0.0.9")
		for range 100 {
			a.ask("ten bytes.", "ten bytes.")
		}
		time.Sleep(4 * time.Second)
		before := w.srv.Stats()
		if n, bytes := before.PerSecond(serve.PacketStats{}); n != 25 || bytes != 250 {
			t.Errorf("%v a second, %v bytes; of %+v", n, bytes, before)
		}
		for range 10 {
			a.say("x")
		}
		time.Sleep(2 * time.Second)
		if n, bytes := w.srv.Stats().PerSecond(before); n != 5 || bytes != 5 {
			t.Errorf("%v a second, %v bytes", n, bytes)
		}
		if n, _ := before.PerSecond(before); n != 0 {
			t.Errorf("%v a second in no time", n)
		}
		if totals := w.srv.Totals(); totals["datagrams_received"] != 110 || totals["datagrams_sent"] != 110 {
			t.Error(totals)
		}
	})
}

// troubled fails at reading now and then.
type troubled struct {
	net.PacketConn
	reads atomic.Int64
}

func (c *troubled) ReadFrom(b []byte) (int, net.Addr, error) {
	if c.reads.Add(1)%3 == 0 {
		return 0, nil, syscall.ENOBUFS
	}
	return c.PacketConn.ReadFrom(b)
}

// An error of the socket is not its end.
func TestPacketReadErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		pc, _ := n.ListenPacket("udp", here)
		srv := &serve.Packets{Handler: echoPacket}
		done := make(chan error, 1)
		go func() { done <- srv.ServePacket(&troubled{PacketConn: pc}) }()
		conn, _ := n.Host("10.0.0.9").DialContext(t.Context(), "udp", here)
		a := newAsker(t, conn)
		for i := range 20 {
			text := fmt.Sprint(i)
			a.ask(text, text)
		}
		if s := srv.Stats(); s.ReadErrors < 5 {
			t.Errorf("%+v", s)
		}
		pc.Close() // by somebody else: that is the end
		if err := <-done; !errors.Is(err, net.ErrClosed) || errors.Is(err, serve.ErrServerClosed) {
			t.Errorf("ServePacket: %v", err)
		}
		srv.Close()
		n.Close()
	})
}

// Unix sockets have no IP, and some have no address at all.
func TestUnixDatagrams(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	pc, err := net.ListenPacket("unixgram", dir+"/server")
	if err != nil {
		t.Skip(err)
	}
	var nobody atomic.Int64
	srv := &serve.Packets{Handler: func(_ context.Context, p *serve.Packet) error {
		if err := p.Reply(bytes.Repeat(p.Data, 10)); err != nil {
			nobody.Add(1)
			return err
		}
		return nil
	}}
	done := make(chan error, 1)
	go func() { done <- srv.ServePacket(pc) }()
	named := func(name string) *asker {
		var local *net.UnixAddr
		if name != "" {
			local = &net.UnixAddr{Name: dir + name, Net: "unixgram"}
		}
		conn, err := net.DialUnix("unixgram", local, &net.UnixAddr{Name: dir + "/server", Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		return newAsker(t, conn)
	}
	named("").say("x")
	named("/client").ask("x", "xxxxxxxxxx")
	srv.Close()
	<-done
	if nobody.Load() != 1 {
		t.Errorf("%d had no address", nobody.Load())
	}
}

func TestListenShards(t *testing.T) {
	leak.Check(t)
	all, err := serve.ListenShards(t.Context(), "udp://127.0.0.1:0", 3)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "linux" && len(all) != 3 {
		t.Fatalf("%d sockets", len(all))
	}
	srv := &serve.Packets{Handler: echoPacket}
	var serving sync.WaitGroup
	for _, pc := range all {
		serving.Go(func() { srv.ServePacket(pc) })
	}
	for i := range 50 {
		a := askerAt(t, all[0].LocalAddr().String())
		a.ask(fmt.Sprint(i), fmt.Sprint(i))
		a.Close()
	}
	srv.Close()
	serving.Wait()
	if _, err := serve.ListenShards(t.Context(), "tcp://127.0.0.1:0", 3); err == nil {
		t.Error("TCP has no datagrams")
	}
}

func TestPacketsDoNotAllocate(t *testing.T) {
	if raceDetector || runtime.GOOS != "linux" {
		t.Skip("only where it counts")
	}
	srv := &serve.Packets{Handler: echoPacket, Limits: serve.PacketLimits{Rate: 1e9, RatePerIP: 1e9}}
	for _, bind := range []string{"127.0.0.1:0", "[::]:0"} {
		addr := netip.MustParseAddrPort(startPackets(t, srv, bind))
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), addr.Port())))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := []byte("some text")
		n := testing.AllocsPerRun(1000, func() {
			conn.Write(b)
			if _, err := conn.Read(b); err != nil {
				t.Fatal(err)
			}
		})
		if n > 0 {
			t.Errorf("%s: %v allocations for a datagram", bind, n)
		}
	}
}

func ExamplePackets() {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := &serve.Packets{Handler: serve.Pong}
	go srv.ServePacket(pc)
	defer srv.Close()

	conn, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	conn.Write([]byte("PING"))
	b := make([]byte, 10)
	n, err := conn.Read(b)
	fmt.Printf("%s %v\n", b[:n], err)
	// Output: PONG <nil>
}
