//go:build unix

package sockopt_test

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/sockopt"
)

func Example() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ln.Close()

	o := sockopt.Options{
		KeepAlive:   net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		UserTimeout: 30 * time.Second,
	}
	d := net.Dialer{Control: o.Control, KeepAlive: -1}
	conn, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := o.Apply(conn); err != nil {
		fmt.Println(err)
	}

	p := sockopt.NewPoller(conn.(syscall.Conn))
	fmt.Println(p.Poll())
	conn.Close()
	fmt.Println(p.Poll())
	// Output:
	// idle
	// closed
}
