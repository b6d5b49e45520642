package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// netcat is a running holdfast dial.
type netcat struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err bytes.Buffer
}

func startDial(t *testing.T, args ...string) *netcat {
	t.Helper()
	n := &netcat{Cmd: exec.Command("holdfast", append([]string{"dial"}, args...)...)}
	n.Stderr = &n.err
	var err error
	if n.in, err = n.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := n.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.out = bufio.NewReader(out)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *netcat) wantLine(t *testing.T, want string) {
	t.Helper()
	if got, err := n.out.ReadString('\n'); got != want || err != nil {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
}

func (n *netcat) wantExit(t *testing.T, want int) {
	t.Helper()
	io.Copy(io.Discard, n.out)
	if got := exitCode(n.Wait()); got != want {
		t.Errorf("exit %d, want %d; stderr: %s", got, want, &n.err)
	}
}

// The peer has ended its side, not the conversation: what comes in later is still
// sent.
func TestDialSendsOnAfterThePeersEnd(t *testing.T) {
	t.Parallel()
	received := make(chan string, 1)
	addr := serveAt(t, nil, func(conn net.Conn) {
		io.WriteString(conn, "bye\n")
		conn.(*net.TCPConn).CloseWrite()
		all, _ := io.ReadAll(conn)
		received <- string(all)
	})
	n := startDial(t, addr)
	n.wantLine(t, "bye\n")
	io.WriteString(n.in, "but I am not done\n")
	n.in.Close()
	n.wantExit(t, 0)
	if got := <-received; got != "but I am not done\n" {
		t.Errorf("the peer received %q", got)
	}
}

func TestDialEndsBySignal(t *testing.T) {
	t.Parallel()
	for _, mode := range [][]string{nil, {"--line"}} {
		addr := serveAt(t, nil, eachLine(func(line string) string { return line }))
		n := startDial(t, append(mode, addr)...)
		io.WriteString(n.in, "hello\n")
		n.wantLine(t, "hello\n")
		n.Process.Signal(os.Interrupt)
		n.wantExit(t, 130)
	}
}

func TestDialReportsAReset(t *testing.T) {
	t.Parallel()
	addr := serveAt(t, nil, func(conn net.Conn) {
		bufio.NewReader(conn).ReadString('\n')
		conn.(*net.TCPConn).SetLinger(0)
	})
	n := startDial(t, addr)
	io.WriteString(n.in, "hello\n")
	n.wantExit(t, 1)
	if want := "holdfast: read " + addr + ": connection reset by peer\n"; n.err.String() != want {
		t.Errorf("it says %q, want %q", &n.err, want)
	}
}

// Who ends both directions first has nothing left to be ended.
func TestDialEndsAfterThePeerIsGone(t *testing.T) {
	t.Parallel()
	for range 5 {
		closed := make(chan bool)
		addr := serveAt(t, nil, func(conn net.Conn) {
			io.WriteString(conn, "bye\n")
			conn.Close()
			close(closed)
		})
		n := startDial(t, addr)
		n.wantLine(t, "bye\n")
		<-closed
		io.WriteString(n.in, "unread\n") // is answered by RST
		time.Sleep(20 * time.Millisecond)
		n.in.Close()
		n.wantExit(t, 0)
	}
}

// Lines go over kept connections, and elsewhere once their server is gone.
func TestDialLinesFailOver(t *testing.T) {
	t.Parallel()
	hangUp := make(chan struct{})
	first := serveAt(t, nil, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		if line, err := r.ReadString('\n'); err == nil {
			io.WriteString(conn, "first "+line)
			<-hangUp
		}
	})
	second := serveAt(t, nil, eachLine(func(line string) string { return "second " + line }))
	n := startDial(t, "--line", "--idempotent", first+","+second)
	io.WriteString(n.in, "1\n")
	n.wantLine(t, "first 1\n")
	close(hangUp)
	io.WriteString(n.in, "2\n3\n")
	for _, number := range []string{" 2\n", " 3\n"} {
		if got, err := n.out.ReadString('\n'); !strings.HasSuffix(got, number) {
			t.Errorf("after the first server hung up read %q, %v, want the reply to%s", got, err, number)
		}
	}
	n.in.Close()
	n.wantExit(t, 0)
}
