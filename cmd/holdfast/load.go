package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/internal/hist"
)

const (
	workers = 32
	rate    = 2000             // requests a second in all, at most: a laptop stays cool
	opLimit = 10 * time.Second // of one request, with all its retries
	perTry  = 250 * time.Millisecond
)

// demoConfig is how a client in production would be set up, with shorter times: in
// the demo a server is dead for seconds, not for hours.
func demoConfig() holdfast.Config {
	return holdfast.Config{
		Retry:   holdfast.Retry{Attempts: 20, PerTry: perTry},
		Pool:    holdfast.Pool{Max: workers},
		Backoff: holdfast.Backoff{Base: 50 * time.Millisecond, Max: 500 * time.Millisecond, StableAfter: time.Second},
		Check:   holdfast.Check{Interval: 500 * time.Millisecond, Timeout: perTry, Rise: 2, Fall: 2},
		Outlier: holdfast.Outlier{Consecutive: 3, Eject: time.Second, MaxEject: 5 * time.Second},
		Probe: func(_ context.Context, conn net.Conn) error {
			return exchange(conn, []byte("are you there?"))
		},
	}
}

// load is what the demo's callers do: workers that send requests through one
// Cluster, and what they see.
type load struct {
	cluster  *holdfast.Cluster
	udp      bool
	journal  *journal
	phases   []meter // one for each phase of the scenario
	current  atomic.Pointer[meter]
	servers  map[string]*gauge // by address
	stopping chan struct{}
	wg       sync.WaitGroup
}

// meter is what the workers saw in one phase: that in which a request began.
type meter struct {
	requests, clientErrors, wrongReplies atomic.Uint64

	latency hist.Histogram // of whole requests, retries included
	hidden  uint64         // the Cluster's count when the phase began; kept by enter
}

// gauge is what the workers get from one server; the screen reads it.
type gauge struct {
	replies atomic.Uint64
	latency atomic.Pointer[hist.Histogram] // of single exchanges; replaced now and then
}

// newLoad makes the Cluster. Nothing is sent before start.
func newLoad(servers [len(serverNames)]*member, phases int, j *journal, udp bool) (*load, error) {
	l := &load{journal: j, udp: udp, phases: make([]meter, phases), servers: map[string]*gauge{}, stopping: make(chan struct{})}
	var addrs []string
	for _, m := range servers {
		g := &gauge{}
		g.latency.Store(&hist.Histogram{})
		l.servers[m.via()], l.servers[m.addr] = g, g
		addrs = append(addrs, m.via())
	}
	cfg := demoConfig()
	if udp {
		addrs = datagrams(&cfg, addrs)
	}
	cfg.Observe = j.observe
	var err error
	l.cluster, err = holdfast.New(holdfast.Static(addrs...), cfg)
	return l, err
}

// start lets the workers begin.
func (l *load) start(seed uint64) {
	for i := range workers {
		l.wg.Go(func() { l.work(i, seed) })
	}
}

// enter books what begins from now on under another phase.
func (l *load) enter(phase int) {
	m := &l.phases[phase]
	m.hidden = l.cluster.Stats().Hidden
	l.current.Store(m)
}

// reached returns how many phases began.
func (l *load) reached() int {
	now := l.current.Load()
	for i := range l.phases {
		if &l.phases[i] == now {
			return i + 1
		}
	}
	return 0
}

// seen returns what failed in a phase: behind the callers' backs, and for them.
func (l *load) seen(phase int) (hidden, errs uint64) {
	m, end := &l.phases[phase], l.cluster.Stats().Hidden
	if phase+1 < l.reached() {
		end = l.phases[phase+1].hidden
	}
	return end - m.hidden, m.clientErrors.Load() + m.wrongReplies.Load()
}

// bad returns what callers saw so far and should not have.
func (l *load) bad() (errs, wrong uint64) {
	for i := range l.phases {
		errs += l.phases[i].clientErrors.Load()
		wrong += l.phases[i].wrongReplies.Load()
	}
	return errs, wrong
}

// halt ends the workers: requests under way end by success or their own limit.
func (l *load) halt() {
	close(l.stopping)
	l.wg.Wait()
}

// work is one caller: a request, its reply, and a pause so that all of them
// together keep to the rate.
func (l *load) work(id int, seed uint64) {
	const pause = workers * time.Second / rate
	rnd := rand.New(rand.NewPCG(seed, uint64(id)+1))
	first := time.NewTimer(pause * time.Duration(id) / workers)
	defer first.Stop()
	select {
	case <-first.C:
	case <-l.stopping:
		return
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for n := uint64(0); ; n++ {
		l.request(newRequest(rnd, id, n))
		select {
		case <-tick.C:
		case <-l.stopping:
			return
		}
	}
}

// newRequest makes a message that no other request of this run has.
func newRequest(rnd *rand.Rand, worker int, n uint64) []byte {
	message := binary.BigEndian.AppendUint64(nil, uint64(worker)<<48|n)
	for range rnd.IntN(64) {
		message = binary.BigEndian.AppendUint64(message, rnd.Uint64())
	}
	return message
}

// request is one operation as any caller would write it.
func (l *load) request(message []byte) {
	m := l.current.Load()
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	start := time.Now()
	err := l.ask(ctx, message)
	m.latency.Record(time.Since(start))
	m.requests.Add(1)
	switch {
	case errors.Is(err, errWrongReply):
		m.wrongReplies.Add(1)
		l.journal.complain(err)
	case err != nil:
		m.clientErrors.Add(1)
		l.journal.complain(err)
	}
}

func (l *load) ask(ctx context.Context, message []byte) error {
	if l.udp {
		return l.askByDatagram(ctx, message)
	}
	return l.cluster.Do(ctx, holdfast.Idempotent, func(_ context.Context, conn *holdfast.Conn) error {
		return l.servers[conn.Node().Addr()].exchange(conn, message)
	})
}

func (g *gauge) exchange(conn net.Conn, message []byte) error {
	start := time.Now()
	err := exchange(conn, message)
	if err == nil {
		g.replied(start)
	}
	return err
}

func (g *gauge) replied(start time.Time) {
	g.replies.Add(1)
	g.latency.Load().Record(time.Since(start))
}

var errWrongReply = errors.New("the reply is to another request")

// exchange sends a message and wants it back.
func exchange(conn net.Conn, message []byte) error {
	if err := writeMessage(conn, message); err != nil {
		return err
	}
	reply, err := readMessage(conn)
	if err != nil {
		return err
	}
	if !bytes.Equal(reply, message) {
		return errWrongReply
	}
	return nil
}
