//go:build unix

package restart

import (
	"context"
	"errors"
	"iter"
	"os"
	"slices"
	"syscall"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/listen"
	"golang.org/x/sys/unix"
)

// socket is one that the supervisor holds for all generations: a listener, a packet
// socket, or a file of the user's.
type socket struct {
	want
	fd    int
	file  listen.File // of a Unix socket that was bound here
	fresh bool        // bound for a successor that is not committed
	given bool        // by systemd: its name or its address is what counts, and its file is not ours
}

// sockets are all of them. The loop of the supervisor owns them.
type sockets struct{ all []*socket }

func (s *sockets) find(w want) *socket {
	for _, have := range s.all {
		if have.want == w || (have.given && have.Kind == w.Kind && (have.Name == w.Name || have.Addr == w.Addr)) {
			return have
		}
	}
	return nil
}

// missing are those that must be bound first; files come from the workers.
func (s *sockets) missing(wants []want) (out []want) {
	for _, w := range wants {
		if w.Kind != kindFile && s.find(w) == nil {
			out = append(out, w)
		}
	}
	return out
}

func (s *sockets) add(made []*socket) { s.all = append(s.all, made...) }

// names tells of all that there are.
func (s *sockets) names() (out []string) {
	for _, have := range s.all {
		text := have.Name
		if have.Addr != "" && have.Addr != have.Name {
			text += "=" + have.Addr
		}
		out = append(out, text)
	}
	return out
}

func (s *sockets) adopt(given []*socket) { s.add(given) }

// keep takes a file from the worker that opened it.
func (s *sockets) keep(w want, fd int) {
	if s.find(w) != nil {
		unix.Close(fd)
		return
	}
	s.all = append(s.all, &socket{want: w, fd: fd, fresh: true})
}

// batches are the sockets for a worker, in as many messages as it takes.
func (s *sockets) batches(wants []want) iter.Seq2[[]want, []int] {
	return func(yield func([]want, []int) bool) {
		for part := range slices.Chunk(wants, maxFiles) {
			var names []want
			var fds []int
			for _, w := range part {
				if have := s.find(w); have != nil {
					names, fds = append(names, w), append(fds, int(dup(uintptr(have.fd))))
				}
			}
			if len(fds) > 0 && !yield(names, fds) {
				return
			}
		}
	}
}

// keepOnly closes what the generation that serves does not want, after a commit.
func (s *sockets) keepOnly(wants []want) {
	s.all = slices.DeleteFunc(s.all, func(have *socket) bool {
		have.fresh = false
		for _, w := range wants {
			if s.find(w) == have {
				return false
			}
		}
		have.close()
		return true
	})
}

// rollBack closes what only the successor wanted.
func (s *sockets) rollBack() {
	s.all = slices.DeleteFunc(s.all, func(have *socket) bool {
		if have.fresh {
			have.close()
		}
		return have.fresh
	})
}

func (s *sockets) close() {
	closeSockets(s.all)
	s.all = nil
}

func closeSockets(all []*socket) {
	for _, one := range all {
		one.close()
	}
}

func (s *socket) close() {
	s.file.Remove()
	unix.Close(s.fd)
}

// bindAll binds all or none.
func bindAll(ctx context.Context, wants []want) (made []*socket, err error) {
	for _, w := range wants {
		one, err := bindOne(ctx, w)
		if err != nil {
			closeSockets(made)
			return nil, err
		}
		made = append(made, one)
	}
	return made, nil
}

func bindOne(ctx context.Context, w want) (*socket, error) {
	a, err := addr.Parse(w.Addr)
	if err != nil {
		return nil, err
	}
	if w.Kind == kindPacket {
		pc, file, err := listenPacket(ctx, a)
		if err != nil {
			return nil, err
		}
		defer pc.Close()
		return hold(w, pc.(syscall.Conn), file)
	}
	ln, file, err := listenStream(ctx, a)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	return hold(w, ln.(syscall.Conn), file)
}

// hold duplicates the descriptor: what the runtime polls is closed, the socket stays.
func hold(w want, c syscall.Conn, file listen.File) (*socket, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{want: w, file: file, fresh: true}
	controlErr := raw.Control(func(fd uintptr) { s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, controlErr); err != nil {
		file.Remove()
		return nil, os.NewSyscallError("dup", err)
	}
	return s, nil
}

// dup is for a descriptor that is sent and closed after; -1 cannot be sent, and says
// so then.
func dup(fd uintptr) uintptr {
	n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return ^uintptr(0)
	}
	return uintptr(n)
}
