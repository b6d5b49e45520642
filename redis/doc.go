// Package redis is a client for Redis and what speaks its protocol (Valkey, KeyDB,
// Dragonfly, Kvrocks): standalone, replicated and behind Sentinel, with RESP3 and
// RESP2. It sends what all goroutines ask over few connections, and stands on a
// [holdfast.Cluster]: failover, balancing and ejection are that one's.
//
//	rdb, err := redis.Open("redis://10.0.0.1:6379,10.0.0.2:6379/0")
//	if err != nil {
//		return err
//	}
//	defer rdb.Close()
//
//	if err := rdb.Do(ctx, "SET", "greeting", "hello", "EX", 60).Err(); err != nil {
//		return err
//	}
//	text, err := rdb.Do(ctx, "GET", "greeting").Text()
//	switch {
//	case errors.Is(err, redis.Nil):
//		// there is none
//	case err != nil:
//		return err
//	}
//
// Arguments are strings, byte slices, integers, floats and booleans. A reply is parsed
// into a [Value] first and converted after, so that no conversion can fail the
// connection; the conversions take what RESP2 and RESP3 say for the same thing.
//
// # Which connection
//
// Requests share one connection to a node, and go out together. Commands that block
// (BLPOP, XREAD with BLOCK, WAIT …) get one of their own by themselves. Commands that
// change a connection's state (SELECT, MULTI, SUBSCRIBE, CLIENT REPLY …) are refused
// with [ErrState]: the database is Config.DB, transactions are [Client.Tx], messages
// are [Client.Subscribe], and all else has [Client.Exclusive].
//
// # What is promised
//
//   - Every wait ends with its context.
//   - No reply reaches another caller, whoever leaves early.
//   - A command that may have run is never run again, unless it only reads. What the
//     server refused without running it (LOADING, READONLY, MASTERDOWN …) is tried on
//     another node. An error says which it was: see [pipeline.Error].
//   - A server that misbehaves is an error and a new connection, never a panic, and
//     costs memory in proportion to the bytes that it sent.
//
// # Limits
//
// No Redis Cluster (MOVED and ASK are errors) and no client-side caching. There is no
// method per command: Do takes them all. A subscription is not a queue: what is
// published while there is no connection is lost, and [Message] says that it was.
package redis
