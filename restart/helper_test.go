//go:build linux

package restart_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func copyProgram(t testing.TB, to string) string {
	t.Helper()
	text, err := os.ReadFile(program)
	if err == nil {
		err = os.WriteFile(to, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func exeOf(t testing.TB, pid int) string {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// rss is the resident memory of a process in KiB.
func rss(t testing.TB, pid int) (kib int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, err := fmt.Sscanf(line, "VmRSS: %d", &kib); n == 1 && err == nil {
			return kib
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
