package proxy_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/internal/proxyproto"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// keeper is a backend that keeps what it is sent.
func keeper(t *testing.T) (url string, next func() string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return "udp://" + pc.LocalAddr().String(), func() string {
		buf := make([]byte, 1<<16)
		pc.SetReadDeadline(time.Now().Add(patience))
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		pc.WriteTo([]byte("reply"), from)
		return string(buf[:n])
	}
}

// Every datagram begins with who sent it and whom it asked, and the rest is as it was.
func TestPacketsHeaderToBackends(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		for _, oneWay := range []bool{false, true} {
			url, next := keeper(t)
			cfg := proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, url), Header: true}
			if oneWay {
				cfg.Requests, cfg.Responses = 1, -1
			}
			w.startAt("0.0.0.0:0", cfg)
			port := netip.MustParseAddrPort(w.addr).Port()
			asked := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port)
			client := askFrom(t, "127.0.0.7:0", asked.String())
			for _, data := range []string{"first", "", "third"} {
				client.Write([]byte(data))
				got := next()
				h, n, err := proxyproto.Parse([]byte(got))
				if err != nil || got[n:] != data {
					t.Fatalf("%q became %q: %v", data, got, err)
				}
				if w.goroutines { // which of its addresses was asked is not known there
					asked = h.Destination
				}
				from := client.LocalAddr().(*net.UDPAddr).AddrPort()
				if h.Version != 2 || !h.Datagram || h.Local || h.Source != from || h.Destination != asked || asked.Port() != port {
					t.Errorf("%+v, from %v to %v", h, from, asked)
				}
			}
			w.proxy.Close()
		}
	})
}

// A client of v6 at a socket of v6, whose backend is of v4, is told in v6.
func TestPacketsHeaderOfV6(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	url, next := keeper(t)
	w.startAt("[::1]:0", proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, url), Header: true})
	client := w.dial()
	client.Write([]byte("x"))
	h, _, err := proxyproto.Parse([]byte(next()))
	if from := client.LocalAddr().(*net.UDPAddr).AddrPort(); err != nil || h.Source != from || h.Destination.String() != w.addr {
		t.Errorf("%+v, %v", h, err)
	}
}

