package serve

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/listen"
)

// Listen binds tcp://host:port, host:port, unix:/path or unix:@abstract. A Unix
// socket may be given its mode, as in unix:/run/app.sock?mode=0660: the file has it
// from the first moment. A file that nobody answers behind is replaced, one with a
// live owner is an error; the listener's Close removes the file if it is still its
// own. An address in use is an error that names who uses it, where that is known.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	a, err := addr.Parse(address)
	if err != nil {
		return nil, err
	}
	if a.Network != "tcp" && a.Network != "unix" {
		return nil, fmt.Errorf("serve: listen on %s: want tcp:// or unix:; TLS is the Server's", a)
	}
	var o listen.Options
	for key, value := range a.Params {
		mode, err := strconv.ParseUint(value, 8, 9)
		if key != "mode" || a.Network != "unix" || err != nil {
			return nil, fmt.Errorf("serve: listen on %s: %s=%s means nothing", a, key, value)
		}
		o.Mode = os.FileMode(mode)
	}
	ln, file, err := listen.Stream(ctx, a.Network, a.Addr, o)
	if err != nil {
		return nil, err
	}
	if u, ok := ln.(*net.UnixListener); ok {
		return &unixListener{UnixListener: u, file: file}, nil
	}
	return ln, nil
}

// unixListener removes its file, once, before it closes: after that it might be
// somebody else's.
type unixListener struct {
	*net.UnixListener
	file listen.File
	once sync.Once
}

func (l *unixListener) Close() error {
	l.once.Do(l.file.Remove)
	return l.UnixListener.Close()
}
