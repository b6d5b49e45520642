package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/jackc/puddle/v2"
)

// clientRows are the comparisons of the client.
func clientRows() []row {
	return []row{
		{name: "pool: checkout, liveness, checkin", peer: "puddle acquire, release", n: 200_000, bar: 2.0, zeroAllocs: true,
			start: poolRow(time.Nanosecond)},
		{name: "pool: the same as shipped, hot", peer: "puddle acquire, release", n: 200_000, bar: 1.0, zeroAllocs: true,
			start: poolRow(0)},
		{name: "pool: checkout, checkin", peer: "puddle acquire, release", n: 200_000, bar: 1.0, zeroAllocs: true,
			start: poolRow(-1)},
		{name: "pick among 16 nodes", n: 1_000_000, limit: 150 * time.Nanosecond, zeroAllocs: true, start: pickRow},
		{name: "dial: DialContext", peer: "net.Dialer, 5 s limit", n: 1_000, bar: 1.10, start: dialRow},
		{name: "dial past a refusing node", peer: "two dials, one refused", n: 500, bar: 1.50, start: refusedRow},
		{name: "dial past a black hole", peer: "net.Dialer, 1 s limit", n: 1, limit: 300 * time.Millisecond, start: blackHoleRow},
	}
}

// sink accepts connections and reads them to their end.
func sink() (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	return ln, nil
}

// poolRow compares a checkout of a real connection with puddle's of anything.
func poolRow(checkIdle time.Duration) func() (side, side, func(), error) {
	return func() (side, side, func(), error) {
		ln, err := sink()
		if err != nil {
			return nil, nil, nil, err
		}
		ctx := context.Background()
		c, err := holdfast.New(holdfast.Static(ln.Addr().String()), holdfast.Config{Pool: holdfast.Pool{CheckIdle: checkIdle}})
		if err != nil {
			return nil, nil, nil, err
		}
		p, err := puddle.NewPool(&puddle.Config[int]{
			Constructor: func(context.Context) (int, error) { return 1, nil }, Destructor: func(int) {}, MaxSize: 8})
		if err != nil {
			return nil, nil, nil, err
		}
		ours := func(n int) (failed int) {
			for range n {
				conn, err := c.Acquire(ctx)
				if err != nil {
					failed++
					continue
				}
				conn.Release()
			}
			return failed
		}
		peer := func(n int) (failed int) {
			for range n {
				r, err := p.Acquire(ctx)
				if err != nil {
					failed++
					continue
				}
				r.Release()
			}
			return failed
		}
		return ours, peer, func() { c.Close(); p.Close(); ln.Close() }, nil
	}
}

func pickRow() (side, side, func(), error) {
	var addrs []string
	for i := range 16 {
		addrs = append(addrs, fmt.Sprintf("127.0.0.1:%d", 20000+i))
	}
	c, err := holdfast.New(holdfast.Static(addrs...), holdfast.Config{})
	if err != nil {
		return nil, nil, nil, err
	}
	ours := func(n int) (failed int) {
		for range n {
			lease, err := c.Pick(0, nil)
			if err != nil {
				failed++
				continue
			}
			lease.Done()
		}
		return failed
	}
	return ours, nil, func() { c.Close() }, nil
}

func dialer(dial func() (net.Conn, error)) side {
	return func(n int) (failed int) {
		for range n {
			conn, err := dial()
			if err != nil {
				failed++
				continue
			}
			conn.(interface{ SetLinger(int) error }).SetLinger(0)
			conn.Close()
		}
		return failed
	}
}

// lingerless lets both sides close with a RST, so that no port lies in TIME_WAIT.
type lingerless struct{ *holdfast.Conn }

func (l lingerless) SetLinger(s int) error {
	tcp, ok := l.NetConn().(*net.TCPConn)
	if !ok {
		return errors.New("no TCP connection")
	}
	return tcp.SetLinger(s)
}

func throughCluster(ctx context.Context, c *holdfast.Cluster) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		conn, err := c.DialContext(ctx, "tcp", "cluster")
		if err != nil {
			return nil, err
		}
		return lingerless{conn.(*holdfast.Conn)}, nil
	}
}

func dialRow() (side, side, func(), error) {
	ln, err := sink()
	if err != nil {
		return nil, nil, nil, err
	}
	ctx := context.Background()
	c, err := holdfast.New(holdfast.Static(ln.Addr().String()), holdfast.Config{})
	if err != nil {
		return nil, nil, nil, err
	}
	d := net.Dialer{Timeout: 5 * time.Second} // as bounded as ours, which costs net a goroutine too
	peer := dialer(func() (net.Conn, error) { return d.DialContext(ctx, "tcp", ln.Addr().String()) })
	return dialer(throughCluster(ctx, c)), peer, func() { c.Close(); ln.Close() }, nil
}

// refusedRow dials a set whose first node refuses. The peer does by hand the least
// that must happen: the refused dial and the good one.
func refusedRow() (side, side, func(), error) {
	ln, err := sink()
	if err != nil {
		return nil, nil, nil, err
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, nil, err
	}
	gone.Close()
	ctx := context.Background()
	cfg := holdfast.Config{Picker: holdfast.Ordered(), Outlier: holdfast.Outlier{Consecutive: -1}}
	c, err := holdfast.New(holdfast.Static(gone.Addr().String(), ln.Addr().String()), cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	through := throughCluster(ctx, c)
	ours := dialer(func() (net.Conn, error) {
		c.ResetBackoff() // else the refusing node would be left out
		return through()
	})
	d := net.Dialer{Timeout: 5 * time.Second}
	peer := dialer(func() (net.Conn, error) {
		if conn, err := d.DialContext(ctx, "tcp", gone.Addr().String()); err == nil {
			return conn, nil
		}
		return d.DialContext(ctx, "tcp", ln.Addr().String())
	})
	return ours, peer, func() { c.Close(); ln.Close() }, nil
}

// blackHoleRow dials a set whose first node answers no SYN: a listener whose
// accept queue is full. net.Dialer is given that node alone, as it has no other.
func blackHoleRow() (side, side, func(), error) {
	ln, err := sink()
	if err != nil {
		return nil, nil, nil, err
	}
	hole, fill, err := blackHole()
	if err != nil {
		return nil, nil, nil, err
	}
	ctx := context.Background()
	c, err := holdfast.New(holdfast.Static(hole, ln.Addr().String()), holdfast.Config{Picker: holdfast.Ordered()})
	if err != nil {
		return nil, nil, nil, err
	}
	through := throughCluster(ctx, c)
	ours := dialer(func() (net.Conn, error) {
		c.ResetBackoff()
		return through()
	})
	d := net.Dialer{Timeout: time.Second}
	peer := dialer(func() (net.Conn, error) { return d.DialContext(ctx, "tcp", hole) })
	return ours, peer, func() { c.Close(); ln.Close(); fill() }, nil
}

// blackHole is an address whose SYNs are dropped: nobody accepts and the queue is
// full.
func blackHole() (addr string, end func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		return "", nil, err
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		return "", nil, err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	var held []net.Conn
	for {
		conn, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			break
		}
		held = append(held, conn)
	}
	return addr, func() {
		for _, conn := range held {
			conn.Close()
		}
		syscall.Close(fd)
	}, nil
}
