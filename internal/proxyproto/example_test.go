package proxyproto_test

import (
	"fmt"
	"net/netip"

	"github.com/holdfast-net/holdfast/internal/proxyproto"
)

func Example() {
	header, err := proxyproto.Header{
		Version:     1,
		Source:      netip.MustParseAddrPort("192.168.0.1:56324"),
		Destination: netip.MustParseAddrPort("192.168.0.11:443"),
	}.Append(nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	received := append(header, "GET / HTTP/1.1\r\n"...)

	_, n, err := proxyproto.Parse(received[:20])
	fmt.Println("after 20 bytes:", n, err)
	h, n, err := proxyproto.Parse(received)
	fmt.Println(h.Source, "to", h.Destination, err)
	fmt.Printf("%q\n", received[n:])
	// Output:
	// after 20 bytes: 0 <nil>
	// 192.168.0.1:56324 to 192.168.0.11:443 <nil>
	// "GET / HTTP/1.1\r\n"
}
