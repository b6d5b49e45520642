package redis

import (
	"fmt"
	"strings"
	"testing"
)

func benchmarkDecode(b *testing.B, stream string) {
	d, in := new(decoder), []byte(stream)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := in; len(rest) > 0; {
			_, n, _, err := d.Decode(rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	array := func(n int, element string) string { return fmt.Sprintf("*%d\r\n", n) + strings.Repeat(element, n) }
	for _, c := range []struct{ name, stream string }{
		{"status", "+OK\r\n"},
		{"int", ":12345\r\n"},
		{"nil", "$-1\r\n"},
		{"string/16", "$16\r\n0123456789abcdef\r\n"},
		{"string/1024", "$1024\r\n" + strings.Repeat("x", 1024) + "\r\n"},
		{"double", ",3.1415926\r\n"},
		{"error", "-WRONGTYPE Operation against a key\r\n"},
		{"array/10", array(10, "$8\r\n01234567\r\n")},
		{"array/1000", array(1000, "$8\r\n01234567\r\n")},
		{"ints/1000", array(1000, ":1234\r\n")},
		{"depth/8", strings.Repeat("*1\r\n", 8) + ":1\r\n"},
	} {
		b.Run(c.name, func(b *testing.B) { benchmarkDecode(b, c.stream) })
	}
}

// A string that comes in pieces of 16 KiB, as it does from a socket.
func BenchmarkDecodeLarge(b *testing.B) {
	for _, size := range []int{32 << 10, 1 << 20, 16 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			d, head, piece := new(decoder), fmt.Appendf(nil, "$%d\r\n", size), make([]byte, 16<<10)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				d.Decode(head)
				for range size / len(piece) {
					d.Decode(piece)
				}
				if _, _, done, err := d.Decode([]byte("\r\n")); !done {
					b.Fatal(err)
				}
			}
		})
	}
}

// The worst that a peer can do with splits.
func BenchmarkDecodeByTheByte(b *testing.B) {
	d, in := new(decoder), []byte("$1024\r\n"+strings.Repeat("x", 1024)+"\r\n")
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		for i := range in {
			d.Decode(in[i : i+1])
		}
	}
}

func BenchmarkCommand(b *testing.B) {
	dst := make([]byte, 0, 2048)
	for _, c := range []struct {
		name string
		args []any
	}{
		{"get", []any{"GET", "key:123456"}},
		{"set", []any{"SET", "key:123456", "0123456789abcdef", "EX", 3600}},
		{"float", []any{"ZADD", "z", 3.1415926, "member"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := appendCommand(dst, c.args); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTraits(b *testing.B) {
	for _, args := range [][]any{{"GET", "k"}, {"zrevrangebyscore", "k"}, {"CLIENT", "REPLY"}, {"unknown"}} {
		b.Run(fmt.Sprint(args[0]), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				traitsOf(args)
			}
		})
	}
}

func BenchmarkText(b *testing.B) {
	v := textOf(KindString, "0123456789abcdef")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Text(); err != nil {
			b.Fatal(err)
		}
	}
}
