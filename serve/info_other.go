//go:build !linux

package serve

import "errors"

// Info asks the kernel about the socket of a connection. It is Linux's.
func (c *Conn) Info() (Info, error) { return Info{}, errors.ErrUnsupported }
