package frame

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
)

func benchmarkNext(b *testing.B, f Format, size int) {
	frame, err := f.Append(nil, bytes.Repeat([]byte("a"), size))
	if err != nil {
		b.Fatal(err)
	}
	r := NewReader(&endlessly{data: bytes.Repeat(frame, 1+largeBuffer/len(frame))}, f)
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 16 << 10, 512 << 10} {
		b.Run("prefix/"+strconv.Itoa(size), func(b *testing.B) { benchmarkNext(b, Prefix(4), size) })
	}
	for _, size := range []int{64, 1 << 10, 16 << 10} {
		b.Run("lines/"+strconv.Itoa(size), func(b *testing.B) { benchmarkNext(b, Lines(), size) })
		several := build(b, Delimited{By: []string{"\r\n", "\x00", "--boundary--"}})
		b.Run("several/"+strconv.Itoa(size), func(b *testing.B) { benchmarkNext(b, several, size) })
	}
	for _, size := range []int{64, 1 << 10} {
		b.Run("varint/"+strconv.Itoa(size), func(b *testing.B) { benchmarkNext(b, Varint(0), size) })
		b.Run("netstring/"+strconv.Itoa(size), func(b *testing.B) { benchmarkNext(b, Netstring(0), size) })
		b.Run("fixed/"+strconv.Itoa(size), func(b *testing.B) { benchmarkNext(b, Fixed(size), size) })
	}
}

func BenchmarkNextOwned(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 16 << 10, 512 << 10} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			frame, _ := Prefix(4).Append(nil, make([]byte, size))
			r := NewReader(&endlessly{data: bytes.Repeat(frame, 1+largeBuffer/len(frame))}, Prefix(4))
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				_, release, err := r.NextOwned()
				if err != nil {
					b.Fatal(err)
				}
				release()
			}
		})
	}
}

func BenchmarkSend(b *testing.B) {
	for _, f := range smallFormats(b) {
		b.Run(fmt.Sprintf("%T", f), func(b *testing.B) {
			w := NewWriter(io.Discard, f)
			msg := bytes.Repeat([]byte("a"), 64)
			b.ReportAllocs()
			for b.Loop() {
				w.Send(msg)
			}
		})
	}
}

// Large messages from a socket, whose buffer goes with each of them.
func BenchmarkNextLoopback(b *testing.B) {
	for _, size := range []int{16 << 10, 128 << 10, 512 << 10, 1 << 20} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			conn, peer := loopback(b)
			frame, _ := Prefix(4).Append(nil, make([]byte, size))
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					if _, err := conn.Write(frame); err != nil {
						return
					}
				}
			}()
			r := NewReader(peer, Prefix(4))
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
			peer.Close()
			<-ended
		})
	}
}

func loopback(b *testing.B) (client, server net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { client.Close() })
	if server, err = ln.Accept(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { server.Close() })
	return client, server
}

// Sixteen messages per Flush over loopback, to a peer that reads whatever comes: what
// copyBelow is chosen by.
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{64, 4 << 10, 16 << 10, 64 << 10} {
		for name, only := range map[string]func(net.Conn) io.Writer{
			"writev": func(c net.Conn) io.Writer { return c },
			"copied": func(c net.Conn) io.Writer { return struct{ io.Writer }{c} },
		} {
			b.Run(name+"/"+strconv.Itoa(size), func(b *testing.B) { benchmarkLoopback(b, only, size) })
		}
	}
}

func benchmarkLoopback(b *testing.B, only func(net.Conn) io.Writer, size int) {
	conn, peer := loopback(b)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{peer}, make([]byte, 1<<20))
	}()

	w := NewWriter(only(conn), Prefix(4))
	msg := make([]byte, size)
	b.SetBytes(int64(16 * size))
	b.ReportAllocs()
	for b.Loop() {
		for range 16 {
			w.Send(msg)
		}
		if err := w.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	conn.Close()
	<-drained
}
