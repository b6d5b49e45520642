package restart_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-net/holdfast/restart"
)

type nobody struct{}

func (nobody) Serve(net.Listener) error           { panic("it was to fail before") }
func (nobody) ServePacket(net.PacketConn) error   { panic("it was to fail before") }
func (nobody) Shutdown(ctx context.Context) error { panic("it was to fail before") }

// What is wrong is an error of Run before anything is bound, started or written.
func TestMisuse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := "tcp://" + ln.Addr().String()
	ln.Close()
	keep := restart.Keep("journal", func() (*os.File, error) { panic("opened") }, func(*os.File) error { panic("used") })
	command := func(ready string) restart.Config {
		return restart.Config{Command: restart.Command{Args: []string{"true"}, Ready: ready}}
	}
	good := restart.Bind(nobody{}, free)
	for name, c := range map[string]struct {
		cfg   restart.Config
		binds []restart.Binding
		says  string
	}{
		"no bindings":           {says: "nothing to serve"},
		"no addresses":          {binds: []restart.Binding{restart.Bind(nobody{})}, says: "nothing to serve"},
		"the same address":      {binds: []restart.Binding{good, restart.Bind(nobody{}, free)}, says: "two bindings are named"},
		"the same name":         {binds: []restart.Binding{restart.Bind(nobody{}, "a="+free, "a=tcp://:1")}, says: `two bindings are named "a"`},
		"a file's name":         {binds: []restart.Binding{keep, keep}, says: `two bindings are named "journal"`},
		"tls":                   {binds: []restart.Binding{good, restart.Bind(nobody{}, "tls://:443")}, says: "the server does TLS"},
		"srv":                   {binds: []restart.Binding{restart.Bind(nobody{}, "srv://_a._tcp.example")}, says: "want one of tcp, unix"},
		"udp for a stream":      {binds: []restart.Binding{restart.Bind(nobody{}, "udp://:53")}, says: "want one of tcp, unix"},
		"tcp for packets":       {binds: []restart.Binding{restart.BindPacket(nobody{}, "tcp://:53")}, says: "want one of udp, unix"},
		"no address at all":     {binds: []restart.Binding{restart.Bind(nobody{}, "nonsense")}, says: "nonsense"},
		"a path for a name":     {cfg: restart.Config{Name: "a/b"}, binds: []restart.Binding{good}, says: "not one that a file could have"},
		"no name":               {cfg: restart.Config{Name: ".."}, binds: []restart.Binding{good}, says: "not one that a file could have"},
		"one generation":        {cfg: restart.Config{Generations: 1}, binds: []restart.Binding{good}, says: "at least 2 generations"},
		"negative generations":  {cfg: restart.Config{Generations: -1}, binds: []restart.Binding{good}, says: "at least 2 generations"},
		"unknown parameter":     {binds: []restart.Binding{good, restart.Bind(nobody{}, "tcp://:1?backlog=3")}, says: "backlog"},
		"mode of tcp":           {binds: []restart.Binding{good, restart.Bind(nobody{}, "tcp://:1?mode=0600")}, says: "mode"},
		"mode out of range":     {binds: []restart.Binding{restart.Bind(nobody{}, "unix:/tmp/x?mode=7777")}, says: "octal"},
		"datagrams to a stream": {binds: []restart.Binding{restart.Bind(nobody{}, "unix:/tmp/x?type=dgram")}, says: "BindPacket"},
		"another type":          {binds: []restart.Binding{restart.BindPacket(nobody{}, "unix:/tmp/x?type=stream")}, says: "type=stream"},
		"mode not octal":        {binds: []restart.Binding{restart.Bind(nobody{}, "unix:/tmp/x?mode=rw")}, says: "octal"},
		"a file for a command":  {cfg: command(""), binds: []restart.Binding{good, keep}, says: "only sockets"},
		"command, how ready":    {cfg: command("soon"), binds: []restart.Binding{good}, says: "soon"},
		"command, timer":        {cfg: command("timer=-1s"), binds: []restart.Binding{good}, says: "timer"},
		"command, http":         {cfg: command("http=ftp://x"), binds: []restart.Binding{good}, says: "http"},
		"command, notify=value": {cfg: command("notify=1"), binds: []restart.Binding{good}, says: "notify"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.cfg.Admin, c.cfg.PIDFile = filepath.Join(dir, "admin"), filepath.Join(dir, "pid")
			c.cfg.Observe = func(e restart.Event) { t.Errorf("something happened: %+v", e) }
			err := restart.Run(t.Context(), c.cfg, c.binds...)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("files were made: %v", entries)
			}
		})
	}
}

// All that is wrong is told at once.
func TestMisuseIsToldTogether(t *testing.T) {
	err := restart.Run(t.Context(), restart.Config{Admin: "none"},
		restart.Bind(nobody{}, "tls://:443", "udp://:53", "tcp://:1"), restart.Bind(nobody{}, "tcp://:1"))
	for _, says := range []string{"tls://:443", "udp://:53", "two bindings"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

func TestAdminPath(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	if p := restart.AdminPath("app"); p != "/run/user/7/holdfast/app.sock" {
		t.Error(p)
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	if p := restart.AdminPath("app"); p != "/run/holdfast/app.sock" {
		t.Error(p)
	}
}
