package serve

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Info asks the kernel about the socket of a connection. What does not apply to a
// Unix socket is zero.
func (c *Conn) Info() (Info, error) {
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return Info{}, fmt.Errorf("serve: %T is no system socket", c.raw)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Info{}, err
	}
	var info Info
	if controlErr := raw.Control(func(fd uintptr) { info, err = infoOf(int(fd)) }); controlErr != nil {
		return Info{}, controlErr // closed
	}
	return info, err
}

func infoOf(fd int) (info Info, err error) {
	option := func(level, name int) int {
		n, e := unix.GetsockoptInt(fd, level, name)
		if e != nil && err == nil {
			err = e
		}
		return n
	}
	info.ReuseAddr = option(unix.SOL_SOCKET, unix.SO_REUSEADDR) != 0
	info.KeepAlive = option(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0
	info.RecvBuf, info.SendBuf = option(unix.SOL_SOCKET, unix.SO_RCVBUF), option(unix.SOL_SOCKET, unix.SO_SNDBUF)
	if option(unix.SOL_SOCKET, unix.SO_PROTOCOL) != unix.IPPROTO_TCP {
		return info, err
	}
	info.NoDelay = option(unix.IPPROTO_TCP, unix.TCP_NODELAY) != 0
	tcp, e := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if e != nil {
		return info, e
	}
	info.RTT = time.Duration(tcp.Rtt) * time.Microsecond
	info.Retransmits = int(tcp.Total_retrans)
	info.Unacked = int(tcp.Unacked)
	return info, err
}
