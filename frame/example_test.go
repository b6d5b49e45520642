package frame_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"

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

	for msg, err := range frame.NewReader(server, frame.Prefix(4)).All() {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%q\n", msg)
	}
	// Output:
	// "any bytes:\n"
	// "are a message\n"
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

// SMTP ends a mail with a line that is a dot.
func ExampleDelimited() {
	mail, err := frame.Delimited{By: []string{"\r\n.\r\n"}, Max: 10 << 20}.Format()
	if err != nil {
		fmt.Println(err)
		return
	}
	b, _ := mail.Append(nil, []byte("Subject: dots\r\n\r\n... --- ..."))
	fmt.Printf("%q\n", b)

	_, err = mail.Append(nil, []byte("one\r\n.\r\ntwo"))
	fmt.Println(err)
	// Output:
	// "Subject: dots\r\n\r\n... --- ...\r\n.\r\n"
	// frame: malformed: the message to send has the delimiter "\r\n.\r\n" in it
}

// A message that is too large need not be the end of the connection.
func ExampleReader_skipTooLarge() {
	r := frame.NewReader(strings.NewReader("2:ok,1000:"+strings.Repeat(".", 1000)+",4:fine,"), frame.Netstring(100))
	r.SkipTooLarge = true
	for msg, err := range r.All() {
		if errors.Is(err, frame.ErrTooLarge) {
			fmt.Println(err)
			continue
		}
		if err != nil {
			fmt.Println("the end:", err)
			return
		}
		fmt.Printf("%q\n", msg)
	}
	// Output:
	// "ok"
	// frame: message too large: length 1000 where 100 is the most
	// "fine"
}

// Messages go to other goroutines, and their memory comes back.
func ExampleReader_NextOwned() {
	r := frame.NewReader(strings.NewReader("one\ntwo\nthree\n"), frame.Lines())
	var workers sync.WaitGroup
	var bytes atomic.Int64
	for {
		msg, release, err := r.NextOwned()
		if err != nil {
			break // io.EOF
		}
		workers.Go(func() {
			defer release()
			bytes.Add(int64(len(msg)))
		})
	}
	workers.Wait()
	fmt.Println(bytes.Load())
	// Output: 11
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
