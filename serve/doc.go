// Package serve is a server for any protocol over TCP, TLS, UDP and Unix sockets, in the
// spirit of net/http's: it accepts, admits, shakes hands, serves and drains, and
// leaves the protocol to a handler.
//
//	srv := &serve.Server{
//		Handler: serve.Frames(frame.Lines(), func(ctx context.Context, c *serve.Conn, line []byte) error {
//			return c.Send(line)
//		}),
//		Limits: serve.Limits{MaxConns: 10_000},
//	}
//	ln, err := serve.Listen(ctx, "tcp://:7000")
//	…
//	err = srv.Serve(ln)
//
// Under restart.Run, the same server is replaced by its successor without anybody
// being refused or cut.
//
// # Handlers
//
// [Frames] is for protocols of messages: the read loop is the server's, so an idle
// connection holds no buffer, replies to requests that came together leave together,
// and live connections move to the successor of the process by themselves. Any other
// protocol implements [Handler] and reads the [Conn] as it likes; it moves if it says
// where it stands, with [Conn.Detach].
//
// # What is on by default
//
// Every wait has an end: the TLS handshake 10 s, a PROXY header 5 s, one message 30 s
// from its first byte, a stalled write 30 s, an idle connection 1 h. Connections are
// limited by the files that the process may open. Keepalive finds dead peers within
// 30 s. A panic ends its connection only, and no error of accept ends the loop.
//
// # Order
//
// A connection is counted when it is accepted, before anything is read from it. Then
// come, in its own goroutine: the PROXY header, the networks that are allowed, the
// limit per address, TLS, the handler. Who may connect is decided before TLS costs
// anything, by the client's address: that in the PROXY header if a trusted proxy
// sent one.
//
// # Draining
//
// Shutdown stops accepting and tells every connection, by [Conn.Draining] and by
// Drain.Goodbye. Frames connections end between two messages: what was received is
// answered. When the context of Shutdown ends, what is left is cut.
//
// # Datagrams
//
// [Packets] serves UDP, and whatever else is a net.PacketConn, in batches.
package serve
