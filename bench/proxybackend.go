package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The backend of the proxy benchmarks and their clients are event loops on raw sockets:
// they share a CPU, and what they cost is taken from what the proxy can be given.

// A connection is what its first byte says: an echo, a sink that tells at the end how
// many bytes came, or a flood of bytes.
const (
	modeEcho  = 'E'
	modeSink  = 'S'
	modeFlood = 'F'
)

// pattern is what streams consist of, over and over; twice, so that a whole period
// begins anywhere in it. Whoever reads can see by the position whether bytes are missing.
const period = 128 << 10

var pattern = func() []byte {
	b := make([]byte, 2*period)
	r := rand.NewChaCha8([32]byte{})
	r.Read(b[:period])
	b[0] = modeSink
	copy(b[period:], b[:period])
	return b
}()

// rightAt looks at both ends of what was read at a position of a stream.
func rightAt(p []byte, off uint64) bool {
	k := min(len(p), 8)
	last := off + uint64(len(p)-k)
	return bytes.Equal(p[:k], pattern[off%period:][:k]) && bytes.Equal(p[len(p)-k:], pattern[last%period:][:k])
}

// poller is epoll with nanoseconds.
type poller struct {
	ep     int
	events [512]unix.EpollEvent
}

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &poller{ep: ep}, err
}

func (p *poller) add(fd int, events uint32, tag int32) {
	unix.EpollCtl(p.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: tag})
}

func (p *poller) change(fd int, events uint32, tag int32) {
	unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: tag})
}

// wait returns what is ready, within d. It asks without the runtime's help first.
func (p *poller) wait(d time.Duration) []unix.EpollEvent {
	ev := unsafe.Pointer(&p.events)
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.ep), uintptr(ev), uintptr(len(p.events)), 0, 0, 0)
	if e == 0 && n > 0 {
		return p.events[:n]
	}
	if d <= 0 {
		return nil
	}
	ts := unix.NsecToTimespec(int64(d))
	n, _, e = unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.ep), uintptr(ev), uintptr(len(p.events)), uintptr(unsafe.Pointer(&ts)), 0, 0)
	if e != 0 {
		return nil
	}
	return p.events[:n]
}

func (p *poller) close() { unix.Close(p.ep) }

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), e
}

func rawWrite(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), e
}

// sharpTimers lets this thread wake when it asked to, not up to 50 µs later.
func sharpTimers() {
	runtime.LockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
}

// served is a connection of the backend.
type served struct {
	mode  byte
	open  bool
	wrong bool
	pend  []byte // of an echo
	total uint64
}

type backendLoop struct {
	*poller
	ln    int
	conns []served // by descriptor
	buf   []byte
}

// beBackend serves until its standard input ends.
func beBackend() error {
	sharpTimers()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	f, err := ln.File()
	if err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	echo, packets, err := newPacketEcho(ln.Addr())
	if err != nil {
		return err
	}
	p.add(packets, unix.EPOLLIN, int32(packets))
	b := &backendLoop{poller: p, ln: int(f.Fd()), buf: make([]byte, 256<<10)}
	unix.SetNonblock(b.ln, true)
	p.add(b.ln, unix.EPOLLIN, int32(b.ln))
	fmt.Println(ln.Addr())
	exitWithStdin()
	defer runtime.KeepAlive(f) // the collector would close it
	for {
		for _, ev := range p.wait(time.Hour) {
			switch int(ev.Fd) {
			case b.ln:
				b.accept()
			case packets:
				echo.turn()
			default:
				b.handle(int(ev.Fd), ev.Events)
			}
		}
	}
}

func (b *backendLoop) accept() {
	for range 64 {
		fd, _, err := unix.Accept4(b.ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		for fd >= len(b.conns) {
			b.conns = append(b.conns, served{})
		}
		b.conns[fd] = served{open: true}
		b.add(fd, unix.EPOLLIN, int32(fd))
	}
}

func (b *backendLoop) handle(fd int, events uint32) {
	c := &b.conns[fd]
	if c.open && events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		b.read(fd, c)
	}
	if c.open && events&unix.EPOLLOUT != 0 {
		b.write(fd, c)
	}
}

func (b *backendLoop) end(fd int, c *served) {
	*c = served{}
	unix.Close(fd)
}

func (b *backendLoop) read(fd int, c *served) {
	n, e := rawRead(fd, b.buf)
	switch {
	case e == unix.EAGAIN:
		return
	case e != 0:
		b.end(fd, c)
		return
	case n == 0:
		if c.mode == modeSink {
			rawWrite(fd, sinkReport(c.total, c.wrong))
		}
		b.end(fd, c)
		return
	case c.mode == 0:
		if c.mode = b.buf[0]; c.mode == modeFlood {
			b.change(fd, unix.EPOLLIN|unix.EPOLLOUT, int32(fd))
		}
	}
	switch c.mode {
	case modeEcho:
		m, e := rawWrite(fd, b.buf[:n])
		if e != 0 {
			m = 0
		}
		if m < n { // nothing more is read until it is gone
			c.pend = append([]byte(nil), b.buf[m:n]...)
			b.change(fd, unix.EPOLLOUT, int32(fd))
		}
	case modeSink:
		c.wrong = c.wrong || !rightAt(b.buf[:n], c.total)
		c.total += uint64(n)
	}
}

func (b *backendLoop) write(fd int, c *served) {
	out := c.pend
	if c.mode == modeFlood {
		out = pattern[c.total%period:][:period]
	}
	n, e := rawWrite(fd, out)
	switch {
	case e == unix.EAGAIN:
		return
	case e != 0:
		b.end(fd, c)
		return
	}
	c.total += uint64(n)
	if c.mode != modeFlood {
		if c.pend = c.pend[n:]; len(c.pend) == 0 {
			c.pend = nil
			b.change(fd, unix.EPOLLIN, int32(fd))
		}
	}
}

// sinkReport is what a sink says at the end.
func sinkReport(total uint64, wrong bool) []byte {
	if wrong {
		total = ^uint64(0)
	}
	return binary.LittleEndian.AppendUint64(nil, total)
}
