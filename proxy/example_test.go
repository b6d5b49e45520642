package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/proxy"
)

func Example() {
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer backend.Close()
	go func() {
		for c, err := backend.Accept(); err == nil; c, err = backend.Accept() {
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	nobody, _ := net.Listen("tcp", "127.0.0.1:0") // a backend that is down
	nobody.Close()

	backends, err := holdfast.New(holdfast.Static(nobody.Addr().String(), backend.Addr().String()), holdfast.Config{Picker: holdfast.Ordered()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer backends.Close()
	p, err := proxy.New(proxy.Config{Cluster: backends})
	if err != nil {
		fmt.Println(err)
		return
	}
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	served := make(chan error)
	go func() { served <- p.Serve(front) }()

	c, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Fprint(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(c)
	fmt.Printf("%s %v\n", answer, err)
	c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	fmt.Println(p.Shutdown(ctx), p.Stats().Hidden, "failure hidden")
	fmt.Println(<-served)
	// Output:
	// hello <nil>
	// <nil> 1 failure hidden
	// proxy: closed: use of closed network connection
}

// Names are routed without ending TLS: the proxy reads what the client asks for, and
// passes all of it on.
func Example_routes() {
	web, err := holdfast.New(holdfast.Static("10.0.0.1:443", "10.0.0.2:443"), holdfast.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	mail, err := holdfast.New(holdfast.Static("10.0.0.3:465"), holdfast.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := proxy.New(proxy.Config{Routes: []proxy.Route{
		{ServerName: "mail.example.com", Cluster: mail},
		{ServerName: "*.example.com", Cluster: web},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
}
