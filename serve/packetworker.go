package serve

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/holdfast-net/holdfast/internal/mmsg"
)

var errDeadline = os.ErrDeadlineExceeded

// worker reads from a socket, handles and answers. All of it is its goroutine's own.
type worker struct {
	*lane
	conn  *mmsg.Conn
	leads bool // holds the turn

	in     []mmsg.Message
	out    []mmsg.Message
	text   []byte // of the messages in out
	begin  int    // of those of this packet in out
	mark   int    // and in text
	keep   bool   // the replies of this packet
	kept   [][]byte
	packet Packet
	now    time.Time // of the batch
	tally
}

func (l *lane) newWorker() *worker {
	s := l.s
	w := &worker{lane: l, conn: mmsg.New(l.pc, mmsg.Options{NoGSO: s.Socket.NoGSO, GRO: s.Socket.GRO})}
	w.in = make([]mmsg.Message, w.conn.Batch(cmp.Or(s.Batch, 64)))
	size := l.most + 1 // so that what is longer shows
	if s.Socket.GRO {
		size = 1 << 16
	}
	// Not a power of two apart, or the buffers would share few lines of the cache.
	stride := (size+63)&^63 + 64
	memory := make([]byte, stride*len(w.in))
	for i := range w.in {
		w.in[i].Buf = memory[i*stride:][:size:size]
	}
	w.out = make([]mmsg.Message, 0, maxReplies)
	w.text = make([]byte, 0, roomForReplies)
	return w
}

// maxReplies is how many leave at once.
const maxReplies = 128

// run returns why reading ended.
func (w *worker) run() error {
	defer w.report()
	pause := time.Duration(0)
	for {
		n, err := w.receive()
		switch {
		case err == nil:
			pause = 0
		case errors.Is(err, net.ErrClosed), errors.Is(err, errDeadline):
			return err
		default:
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			w.s.readFailed(err)
			if !w.s.sleep(pause) {
				return err
			}
			continue
		}
		w.now = time.Now()
		for i := range w.in[:n] {
			w.take(&w.in[i])
		}
		w.flush()
		w.report()
	}
}

// receive waits its turn, and keeps it while one worker is enough: while batches do not
// fill up.
func (w *worker) receive() (int, error) {
	if !w.leads {
		w.turn <- struct{}{}
		w.leads = true
	}
	n, err := w.conn.Receive(w.in)
	if err != nil || n == len(w.in) {
		w.leads = false
		<-w.turn
	}
	return n, err
}

// take handles what came as one: a datagram, or a run of them.
func (w *worker) take(m *mmsg.Message) {
	data := m.Buf[:m.N:m.N]
	if m.Segment <= 0 || m.Truncated {
		w.one(m, data)
		return
	}
	for len(data) > 0 {
		n := min(m.Segment, len(data))
		w.one(m, data[:n:n])
		data = data[n:]
	}
}

func (w *worker) one(m *mmsg.Message, data []byte) {
	w.received++
	w.receivedBytes += uint64(len(data))
	if why := w.refuses(m, len(data)); why != noDrop {
		w.dropped[why]++
		return
	}
	p := &w.packet
	*p = Packet{Data: data, From: m.Peer, Local: m.Local, Addr: m.Addr, w: w, m: m}
	if !p.Local.IsValid() && !w.self.Addr().IsUnspecified() {
		p.Local = w.self.Addr()
	}
	if a := w.s.limits.Amplification; a > 0 {
		p.allowed = int(a * float64(len(data)))
	}
	if w.s.Dedup > 0 && m.Peer.IsValid() {
		w.handleOnce(p)
	} else {
		w.handle(p)
	}
}

// handle calls the handler. Of what panicked, nothing is sent.
func (w *worker) handle(p *Packet) (ok bool) {
	w.begin, w.mark = len(w.out), len(w.text)
	defer func() {
		p.w = nil
		if v := recover(); v != nil {
			w.out, w.text = w.out[:w.begin], w.text[:w.mark]
			w.panicked(p, v)
		}
	}()
	if err := w.s.Handler(w.s.base, p); err != nil {
		w.errors++
		w.s.handlerFailed(p, err)
		return false
	}
	return true
}

func (w *worker) panicked(p *Packet, v any) {
	stack, err := debug.Stack(), fmt.Errorf("serve: panic: %v", v)
	w.panics++
	w.s.log.Error("serve: panic in a packet handler", "remote", p.remote(), "panic", clip(fmt.Sprint(v)), "stack", string(stack))
	w.s.event(Event{Kind: Panicked, Remote: p.remote(), Err: err, Stack: stack})
}

func (p *Packet) remote() net.Addr {
	if p.Addr != nil {
		return p.Addr
	}
	return net.UDPAddrFromAddrPort(p.From)
}

// queue keeps a reply until the batch is done, or no more fits.
func (w *worker) queue(p *Packet, b []byte) {
	if len(w.text)+len(b) > cap(w.text) || len(w.out) == cap(w.out) {
		w.flush()
	}
	at := len(w.text)
	w.text = append(w.text, b...)
	w.out = append(w.out, mmsg.Message{Buf: w.text[at:len(w.text):len(w.text)], Peer: p.m.Peer, Addr: p.m.Addr, Local: p.m.Local})
	if w.keep {
		w.kept = append(w.kept, slices.Clone(b))
	}
}

func (w *worker) flush() {
	if len(w.out) == 0 {
		return
	}
	w.sent += uint64(len(w.out))
	w.sentBytes += uint64(len(w.text))
	w.report() // first, so that who has a reply finds it counted
	failed, _ := w.conn.Send(w.out)
	w.sendErrors += uint64(failed)
	clear(w.out)
	w.out, w.text, w.begin, w.mark = w.out[:0], w.text[:0], 0, 0
}

// readFailed tells of an error of the socket, which is not the end of it.
func (s *Packets) readFailed(err error) {
	s.counts.readErrors.Add(1)
	if unlogged, now := s.failures.now(); now {
		s.log.Warn("serve: reading datagrams failed", "err", clip(err.Error()), "unlogged", unlogged)
		s.event(Event{Kind: ReadFailed, Err: err})
	}
}

func (s *Packets) handlerFailed(p *Packet, err error) {
	if errors.Is(err, ErrAmplification) {
		return // it is counted
	}
	if unlogged, now := s.failures.now(); now {
		s.log.Warn("serve: a datagram was not handled", "remote", p.remote(), "err", clip(err.Error()), "unlogged", unlogged)
	}
}

// sleep returns false when the server is closed.
func (s *Packets) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closed:
		return false
	}
}
