package proxy

import (
	"encoding/binary"
	"errors"
)

// maxHello bounds the bytes that are kept of a client that has not yet said where it
// wants to go. Hellos with post-quantum key shares have some 2 KiB.
const maxHello = 16 << 10

// hello is what a ClientHello asks for.
type hello struct {
	name      string
	protocols []string
}

var errHello = errors.New("proxy: not a TLS ClientHello")

// parseHello reads the ClientHello at the start of a stream, which may be cut into
// records and segments anywhere (RFC 8446 §4.1.2, §5.1). done is false while more bytes
// are needed. Input that cannot become one is refused as soon as that is known.
func parseHello(b []byte) (h hello, done bool, err error) {
	message, done, err := joinRecords(b)
	if err != nil || !done {
		return hello{}, false, err
	}
	h, ok := readHello(message)
	if !ok {
		return hello{}, false, errHello
	}
	return h, true, nil
}

const (
	recordHandshake     = 22
	messageClientHello  = 1
	recordHeader        = 5
	messageHeader       = 4
	maxRecord           = 16 << 10
	extensionServerName = 0
	extensionALPN       = 16
)

// joinRecords returns the first handshake message without its header.
func joinRecords(b []byte) (message []byte, done bool, err error) {
	var joined []byte
	size := -1 // of the message with its header, once it is known
	for {
		if !mayBeRecord(b) {
			return nil, false, errHello
		}
		if len(b) < recordHeader {
			return nil, false, nil
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if n == 0 || n > maxRecord {
			return nil, false, errHello
		}
		part := b[recordHeader:min(len(b), recordHeader+n)]
		switch {
		case joined == nil:
			joined = part[:len(part):len(part)] // mostly there is one record: nothing is copied
		default:
			joined = append(joined, part...)
		}
		if len(joined) > 0 && joined[0] != messageClientHello {
			return nil, false, errHello
		}
		if size < 0 && len(joined) >= messageHeader {
			size = messageHeader + int(joined[1])<<16 + int(joined[2])<<8 + int(joined[3])
			if size > maxHello {
				return nil, false, errHello
			}
		}
		if size >= 0 && len(joined) >= size {
			return joined[messageHeader:size], true, nil
		}
		if len(b) < recordHeader+n {
			return nil, false, nil
		}
		b = b[recordHeader+n:]
	}
}

// mayBeRecord reports whether b may go on to be a handshake record of some TLS.
func mayBeRecord(b []byte) bool {
	return (len(b) < 1 || b[0] == recordHandshake) && (len(b) < 2 || b[1] == 3)
}

// cursor reads fields off a message. Once one is missing, all that follow are empty.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if c.bad || n > len(c.b) {
		c.bad = true
		return nil
	}
	field := c.b[:n]
	c.b = c.b[n:]
	return field
}

// field takes a length of so many bytes, and what it is the length of.
func (c *cursor) field(size int) []byte {
	n := 0
	for _, d := range c.take(size) {
		n = n<<8 | int(d)
	}
	return c.take(n)
}

func (c *cursor) number() int {
	b := c.take(2)
	if b == nil {
		return -1
	}
	return int(binary.BigEndian.Uint16(b))
}

func readHello(message []byte) (h hello, ok bool) {
	c := cursor{b: message}
	c.take(2 + 32) // version, random
	c.field(1)     // session
	c.field(2)     // cipher suites
	c.field(1)     // compression
	if c.bad || len(c.b) == 0 {
		return h, !c.bad // without extensions
	}
	extensions := cursor{b: c.field(2)}
	for !extensions.bad && len(extensions.b) > 0 {
		kind := extensions.number()
		body := cursor{b: extensions.field(2)}
		switch kind {
		case extensionServerName:
			h.name, ok = readServerName(body)
		case extensionALPN:
			h.protocols, ok = readProtocols(body)
		default:
			ok = true
		}
		if !ok {
			return hello{}, false
		}
	}
	return h, !c.bad && !extensions.bad && len(c.b) == 0
}

// readServerName returns the host name of RFC 6066 §3.
func readServerName(c cursor) (name string, ok bool) {
	list := cursor{b: c.field(2)}
	for !list.bad && len(list.b) > 0 {
		kind := list.take(1)
		value := list.field(2)
		if !list.bad && kind[0] == 0 && name == "" {
			name = string(value)
		}
	}
	return name, !c.bad && !list.bad
}

func readProtocols(c cursor) (all []string, ok bool) {
	list := cursor{b: c.field(2)}
	for !list.bad && len(list.b) > 0 {
		all = append(all, string(list.field(1)))
	}
	return all, !c.bad && !list.bad
}
