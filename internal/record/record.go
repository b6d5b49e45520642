// Package record writes a few byte strings one behind the other, and reads them back: the
// state in which a connection passes from one process to the next.
//
//	b := record.Append([]byte{version}, client, unread)
//	…
//	fields, err := record.Split(b[1:], 2)
//
// Each field has its length in front, as a uvarint. What is behind the fields that are
// asked for is left alone, so a newer version may add some at the end.
package record

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Append appends the fields to b.
func Append(b []byte, fields ...[]byte) []byte {
	for _, f := range fields {
		b = binary.AppendUvarint(b, uint64(len(f)))
		b = append(b, f...)
	}
	return b
}

// Split returns the first n fields. They are parts of b, which cannot grow into each
// other.
func Split(b []byte, n int) ([][]byte, error) {
	fields := make([][]byte, 0, n)
	for range n {
		length, size := binary.Uvarint(b)
		if size <= 0 || length > uint64(len(b)-size) {
			return nil, fmt.Errorf("field %d of %d: %w", len(fields)+1, n, io.ErrUnexpectedEOF)
		}
		end := size + int(length)
		fields = append(fields, b[size:end:end])
		b = b[end:]
	}
	return fields, nil
}
