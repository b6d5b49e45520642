package holdfast_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
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
	swallowed bool // somebody waits for a reply that will never come
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

// caller does its deeds one after the other.
func (s *sim) caller(deeds []deed) {
	for i := range deeds {
		d := &deeds[i]
		time.Sleep(d.After)
		s.perform(d)
	}
}

// perform does one deed and holds that it ends with its context.
func (s *sim) perform(d *deed) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	start := time.Now()
	cause := context.DeadlineExceeded
	var end time.Time
	if d.Limit > 0 {
		end = start.Add(d.Limit)
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, end)
		defer stop()
	}
	if d.Cancel > 0 {
		defer time.AfterFunc(d.Cancel, func() { cancel(errGivenUp) }).Stop()
		if at := start.Add(d.Cancel); end.IsZero() || at.Before(end) {
			end, cause = at, errGivenUp
		}
	}
	s.mu.Lock()
	s.pending[d] = start
	s.noteLocked("begins %v", d)
	s.mu.Unlock()
	back, err := s.call(ctx, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, d)
	s.noteLocked("ended %s %d: %v", d.What, d.ID, err)
	if err != nil && back.Equal(end) && !errors.Is(err, cause) && !errors.Is(err, net.ErrClosed) {
		s.violationLocked("the error holds the context's cause", "%v: %v", d, err)
	}
	if d.Fate == "deaf" && !end.IsZero() {
		end = end.Add(d.Hold) // it does not listen to its context
	}
	if !end.IsZero() && back.After(end) {
		s.violationLocked("every wait ends with its context", "%v returned %v late: %v", d, back.Sub(end), err)
	}
	if !s.mercy.IsZero() && end.IsZero() {
		since := start
		if s.mercy.After(since) {
			since = s.mercy
		}
		if late := back.Sub(since); late > s.plan.patience() {
			s.violationLocked("a call without a deadline ends", "%v after %v, at most %v: %v", d, late, s.plan.patience(), err)
		}
	}
}

// call returns when the Cluster did, which may be before the deed is over.
func (s *sim) call(ctx context.Context, d *deed) (back time.Time, err error) {
	switch d.What {
	case "do":
		err = s.operation(ctx, d)
	case "acquire":
		return s.borrow(ctx, d)
	case "ready":
		err = s.cluster.WaitReady(ctx)
		if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, errPermanent) {
			s.violation("WaitReady waits", "%v", err)
		}
	case "dial", "dial node", "dial addr":
		return s.own(ctx, d)
	case "pick":
		return s.pick(ctx, d)
	}
	return time.Now(), err
}

var (
	errOwn       = errors.New("the operation's own error")
	errPermanent = errors.New("an error that no other node cures")
	errNotDone   = errors.New("the server says that it did nothing")
	errGivenUp   = errors.New("the caller lost interest")
)

// An operation is one Do as its caller sees it.
type simOp struct {
	s       *sim
	d       *deed
	runs    int
	sent    int // bytes that the last run wrote
	wrote   int // runs that wrote something
	returns error
	open    bool // Do has not returned
}

func (s *sim) operation(ctx context.Context, d *deed) (err error) {
	op := &simOp{s: s, d: d, open: true}
	s.mu.Lock()
	s.dos++
	if d.Safety == holdfast.Unsafe {
		s.unsafe = append(s.unsafe, d.ID)
	}
	s.mu.Unlock()
	defer func() {
		op.open = false
		if p := recover(); p != nil {
			if p != any(errOwn) {
				panic(p)
			}
			err = errOwn
		}
	}()
	err = s.do(ctx, d.Safety, op.run)
	op.judge(err)
	return err
}

