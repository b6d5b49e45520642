package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// ask puts one question to the servers in turn until one has an answer, good or
// bad. NXDOMAIN and an empty answer are answers; a refusal or a failure is not.
func (c *Client) ask(ctx context.Context, conf *config, name string, kind dnsmessage.Type) (answer, error) {
	servers, timeout, attempts := conf.servers, conf.timeout, conf.attempts
	if len(c.Servers) > 0 {
		servers = c.Servers
	}
	if c.Timeout > 0 {
		timeout = c.Timeout
	}
	if c.Attempts > 0 {
		attempts = c.Attempts
	}
	var last error
	for range attempts {
		for _, server := range servers {
			a, err := c.askServer(ctx, server, timeout, name, kind)
			if err == nil || final(err) {
				return a, err
			}
			if ctx.Err() != nil {
				return answer{}, &Error{Kind: Timeout, Name: name, Server: server, Err: context.Cause(ctx)}
			}
			last = worse(last, err)
		}
	}
	return answer{}, last
}

// askServer puts the question to one server, and all that comes of it within the
// timeout.
func (c *Client) askServer(ctx context.Context, server string, timeout time.Duration, name string, kind dnsmessage.Type) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	q, query, err := newQuestion(name, kind)
	if err != nil {
		return answer{}, &Error{Kind: NotFound, Name: name, Err: err} // too long, or with an empty label
	}
	a, err := c.exchange(ctx, "udp", server, q, query)
	if errors.Is(err, errTruncated) {
		a, err = c.exchange(ctx, "tcp", server, q, query)
	}
	if err == nil {
		return a, nil
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Kind: ServFail, Err: err}
		var t interface{ Timeout() bool }
		if errors.As(err, &t) && t.Timeout() {
			e.Kind = Timeout
		}
	}
	e.Name, e.Server = name, server
	return answer{}, e
}

// exchange sends the question and reads until something matches it, or the context
// ends.
func (c *Client) exchange(ctx context.Context, network, server string, q question, query []byte) (answer, error) {
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, network, server)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		return askStream(conn, q, query)
	}
	return askPackets(conn, q, query)
}

// askPackets reads on after what is not ours, a stray or a forgery: the answer may
// still come.
func askPackets(conn net.Conn, q question, query []byte) (answer, error) {
	if _, err := conn.Write(query); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 65535) // a server may ignore the size we ask for
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return answer{}, err
		}
		if a, err := q.read(buf[:n]); !errors.Is(err, errNotOurs) {
			return a, err
		}
	}
}

func askStream(conn net.Conn, q question, query []byte) (answer, error) {
	query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	if _, err := conn.Write(query); err != nil {
		return answer{}, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return answer{}, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, msg); err != nil {
		return answer{}, err
	}
	a, err := q.read(msg)
	if errors.Is(err, errNotOurs) || errors.Is(err, errTruncated) { // neither has a reason here
		err = &Error{Kind: Malformed, Err: err}
	}
	return a, err
}
