// Package frame finds the messages in a stream of bytes, and puts them there. A stream
// has no boundaries: what one side writes at once the other may read in pieces, or
// together with what came next. A [Format] is the convention that brings them back.
//
//	requests := frame.NewReader(conn, frame.Lines())
//	replies := frame.NewWriter(conn, frame.Lines())
//	for req, err := range requests.All() {
//		if err != nil {
//			return err
//		}
//		if err := replies.Send(answer(req)); err != nil {
//			return err
//		}
//		if err := replies.Flush(); err != nil {
//			return err
//		}
//	}
//
// # Formats
//
//   - [Prefix](4): the length of the message in four bytes, big endian, then the
//     message. Any bytes are a message. Take this one where you have the choice.
//   - [Lines]: text that people type. A message must not contain what ends it.
//   - [Varint]: the length in as few bytes as it takes, as protocol buffers have it.
//   - [Netstring]: the length in decimal, and a comma that shows a stream come apart.
//   - [Fixed]: messages of one size, with nothing around them.
//   - [Length]: what others have decided about lengths, in the terms of Netty and
//     tokio-util: where they are, what they count, what of the header is message.
//   - [Delimited]: other delimiters, several of them, other limits, CR LF, messages
//     that keep their end.
//   - Your own: a Format is three methods that know nothing of I/O.
//
// A Format works on bytes alone, so an event loop, a packet or a file in memory use
// [Format.Cut] and [Format.Append] as well as a [Reader] and a [Writer] do.
//
// # What is promised
//
//   - However the stream is cut into reads, the messages are the same. A part of a
//     message is never returned: within one, the end of the stream is
//     io.ErrUnexpectedEOF and not io.EOF.
//   - What is too large is refused as soon as its length is known, and before memory is
//     allocated for it. What is announced and within the limit costs memory only as
//     its bytes arrive, at most twice as much, and gives it back when it is done.
//   - Every byte is looked at once, and moved a bounded number of times: a peer that
//     sends one byte at a time costs as many reads, and nothing quadratic.
//   - What was sent is what is received, or Send fails: a message longer than its length
//     can express, or a line with a line feed in it, is never written, in part or whole.
//   - The same limit holds for both directions: the longest message that one side may
//     send is the longest that the other one takes, or there is no such Format.
//   - No bytes make it panic. Lengths are computed without overflow.
//   - Nothing is allocated per message whose frame has up to 64 KiB.
//
// # Whose memory
//
// A message that [Reader.Next] returns is borrowed: it lies in the Reader's buffer and is
// gone with the next call. That is the fast way, and right for whoever is done with a
// message before the next one. [Reader.NextOwned] copies it to memory of its own, which
// goes back to a pool when it is released. What is given to [Writer.Send] is the caller's
// again when Send returns: small messages are copied and leave together, large ones are
// written from where they are.
//
// # Errors
//
// [ErrTooLarge] and [ErrMalformed] are the peer's or, from [Writer.Send], the caller's;
// all others are the stream's. A bad frame is the end of what can be read, for nobody knows
// where the next one begins: close the connection. Only of one that is too large the end
// can be found, for it was announced or is the next delimiter: a Reader with SkipTooLarge
// says ErrTooLarge once and reads on behind it.
//
// # Limits
//
// A Reader and a Writer set no deadlines: set them on the connection, and an absolute one
// for a whole message, or a peer that sends a byte now and then holds it for ever. They
// are not safe for concurrent use, but one goroutine may read while another one writes. A
// last line without its end is an unexpected end of the stream, not a message. What is
// skipped is read all the same: a peer that announces 2⁶² bytes is heard out until the
// deadline.
package frame
