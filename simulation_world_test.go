package holdfast_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// A frame is a request or its reply: a verb, the operation's number and a payload
// that follows from the number, so that nobody can take it for another's.
type frame struct {
	verb byte
	id   uint64
	size int
}

const (
	verbRun   byte = 'R' // run the operation
	verbHello byte = 'H'
	verbPing  byte = 'P'
	saidDone  byte = 'D'
	saidNo    byte = 'N' // not processed, and it will not be
	headSize       = 13
)

var errMangled = errors.New("bytes of somebody else's frame")

// pattern holds every payload: that of number id begins at id's last byte.
var pattern = func() []byte {
	b := make([]byte, 256+maxSize)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}()

const maxSize = 100_000

func (f frame) payload() []byte {
	first := int(byte(f.id))
	return pattern[first : first+f.size]
}

func (f frame) bytes() []byte {
	b := make([]byte, headSize, headSize+f.size)
	b[0] = f.verb
	binary.BigEndian.PutUint64(b[1:], f.id)
	binary.BigEndian.PutUint32(b[9:], uint32(f.size))
	return append(b, f.payload()...)
}

func readFrame(r io.Reader) (f frame, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	f = frame{head[0], binary.BigEndian.Uint64(head[1:]), int(binary.BigEndian.Uint32(head[9:]))}
	if f.size > maxSize {
		return f, errMangled
	}
	payload := make([]byte, f.size)
	if _, err := io.ReadFull(r, payload); err != nil {
		return f, err
	}
	if !bytes.Equal(payload, f.payload()) {
		return f, errMangled
	}
	return f, nil
}

// simServer keeps count of what it was asked to run.
type simServer struct {
	s        *sim
	addr, ip string
	host     *simnet.Host

	mu        sync.Mutex // guards the rest
	mode      string
	delay     time.Duration
	swallowed bool  // somebody waits for a reply that will never come
	last      frame // for those who reply with it to somebody else
}

// rise makes the server listen, if it does not.
func (sv *simServer) rise() {
	ln, err := sv.s.net.Listen("tcp", sv.addr)
	if err != nil {
		return
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if sv.is("hang up") {
				conn.Close()
				continue
			}
			go sv.serve(conn)
		}
	}()
}

func (sv *simServer) is(mode string) bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.mode == mode
}

func (sv *simServer) becomes(mode string, delay time.Duration) {
	sv.mu.Lock()
	sv.mode, sv.delay = mode, delay
	sv.mu.Unlock()
}

func (sv *simServer) serve(conn net.Conn) {
	defer conn.Close()
	for {
		f, err := readFrame(conn)
		if err == errMangled {
			sv.s.violation("a request arrives whole and alone", "at %s", sv.addr)
		}
		if err != nil {
			return
		}
		sv.handle(conn, f)
	}
}

// handle never waits, so that the server sees the end of a connection at once.
func (sv *simServer) handle(conn net.Conn, f frame) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	reply := frame{saidDone, f.id, f.size}
	switch {
	case sv.mode == "silent":
		sv.swallowed = true
		sv.s.ran(f)
		return
	case sv.mode == "refuse":
		reply = frame{saidNo, f.id, 0}
	default:
		sv.s.ran(f)
	}
	reply = sv.s.answer(sv, reply)
	delay := time.Duration(0)
	if sv.mode == "slow" {
		delay = sv.delay
	}
	time.AfterFunc(delay, func() { conn.Write(reply.bytes()) })
}

