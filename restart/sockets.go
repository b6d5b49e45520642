//go:build unix

package restart

import (
	"context"
	"errors"
	"iter"
	"os"
	"slices"
	"strings"
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

// likeness is how near a socket is to what is wanted, from the nearest on. An address
// that is held cannot be bound anew, so it is passed on under another name as well, or
// with other parameters.
var likeness = []func(have *socket, w want) bool{
	func(have *socket, w want) bool { return have.want == w },
	func(have *socket, w want) bool { return have.given && have.Name == w.Name },
	func(have *socket, w want) bool { return w.Kind != kindFile && bare(have.Addr) == bare(w.Addr) },
}

// bare is an address without its parameters.
func bare(address string) string {
	address, _, _ = strings.Cut(address, "?")
	return address
}

// match finds a socket for each want, each for one at most; nil is none.
func (s *sockets) match(wants []want) []*socket {
	found := make([]*socket, len(wants))
	for _, like := range likeness {
		for i, w := range wants {
			if found[i] != nil {
				continue
			}
			at := slices.IndexFunc(s.all, func(have *socket) bool {
				return have.Kind == w.Kind && like(have, w) && !slices.Contains(found, have)
			})
			if at >= 0 {
				found[i] = s.all[at]
			}
		}
	}
	return found
}

// missing are those that must be bound first; files come from the workers.
func (s *sockets) missing(wants []want) (out []want) {
	for i, have := range s.match(wants) {
		if have == nil && wants[i].Kind != kindFile {
			out = append(out, wants[i])
		}
	}
	return out
}

// tcp are the addresses of the TCP sockets among them, as the system knows them.
func (s *sockets) tcp(wants []want) (addresses []string) {
	for _, have := range s.match(wants) {
		if have == nil || have.Kind != kindStream {
			continue
		}
		_, address, _ := describe(have.fd)
		if address, ok := strings.CutPrefix(address, "tcp://"); ok {
			addresses = append(addresses, address)
		}
	}
	return addresses
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
	if s.match([]want{w})[0] != nil {
		unix.Close(fd)
		return
	}
	s.all = append(s.all, &socket{want: w, fd: fd, fresh: true})
}

// batches are the sockets for a worker, in as many messages as it takes.
func (s *sockets) batches(wants []want) iter.Seq2[[]want, []int] {
	return func(yield func([]want, []int) bool) {
		found := s.match(wants)
		for len(found) > 0 {
			n := min(len(found), maxFiles)
			var names []want
			var fds []int
			for i, have := range found[:n] {
				if have != nil {
					names, fds = append(names, wants[i]), append(fds, int(dup(uintptr(have.fd))))
				}
			}
			if len(fds) > 0 && !yield(names, fds) {
				return
			}
			found, wants = found[n:], wants[n:]
		}
	}
}

// keepOnly closes what the generation that serves does not want, after a commit; the
// others are from now on what it calls them.
func (s *sockets) keepOnly(wants []want) (err error) {
	found := s.match(wants)
	s.all = slices.DeleteFunc(s.all, func(have *socket) bool {
		at := slices.Index(found, have)
		if at < 0 {
			have.close()
			return true
		}
		have.fresh = false
		err = errors.Join(err, have.become(wants[at]))
		return false
	})
	return err
}

// become gives a socket another name or mode. What systemd gave stays what that calls it.
func (s *socket) become(w want) error {
	if s.given || s.want == w {
		return nil
	}
	s.want = w
	a, err := addr.Parse(w.Addr)
	if err != nil {
		return err
	}
	o, err := options(a)
	if err != nil || o.Mode == 0 {
		return err
	}
	if info, err := os.Lstat(a.Addr); err != nil || info.Mode()&os.ModeSocket == 0 {
		return nil // it is not there any more, or another's
	}
	return os.Chmod(a.Addr, o.Mode)
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
