package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/hist"
	"github.com/spf13/cobra"
)

type udpBench struct {
	sockets  int
	inFlight int
	size     int
	duration time.Duration
	timeout  time.Duration
	json     bool
}

func (p *program) benchUDPCommand() *cobra.Command {
	var b udpBench
	cmd := &cobra.Command{
		Use:   "udp ADDR",
		Short: "Measure round trips of datagrams to an echo",
		Long: `Sends numbered datagrams to a server that sends each back as it is, and counts what
comes of them. Every answer is compared with what was sent. The loop is closed: a socket
sends the next datagram when one was answered, or was lost because it was not within
--timeout. So a server that stalls is asked less, and the latencies are those of the
datagrams that were answered.

Exit code 1 means that an answer was wrong, or that there was none at all.`,
		Example: `  holdfast echo -l udp://127.0.0.1:7000 --mode echo
  holdfast bench udp 127.0.0.1:7000
  holdfast bench udp udp://10.0.0.1:7000 -c 8 -q 16 -z 1200 -d 30s --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage(fmt.Errorf("udp: want one ADDR, got %d", len(args)), cmd.CommandPath()+" 127.0.0.1:7000")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return p.benchUDP(cmd.Context(), args[0], b) },
	}
	flags := cmd.Flags()
	flags.IntVarP(&b.sockets, "sockets", "c", 64, "how many sockets, each with a port of its own")
	flags.IntVarP(&b.inFlight, "in-flight", "q", 1, "datagrams in flight per socket")
	flags.IntVarP(&b.size, "size", "z", 100, "bytes of a datagram")
	flags.DurationVarP(&b.duration, "duration", "d", 5*time.Second, "how long to send")
	flags.DurationVar(&b.timeout, "timeout", time.Second, "how long an answer may take")
	flags.BoolVarP(&b.json, "json", "j", false, "print one JSON object")
	return cmd
}

// leastDatagram has room for the number and for some bytes by which a wrong answer shows.
const (
	leastDatagram = 16
	mostDatagram  = 65507
)

func (b udpBench) check() error {
	switch {
	case b.sockets < 1 || b.inFlight < 1:
		return errors.New("--sockets and --in-flight must be above 0")
	case b.size < leastDatagram || b.size > mostDatagram:
		return fmt.Errorf("--size %d: want %d to %d", b.size, leastDatagram, mostDatagram)
	case b.duration <= 0 || b.timeout <= 0:
		return errors.New("--duration and --timeout must be above 0")
	}
	return nil
}

func (p *program) benchUDP(ctx context.Context, arg string, b udpBench) error {
	if !strings.Contains(arg, "://") {
		arg = "udp://" + arg // nothing else is meant here
	}
	a, err := addr.Parse(arg)
	if err == nil && a.Network != "udp" {
		err = fmt.Errorf("bench udp: %s: want udp://host:port", a)
	}
	if err = errors.Join(err, b.check()); err != nil {
		return usage(err, "")
	}
	r, err := b.run(ctx, a.Addr)
	if err != nil {
		return err
	}
	if b.json {
		err = p.printJSON(r)
	} else {
		_, err = fmt.Fprint(p.out, r.text())
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return &failure{code: exitSignal}
	case r.Wrong > 0:
		return &failure{code: exitFailed}
	case r.Answered == 0:
		return &failure{exitFailed, errors.New("nothing was answered"), "the server must send back what it gets: holdfast echo --mode echo -l " + arg}
	}
	return nil
}

// udpReport is the object of bench udp --json. What was sent was answered or is lost.
type udpReport struct {
	Schema   string  `json:"schema"`
	Address  string  `json:"address"`
	Sockets  int     `json:"sockets"`
	InFlight int     `json:"in_flight"` // per socket
	Size     int     `json:"size"`
	Seconds  float64 `json:"seconds"` // of sending
	Sent     uint64  `json:"sent"`
	Answered uint64  `json:"answered"`
	Lost     uint64  `json:"lost"`
	Late     uint64  `json:"late"`   // answers after the timeout, and second ones
	Wrong    uint64  `json:"wrong"`  // answers to nothing that was sent
	Errors   uint64  `json:"errors"` // that the system told, as of a port where nobody listens
	Rate     float64 `json:"answered_per_second"`
	P50      float64 `json:"p50_ms"`
	P90      float64 `json:"p90_ms"`
	P99      float64 `json:"p99_ms"`
	P999     float64 `json:"p999_ms"`
	Max      float64 `json:"max_ms"`
	Error    string  `json:"error,omitempty"` // one of them
}

// udpLoad is what all sockets see.
type udpLoad struct {
	sent, answered, lost, late, wrong, errors atomic.Uint64

	latency hist.Histogram
	failure atomic.Pointer[error]
}

// run sends until the duration is over or ctx ends, and then waits for what is under way.
func (b udpBench) run(ctx context.Context, address string) (*udpReport, error) {
	l := &udpLoad{}
	var sockets []*udpSocket
	defer func() {
		for _, s := range sockets {
			s.conn.Close()
		}
	}()
	for range b.sockets {
		s, err := b.dial(ctx, address, l)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, s)
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, b.duration)
	defer cancel()
	var running sync.WaitGroup
	for _, s := range sockets {
		running.Go(func() { s.run(ctx) })
	}
	<-ctx.Done()
	took := time.Since(start)
	running.Wait()
	return b.report(address, l, took), nil
}

func (b udpBench) report(address string, l *udpLoad, took time.Duration) *udpReport {
	s := l.latency.Snapshot()
	r := &udpReport{
		Schema: "holdfast/bench-udp/v1", Address: "udp://" + address, Sockets: b.sockets, InFlight: b.inFlight, Size: b.size, Seconds: asSeconds(took),
		Sent: l.sent.Load(), Answered: l.answered.Load(), Lost: l.lost.Load(), Late: l.late.Load(), Wrong: l.wrong.Load(), Errors: l.errors.Load(),
		Rate: math.Round(float64(l.answered.Load()) / took.Seconds()),
		P50:  asMillis(s.Quantile(0.5)), P90: asMillis(s.Quantile(0.9)), P99: asMillis(s.Quantile(0.99)), P999: asMillis(s.Quantile(0.999)), Max: asMillis(s.Max),
	}
	if err := l.failure.Load(); err != nil {
		r.Error = cause(*err)
	}
	return r
}

func (r *udpReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d sockets, %d in flight on each, %d bytes, %.1f s\n\n", r.Address, r.Sockets, r.InFlight, r.Size, r.Seconds)
	fmt.Fprintf(&b, "%10s %10s %8s %8s %8s %8s %10s %9s %9s %9s %9s %9s\n",
		"sent", "answered", "lost", "late", "wrong", "errors", "answered/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms")
	fmt.Fprintf(&b, "%10d %10d %8d %8d %8d %8d %10.0f %9.3f %9.3f %9.3f %9.3f %9.3f\n",
		r.Sent, r.Answered, r.Lost, r.Late, r.Wrong, r.Errors, r.Rate, r.P50, r.P90, r.P99, r.P999, r.Max)
	if r.Error != "" {
		fmt.Fprintf(&b, "\nerrors: %s\n", r.Error)
	}
	return b.String()
}

// udpSocket keeps its slots busy: the datagrams of slot i have the numbers i, i + n,
// i + 2n …, where n is how many slots there are. So a number says all of an answer.
type udpSocket struct {
	conn    net.Conn
	load    *udpLoad
	timeout time.Duration
	seed    uint64 // makes the content, with the number
	slots   []udpSlot
	out, in []byte
}

type udpSlot struct {
	number uint64 // of the datagram under way, else of the next
	sent   time.Time
	busy   bool
}

func (b udpBench) dial(ctx context.Context, address string, l *udpLoad) (*udpSocket, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return nil, err
	}
	s := &udpSocket{conn: conn, load: l, timeout: b.timeout, seed: rand.Uint64(), slots: make([]udpSlot, b.inFlight)}
	s.out, s.in = make([]byte, b.size), make([]byte, b.size+1) // a byte more shows what is too long
	for i := range s.slots {
		s.slots[i].number = uint64(i)
	}
	return s, nil
}

// run is the loop of a socket. When its read deadline comes, nothing under way is older
// than the timeout: so it need not be set for each datagram.
func (s *udpSocket) run(ctx context.Context) {
	s.conn.SetReadDeadline(time.Now().Add(s.timeout))
	for {
		err := s.fill(ctx)
		if err == nil {
			if !s.isBusy() {
				return
			}
			err = s.receive()
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.expire()
		case err != nil:
			s.fail(ctx, err)
		}
	}
}

// fill sends from every slot that is free, until ctx ends.
func (s *udpSocket) fill(ctx context.Context) error {
	for i := range s.slots {
		slot := &s.slots[i]
		if slot.busy || ctx.Err() != nil {
			continue
		}
		s.content(s.out, slot.number)
		slot.sent = time.Now()
		if _, err := s.conn.Write(s.out); err != nil {
			return err
		}
		slot.busy = true
		s.load.sent.Add(1)
	}
	return nil
}

func (s *udpSocket) isBusy() bool {
	for i := range s.slots {
		if s.slots[i].busy {
			return true
		}
	}
	return false
}

// content is what datagram number has in it, which no other of this run has.
func (s *udpSocket) content(b []byte, number uint64) {
	binary.BigEndian.PutUint64(b, number)
	var word [8]byte
	for i, x := 8, s.seed^number; i < len(b); i += 8 {
		x = x*6364136223846793005 + 1442695040888963407 // Knuth's MMIX
		binary.BigEndian.PutUint64(word[:], x)
		copy(b[i:], word[:])
	}
}

func (s *udpSocket) receive() error {
	n, err := s.conn.Read(s.in)
	if err != nil {
		return err
	}
	now := time.Now()
	slot := s.asked(s.in[:n])
	switch {
	case slot == nil:
		s.load.wrong.Add(1)
	case !slot.busy || slot.number != binary.BigEndian.Uint64(s.in):
		s.load.late.Add(1)
	default:
		s.load.answered.Add(1)
		s.load.latency.Record(now.Sub(slot.sent))
		s.free(slot)
	}
	return nil
}

// asked is the slot that an answer was sent from, nil if it never was.
func (s *udpSocket) asked(answer []byte) *udpSlot {
	if len(answer) != len(s.out) {
		return nil
	}
	number := binary.BigEndian.Uint64(answer)
	slot := &s.slots[number%uint64(len(s.slots))]
	if number > slot.number || number == slot.number && !slot.busy {
		return nil
	}
	if s.content(s.out, number); !bytes.Equal(s.out, answer) {
		return nil
	}
	return slot
}

func (s *udpSocket) free(slot *udpSlot) {
	slot.busy = false
	slot.number += uint64(len(s.slots))
}

// expire gives up what is older than the timeout, and sets the deadline for the rest.
func (s *udpSocket) expire() {
	now := time.Now()
	next := now.Add(s.timeout)
	for i := range s.slots {
		switch slot := &s.slots[i]; {
		case !slot.busy:
		case now.Sub(slot.sent) >= s.timeout:
			s.lose(slot)
		case slot.sent.Add(s.timeout).Before(next):
			next = slot.sent.Add(s.timeout)
		}
	}
	s.conn.SetReadDeadline(next)
}

func (s *udpSocket) lose(slot *udpSlot) {
	s.load.lost.Add(1)
	s.free(slot)
}

// fail is what the system says of something under way: nobody knows of what, so all of
// it is given up. An answer that comes yet is late.
func (s *udpSocket) fail(ctx context.Context, err error) {
	s.load.errors.Add(1)
	s.load.failure.Store(&err)
	for i := range s.slots {
		if s.slots[i].busy {
			s.lose(&s.slots[i])
		}
	}
	pause(ctx, lossPause)
}
