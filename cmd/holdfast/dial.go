package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

type dialOptions struct {
	tls        tlsFlags
	line       bool
	idempotent bool
	timeout    time.Duration
	linger     time.Duration
	lingers    bool // --linger was given
}

func (p *program) dialCommand() *cobra.Command {
	var o dialOptions
	cmd := &cobra.Command{
		Use:   "dial ADDR[,ADDR…]",
		Short: "A netcat that fails over",
		Long: `Connects standard input and output to the first address that answers. The end of
the input ends the sending direction only: output goes on until the peer ends it.

With --line every line of the input is one request that wants one line back, sent
to the first address that works, over kept connections. A line that could not be
sent goes to the next address; one that may have been received already, or whose
reply takes more than 2s, only with --idempotent.

To udp:// each line goes as one datagram, without its newline, and each datagram that
comes is printed, with a newline if it has none. As nobody says when the last one has
come, --linger does. With --line a line that is not answered by one datagram within 2s
to 3s is an error; with --idempotent it is sent again, to the next address if there is
one.`,
		Example: `  printf 'PING\r\n' | holdfast dial 10.0.0.1:6379,10.0.0.2:6379
  holdfast dial --line tls://a.example:7000,tls://b.example:7000 <questions >answers
  echo PING | holdfast dial --linger 200ms udp://10.0.0.1:7000`,
		Args: addresses,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.lingers = cmd.Flags().Changed("linger")
			return p.dial(cmd.Context(), args[0], o)
		},
	}
	o.tls.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.line, "line", false, "send line by line and print the line that comes back for each")
	cmd.Flags().BoolVar(&o.idempotent, "idempotent", false, "with --line: a line may be sent twice if its reply is lost or late")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "end after so long, with exit code 124; 0 means never")
	cmd.Flags().DurationVar(&o.linger, "linger", time.Second, "to udp://: how long datagrams are still printed after the end of the input")
	return cmd
}

func (p *program) dial(ctx context.Context, arg string, o dialOptions) error {
	endpoints, addrs, err := o.tls.endpoints(arg)
	if err != nil {
		return err
	}
	udp, err := o.check(endpoints)
	if err != nil {
		return err
	}
	cfg, err := o.config(len(addrs))
	if err != nil {
		return err
	}
	c, err := holdfast.New(holdfast.Static(addrs...), cfg)
	if err != nil {
		return usage(err, "")
	}
	defer c.Close()
	if o.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("--timeout of %v is over: %w", o.timeout, context.DeadlineExceeded))
		defer cancel()
	}
	switch {
	case o.line && udp:
		return p.lines(ctx, o.safety(), c, exchangeLine)
	case o.line:
		return p.lines(ctx, o.safety(), c, askLine)
	case udp:
		return p.datagrams(ctx, c, o.linger)
	}
	return p.stream(ctx, c)
}

// check finds what does not go together, and reports whether it is about datagrams.
func (o *dialOptions) check(endpoints []holdfast.Endpoint) (udp bool, err error) {
	udp = networkOf(endpoints[0]) == "udp"
	isOther := func(e holdfast.Endpoint) bool { return (networkOf(e) == "udp") != udp }
	switch {
	case o.idempotent && !o.line:
		err = errors.New("--idempotent needs --line: what has no replies cannot be sent twice")
	case slices.ContainsFunc(endpoints, isOther):
		err = errors.New("streams and udp:// do not stand for one another")
	case o.lingers && (!udp || o.line):
		err = errors.New("--linger is for udp:// without --line: the rest knows its end")
	case o.linger < 0:
		err = fmt.Errorf("--linger %v: want 0 or more", o.linger)
	case udp && o.tls.given():
		err = errors.New("there is no TLS over udp://")
	case udp && !o.line && len(endpoints) > 1:
		return udp, usage(errors.New("datagrams go to one address: nothing tells that it does not get them"),
			"with --line each line wants an answer, and goes to the next address without one")
	}
	if err != nil {
		return udp, usage(err, "")
	}
	return udp, nil
}

// perLine is how long one address has for its reply to a line.
const perLine = 2 * time.Second

func (o *dialOptions) config(addrs int) (cfg holdfast.Config, err error) {
	cfg.Picker = holdfast.Ordered()
	if cfg.TLS, err = o.tls.config(); err != nil {
		return cfg, err
	}
	cfg.Datagrams = holdfast.Datagrams{Max: -1, First: perLine, Least: perLine, Most: perLine}
	if o.idempotent {
		cfg.Retry = holdfast.Retry{Attempts: 2 * addrs, PerTry: perLine}
		cfg.Datagrams.Sends = 2 * addrs
	}
	return cfg, nil
}

