package proxy

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast"
)

// Connections that stay are spread over the loops: evenly while they are few, and so that
// none has much more than its part when they are many.
func TestLoopsShareConnections(t *testing.T) {
	node, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := node.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	t.Cleanup(func() { node.Close() })
	cluster, err := holdfast.New(holdfast.Static("tcp://"+node.Addr().String()), holdfast.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cluster.Close() })
	const loops = 4
	p, err := New(Config{Cluster: cluster, Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve(ln) }()
	t.Cleanup(func() {
		p.Close()
		<-served
	})
	open := 0
	for _, want := range []int{loops, 400} {
		for ; open < want; open++ {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		var each []int
		for _, l := range p.loops.all {
			each = append(each, int(l.open.Load()))
		}
		most, least := slices.Max(each), slices.Min(each)
		if most-least > 1+2*open/loops/8 {
			t.Errorf("%d connections are on the loops as %v", open, each)
		}
	}
}
