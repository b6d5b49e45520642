// Command holdfast is the program built on the library.
//
//	holdfast demo                  servers die, callers do not notice: see it happen
//	holdfast dial ADDR[,ADDR…]     a netcat that fails over
//	holdfast ping ADDR[,ADDR…]     name lookup, connect, TLS and first byte of each address
//	holdfast check ADDR…           whether services are healthy, once
//	holdfast monitor ADDR…         the same again and again
//	holdfast echo                  a line server that is never interrupted
//	holdfast run -- COMMAND        the same for a server in any language
//	holdfast proxy -l ADDR -u ADDR…  an L4 load balancer that is never interrupted
//	holdfast backend drain|ready|weight|add|rm|why ADDR
//	holdfast restart|status|drain|stop|reopen NAME
//	holdfast bench restart ADDR    what a server loses while it is restarted
//	holdfast bench udp ADDR        round trips of datagrams to an echo
//	holdfast version
//	holdfast completion SHELL
//
// Results go to stdout, progress, errors and hints to stderr. An address is
// tcp://host:port, tls://host:port?sni=name, unix:/path, udp://host:port or
// srv://_service._tcp.domain; a bare host:port is TCP. Every flag can be set by
// an environment variable: --timeout by HOLDFAST_TIMEOUT.
//
// Exit codes: 0 done, 1 the operation failed, 2 usage, 5 nobody answers at the
// control socket, 6 a check failed, 124 it took too long, 130 stopped by a signal.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // from then on a second signal ends the process at once
	p := &program{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	os.Exit(p.run(ctx, os.Args[1:]))
}
