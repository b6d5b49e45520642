// Package frame finds the messages in a stream of bytes, and puts them there. A stream
// has no boundaries: what one side writes at once the other may read in pieces, or
// together with what came next. A [Format] is the convention that brings them back.
//
//	messages := frame.NewReader(conn, frame.Lines())
//	replies := frame.NewWriter(conn, frame.Lines())
//	for {
//		msg, err := messages.Next()
//		if err != nil {
//			return err // io.EOF: the peer was done
//		}
//		if err := replies.Send(answer(msg)); err != nil {
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
//   - [Length]: what others have decided about lengths, in the terms of Netty and
//     tokio-util: where they are, what they count, what of the header is message.
//   - [Line]: other limits, CR LF, lines with their end.
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
//   - The same limit holds for both directions.
//   - No bytes make it panic. Lengths are computed without overflow.
//   - Nothing is allocated per message of up to 64 KiB.
//
// # Errors
//
// [ErrTooLarge] and [ErrMalformed] are the peer's or, from [Writer.Send], the caller's;
// all others are the stream's. After a bad frame nobody knows where the next one begins:
// close the connection.
//
// # Limits
//
// A Reader and a Writer set no deadlines: set them on the connection, and an absolute one
// for a whole message, or a peer that sends a byte now and then holds it for ever. They
// are not safe for concurrent use, but one goroutine may read while another one writes. A
// last line without its end is an unexpected end of the stream, not a message.
package frame
