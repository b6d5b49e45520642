package proxy

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A direction that fills the buffer twice in a row is big, and goes through a pipe, in
// the kernel. The pipe is given back whenever it is empty and nothing more has come.
const promoteAfter = 2

const (
	pipeSize = 256 << 10

	// softPages is how many pages of pipes a user may have before the kernel makes them
	// small, in pages of 4 KiB, if it does not say.
	softPages = 16384
)

// pipe is a piece of kernel memory that bytes are moved through.
type pipe struct {
	r, w int32
	n    int // bytes in it
}

// pipes are those of one loop that are not in use.
type pipes struct{ spare []*pipe }

// pipesLeft is how many more this process may open. They are bound by the memory that
// the kernel grants all processes of a user, and each takes two files.
var pipesLeft = func() *atomic.Int64 {
	pages := softPages
	if b, err := os.ReadFile("/proc/sys/fs/pipe-user-pages-soft"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			pages = n
		}
	}
	left := &atomic.Int64{}
	left.Store(int64(min(pages*os.Getpagesize()/pipeSize/2, 128)))
	return left
}()

func (ps *pipes) take() *pipe {
	if n := len(ps.spare); n > 0 {
		p := ps.spare[n-1]
		ps.spare = ps.spare[:n-1]
		return p
	}
	if pipesLeft.Add(-1) < 0 {
		pipesLeft.Add(1)
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		pipesLeft.Add(1)
		return nil
	}
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // a smaller one works too
	return &pipe{r: int32(fds[0]), w: int32(fds[1])}
}

// give takes back an empty pipe.
func (ps *pipes) give(p *pipe) {
	if len(ps.spare) < 4 {
		ps.spare = append(ps.spare, p)
		return
	}
	p.close()
}

// drop closes a pipe with whatever is in it.
func (ps *pipes) drop(p *pipe) {
	if p != nil {
		p.close()
	}
}

func (ps *pipes) close() {
	for _, p := range ps.spare {
		p.close()
	}
	ps.spare = nil
}

func (p *pipe) close() {
	sysClose(p.r)
	sysClose(p.w)
	pipesLeft.Add(1)
}

// promote gives a direction a pipe, if there is one.
func (l *loop) promote(s *slot, from side) bool {
	if s.pipe[from] == nil {
		s.pipe[from] = l.pipes.take()
	}
	return s.pipe[from] != nil
}

// splice moves what has come once through the pipe; false is that this direction is done
// for now.
func (l *loop) splice(s *slot, from side) bool {
	p := s.pipe[from]
	n, e := sysSplice(s.fd[from], p.w, pipeSize)
	switch {
	case e == unix.EAGAIN:
		l.demote(s, from)
		if s.ready[from]&ending != 0 {
			return true // a read knows better
		}
		s.ready[from] &^= canRead
		return false
	case e == unix.EINTR:
		return true
	case e == unix.EINVAL: // these sockets cannot
		l.demote(s, from)
		return true
	case e != 0:
		l.demote(s, from)
		s.readFailed(from, e)
		return false
	case n == 0:
		l.demote(s, from)
		s.eof(from)
		return false
	}
	p.n += n
	if !l.spliceOut(s, from) {
		s.waits(from, s.pipe[from] != nil, l.now)
		return false
	}
	if n < bufferSize { // not big any more
		l.demote(s, from)
	}
	return true
}

// spliceOut empties the pipe; false is that the other side takes no more.
func (l *loop) spliceOut(s *slot, from side) bool {
	p, to := s.pipe[from], from.other()
	for p.n > 0 {
		if s.ready[to]&canWrite == 0 {
			return false
		}
		n, e := sysSplice(p.r, s.fd[to], p.n)
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			s.ready[to] &^= canWrite
			return false
		case e != 0:
			l.writeFailed(s, to, e)
			l.discard(s, from)
			return false
		}
		p.n -= n
		l.took(s, from, n)
	}
	return true
}

// demote gives an empty pipe back.
func (l *loop) demote(s *slot, from side) {
	s.full[from] = 0
	if p := s.pipe[from]; p != nil && p.n == 0 {
		l.pipes.give(p)
		s.pipe[from] = nil
	}
}