// judge compares what Do says with what the operation did.
func (op *simOp) judge(err error) {
	s, d := op.s, op.d
	if err == nil {
		if op.runs == 0 || op.returns != nil {
			s.violation("nil means that the operation succeeded", "%v ran %d times, last with %v", d, op.runs, op.returns)
		}
		return
	}
	if d.Fate == "reusable" && err == errOwn {
		return
	}
	e, ok := err.(*holdfast.Error)
	if !ok {
		s.violation("an error of Do is an *Error, or marked Reusable", "%v returned %v (%T)", d, err, err)
		return
	}
	if e.Phase >= holdfast.PhaseWrite && e.Written != int64(op.sent) {
		s.violation("Written is what was written", "%v wrote %d bytes, the error says %d: %v", d, op.sent, e.Written, err)
	}
	if e.SafeToRetry() {
		s.mu.Lock()
		s.unsent = append(s.unsent, d.ID)
		s.mu.Unlock()
	}
}

// run is the operation's function.
func (op *simOp) run(ctx context.Context, conn *holdfast.Conn) (err error) {
	s, d := op.s, op.d
	if !op.open {
		s.violation("an operation does not run after Do returned", "%v", d)
	}
	if most := s.plan.attempts(); op.runs >= most {
		s.violation("attempts are bounded", "%v runs more than %d times", d, most)
	}
	op.runs++
	op.sent = 0
	s.lend(conn, d)
	keeps := false
	defer func() {
		s.takeBack(conn, keeps)
		op.returns = err
		s.note("run %d of %d on %s: %v", op.runs, d.ID, conn.Node().Addr(), err)
	}()
	switch d.Fate {
	case "own error first":
		return errOwn
	case "panic first":
		panic(errOwn)
	case "slow":
		pause(ctx, d.Hold)
	case "deaf":
		time.Sleep(d.Hold)
	case "nested":
		s.nested(ctx)
	case "own deadline":
		conn.SetReadDeadline(time.Now().Add(d.Hold))
	case "half":
		f := op.frame().bytes()
		op.write(conn, f[:1+len(f)/2])
		return errOwn
	case "unread":
		op.write(conn, op.frame().bytes())
		return errOwn
	}
	if err := op.exchange(conn); err != nil {
		return err
	}
	switch d.Fate {
	case "own error after":
		return errOwn
	case "panic after":
		panic(errOwn)
	case "reusable":
		keeps = true
		return holdfast.Reusable(errOwn)
	case "permanent":
		return holdfast.Permanent(errPermanent)
	case "retire":
		conn.Retire()
		return nil
	case "close":
		conn.Close()
		return nil
	}
	keeps = true
	return nil
}

// nested borrows a second connection while it has one.
func (s *sim) nested(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 30*ms)
	defer cancel()
	if conn, err := s.cluster.Acquire(ctx); err == nil {
		pause(ctx, ms)
		conn.Release()
	}
}

func (op *simOp) frame() frame {
	return frame{verbRun, op.d.ID | uint64(op.runs)<<32, op.d.Size}
}

func (op *simOp) write(conn net.Conn, b []byte) error {
	n, err := conn.Write(b)
	if op.sent == 0 && n > 0 {
		op.wrote++
		if op.wrote > 1 { // each time one retry at least came after a byte was written
			op.s.mu.Lock()
			op.s.paid++
			op.s.mu.Unlock()
		}
	}
	op.sent += n
	return err
}

// exchange writes the request in two parts and reads the reply to it.
func (op *simOp) exchange(conn net.Conn) error {
	f := op.frame()
	b := f.bytes()
	cut := len(b) / 3
	if err := op.write(conn, b[:cut]); err != nil {
		return err
	}
	if err := op.write(conn, b[cut:]); err != nil {
		return err
	}
	return op.s.hear(conn, f)
}

// hear reads the reply to a frame, and no other.
func (s *sim) hear(conn net.Conn, f frame) error {
	reply, err := readFrame(conn)
	if err == errMangled || err == nil && reply.id != f.id {
		s.violation("a reply is one's own", "%d heard %d (%v)", f.id&idMask, reply.id&idMask, err)
	}
	if err == nil && reply.verb == saidNo {
		return holdfast.Unprocessed(errNotDone)
	}
	return err
}

