package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast/frame"
	"github.com/holdfast-net/holdfast/internal/certs"
	"github.com/holdfast-net/holdfast/restart"
	"github.com/holdfast-net/holdfast/serve"
	"github.com/spf13/cobra"
)

type echoOptions struct {
	service           serviceFlags
	listen            []string
	mode              string
	maxConns          int
	idle              time.Duration
	certFile, keyFile string
	clientCA          string
	allow, trusted    []string
	udp               bool
}

func (p *program) echoCommand() *cobra.Command {
	var o echoOptions
	cmd := &cobra.Command{
		Use:   "echo [-l ADDR[,ADDR…]]",
		Short: "Run a line server that can be restarted without being down",
		Long: `A server for tries and tests, and an example of how to build one. A line that begins
with PING is answered by PONG, STATUS by "CONNECTIONS: n", all others by UNKNOWN COMMAND.
With --mode echo lines come back as they are, with --mode frame messages that have their
length in front in 4 bytes, big endian.

On udp:// addresses each datagram is a message: PING and STATUS are answered as above, and
others are not, so that two servers cannot keep answering each other; in the other modes
every datagram comes back as it is.`,
		Example: `  holdfast echo -l tcp://:7000,unix:/tmp/echo.sock
  holdfast echo -l tcp://:7000 --udp
  holdfast restart --wait echo`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.echo(cmd.Context(), o) },
	}
	flags := cmd.Flags()
	o.service.add(flags, "echo")
	flags.StringSliceVarP(&o.listen, "listen", "l", []string{"tcp://127.0.0.1:7000"}, "addresses to serve, NAME=ADDR or ADDR")
	flags.BoolVar(&o.udp, "udp", false, "serve datagrams too, at each tcp:// address")
	flags.StringVar(&o.mode, "mode", "line", "line, echo or frame")
	flags.IntVar(&o.maxConns, "max-conns", 100, "how many connections at once; more are closed")
	flags.DurationVar(&o.idle, "idle", 30*time.Second, "how long a connection may be silent")
	flags.StringVar(&o.certFile, "cert", "", "certificate to serve TLS with, and its chain")
	flags.StringVar(&o.keyFile, "key", "", "key of the certificate")
	flags.StringVar(&o.clientCA, "client-ca", "", "authority that clients must have a certificate of")
	flags.StringSliceVar(&o.allow, "allow", nil, "networks that may connect, as 10.0.0.0/8")
	flags.StringSliceVar(&o.trusted, "trusted-proxy", nil, "networks of proxies, which send a PROXY header")
	return cmd
}

func (p *program) echo(ctx context.Context, o echoOptions) error {
	cfg, err := o.service.config(p)
	if err != nil {
		return err
	}
	srv, err := o.server(cfg.Log)
	if err != nil {
		return usage(err, "")
	}
	streams, datagrams := o.addresses()
	return p.serve(ctx, cfg, o.check, restart.Bind(srv, streams...), restart.BindPacket(o.packets(srv, cfg.Log), datagrams...))
}

// addresses are those of streams and those of datagrams.
func (o echoOptions) addresses() (streams, datagrams []string) {
	for _, l := range o.listen {
		if strings.Contains(l, "udp://") {
			datagrams = append(datagrams, l)
			continue
		}
		streams = append(streams, l)
		if at := strings.Index(l, "tcp://"); o.udp && at >= 0 {
			name := l[:at] // NAME=, which is to be nobody else's
			if name != "" {
				name = strings.TrimSuffix(name, "=") + "-udp="
			}
			datagrams = append(datagrams, name+"udp://"+l[at+len("tcp://"):])
		}
	}
	return streams, datagrams
}

// packets is the server of datagrams, beside that of streams.
func (o echoOptions) packets(srv *serve.Server, log *slog.Logger) *serve.Packets {
	handler := func(_ context.Context, p *serve.Packet) error { return p.Reply(p.Data) }
	if o.mode == "line" {
		handler = func(ctx context.Context, p *serve.Packet) error {
			if bytes.HasPrefix(p.Data, []byte("STATUS")) {
				return p.Reply(answer(srv, p.Data))
			}
			return serve.Pong(ctx, p)
		}
	}
	return &serve.Packets{Handler: handler, Limits: serve.PacketLimits{Allow: srv.Limits.Allow}, Log: log}
}

// check finds before anything is bound what would end the first worker.
func (o echoOptions) check() error {
	for _, l := range o.listen {
		if strings.Contains(l, "unix:") && len(o.allow) > 0 {
			return fmt.Errorf("--allow is about networks, and %s is in none", l)
		}
	}
	if o.certFile == "" && o.keyFile == "" && o.clientCA == "" {
		return nil
	}
	_, err := certs.ServerFiles{Cert: o.certFile, Key: o.keyFile, ClientCA: o.clientCA}.Server("")
	return err
}

func (o echoOptions) server(log *slog.Logger) (*serve.Server, error) {
	srv := &serve.Server{
		Limits:   serve.Limits{MaxConns: o.maxConns},
		Timeouts: serve.Timeouts{Idle: o.idle},
		TLS:      serve.TLS{CertFile: o.certFile, KeyFile: o.keyFile, ClientCAFile: o.clientCA},
		Log:      log,
	}
	var err error
	if srv.Limits.Allow, err = prefixes(o.allow); err != nil {
		return nil, err
	}
	if srv.Proxy.Trusted, err = prefixes(o.trusted); err != nil {
		return nil, err
	}
	send := func(_ context.Context, c *serve.Conn, msg []byte) error { return c.Send(msg) }
	switch o.mode {
	case "line":
		srv.Handler = serve.Frames(frame.Lines(), func(_ context.Context, c *serve.Conn, line []byte) error {
			return c.Send(answer(srv, line))
		})
	case "echo":
		srv.Handler = serve.Frames(frame.Lines(), send)
	case "frame":
		srv.Handler = serve.Frames(frame.Prefix(4), send)
	default:
		return nil, fmt.Errorf("--mode %q: want line, echo or frame", o.mode)
	}
	return srv, nil
}

// answer is the protocol of the line server.
func answer(srv *serve.Server, line []byte) []byte {
	switch {
	case bytes.HasPrefix(line, []byte("PING")):
		return []byte("PONG")
	case bytes.HasPrefix(line, []byte("STATUS")):
		return fmt.Appendf(nil, "CONNECTIONS: %d", srv.Stats().Open)
	}
	return []byte("UNKNOWN COMMAND")
}

func prefixes(texts []string) (all []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil && !strings.Contains(text, "/") {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(text); err == nil {
				p, err = addr.Prefix(addr.BitLen())
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%q is not a network such as 10.0.0.0/8", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}
