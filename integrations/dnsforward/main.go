// Command dnsforward is a DNS forwarder, an example of datagrams on both sides. A query
// goes to one of the servers, and again to another if no reply comes, from a port and with
// a number that nobody can guess. It keeps no replies and speaks no TCP.
//
//	dnsforward -l 127.0.0.1:5353 -u 192.0.2.1:53,192.0.2.2:53
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"log"
	"net"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/serve"
)

func main() {
	listen := flag.String("l", "127.0.0.1:5353", "address to serve")
	upstreams := flag.String("u", "", "servers to ask, HOST:PORT[,HOST:PORT…]")
	limit := flag.Duration("t", 4*time.Second, "when to answer SERVFAIL")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *listen, "udp://"+strings.ReplaceAll(*upstreams, ",", ",udp://"), *limit); !errors.Is(err, serve.ErrServerClosed) {
		log.Fatal("dnsforward: ", err)
	}
}

func run(ctx context.Context, listen, upstreams string, limit time.Duration) error {
	c, err := holdfast.New(holdfast.Static(strings.Split(upstreams, ",")...), holdfast.Config{
		Retry:     holdfast.Retry{Budget: &holdfast.Budget{Percent: 100}},
		Datagrams: holdfast.Datagrams{ID: id, SetID: setID, Match: isReply, Max: 4096, Sends: 8, First: 500 * time.Millisecond, Uses: 1},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	pc, err := net.ListenPacket("udp", listen)
	if err != nil {
		return err
	}
	local := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	srv := &serve.Packets{Batch: 1, Workers: 100, Limits: serve.PacketLimits{Allow: local, Amplification: -1}}
	srv.Handler = func(ctx context.Context, p *serve.Packet) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		if question(p.Data) == nil || p.Data[2]&0x80 != 0 {
			return nil // no query
		}
		reply, err := c.Exchange(ctx, holdfast.Idempotent, p.Data, nil)
		switch {
		case errors.Is(err, holdfast.ErrTruncated):
			reply = answer(p.Data, 2, 0) // the client is to ask by TCP
		case err != nil:
			reply = answer(p.Data, 0, 2) // SERVFAIL
		}
		return p.Reply(reply)
	}
	context.AfterFunc(ctx, func() { srv.Shutdown(context.Background()) }) // which takes as long as limit
	return srv.ServePacket(pc)
}

func id(m []byte) (uint64, bool) {
	if len(m) < 2 {
		return 0, false
	}
	return uint64(binary.BigEndian.Uint16(m)), true
}
func setID(m []byte, id uint64) { binary.BigEndian.PutUint16(m, uint16(id)) }

func isReply(query, m []byte) bool {
	return bytes.Equal(question(query), question(m)) && m[2]&0x80 != 0
}

// question is what a reply repeats, nil if there is none.
func question(m []byte) []byte {
	for i := 12; i < len(m)-4; i += 1 + int(m[i]) {
		if m[i] == 0 {
			return m[12 : i+5]
		}
	}
	return nil
}

// answer is a reply of no records: the query's header and question (RFC 1035 §4.1.1).
func answer(query []byte, flags, code byte) []byte {
	m := append([]byte(nil), query[:12+len(question(query))]...)
	m[2], m[3] = m[2]&0x79|0x80|flags, 0x80|code
	clear(m[6:12])
	return m
}