func (o *dialOptions) safety() holdfast.Safety {
	if o.idempotent {
		return holdfast.Idempotent
	}
	return holdfast.Unsafe
}

// stream connects the standard streams to a connection until both directions have
// ended, one has failed, or ctx ends.
func (p *program) stream(ctx context.Context, c *holdfast.Cluster) error {
	nc, err := c.DialContext(ctx, "", "")
	if err != nil {
		return err
	}
	conn := nc.(*holdfast.Conn)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	sent := make(chan error, 1)
	go func() { sent <- send(conn, p.in) }() // ends with its input, or with the process: a read of a terminal cannot be interrupted
	_, err = io.Copy(p.out, conn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return received(conn, err)
	}
	return p.sendOn(ctx, sent)
}

// send copies the input to the connection and then ends the sending direction.
func send(conn *holdfast.Conn, in io.Reader) error {
	if _, err := io.Copy(conn, in); err != nil {
		return err
	}
	if err := conn.CloseWrite(); !errors.Is(err, syscall.ENOTCONN) { // the peer has ended both directions
		return err
	}
	return nil
}

// received tells what failed at the connection from what failed at the output: where the
// kernel copies, the latter is said to have failed in both cases.
func received(conn *holdfast.Conn, err error) error {
	for _, ours := range []syscall.Errno{syscall.ECONNRESET, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH} {
		if errors.Is(err, ours) {
			return fmt.Errorf("read %v: %w", conn.RemoteAddr(), ours)
		}
	}
	return err
}

// sendOn waits for the input to end after the output has. The peer may have closed
// its side only.
func (p *program) sendOn(ctx context.Context, sent <-chan error) error {
	if term.IsTerminal(int(p.in.Fd())) {
		select {
		case err := <-sent:
			return err
		default:
			fmt.Fprintln(p.err, "hint: the peer has ended its side; what you type is still sent, Ctrl-D ends")
		}
	}
	select {
	case err := <-sent:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// maxLine bounds a line and its reply.
const maxLine = 64 << 10

// lines sends each line of the input as an operation of its own and prints the
// line that comes back. It stops at the first that fails, so that the output never
// loses its correspondence to the input.
func (p *program) lines(ctx context.Context, safety holdfast.Safety, c *holdfast.Cluster, ask asker) error {
	input, ended := p.inputLines(ctx)
	for number := 1; ; number++ {
		select {
		case line := <-input:
			reply, err := ask(ctx, c, safety, line)
			if err != nil {
				return fmt.Errorf("line %d: %w", number, err)
			}
			if _, err := p.out.Write(reply); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// inputLines reads the input. As in stream, that ends with the input or the process.
func (p *program) inputLines(ctx context.Context) (lines <-chan []byte, ended <-chan error) {
	input, end := make(chan []byte), make(chan error, 1)
	go func() { end <- readLines(ctx, p.in, input) }()
	return input, end
}

// readLines hands on line after line, each with its newline.
func readLines(ctx context.Context, in io.Reader, lines chan<- []byte) error {
	r := bufio.NewReaderSize(in, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("a line of the input is longer than %d bytes", maxLine)
		}
		if len(line) > 0 {
			line = append(bytes.TrimSuffix(bytes.Clone(line), []byte("\n")), '\n')
			select {
			case lines <- line:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var errTwoLines = errors.New("the reply is more than one line: this protocol is not for --line")

// asker sends one line as an operation and returns the line that comes back.
type asker func(ctx context.Context, c *holdfast.Cluster, safety holdfast.Safety, line []byte) (reply []byte, err error)

// askLine asks over a stream.
func askLine(ctx context.Context, c *holdfast.Cluster, safety holdfast.Safety, line []byte) (reply []byte, err error) {
	err = c.Do(ctx, safety, func(_ context.Context, conn *holdfast.Conn) error {
		if _, err := conn.Write(line); err != nil {
			return err
		}
		r := bufio.NewReaderSize(conn, maxLine)
		got, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("the reply is longer than %d bytes", maxLine)
		case err == io.EOF && len(got) > 0:
			return fmt.Errorf("the reply %.40q has no end of line: %w", got, io.ErrUnexpectedEOF)
		case err != nil:
			return err
		case r.Buffered() > 0: // whose would the rest be?
			return errTwoLines
		}
		reply = bytes.Clone(got)
		return nil
	})
	return reply, err
}
