//go:build !unix

package serve

import (
	"errors"
	"net"
)

func connOf(int) (net.Conn, func(), error) { return nil, nil, errors.ErrUnsupported }
