//go:build !linux

package proxy

import (
	"context"
	"net"

	"github.com/holdfast-net/holdfast/serve"
)

// loops are Linux's: elsewhere every connection has goroutines.
type loops struct{}

type front struct{}

func (*loops) open(*Proxy, int) error            { return nil }
func (*loops) front(net.Listener) (*front, bool) { return nil, false }
func (*loops) serve(*front) error                { return ErrClosed }
func (*loops) stopAccepting()                    {}
func (*loops) shutdown(context.Context) error    { return nil }
func (*loops) close()                            {}
func (*loops) endWhatIsDown(Down)                {}
func (*loops) addTo(*Stats)                      {}
func (*loops) tune(serve.Socket)                 {}
