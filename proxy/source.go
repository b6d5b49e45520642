package proxy

import (
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/serve"
)

// source reads without a large buffer at rest.
type source struct {
	io.Reader
	small, large *buffer // large only while there is much to read, or a system call knows that there is something
	raw          syscall.RawConn
	try          func(fd uintptr) bool
	n            int
	err          error
}

func newSource(c net.Conn) *source {
	s := &source{Reader: c}
	if sc, ok := bare(c).(syscall.Conn); ok && tries {
		s.raw, _ = sc.SyscallConn()
		s.try = s.tryRead
		return s
	}
	s.small = &buffer{make([]byte, smallSize)}
	return s
}

// read returns what came. It is valid until done.
func (s *source) read() ([]byte, error) {
	if s.raw != nil {
		s.n, s.err = 0, nil
		if err := s.raw.Read(s.try); err != nil {
			return nil, err
		}
		if s.n == 0 {
			return nil, s.err
		}
		return s.large.p[:s.n], s.err
	}
	b := s.small
	if s.large != nil {
		b = s.large
	}
	n, err := s.Reader.Read(b.p)
	return b.p[:n], err
}

// done gives back what read borrowed; n is what it had read.
func (s *source) done(n int) {
	much := s.raw == nil && (n == smallSize || s.large != nil && n > smallSize)
	switch {
	case much && s.large == nil:
		s.large = borrow()
	case !much && s.large != nil:
		s.large.giveBack()
		s.large = nil
	}
}

// bare is the socket of a connection that has nothing between it and its bytes, else nil.
func bare(c net.Conn) net.Conn {
	switch c := c.(type) {
	case *serve.Conn:
		if _, secure := c.ConnectionState(); !secure {
			return nil // its first bytes may have been read
		}
	case *holdfast.Conn:
		if _, secure := c.ConnectionState(); !secure {
			if tcp, ok := c.NetConn().(*net.TCPConn); ok {
				return tcp
			}
		}
	}
	return nil
}

// buffer is what a read borrows.
type buffer struct{ p []byte }

const (
	bufferSize = 32 << 10
	smallSize  = 4 << 10
)

var buffers = sync.Pool{New: func() any { return &buffer{make([]byte, bufferSize)} }}

func borrow() *buffer { return buffers.Get().(*buffer) }

func (b *buffer) giveBack() { buffers.Put(b) }
