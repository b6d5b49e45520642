//go:build unix

package restart

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"golang.org/x/sys/unix"
)

// links makes both ends of one.
func links(t testing.TB) (a, b *link) {
	t.Helper()
	fa, fb, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = newLink(fa); err == nil {
		b, err = newLink(fb)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close(); b.close() })
	return a, b
}

// batch receives the next connections, as an older build does, which answers over this
// link.
func (l *link) batch() (message, error) {
	for {
		m, err := l.receive()
		if err != nil || m.kind == msgConns {
			return m, err
		}
		closeFiles(m.files)
	}
}

// peers is one live connection: what its client has, and what the server.
func peers(t testing.TB) (client, server *net.UnixConn) {
	t.Helper()
	fds, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	open := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "conn")
		defer f.Close()
		conn, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*net.UnixConn)
	}
	return open(fds[0]), open(fds[1])
}

// owners counts who thinks that a connection is theirs.
type owners struct {
	mu    sync.Mutex
	taken map[string]int
}

func newOwners() *owners { return &owners{taken: map[string]int{}} }

// take closes the descriptors, as the end of their service would.
func (o *owners) take(_ string, state []byte, fds []int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if strings.HasPrefix(string(state), "refuse") {
		return errors.New("not this one")
	}
	o.taken[string(state)]++
	closeFiles(fds)
	return nil
}

func (o *owners) has(state string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.taken[state]
}

// A thousand connections that are sent at once move in few messages, each with its own
// state, and those that are refused stay.
func TestConnectionsMoveInBatches(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	s, o := newSender(a), newOwners()
	received := make(chan int, 1)
	go func() {
		n, err := receiveConns(b, o.take, nobody)
		if err != nil {
			t.Error(err)
		}
		received <- n
	}()
	n := 1000
	if runtime.GOOS == "darwin" {
		n = 100
	}
	var wg sync.WaitGroup
	all := make(chan struct{}) // closed when all are there: what comes one by one moves so
	for i := range n {
		client, server := peers(t)
		state := fmt.Sprintf("%d", i)
		if i%10 == 0 {
			state = "refuse " + state
		}
		wg.Go(func() {
			<-all
			err := s.send("web", []byte(state), []syscall.Conn{server})
			switch {
			case i%10 == 0 && err == nil:
				t.Errorf("%s: sent", state)
			case i%10 > 0 && (err != nil || o.has(state) != 1):
				t.Errorf("%s: %v, taken %d times", state, err, o.has(state))
			case i%10 == 0: // it is still ours, and works
				server.Write([]byte("x"))
				if _, err := client.Read(make([]byte, 1)); err != nil {
					t.Errorf("%s: %v", state, err)
				}
			default:
				server.Close() // without a word to the peer: the other side has it, and has closed it
				client.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", state, err)
				}
			}
			client.Close()
			server.Close()
		})
	}
	close(all)
	wg.Wait()
	s.close()
	if got := <-received; got != n*9/10 {
		t.Errorf("%d were taken", got)
	}
	if s.next > uint32(n)/4 {
		t.Errorf("%d messages for %d connections", s.next, n)
	}
}

// What belongs together moves together, whatever its size; what is too much does not.
// nobody is told which server is through.
func nobody(string) {}

func TestPairsAndLargeStatesMove(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	s := newSender(a)
	var got atomic.Int64
	go receiveConns(b, func(server string, state []byte, fds []int) error {
		if server != "proxy" || len(fds) != 2 {
			t.Errorf("%s: %d descriptors", server, len(fds))
		}
		got.Add(int64(len(state)))
		closeFiles(fds)
		return nil
	}, nobody)
	defer s.close()
	var wg sync.WaitGroup
	for _, size := range []int{0, 1, 64 << 10, maxBatch, maxBatch + 1, maxState} {
		_, x := peers(t)
		_, y := peers(t)
		wg.Go(func() {
			defer x.Close()
			defer y.Close()
			if err := s.send("proxy", make([]byte, size), []syscall.Conn{x, y}); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		})
	}
	wg.Wait()
	if want := int64(1 + 64<<10 + maxBatch + maxBatch + 1 + maxState); got.Load() != want {
		t.Errorf("%d bytes of %d", got.Load(), want)
	}
	_, x := peers(t)
	defer x.Close()
	if err := s.send("proxy", make([]byte, maxState+1), []syscall.Conn{x}); err == nil {
		t.Error("a state that is too large was sent")
	}
	if err := s.send("proxy", nil, nil); err == nil {
		t.Error("nothing was sent")
	}
	if err := s.send("proxy", nil, make([]syscall.Conn, maxFiles+1)); err == nil {
		t.Error("too many were sent")
	}
}