// hello is an exchange that runs nothing.
func (s *sim) hello(conn net.Conn, verb byte) error {
	s.mu.Lock()
	s.serial++
	f := frame{verb, 1<<48 + s.serial, int(s.serial % 7)}
	s.mu.Unlock()
	if _, err := conn.Write(f.bytes()); err != nil {
		return err
	}
	return s.hear(conn, f)
}

// lend holds that a connection has one holder, and has seen nothing bad.
func (s *sim) lend(conn *holdfast.Conn, d *deed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lent[conn]
	if l == nil {
		l = &lending{}
		s.lent[conn] = l
		if want := s.plan.Handshake; (conn.Session == s) != want {
			s.violationLocked("a new connection has been through the handshake once", "session %v", conn.Session)
		}
	}
	if l.to != "" {
		s.violationLocked("a connection has one holder", "lent to %v, and %s has it", d, l.to)
	}
	if l.spoiled != "" {
		s.violationLocked("a connection that saw something bad is never used again", "lent to %v after %s", d, l.spoiled)
	}
	l.to = d.String()
}

// takeBack is called before the Cluster gets it back.
func (s *sim) takeBack(conn *holdfast.Conn, keeps bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lent[conn]
	if !keeps {
		l.spoiled = l.to
	}
	l.to = ""
}

// borrow is an Acquire with one exchange.
func (s *sim) borrow(ctx context.Context, d *deed) (back time.Time, err error) {
	start := time.Now()
	conn, err := s.acquire(ctx)
	back = time.Now()
	if err != nil {
		return back, err
	}
	s.mu.Lock()
	s.waits = append(s.waits, wait{start, back})
	s.unsafe = append(s.unsafe, d.ID)
	s.mu.Unlock()
	s.lend(conn, d)
	op := &simOp{s: s, d: d, runs: 1}
	conn.SetDeadline(time.Now().Add(d.Hold * 4))
	err = op.exchange(conn)
	pause(context.Background(), d.Hold)
	s.takeBack(conn, err == nil && d.Fate == "release")
	switch d.Fate {
	case "release":
	case "retire":
		conn.Retire()
	case "discard":
		conn.Discard(nil)
		return back, err
	case "blame":
		conn.Discard(errOwn)
		return back, err
	case "close":
		conn.Close()
		return back, err
	}
	if errors.Is(err, errNotDone) { // the stream is sound, but was not to be lent again
		conn.Discard(nil)
		return back, err
	}
	conn.Release()
	return back, err
}

// own is a connection of the caller's own.
func (s *sim) own(ctx context.Context, d *deed) (back time.Time, err error) {
	sv := s.servers[int(d.ID)%len(s.servers)]
	var conn net.Conn
	switch d.What {
	case "dial":
		conn, err = s.cluster.DialContext(ctx, "tcp", "whoever:1")
	case "dial node":
		conn, err = s.cluster.DialContext(ctx, "tcp", sv.addr)
	case "dial addr":
		conn, err = s.cluster.DialAddr(ctx, "tcp", sv.addr)
	}
	back = time.Now()
	if err != nil {
		if conn != nil {
			s.violation("an error comes without a connection", "%v: %v", d, err)
		}
		return back, err
	}
	s.mu.Lock()
	s.unsafe = append(s.unsafe, d.ID)
	s.mu.Unlock()
	op := &simOp{s: s, d: d, runs: 1}
	conn.SetDeadline(time.Now().Add(d.Hold * 4))
	err = op.exchange(conn)
	pause(context.Background(), d.Hold)
	conn.Close()
	return back, err
}

