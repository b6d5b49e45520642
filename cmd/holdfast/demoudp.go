package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/serve"
)

// packets is the server of the demo with datagrams: a message comes back with the address
// of the server behind it.
func (s *demoServer) packets(addr string) *serve.Packets {
	name := strings.TrimPrefix(addr, "udp://")
	return &serve.Packets{
		Handler: func(ctx context.Context, p *serve.Packet) error {
			if err := s.tarry(ctx); err != nil {
				return err
			}
			return p.Reply(append(bytes.Clone(p.Data), name...))
		},
		Workers: 2 * workers, Batch: 1, // one that is slow lets others be slow beside it
		Limits: serve.PacketLimits{Amplification: -1},
	}
}

// datagrams has the Cluster of the demo's callers speak in datagrams: messages begin with
// a number that no other has.
func datagrams(cfg *holdfast.Config, addrs []string) (urls []string) {
	cfg.Datagrams = holdfast.Datagrams{
		ID: func(message []byte) (uint64, bool) {
			if len(message) < 8 {
				return 0, false
			}
			return binary.BigEndian.Uint64(message), true
		},
		First: perTry, Most: perTry, Sends: 20,
	}
	cfg.Probe = func(_ context.Context, conn net.Conn) error { // here silence is no good sign
		if _, err := conn.Write([]byte("are you there?")); err != nil {
			return err
		}
		_, err := conn.Read(make([]byte, 64))
		return err
	}
	for _, a := range addrs {
		urls = append(urls, "udp://"+a)
	}
	return urls
}

// askByDatagram is one operation as any caller would write it.
func (l *load) askByDatagram(ctx context.Context, message []byte) error {
	start := time.Now()
	reply, err := l.cluster.Exchange(ctx, holdfast.Idempotent, message, nil)
	if err != nil {
		return err
	}
	server, ok := bytes.CutPrefix(reply, message)
	g := l.servers[string(server)]
	if !ok || g == nil {
		return errWrongReply
	}
	g.replied(start)
	return nil
}

// servePackets starts two servers that sessions lead to. To each datagram they answer
// where it came from, and how many have come from there: what a server knows of a session,
// and would not know if the proxy had begun another.
func (m *middle) servePackets(f *fleet) (string, error) {
	var addrs []string
	for range 2 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		var mu sync.Mutex
		count := map[netip.AddrPort]uint64{}
		srv := &serve.Packets{Workers: 1, Limits: serve.PacketLimits{Amplification: -1}}
		srv.Handler = func(_ context.Context, p *serve.Packet) error {
			mu.Lock()
			count[p.From]++
			n := count[p.From]
			mu.Unlock()
			reply := binary.BigEndian.AppendUint16(bytes.Clone(p.Data), p.From.Port())
			return p.Reply(binary.BigEndian.AppendUint64(reply, n))
		}
		m.serving.Go(func() { srv.ServePacket(pc) })
		m.echoes = append(m.echoes, srv)
		addrs = append(addrs, f.url(pc.LocalAddr().String()))
	}
	return strings.Join(addrs, ","), nil
}

// seenBehind is how many bytes the servers of sessions add.
const seenBehind = 2 + 8

// heldSession is a client's socket, from which numbered datagrams go once each, whatever
// comes back.
type heldSession struct {
	conn net.Conn

	mu    sync.Mutex
	sent  map[uint64][]byte // what is not answered yet, by number
	ports map[uint16]bool   // that the server has seen it come from
	seen  uint64            // datagrams, says the server
	over  bool              // no more is sent
}

// holdSession keeps one session, all of whose datagrams must come back.
func (m *middle) holdSession(rnd *rand.Rand, id int) {
	s := newHeldSession()
	sent, err := s.talk(m, rnd, id)
	if err == nil {
		err = s.verdict(sent)
	}
	m.unanswered.Add(uint64(len(s.sent)))
	if err != nil {
		m.lost.Add(1)
		m.journal.complain(fmt.Errorf("a held session was lost: %w", err))
	}
}

func newHeldSession() *heldSession {
	return &heldSession{sent: map[uint64][]byte{}, ports: map[uint16]bool{}}
}

// verdict is what a session of so many datagrams has lost.
func (s *heldSession) verdict(sent uint64) error {
	switch {
	case len(s.sent) > 0:
		return fmt.Errorf("%d of %d datagrams were not answered", len(s.sent), sent)
	case len(s.ports) > 1:
		return fmt.Errorf("the server saw it come from %d ports", len(s.ports))
	case s.seen != sent:
		return fmt.Errorf("the server counted %d datagrams of %d", s.seen, sent)
	}
	return nil
}

// talk sends until the demo is over, and then waits for what is under way.
func (s *heldSession) talk(m *middle, rnd *rand.Rand, id int) (sent uint64, err error) {
	if s.conn, err = net.Dial("udp", m.addr); err != nil {
		return 0, err
	}
	defer s.conn.Close()
	heard := make(chan error, 1)
	go func() { heard <- s.listen(m) }()
	for ; err == nil && m.pause(50*time.Millisecond); sent++ {
		err = s.send(newRequest(rnd, id, sent))
	}
	s.conn.SetReadDeadline(s.lastCall())
	return sent, errors.Join(err, <-heard)
}

// lastCall is until when it is worth while to listen.
func (s *heldSession) lastCall() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over = true; len(s.sent) == 0 {
		return time.Now()
	}
	return time.Now().Add(2 * time.Second)
}

func (s *heldSession) send(message []byte) error {
	s.mu.Lock()
	s.sent[binary.BigEndian.Uint64(message)] = message
	s.mu.Unlock()
	_, err := s.conn.Write(message)
	return err
}

// listen takes replies until all have come, or the last call is over.
func (s *heldSession) listen(m *middle) error {
	buf := make([]byte, maxMessage)
	for {
		n, err := s.conn.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		over, err := s.replied(buf[:n])
		if err != nil {
			return err
		}
		if m.exchanges.Add(1); over {
			return nil
		}
	}
}

// replied holds a reply against what was sent.
func (s *heldSession) replied(reply []byte) (over bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := len(reply) - seenBehind
	if at < 8 {
		return false, errWrongReply
	}
	message, seen := reply[:at], reply[at:]
	number := binary.BigEndian.Uint64(message)
	if !bytes.Equal(s.sent[number], message) { // also what comes twice
		return false, errWrongReply
	}
	delete(s.sent, number)
	s.ports[binary.BigEndian.Uint16(seen)] = true
	s.seen = max(s.seen, binary.BigEndian.Uint64(seen[2:]))
	return s.over && len(s.sent) == 0, nil
}
