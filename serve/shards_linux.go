package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/listen"
)

func listenShards(ctx context.Context, address string, n int) (all []net.PacketConn, err error) {
	a, err := addr.Parse(address)
	if err != nil {
		return nil, err
	}
	if a.Network != "udp" {
		return nil, fmt.Errorf("serve: listen on %s: want udp://", a)
	}
	for at := a.Addr; len(all) < n; {
		pc, _, err := listen.Packet(ctx, "udp", at, listen.Options{Control: reusePort})
		if err != nil {
			for _, pc := range all {
				pc.Close()
			}
			return nil, err
		}
		all = append(all, pc)
		host, _, _ := net.SplitHostPort(at) // with port 0, the first has chosen
		at = net.JoinHostPort(host, strconv.Itoa(pc.LocalAddr().(*net.UDPAddr).Port))
	}
	return all, nil
}

func reusePort(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(e, err)
}
