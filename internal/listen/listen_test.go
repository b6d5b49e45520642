//go:build linux

package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-net/holdfast/internal/leak"
	"golang.org/x/sys/unix"
)

// folder is one whose name leaves room for a socket's.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func stream(t testing.TB, network, address string, o Options) (net.Listener, File) {
	t.Helper()
	ln, file, err := Stream(t.Context(), network, address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); file.Remove() })
	return ln, file
}

func packet(t testing.TB, network, address string, o Options) (net.PacketConn, File) {
	t.Helper()
	pc, file, err := Packet(t.Context(), network, address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close(); file.Remove() })
	return pc, file
}

func there(path string) bool { _, err := os.Lstat(path); return err == nil }

// The file of a Unix socket outlives its listener here, for the socket may be held
// elsewhere, and goes when it is removed.
func TestFileOutlivesListener(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(folder(t), "sock")
	ln, file := stream(t, "unix", path, Options{})
	ln.Close()
	if !there(path) {
		t.Fatal("the file went with the listener")
	}
	file.Remove()
	if there(path) {
		t.Error("the file is still there")
	}
	file.Remove()
	File{}.Remove()
}

// Only the own file is removed: not one that somebody else has put in its place.
func TestOnlyTheOwnFileIsRemoved(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(folder(t), "sock")
	ln, mine := stream(t, "unix", path, Options{})
	ln.Close()
	time.Sleep(20 * time.Millisecond)                   // a file system tells times apart that are a tick apart
	other, theirs := stream(t, "unix", path, Options{}) // mine is stale by now
	mine.Remove()
	if !there(path) {
		t.Fatal("the file of the other was removed")
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	other.Close()
	theirs.Remove()
}

// The mode is the one that was asked for, whatever the umask; without one the umask
// decides.
func TestModeOfAUnixSocket(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := folder(t)
	for mode, want := range map[os.FileMode]os.FileMode{0: 0o700, 0o600: 0o600, 0o666: 0o666, 0o660: 0o660, 0o777: 0o777} {
		for _, network := range []string{"unix", "unixgram"} {
			path := filepath.Join(dir, fmt.Sprintf("%s%o", network, mode))
			if network == "unix" {
				stream(t, network, path, Options{Mode: mode})
			} else {
				packet(t, network, path, Options{Mode: mode})
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s, %o: %v, %v", network, mode, info.Mode(), err)
			}
		}
	}
}

// Where the mode cannot be set nothing is left bound, and what somebody has put in the
// socket's place is not touched.
func TestModeThatCannotBeSet(t *testing.T) {
	leak.Check(t)
	dir := folder(t)
	precious := filepath.Join(dir, "precious")
	os.WriteFile(precious, nil, 0o600)
	for name, put := range map[string]func(path string) error{
		"nothing": func(string) error { return nil },
		"a link":  func(path string) error { return os.Symlink(precious, path) },
	} {
		path := filepath.Join(dir, name)
		var bound net.Listener
		ln, file, err := bind(t.Context(), "unix", path, Options{Mode: 0o666}, func(c net.ListenConfig) (_ net.Listener, err error) {
			if bound, err = c.Listen(t.Context(), "unix", path); err == nil {
				bound.(*net.UnixListener).SetUnlinkOnClose(false)
				err = errors.Join(os.Remove(path), put(path))
			}
			return bound, err
		})
		if err == nil || !strings.Contains(err.Error(), path) || ln != nil || file.info != nil {
			t.Errorf("%s in its place: %v, %v", name, ln, err)
		}
		bound.(*net.UnixListener).SetDeadline(time.Now().Add(time.Second))
		if _, err := bound.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s in its place: the listener is left: %v", name, err)
		}
	}
	if info, err := os.Stat(precious); err != nil || info.Mode().Perm() != 0o600 || !there(filepath.Join(dir, "a link")) {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// Fault 82: a file that nobody listens on any more is replaced, one that is alive is
// kept, and who has it is named.
func TestStaleSocketIsReplacedAndALiveOneKept(t *testing.T) {
	leak.Check(t)
	dir := folder(t)
	path, gram := filepath.Join(dir, "sock"), filepath.Join(dir, "gram")
	for range 2 { // the second time there is a stale file
		ln, _, err := Stream(t.Context(), "unix", path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		pc, _, err := Packet(t.Context(), "unixgram", gram, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Stream(t.Context(), "unix", path, Options{})
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), fmt.Sprintf("(by process %d)", os.Getpid())) {
			t.Errorf("a live one: %v", err)
		}
		if _, _, err = Packet(t.Context(), "unixgram", gram, Options{}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), gram) {
			t.Errorf("a live one of datagrams: %v", err)
		}
		// A stream where datagrams are taken, and the reverse, are alive as well.
		if _, _, err = Stream(t.Context(), "unix", gram, Options{}); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a stream in place of datagrams: %v", err)
		}
		if _, _, err = Packet(t.Context(), "unixgram", path, Options{}); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("datagrams in place of a stream: %v", err)
		}
		if conn, err := net.Dial("unix", path); err != nil {
			t.Errorf("the live one: %v", err)
		} else {
			conn.Close()
		}
		ln.Close()
		pc.Close()
	}
	os.Remove(path)
	os.Remove(gram)
}

