package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kill -9 of the demo leaves no server behind, not even a frozen one, which cannot
// see that its standard input ended.
func TestKilledDemoLeavesNoServer(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("holdfast", "demo", "--duration", "1m")
	progress, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pids := serverPIDs(progress)
	if len(pids) > 0 {
		syscall.Kill(pids[0], syscall.SIGSTOP)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if len(pids) != len(serverNames) {
		t.Fatalf("the demo told of servers %v", pids)
	}
	for _, pid := range pids {
		if !ends(pid, 20*time.Second) {
			t.Errorf("server %d outlived the demo", pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// serverPIDs reads a demo's progress until it has told of all its servers.
func serverPIDs(progress io.Reader) (pids []int) {
	for in := bufio.NewScanner(progress); len(pids) < len(serverNames) && in.Scan(); {
		if _, after, ok := strings.Cut(in.Text(), ", pid "); ok {
			var pid int
			fmt.Sscan(after, &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

// ends waits for the end of a process that is not our child. One that nobody has
// reaped yet has ended too.
func ends(pid int, limit time.Duration) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, state, _ := bytes.Cut(stat, []byte(") "))
		if err != nil || bytes.HasPrefix(state, []byte("Z")) {
			return true
		}
	}
	return false
}
