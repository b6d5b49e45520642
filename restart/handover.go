//go:build unix

package restart

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Connections move in batches, and in three steps, so that one is never served by
// two processes, and by none only if the successor dies at it:
//
//	conns  predecessor → successor   the descriptors and their states
//	claim  successor → predecessor   from now on the predecessor must not touch them
//	done   successor → predecessor   which of them it refuses: they go on where they were
//
// Until it reads the claim, the predecessor may shut its reading side: a claim then
// fails, so both agree. So that this shuts nothing else, what is done is told over a
// second link, whose end the predecessor sends first. It is waited for after that, for a
// while; what was claimed and is not done by then, or when the links break, is the
// successor's. An older successor knows one link, and a refusal that comes too late for
// it is a lost connection.
const (
	msgConns   msgKind = 32
	msgClaim   msgKind = 33
	msgDone    msgKind = 34
	msgAnswers msgKind = 35 // with the link for done
	msgMoved   msgKind = 36 // of which server all has moved that will: its name
)

// answerTime is how long the predecessor, when it has given up, waits for what is done
// with the connections that were claimed.
const answerTime = 2 * time.Second

const (
	maxState = 16 << 20 // of one connection: 64 KiB and what was unread
	maxBatch = 1 << 20  // bytes of states that go together
)

var errNotTaken = errors.New("restart: the successor did not take the connection")

// moving is one connection, or what belongs together, on its way.
type moving struct {
	server string
	state  []byte
	fds    []int
	done   chan error // buffered
}

// sender is the predecessor's end.
type sender struct {
	link    *link
	answers *link // nil if there is none, and the answers come over link
	queue   chan *moving
	ended   chan struct{} // closed when nothing can be claimed any more
	stop    chan struct{} // closed by close
	wg      sync.WaitGroup
	taken   atomic.Int64 // items that are the successor's

	mu       sync.Mutex
	next     uint32
	unproven map[uint32]*batch // sent and not answered
	over     bool
}

type batch struct {
	items   []*moving
	claimed bool
}

func newSender(l *link) *sender {
	s := &sender{
		link: l, queue: make(chan *moving), ended: make(chan struct{}), stop: make(chan struct{}),
		unproven: map[uint32]*batch{},
	}
	s.answers = offerAnswers(l)
	s.wg.Go(s.write)
	s.wg.Go(s.readClaims)
	s.wg.Go(s.readAnswers)
	return s
}

// offerAnswers sends the successor the other end of a link for its answers. Where no
// more files may be open there is none.
func offerAnswers(l *link) *link {
	ours, theirs, err := pair()
	if err != nil {
		return nil
	}
	defer theirs.Close()
	answers, err := newLink(ours)
	if err != nil {
		return nil
	}
	withFDs([]syscall.Conn{theirs}, nil, func(fds []int) error { // if it fails, so does all that follows
		return l.send(message{kind: msgAnswers, files: fds})
	})
	return answers
}

// send passes one item on and waits for the answer. Its descriptors stay open that
// long, because Control holds them.
func (s *sender) send(server string, state []byte, conns []syscall.Conn) error {
	if len(conns) == 0 || len(conns) > maxFiles || len(state) > maxState {
		return fmt.Errorf("restart: %d connections with a state of %d bytes cannot be passed on", len(conns), len(state))
	}
	return withFDs(conns, nil, func(fds []int) error {
		m := &moving{server, state, fds, make(chan error, 1)}
		select {
		case s.queue <- m:
			err := <-m.done
			if err == nil {
				s.taken.Add(1)
			}
			return err
		case <-s.ended:
			return errNotTaken
		}
	})
}

func withFDs(conns []syscall.Conn, fds []int, do func([]int) error) (err error) {
	if len(conns) == 0 {
		return do(fds)
	}
	raw, err := conns[0].SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) { err = withFDs(conns[1:], append(fds, int(fd)), do) })
	return errors.Join(controlErr, err)
}

// write sends what is queued, as much at once as goes into a message.
func (s *sender) write() {
	var first *moving
	for {
		if first == nil {
			select {
			case first = <-s.queue:
			case <-s.stop:
				return
			case <-s.ended:
				return
			}
		}
		var items []*moving
		items, first = s.gather(first)
		if !s.ship(items) {
			s.link.close() // the readers answer for all that was sent
			if first != nil {
				resolve([]*moving{first}, errNotTaken)
			}
			return
		}
	}
}

// moved says that a server passes on no more.
func (s *sender) moved(server string) {
	s.link.send(message{kind: msgMoved, optional: true, body: []byte(server)})
}

// gather takes what else is queued; rest is what did not fit.
func (s *sender) gather(first *moving) (items []*moving, rest *moving) {
	files, size := 0, 0
	for m := first; ; {
		if len(items) > 0 && (files+len(m.fds) > maxFiles || size+len(m.state) > maxBatch) {
			return items, m
		}
		items = append(items, m)
		files += len(m.fds)
		size += len(m.state)
		var more bool
		if m, more = s.another(); !more {
			return items, nil
		}
	}
}

// another lets those run who are about to queue before it finds that nobody is.
func (s *sender) another() (*moving, bool) {
	for range 2 {
		select {
		case m := <-s.queue:
			return m, true
		default:
			runtime.Gosched()
		}
	}
	return nil, false
}

func (s *sender) ship(items []*moving) bool {
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		resolve(items, errNotTaken)
		return true
	}
	s.next++
	seq := s.next
	s.unproven[seq] = &batch{items: items}
	s.mu.Unlock()
	body, files := encodeBatch(seq, items)
	return s.link.send(message{kind: msgConns, body: body, files: files}) == nil
}

