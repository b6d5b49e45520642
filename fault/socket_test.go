package fault_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/fault"
	"github.com/holdfast-net/holdfast/internal/leak"
)

const patience = 10 * time.Second // ceiling of what takes milliseconds

// overTCP returns a connection with faults and its peer, on real sockets.
func overTCP(t *testing.T, plan fault.Plan) (*fault.Injector, net.Conn, net.Conn) {
	t.Helper()
	leak.Check(t)
	c, s, err := tcp()
	if err != nil {
		t.Fatal(err)
	}
	faults := fault.New(plan)
	t.Cleanup(func() { faults.Close(); s.Close() })
	s.SetDeadline(time.Now().Add(patience))
	c = faults.Conn(c)
	c.SetDeadline(time.Now().Add(patience))
	return faults, c, s
}

// The peer gets exactly n bytes, and then what the kernel says of a RST.
func TestPeerSeesReset(t *testing.T) {
	for _, n := range []int64{0, 1, 1000, 100_000} {
		link := fault.Link{After: n, Then: fault.Reset}
		_, up, peer := overTCP(t, fault.Plan{Up: link})
		go up.Write(make([]byte, 1<<20))
		got, err := io.Copy(io.Discard, peer)
		if got > n || n < 10_000 && got != n || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("up: %d bytes arrived of %d, %v", got, n, err)
		}

		_, down, peer := overTCP(t, fault.Plan{Down: link})
		wrote := make(chan error, 1)
		go func() { _, err := peer.Write(make([]byte, 4<<20)); wrote <- err }()
		got, err = io.Copy(io.Discard, down)
		if got != n || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("down: %d bytes arrived of %d, %v", got, n, err)
		}
		_, err = io.Copy(io.Discard, peer)
		if err = errors.Join(err, <-wrote); !errors.Is(err, syscall.ECONNRESET) { // one of them is told
			t.Errorf("down: the peer got %v", err)
		}
	}
}

func TestPeerSeesFIN(t *testing.T) {
	faults, c, peer := overTCP(t, fault.Plan{Up: fault.Link{After: 100_000, Then: fault.Cut}})
	go c.Write(make([]byte, 1<<20))
	if n, err := io.Copy(io.Discard, peer); n != 100_000 || err != nil {
		t.Error(n, err)
	}
	peer.Write([]byte("still here"))
	b := make([]byte, 100)
	if n, err := c.Read(b); string(b[:n]) != "still here" {
		t.Error(n, err)
	}
	faults.Cut()
	if n, err := c.Read(b); err != io.EOF {
		t.Error(n, err)
	}
}

func TestPeerSeesNothing(t *testing.T) {
	faults, c, peer := overTCP(t, fault.Plan{Up: hole})
	c.Write([]byte("lost"))
	c.Close()
	peer.SetReadDeadline(time.Now().Add(20 * ms))
	if n, err := peer.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(n, err)
	}
	peer.SetReadDeadline(time.Now().Add(patience))
	faults.Set(fault.Plan{})
	if b, err := io.ReadAll(peer); string(b) != "lost" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// The fault is below TLS, where faults are: TLS itself does not notice a slow network.
