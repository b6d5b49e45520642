package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
	"github.com/spf13/cobra"
)

// demoProxyVerb is how the demo starts the proxy between its callers and its servers.
const demoProxyVerb = "demo-proxy"

func (p *program) demoProxyCommand() *cobra.Command {
	return &cobra.Command{
		Use:    demoProxyVerb + " LISTEN=BACKEND…",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			signal.Ignore(os.Interrupt)
			s := &demoServer{control: p.in, out: p.out}
			return s.proxy(cmd.Context(), args)
		},
	}
}

// proxy passes connections on, each listener to a backend of its own, so that what the
// demo does to a server is seen by its callers as if nothing were between.
func (s *demoServer) proxy(ctx context.Context, ways []string) error {
	var all []restart.Binding
	var starts []func(context.Context) error
	log := slog.New(slog.DiscardHandler)
	for _, way := range ways {
		front, behind, _ := strings.Cut(way, "=")
		o := proxyOptions{listen: []string{front}, to: strings.Split(behind, ","), down: "keep"}
		o.limits.MaxPerIP = -1 // all callers have one address
		o.checks = holdfast.Check{Interval: time.Second, Rise: 1, Fall: 1}
		l, err := o.lineup(log)
		if err != nil {
			return err
		}
		defer l.close()
		b := &balancer{lineup: l, recent: &ring{}, packets: &packetBalancer{}}
		starts = append(starts, func(ctx context.Context) error { return b.start(ctx, o, log, nil) })
		all = append(all, b.bind(o)...)
	}
	return s.lead(ctx, func(ctx context.Context) error {
		for _, start := range starts {
			if err := start(ctx); err != nil {
				return err
			}
		}
		return nil
	}, all...)
}

// middle is the proxy, and the connections that are held through it while it is
// restarted again and again. They lead to echo servers in this process, which nobody
// hurts: whatever happens to them is the proxy's doing.
type middle struct {
	proc    *process
	udp     bool
	echoes  []echoServer
	addr    string // of the echo servers, through the proxy
	journal *journal
	broken  chan error
	orders  chan struct{} // to restart it

	restarts, exchanges, lost atomic.Uint64
	unanswered                atomic.Uint64 // datagrams

	stopping context.Context
	stop     context.CancelFunc
	using    sync.WaitGroup // those who hold connections, and who restarts
	serving  sync.WaitGroup
}

const heldConns = 100

// startMiddle starts the proxy in front of the servers, and says where each is reached now.
func startMiddle(ctx context.Context, f *fleet) (m *middle, err error) {
	m = &middle{broken: f.broken, udp: f.udp, orders: make(chan struct{})}
	m.stopping, m.stop = context.WithCancel(context.Background())
	behind, err := m.serveEchoes(f)
	if err != nil {
		m.end()
		return nil, err
	}
	for tries := 0; tries < 20 && ctx.Err() == nil; tries++ { // until all its ports are free
		ways := []string{demoProxyVerb}
		for _, s := range f.servers {
			s.front = freePort()
			ways = append(ways, f.url(s.front)+"="+f.url(s.addr))
		}
		m.addr = freePort()
		if m.proc, err = startProcess(ctx, f.self, append(ways, f.url(m.addr)+"="+behind), m.ended); err == nil {
			return m, nil
		}
	}
	m.end()
	return nil, fmt.Errorf("the proxy: %w", errors.Join(err, ctx.Err()))
}

// echoServer is what held connections, or sessions, lead to.
type echoServer interface{ Close() error }

// serveEchoes starts what they lead to, and returns the addresses.
func (m *middle) serveEchoes(f *fleet) (addrs string, err error) {
	if m.udp {
		return m.servePackets(f)
	}
	format, err := frame.Length{Max: maxMessage}.Format()
	if err != nil {
		return "", err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	echo := &serve.Server{Handler: serve.Frames(format, func(_ context.Context, c *serve.Conn, message []byte) error { return c.Send(message) })}
	m.serving.Go(func() { echo.Serve(ln) })
	m.echoes = append(m.echoes, echo)
	return f.url(ln.Addr().String()), nil
}

func freePort() string { return fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(ports)) }

func (m *middle) ended(err error) {
	select {
	case m.broken <- fmt.Errorf("the proxy ended by itself: %w", err):
	default:
	}
}

// start begins to use the connections.
func (m *middle) start(seed uint64) {
	hold := m.hold
	if m.udp {
		hold = m.holdSession
	}
	for i := range heldConns {
		m.using.Go(func() { hold(rand.New(rand.NewPCG(seed, uint64(i)+1<<32)), i) })
	}
	if m.canRestart() {
		m.using.Go(m.obey)
	}
}

// canRestart reports whether a restart of the proxy is to lose nothing here: where sessions
// do not move one would.
func (m *middle) canRestart() bool {
	_, moves := any(&packetBalancer{}).(restart.Mover)
	return len(demoRestart) > 0 && (moves || !m.udp)
}

// hold keeps one connection, each message of which must come back as it was.
func (m *middle) hold(rnd *rand.Rand, id int) {
	conn, err := net.DialTimeout("tcp", m.addr, opLimit)
	if err == nil {
		defer conn.Close()
		for n := uint64(0); err == nil && m.pause(50*time.Millisecond); n++ {
			conn.SetDeadline(time.Now().Add(opLimit))
			if err = exchange(conn, newRequest(rnd, id, n)); err == nil {
				m.exchanges.Add(1)
			}
		}
	}
	if err != nil {
		m.lost.Add(1)
		m.journal.complain(fmt.Errorf("a held connection was lost: %w", err))
	}
}

// restart has the proxy restarted, unless it is being restarted already.
func (m *middle) restart() {
	select {
	case m.orders <- struct{}{}:
	default:
	}
}

func (m *middle) obey() {
	for {
		select {
		case <-m.orders:
		case <-m.stopping.Done():
			return
		}
		err := m.proc.restart()
		if err == nil {
			err = m.proc.became(context.Background(), "committed")
		}
		if err != nil {
			m.ended(err)
			return
		}
		m.restarts.Add(1)
	}
}

// pause reports false when it is time to end.
func (m *middle) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.stopping.Done():
		return false
	}
}

// halt ends the use of the connections, after the exchange that is under way.
func (m *middle) halt() {
	m.stop()
	m.using.Wait()
}

// end ends what is left.
func (m *middle) end() {
	m.halt()
	if m.proc != nil {
		m.proc.kill()
	}
	for _, e := range m.echoes {
		e.Close()
	}
	m.serving.Wait()
}

// via is where callers reach the server.
func (m *member) via() string { return cmp.Or(m.front, m.addr) }
