package serve_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-net/holdfast/internal/leak"
	"github.com/holdfast-net/holdfast/serve"
)

// U5, U7.
func TestListenGrammar(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	for _, good := range []string{
		"tcp://127.0.0.1:0", "127.0.0.1:0", "tcp://[::1]:0", "localhost:0",
		"unix:" + dir + "/a", "unix://" + dir + "/b", "unix:" + dir + "/c?mode=0660",
		"unix:@holdfast-" + filepath.Base(dir),
	} {
		ln, err := serve.Listen(t.Context(), good)
		if err != nil {
			t.Errorf("%s: %v", good, err)
			continue
		}
		conn, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
		if err != nil {
			t.Errorf("%s: %v", good, err)
		} else {
			conn.Close()
		}
		ln.Close()
	}
	for _, bad := range []string{
		"", "http://127.0.0.1:0", "udp://127.0.0.1:0", "tls://127.0.0.1:0", "tcp://127.0.0.1", "tcp://127.0.0.1:99999",
		"unix:", "unix:" + dir + "/d?mode=0999", "unix:" + dir + "/d?mode=077777", "unix:" + dir + "/d?owner=me", "tcp://127.0.0.1:0?mode=0600",
		"unix:" + dir + "/" + strings.Repeat("x", 108), "unix:" + dir + "/nowhere/s",
	} {
		if ln, err := serve.Listen(t.Context(), bad); err == nil {
			t.Errorf("%q listens on %v", bad, ln.Addr())
			ln.Close()
		}
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// U7, fault 82.
func TestUnixSocketStaleLiveAndOwnInode(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	address := "unix:" + path + "?mode=0640"
	listen := func() net.Listener {
		t.Helper()
		ln, err := serve.Listen(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	t.Run("stale", func(t *testing.T) {
		stale, _ := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		stale.SetUnlinkOnClose(false)
		stale.Close()
		if err := listen().Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file is left: %v", err)
		}
	})
	t.Run("live", func(t *testing.T) {
		live := listen()
		defer live.Close()
		if ln, err := serve.Listen(t.Context(), address); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
			t.Errorf("listened on %v, %v; want an error with the owner", ln, err)
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("the owner has lost it: %v", err)
		}
		conn.Close()
	})
	t.Run("not a socket", func(t *testing.T) {
		os.WriteFile(path, []byte("precious"), 0o600)
		defer os.Remove(path)
		if _, err := serve.Listen(t.Context(), address); err == nil {
			t.Error("a file was replaced")
		}
		if text, _ := os.ReadFile(path); string(text) != "precious" {
			t.Error("the file is gone")
		}
	})
	t.Run("own inode only", func(t *testing.T) {
		first := listen()
		os.Remove(path)
		second := listen()
		first.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("it removed its successor's file: %v", err)
		}
		second.Close()
	})
	t.Run("mode from the first moment", func(t *testing.T) {
		stop, seen := make(chan struct{}), make(chan os.FileMode, 1)
		var watching sync.WaitGroup
		watching.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&^0o640 != 0 {
					select {
					case seen <- info.Mode():
					default:
					}
				}
			}
		})
		for range 200 {
			ln := listen()
			if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o640 {
				t.Fatal(info.Mode(), err)
			}
			ln.Close()
		}
		close(stop)
		watching.Wait()
		if len(seen) > 0 {
			t.Errorf("for a moment the mode was %v", <-seen)
		}
	})
	t.Run("TCP in use", func(t *testing.T) {
		ln, _ := serve.Listen(t.Context(), "tcp://127.0.0.1:0")
		defer ln.Close()
		_, err := serve.Listen(t.Context(), "tcp://"+ln.Addr().String())
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), ln.Addr().String()) {
			t.Errorf("got %v", err)
		}
		if runtime.GOOS == "linux" && !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
			t.Errorf("got %v, want the owner named", err)
		}
	})
	t.Run("a folder that one may not write to", func(t *testing.T) {
		if os.Getuid() == 0 {
			t.Skip("root may write everywhere")
		}
		dir := t.TempDir()
		os.Chmod(dir, 0o500)
		if _, err := serve.Listen(t.Context(), "unix:"+dir+"/s"); !errors.Is(err, os.ErrPermission) {
			t.Errorf("got %v", err)
		}
	})
}
