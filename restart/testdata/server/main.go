// Command server is what the tests restart. What it is comes from the environment and
// stays; how a worker behaves comes from a file that the tests rewrite, as an upgrade
// replaces a binary.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// settings are the same in all generations.
type settings struct {
	Admin, PIDFile              string
	Mode                        string // path of the mode file
	Kind                        string // "lines", "http", "tls" or "h2"
	Addrs                       []string
	Confirm, Ready, Drain, Stop time.Duration
	Generations                 int
	Command                     []string
	CommandReady                string
	Packet                      []string
	Keep                        string // path of a file to keep
	State, Mover, NotifyContext bool
	NoCalls                     bool
}

// mode is how this generation behaves.
type mode struct {
	Build    string   // what it calls itself
	Fail     string   // one of the misfortunes
	Addrs    []string // instead of those of the settings
	Protocol int      // another version than this build's
	Save     string   // "hang", "late", "fail", "huge" or "empty"
}

var (
	set    settings
	now    mode
	worker = os.Getenv("HOLDFAST_LINK") != ""
)

func main() {
	must(json.Unmarshal([]byte(os.Getenv("SERVER_SETTINGS")), &set))
	if text, err := os.ReadFile(set.Mode); err == nil && len(text) > 0 {
		must(json.Unmarshal(text, &now))
	}
	if len(os.Args) > 1 && os.Args[1] == "plain" {
		plain(os.Args[2])
		return
	}
	if worker && len(set.Command) == 0 {
		misbehave(now.Fail)
		speak(now.Protocol)
	}
	err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "main:", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "main: ended well")
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func run() error {
	ctx := context.Background()
	if set.NotifyContext {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
		defer stop()
	}
	cfg := restart.Config{
		Name:        "server",
		Admin:       set.Admin,
		PIDFile:     set.PIDFile,
		Generations: set.Generations,
		Start:       start,
		Timeouts:    restart.Timeouts{Confirm: set.Confirm, Ready: set.Ready, Drain: set.Drain, Stop: set.Stop},
		Log:         slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Observe:     func(e restart.Event) { fmt.Fprintf(os.Stderr, "event: %s %d\n", e.Kind, e.Generation) },
	}
	addrs := set.Addrs
	if now.Addrs != nil {
		addrs = now.Addrs
	}
	if len(set.Command) > 0 {
		cfg.Command = restart.Command{Args: set.Command, Ready: set.CommandReady}
		return restart.Run(ctx, cfg, restart.Bind(nil, addrs...))
	}
	if set.State {
		cfg.State = restart.State{Save: save, Load: load}
	}
	if !set.NoCalls {
		cfg.Call = answerCall
	}
	return restart.Run(ctx, cfg, bindings(addrs)...)
}

func bindings(addrs []string) (all []restart.Binding) {
	switch set.Kind {
	case "http":
		all = append(all, restart.Bind(newHTTP(false), addrs...))
	case "tls":
		all = append(all, restart.Bind(newHTTP(true, "http/1.1"), addrs...))
	case "h2":
		all = append(all, restart.Bind(newHTTP(true), addrs...))
	default:
		s := &server{}
		if set.Mover {
			all = append(all, restart.Bind(&mover{server: s}, addrs...))
		} else {
			all = append(all, restart.Bind(s, addrs...))
		}
	}
	if len(set.Packet) > 0 {
		all = append(all, restart.BindPacket(&packets{}, set.Packet...))
	}
	if set.Keep != "" {
		all = append(all, restart.Keep("journal", openJournal, useJournal))
	}
	return all
}

func start(ctx context.Context) error {
	switch now.Fail {
	case "error in start":
		return errors.Join(errors.New("the database is away"), errors.New("and the cache too"))
	case "hang in start":
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

// What one generation knows: how many have been before it.
var lives, saves atomic.Int64

func save(ctx context.Context) ([]byte, error) {
	switch now.Save {
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "late":
		n := saves.Add(1)
		fmt.Fprintln(os.Stderr, "save", n)
		time.Sleep(time.Duration(n) * 700 * time.Millisecond)
		return fmt.Appendf(nil, "%d", 100*n), nil
	case "fail":
		return nil, errors.New("the state cannot be told")
	case "huge":
		return make([]byte, 80<<20), nil
	case "empty":
		return nil, nil
	}
	return fmt.Appendf(nil, "%d", lives.Load()+1), nil
}

func load(_ context.Context, state []byte) error {
	var n int64
	if _, err := fmt.Sscan(string(state), &n); err != nil {
		return fmt.Errorf("state %q: %w", state, err)
	}
	lives.Store(n)
	return nil
}

// answerCall is what those who use restart.Call are told.
func answerCall(ctx context.Context, from restart.Caller, request []byte) ([]byte, error) {
	verb, rest, _ := strings.Cut(string(request), " ")
	switch verb {
	case "lives": // what the next generations know
		n, err := strconv.ParseInt(rest, 10, 64)
		lives.Store(n)
		return nil, err
	case "who":
		return fmt.Appendf(nil, "pid %d uid %d lives %d", os.Getpid(), from.UID, lives.Load()), nil
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	case "stuck":
		time.Sleep(time.Second)
		return nil, nil
	case "exit":
		os.Exit(6)
	case "large":
		return make([]byte, 2<<20), nil
	case "fail":
		return nil, errors.New("no such thing")
	}
	return request, nil
}

var journal *os.File

func openJournal() (*os.File, error) {
	return os.OpenFile(set.Keep, os.O_CREATE|os.O_APPEND|os.O_WRONLY|os.O_EXCL, 0o600)
}

func useJournal(f *os.File) error {
	journal = f
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}

// packets answers datagrams.
type packets struct {
	mu  sync.Mutex
	pcs []net.PacketConn
	wg  sync.WaitGroup
}

func (p *packets) ServePacket(pc net.PacketConn) error {
	p.mu.Lock()
	p.pcs = append(p.pcs, pc)
	p.wg.Add(1)
	p.mu.Unlock()
	defer p.wg.Done()
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return err
		}
		pc.WriteTo([]byte(fmt.Sprintf("%d %s", os.Getpid(), strings.ToUpper(string(buf[:n])))), from)
	}
}

func (p *packets) Shutdown(context.Context) error {
	p.mu.Lock()
	for _, pc := range p.pcs {
		pc.SetReadDeadline(time.Unix(1, 0)) // what has been read is still answered
	}
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}
