package frame

import "errors"

// Why a stream cannot be read on (but see [Reader]'s SkipTooLarge), or a message not
// sent. They are wrapped with the sizes involved, never with bytes of the peer: match
// with [errors.Is].
var (
	ErrTooLarge  = errors.New("frame: message too large")
	ErrMalformed = errors.New("frame: malformed")
)

// A Format is how a stream of bytes is cut into messages: [Prefix], [Varint],
// [Netstring], [Fixed], [Lines], or what [Length] and [Delimited] describe. Formats of
// this package are immutable and safe for concurrent use; one of your own must be too,
// for a server shares it between its connections.
type Format interface {
	// Cut finds the frame at the start of b. from is the Frame.From that the last
	// call returned for a prefix of b, or for what is behind its Skip, 0 at first, so
	// that nothing is looked at twice. A frame that can never be right is an error,
	// ErrTooLarge or ErrMalformed, as soon as the bytes at hand tell. With
	// ErrTooLarge the Frame may have a Skip: the stream can be read on behind it.
	Cut(b []byte, from int) (Frame, error)

	// Append appends msg to dst as one frame, and is the inverse of Cut: a message
	// that would not come out of Cut as it is fails, and dst is returned as it was.
	Append(dst, msg []byte) ([]byte, error)

	// Max is the size of the longest message in bytes, in both directions.
	Max() int
}

// A Frame is what [Format.Cut] found: a message, what it waits for, or what is to be
// dropped of a message that is too large.
type Frame struct {
	Msg  []byte // the message, borrowed from b; empty messages are not nil
	Size int    // of the whole frame, 0 while it is incomplete
	Need int    // while incomplete: Cut says nothing new about fewer bytes; more than len(b)
	From int    // while incomplete: for the next call

	// Skip, if not 0, is how many bytes to drop, those of b first and then those that
	// follow. Need and From are for the bytes behind them, where Cut may say to skip
	// more, now without an error, for what has no length ends where it ends.
	Skip int
}

// A parter is a Format whose frames contain the end of the message unchanged, which
// need not be copied then. All of ours are.
type parter interface {
	// parts checks msg and appends to dst what goes before body, the end of msg.
	// After body goes tail. When it fails it returns dst as it was.
	parts(dst, msg []byte) (head, body []byte, tail string, err error)
}

// appendParts is Append in terms of parts.
func appendParts(p parter, dst, msg []byte) ([]byte, error) {
	head, body, tail, err := p.parts(dst, msg)
	if err != nil {
		return dst, err
	}
	return append(append(head, body...), tail...), nil
}
