//go:build unix

package restart

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
)

// lasting has connections that end only when they are cut.
type lasting struct{ began chan time.Duration }

func (l lasting) Serve(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
	}
}

func (l lasting) Shutdown(ctx context.Context) error {
	end, _ := ctx.Deadline()
	l.began <- time.Until(end)
	return nil
}

// led is a worker in this process, and its supervisor's end of the link.
func led(t *testing.T, srv Server) (w *underling, supervisor *link) {
	t.Helper()
	supervisor, ours := links(t)
	binds, err := flatten([]Binding{Bind(srv, "tcp://127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	if err := binds[0].open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(binds) })
	log := slog.New(slog.DiscardHandler)
	w = &underling{
		worker: worker{cfg: Config{}.withDefaults(), binds: binds, log: log},
		link:   ours, messages: make(chan message), arriving: make(chan struct{}),
	}
	close(w.arriving)
	return w, supervisor
}

// Whatever a supervisor had just said when it died, its worker drains.
func TestOrphanDrainsWhateverItHeardLast(t *testing.T) {
	for name, last := range map[string]message{
		"pause": {kind: msgPause},
		"keys":  {kind: msgKeys, body: []byte("{")},
		"save":  {kind: msgSave, body: []byte{0, 0, 0, 2}},
		"take":  {kind: msgTake, files: []int{int(os.Stdin.Fd())}}, // not even a socket
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			srv := lasting{make(chan time.Duration, 1)}
			w, supervisor := led(t, srv)
			failed := w.serve()
			if err := supervisor.send(last); err != nil {
				t.Fatal(err)
			}
			supervisor.close()
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := make(chan struct{})
			w.tasks.Go(func() { w.readLink(stop, cancel) })
			if err := w.obey(ctx, failed); err != nil {
				t.Error(err)
			}
			close(stop)
			w.tasks.Wait()
			select {
			case drain := <-srv.began:
				if drain < w.cfg.Timeouts.Drain/2 {
					t.Errorf("the drain had %v", drain)
				}
			default:
				t.Error("it left without a drain")
			}
			w.link.close()
		})
	}
}

// An empty list is no command: the sockets are for the servers.
func TestCommandWithoutArgumentsIsNone(t *testing.T) {
	srv := lasting{make(chan time.Duration, 1)}
	w, _ := led(t, srv)
	w.cfg.Command.Args = []string{}
	b := w.binds[0]
	f, err := b.ln.Listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	b.ln.Close()
	b.ln = nil
	if err := errors.Join(w.give(b.want(), f), w.complete()); err != nil {
		t.Fatal(err)
	}
	if b.ln == nil {
		t.Error("the server is given no listener")
	}
}

// shutFunc is a Server that cannot be compared.
type shutFunc func()

func (shutFunc) Serve(ln net.Listener) error          { _, err := ln.Accept(); return err }
func (f shutFunc) Shutdown(ctx context.Context) error { f(); return nil }

// A server is shut down once, however it is bound and whatever it is.
func TestServersAreWhateverTheyAre(t *testing.T) {
	ends := make(chan string, 9)
	one := &struct{ shutFunc }{func() { ends <- "pointer" }}
	f := shutFunc(func() { ends <- "func" })
	binds, err := flatten([]Binding{
		Bind(one, "a=tcp://127.0.0.1:0", "b=tcp://127.0.0.1:0"), Bind(one, "c=tcp://127.0.0.1:0"),
		Bind(f, "d=tcp://127.0.0.1:0", "e=tcp://127.0.0.1:0"),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{binds: binds}
	for _, b := range binds {
		if err := b.open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.totals()
	w.serve()
	if err := w.shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if len(ends) != 2 {
		t.Errorf("%d ends of 2 servers", len(ends))
	}
}