// ran enters an operation in the books. Attempts of one operation differ in the
// upper bits of their numbers.
func (s *sim) ran(f frame) {
	if f.verb != verbRun {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := f.id & idMask
	s.executed[id]++
	s.noteLocked("server runs %d for the %d. time", id, s.executed[id])
}

const idMask = 1<<32 - 1

func (s *sim) resolver() holdfast.Resolver {
	switch s.plan.Source {
	case "names":
		return holdfast.Static("tcp://even.sim:7000", "tcp://odd.sim:7000")
	case "pushed":
		s.source = make(chan []holdfast.Endpoint, 64)
		s.push(s.everyone())
		return pushed(s.source)
	}
	var addrs []string
	for i, sv := range s.servers {
		addrs = append(addrs, fmt.Sprintf("tcp://%s?weight=%d&priority=%d", sv.addr, s.plan.Shares[i].Weight, s.plan.Shares[i].Priority))
	}
	return holdfast.Static(addrs...)
}

// lookup knows two names, each of half the servers.
func (s *sim) lookup(ctx context.Context, e holdfast.Endpoint) ([]holdfast.Endpoint, time.Duration, error) {
	switch s.trouble.Load() {
	case "no names":
		return nil, 0, &net.DNSError{Err: "servfail", Name: e.Addr, IsTemporary: true}
	case "panics":
		panic("a lookup that panics")
	case "no trouble":
		return nil, 0, nil // an empty answer, while it lasts
	}
	var found []holdfast.Endpoint
	for i, sv := range s.servers {
		if (e.Addr == "even.sim:7000") == (i%2 == 0) {
			found = append(found, s.endpoint(sv, i))
		}
	}
	return found, time.Duration(len(found)) * time.Second, nil
}

func (s *sim) endpoint(sv *simServer, i int) holdfast.Endpoint {
	return holdfast.Endpoint{Network: "tcp", Addr: sv.addr, Weight: s.plan.Shares[i].Weight, Priority: s.plan.Shares[i].Priority}
}

func (s *sim) everyone() []int {
	all := make([]int, len(s.servers))
	for i := range all {
		all[i] = i
	}
	return all
}

// push makes servers the membership, the last one drained by its weight if there
// are several.
func (s *sim) push(set []int) {
	if s.source == nil {
		return
	}
	var endpoints []holdfast.Endpoint
	for _, i := range set {
		endpoints = append(endpoints, s.endpoint(s.servers[i], i))
	}
	if n := len(endpoints); n > 1 && n < len(s.servers) {
		endpoints[n-1].Weight = -1
	}
	s.source <- endpoints
}

// pushed is a source whose set somebody else decides.
type pushed chan []holdfast.Endpoint

func (p pushed) Watch(ctx context.Context, push func([]holdfast.Endpoint, error)) {
	for {
		select {
		case set := <-p:
			push(set, nil)
		case <-ctx.Done():
			return
		}
	}
}

// fault makes something happen.
func (s *sim) fault(f *fault, callers *sync.WaitGroup) {
	sv := s.servers[f.Server]
	switch f.What {
	case "crash":
		sv.host.Kill()
	case "rise":
		sv.rise()
	case "freeze":
		sv.host.Freeze()
	case "thaw":
		sv.host.Thaw()
	case "partition":
		if s.plan.limitless() {
			return // a lost RST would never be learned of: simnet has no keepalive
		}
		s.net.Partition("10.0.1.1", sv.ip)
	case "heal":
		s.net.Heal("10.0.1.1", sv.ip)
	case "links":
		s.net.SetLink("10.0.1.1", sv.ip, simnet.Link{Latency: f.For / 4, Loss: 0.1})
	case "hang up", "silent", "refuse", "slow":
		sv.becomes(f.What, f.For)
	case "well":
		sv.becomes("", 0)
	case "reset", "reset all", "cut", "cut request", "bare reset":
		s.harm(f, sv)
	case "no descriptors", "panics", "no names", "no handshake", "deaf dialer":
		s.trouble.Store(f.What)
	case "no trouble":
		s.trouble.Store("")
	case "resolve":
		s.push(f.Set)
	case "push nothing":
		s.push(nil)
	case "reset backoff":
		s.cluster.ResetBackoff()
	case "refresh":
		s.cluster.Refresh(f.For)
	case "close":
		callers.Go(func() { s.cluster.Close() })
	case "shutdown":
		callers.Go(func() { s.shutdown(f.For) })
	}
}

// harm does something to one stream of a server, or to all.
func (s *sim) harm(f *fault, sv *simServer) {
	conns := sv.host.Conns()
	for i, conn := range conns {
		if f.What != "reset all" && i != f.N%len(conns) {
			continue
		}
		switch f.What {
		case "reset", "reset all":
			conn.Reset()
		case "cut":
			conn.CutAfter(f.N)
		case "cut request":
			conn.Peer().ResetAfter(f.N)
		case "bare reset":
			conn.ResetAfter(f.N)
		}
	}
}

func (s *sim) shutdown(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	start := time.Now()
	err := s.cluster.Shutdown(ctx)
	took := time.Since(start)
	if s.plan.Deaf { // Close waits for the dialer, which waits as long as it likes
		return
	}
	if took > limit {
		s.violation("Shutdown ends with its context", "%v late", took-limit)
	}
	if err != nil && took < limit {
		s.violation("Shutdown fails only when its context ends", "%v after %v of %v", err, took, limit)
	}
}

// mend ends all faults. Whoever waits for a reply that was swallowed learns of it
// by a crash.
func (s *sim) mend() {
	perfect := simnet.Link{}
	if s.plan.Clean {
		perfect = s.plan.Link // what is sent now must not overtake what was sent before
	}
	s.net.SetLink("", "", perfect)
	s.trouble.Store("")
	for _, sv := range s.servers {
		s.net.SetLink("10.0.1.1", sv.ip, perfect)
		s.net.Heal("10.0.1.1", sv.ip)
		sv.becomes("", 0)
		sv.host.Thaw()
		sv.mu.Lock()
		swallowed := sv.swallowed
		sv.mu.Unlock()
		if swallowed {
			sv.host.Kill()
		}
		sv.rise()
	}
	s.push(s.everyone())
	s.mu.Lock()
	s.mercy = time.Now()
	s.mu.Unlock()
}
