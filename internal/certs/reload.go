package certs

import (
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

// reloaded is a value made from files, made anew when they change.
type reloaded[T any] struct {
	paths   []string
	read    func(paths []string) (T, error)
	onError func(error)

	mu     sync.Mutex // guards the rest; never held while files are read
	value  T
	good   []fs.FileInfo // of the files the value was read from
	bad    []fs.FileInfo // of those that were reported last
	looked time.Time
}

const lookAgain = time.Second

// first reads the files; without a good value there is nothing to fall back to.
func (r *reloaded[T]) first() (err error) {
	r.good = stampsOf(r.paths)
	r.looked = time.Now()
	r.value, err = r.read(r.paths)
	return err
}

// get returns the value of the files as they are, or were when they were last
// good. Bad ones are read again at each look, though reported once: it may have been
// the reading that failed, for want of a file descriptor, and not the files.
//
// Where there are no files, r is nil, and so is the value.
func (r *reloaded[T]) get() (none T) {
	if r == nil {
		return none
	}
	r.mu.Lock()
	value, good := r.value, r.good
	due := time.Since(r.looked) >= lookAgain
	if due {
		r.looked = time.Now()
	}
	r.mu.Unlock()
	if !due {
		return value
	}
	now := stampsOf(r.paths) // before they are read: a change between is seen next time
	if slices.EqualFunc(now, good, sameFile) {
		return value
	}
	fresh, err := r.read(r.paths)
	if err != nil {
		if r.isNews(now) && r.onError != nil {
			r.onError(err)
		}
		return value
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.value, r.good = fresh, now
	return fresh
}

// again reads the files now, whether they have changed or not, and is told of an error
// instead of onError.
func (r *reloaded[T]) again() error {
	if r == nil {
		return nil
	}
	now := stampsOf(r.paths)
	fresh, err := r.read(r.paths)
	if err != nil {
		r.isNews(now) // no longer
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.value, r.good, r.looked = fresh, now, time.Now()
	return nil
}

// isNews reports whether these bad files were not reported yet.
func (r *reloaded[T]) isNews(now []fs.FileInfo) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := !slices.EqualFunc(now, r.bad, sameFile)
	r.bad = now
	return news
}

// stampsOf describes the files; a missing one is nil, and so is a text, which cannot
// change.
func stampsOf(paths []string) []fs.FileInfo {
	stamps := make([]fs.FileInfo, len(paths))
	for i, p := range paths {
		if isText(p) {
			continue
		}
		if info, err := os.Stat(p); err == nil {
			stamps[i] = info
		}
	}
	return stamps
}

// sameFile reports whether nothing was written or put in the file's place. The mode
// counts, because a key is refused for it.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.Mode() == b.Mode() && a.ModTime().Equal(b.ModTime())
}
