package restart

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
)

// A supervisor that died before the kernel was asked to tell of it is noticed all the same.
func TestParentThatDiedBefore(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const none = syscall.Signal(0)
	if err := dieWithParent(none, os.Getppid()); err != nil {
		t.Errorf("it lives: %v", err)
	}
	if err := dieWithParent(none, os.Getppid()+1); !errors.Is(err, errOrphaned) {
		t.Errorf("another has its place: %v", err)
	}
}
