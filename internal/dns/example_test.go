package dns

import (
	"context"
	"fmt"
	"time"
)

func ExampleClient_LookupIP() {
	db := zone{"db.example.": {ip(60, "192.0.2.1"), ip(300, "2001:db8::1")}}
	c := &Client{
		Servers: []string{"192.0.2.53:53"}, // leave it out for those of resolv.conf
		Dial:    pipes(map[string]handler{"192.0.2.53:53": db.handle}),
		Timeout: time.Second,
	}
	addrs, ttl, err := c.LookupIP(context.Background(), "db.example.")
	fmt.Println(addrs, ttl, err)

	_, _, err = c.LookupIP(context.Background(), "dp.example.")
	fmt.Println(err)
	// Output:
	// [2001:db8::1 192.0.2.1] 1m0s <nil>
	// lookup "dp.example.": no such name from 192.0.2.53:53
}
