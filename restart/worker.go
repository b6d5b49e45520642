//go:build unix

package restart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-net/holdfast/internal/spool"
)

// underling is a worker under a supervisor.
type underling struct {
	worker
	parent   int // the supervisor's pid
	link     *link
	protocol version
	messages chan message  // closed when the link breaks
	arriving chan struct{} // closed when the predecessor has handed over; obey's
	calls    chan call
	tasks    sync.WaitGroup

	saving sync.Mutex // held while State.Save runs: one at a time
	forget func()     // ends the Save that was asked for last; obey's
}

const totalsEvery = time.Second

// errOrphaned is why a worker leaves whose supervisor is gone.
var errOrphaned = errors.New("restart: the supervisor is gone")

// runWorker is Run in a worker.
func runWorker(ctx context.Context, cfg Config, binds []*bound, file *os.File) error {
	parent := os.Getppid() // before it is greeted, and so while it lives
	log, endLog := spool.New(cfg.Log)
	defer endLog(time.Second)
	cfg.Log = log
	l, err := newLink(file)
	if err != nil {
		return err
	}
	w := &underling{
		worker: worker{cfg: cfg, binds: binds, log: cfg.Log}, parent: parent, link: l,
		messages: make(chan message), arriving: make(chan struct{}),
		calls: make(chan call, maxCalls+maxRepeat),
	}
	close(w.arriving) // nothing is, yet
	ignored := ignoreSignals(cfg.Signals)
	defer ignored()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	stop := make(chan struct{})
	w.tasks.Go(func() { w.readLink(stop, cancel) })
	err = w.run(ctx)
	if err != nil {
		l.tell(msgFailed, clip(err.Error()))
	}
	cancel(nil) // what still saves does so for nobody
	close(stop)
	l.close()
	w.tasks.Wait()
	return err
}

// ignoreSignals leaves the signals to the supervisor: `pkill app` reaches all of
// its processes, and only one of them knows what to do.
func ignoreSignals(s Signals) (restore func()) {
	c := make(chan os.Signal, 1)
	if all := slices.Concat(s.Restart, s.Stop); len(all) > 0 {
		signal.Notify(c, all...)
	}
	return func() { signal.Stop(c) }
}

// readLink feeds the messages to run. It ends with the link, and then ends what
// must not outlive the supervisor.
func (w *underling) readLink(stop <-chan struct{}, broken func(error)) {
	defer close(w.messages)
	defer broken(errOrphaned)
	for {
		m, err := w.link.receive()
		if err != nil {
			return
		}
		select {
		case w.messages <- m:
		case <-stop:
			closeFiles(m.files)
			return
		}
	}
}

func (w *underling) run(ctx context.Context) error {
	if err := w.greet(); err != nil {
		return err
	}
	state, err := w.inherit()
	if err != nil {
		return err
	}
	if len(w.cfg.Command.Args) > 0 {
		return w.become(w.cfg.Command.Args)
	}
	if err := w.prepare(ctx, state); err != nil {
		return errors.Join(err, closeAll(w.binds))
	}
	w.hold()
	failed := w.serve()
	ready, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.tasks.Go(func() {
		if w.armed(ready) == nil {
			w.link.tell(msgReady, nil)
		}
	})
	calling, end := context.WithCancel(context.Background()) // a service that ends still answers
	defer end()
	w.tasks.Go(func() { w.serveCalls(calling) })
	return w.obey(ctx, failed)
}

// greet tells the supervisor what this worker serves.
func (w *underling) greet() error {
	h := hello{Protocol: protocol, Load: w.cfg.State.Load != nil, Calls: w.cfg.Call != nil && len(w.cfg.Command.Args) == 0}
	for _, b := range w.binds {
		h.Wants = append(h.Wants, b.want())
	}
	return w.link.tell(msgHello, h)
}