// readClaims keeps, when no claim can come any more, what was not claimed.
func (s *sender) readClaims() {
	s.hear(s.link)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	for seq, b := range s.unproven {
		if !b.claimed {
			delete(s.unproven, seq)
			resolve(b.items, errNotTaken)
		}
	}
	if s.answers != nil {
		s.answers.conn.SetReadDeadline(time.Now().Add(answerTime))
	}
	s.settleLocked()
	close(s.ended)
}

// readAnswers gives up, when no answer can come any more, what was claimed.
func (s *sender) readAnswers() {
	if s.answers != nil {
		defer s.answers.close()
		s.hear(s.answers)
	}
	<-s.ended
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.unproven {
		resolve(b.items, nil)
	}
	s.unproven = nil
}

func (s *sender) hear(l *link) {
	for {
		m, err := l.receive()
		if err != nil {
			return
		}
		closeFiles(m.files)
		s.answer(m)
	}
}

// settleLocked ends the wait for answers when none is missing.
func (s *sender) settleLocked() {
	if s.over && len(s.unproven) == 0 && s.answers != nil {
		s.answers.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

func (s *sender) answer(m message) {
	if len(m.body) < 4 {
		return
	}
	seq := binary.BigEndian.Uint32(m.body)
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.unproven[seq]
	switch {
	case b == nil:
	case m.kind == msgClaim:
		b.claimed = true
	case m.kind == msgDone:
		delete(s.unproven, seq)
		refused := m.body[4:]
		for i, item := range b.items {
			if i < len(refused) && refused[i] != 0 {
				item.done <- errNotTaken
			} else {
				item.done <- nil
			}
		}
		s.settleLocked()
	}
}

func resolve(items []*moving, err error) {
	for _, m := range items {
		m.done <- err
	}
}

// giveUp ends the wait for claims: what is not claimed by now stays.
func (s *sender) giveUp() { s.link.conn.CloseRead() }

// close ends the link when nobody sends any more.
func (s *sender) close() {
	close(s.stop)
	s.link.conn.CloseWrite()
	s.giveUp()
	s.wg.Wait()
	s.link.close()
}

// A batch is its number and its items, each with the name of its server, the number
// of its descriptors and its state; lengths are uvarints.
func encodeBatch(seq uint32, items []*moving) (body []byte, files []int) {
	body = binary.BigEndian.AppendUint32(nil, seq)
	for _, m := range items {
		body = binary.AppendUvarint(body, uint64(len(m.server)))
		body = append(body, m.server...)
		body = binary.AppendUvarint(body, uint64(len(m.fds)))
		body = binary.AppendUvarint(body, uint64(len(m.state)))
		body = append(body, m.state...)
		files = append(files, m.fds...)
	}
	return body, files
}

func decodeBatch(m message) (seq uint32, items []*moving, err error) {
	b, files := m.body, m.files
	if len(b) < 4 {
		return 0, nil, io.ErrUnexpectedEOF
	}
	seq, b = binary.BigEndian.Uint32(b), b[4:]
	take := func(n uint64) []byte {
		if n > uint64(len(b)) {
			err, n = io.ErrUnexpectedEOF, 0
		}
		var part []byte
		part, b = b[:n:n], b[n:]
		return part
	}
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			err = io.ErrUnexpectedEOF
			return 0
		}
		b = b[size:]
		return n
	}
	for len(b) > 0 && err == nil {
		item := &moving{server: string(take(number()))}
		n := number()
		item.state = take(number())
		if n > uint64(len(files)) {
			err = io.ErrUnexpectedEOF
			break
		}
		item.fds, files = files[:n:n], files[n:]
		items = append(items, item)
	}
	if err == nil && len(files) > 0 {
		err = fmt.Errorf("restart: %d descriptors belong to nothing", len(files))
	}
	return seq, items, err
}

// receiveConns is the successor's end. It returns when the predecessor is through; moved
// is called for each server that is through before.
func receiveConns(l *link, take func(server string, state []byte, fds []int) error, moved func(server string)) (taken int, err error) {
	defer l.close()
	answers := l
	defer func() { answers.close() }()
	for {
		m, err := l.receive()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
			return taken, nil
		case err != nil:
			return taken, err
		case m.kind == msgAnswers && len(m.files) == 1 && answers == l:
			if a, err := newLink(os.NewFile(uintptr(m.files[0]), "answers")); err == nil {
				answers = a
			}
			continue
		case m.kind == msgMoved:
			moved(string(m.body))
			continue
		case m.kind != msgConns:
			closeFiles(m.files)
			continue
		case m.lost:
			return taken, errLost // it knows that nothing of it was claimed
		}
		n, err := takeBatch(l, answers, m, take)
		taken += n
		if err != nil {
			return taken, err
		}
	}
}

func takeBatch(claims, answers *link, m message, take func(string, []byte, []int) error) (taken int, err error) {
	seq, items, err := decodeBatch(m)
	if err != nil {
		closeFiles(m.files)
		return 0, err
	}
	answer := binary.BigEndian.AppendUint32(nil, seq)
	if err := claims.send(message{kind: msgClaim, body: answer}); err != nil {
		closeFiles(m.files)
		return 0, nil // the predecessor has given up: they are its own
	}
	for _, item := range items {
		refused := byte(0)
		if take(item.server, item.state, item.fds) != nil {
			closeFiles(item.fds)
			refused = 1
		} else {
			taken++
		}
		answer = append(answer, refused)
	}
	// If this fails, the predecessor is gone, or takes the claim for the answer.
	answers.send(message{kind: msgDone, body: answer})
	return taken, nil
}