// The link may break at any step. Before the claim the connection stays; after it, it
// is the successor's.
func TestLinkBreaksWhileConnectionsMove(t *testing.T) {
	for _, c := range []struct {
		when  string
		peer  func(t *testing.T, b *link, m message)
		moved bool
	}{
		{"before it is read", func(t *testing.T, b *link, m message) {}, false},
		{"before the claim", func(t *testing.T, b *link, m message) { closeFiles(m.files) }, false},
		{"after the claim", func(t *testing.T, b *link, m message) {
			b.send(message{kind: msgClaim, body: m.body[:4]})
		}, true},
		{"after the answer", func(t *testing.T, b *link, m message) {
			b.send(message{kind: msgClaim, body: m.body[:4]})
			b.send(message{kind: msgDone, body: append(m.body[:4:4], 0)})
		}, true},
		{"after a refusal", func(t *testing.T, b *link, m message) {
			b.send(message{kind: msgClaim, body: m.body[:4]})
			b.send(message{kind: msgDone, body: append(m.body[:4:4], 1)})
		}, false},
		{"after garbage", func(t *testing.T, b *link, m message) {
			b.conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		}, false},
		{"after a claim of another", func(t *testing.T, b *link, m message) {
			b.send(message{kind: msgClaim, body: []byte{9, 9, 9, 9}})
			b.send(message{kind: msgDone, body: []byte{9, 9, 9, 9, 0}})
			b.send(message{kind: msgClaim, body: []byte{9}})
		}, false},
	} {
		t.Run(c.when, func(t *testing.T) {
			leak.Check(t)
			a, b := links(t)
			s := newSender(a)
			go func() {
				var m message
				if c.when != "before it is read" {
					var err error
					if m, err = b.batch(); err != nil {
						t.Error(err)
					}
				}
				c.peer(t, b, m)
				closeFiles(m.files)
				b.close()
			}()
			_, server := peers(t)
			defer server.Close()
			if err := s.send("web", []byte("x"), []syscall.Conn{server}); (err == nil) != c.moved {
				t.Errorf("send: %v", err)
			}
			if err := s.send("web", []byte("later"), []syscall.Conn{server}); err == nil {
				t.Error("another one was sent over a broken link")
			}
			s.close()
		})
	}
}

// A link that breaks leaves nobody waiting, not even those for whom there was no room in
// the message that broke off.
func TestNobodyWaitsForABrokenLink(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	s := newSender(a)
	big := make([]byte, maxBatch) // no two go together
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 20 {
		_, server := peers(t)
		wg.Go(func() {
			defer server.Close()
			if s.send("web", big, []syscall.Conn{server}) != nil {
				failed.Add(1)
			}
		})
	}
	m, err := b.batch()
	if err != nil {
		t.Fatal(err)
	}
	closeFiles(m.files)
	for s.waiting() < 2 { // the second is being written into a full socket, and a third is in hand
		runtime.Gosched()
	}
	b.close()
	wg.Wait()
	s.close()
	if failed.Load() != 20 {
		t.Errorf("%d of 20 were told", failed.Load())
	}
}

func (s *sender) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.unproven)
}

// Giving up races with claims: whatever comes first, each connection has one owner.
func TestGivingUpRacesWithClaims(t *testing.T) {
	leak.Check(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for round := range 200 {
		a, b := links(t)
		s, o := newSender(a), newOwners()
		slow := time.Duration(r.IntN(300)) * time.Microsecond
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			receiveConns(b, func(server string, state []byte, fds []int) error {
				time.Sleep(slow / 4)
				return o.take(server, state, fds)
			}, nobody)
		}()
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(1000))*time.Microsecond)
		stop := context.AfterFunc(ctx, s.giveUp)
		var wg sync.WaitGroup
		sent := make([]bool, 8)
		for i := range sent {
			_, server := peers(t)
			pause := time.Duration(r.IntN(800)) * time.Microsecond
			wg.Go(func() {
				defer server.Close()
				<-time.After(pause)
				sent[i] = s.send("web", fmt.Append(nil, i), []syscall.Conn{server}) == nil
			})
		}
		wg.Wait()
		stop()
		s.close()
		<-ended
		cancel()
		for i, moved := range sent {
			if n := o.has(fmt.Sprint(i)); n > 1 || moved != (n == 1) {
				t.Fatalf("round %d, connection %d: the sender thinks moved=%v, the successor has it %d times", round, i, moved, n)
			}
		}
	}
}

