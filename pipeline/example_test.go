package pipeline_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"net"
	"sync"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/pipeline"
)

// Lines in order: whoever asks gets the line that answers it, however many ask at once.
func Example() {
	cluster, err := holdfast.New(holdfast.Static(echoServer()), holdfast.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	lines := frame.Lines()
	client, err := pipeline.New(cluster, pipeline.Config[string]{
		Decoder: pipeline.Frames(lines, func(line []byte) (string, error) { return string(line), nil }),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			question := fmt.Sprint("question ", i)
			answer, err := client.Do(context.Background(), pipeline.Request{
				Safety: holdfast.Idempotent,
				Encode: func(dst []byte, _ uint64) ([]byte, error) { return lines.Append(dst, []byte(question)) },
			})
			if err != nil || answer != question {
				log.Fatal(answer, err)
			}
		})
	}
	wg.Wait()
	fmt.Println(client.Stats().Replies, "answers")
	// Output: 100 answers
}

// Requests with numbers, as most binary protocols have them: a length, a number, and
// what is to be said.
func ExampleConfig() {
	cluster, err := holdfast.New(holdfast.Static(echoServer()), holdfast.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	type reply struct {
		id   uint64
		text string
	}
	messages := frame.Prefix(4)
	client, err := pipeline.New(cluster, pipeline.Config[reply]{
		Decoder: pipeline.Frames(messages, func(msg []byte) (reply, error) {
			if len(msg) < 4 {
				return reply{}, errors.New("a message without a number")
			}
			return reply{uint64(binary.BigEndian.Uint32(msg)), string(msg[4:])}, nil
		}),
		ID: func(r reply) (uint64, bool) { return r.id, true },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	answer, err := client.Do(context.Background(), pipeline.Request{
		Encode: func(dst []byte, id uint64) ([]byte, error) {
			return messages.Append(dst, append(binary.BigEndian.AppendUint32(nil, uint32(id)), "hello"...))
		},
	})
	fmt.Println(answer.text, err)
	// Output: hello <nil>
}

// What is not known to have failed must not be repeated blindly.
func ExampleError() {
	err := error(&pipeline.Error{Outcome: pipeline.Unknown, Node: "10.0.0.1:7000", Err: net.ErrClosed})
	if e, ok := errors.AsType[*pipeline.Error](err); ok && e.SafeToRetry() {
		fmt.Println("again")
	} else {
		fmt.Println("look first:", err)
	}
	// Output: look first: pipeline: 10.0.0.1:7000: sent, no reply: use of closed network connection
}

// echoServer sends back whatever comes, until the process ends.
func echoServer() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					c.Write(buf[:n])
				}
			}()
		}
	}()
	return ln.Addr().String()
}
