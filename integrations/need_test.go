package integrations

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// need returns the path of a program the test cannot do without. Some are
// looked for outside PATH, where Debian keeps them.
func need(t *testing.T, program string) string {
	t.Helper()
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	for _, pattern := range []string{"/usr/sbin/", "/usr/lib/postgresql/*/bin/"} {
		if found, _ := filepath.Glob(pattern + program); len(found) > 0 {
			return slices.Max(found)
		}
	}
	missing(t, "there is no "+program+" here; .ci/setup installs it")
	return ""
}

// needRoot ends the test where it may not make a network namespace.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "network namespaces need root")
	}
}

func missing(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Every peer in one place, so that a machine that lacks one says so once.
func TestPeersAreInstalled(t *testing.T) {
	for _, program := range []string{"redis-server", "postgres", "initdb", "haproxy", "nginx", "python3", "openssl", "dig", "nft", "ip", "ss"} {
		t.Run(program, func(t *testing.T) { need(t, program) })
	}
	t.Run("root", needRoot)
}
