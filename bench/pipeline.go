package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/pipeline"
)

// pipelineRows compare requests that share a connection with requests that have one of
// their own, and frames with the standard library's lines.
func pipelineRows() []row {
	var rows []row
	for _, callers := range []int{1, 16, 256} {
		rows = append(rows, row{name: fmt.Sprintf("pipeline: echo, in order, %d callers", callers), peer: "a pooled connection per request",
			n: 20_000 + 200*callers, start: echoRow(callers, false)})
	}
	return append(rows,
		row{name: "pipeline: echo, by number, 256 callers", peer: "a pooled connection per request", n: 60_000, start: echoRow(256, true)},
		row{name: "frame: lines of 64 B", peer: "bufio.Scanner", n: 2_000_000, zeroAllocs: true, start: linesRow},
		row{name: "frame: a line of 1 MiB, a byte at a time", peer: "bufio.Scanner", n: 1 << 20, start: trickleRow},
	)
}

// echoRow has a server that sends back what comes.
func echoRow(callers int, numbers bool) func() (side, side, func(), error) {
	return func() (side, side, func(), error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, nil, err
		}
		go bareServer(ln)
		c, err := holdfast.New(holdfast.Static(ln.Addr().String()), holdfast.Config{Pool: holdfast.Pool{Max: callers}})
		if err != nil {
			return nil, nil, nil, err
		}
		format := frame.Prefix(4)
		cfg := pipeline.Config[string]{Decoder: pipeline.Frames(format, func(msg []byte) (string, error) { return string(msg), nil })}
		if numbers {
			cfg.ID = func(reply string) (id uint64, ok bool) {
				for _, c := range []byte(reply[:8]) {
					id = id<<8 | uint64(c)
				}
				return id, true
			}
			cfg.IDBits = 64
		}
		p, err := pipeline.New(c, cfg)
		if err != nil {
			return nil, nil, nil, err
		}
		body := strings.Repeat("x", 56)
		ours := func(ctx context.Context, _ bool) error {
			_, err := p.Do(ctx, pipeline.Request{Encode: func(dst []byte, id uint64) ([]byte, error) {
				dst = append(dst, 0, 0, 0, 64)
				for shift := 56; shift >= 0; shift -= 8 {
					dst = append(dst, byte(id>>shift))
				}
				return append(dst, body...), nil
			}})
			return err
		}
		own := func(ctx context.Context, _ bool) error {
			return c.Do(ctx, holdfast.Unsafe, func(_ context.Context, conn *holdfast.Conn) error {
				var b [68]byte
				b[3] = 64
				if _, err := conn.Write(b[:]); err != nil {
					return err
				}
				_, err := io.ReadFull(conn, b[:])
				return err
			})
		}
		return asked(ours, callers), asked(own, callers), func() { p.Close(); c.Close(); ln.Close() }, nil
	}
}

func linesRow() (side, side, func(), error) {
	line := []byte(strings.Repeat("x", 63) + "\n")
	ours := func(n int) int {
		r := frame.NewReader(&repeating{line, 0, n * len(line)}, frame.Lines())
		return n - counted(func() bool { _, err := r.Next(); return err == nil })
	}
	theirs := func(n int) int {
		s := bufio.NewScanner(&repeating{line, 0, n * len(line)})
		return n - counted(s.Scan)
	}
	return ours, theirs, func() {}, nil
}

func counted(next func() bool) (n int) {
	for next() {
		n++
	}
	return n
}

// repeating is a text over and over, up to so many bytes.
type repeating struct {
	text     []byte
	at, left int
}

func (r *repeating) Read(p []byte) (n int, err error) {
	p = p[:min(len(p), r.left)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	for n < len(p) {
		m := copy(p[n:], r.text[r.at:])
		n += m
		r.at = (r.at + m) % len(r.text)
	}
	r.left -= n
	return n, nil
}

func trickleRow() (side, side, func(), error) {
	format, err := frame.Delimited{Max: 2 << 20}.Format()
	if err != nil {
		return nil, nil, nil, err
	}
	text := append(bytes.Repeat([]byte("x"), 1<<20-1), '\n')
	ours := func(int) int {
		if _, err := frame.NewReader(&trickle{text}, format).Next(); err != nil {
			return 1
		}
		return 0
	}
	theirs := func(int) int {
		s := bufio.NewScanner(&trickle{text})
		s.Buffer(nil, 2<<20)
		if !s.Scan() || errors.Is(s.Err(), bufio.ErrTooLong) {
			return 1
		}
		return 0
	}
	return ours, theirs, func() {}, nil
}

// trickle gives a byte at a time.
type trickle struct{ rest []byte }

func (t *trickle) Read(p []byte) (int, error) {
	if len(t.rest) == 0 {
		return 0, io.EOF
	}
	p[0] = t.rest[0]
	t.rest = t.rest[1:]
	return 1, nil
}
