package holdfast

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// errorQueue is what Linux keeps of ICMP errors for a UDP socket that asked for it. Only
// such a socket hears of hosts and networks that cannot be reached; others hear of ports
// alone (ip(7), IP_RECVERR). What is queued takes room in the receive buffer.
type errorQueue struct{ raw syscall.RawConn }

func (q *errorQueue) listen(conn *Conn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // no socket of the system's: it has no ICMP
	}
	q.raw = raw
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	})
}

// drain empties the queue: the socket has told the error already.
func (q *errorQueue) drain() {
	if q.raw == nil {
		return
	}
	q.raw.Control(func(fd uintptr) {
		for {
			if _, _, _, _, err := unix.Recvmsg(int(fd), nil, nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err != nil {
				return
			}
		}
	})
}
