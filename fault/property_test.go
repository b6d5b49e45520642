package fault_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-net/holdfast/fault"
)

// Whatever the plans, and however they follow each other: what arrives is a beginning of
// what was sent, and all of it if no plan has ended the stream and the last one is clean.
func FuzzWhatArrivesIsABeginning(f *testing.F) {
	for seed := range uint64(150) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { storm(t, rand.New(rand.NewPCG(seed, 0))) })
	})
}

// storm sends a stream each way while plans change, and ends by closing or healing.
func storm(t *testing.T, rng *rand.Rand) {
	final := rng.IntN(2) == 0 // plans may end the stream
	faults := fault.New(randomPlan(rng, final))
	defer faults.Close()
	a, peer := net.Pipe()
	if rng.IntN(2) == 0 {
		two := fault.New(fault.Plan{Down: fault.Link{Buffer: 100, Slice: 50}}) // a socket's buffer, more or less
		defer two.Close()
		peer = two.Conn(peer)
	}
	c := faults.Conn(a)
	up, down := send(c, 1+rng.IntN(5000), rng.Uint64()), send(peer, 1+rng.IntN(5000), rng.Uint64())
	atPeer, here := receive(t, "up", peer, up), receive(t, "down", c, down)

	for range rng.IntN(8) {
		time.Sleep(time.Duration(rng.IntN(200)) * ms)
		faults.Set(randomPlan(rng, final))
	}
	time.Sleep(time.Duration(rng.IntN(1000)) * ms)
	if rng.IntN(3) == 0 {
		c.Close()
		time.Sleep(time.Hour)
		peer.Close()
		<-atPeer
		<-here
		return
	}
	faults.Set(fault.Plan{})
	time.Sleep(time.Second)
	synctest.Wait()
	sent := up.n + down.n
	if !final {
		c.SetDeadline(time.Now())
	} else {
		faults.Cut()
	}
	if got := <-here; !final && got != down.n {
		t.Errorf("down: %d of %d bytes arrived", got, down.n)
	}
	peer.SetDeadline(time.Now())
	if got := <-atPeer; !final && got != up.n {
		t.Errorf("up: %d of %d bytes arrived", got, up.n)
	}
	if got := faults.Stats(); got.Up+got.Down > int64(sent) || !final && got.Up+got.Down != int64(sent) {
		t.Errorf("%d bytes were sent, stats %+v", sent, got)
	}
}

func randomPlan(rng *rand.Rand, final bool) fault.Plan {
	return fault.Plan{Seed: rng.Uint64(), Up: randomLink(rng, final), Down: randomLink(rng, final)}
}

func randomLink(rng *rand.Rand, final bool) (l fault.Link) {
	some := func(n int) int {
		if rng.IntN(3) > 0 {
			return 0
		}
		return rng.IntN(n)
	}
	l.Latency, l.Jitter = time.Duration(some(100))*ms, time.Duration(some(100))*ms
	l.Bandwidth, l.Slice, l.Buffer = some(100_000), some(100), some(3000)-1
	l.After = int64(some(5000))
	ends := []fault.End{0, 0, fault.BlackHole}
	if final {
		ends = append(ends, fault.Cut, fault.Reset)
	}
	l.Then = ends[rng.IntN(len(ends))]
	return l
}

// A stream is n bytes that follow from a seed.
type stream struct {
	n    int
	seed uint64
}

func (s stream) bytes() []byte {
	rng, b := rand.New(rand.NewPCG(s.seed, 0)), make([]byte, s.n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func send(c io.Writer, n int, seed uint64) stream {
	s := stream{n, seed}
	go func() {
		rng := rand.New(rand.NewPCG(seed, 1))
		for b := s.bytes(); len(b) > 0; time.Sleep(time.Duration(rng.IntN(20)) * ms) {
			n := 1 + rng.IntN(min(len(b), 1000))
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
			b = b[n:]
		}
	}()
	return s
}

// receive checks what comes of a stream, and sends how much that was when it ends.
func receive(t *testing.T, way string, c io.Reader, s stream) <-chan int {
	done := make(chan int, 1)
	go func() {
		want, got, b := s.bytes(), 0, make([]byte, 300)
		for {
			n, err := c.Read(b)
			if got+n > s.n || string(b[:n]) != string(want[got:got+n]) {
				t.Errorf("%s: wrong bytes at %d", way, got)
			}
			got += n
			if err != nil {
				if !expected(err) {
					t.Errorf("%s: %v", way, err)
				}
				done <- got
				return
			}
		}
	}()
	return done
}

func expected(err error) bool {
	var timeout net.Error
	return err == io.EOF || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.ECONNRESET) || errors.As(err, &timeout) && timeout.Timeout()
}
