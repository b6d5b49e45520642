package proxy_test

import (
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
	"golang.org/x/sys/unix"
)

// Fault 16: clients that stop reading cost a bounded amount each, and others nothing.
func TestStalledReaders(t *testing.T) {
	if !inChild(t, nil) { // with files and memory of its own
		return
	}
	var files unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &files)
	files.Cur = files.Max
	unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
	stalled := 500
	if soak { // each takes four files here; the benchmark has 9,000, in processes of their own
		stalled = min(9000, (int(files.Max)-1000)/4)
	}
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		flood := serveEach(t, func(c *net.TCPConn) {
			c.SetWriteBuffer(16 * kib)
			for {
				if _, err := c.Write(payload[:64*kib]); err != nil {
					return
				}
			}
		})
		bad, addr := start(t, proxy.Config{
			Cluster: cluster(t, holdfast.Config{Socket: holdfast.Socket{RecvBuf: 16 * kib}}, flood), Limits: serve.Limits{MaxConns: -1},
			Socket: serve.Socket{SendBuf: 16 * kib},
		}, front)
		_, good := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, echo))}, front)
		served := func() time.Duration { // the slowest of many
			var worst time.Duration
			for range 100 {
				begin := time.Now()
				c := dial(t, good)
				if err := ask(c, "quick"); err != nil {
					t.Error(err)
				}
				c.Close()
				worst = max(worst, time.Since(begin))
			}
			return worst
		}
		served()
		fds := func() int {
			all, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		heap := func() int64 {
			var m runtime.MemStats
			debug.FreeOSMemory()
			runtime.ReadMemStats(&m)
			return int64(m.HeapInuse + m.StackInuse)
		}
		filesBefore, before := fds(), heap()
		var conns []net.Conn
		var d net.Dialer
		for range stalled {
			c, err := d.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			c.(*net.TCPConn).SetReadBuffer(4 * kib)
			conns = append(conns, c)
		}
		var last atomic.Uint64
		eventually(t, "nothing moves any more", func() bool {
			now := bad.Stats().FromBackends
			still := bad.Stats().Open == stalled && last.Swap(now) == now
			time.Sleep(50 * time.Millisecond)
			return still
		})
		// Of a connection here are both its ends, the proxy's two, and the goroutines of the
		// test; 48 KiB are for all of those.
		if each := (heap() - before) / int64(stalled); each > 80*kib {
			t.Errorf("%d bytes for each that is stalled", each)
		} else {
			t.Logf("%d bytes for each", each)
		}
		if n := fds() - filesBefore - 4*stalled; n > 2*128+16 {
			t.Errorf("%d files besides four for each", n)
		}
		if d := served(); d > 2*time.Second {
			t.Errorf("the others are served within %v", d)
		}
		for _, c := range conns {
			c.Close()
		}
		eventually(t, "all have gone", func() bool { return bad.Stats().Open == 0 })
	})
}

// Of who does not read the kernel keeps a megabyte: not as much as a socket may grow to, of
// which a slow reader would have to take so much, before it seems to take anything, that it
// is given up.
func TestWhoDoesNotReadIsSentLittle(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		release := make(chan struct{})
		p, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, serveEach(t, func(c *net.TCPConn) {
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write(payload)
			<-release
		}))}, front)
		defer close(release)
		c := dial(t, addr)
		c.SetWriteDeadline(time.Now().Add(time.Second))
		c.Write(payload)
		s := p.Stats()
		if s.FromClients == 0 || s.FromClients > 2*mib || s.FromBackends == 0 || s.FromBackends > 2*mib {
			t.Errorf("%d bytes were sent to the backend, %d to the client", s.FromClients, s.FromBackends)
		}
	})
}