// A live server whose queue is full is alive.
func TestBusySocketIsKept(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(folder(t), "sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // fill its queue
		if conn, err := net.Dial("unix", path); err == nil {
			defer conn.Close()
		}
	}
	if _, _, err := Stream(t.Context(), "unix", path, Options{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	if !there(path) {
		t.Error("the file of a busy server was removed")
	}
}

// What is in the way and is no socket stays: a file, a folder, a link to a file.
func TestNoSocketIsKept(t *testing.T) {
	leak.Check(t)
	dir := folder(t)
	file, sub, link, dangling := filepath.Join(dir, "file"), filepath.Join(dir, "sub"), filepath.Join(dir, "link"), filepath.Join(dir, "dangling")
	os.WriteFile(file, []byte("precious"), 0o600)
	os.Mkdir(sub, 0o700)
	os.Symlink(file, link)
	os.Symlink(filepath.Join(dir, "nothing"), dangling)
	for _, path := range []string{file, sub, link, dangling} {
		if _, _, err := Stream(t.Context(), "unix", path, Options{}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		if !there(path) {
			t.Errorf("%s was removed", path)
		}
	}
	if text, _ := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("the file has %q", text)
	}
}

// Fault 82: a path that does not fit is told with its length, before anything is made.
func TestPathTooLong(t *testing.T) {
	leak.Check(t)
	dir := folder(t)
	path := filepath.Join(dir, strings.Repeat("x", 200))
	path = path[:maxPath]
	ln, file := stream(t, "unix", path, Options{})
	ln.Close()
	file.Remove()
	_, _, err := Stream(t.Context(), "unix", path+"x", Options{})
	if err == nil || !strings.Contains(err.Error(), "108 bytes") || !strings.Contains(err.Error(), "107") {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Fault 82: a folder that is not there or not ours is told with the path.
func TestFolderNotThereOrNotWritable(t *testing.T) {
	leak.Check(t)
	dir := folder(t)
	missing := filepath.Join(dir, "no", "sock")
	if _, _, err := Stream(t.Context(), "unix", missing, Options{}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("missing: %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("to be another user one has to be root")
	}
	for mode, works := range map[os.FileMode]bool{0o755: false, 0o700: false, 0o773: true} {
		os.Chmod(dir, mode)
		path := filepath.Join(dir, fmt.Sprintf("%o", mode))
		err := asNobody(func() error {
			ln, _, err := Stream(context.Background(), "unix", path, Options{})
			if err == nil {
				ln.Close()
			}
			return err
		})
		switch {
		case works && err != nil:
			t.Errorf("a folder that can be written and not be listed: %v", err)
		case !works && (!errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), path)):
			t.Errorf("%o: %v", mode, err)
		}
	}
}

// asNobody runs do as a user who may little. Its thread ends with it.
func asNobody(do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		unix.Setfsgid(65534)
		unix.Setfsuid(65534)
		result <- do()
	}()
	return <-result
}

// Many who want the same path at once: one gets it, the others are told, and the one
// that got it keeps it.
func TestOneOfManyGetsThePath(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(folder(t), "sock")
	for range 20 { // each time over a stale file
		var wg sync.WaitGroup
		won := make(chan net.Listener, 8)
		for range cap(won) {
			wg.Go(func() {
				ln, _, err := Stream(t.Context(), "unix", path, Options{})
				if err == nil {
					won <- ln
				} else if !errors.Is(err, syscall.EADDRINUSE) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d got it", len(won))
		}
		ln := <-won
		if conn, err := net.Dial("unix", path); err != nil {
			t.Error(err)
		} else {
			conn.Close()
		}
		ln.Close()
	}
}

// An abstract name has no file.
func TestAbstractName(t *testing.T) {
	leak.Check(t)
	name := fmt.Sprintf("@holdfast-test-%d", os.Getpid())
	ln, file := stream(t, "unix", name, Options{Mode: 0o600})
	if file.info != nil {
		t.Error("it has a file")
	}
	if _, _, err := Stream(t.Context(), "unix", name, Options{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	ln.Close()
}

// Fault 82: who has the port is named, be it this process or another, over IPv4 and
// IPv6, TCP and UDP.
func TestOwnerOfAPortIsNamed(t *testing.T) {
	leak.Check(t)
	me := fmt.Sprintf("(by process %d)", os.Getpid())
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "tcp4": ":0", "tcp6": "[::1]:0"} {
		ln, _, err := Stream(t.Context(), network, address, Options{})
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		_, _, err = Stream(t.Context(), network, ln.Addr().String(), Options{})
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), me) || !strings.Contains(err.Error(), ln.Addr().String()) {
			t.Errorf("%s: %v", network, err)
		}
		ln.Close()
	}
	pc, _ := packet(t, "udp", "127.0.0.1:0", Options{})
	if _, _, err := Packet(t.Context(), "udp", pc.LocalAddr().String(), Options{}); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), me) {
		t.Errorf("udp: %v", err)
	}
	pc.Close()
}

// It is the listener that is named, not somebody with a connection of that port.
func TestOwnerIsTheListener(t *testing.T) {
	leak.Check(t)
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(python, "-c", `
import socket, sys
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print(s.getsockname()[1], flush=True)
sys.stdin.read()
`)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var port int
	if _, err := fmt.Fscan(out, &port); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _, err = Stream(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port), Options{})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(by process %d)", cmd.Process.Pid)) {
		t.Errorf("%v, and it is %d", err, cmd.Process.Pid)
	}
}

// Who wants to set options gets the socket before it is bound.
func TestControlRunsBeforeBind(t *testing.T) {
	leak.Check(t)
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(folder(t), "sock")} {
		called := false
		ln, file := stream(t, network, address, Options{Mode: 0o600, Control: func(string, string, syscall.RawConn) error {
			called = true
			return nil
		}})
		if !called {
			t.Errorf("%s: it was not called", network)
		}
		ln.Close()
		file.Remove()
	}
	want := errors.New("no")
	path := filepath.Join(folder(t), "sock")
	_, _, err := Stream(t.Context(), "unix", path, Options{Control: func(string, string, syscall.RawConn) error { return want }})
	if !errors.Is(err, want) || there(path) {
		t.Errorf("%v", err)
	}
}
