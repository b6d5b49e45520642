package integrations

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

func TestMain(m *testing.M) {
	var err error
	if built.dir, err = os.MkdirTemp("", "holdfast-bin-"); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	os.RemoveAll(built.dir)
	os.Exit(code)
}

// built are our programs, each built when the first test wants it, and without the race
// detector: what runs beside them here is not ours.
var built struct {
	dir    string
	builds sync.Map // by name: func() error
}

// program builds one of them, and returns its path.
func program(t *testing.T, name, folder string) string {
	t.Helper()
	path := filepath.Join(built.dir, name)
	build, _ := built.builds.LoadOrStore(name, sync.OnceValue(func() error {
		out, err := exec.Command("go", "build", "-C", folder, "-buildvcs=false", "-o", path, ".").CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
		return nil
	}))
	if err := build.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return path
}

func holdfastProgram(t *testing.T) string {
	t.Helper()
	return program(t, "holdfast", filepath.Join("..", "cmd", "holdfast"))
}
