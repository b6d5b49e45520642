package proxy

import "golang.org/x/sys/unix"

// What one client has sent in a batch goes to its node as one run (UDP_SEGMENT), if all
// but the last are of one size: the way through the kernel, which costs more than all
// else here, is paid once.
const (
	maxRun     = 64             // UDP_MAX_SEGMENTS of all kernels
	maxSegment = 1500 - 40 - 8  // what an Ethernet frame takes: what must be fragmented is refused
	maxRunSize = 65535 - 40 - 8 // bytes
)

// stage keeps a datagram until the batch is through. It lies in the batch's memory.
func (h *hub) stage(s *session, data []byte) bool {
	if s.way.fd < 0 {
		return h.send(s, data)
	}
	if len(s.staged) == 0 {
		h.staged = append(h.staged, s)
	}
	s.staged = append(s.staged, data)
	return true
}

// shipAll sends what was staged.
func (h *hub) shipAll() {
	for i, s := range h.staged {
		h.ship(s)
		h.staged[i] = nil
	}
	h.staged = h.staged[:0]
}

// ship sends what a session has staged.
func (h *hub) ship(s *session) {
	data := s.staged
	s.staged = s.staged[:0]
	for len(data) > 0 {
		n, goesOn := h.shipSome(s, data)
		if !goesOn {
			h.tally[dropNoBackend] += uint64(len(data) - 1)
			return
		}
		data = data[n:]
	}
}

// shipSome sends a run, or one datagram, and returns how many are seen to.
func (h *hub) shipSome(s *session, data [][]byte) (n int, goesOn bool) {
	if n = 1; s.way.fd >= 0 && s.place != nil && !s.place.single {
		n = runOf(data, len(s.header))
	}
	if n == 1 {
		return 1, h.send(s, data[0])
	}
	switch e := h.sendRun(s, data[:n]); e {
	case 0:
		return n, true
	case unix.EIO, unix.EINVAL, unix.EMSGSIZE: // a device, or a route, that does not cut
		s.place.single = true
		return 0, true
	case unix.EINTR:
		return 0, true
	default:
		return 1, h.wrote(s, e, data[0])
	}
}

// runOf is how many datagrams, from the first on, can go as one, each behind a header.
func runOf(data [][]byte, header int) int {
	size := header + len(data[0])
	if len(data) == 1 || size == 0 || size > maxSegment {
		return 1
	}
	n, total := 1, size
	for n < min(len(data), maxRun) {
		next := header + len(data[n])
		if total += next; next == 0 || next > size || total > maxRunSize {
			break
		}
		n++
		if next < size {
			break
		}
	}
	return n
}

func (h *hub) sendRun(s *session, data [][]byte) unix.Errno {
	s.asks()
	iovs := h.runs[:0]
	for _, d := range data {
		if len(s.header) > 0 {
			iovs = append(iovs, iovec(s.header))
		}
		if len(d) > 0 {
			iovs = append(iovs, iovec(d))
		}
	}
	h.runs = iovs
	return sysSendRun(s.way.fd, iovs, len(s.header)+len(data[0]))
}
