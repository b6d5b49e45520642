package certs

import (
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"
)

// modesMatter is false where files have no permission bits to speak of.
const modesMatter = runtime.GOOS != "windows"

// reloaded is a value made from files, made anew when they change.
type reloaded[T any] struct {
	paths   []string
	read    func(paths []string) (T, error)
	onError func(error)

	mu     sync.Mutex // guards the rest; never held while files are read
	value  T
	stamps []fs.FileInfo // of the files that were read last, good or bad
	looked time.Time
}

const lookAgain = time.Second

// first reads the files; without a good value there is nothing to fall back to.
func (r *reloaded[T]) first() (err error) {
	r.stamps = stampsOf(r.paths)
	r.looked = time.Now()
	r.value, err = r.read(r.paths)
	return err
}

// get returns the value of the files as they are, or were when they were last
// good.
func (r *reloaded[T]) get() T {
	r.mu.Lock()
	value, stamps := r.value, r.stamps
	due := time.Since(r.looked) >= lookAgain
	if due {
		r.looked = time.Now()
	}
	r.mu.Unlock()
	if !due {
		return value
	}
	now := stampsOf(r.paths)
	if slices.EqualFunc(now, stamps, sameFile) {
		return value
	}
	fresh, err := r.read(r.paths)
	r.mu.Lock()
	r.stamps = now
	if err == nil {
		r.value = fresh
	}
	value = r.value
	r.mu.Unlock()
	if err != nil && r.onError != nil {
		r.onError(err)
	}
	return value
}

// stampsOf describes the files; a missing one is nil.
func stampsOf(paths []string) (stamps []fs.FileInfo) {
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			info = nil
		}
		stamps = append(stamps, info)
	}
	return stamps
}

// sameFile reports whether nothing was written or put in the file's place.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
