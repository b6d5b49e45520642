//go:build unix

package restart

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-net/holdfast/internal/certs"
)

// A new key is told to those that live and know what it is.
func TestRotatedKeysAreTold(t *testing.T) {
	s := &supervisor{keys: certs.RotateTickets(nil)}
	first := s.keys[0]
	current := &generation{s: s, protocol: protocol, outbox: make(chan message, 1)}
	older := &generation{s: s, protocol: version{Version: 1, Oldest: 1}, outbox: make(chan message, 1)}
	s.gens = []*generation{older, current}
	s.rotateKeys()
	if len(older.outbox) > 0 {
		t.Error("one that does not know of keys was told")
	}
	m := <-current.outbox
	if told, err := decode[[][32]byte](m); err != nil || m.kind != msgKeys || !slices.Equal(told, s.keys) || len(told) != 2 || told[1] != first {
		t.Errorf("%d, %d keys, %v", m.kind, len(told), err)
	}
}

// Fault 83: half a pid file is never seen, and no other file is left when it fails.
func TestPIDFileIsReplacedInOneStep(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pid")
	if err := os.WriteFile(path, []byte(strings.Repeat("9", 4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(path) // whoever reads the old one reads all of it
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	p := &pidFile{path: path}
	p.remove() // not ours yet
	if err := p.write(); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(path); string(text) != strconv.Itoa(os.Getpid())+"\n" {
		t.Errorf("it says %q", text)
	}
	if info, _ := old.Stat(); info.Size() != 4096 {
		t.Error("the old file was written")
	}
	p.remove()
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	p.remove() // twice is once

	folder := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(folder, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (&pidFile{path: folder}).write(); err == nil {
		t.Error("a folder was replaced")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
	if err := (&pidFile{}).write(); err != nil {
		t.Errorf("none at all: %v", err)
	}
}

// What others wrote is one line of bounded length.
func TestCausesAreOneLine(t *testing.T) {
	if got := oneLine("a\nb\x00c\td\x7f"); got != "a b c d " {
		t.Errorf("%q", got)
	}
	if got := oneLine(strings.Repeat("é", 5000)); len(got) > 1100 {
		t.Errorf("%d bytes", len(got))
	}
}
