//go:build unix

package restart

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// pidFile says who the supervisor is. Nobody is ever signaled because of one: the
// control socket knows whom it speaks with.
type pidFile struct {
	path    string
	written bool
}

// check fails if the file could not be written now: that is better known before
// anything serves.
func (p *pidFile) check() error {
	if p.path == "" {
		return nil
	}
	temp, err := p.draft()
	if err != nil {
		return fmt.Errorf("restart: the pid file: %w", err)
	}
	return os.Remove(temp)
}

// write replaces the file in one step, so that nobody reads half of it; a symbolic
// link is replaced, not followed.
func (p *pidFile) write() error {
	if p.path == "" {
		return nil
	}
	temp, err := p.draft()
	if err != nil {
		return err
	}
	if err := os.Rename(temp, p.path); err != nil {
		os.Remove(temp)
		return err
	}
	p.written = true
	return nil
}

// draft writes the file under another name, which it returns.
func (p *pidFile) draft() (string, error) {
	if info, err := os.Lstat(p.path); err == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeSymlink == 0 {
		return "", fmt.Errorf("%s is there, and is no file to be replaced", p.path) // a device, a folder
	}
	f, err := os.CreateTemp(filepath.Dir(p.path), "."+filepath.Base(p.path)+".*")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	if err == nil {
		err = f.Chmod(0o644)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return f.Name(), err
}

// remove removes the file if it is still this process's.
func (p *pidFile) remove() {
	if !p.written {
		return
	}
	if text, err := os.ReadFile(p.path); err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(os.Getpid()) {
		os.Remove(p.path)
	}
}
