package frame_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/holdfast-net/holdfast/frame"
)

// One side sends messages, the other one finds them again.
func Example() {
	client, server := net.Pipe()
	go func() {
		defer client.Close()
		w := frame.NewWriter(client, frame.Prefix(4))
		w.Send([]byte("any bytes:\n"))
		w.Send([]byte("are a message\n"))
		w.Flush() // has the error of the writes before it, too
	}()

	r := frame.NewReader(server, frame.Prefix(4))
	for {
		msg, err := r.Next()
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%q\n", msg)
	}
	// Output:
	// "any bytes:\n"
	// "are a message\n"
	// EOF
}

func ExampleLines() {
	r := frame.NewReader(strings.NewReader("from Unix\nfrom Windows\r\nfrom a broken conn"), frame.Lines())
	for {
		line, err := r.Next()
		if err != nil {
			fmt.Println(errors.Is(err, io.ErrUnexpectedEOF))
			return
		}
		fmt.Printf("%q\n", line)
	}
	// Output:
	// "from Unix"
	// "from Windows"
	// true
}

// PostgreSQL's messages are a type, and a length that counts itself but not the type.
func ExampleLength() {
	postgres, err := frame.Length{Offset: 1, Adjust: -4, Strip: -1, Max: 16 << 20}.Format()
	if err != nil {
		fmt.Println(err)
		return
	}
	query, _ := postgres.Append(nil, []byte("Q....SELECT 1\x00"))
	fmt.Printf("%q\n", query)

	_, err = postgres.Cut([]byte("Q\x00\x00\x00\x03"), 0)
	fmt.Println(err)
	// Output:
	// "Q\x00\x00\x00\rSELECT 1\x00"
	// frame: malformed: length 3 where 4 is the least
}

// A Format needs no Reader where the bytes are there already.
func ExampleFormat_cut() {
	lines, packet := frame.Lines(), []byte("one\ntwo\nthr")
	for {
		f, err := lines.Cut(packet, 0)
		if err != nil || f.Size == 0 {
			fmt.Printf("%q remains\n", packet)
			return
		}
		fmt.Printf("%q\n", f.Msg)
		packet = packet[f.Size:]
	}
	// Output:
	// "one"
	// "two"
	// "thr" remains
}
