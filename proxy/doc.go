// Package proxy is a load balancer for any protocol over TCP, TLS and Unix sockets: a
// server's admission in front, a [holdfast.Cluster] behind, and between them a relay
// that a client cannot tell from a direct connection.
//
//	backends, err := holdfast.New(holdfast.Static("tcp://10.0.0.1:5432", "tcp://10.0.0.2:5432"), holdfast.Config{})
//	…
//	p, err := proxy.New(proxy.Config{Cluster: backends})
//	…
//	err = restart.Run(ctx, restart.Config{}, restart.Bind(p, "tcp://:5432"))
//
// Under restart.Run the live connections survive a restart of the proxy: both sockets,
// the bytes in between and the counters pass to the successor, and neither the client
// nor the backend notices.
//
// # Choosing a backend
//
// Balancing, ejection, panic, slow start and backoff are the Cluster's. A connection
// whose backend cannot be reached goes to another one, never twice to the same, for no
// byte of it has reached one yet. If none is left the client is reset at once, as if it
// had connected to a port where nobody listens.
//
// # The relay
//
// The end of a stream passes on as an end, in each direction by itself; a reset passes
// on as a reset, behind what was sent before it. What one side sends is read only when
// the other has taken what came before, so a slow reader holds at most one buffer.
//
// # What is on by default
//
// A backend has 5 s to be connected, 1 s of them while there is another to try. A
// connection that is silent both ways ends after 1 h, one that is closed half and silent
// after 60 s; a peer that takes nothing for 30 s is given up. Keepalive finds dead peers
// within 30 s. Connections are limited by the files that the process may open, of which
// each needs two.
//
// # How it is done
//
// On Linux plain streams are relayed by event loops, one for each CPU: an idle connection
// has no goroutine, timer or buffer, and large streams are spliced in the kernel. TLS on
// either side, listeners and dialers of one's own, and other systems have two goroutines
// for each connection, and otherwise the same behaviour.
//
// # Datagrams
//
// [Packets] does the same for UDP: what comes from one address and port is a session, with
// a socket of its own towards one node, until it is idle. Sessions survive a restart of the
// proxy as connections do.
//
// # Limits
//
// TLS connections cannot be handed over: they drain, spread over the time there is, and
// resume at the successor. Connections belong to the Proxy: close it before its Clusters,
// which know its connections by their leases only.
package proxy
