package health

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
)

// Postgres asks whether the server takes clients, as pg_isready does: it begins to log in
// and goes no further than the answer, without a password. A demand for one proves that the
// server is up, and so does any refusal but those of SQLSTATE class 57P: starting up,
// shutting down, recovering from a crash. Over tls:// that takes PostgreSQL 17, and
// "postgresql" in the NextProtos of Config.TLS; over tcp:// a server that insists on TLS
// refuses, and so proves that it is up.
type Postgres struct {
	User, Database string // "" means "holdfast", and the user's name
}

// Probe is for holdfast.Config.Probe.
func (p Postgres) Probe(ctx context.Context, conn net.Conn) error {
	if strings.ContainsRune(p.User+p.Database, 0) {
		return fmt.Errorf("health: a zero byte in user %q or database %q", p.User, p.Database)
	}
	return within(ctx, conn, func() error {
		if _, err := conn.Write(p.startup()); err != nil {
			return err
		}
		if err := readStartup(conn); err != nil {
			return err
		}
		conn.Write([]byte{'X', 0, 0, 0, 4}) // Terminate, out of courtesy: what was to be known is known
		return nil
	})
}

// startup is a StartupMessage of protocol 3.0.
func (p Postgres) startup() []byte {
	user := p.User
	if user == "" {
		user = "holdfast"
	}
	b := binary.BigEndian.AppendUint32(make([]byte, 4, 64), 3<<16)
	b = append(b, "user\x00"+user+"\x00"...)
	if p.Database != "" {
		b = append(b, "database\x00"+p.Database+"\x00"...)
	}
	b = append(b, "application_name\x00holdfast\x00\x00"...)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// readStartup reads one message, of a type, a length that counts itself, and a body.
func readStartup(r io.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("health: no answer to the start-up message: %w", ended(err))
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < 4 || length > maxKept {
		return fmt.Errorf("health: not PostgreSQL: it said %.5q", head[:])
	}
	switch head[0] {
	case 'R':
		return nil
	case 'E':
	default:
		return fmt.Errorf("health: not what PostgreSQL answers to a start-up message: %.5q", head[:])
	}
	body := make([]byte, length-4)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("health: half an error message: %w", ended(err))
	}
	code, text := errorFields(body)
	switch {
	case len(code) != 5:
		return fmt.Errorf("health: an error message without a code: %.80q", body)
	case strings.HasPrefix(code, "57P"):
		return fmt.Errorf("health: the server said %.5q: %.200q", code, text)
	}
	return nil
}

// errorFields finds the SQLSTATE and the text of an ErrorResponse: fields of a letter and a
// string that ends in a zero byte.
func errorFields(body []byte) (code, text string) {
	for len(body) > 1 && body[0] != 0 {
		value, rest, _ := bytes.Cut(body[1:], []byte{0})
		switch body[0] {
		case 'C':
			code = string(value)
		case 'M':
			text = string(value)
		}
		body = rest
	}
	return code, text
}
