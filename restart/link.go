//go:build unix

package restart

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A link joins two processes: supervisor and worker, or two workers while
// connections move. It is a pair of Unix stream sockets, because those are the same
// on every Unix and a message on them may have any length.
//
// A message is a head of 8 bytes, a body and file descriptors:
//
//	length of the body (4 bytes, big endian) · kind · flags · number of descriptors (2 bytes)
//
// The descriptors come with the head. A kind that is not known is an error, unless
// the flag says that it may be skipped; so a newer process may say more than an
// older one understands. A process that may open no more files gets a message without
// them, and marked so: what they were for is lost, and not the whole link.
type link struct {
	conn *net.UnixConn
	turn chan struct{} // held by whoever writes
}

const (
	maxSaved  = 64 << 20 // of a worker's state
	maxBody   = maxSaved + 1<<20
	maxFiles  = 250 // Linux takes 253 with one message
	optional  = 1   // flag: may be skipped
	writeTime = 10 * time.Second
)

type message struct {
	kind     msgKind
	optional bool
	body     []byte
	files    []int
	lost     bool // descriptors came with it, and could not be taken
}

var errLost = errors.New("restart: file descriptors were lost: is the limit of open files reached?")

func newLink(f *os.File) (*link, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("restart: the link is not a socket: %w", err)
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("restart: the link is a %T", conn)
	}
	l := &link{conn: u, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l, nil
}

// pair makes both ends of a link, closed on exec.
func pair() (ours, theirs *os.File, err error) {
	fds, err := socketpair()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "link"), os.NewFile(uintptr(fds[1]), "link"), nil
}

// tell sends v as JSON. It is safe for concurrent use.
func (l *link) tell(k msgKind, v any, files ...int) error { return l.send(encode(k, v, files)) }

// encode makes a message of v, which is one of ours: JSON can say it.
func encode(k msgKind, v any, files []int) message {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return message{kind: k, body: body, files: files}
}

func (l *link) send(m message) error {
	if len(m.body) > maxBody || len(m.files) > maxFiles {
		return fmt.Errorf("restart: a message of %d bytes and %d files is too large", len(m.body), len(m.files))
	}
	out := m.bytes()
	var rights []byte
	if len(m.files) > 0 {
		rights = unix.UnixRights(m.files...)
	}

	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	l.conn.SetWriteDeadline(time.Now().Add(writeTime)) // the other side reads all the time, or is gone
	n, _, err := l.conn.WriteMsgUnix(out, rights, nil)
	if err != nil || n == len(out) { // a write of nothing could still fail, and unsay what was said
		return err
	}
	_, err = l.conn.Write(out[n:])
	return err
}

// bytes are the head and the body.
func (m message) bytes() []byte {
	out := make([]byte, 8, 8+len(m.body))
	binary.BigEndian.PutUint32(out, uint32(len(m.body)))
	out[4] = byte(m.kind)
	if m.optional {
		out[5] = optional
	}
	binary.BigEndian.PutUint16(out[6:], uint16(len(m.files)))
	return append(out, m.body...)
}

// receive reads the next message. Only one goroutine may.
func (l *link) receive() (message, error) {
	head := make([]byte, 8)
	files, lost, err := l.readHead(head)
	if err != nil {
		closeFiles(files)
		return message{}, err
	}
	m := message{kind: msgKind(head[4]), optional: head[5]&optional != 0, files: files, lost: lost}
	size := binary.BigEndian.Uint32(head)
	if !lost && int(binary.BigEndian.Uint16(head[6:])) != len(files) || size > maxBody {
		closeFiles(files)
		return message{}, errors.New("it is out of step")
	}
	m.body = make([]byte, size)
	if _, err := io.ReadFull(l.conn, m.body); err != nil {
		closeFiles(files)
		return message{}, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return m, nil
}

// readHead returns all descriptors that came, or lost and none.
func (l *link) readHead(head []byte) (files []int, lost bool, err error) {
	rights := make([]byte, unix.CmsgSpace(maxFiles*4))
	for got := 0; got < len(head); {
		n, oobn, flags, _, err := l.conn.ReadMsgUnix(head[got:], rights)
		if oobn > 0 {
			more, err := parseRights(rights[:oobn])
			files = append(files, more...)
			if err != nil {
				return files, lost, err
			}
		}
		if flags&unix.MSG_CTRUNC != 0 {
			closeFiles(files)
			files, lost = nil, true
		}
		switch {
		case err != nil:
			return files, lost, err
		case n == 0 && got == 0:
			return files, lost, io.EOF
		case n == 0:
			return files, lost, io.ErrUnexpectedEOF
		}
		got += n
	}
	return files, lost, nil
}

func parseRights(oob []byte) (files []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials, or whatever else a system adds
		}
		files = append(files, more...)
	}
	for _, fd := range files {
		unix.CloseOnExec(fd)
	}
	return files, nil
}

// close ends a link, which may be none.
func (l *link) close() {
	if l != nil {
		l.conn.Close()
	}
}

func closeFiles(files []int) {
	for _, fd := range files {
		unix.Close(fd)
	}
}

// decode reads the JSON body of a message.
func decode[T any](m message) (v T, err error) {
	if err := json.Unmarshal(m.body, &v); err != nil {
		return v, fmt.Errorf("restart: message %d: %w", m.kind, err)
	}
	return v, nil
}