// A refusal is heard also after giving up, if it comes within answerTime: what nobody
// wants stays with its owner.
func TestRefusedAfterGivingUp(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	s := newSender(a)
	client, server := peers(t)
	claimed, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		receiveConns(b, func(string, []byte, []int) error {
			close(claimed)
			for !s.isOver() {
				runtime.Gosched()
			}
			return errors.New("a state that I do not know")
		}, nobody)
	}()
	go func() { <-claimed; s.giveUp() }()
	if err := s.send("web", nil, []syscall.Conn{server}); err == nil {
		t.Error("nobody has it")
	}
	s.close()
	<-ended
	server.Write([]byte("x"))
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func (s *sender) isOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// A batch that makes no sense is refused whole, and its descriptors are closed.
func TestHostileBatches(t *testing.T) {
	seq := []byte{0, 0, 0, 1}
	for name, body := range map[string][]byte{
		"empty":               {},
		"short":               {0, 0, 0},
		"name beyond the end": append(seq, 200),
		"endless number":      append(seq, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"huge name":           binary.AppendUvarint(append([]byte(nil), seq...), 1<<63),
		"more files":          append(seq, 1, 'a', 3, 0),
		"huge count of files": append(binary.AppendUvarint(append(append([]byte(nil), seq...), 1, 'a'), 1<<63), 0),
		"fewer files":         append(seq, 1, 'a', 1, 0),
		"none":                append([]byte(nil), seq...),
		"state beyond":        append(seq, 1, 'a', 2, 9, 'x'),
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			a, b := links(t)
			took := make(chan error, 1)
			go func() {
				_, err := receiveConns(b, func(string, []byte, []int) error { t.Error("something was taken"); return nil }, nobody)
				took <- err
			}()
			_, x := peers(t)
			_, y := peers(t)
			withFDs([]syscall.Conn{x, y}, nil, func(fds []int) error {
				return a.send(message{kind: msgConns, body: body, files: fds})
			})
			x.Close()
			y.Close()
			if err := <-took; err == nil {
				t.Error("no error")
			}
			a.close()
		})
	}
}

func FuzzDecodeBatch(f *testing.F) {
	body, _ := encodeBatch(7, []*moving{{server: "web", state: []byte("s"), fds: []int{1}}, {server: "", fds: []int{2, 3}}})
	f.Add(body, 3)
	f.Add(body[:7], 3)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		files := make([]int, min(max(n, 0), maxFiles))
		for i := range files {
			files[i] = i
		}
		seq, items, err := decodeBatch(message{body: body, files: files})
		if err != nil {
			return
		}
		next := 0
		for _, m := range items {
			for _, fd := range m.fds {
				if fd != next {
					t.Fatalf("descriptor %d came in place of %d", fd, next)
				}
				next++
			}
		}
		if next != len(files) {
			t.Fatalf("%d of %d descriptors were given", next, len(files))
		}
		again, _ := encodeBatch(seq, items)
		seq2, items2, err := decodeBatch(message{body: again, files: files})
		if err != nil || seq2 != seq || len(items2) != len(items) {
			t.Fatalf("what was decoded does not come back: %v", err)
		}
	})
}

// Whatever comes over a link, receive ends with a message or an error, and leaves no
// descriptor open but those of the message.
func FuzzLink(f *testing.F) {
	f.Add([]byte{0, 0, 0, 4, 2, 0, 0, 0, 'n', 'u', 'l', 'l'}, 0, 5)
	f.Add([]byte{0, 0, 0, 4, 2, 0, 0, 1, 'n', 'u', 'l', 'l'}, 1, 8)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 2, 0, 0, 1}, 1, 3)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 3, 1)
	f.Fuzz(func(t *testing.T, text []byte, files, cut int) {
		a, b := links(t)
		defer a.close()
		defer b.close()
		go func() {
			defer a.close()
			first := text[:min(max(cut, 0), len(text))]
			if len(first) > 0 {
				var rights []byte
				if n := min(max(files, 0), 3); n > 0 {
					rights = unix.UnixRights([]int{0, 1, 2}[:n]...)
				}
				a.conn.WriteMsgUnix(first, rights, nil)
			}
			a.conn.Write(text[len(first):])
		}()
		for range len(text) + 1 {
			m, err := b.receive()
			if err != nil {
				return
			}
			for _, fd := range m.files {
				if fd < 3 {
					t.Fatalf("descriptor %d", fd)
				}
			}
			closeFiles(m.files)
		}
		t.Fatal("it never ends")
	})
}

