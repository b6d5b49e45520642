package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/mmsg"
	"github.com/holdfast-net/holdfast/serve"
)

// The comparisons of the server of datagrams, in a process of its own, against a loop of
// ReadFromUDPAddrPort and WriteToUDPAddrPort. The client is the same for both, and spends
// as little as it can.
const (
	packets      = "packets"
	packetsNoGSO = "packets, no GSO"
	packetLoop   = "packet loop"
)

func datagramRows() []row {
	echo := func(kind string, window int) func() (side, side, func(), error) {
		return func() (ours, peer side, end func(), err error) {
			a, err := startPackets(kind, window)
			if err != nil {
				return nil, nil, nil, err
			}
			b, err := startPackets(packetLoop, window)
			if err != nil {
				a.stop()
				return nil, nil, nil, err
			}
			return a.exchange, b.exchange, func() { a.stop(); b.stop() }, nil
		}
	}
	const peer = "a bare net loop"
	return []row{
		{name: "serve: UDP echo 64 B, 1 in flight", peer: peer, n: 60_000, bar: 1, start: echo(packets, 1)},
		{name: "serve: UDP echo 64 B, 256 in flight, without GSO", peer: peer, n: 300_000, bar: 1 / 1.15, start: echo(packetsNoGSO, 256)},
		{name: "serve: UDP echo 64 B, 256 in flight", peer: peer, n: 300_000, start: echo(packets, 256)},
	}
}

// datagramServer is one of the servers with a client of its own.
type datagramServer struct {
	*child
	udp     *net.UDPConn
	conn    *mmsg.Conn
	in, out []mmsg.Message
}

// startPackets makes a client that has window datagrams under way.
func startPackets(kind string, window int) (*datagramServer, error) {
	c, err := startChild(kind)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("udp", c.addr)
	if err != nil {
		c.stop()
		return nil, err
	}
	s := &datagramServer{child: c, udp: conn.(*net.UDPConn)}
	s.udp.SetReadBuffer(4 << 20)
	s.conn = mmsg.New(conn.(net.PacketConn), mmsg.Options{GRO: true})
	s.in, s.out = make([]mmsg.Message, min(window, 32)), make([]mmsg.Message, window)
	for i := range s.in {
		s.in[i].Buf = make([]byte, 1<<16)
	}
	for i := range s.out {
		s.out[i].Buf = line()
	}
	return s, nil
}

func (s *datagramServer) stop() {
	s.udp.Close()
	s.child.stop()
}

// exchange has n datagrams echoed. What is lost is noticed when nothing comes any more.
func (s *datagramServer) exchange(n int) (lost int) {
	sent, got := 0, 0
	send := func(k int) {
		k = min(k, n-sent, len(s.out))
		s.conn.Send(s.out[:k])
		sent += k
	}
	send(len(s.out))
	for got+lost < n {
		s.udp.SetReadDeadline(time.Now().Add(time.Second))
		k, err := s.conn.Receive(s.in)
		came := 0
		for _, m := range s.in[:k] {
			came += datagramsIn(m)
		}
		if err != nil {
			came, lost = 0, sent-got
			send(len(s.out))
		}
		got += came
		send(came)
	}
	return lost
}

func datagramsIn(m mmsg.Message) int {
	if m.Segment <= 0 {
		return 1
	}
	return (m.N + m.Segment - 1) / m.Segment
}

// What a server does depends on the first byte: it counts and is silent, it tells how
// many it counted, or it echoes.
const (
	toCount = '!'
	toTell  = '?'
)

