//go:build linux

package restart_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// The control socket is for this user only, and answers one line with one.
func TestControlSocket(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	if info, err := os.Lstat(s.Admin); err != nil || info.Mode()&os.ModeSocket == 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("the control socket: %v, %v", info, err)
	}
	conn := dial(t, "unix", s.Admin)
	fmt.Fprintln(conn.conn, `{"verb":"status","what":"a newer client says more"}`)
	line, err := conn.in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	for _, field := range []string{"name", "pid", "started", "generation", "generations", "sockets", "restarts", "rolled_back", "crashed"} {
		if _, ok := got[field]; !ok {
			t.Errorf("status has no %q: %s", field, line)
		}
	}
	if err := conn.gone(); err == nil {
		t.Error("more than a line came")
	}
	s.stop()
}

// What is not an order is answered by nothing, or by a refusal, and disturbs nobody.
func TestControlSocketOfNonsense(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	s := newService(t, "tcp://"+addr).start()
	before := s.files()
	for _, nonsense := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\n", "null\n", "[]\n", "\"restart\"\n", `{"verb":7}` + "\n", "\x00\xff\xfe\n", strings.Repeat("x", 5<<20) + "\n",
	} {
		conn := dial(t, "unix", s.Admin)
		conn.conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.conn.Write([]byte(nonsense)) // may break off: it is too long
		line, err := conn.in.ReadString('\n')
		if err == nil && !strings.Contains(line, "unknown verb") {
			t.Errorf("%.20q was answered %q", nonsense, line)
		}
		conn.conn.Close()
	}
	unknown := dial(t, "unix", s.Admin)
	fmt.Fprintln(unknown.conn, `{"verb":"make coffee"}`)
	if line, _ := unknown.in.ReadString('\n'); !strings.Contains(line, `unknown verb \"make coffee\"`) {
		t.Errorf("answer %q", line)
	}
	half := dial(t, "unix", s.Admin)
	fmt.Fprint(half.conn, `{"verb":"sto`)
	half.conn.Close() // nothing happens
	s.ask("PING")
	s.sameFiles(before)
	if s.status().Restarts != 0 {
		t.Error("it was restarted")
	}
	s.stop()
}

// Neither those who say nothing nor those who wait for their answer keep a service from
// answering others, or from ending.
func TestControlSocketOfSlowClients(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	for i := range 20 {
		c := dial(t, "unix", s.Admin)
		if i%2 > 0 {
			fmt.Fprint(c.conn, `{"verb":`)
		}
	}
	s.mustRestart()
	began := time.Now()
	s.stop()
	if d := time.Since(began); d > 4*time.Second { // orders may take 5 s to come
		t.Errorf("it ended only after %v", d)
	}
}

// Who asks and goes away has still asked.
func TestRestartOutlivesItsClient(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t)).start()
	c := dial(t, "unix", s.Admin)
	fmt.Fprintln(c.conn, `{"verb":"restart"}`)
	c.conn.Close()
	s.until("it was restarted", func() bool { return s.status().Restarts == 1 })

	s.behave(mode{Fail: "hang"})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := restart.Restart(ctx, s.Admin); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits for a limited time is told %v", err)
	}
	s.behave(mode{})
	s.stop()
}

// stop closes what is open, drain waits for it; both end when all is over.
func TestDrainAndStopVerbs(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	for _, verb := range []string{"drain", "stop", "drain, then stop"} {
		s := newService(t, "tcp://"+addr)
		s.PIDFile = filepath.Join(s.dir, "pid")
		s.Drain = time.Minute
		s.start()
		c := dial(t, "tcp", addr)
		c.ask("PING")
		ended := make(chan error, 2)
		if verb != "stop" {
			go func() { ended <- restart.Drain(t.Context(), s.Admin) }()
			s.refuses(addr)
			c.ask("PING")
		}
		switch verb {
		case "drain":
			c.conn.Close()
		default:
			go func() { ended <- restart.Stop(t.Context(), s.Admin) }()
			if err := c.gone(); err == nil {
				t.Errorf("%s: the connection is open", verb)
			}
		}
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", verb, err)
		}
		if left := s.leftovers(); len(left) > 0 {
			t.Errorf("%s: it said that it was over, and there are %q", verb, left)
		}
		if err := s.exited(); err != nil {
			t.Errorf("%s: %v", verb, err)
		}
		s.nothingLeft()
	}
}

// Nobody there, and somebody who does not speak: an error that says where.
func TestAskingNobody(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	if _, err := restart.Ask(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			bufio.NewReader(conn).ReadString('\n')
			conn.Close()
		}
	}()
	if _, err := restart.Restart(t.Context(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
}

// Where nothing is said the control socket is where those who ask look for it.
func TestControlSocketByDefault(t *testing.T) {
	t.Parallel()
	s := newService(t, "tcp://"+freeAddr(t))
	path := filepath.Join(s.dir, "holdfast", "server.sock")
	s.Admin = ""
	s.env = []string{"XDG_RUNTIME_DIR=" + s.dir}
	s.ownFiles = append(s.ownFiles, "holdfast")
	s.launch()
	s.Admin = path
	s.until("it serves", func() bool { st, err := restart.Ask(t.Context(), path); return err == nil && st.Generation == 1 })
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its folder: %v, %v", info, err)
	}
	s.stop()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	without := newService(t, "tcp://"+freeAddr(t)) // where it cannot be made, the service has none
	without.Admin = ""
	without.env = []string{"XDG_RUNTIME_DIR=/dev/null"}
	without.launch()
	without.until("it serves", func() bool { return without.log.count("restart: serving") == 1 })
	if without.log.count("no control socket") != 1 {
		t.Error("the log does not say that nobody can ask it")
	}
	without.signal(syscall.SIGTERM)
	if err := without.exited(); err != nil {
		t.Error(err)
	}
}
