// Package simnet is an in-memory network for tests: hosts named by IP
// address, streams and datagrams between them, and every fault a network has,
// on a clock that a test can own. It is made for [testing/synctest]: it opens
// no socket, starts no goroutine that waits, and holds no lock while anything
// waits, so virtual time passes whenever all sides do. It works the same on
// the real clock.
//
//	synctest.Test(t, func(t *testing.T) {
//		n := simnet.New(1)
//		defer n.Close()
//		n.SetLink("", "", simnet.Link{Latency: 10 * time.Millisecond})
//
//		ln, _ := n.Listen("tcp", "10.0.0.1:7000")
//		go serve(ln)
//
//		conn, err := n.Host("10.0.0.9").DialContext(t.Context(), "tcp", "10.0.0.1:7000") // takes 20 ms
//		…
//		n.Partition("10.0.0.1", "10.0.0.9") // conn stalls, new dials wait
//		n.Heal("10.0.0.1", "10.0.0.9")      // what was held arrives 10 ms later
//		n.Host("10.0.0.1").Kill()           // conn.Read: connection reset by peer
//	})
//
// Make the Net, and the contexts given to it, inside the bubble that uses it.
//
// # Time and order
//
// Everything that happens by itself (an arrival, a deadline, a retransmission)
// is an event in one queue, ordered by time and then by the order in which it
// was caused. Each call first lets happen what is due, so at one instant the
// network goes before the program: who wakes at 10 ms finds what arrives at
// 10 ms. A read deadline goes before data of the same instant, and a finished
// dial before the end of its context.
//
// # Chance
//
// All randomness comes from the seed, one generator per direction of a flow,
// keyed by its two addresses. What chance does to a flow's n-th packet is
// therefore the same in every run, whatever other flows do. What a seed cannot
// fix is Go's scheduling: goroutines that dial at the same instant from one
// host may swap their local ports, and with them their fates, and who is first
// on a link with a Bandwidth delays the other. Give them hosts of their own.
//
// # Streams
//
// A dialed or accepted stream is a [*Conn] that follows Linux, checked against
// it: a dial takes one round trip and a lost SYN is sent again after 1, 2, 4 …
// s until ETIMEDOUT at 127 s; FIN and RST travel behind the data; bytes that
// have arrived stay readable when a RST follows them; closing with unread bytes
// sends a RST instead of a FIN; the first write to a closed peer succeeds and
// its RST makes the next one fail, with EPIPE when the FIN had been seen and
// ECONNRESET otherwise. Errors are shaped as the real ones:
// [*net.OpError] around [net.ErrClosed], [os.ErrDeadlineExceeded], the
// context's error or an errno in an [*os.SyscallError].
//
// Each direction holds at most [Net.Buffer] bytes, sent and unread together;
// then Write waits. Loss on a link never harms a stream: a lost segment
// (1,460 bytes), and with it all that is behind, arrives a retransmission
// timeout later: 200 ms, doubled for each further loss, six at most.
//
// # Datagrams
//
// [Net.ListenPacket] and a "udp" dial give a [*PacketConn]. Datagrams are
// lost, duplicated and, by jitter, reordered; those above 65,507 bytes are
// refused (EMSGSIZE), a short read cuts the rest off, a full receive buffer
// (208 KiB) drops. Where nobody listens a connected socket's next call reports
// ECONNREFUSED, once.
//
// # Unix sockets
//
// A Unix path is a host of its own: Host("/run/app.sock") can be killed or
// frozen, and a Link or Partition that names it works. Names left empty never
// match one, so paths stay instant unless told otherwise. A path nobody
// listens on gives ENOENT.
//
// # Limits
//
// Names do not resolve (a dial gives a not-found [*net.DNSError]) and wildcard
// addresses do not bind. There are no file descriptors, so no
// [syscall.Conn], File or socket options; no CloseRead; no keepalive or user timeout, so a
// partitioned stream stalls for ever; no TIME_WAIT, no self-connect, no
// SO_REUSEPORT, no multicast, no congestion control: space in the buffer is
// free again the moment the reader takes it. After a RST every read and write
// fails, where Linux reports ECONNRESET once and then EOF and EPIPE.
package simnet