// bePackets is main in a child that serves datagrams.
func bePackets(kind string) error {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(pc.LocalAddr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if kind == packetLoop {
		return barePackets(pc.(*net.UDPConn))
	}
	var counted atomic.Uint64
	srv := &serve.Packets{Socket: serve.PacketSocket{NoGSO: kind == packetsNoGSO}, Handler: func(_ context.Context, p *serve.Packet) error {
		switch p.Data[0] {
		case toCount:
			counted.Add(1)
			return nil
		case toTell:
			return p.Reply(binary.BigEndian.AppendUint64(nil, counted.Load()))
		}
		return p.Reply(p.Data)
	}}
	return srv.ServePacket(pc)
}

func barePackets(udp *net.UDPConn) error {
	var counted uint64
	buf := make([]byte, 2048)
	for {
		n, from, err := udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		reply := buf[:n]
		switch buf[0] {
		case toCount:
			counted++
			continue
		case toTell:
			reply = binary.BigEndian.AppendUint64(nil, counted)
		}
		udp.WriteToUDPAddrPort(reply, from)
	}
}

// datagramFigures are the CPU time of the servers, and what they lose in a flood.
func datagramFigures() ([]figure, error) {
	us := func(v float64) string { return fmt.Sprintf("%.2f µs", v) }
	percent := func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }
	one, err := eachServer(1, func(s *datagramServer) (float64, error) { return s.cpuOf(30_000), nil })
	if err != nil {
		return nil, err
	}
	many, err := eachServer(256, func(s *datagramServer) (float64, error) { return s.cpuOf(300_000), nil })
	if err != nil {
		return nil, err
	}
	lost, err := eachServer(1, func(s *datagramServer) (float64, error) { return s.flood(300_000) })
	if err != nil {
		return nil, err
	}
	return []figure{
		{"serve: UDP CPU of the server, 1 in flight", us(one[0]), "a bare net loop " + us(one[2]), "≤ 1.00×", verdict(one[0] <= one[2])},
		{"serve: UDP CPU of the server, 256 in flight", us(many[0]) + ", without GSO " + us(many[1]), "a bare net loop " + us(many[2]), "≤ 0.87× without GSO", verdict(many[1] <= many[2]/1.15)},
		{"serve: UDP flood of 64 B, lost", percent(lost[0]), "a bare net loop " + percent(lost[2]), "≤ the loop's", verdict(lost[0] <= lost[2])},
	}, nil
}

// eachServer measures the servers in turns, and returns a median for each.
func eachServer(window int, measure func(*datagramServer) (float64, error)) (medians [3]float64, err error) {
	var all [3]*datagramServer
	for i, kind := range []string{packets, packetsNoGSO, packetLoop} {
		if all[i], err = startPackets(kind, window); err != nil {
			return medians, err
		}
		defer all[i].stop()
	}
	var values [3][]float64
	for round := range 6 {
		for i, s := range all {
			v, err := measure(s)
			if err != nil {
				return medians, err
			}
			if round > 0 {
				values[i] = append(values[i], v)
			}
		}
	}
	for i := range values {
		medians[i] = median(values[i])
	}
	return medians, nil
}

// flood sends n datagrams as fast as it can, and returns which part of them was lost.
func (s *datagramServer) flood(n int) (lost float64, err error) {
	out := make([]mmsg.Message, 64)
	for i := range out {
		out[i].Buf = line()
		out[i].Buf[0] = toCount
	}
	before, err := s.tell()
	if err != nil {
		return 0, err
	}
	c := mmsg.New(s.udp, mmsg.Options{NoGSO: true, GRO: true}) // as from many
	for range n / len(out) {
		c.Send(out)
	}
	after, err := s.tell()
	sent := n / len(out) * len(out)
	return 1 - float64(after-before)/float64(sent), err
}

// tell asks how many were counted, until it is told: the question may be lost too.
func (s *datagramServer) tell() (uint64, error) {
	for range 10 {
		time.Sleep(50 * time.Millisecond) // for the queue to be read
		s.udp.SetReadDeadline(time.Now().Add(time.Second))
		s.udp.Write([]byte(strings.Repeat(string(rune(toTell)), 8)))
		if k, err := s.udp.Read(s.in[0].Buf); err == nil && k == 8 {
			return binary.BigEndian.Uint64(s.in[0].Buf), nil
		}
	}
	return 0, fmt.Errorf("the server says nothing after the flood")
}

// cpuOf is how many µs of the server's CPU time an echo takes.
func (s *datagramServer) cpuOf(n int) float64 {
	before := s.cpu()
	lost := s.exchange(n)
	return float64((s.cpu() - before).Microseconds()) / float64(n-lost)
}

// cpu is what the child has used, to the tick of 10 ms.
func (c *child) cpu() time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	var ticks int
	if f := strings.Fields(rest); len(f) > 12 {
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		ticks = user + system
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