// A message is bounded in both directions, and one may be followed by anything.
func TestLinkLimits(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	if err := a.send(message{body: make([]byte, maxBody+1)}); err == nil {
		t.Error("too large a body was sent")
	}
	if err := a.send(message{files: make([]int, maxFiles+1)}); err == nil {
		t.Error("too many files were sent")
	}
	many := make([]int, maxFiles)
	for i := range many {
		many[i] = int(os.Stderr.Fd())
	}
	go func() {
		a.send(message{kind: 1, body: []byte("first"), files: many})
		a.send(message{kind: 2, body: make([]byte, 1<<20), optional: true})
		a.tell(3, "third", 2)
	}()
	m, err := b.receive()
	if err != nil || m.kind != 1 || string(m.body) != "first" || len(m.files) != maxFiles {
		t.Errorf("%d %q, %d files, %v", m.kind, m.body, len(m.files), err)
	}
	for _, fd := range m.files {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d is not closed on exec: %v", fd, err)
		}
	}
	closeFiles(m.files)
	if m, err := b.receive(); err != nil || m.kind != 2 || !m.optional || len(m.body) != 1<<20 {
		t.Errorf("%d, %d bytes, %v", m.kind, len(m.body), err)
	}
	m, err = b.receive()
	if text, _ := decode[string](m); err != nil || text != "third" || len(m.files) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	closeFiles(m.files)
}

// Where no descriptor is left a message that brings some comes without them, and says
// so; the link goes on.
func TestLostDescriptors(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := a.tell(msgSockets, "x", 0, 1, 2); err != nil {
		t.Fatal(err)
	}
	if err := a.tell(msgLeave, leave{Drain: 7}); err != nil {
		t.Fatal(err)
	}
	tight := old
	tight.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &tight); err != nil {
		t.Skip(err)
	}
	m, err := b.receive()
	unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	if err != nil || m.kind != msgSockets || string(m.body) != `"x"` || !m.lost || len(m.files) > 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := (&underling{}).adopt(m); !errors.Is(err, errLost) {
		t.Errorf("a worker without its sockets says %v", err)
	}
	if m, err := b.receive(); err != nil || m.kind != msgLeave || m.lost {
		t.Errorf("the next one is %+v, %v", m, err)
	}
}

// A successor without descriptors takes nothing, and so all stays where it is.
func TestLostConnectionsStay(t *testing.T) {
	leak.Check(t)
	a, b := links(t)
	_, server := peers(t)
	err := withFDs([]syscall.Conn{server}, nil, func(fds []int) error {
		return a.send(message{kind: msgConns, body: []byte{0, 0, 0, 1}, files: fds})
	})
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	tight := old
	tight.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &tight); err != nil {
		t.Skip(err)
	}
	_, err = receiveConns(b, func(string, []byte, []int) error { t.Error("something was taken"); return nil }, nobody)
	unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	if !errors.Is(err, errLost) {
		t.Error(err)
	}
	if m, err := a.receive(); err == nil {
		t.Errorf("it claimed: %+v", m)
	}
}

// Versions meet where both understand each other, or not at all.
func TestVersionsMeet(t *testing.T) {
	all := []feature{featureConns, featureState}
	for _, c := range []struct {
		a, b, met version
		fails     bool
	}{
		{a: version{2, 1, all}, b: version{2, 1, all}, met: version{2, 1, all}},
		{a: version{2, 1, all}, b: version{1, 1, nil}, met: version{1, 1, nil}},
		{a: version{1, 1, nil}, b: version{3, 1, all}, met: version{1, 1, nil}},
		{a: version{2, 1, all}, b: version{3, 2, []feature{"new", featureState}}, met: version{2, 2, []feature{featureState}}},
		{a: version{2, 1, all}, b: version{4, 3, all}, fails: true},
		{a: version{4, 3, all}, b: version{2, 1, all}, fails: true},
	} {
		met, err := c.a.meet(c.b)
		if (err != nil) != c.fails {
			t.Errorf("%v meets %v: %v", c.a, c.b, err)
		} else if err == nil && fmt.Sprint(met) != fmt.Sprint(c.met) {
			t.Errorf("%v meets %v: %v, want %v", c.a, c.b, met, c.met)
		}
	}
}

// What has gone out is not an error, though the other side, having read it, reads no
// more: a claim that its sender took for failed would be a connection without an owner.
func TestSendUnsaysNothing(t *testing.T) {
	leak.Check(t)
	for i := range 1000 {
		a, b := links(t)
		read := make(chan error, 1)
		go func() {
			_, err := b.receive()
			b.conn.CloseRead()
			read <- err
		}()
		err := a.send(message{kind: msgClaim, body: []byte{0, 0, 0, 1}})
		if got := <-read; got == nil && err != nil {
			t.Fatalf("message %d arrived, and send said %v", i, err)
		}
		a.close()
		b.close()
	}
}
