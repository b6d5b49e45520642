// Package holdfast is a client that holds fast: a [Cluster] is a set of
// interchangeable endpoints and the live connections to them, for any protocol
// over TCP, TLS, Unix sockets and UDP.
//
//	c, err := holdfast.New(holdfast.Static("tcp://10.0.0.1:7000", "tcp://10.0.0.2:7000"), holdfast.Config{})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//
//	err = c.Do(ctx, holdfast.Idempotent, func(ctx context.Context, conn *holdfast.Conn) error {
//		if _, err := io.WriteString(conn, "PING\n"); err != nil {
//			return err
//		}
//		reply := make([]byte, 5)
//		_, err := io.ReadFull(conn, reply)
//		return err
//	})
//
// There are five ways in, all over the same nodes, balancing and health:
//
//   - [Cluster.Do] runs a whole operation on a pooled connection and repeats it
//     on another node where that is safe.
//   - [Cluster.Acquire] lends one pooled connection.
//   - [Cluster.DialContext] is a dialer for the driver you already use: pgx,
//     go-redis, grpc, net/http. The connection is the driver's own.
//   - [Cluster.Exchange] sends a request in a datagram and finds its reply;
//     [Cluster.Send] waits for none.
//   - [Cluster.Pick] is the bare choice of a node, for those who build on it.
//
// # Endpoints and nodes
//
// An [Endpoint] is what was configured, in one grammar: tcp://host:port,
// tls://host:port?sni=name, unix:/path, udp://host:port, srv://_service._tcp.domain,
// and a bare host:port, which is TCP. A [Node] is one resolved address. A name
// with six addresses is six nodes, each with its own connections, health and
// backoff. tls:// means that we do TLS; tcp:// never does.
//
// # Datagrams
//
// Over udp:// endpoints a request can be lost, repeated, answered twice, late, or by
// somebody else. [Config.Datagrams] says what answers what:
//
//	c, err := holdfast.New(holdfast.Static("udp://10.0.0.1:53", "udp://10.0.0.2:53"), holdfast.Config{
//		Datagrams: holdfast.Datagrams{ID: dnsID, SetID: setDNSID, Match: sameQuestion},
//	})
//	…
//	reply, err := c.Exchange(ctx, holdfast.Idempotent, query, nil)
//
// A request is sent again when its node has been silent for longer than its round trips
// explain, to another node if that is safe. The sockets are the Cluster's: connected, so
// that their kernel drops what comes from elsewhere and tells of nodes that refuse, each
// for 1,024 exchanges, and closed after a minute without use. Datagrams.Listen has one
// socket for all nodes instead, any [net.PacketConn]; as one for a library that wants to
// read and write by itself, take a *net.UDPConn and [Cluster.Pick], or the connected one
// that [Conn.NetConn] gives after DialContext: a Cluster that poses as an unconnected
// socket would have to make up whose address a datagram came from.
//
// # What is promised
//
//   - Every usable node is tried before anything sleeps, and the node an
//     operation just lost goes last, whatever the policy.
//   - A retry is never a double execution: after the first byte was handed to a
//     connection, only an [Idempotent] operation runs again. [Error.SafeToRetry]
//     says which it was.
//   - A connection that saw an error, a timeout or a cancellation is never used
//     again. One that the peer closed while it rested is found before anything is
//     written, if it rested for Pool.CheckIdle.
//   - A datagram that is not the reply to a request, by source, number and content, is
//     never taken for it, however late it is.
//   - Every wait ends with its context. Every buffer, queue and pool has a limit.
//   - Waiters for a connection of one node are served in the order they came.
//   - Neither [Config.Observe] nor any other function of yours runs under a lock.
//
// # The zero rule
//
// In every configuration struct 0 means the documented default, a negative value
// means off, and a nil func means the standard library's way.
//
// # Limits
//
// A byte stream cannot be resumed, so there is no self-healing net.Conn: what can
// be repeated is a whole operation. TLS hides truncation: an end of stream without
// close_notify reads as io.EOF, so only framing detects a cut message.
package holdfast
