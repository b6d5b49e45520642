package proxy

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
)

// way is a session's socket towards its node: one that the hub watches, or a connection
// with a goroutine that reads it.
type way struct {
	fd      int32
	conn    *holdfast.Conn
	cancel  context.CancelFunc // the dial; nil if there is none under way
	waiting [][]byte           // datagrams, until it is dialed
}

func (w *way) isDialing() bool { return w.cancel != nil }

var noWay = way{fd: -1}

// maxWrite is for how long a node that was dialed may hold up all others, by taking
// nothing. Then it has failed.
const maxWrite = 100 * time.Millisecond

// maxWaiting is how many datagrams wait for a dial.
const maxWaiting = 16

// dial makes the way to a node that takes more than a connect.
func (h *hub) dial(s *session, lease holdfast.Lease) {
	h.number(s)
	ctx, cancel := context.WithCancel(h.p.base)
	s.way.cancel = cancel
	r := s.ref()
	h.tasks.Go(func() {
		defer cancel()
		conn, err := lease.Dial(ctx, nil)
		if !h.post(func() { h.dialed(r, conn, err) }) && conn != nil {
			conn.Close()
		}
	})
}

func (s *session) ref() ref { return ref{s.index, s.gen} }

func (h *hub) dialed(r ref, conn *holdfast.Conn, err error) {
	s := h.find(r)
	switch {
	case s == nil && conn != nil:
		conn.Close()
	case s == nil, err != nil && h.isCut():
	case err != nil: // which the Cluster knows
		waiting, old := s.way.waiting, s.place.node
		s.way.waiting = nil
		h.leave(s)
		if s.tries++; s.lane || s.tries >= maxRefusals || !h.settle(s, []*holdfast.Node{old}) {
			h.tally[dropNoBackend] += uint64(len(waiting))
			h.end(s, NoBackend)
			return
		}
		h.tally[rehomed]++
		h.sendAll(s, waiting)
	default:
		waiting := s.way.waiting
		s.way = way{fd: -1, conn: conn}
		h.tasks.Go(func() { h.readConn(r, conn) })
		if h.sendAll(s, waiting) {
			h.endOneWay(s)
		}
	}
}

// hangConn closes a way that was dialed, or is being.
func (h *hub) hangConn(s *session) {
	switch {
	case s.way.conn != nil:
		s.way.conn.Close()
	case s.way.isDialing():
		s.way.cancel()
		h.tally[dropUnsent] += uint64(len(s.way.waiting))
	default:
		return
	}
	s.way = noWay
	h.unnumber(s)
}

// sendAll sends what had to wait. Headers are there already. It is false if the session
// has ended with that.
func (h *hub) sendAll(s *session, waiting [][]byte) bool {
	header := s.header
	s.header = nil
	for _, data := range waiting {
		if !h.send(s, data) {
			return false
		}
	}
	s.header = header
	return true
}

// readConn has the hub pass on what comes from a node, until the way is closed.
func (h *hub) readConn(r ref, conn net.Conn) {
	// A Write that waits must not hold up the end.
	defer context.AfterFunc(h.p.base, func() { conn.Close() })()
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		over := true
		there := h.do(func() {
			s := h.find(r)
			switch {
			case s == nil:
			case asErrno(err) == syscall.EMSGSIZE: // see hearBack
				over = false
				h.tally[dropTooLong]++
			case err != nil:
				h.refused(s, err, nil)
			default:
				over = false
				room := h.take(1)
				copy(h.rooms[room], buf[:n])
				h.reply(s, room, n)
			}
		})
		if over || !there {
			return
		}
	}
}

// writeConn is write for a way that was dialed, or is being.
func (s *session) writeConn(data []byte) error {
	if conn := s.way.conn; conn != nil {
		conn.SetWriteDeadline(time.Now().Add(maxWrite))
		_, err := conn.Write(data)
		return err
	}
	if len(s.way.waiting) >= maxWaiting {
		return syscall.ENOBUFS
	}
	s.way.waiting = append(s.way.waiting, slices.Clone(data))
	return nil
}

// readFront is how a socket is read that cannot be watched.
func (h *hub) readFront() {
	conn, in := h.conn, h.in
	pause := time.Duration(0)
	for {
		n, err := conn.Receive(in)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return // it is not to be read any more
		case errors.Is(err, net.ErrClosed):
			h.post(func() { h.readFailed(err) })
			return
		case err != nil:
			h.post(func() { h.complain("proxy: read", err) })
			pause = min(max(2*pause, firstPause), lastPause)
			select {
			case <-time.After(pause):
				continue
			case <-h.done:
				return
			}
		}
		pause = 0
		if !h.do(func() { h.arrive(in[:n]) }) {
			return
		}
	}
}
