//go:build !linux

package serve

import (
	"context"
	"fmt"
	"net"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/listen"
)

// One socket is all there is: elsewhere SO_REUSEPORT shares nothing.
func listenShards(ctx context.Context, address string, _ int) ([]net.PacketConn, error) {
	a, err := addr.Parse(address)
	if err != nil {
		return nil, err
	}
	if a.Network != "udp" {
		return nil, fmt.Errorf("serve: listen on %s: want udp://", a)
	}
	pc, _, err := listen.Packet(ctx, "udp", a.Addr, listen.Options{})
	if err != nil {
		return nil, err
	}
	return []net.PacketConn{pc}, nil
}