// pick chooses a node and reports what it likes of it.
func (s *sim) pick(ctx context.Context, d *deed) (back time.Time, err error) {
	lease, err := s.cluster.Pick(d.ID, nil)
	back = time.Now()
	if err != nil {
		if !errors.Is(err, holdfast.ErrNoEndpoint) && !errors.Is(err, net.ErrClosed) {
			s.violation("Pick fails for want of a node only", "%v", err)
		}
		return back, err
	}
	s.mu.Lock()
	s.nodes[lease.Node()] = true
	s.mu.Unlock()
	defer lease.Done()
	if again, err := s.cluster.Pick(d.ID, []*holdfast.Node{lease.Node()}); err == nil {
		if again.Node() == lease.Node() {
			s.violation("Pick takes no tried node", "%s", again.Node().Addr())
		}
		again.Done()
	}
	switch d.Fate {
	case "discard":
		lease.Report(d.Hold, errOwn)
		lease.Report(-1, io.ErrUnexpectedEOF)
	case "blame":
		lease.Report(-1, syscall.ECONNRESET)
	case "close":
		conn, err := lease.Dial(ctx, func(_ context.Context, conn *holdfast.Conn) error { return s.hello(conn, verbHello) })
		back = time.Now()
		if err != nil {
			return back, err
		}
		pause(context.Background(), d.Hold)
		conn.Close()
	default:
		lease.Report(d.Hold, nil)
	}
	pause(context.Background(), d.Hold)
	return back, nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// dial is the client's network, with each socket counted from the SYN to the end
// of Close.
func (s *sim) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	switch s.trouble.Load() {
	case "no descriptors":
		return nil, os.NewSyscallError("socket", syscall.EMFILE)
	case "panics":
		panic("a dialer that panics")
	case "deaf dialer":
		time.Sleep(150 * ms)
	}
	k := &simSocket{s: s, addr: addr, ctx: ctx}
	if s.opens(k) {
		time.Sleep(ms) // so that the story goes on
	}
	conn, err := s.host.DialContext(ctx, network, addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.sockets, k)
		return nil, err
	}
	k.Conn = conn.(*simnet.Conn)
	return k, nil
}

// simSocket is a socket of the client's, from the SYN to the end of Close.
type simSocket struct {
	*simnet.Conn // nil while it is dialed
	s            *sim
	addr         string
	ctx          context.Context // of its dial
}

// counts reports whether the socket takes a place: a dial that is too late does
// not, for nobody waits for it any more.
func (k *simSocket) counts() bool { return k.Conn != nil || k.ctx.Err() == nil }

func (k *simSocket) Close() error {
	err := k.s.closing(k)
	k.s.mu.Lock()
	delete(k.s.sockets, k)
	k.s.mu.Unlock()
	return err
}

// opens holds that the pool stays within its limits, at every moment.
func (s *sim) opens(k *simSocket) (storm bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets[k] = true
	storm = s.stormLocked(k.addr)
	here, all := 0, 0
	for o := range s.sockets {
		if o.counts() {
			all++
			if o.addr == k.addr {
				here++
			}
		}
	}
	if s.plan.Pooled && here > s.plan.perNode() {
		s.violationLocked("the pool opens no more than Pool.Max", "%d sockets to %s", here, k.addr)
	}
	if s.plan.Pooled && all > s.plan.total() {
		s.violationLocked("the pool opens no more than Pool.Total", "%d sockets", all)
	}
	return storm
}

// stormLocked holds that no address is dialed in a loop.
func (s *sim) stormLocked(addr string) (storm bool) {
	if now := time.Now(); now != s.instant {
		s.instant = now
		clear(s.dials)
	}
	if s.dials[addr]++; s.dials[addr] < 200 {
		return false
	}
	s.violationLocked("no address is dialed in a loop", "%s %d times at once", addr, s.dials[addr])
	return true
}

func (s *sim) handshake(_ context.Context, conn *holdfast.Conn) error {
	switch s.trouble.Load() {
	case "no handshake":
		return errOwn
	case "panics":
		panic("a handshake that panics")
	}
	if conn.Session != nil {
		s.violation("a new connection's session is empty", "%v", conn.Session)
	}
	conn.Session = s
	return s.hello(conn, verbHello)
}

func (s *sim) probe(_ context.Context, conn net.Conn) error { return s.hello(conn, verbPing) }

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