// inherit takes what the supervisor passes, until it says that that is all.
func (w *underling) inherit() (state []byte, err error) {
	for m := range w.messages {
		switch m.kind {
		case msgWelcome:
			hi, err := decode[welcome](m)
			if err != nil {
				return nil, err
			}
			if w.protocol, err = protocol.meet(hi.Protocol); err != nil {
				return nil, err
			}
		case msgSockets:
			if err := w.adopt(m); err != nil {
				return nil, err
			}
		case msgKeys:
			if err := w.takeKeys(m); err != nil {
				return nil, err
			}
		case msgState:
			state = m.body
		case msgBegin:
			return state, w.complete()
		default:
			closeFiles(m.files)
			if !m.optional {
				return nil, fmt.Errorf("restart: the supervisor sent a message of kind %d before it was time", m.kind)
			}
		}
	}
	return nil, errOrphaned
}

// adopt makes listeners of the descriptors.
func (w *underling) adopt(m message) error {
	wants, err := decode[[]want](m)
	switch {
	case m.lost:
		err = errLost
	case err == nil && len(wants) != len(m.files):
		err = fmt.Errorf("restart: %d sockets came with %d descriptors", len(wants), len(m.files))
	}
	if err != nil {
		closeFiles(m.files)
		return err
	}
	for i, have := range wants {
		f := os.NewFile(uintptr(m.files[i]), have.Name)
		if e := w.give(have, f); e != nil {
			err = errors.Join(err, fmt.Errorf("restart: %s: %w", have.Name, e))
		}
	}
	return err
}

// give ties an inherited file to the binding that wants it; f is closed.
func (w *underling) give(have want, f *os.File) (err error) {
	for _, b := range w.binds {
		if b.want() != have {
			continue
		}
		switch {
		case len(w.cfg.Command.Args) > 0, b.kind == kindFile:
			b.raw = f // for the program, or the user
			return nil
		}
		defer f.Close()
		if b.kind == kindPacket {
			b.pc, err = net.FilePacketConn(f)
			return err
		}
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		b.ln = newListener(ln)
		return nil
	}
	w.log.Warn("restart: an inherited socket is not used", "name", have.Name, "addr", have.Addr)
	return f.Close()
}

// complete checks that all that was asked for has come; files that nobody had yet
// are opened here, and left with the supervisor for those to come.
func (w *underling) complete() error {
	for _, b := range w.binds {
		switch {
		case b.kind != kindFile && b.ln == nil && b.pc == nil && b.raw == nil:
			return fmt.Errorf("restart: %s was not passed on", b.name)
		case b.kind == kindFile && b.raw == nil:
			f, err := b.openIt()
			if err != nil {
				return fmt.Errorf("restart: %s: %w", b.name, err)
			}
			b.raw = f
			if err := w.lodge(b.want(), f); err != nil {
				return err
			}
		}
	}
	return nil
}

// lodge leaves a file with the supervisor. SyscallConn, not Fd: that would make the
// file block.
func (w *underling) lodge(as want, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = w.link.tell(msgFile, as, int(fd)) })
	return errors.Join(err, controlErr)
}

func (w *underling) prepare(ctx context.Context, state []byte) error {
	for _, b := range w.binds {
		if b.kind == kindFile {
			if err := b.use(b.raw); err != nil {
				return fmt.Errorf("restart: %s: %w", b.name, err)
			}
		}
	}
	if w.cfg.State.Load != nil && state != nil {
		if err := w.cfg.State.Load(ctx, state); err != nil {
			return fmt.Errorf("restart: load the state: %w", err)
		}
	}
	if w.cfg.Start != nil {
		return w.cfg.Start(ctx)
	}
	return nil
}

