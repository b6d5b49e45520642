package health_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
)

func Example() {
	status := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.NotFound(w, r)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(status))
	defer server.Close()
	addr := strings.TrimPrefix(server.URL, "http://")

	m, err := health.New(health.Config{Services: map[string]health.Service{
		"port":   {Addr: addr},
		"status": {Addr: addr, Kind: "http /status"},
		"orders": {Addr: addr, Kind: "http /orders 200-399"},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	results := m.CheckAll(context.Background())
	fmt.Println("healthy:", m.Healthy())
	fmt.Println("orders: ", results["orders"].Err)
	// Output:
	// healthy: [port status]
	// orders:  health: status 404, want 200 to 399
}

// A probe is for the checks of any Cluster.
func ExampleExchange() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("220 mail.example ESMTP\r\n"))
			conn.Close()
		}
	}()

	checked := make(chan error, 100)
	c, err := holdfast.New(holdfast.Static(ln.Addr().String()), holdfast.Config{
		Probe: health.Exchange{{Expect: []byte("220 ")}}.Probe,
		Observe: func(e holdfast.Event) {
			if e.Kind == holdfast.EventCheck {
				checked <- e.Err
			}
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	c.Refresh(0)
	fmt.Println(<-checked)
	// Output: <nil>
}
