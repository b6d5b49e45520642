package pipeline_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/pipeline"
)

func serve(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				w := bufio.NewWriter(c)
				for {
					l, err := r.ReadString('\n')
					if err != nil {
						return
					}
					w.WriteString("re " + l)
					if r.Buffered() == 0 {
						w.Flush()
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func client(t testing.TB, addr string) *pipeline.Client[string] {
	c, err := holdfast.New(holdfast.Static(addr), holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := pipeline.New(c, pipeline.Config[string]{
		Decoder: pipeline.Frames(frame.Lines(), func(b []byte) (string, error) { return string(b), nil }),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); c.Close() })
	return p
}

func TestSmoke(t *testing.T) {
	p := client(t, serve(t))
	for _, n := range []int{1, 2, 16, 200} {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				for j := range 200 {
					q := fmt.Sprintf("%d-%d", i, j)
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					v, err := p.Do(ctx, pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return append(append(dst, q...), '\n'), nil }})
					cancel()
					if err != nil || strings.TrimPrefix(v, "re ") != q {
						t.Errorf("%q: %q, %v", q, v, err)
						return
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d: %+v", n, p.Stats())
	}
}

func BenchmarkDo(b *testing.B) {
	for _, n := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := client(b, serve(b))
			b.ReportAllocs()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					for range b.N / n {
						if _, err := p.Do(context.Background(), pipeline.Request{Encode: func(dst []byte, _ uint64) ([]byte, error) { return append(dst, "hello\n"...), nil }}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