func TestBelowTLS(t *testing.T) {
	link := fault.Link{Latency: ms, Slice: 500}
	faults, c, peer := overTCP(t, fault.Plan{Up: link, Down: link})
	server := tls.Server(peer, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
	client := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	go io.Copy(server, server)

	want := bytes.Repeat([]byte("holdfast"), 10_000)
	go client.Write(want)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, want) {
		t.Error(err)
	}
	faults.Set(fault.Plan{Down: fault.Link{Then: fault.Reset}})
	if _, err := client.Read(got); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// Above TLS, a reset still goes to the socket: there is no goodbye.
func TestResetGoesBelowTLS(t *testing.T) {
	_, c, peer := overTCP(t, fault.Plan{})
	faults := fault.New(fault.Plan{})
	defer faults.Close()
	server := tls.Server(peer, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
	client := faults.Conn(tls.Client(c, &tls.Config{InsecureSkipVerify: true}))
	go client.Write([]byte("hello"))
	if _, err := server.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	faults.Reset()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestUnixSocketAndDefaultDialer(t *testing.T) {
	leak.Check(t)
	faults := fault.New(fault.Plan{Down: fault.Link{Slice: 1}})
	defer faults.Close()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Skip(err)
	}
	ln = faults.Listener(ln)
	defer ln.Close()
	c, err := faults.Dial(nil)(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c.Write([]byte("ab"))
	closeWrite(c)
	if b, err := io.ReadAll(s); string(b) != "ab" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAliveOnSockets(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("nobody can look at a socket")
	}
	_, c, peer := overTCP(t, fault.Plan{})
	alive := c.(interface{ Alive() error }).Alive
	if err := alive(); err != nil {
		t.Error(err)
	}
	peer.Write([]byte("x"))
	until(t, func() bool { return alive() != nil && alive() != io.EOF })
	c.Read(make([]byte, 1))
	peer.Close()
	until(t, func() bool { return alive() == io.EOF })
}

// until waits for what another end causes.
func until(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

// A clean direction costs no goroutine.
func TestCleanIsDirect(t *testing.T) {
	before := runtime.NumGoroutine()
	_, c, peer := overTCP(t, fault.Plan{Up: fault.Link{Buffer: 10, After: 10}, Down: fault.Link{Latency: -1}})
	c.Write([]byte("x"))
	peer.Read(make([]byte, 1))
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	if c.(interface{ NetConn() net.Conn }).NetConn().LocalAddr() != c.LocalAddr() {
		t.Error("another connection")
	}
	allocs := testing.AllocsPerRun(100, func() { c.Write([]byte("x")) })
	if allocs > 1 {
		t.Errorf("%v allocations per Write", allocs)
	}
}

// Writes that a fault interrupts do not mix, no more than they did before.
func TestSetDoesNotMixWrites(t *testing.T) {
	const size = 500_000
	for range 10 {
		faults, c, peer := overTCP(t, fault.Plan{})
		socket := c.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn)
		socket.SetWriteBuffer(64 << 10)
		peer.(*net.TCPConn).SetReadBuffer(64 << 10)
		for _, letter := range []string{"a", "b", "c", "d"} {
			go c.Write(bytes.Repeat([]byte(letter), size))
		}
		all := make([]byte, 4*size)
		io.ReadFull(peer, all[:10])
		faults.Set(fault.Plan{Up: fault.Link{After: 4 * size, Then: fault.BlackHole}})
		if n, err := io.ReadFull(peer, all[10:]); err != nil {
			t.Fatal(n, err)
		}
		for one := range slices.Chunk(all, size) {
			if bytes.Trim(one, string(one[:1])) != nil {
				t.Fatal("mixed")
			}
		}
		c.Close()
	}
}

// Set, Cut and Close from all sides while bytes flow: for the race detector and leaks.
func TestEverythingAtOnce(t *testing.T) {
	leak.Check(t)
	for range 10 {
		faults := fault.New(fault.Plan{})
		done := make(chan bool)
		var conns int
		for range 5 {
			c, s, err := tcp()
			if err != nil {
				t.Fatal(err)
			}
			c = faults.Conn(c)
			for _, work := range []func(){
				func() { io.Copy(io.Discard, c) }, func() { io.Copy(s, s); s.Close() },
				func() { c.Write(make([]byte, 1<<20)); closeWrite(c) },
			} {
				conns++
				go func() { work(); done <- true }()
			}
			defer s.Close()
			defer c.Close()
		}
		for _, plan := range []fault.Plan{
			{Up: fault.Link{Latency: ms}}, {Down: hole}, {Up: hole}, {Down: fault.Link{Slice: 3000}},
			{Up: fault.Link{After: 100_000, Then: fault.Cut}}, {Up: fault.Link{Latency: -1}},
		} {
			conns++
			go func() { faults.Set(plan); done <- true }()
		}
		faults.Close()
		for range conns {
			<-done
		}
	}
}
