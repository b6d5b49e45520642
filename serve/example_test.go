package serve_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/serve"
)

func Example() {
	srv := &serve.Server{Handler: serve.HandlerFunc(func(_ context.Context, c *serve.Conn) error {
		_, err := io.WriteString(c, "hello, "+c.RemoteAddr().Network()+"\n")
		return err
	})}
	ln, err := serve.Listen(context.Background(), "tcp://127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)

	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	answer, _ := io.ReadAll(conn)
	conn.Close()
	fmt.Printf("%s%v\n", answer, srv.Shutdown(context.Background()))
	// Output:
	// hello, tcp
	// <nil>
}

func ExampleFrames() {
	srv := &serve.Server{Handler: serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
		return c.Send(append([]byte("you said "), line...))
	})}
	ln, err := serve.Listen(context.Background(), "tcp://127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	go srv.Serve(ln)
	defer srv.Close()

	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	io.WriteString(conn, "hello\n")
	answer, _ := bufio.NewReader(conn).ReadString('\n')
	fmt.Print(answer)
	// Output: you said hello
}
