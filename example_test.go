package holdfast_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Two servers, of which the first is down.
func ExampleNew() {
	up := listen(answer)
	defer up.Close()

	c, err := holdfast.New(
		holdfast.Static("tcp://127.0.0.1:1", "tcp://"+up.Addr().String()),
		holdfast.Config{
			Picker:   holdfast.Ordered(),
			Timeouts: holdfast.Timeouts{Dial: 2 * time.Second, Read: 10 * time.Second},
			Pool:     holdfast.Pool{Max: 8},
		})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	for i, node := range c.Stats().Nodes {
		fmt.Printf("server %d: %d of %d dials failed\n", i+1, node.DialFailures, node.Dials)
	}
	// Output:
	// server 1: 1 of 1 dials failed
	// server 2: 0 of 1 dials failed
}

// A request and its reply, which may run again on the other server.
func ExampleCluster_Do() {
	one, two := listen(answer), listen(answer)
	defer one.Close()
	defer two.Close()
	c, err := holdfast.New(holdfast.Static(one.Addr().String(), two.Addr().String()), holdfast.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var reply string
	err = c.Do(ctx, holdfast.Idempotent, func(ctx context.Context, conn *holdfast.Conn) error {
		if _, err := io.WriteString(conn, "PING\n"); err != nil {
			return err
		}
		buf := make([]byte, len("PONG\n"))
		_, err := io.ReadFull(conn, buf)
		reply = string(buf)
		return err
	})
	var failure *holdfast.Error
	switch {
	case err == nil:
		fmt.Print(reply)
	case errors.As(err, &failure) && failure.SafeToRetry():
		fmt.Println("nothing was sent:", err)
	default:
		fmt.Println("it may have been done:", err)
	}
	// Output: PONG
}

// A request in a datagram. The first two bytes are its number, as in DNS. One server is
// down: the request goes to the other.
func ExampleCluster_Exchange() {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(append(buf[:2:2], answer(string(buf[2:n]))...), from)
		}
	}()

	c, err := holdfast.New(
		holdfast.Static("udp://127.0.0.1:1", "udp://"+server.LocalAddr().String()),
		holdfast.Config{
			Picker: holdfast.Ordered(),
			Datagrams: holdfast.Datagrams{
				ID: func(m []byte) (uint64, bool) {
					if len(m) < 2 {
						return 0, false
					}
					return uint64(binary.BigEndian.Uint16(m)), true
				},
				SetID: func(m []byte, id uint64) { binary.BigEndian.PutUint16(m, uint16(id)) },
			},
		})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply, err := c.Exchange(ctx, holdfast.Idempotent, []byte("\x00\x00PING"), nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", reply[2:])
	// Output: PONG
}

// Any driver that takes a dial function fails over between the cluster's nodes.
func ExampleCluster_DialContext() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello,", r.Host)
	}))
	defer server.Close()

	c, err := holdfast.New(
		holdfast.Static("127.0.0.1:1", server.Listener.Addr().String()), // nobody listens at port 1
		holdfast.Config{Picker: holdfast.Ordered()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	client := &http.Client{Transport: &http.Transport{DialContext: c.DialContext}}
	resp, err := client.Get("http://backend/") // the name only stands for the cluster
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(body))
	// Output: hello, backend
}

// An error reply that was read to its end leaves the connection sound: it is
// marked, and the connection serves the next.
func ExampleReusable() {
	server := listen(answer)
	defer server.Close()
	c, err := holdfast.New(holdfast.Static(server.Addr().String()), holdfast.Config{
		Handshake: func(ctx context.Context, conn *holdfast.Conn) error {
			conn.Session = bufio.NewReader(conn) // lives as long as the connection
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	get := func(ctx context.Context, key string) (value string, err error) {
		err = c.Do(ctx, holdfast.Idempotent, func(ctx context.Context, conn *holdfast.Conn) error {
			if _, err := fmt.Fprintf(conn, "GET %s\n", key); err != nil {
				return err
			}
			line, err := conn.Session.(*bufio.Reader).ReadString('\n')
			if err != nil {
				return err
			}
			value = strings.TrimSpace(line)
			if text, failed := strings.CutPrefix(value, "-"); failed {
				return holdfast.Reusable(errors.New(text))
			}
			return nil
		})
		return value, err
	}
	_, err = get(context.Background(), "nothing")
	fmt.Println(err)
	value, err := get(context.Background(), "colour")
	fmt.Println(value, err)
	fmt.Println("dials:", c.Stats().Nodes[0].Dials)
	// Output:
	// no such key
	// blue <nil>
	// dials: 1
}

// answer is what the servers of the examples say to a line.
func answer(line string) string {
	switch line {
	case "PING":
		return "PONG"
	case "GET colour":
		return "blue"
	}
	return "-no such key"
}

// listen starts a server on the loopback that answers lines until it is closed.
func listen(answer func(line string) string) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					fmt.Fprintln(conn, answer(lines.Text()))
				}
			}()
		}
	}()
	return ln
}
