package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/internal/addr"
	"github.com/holdfast-net/holdfast/internal/hist"
	"github.com/spf13/cobra"
)

type restartBench struct {
	command  string
	restarts int
	every    time.Duration
	settle   time.Duration
	fresh    int
	kept     int
	held     int
	protocol string
	path     string
	timeout  time.Duration
	json     bool

	network, address string
}

func (p *program) benchCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure what matters here", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			return usage(errors.New("bench: want what to measure: restart or udp"), "holdfast bench --help")
		}}
	cmd.AddCommand(p.benchRestartCommand(), p.benchUDPCommand())
	return cmd
}

func (p *program) benchRestartCommand() *cobra.Command {
	var b restartBench
	cmd := &cobra.Command{
		Use:   "restart --restart-command 'COMMAND' ADDR",
		Short: "Count what a server loses while it is restarted",
		Long: `Puts load on any server while your command restarts it, again and again, and counts
what clients see: fresh connections of one request each, kept-alive connections with one
request after the other, and held connections that say something only at the end.

The server must echo lines (--protocol echo), answer PONG to PING (ping), or be an HTTP
server (http). Exit code 1 means that something was lost, or that the first restart failed.`,
		Example: `  holdfast bench restart --restart-command 'holdfast restart --wait echo' --protocol ping 127.0.0.1:7000
  holdfast bench restart --restart-command 'nginx -s reload' --protocol http 127.0.0.1:8080`,
		Args: addresses,
		RunE: func(cmd *cobra.Command, args []string) error { return p.benchRestart(cmd.Context(), args[0], b) },
	}
	flags := cmd.Flags()
	flags.StringVar(&b.command, "restart-command", "", "what restarts the server; run by the shell, waited for")
	flags.IntVarP(&b.restarts, "restarts", "n", 10, "how often")
	flags.DurationVar(&b.every, "every", 500*time.Millisecond, "from one restart's end to the next")
	flags.DurationVar(&b.settle, "settle", time.Second, "load before the first restart and after the last")
	flags.IntVar(&b.fresh, "fresh", 8, "clients that connect for each request")
	flags.IntVar(&b.kept, "kept", 8, "clients that keep their connection")
	flags.IntVar(&b.held, "held", 64, "idle connections held through all restarts")
	flags.StringVar(&b.protocol, "protocol", "ping", "echo, ping or http")
	flags.StringVar(&b.path, "path", "/", "path of HTTP requests")
	flags.DurationVar(&b.timeout, "timeout", 5*time.Second, "limit of one connect or one request")
	flags.BoolVarP(&b.json, "json", "j", false, "print one JSON object")
	return cmd
}

// lossReport is what the load saw.
type lossReport struct {
	Schema   string      `json:"schema"`
	Restarts int         `json:"restarts"`
	Failed   int         `json:"restarts_failed"`
	Loads    []*lossLoad `json:"loads"`
	Lost     uint64      `json:"lost"`
}