// With its header a datagram may be too long: it is dropped, and the session goes on.
func TestPacketsHeaderMakesTooLong(t *testing.T) {
	eachPacketWay(t, func(t *testing.T, w *packetWorld) {
		a := newNode(t, "", "127.0.0.1:0")
		w.start(proxy.PacketConfig{Header: true}, a)
		client := w.dial()
		client.Write(make([]byte, 65507))
		eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped.TooLong == 1 })
		if client.ask("x", 5*time.Second) == "" {
			t.Error("the session does not go on")
		}
		if s := w.proxy.Stats(); s.Open != 1 || s.Refused != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Whose word is taken about clients.
func TestPacketsHeaderFromProxies(t *testing.T) {
	source, dest := netip.MustParseAddrPort("192.0.2.1:1234"), netip.MustParseAddrPort("192.0.2.2:53")
	head := func(h proxyproto.Header) string {
		b, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	v2 := head(proxyproto.Header{Version: 2, Source: source, Destination: dest, Datagram: true})
	local := head(proxyproto.Header{Version: 2, Local: true})
	unix := head(proxyproto.Header{Version: 2, SourcePath: "/a", DestinationPath: "/b", Datagram: true})
	v1 := head(proxyproto.Header{Version: 1, Source: source, Destination: dest})
	trusted := serve.Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}
	only := trusted
	only.Only = true
	for _, c := range []struct {
		name  string
		proxy serve.Proxy
		from  string
		data  string
		want  string         // what the backend gets behind its own header
		as    netip.AddrPort // whom it is told of, zero is the peer
		drops proxy.PacketDrops
	}{
		{"trusted", trusted, "127.0.0.1:0", v2 + "x", "x", source, proxy.PacketDrops{}},
		{"nothing behind", trusted, "127.0.0.1:0", v2, "", source, proxy.PacketDrops{}},
		{"local", trusted, "127.0.0.1:0", local + "x", "x", netip.AddrPort{}, proxy.PacketDrops{}},
		{"untrusted", trusted, "127.0.0.2:0", v2 + "x", v2 + "x", netip.AddrPort{}, proxy.PacketDrops{}},
		{"only proxies", only, "127.0.0.2:0", v2 + "x", "", netip.AddrPort{}, proxy.PacketDrops{Denied: 1}},
		{"without", trusted, "127.0.0.1:0", "x", "", netip.AddrPort{}, proxy.PacketDrops{BadHeader: 1}},
		{"empty", trusted, "127.0.0.1:0", "", "", netip.AddrPort{}, proxy.PacketDrops{BadHeader: 1}},
		{"cut", trusted, "127.0.0.1:0", v2[:20], "", netip.AddrPort{}, proxy.PacketDrops{BadHeader: 1}},
		{"version 1", trusted, "127.0.0.1:0", v1 + "x", "", netip.AddrPort{}, proxy.PacketDrops{BadHeader: 1}},
		{"of a Unix socket", trusted, "127.0.0.1:0", unix + "x", "", netip.AddrPort{}, proxy.PacketDrops{BadHeader: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.Check(t)
			w := &packetWorld{T: t}
			url, next := keeper(t)
			w.start(proxy.PacketConfig{Cluster: w.clusterOf(holdfast.Config{}, url), Header: true, Proxy: c.proxy})
			client := askFrom(t, c.from, w.addr)
			client.Write([]byte(c.data))
			if c.drops != (proxy.PacketDrops{}) {
				eventually(t, "it is dropped", func() bool { return w.proxy.Stats().Dropped == c.drops })
				return
			}
			if !c.as.IsValid() {
				c.as = client.LocalAddr().(*net.UDPAddr).AddrPort()
			}
			got := next()
			h, n, err := proxyproto.Parse([]byte(got))
			if err != nil || got[n:] != c.want || h.Source != c.as {
				t.Errorf("%q: %+v, %v", got, h, err)
			}
			if client.hear(5*time.Second) != "reply" { // to the proxy that said so, not to whom it named
				t.Error("no reply")
			}
		})
	}
}

// Limits are of the client that a trusted proxy names, not of the proxy.
func TestPacketLimitsOfDeclaredClients(t *testing.T) {
	leak.Check(t)
	w := &packetWorld{T: t}
	w.start(proxy.PacketConfig{
		Limits: serve.Limits{MaxPerIP: 1},
		Proxy:  serve.Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}, newNode(t, "a", "127.0.0.1:0"))
	client := w.dial()
	for i, from := range []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.1:1"} {
		b, _ := proxyproto.Header{Version: 2, Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort("192.0.2.9:53"), Datagram: true}.Append(nil)
		if got := client.ask(string(b)+"x", time.Second); (got != "") != (i != 2) {
			t.Errorf("datagram %d of %s: %q", i, from, got)
		}
	}
	if s := w.proxy.Stats(); s.Open != 2 || s.Denied.PerIP != 1 {
		t.Errorf("%+v", s)
	}
}

// Replies come from the address that was asked, which a connected client insists on; who
// asks two of them has two sessions.
func TestRepliesComeFromWhomWasAsked(t *testing.T) {
	leak.Check(t)
	for _, gro := range []bool{false, true} {
		w := &packetWorld{T: t}
		a := newNode(t, "a", "127.0.0.1:0")
		w.startAt("0.0.0.0:0", proxy.PacketConfig{Socket: serve.PacketSocket{GRO: gro}}, a)
		port := netip.MustParseAddrPort(w.addr).Port()
		client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		for _, asked := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"} {
			to := netip.AddrPortFrom(netip.MustParseAddr(asked), port)
			client.WriteToUDPAddrPort([]byte("x"), to)
			client.SetReadDeadline(time.Now().Add(patience))
			if _, from, err := client.ReadFromUDPAddrPort(make([]byte, 10)); err != nil || from != to {
				t.Errorf("asked %v, and %v answers: %v", to, from, err)
			}
		}
		if s := w.proxy.Stats(); s.Open != 2 {
			t.Errorf("%+v", s)
		}
		w.proxy.Close()
	}
}
