package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/holdfast-net/holdfast/internal/hist"
	"golang.org/x/sys/unix"
)

// task is what a client process is asked for, in a line of JSON.
type task struct {
	Kind  string        `json:"kind"`
	Addr  string        `json:"addr"`
	Conns int           `json:"conns,omitempty"`
	Size  int           `json:"size,omitempty"` // of a message
	Rate  float64       `json:"rate,omitempty"` // messages per second, sent when they are due; 0 is as fast as answers come
	Warm  time.Duration `json:"warm"`
	For   time.Duration `json:"for"`
	Pids  []int         `json:"pids,omitempty"` // whose CPU time is wanted
	Bytes int           `json:"bytes,omitempty"`
}

// result is the answer, of what happened in the time after Warm.
type result struct {
	Units  float64         `json:"units"` // messages, connections, bytes
	Wall   time.Duration   `json:"wall"`
	CPU    time.Duration   `json:"cpu"` // of the proxy
	P50    time.Duration   `json:"p50"`
	P99    time.Duration   `json:"p99"`
	P999   time.Duration   `json:"p999"`
	Max    time.Duration   `json:"max"`
	Errors int             `json:"errors"`
	Anew   int             `json:"anew,omitempty"` // sessions of datagrams that went on from another port
	First  string          `json:"first_error,omitempty"`
	Each   []time.Duration `json:"each,omitempty"` // the longest of each connection
	Err    string          `json:"err,omitempty"`  // it could not be measured
}

func (r result) rate() float64    { return r.Units / r.Wall.Seconds() }
func (r result) perUnit() float64 { return float64(r.CPU) / r.Units }

func (r *result) fail(err error) {
	if r.Errors == 0 {
		r.First = err.Error()
	}
	r.Errors++
}

func (r *result) take(h *hist.Histogram) {
	s := h.Snapshot()
	r.P50, r.P99, r.P999, r.Max = s.Quantile(0.5), s.Quantile(0.99), s.Quantile(0.999), s.Max
}

