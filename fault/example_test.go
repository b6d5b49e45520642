package fault_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/fault"
)

// echo serves on a port of its own.
func echo() net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	return ln
}

func Example() {
	server := echo()
	defer server.Close()
	faults := fault.New(fault.Plan{Down: fault.Link{Latency: 20 * time.Millisecond}})
	defer faults.Close()

	conn, _ := net.Dial("tcp", server.Addr().String())
	conn = faults.Conn(conn)
	defer conn.Close()
	replies := bufio.NewReader(conn)

	start := time.Now()
	fmt.Fprintln(conn, "slow")
	reply, err := replies.ReadString('\n')
	fmt.Printf("%q %v %v\n", reply, err, time.Since(start) >= 20*time.Millisecond)

	faults.Set(fault.Plan{Down: fault.Link{After: 3, Then: fault.Reset}})
	fmt.Fprintln(conn, "broken")
	reply, err = replies.ReadString('\n')
	fmt.Printf("%q %v\n", reply, errors.Is(err, syscall.ECONNRESET))

	// Output:
	// "slow\n" <nil> true
	// "bro" true
}

// A server that reads its clients' requests one byte at a time.
func ExampleInjector_Listener() {
	faults := fault.New(fault.Plan{Down: fault.Link{Slice: 1}})
	defer faults.Close()
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	ln = faults.Listener(ln)
	defer ln.Close()

	client, _ := net.Dial("tcp", ln.Addr().String())
	defer client.Close()
	conn, _ := ln.Accept()

	fmt.Fprint(client, "GET")
	buf := make([]byte, 100)
	for range 3 {
		n, _ := conn.Read(buf)
		fmt.Printf("%s\n", buf[:n])
	}
	// Output:
	// G
	// E
	// T
}

// A half-open connection: the peer is gone, and nobody says so.
func ExampleInjector_Set() {
	server := echo()
	defer server.Close()
	faults := fault.New(fault.Plan{})
	defer faults.Close()
	conn, _ := faults.Dial(nil)(context.Background(), "tcp", server.Addr().String())
	defer conn.Close()

	gone := fault.Link{Then: fault.BlackHole}
	faults.Set(fault.Plan{Up: gone, Down: gone})
	_, err := fmt.Fprint(conn, "are you there?")
	fmt.Println("write:", err)

	conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err = conn.Read(make([]byte, 100))
	fmt.Println("read times out:", err.(net.Error).Timeout())

	// Output:
	// write: <nil>
	// read times out: true
}

// A reply that arrives twice: who matches replies to requests must not take the second
// for that of the next one.
func ExampleInjector_PacketConn() {
	sock, _ := net.ListenPacket("udp", "127.0.0.1:0")
	peer, _ := net.ListenPacket("udp", "127.0.0.1:0")
	defer peer.Close()

	faults := fault.New(fault.Plan{Down: fault.Link{Packets: fault.Packets{Duplicate: 1}}})
	defer faults.Close()
	sock = faults.PacketConn(sock)

	peer.WriteTo([]byte("reply"), sock.LocalAddr())
	buf := make([]byte, 100)
	for range 2 {
		n, _, err := sock.ReadFrom(buf)
		fmt.Printf("%s %v\n", buf[:n], err)
	}
	fmt.Println(faults.Stats().DownPackets.Duplicated, "duplicated")
	// Output:
	// reply <nil>
	// reply <nil>
	// 1 duplicated
}
