package record_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/holdfast-net/holdfast/internal/record"
)

func Example() {
	b := record.Append([]byte{1}, []byte("10.0.0.1:7000"), []byte("unread"))
	fields, err := record.Split(b[1:], 2)
	fmt.Printf("%q %v\n", fields, err)
	// Output: ["10.0.0.1:7000" "unread"] <nil>
}

func TestCutAnywhereIsAnError(t *testing.T) {
	b := record.Append(nil, []byte("one"), nil, bytes.Repeat([]byte("x"), 300))
	for i := range b {
		if _, err := record.Split(b[:i], 3); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("%d of %d bytes: %v", i, len(b), err)
		}
	}
	if fields, err := record.Split(append(b, "more"...), 3); err != nil || len(fields[2]) != 300 || len(fields[1]) != 0 {
		t.Errorf("%q, %v", fields, err)
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(record.Append(nil, []byte("a"), []byte("b")), 2)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		fields, err := record.Split(b, n&7)
		if err == nil && !bytes.HasPrefix(b, record.Append(nil, fields...)) && len(record.Append(nil, fields...)) == len(b) {
			t.Errorf("%x became %q", b, fields)
		}
	})
}
