package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
)

// buffers is what a stream carries when it is read and written in pieces of a size.
func buffers() ([]figure, error) {
	const total = 64 << 20
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	sizes := make(chan int, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			piece := make([]byte, <-sizes)
			for n := 0; n < total; n += len(piece) {
				if _, err := conn.Write(piece); err != nil {
					break
				}
			}
			conn.Close()
		}
	}()
	c, err := holdfast.New(holdfast.Static(ln.Addr().String()), holdfast.Config{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var rates []string
	for _, size := range []int{1 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10} {
		best := time.Duration(1<<63 - 1)
		for range 3 {
			sizes <- size
			took, err := drained(c, make([]byte, size))
			if err != nil {
				return nil, err
			}
			best = min(best, took)
		}
		rates = append(rates, fmt.Sprintf("%d KiB %.0f MB/s", size>>10, total/1e6/best.Seconds()))
	}
	return []figure{{name: "stream: reads and writes of 1 to 64 KiB", ours: strings.Join(rates, ", "), peer: "–", bar: "–", verdict: "reported"}}, nil
}

func drained(c *holdfast.Cluster, buf []byte) (time.Duration, error) {
	conn, err := c.DialContext(context.Background(), "tcp", "any")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	begin := time.Now()
	for {
		if _, err := conn.Read(buf); err == io.EOF {
			return time.Since(begin), nil
		} else if err != nil {
			return 0, err
		}
	}
}