// beLoad does tasks until its standard input ends.
func beLoad() error {
	sharpTimers()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	fmt.Println("ready")
	holder := &holder{}
	for {
		var t task
		if err := in.Decode(&t); err != nil {
			return nil
		}
		var r result
		var err error
		switch t.Kind {
		case "echo":
			err = echoLoad(t, &r)
		case "udp":
			err = udpLoad(t, &r)
		case "up", "down":
			err = bulkLoad(t, &r)
		case "churn":
			err = churnLoad(t, &r)
		case "tls", "tls resumed":
			err = tlsLoad(t, &r)
		case "tls down":
			err = tlsBulk(t, &r)
		case "hold", "use", "stall":
			err = holder.hold(t, &r)
		case "release":
			holder.release()
		default:
			err = errors.New("an unknown task " + t.Kind)
		}
		if err != nil {
			r.Err = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
}

// rawAddr is where raw sockets connect to.
func rawAddr(addr string) (*unix.SockaddrInet4, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
}

// rawDial begins to connect. The close of such a socket is a reset: no port lies in
// TIME_WAIT. The sources are many, so that the ports of one do not run out.
func rawDial(to *unix.SockaddrInet4, nth int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + nth%32)}})
	if err == nil {
		if err = unix.Connect(fd, to); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// dialAll makes so many connections, 64 at a time.
func dialAll(addr string, n int) (fds []int, err error) {
	to, err := rawAddr(addr)
	if err != nil {
		return nil, err
	}
	for i := 0; i < n && err == nil; {
		batch := min(64, n-i)
		var wait []unix.PollFd
		for range batch {
			fd, e := rawDial(to, i)
			if e != nil {
				closeAll(fds)
				return nil, e
			}
			i++
			fds = append(fds, fd)
			wait = append(wait, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		}
		for j := range wait {
			if n, e := unix.Poll(wait[j:j+1], 5000); e != nil && e != unix.EINTR || n == 0 && e == nil {
				err = fmt.Errorf("connection %d: not connected in 5 s: %v", len(fds), e)
			}
			if e, _ := unix.GetsockoptInt(int(wait[j].Fd), unix.SOL_SOCKET, unix.SO_ERROR); e != 0 {
				err = unix.Errno(e)
			}
		}
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// echoer is one connection of an echo load.
type echoer struct {
	fd      int
	seq     uint64
	got     int
	busy    bool
	sent    time.Time   // or when it was due
	due     []time.Time // messages that wait until the connection is free
	longest time.Duration
}

// echoLoop sends messages and compares what comes back.
type echoLoop struct {
	*poller
	*window
	conns []echoer
	msg   []byte // all are alike but for the first 13 bytes
	buf   []byte
}

func echoLoad(t task, r *result) error {
	fds, err := dialAll(t.Addr, t.Conns)
	if err != nil {
		return err
	}
	defer closeAll(fds)
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	l := &echoLoop{poller: p, window: newWindow(t, r), msg: bytes.Clone(pattern[1 : 1+t.Size]), buf: make([]byte, 64<<10)}
	l.conns = make([]echoer, t.Conns)
	for i, fd := range fds {
		l.conns[i].fd = fd
		l.add(fd, unix.EPOLLIN, int32(i))
	}
	l.run()
	for i := range l.conns {
		r.Each = append(r.Each, l.conns[i].longest)
	}
	if len(r.Each) > 200 {
		r.Each = nil
	}
	return nil
}

func (l *echoLoop) run() {
	now := time.Now()
	for i := range l.conns {
		if l.Rate == 0 {
			l.send(i, now)
		}
	}
	l.window.run(now, l.poller, l.read, func(nth int, due time.Time) {
		i := nth % len(l.conns)
		if c := &l.conns[i]; c.busy {
			c.due = append(c.due, due)
		} else if c.fd >= 0 {
			l.send(i, due)
		}
	}, l.outstanding)
}

func (l *echoLoop) outstanding() (n int) {
	for i := range l.conns {
		if l.conns[i].busy {
			n++
		}
	}
	return n
}

// address puts in the message whose it is.
func (l *echoLoop) address(i int) {
	l.msg[0] = modeEcho
	binary.LittleEndian.PutUint64(l.msg[1:], l.conns[i].seq)
	binary.LittleEndian.PutUint32(l.msg[9:], uint32(i))
}

func (l *echoLoop) send(i int, due time.Time) {
	c := &l.conns[i]
	c.seq++
	c.got, c.busy, c.sent = 0, true, due
	l.address(i)
	if n, e := rawWrite(c.fd, l.msg); e != 0 || n < len(l.msg) {
		l.lose(c, fmt.Errorf("write: %d bytes, %v", n, e))
	}
}

// lose gives a connection up.
func (l *echoLoop) lose(c *echoer, err error) {
	l.fail(err)
	c.busy, c.due = false, nil
	unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, c.fd, nil)
	c.fd = -1
}

func (l *echoLoop) read(i int) {
	c := &l.conns[i]
	n, e := rawRead(c.fd, l.buf)
	switch {
	case e == unix.EAGAIN:
		return
	case e != 0 || n == 0:
		l.lose(c, fmt.Errorf("read: %d bytes, %v", n, e))
		return
	}
	l.address(i)
	if !c.busy || c.got+n > len(l.msg) || !bytes.Equal(l.buf[:n], l.msg[c.got:c.got+n]) {
		l.lose(c, errors.New("wrong bytes"))
		return
	}
	if c.got += n; c.got < len(l.msg) {
		return
	}
	now := time.Now()
	took := now.Sub(c.sent)
	l.count(1, took)
	if l.in {
		c.longest = max(c.longest, took)
	}
	c.busy = false
	switch {
	case l.stop:
	case l.Rate == 0:
		l.send(i, now)
	case len(c.due) > 0:
		due := c.due[0]
		c.due = c.due[1:]
		l.send(i, due)
	}
}

// bulkLoad reads floods, or feeds sinks. What a sink has counted must be what was sent.
func bulkLoad(t task, r *result) error {
	fds, err := dialAll(t.Addr, t.Conns)
	if err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	events, step := uint32(unix.EPOLLOUT), feed
	if t.Kind == "down" {
		events, step = unix.EPOLLIN, drain
	}
	totals := make([]uint64, len(fds))
	for i, fd := range fds {
		if t.Kind == "down" {
			rawWrite(fd, []byte{modeFlood})
		}
		p.add(fd, events, int32(i))
	}
	w := newWindow(t, r)
	buf := make([]byte, 256<<10)
	for now := time.Now(); !w.over(now); now = time.Now() {
		for _, ev := range p.wait(w.left(now)) {
			i := ev.Fd
			n, err := step(fds[i], buf, totals[i])
			if err != nil {
				r.fail(err)
				unix.EpollCtl(p.ep, unix.EPOLL_CTL_DEL, fds[i], nil)
				continue
			}
			totals[i] += uint64(n)
			w.count(float64(n), 0)
		}
	}
	for i, fd := range fds {
		if t.Kind == "up" && r.Errors == 0 {
			if err := sinkHasAll(fd, totals[i]); err != nil {
				r.fail(err)
			}
		}
		unix.Close(fd)
	}
	return nil
}

func feed(fd int, _ []byte, off uint64) (int, error) {
	n, e := rawWrite(fd, pattern[off%period:][:period])
	if e == unix.EAGAIN {
		return 0, nil
	}
	if e != 0 {
		return 0, e
	}
	return n, nil
}

func drain(fd int, buf []byte, off uint64) (int, error) {
	n, e := rawRead(fd, buf)
	switch {
	case e == unix.EAGAIN:
		return 0, nil
	case e != 0:
		return 0, e
	case n == 0:
		return 0, errors.New("the end of a stream that has none")
	case !rightAt(buf[:n], off):
		return 0, errors.New("wrong bytes")
	}
	return n, nil
}

func sinkHasAll(fd int, sent uint64) error {
	unix.Shutdown(fd, unix.SHUT_WR)
	unix.SetNonblock(fd, false)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	var b [8]byte
	if n, err := unix.Read(fd, b[:]); n != 8 {
		return fmt.Errorf("no report of the sink: %d bytes, %v", n, err)
	}
	if got := binary.LittleEndian.Uint64(b[:]); got != sent {
		return fmt.Errorf("%d bytes sent, %d arrived", sent, int64(got))
	}
	return nil
}

// visitor is one connection of a churn load, from connect to the answer.
type visitor struct {
	fd    int
	since time.Time
	sent  bool
}

// churnLoad connects, has one message echoed, and closes, over and over.
func churnLoad(t task, r *result) error {
	to, err := rawAddr(t.Addr)
	if err != nil {
		return err
	}
	p, err := newPoller()
	if err != nil {
		return err
	}
	defer p.close()
	w := newWindow(t, r)
	all := make([]visitor, t.Conns)
	msg := bytes.Clone(pattern[:t.Size])
	msg[0] = modeEcho
	buf := make([]byte, 4096)
	nth := 0
	open := func(v *visitor, i int) {
		nth++
		fd, err := rawDial(to, nth)
		if err != nil {
			r.fail(err)
			v.fd = -1
			return
		}
		*v = visitor{fd: fd, since: time.Now()}
		p.add(fd, unix.EPOLLOUT, int32(i))
	}
	var interval time.Duration
	if t.Rate > 0 {
		interval = time.Duration(1e9 / t.Rate)
	}
	next := time.Now()
	for i := range all {
		all[i].fd = -1
	}
	for now := next; !w.over(now); now = time.Now() {
		wait := min(w.left(now), time.Second)
		for i := range all {
			if all[i].fd < 0 {
				if now.Before(next) {
					wait = min(wait, next.Sub(now))
					continue
				}
				next = next.Add(interval)
				open(&all[i], i)
			} else if now.Sub(all[i].since) > 2*time.Second {
				r.fail(errors.New("no answer within 2 s"))
				unix.Close(all[i].fd)
				open(&all[i], i)
			}
		}
		for _, ev := range p.wait(wait) {
			v := &all[ev.Fd]
			if !v.sent && ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) == 0 {
				v.sent = true
				if n, e := rawWrite(v.fd, msg); e != 0 || n < len(msg) {
					r.fail(fmt.Errorf("write: %v", e))
				}
				p.change(v.fd, unix.EPOLLIN, ev.Fd)
				continue
			}
			n, e := rawRead(v.fd, buf)
			if e != 0 || !bytes.Equal(buf[:n], msg) {
				r.fail(fmt.Errorf("read: %d bytes, %v, sent %v", n, e, v.sent))
			}
			unix.Close(v.fd)
			w.count(1, time.Since(v.since))
			if v.fd = -1; interval == 0 {
				open(v, int(ev.Fd))
			}
		}
	}
	for i := range all {
		if all[i].fd >= 0 {
			unix.Close(all[i].fd)
		}
	}
	return nil
}

// holder keeps connections.
type holder struct{ fds []int }

// hold makes connections and keeps them, or uses those there are. It exchanges so many
// bytes on each; "stall" asks for a flood instead, and reads nothing.
func (h *holder) hold(t task, r *result) error {
	if t.Kind != "use" {
		fds, err := dialAll(t.Addr, t.Conns)
		if err != nil {
			return err
		}
		h.fds = append(h.fds, fds...)
	}
	for i, fd := range h.fds {
		var err error
		if t.Kind == "stall" {
			_, err = unix.Write(fd, []byte{modeFlood})
		} else {
			err = exchangeOn(fd, t.Bytes)
		}
		if err != nil {
			r.fail(fmt.Errorf("connection %d: %w", i, err))
		}
	}
	r.Units = float64(len(h.fds))
	return nil
}

func (h *holder) release() {
	closeAll(h.fds)
	h.fds = nil
}

// exchangeOn has so many bytes echoed.
func exchangeOn(fd, size int) error {
	out := append([]byte{modeEcho}, pattern[1:size]...)
	in := make([]byte, 64<<10)
	for wrote, got := 0, 0; got < size; {
		wait := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if wrote < size {
			wait[0].Events |= unix.POLLOUT
		}
		if n, err := unix.Poll(wait, 5000); err == unix.EINTR {
			continue
		} else if err != nil || n == 0 {
			return fmt.Errorf("%d of %d bytes came back: %v", got, size, err)
		}
		if wait[0].Revents&unix.POLLOUT != 0 && wrote < size {
			n, e := rawWrite(fd, out[wrote:])
			if e != 0 && e != unix.EAGAIN {
				return e
			}
			wrote += max(n, 0) // it is −1 if there is no room
		}
		if wait[0].Revents&unix.POLLOUT == 0 || wait[0].Revents&unix.POLLIN != 0 {
			n, e := rawRead(fd, in)
			switch {
			case e == unix.EAGAIN:
			case e != 0 || n == 0:
				return fmt.Errorf("%d of %d bytes came back: %v", got, size, net.ErrClosed)
			case !bytes.Equal(in[:n], out[got:got+n]):
				return errors.New("wrong bytes")
			default:
				got += n
			}
		}
	}
	return nil
}
