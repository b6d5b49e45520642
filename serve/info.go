package serve

import "time"

// Info is what the kernel says of a connection's socket.
type Info struct {
	ReuseAddr, KeepAlive, NoDelay bool
	RecvBuf, SendBuf              int           // bytes, as the kernel counts them
	RTT                           time.Duration // smoothed
	Retransmits                   int           // segments, since it was opened
	Unacked                       int           // segments under way
}