// lossLoad is one kind of client.
type lossLoad struct {
	Name     string  `json:"name"`
	Requests uint64  `json:"requests"`
	Refused  uint64  `json:"refused"`
	Reset    uint64  `json:"reset"`
	EOF      uint64  `json:"eof"`
	Timeout  uint64  `json:"timeout"`
	Wrong    uint64  `json:"wrong"`
	Other    uint64  `json:"other"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	P999     float64 `json:"p999_ms"`
	Max      float64 `json:"max_ms"`

	requests, refused, reset, eof, timeout, wrong, other atomic.Uint64
	latency                                              hist.Histogram
}

var errWrongAnswer = errors.New("the answer is not the request's")

// note counts one outcome.
func (l *lossLoad) note(start time.Time, err error) {
	l.requests.Add(1)
	var timeout net.Error
	switch {
	case err == nil:
		l.latency.Record(time.Since(start))
	case errors.Is(err, syscall.ECONNREFUSED):
		l.refused.Add(1)
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		l.reset.Add(1)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		l.eof.Add(1)
	case errors.As(err, &timeout) && timeout.Timeout():
		l.timeout.Add(1)
	case errors.Is(err, errWrongAnswer):
		l.wrong.Add(1)
	default:
		l.other.Add(1)
	}
}

func (l *lossLoad) settle() (lost uint64) {
	l.Requests, l.Refused, l.Reset, l.EOF = l.requests.Load(), l.refused.Load(), l.reset.Load(), l.eof.Load()
	l.Timeout, l.Wrong, l.Other = l.timeout.Load(), l.wrong.Load(), l.other.Load()
	s := l.latency.Snapshot()
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	l.P50, l.P99, l.P999, l.Max = ms(s.Quantile(0.5)), ms(s.Quantile(0.99)), ms(s.Quantile(0.999)), ms(s.Max)
	return l.Refused + l.Reset + l.EOF + l.Timeout + l.Wrong + l.Other
}

func (p *program) benchRestart(ctx context.Context, arg string, b restartBench) error {
	a, err := addr.Parse(arg)
	if err != nil {
		return usage(err, "")
	}
	if a.Network != "tcp" && a.Network != "unix" {
		return usage(fmt.Errorf("bench restart: %s: want tcp://host:port or unix:/path", a), "")
	}
	if b.command == "" {
		return usage(errors.New("bench restart: want --restart-command"), "for example --restart-command 'holdfast restart --wait echo'")
	}
	if b.protocol != "echo" && b.protocol != "ping" && b.protocol != "http" {
		return usage(fmt.Errorf("--protocol %q: want echo, ping or http", b.protocol), "")
	}
	if b.restarts < 1 || b.timeout <= 0 {
		return usage(errors.New("--restarts and --timeout must be above 0"), "")
	}
	if b.every < 0 || b.settle < 0 || min(b.fresh, b.kept, b.held) < 0 || b.fresh+b.kept+b.held == 0 {
		return usage(errors.New("--every, --settle, --fresh, --kept and --held must not be below 0, and some clients there must be"), "")
	}
	b.network, b.address = a.Network, a.Addr
	r, err := b.run(ctx)
	if err != nil {
		return err
	}
	if b.json {
		err = p.printJSON(r)
	} else {
		_, err = fmt.Fprint(p.out, r.text())
	}
	if err == nil && r.Lost > 0 {
		return &failure{code: exitFailed}
	}
	return err
}

// run puts the load on, restarts, and takes the load off.
func (b restartBench) run(ctx context.Context) (*lossReport, error) {
	fresh, kept, held := &lossLoad{Name: "fresh"}, &lossLoad{Name: "kept"}, &lossLoad{Name: "held"}
	r := &lossReport{Schema: "holdfast/bench-restart/v1", Loads: []*lossLoad{fresh, kept, held}}
	holding, err := b.hold(ctx)
	if err != nil {
		return nil, err
	}
	loading, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for i := range b.fresh {
		clients.Go(func() { b.connectAnew(loading, i, fresh) })
	}
	for i := range b.kept {
		clients.Go(func() { b.keep(loading, i, kept) })
	}
	alive := pause(ctx, b.settle)
	for i := 0; i < b.restarts && alive; i++ {
		if err := b.restart(ctx); err != nil {
			r.Failed++
			if i == 0 {
				stop()
				clients.Wait()
				return nil, err
			}
		}
		r.Restarts++
		alive = pause(ctx, b.every)
	}
	pause(ctx, b.settle)
	stop()
	clients.Wait()
	for i, c := range holding {
		held.note(time.Now(), c.request(i, 0))
		c.Close()
	}
	for _, l := range r.Loads {
		r.Lost += l.settle()
	}
	return r, nil
}

// restart runs the command. Its output goes to a file: a server that it starts in the
// background keeps that open, where a pipe would have to be waited for.
func (b restartBench) restart(ctx context.Context) error {
	out, err := os.CreateTemp("", "holdfast-bench-*")
	if err != nil {
		return err
	}
	defer out.Close()
	defer os.Remove(out.Name())
	cmd := exec.CommandContext(ctx, "sh", "-c", b.command)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := io.ReadAll(io.NewSectionReader(out, 0, 4096))
		return fmt.Errorf("the restart command failed: %w: %s", err, bytes.TrimSpace(said))
	}
	return nil
}

// hold opens the connections that stay idle; each has been answered once.
func (b restartBench) hold(ctx context.Context) (all []*benchConn, err error) {
	for i := range b.held {
		c, err := b.dial(ctx)
		if err == nil {
			err = c.request(i, -1)
		}
		if err != nil {
			return nil, fmt.Errorf("before any restart: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

// lossPause is how long a client waits that has lost something: one that tried again at
// once would count how fast it is.
const lossPause = 5 * time.Millisecond

// A client that ends by the end of the bench saw nothing.
func (b restartBench) connectAnew(ctx context.Context, id int, l *lossLoad) {
	for n := 0; ctx.Err() == nil; n++ {
		start := time.Now()
		c, err := b.dial(ctx)
		if err == nil {
			err = c.request(id, n)
			c.Close()
		}
		if ctx.Err() == nil {
			l.note(start, err)
		}
		if err != nil {
			pause(ctx, lossPause)
		}
	}
}

func (b restartBench) keep(ctx context.Context, id int, l *lossLoad) {
	var c *benchConn
	for n := 0; ctx.Err() == nil; n++ {
		start := time.Now()
		var err error
		if c == nil {
			c, err = b.dial(ctx)
		}
		if err == nil {
			err = c.request(id, n)
		}
		if ctx.Err() == nil || err == nil {
			l.note(start, err)
		}
		if c != nil && (err != nil || c.closing) {
			c.Close() // an answer that said so is no loss
			c = nil
		}
		if err != nil {
			pause(ctx, lossPause)
		}
	}
	if c != nil {
		c.Close()
	}
}

// benchConn is a connection that asks and checks the answer.
type benchConn struct {
	net.Conn
	r       *bufio.Reader
	bench   restartBench
	closing bool // the server said that it will close
}

func (b restartBench) dial(ctx context.Context) (*benchConn, error) {
	d := net.Dialer{Timeout: b.timeout}
	conn, err := d.DialContext(ctx, b.network, b.address)
	if err != nil {
		return nil, err
	}
	return &benchConn{Conn: conn, r: bufio.NewReaderSize(conn, 512), bench: b}, nil
}

func (c *benchConn) request(client, n int) error {
	c.SetDeadline(time.Now().Add(c.bench.timeout))
	ask, want := fmt.Sprintf("request %d of client %d\n", n, client), ""
	switch c.bench.protocol {
	case "http":
		return c.requestHTTP()
	case "echo":
		want = ask
	case "ping":
		ask, want = "PING\n", "PONG\n"
	}
	if _, err := io.WriteString(c, ask); err != nil {
		return err
	}
	got, err := c.r.ReadString('\n')
	if err == nil && got != want {
		err = errWrongAnswer
	}
	return err
}

func (c *benchConn) requestHTTP() error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", c.bench.path); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	c.closing = resp.Close
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return errWrongAnswer
	}
	return nil
}

func (r *lossReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d restarts, %d of them failed\n\n", r.Restarts, r.Failed)
	fmt.Fprintf(&b, "%-6s %10s %8s %8s %8s %8s %8s %8s %9s %9s %9s %9s\n",
		"", "requests", "refused", "reset", "EOF", "timeout", "wrong", "other", "p50 ms", "p99 ms", "p99.9 ms", "max ms")
	for _, l := range r.Loads {
		fmt.Fprintf(&b, "%-6s %10d %8d %8d %8d %8d %8d %8d %9.2f %9.2f %9.2f %9.2f\n",
			l.Name, l.Requests, l.Refused, l.Reset, l.EOF, l.Timeout, l.Wrong, l.Other, l.P50, l.P99, l.P999, l.Max)
	}
	fmt.Fprintf(&b, "\nlost: %d\n", r.Lost)
	return b.String()
}
