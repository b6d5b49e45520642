//go:build !linux

package holdfast

// errorQueue is Linux's: see there.
type errorQueue struct{}

func (*errorQueue) listen(*Conn) {}
func (*errorQueue) drain()       {}
