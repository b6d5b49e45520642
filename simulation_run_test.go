package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/simnet"
)

// caller does its deeds one after the other.
func (s *sim) caller(deeds []deed) {
	for i := range deeds {
		d := &deeds[i]
		time.Sleep(d.After)
		s.perform(d)
	}
}

// perform does one deed.
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
	s.punctualLocked(d, start, end, back, cause, err)
}

// punctualLocked holds that a call came back in time: by the end of its context,
// or in a while after the faults were over.
func (s *sim) punctualLocked(d *deed, start, end, back time.Time, cause, err error) {
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

// simOp is one operation as its caller sees it.
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
	end, _ := ctx.Deadline()
	own := time.Duration(0)
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
		own = d.Hold
		conn.SetReadDeadline(time.Now().Add(own))
	case "half":
		f := op.frame().bytes()
		op.write(conn, f[:1+len(f)/2])
		return errOwn
	case "unread":
		op.write(conn, op.frame().bytes())
		return errOwn
	}
	since := time.Now()
	if err := op.exchange(conn); err != nil {
		if ended := ctx.Err() != nil || !end.IsZero() && !time.Now().Before(end); !ended {
			s.timely(d, err, time.Since(since), own, s.plan.Timeouts.Read, s.plan.Timeouts.Write)
		}
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
	op.count(n)
	return err
}

// count notes written bytes. Each run that writes after an earlier one did was
// paid for by one retry at least.
func (op *simOp) count(n int) {
	if op.sent == 0 && n > 0 {
		if op.wrote++; op.wrote > 1 {
			op.s.mu.Lock()
			op.s.paid++
			op.s.mu.Unlock()
		}
	}
	op.sent += n
}

// exchange writes the request in two parts and reads the reply to it.
func (op *simOp) exchange(conn net.Conn) error {
	f := op.frame()
	b := f.bytes()
	cut := len(b) / 3
	if err := op.write(conn, b[:cut]); err != nil {
		return err
	}
	if op.d.ID%2 == 0 {
		n, err := io.Copy(conn, bytes.NewReader(b[cut:]))
		op.count(int(n))
		if err != nil {
			return err
		}
	} else if err := op.write(conn, b[cut:]); err != nil {
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
	s.timely(d, err, time.Since(back), d.Hold*4, -1, -1)
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
	err := k.Conn.Close()
	k.s.mu.Lock()
	delete(k.s.sockets, k)
	k.s.mu.Unlock()
	return err
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

// ask is an Observe that looks at what it is told about.
func (s *sim) ask(e holdfast.Event) {
	if s.cluster == nil { // New is not over
		return
	}
	if e.Node != nil {
		e.Node.State()
	}
	switch rand.IntN(20) {
	case 0:
		s.cluster.ResetBackoff()
	case 1:
		s.cluster.Refresh(time.Second)
	case 2:
		s.cluster.Stats()
	case 3:
		if lease, err := s.cluster.Pick(0, nil); err == nil {
			lease.Report(ms, nil)
			lease.Done()
		}
	}
}
