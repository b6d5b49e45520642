// Package pipeline keeps many requests in flight on few connections, for any
// protocol of requests and replies, over a [holdfast.Cluster]: no reply ever reaches
// the wrong caller, and who gets none is told whether the peer can have acted.
//
//	lines := frame.Lines()
//	client, err := pipeline.New(cluster, pipeline.Config[string]{
//		Decoder: pipeline.Frames(lines, func(line []byte) (string, error) { return string(line), nil }),
//	})
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//
//	reply, err := client.Do(ctx, pipeline.Request{
//		Safety: holdfast.Idempotent,
//		Encode: func(dst []byte, _ uint64) ([]byte, error) { return lines.Append(dst, []byte("GET key")) },
//	})
//
// All methods are for any number of goroutines at once: that is the point. Each call
// chooses a node by the Cluster's policy, joins what is under way on the connection
// there, and waits for its own reply alone.
//
// # Who a reply belongs to
//
// Without Config.ID replies come in the order of the requests. With it each request
// carries a number, which its reply repeats, and replies come in any order. Either
// way a caller who leaves, because its context ended, leaves its place behind: the
// reply is dropped when it comes, and the next one is still the next caller's. A reply
// that nobody asked for ends the connection in the first case and is counted in the
// second.
//
// # What is promised
//
//   - Every wait ends with the request's context: for a connection, for room in the
//     window, for the reply. A stalled peer, a full buffer and a slow caller hold up
//     nobody else's end.
//   - A request that got no reply says what is known of it: [NotSent] when the peer
//     cannot have seen all of it, by the count of bytes that the kernel took, and
//     [Unknown] when it may have acted. This holds for protocols whose peers act on
//     whole requests only. Under TLS what was handed to the record layer counts.
//   - What was not sent is sent elsewhere. What may have been acted on is repeated only
//     if the request is Idempotent, within a budget.
//   - A connection whose oldest request makes no progress for Config.Stall is given up.
//   - The memory of a connection is bounded: see Config.Window.
//
// # How it runs
//
// A lone caller writes its request and reads its reply itself: no goroutine is between
// it and the socket, which is also what keeps its latency when all processors are
// busy. With the first overlap a writer, which sends what has gathered in one piece,
// and a reader take over, until the crowd is gone.
//
// # Limits
//
// The protocol must be one where a request is answered by a known number of replies.
// What takes over a connection (a subscription, a transaction with state, a blocking
// wait, a stream) belongs on an [Exclusive] one.
package pipeline