// obey does what the supervisor says until it is time to go.
func (w *underling) obey(ctx context.Context, failed <-chan error) error {
	left := make(chan error, 1)
	var cut context.CancelFunc // ends the drain; nil until it begins
	depart := func(drain time.Duration, to *link) {
		leaving, end := context.WithTimeout(context.Background(), drain)
		cut = end
		arriving := w.arriving
		w.tasks.Go(func() {
			defer end()
			left <- w.leave(leaving, drain, to, arriving)
		})
	}
	tick := time.NewTicker(totalsEvery)
	defer tick.Stop()
	messages, asked := w.messages, ctx.Done()
	for {
		select {
		case m, ok := <-messages:
			switch {
			case !ok:
				messages = nil
				if cut == nil {
					depart(w.cfg.Timeouts.Drain, nil)
				}
			case m.kind == msgLeave && cut == nil:
				depart(w.leaveTerms(m))
			case m.kind == msgLeave: // sooner, now
				drain, to := w.leaveTerms(m)
				to.close()
				defer time.AfterFunc(drain, cut).Stop()
			default:
				w.heed(ctx, m)
			}
		case err := <-failed:
			if cut == nil {
				return errors.Join(err, closeAll(w.binds))
			}
		case err := <-left:
			w.sendTotals()
			return err
		case <-asked: // the user's ctx: the whole service is to end
			asked = nil
			if context.Cause(ctx) != errOrphaned {
				w.link.tell(msgAsk, "stop")
			}
		case <-tick.C:
			w.sendTotals()
		}
	}
}

// heed does one thing that the supervisor says. What goes wrong with it is no reason
// to leave those who are served: a supervisor that is gone is noticed by its link.
func (w *underling) heed(ctx context.Context, m message) {
	switch m.kind {
	case msgPause:
		w.pause()
		w.link.tell(msgPaused, nil)
	case msgResume:
		w.resume()
	case msgKeys:
		if err := w.takeKeys(m); err != nil {
			w.log.Error("restart: the ticket keys", "err", err)
		}
	case msgSave:
		w.saveFor(ctx, m.body)
	case msgCall:
		w.takeCall(m)
	case msgReopen:
		w.tasks.Go(func() {
			if err := w.cfg.reopen(); err != nil {
				w.log.Error("restart: reopen", "err", err)
			}
		})
	case msgTake:
		from := w.linkTo("predecessor", m)
		arriving := make(chan struct{})
		w.arriving = arriving
		w.tasks.Go(func() {
			defer close(arriving)
			w.takeOver(from)
		})
	default:
		closeFiles(m.files)
	}
}

func (w *underling) pause() {
	var wg sync.WaitGroup
	for _, b := range w.binds {
		if b.ln != nil {
			wg.Go(b.ln.pause)
		}
	}
	wg.Wait()
}

func (w *underling) resume() {
	for _, b := range w.binds {
		if b.ln != nil {
			b.ln.resume()
		}
	}
}

// closeListeners lets go of the addresses at once, however long the drain takes: they
// are the successor's, or a new supervisor's, or nobody's, and then clients are refused.
// A packet socket is also how its server answers: it is closed with that.
func (w *underling) closeListeners() {
	for _, b := range w.binds {
		if b.ln != nil {
			b.ln.Close()
		}
	}
}

func (w *underling) takeKeys(m message) error {
	keys, err := decode[[][32]byte](m)
	if err != nil {
		return err
	}
	w.ticketKeys(keys)
	return nil
}

// saveFor saves the state for the successor that the body of msgSave names. An earlier
// one has failed if another asks: nobody waits for its state any more.
func (w *underling) saveFor(ctx context.Context, whom []byte) {
	if w.forget != nil {
		w.forget()
	}
	ctx, w.forget = context.WithCancel(ctx)
	w.tasks.Go(func() {
		w.saving.Lock()
		defer w.saving.Unlock()
		if ctx.Err() == nil {
			w.save(ctx, whom)
		}
	})
}

func (w *underling) save(ctx context.Context, whom []byte) {
	var state []byte
	if w.cfg.State.Save != nil {
		blob, err := w.cfg.State.Save(ctx)
		if len(blob) > maxSaved {
			blob, err = nil, errors.Join(err, fmt.Errorf("%d bytes are more than %d", len(blob), maxSaved))
		}
		if err != nil {
			w.log.Error("restart: save the state", "err", err)
		}
		state = blob
	}
	w.link.send(message{kind: msgState, body: slices.Concat(whom, state)})
}

func (w *underling) sendTotals() {
	if w.protocol.has(featureTotals) {
		w.link.tell(msgTotals, w.totals())
	}
}
