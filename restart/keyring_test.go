//go:build unix

package restart

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The newest key seals, the older ones open for as long as they are kept.
func TestKeyringRotates(t *testing.T) {
	k, err := newKeyring()
	if err != nil {
		t.Fatal(err)
	}
	if len(k.keys) != 1 {
		t.Fatalf("%d keys at first", len(k.keys))
	}
	seen := map[[32]byte]bool{k.keys[0]: true}
	for range 2 * keyCount {
		before := slices.Clone(k.keys)
		held := k.keys
		if err := k.rotate(); err != nil {
			t.Fatal(err)
		}
		if seen[k.keys[0]] {
			t.Fatal("a key came twice")
		}
		seen[k.keys[0]] = true
		if want := before[:min(len(before), keyCount-1)]; !slices.Equal(k.keys[1:], want) {
			t.Fatal("the older keys are not those of before")
		}
		if !slices.Equal(held, before) {
			t.Fatal("keys that somebody holds were changed")
		}
	}
	if len(k.keys) != keyCount {
		t.Errorf("%d keys are kept", len(k.keys))
	}
}

// A new key is told to those that live and know what it is.
func TestRotatedKeysAreTold(t *testing.T) {
	keys, err := newKeyring()
	if err != nil {
		t.Fatal(err)
	}
	s := &supervisor{keys: keys}
	current := &generation{s: s, protocol: protocol, outbox: make(chan message, 1)}
	older := &generation{s: s, protocol: version{Version: 1, Oldest: 1}, outbox: make(chan message, 1)}
	s.gens = []*generation{older, current}
	s.rotateKeys()
	if len(older.outbox) > 0 {
		t.Error("one that does not know of keys was told")
	}
	m := <-current.outbox
	if told, err := decode[[][32]byte](m); err != nil || m.kind != msgKeys || !slices.Equal(told, keys.keys) || len(told) != 2 {
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
