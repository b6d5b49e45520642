package proxy_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/proxy"
	"github.com/holdfast-net/holdfast/serve"
)

// sendRandom sends n bytes in pieces of sizes from next, ends its half, and returns their
// sum.
func sendRandom(c *net.TCPConn, seed byte, n int64, next func(*rand.Rand) int) (sum [32]byte, err error) {
	source := rand.NewChaCha8([32]byte{seed})
	r, h := rand.New(rand.NewPCG(uint64(seed), 1)), sha256.New()
	b := make([]byte, mib)
	for n > 0 {
		piece := b[:min(int64(next(r)), n, mib)]
		source.Read(piece)
		h.Write(piece)
		if _, err := c.Write(piece); err != nil {
			return sum, err
		}
		n -= int64(len(piece))
	}
	return [32]byte(h.Sum(nil)), c.CloseWrite()
}

// bothWays sends n bytes each way at once, and compares what was sent to what arrived.
func bothWays(t *testing.T, addr string, backs <-chan *net.TCPConn, n int64, limit time.Duration, next func(*rand.Rand) int, slow bool) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	ends := [2]*net.TCPConn{c.(*net.TCPConn), <-backs}
	defer ends[1].Close()
	var sent, got [2][32]byte
	var errs [4]error
	var wg sync.WaitGroup
	for i, end := range ends {
		end.SetDeadline(time.Now().Add(limit))
		wg.Go(func() { sent[i], errs[i] = sendRandom(end, byte(i+1), n, next) })
		wg.Go(func() {
			h := sha256.New()
			var r io.Reader = end
			if slow {
				r = &slowly{end, rand.New(rand.NewPCG(1, uint64(i)))}
			}
			_, errs[2+i] = io.Copy(h, r)
			got[1-i] = [32]byte(h.Sum(nil))
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if sent != got {
		t.Error("other bytes arrived than were sent")
	}
}

// slowly reads odd amounts, and rests now and then.
type slowly struct {
	io.Reader
	r *rand.Rand
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.r.IntN(50) == 0 {
		time.Sleep(2 * time.Millisecond)
	}
	return s.Reader.Read(p[:min(len(p), 1+s.r.IntN(1<<s.r.IntN(17)))])
}

// handedOver gives the connections of a backend to the test.
func handedOver(t *testing.T) (addr string, conns chan *net.TCPConn) {
	ln := listen(t)
	conns = make(chan *net.TCPConn, 16)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- c.(*net.TCPConn)
		}
	}()
	return ln.Addr().String(), conns
}

// It must show 6: what goes in comes out, whatever the network loses.
func TestIntegrityWithLoss(t *testing.T) {
	if !inNamespace(t, "nft") {
		return
	}
	size, limit := int64(32*mib), 50*time.Second
	if soak {
		size, limit = 52*mib, 20*time.Minute
	}
	run(t, "ip", "link", "set", "lo", "mtu", "9000") // many packets to lose
	run(t, "nft", "add table inet lossy; add chain inet lossy in { type filter hook input priority 0; }; "+
		"add rule inet lossy in meta l4proto tcp numgen random mod 100 < 5 counter drop")
	var wg sync.WaitGroup // both paths at once
	for _, front := range paths {
		back, conns := handedOver(t)
		_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, back)}, front)
		wg.Go(func() {
			bothWays(t, addr, conns, size, limit, func(r *rand.Rand) int { return 1 + r.IntN(256*kib) }, false)
		})
	}
	wg.Wait()
	out, err := exec.Command("nft", "list", "ruleset").Output()
	var lost int
	if _, after, ok := strings.Cut(string(out), "counter packets "); ok {
		fmt.Sscan(after, &lost)
	}
	if t.Logf("%d packets were lost", lost); lost < 100 {
		t.Errorf("%v: this proves nothing:\n%s", err, out)
	}
}

// Odd sizes, slow readers, small buffers, and what is big in between: through the buffer,
// the pipe and back.
func TestIntegrityOfMixedSizes(t *testing.T) {
	onBothPaths(t, func(t *testing.T, front func(net.Listener) net.Listener) {
		leak.Check(t)
		for name, sizes := range map[string]func(*rand.Rand) int{
			"odd":   func(r *rand.Rand) int { return 1 + r.IntN(5000) },
			"mixed": func(r *rand.Rand) int { return 1 + r.IntN(1<<r.IntN(21)) },
			"big":   func(r *rand.Rand) int { return mib },
		} {
			for _, slow := range []bool{false, true} {
				for _, buf := range []int{0, 16 * kib} {
					t.Run(fmt.Sprint(name, ", slow reader ", slow, ", send buffer ", buf), func(t *testing.T) {
						back, conns := handedOver(t)
						_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{Socket: holdfast.Socket{SendBuf: buf}}, back), Socket: serve.Socket{SendBuf: buf}}, front)
						bothWays(t, addr, conns, mib, patience, sizes, slow)
					})
				}
			}
		}
	})
}

// A direction that is big goes through a pipe, and gives it back when it is not any more.
func TestSpliceIsUsedAndLeft(t *testing.T) {
	leak.Check(t)
	back, conns := handedOver(t)
	_, addr := start(t, proxy.Config{Cluster: cluster(t, holdfast.Config{}, back), Loops: 1},
		func(ln net.Listener) net.Listener { return ln })
	pipes := func() (n int) {
		files, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
				n++
			}
		}
		return n
	}
	before := pipes()
	const n = 6
	var clients, backs []*net.TCPConn
	for range n {
		clients = append(clients, dial(t, addr))
		backs = append(backs, <-conns)
	}
	defer func() {
		for _, c := range backs {
			c.Close()
		}
	}()
	for round := range 2 {
		var wg sync.WaitGroup
		for _, b := range backs { // nobody reads yet: what is in the pipes stays there
			b.SetDeadline(time.Now().Add(patience))
			wg.Go(func() { b.Write(payload[:12*mib]) })
		}
		eventually(t, "directions have pipes", func() bool { return pipes() >= before+2 }) // some are stuck before that
		for _, c := range clients {
			wg.Go(func() {
				if _, err := io.CopyN(io.Discard, c, 12*mib); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i, c := range clients { // small things go on as before
			c.Write([]byte("small"))
			b := make([]byte, 5)
			if _, err := io.ReadFull(backs[i], b); err != nil || string(b) != "small" {
				t.Errorf("round %d: %q, %v", round, b, err)
			}
		}
		eventually(t, "all but a few pipes are closed", func() bool { return pipes() <= before+2*4 })
	}
	for _, c := range clients {
		c.Close()
	}
}
