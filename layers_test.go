package holdfast_test

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/holdfast-net/holdfast"

// floors is the house: a room may import rooms on lower floors, never one on its
// own or above. internal/* are all on floor 0 and contrib/* on floor 4. A package
// in no room fails the test: a new room is a decision, made here.
var floors = map[string]int{
	"cmd/holdfast": 4, "bench": 4, "integrations": 4,
	"proxy": 3, "redis": 3,
	"pipeline": 2, "health": 2,
	"": 1, "serve": 1, "restart": 1, // "" is the root package
	"frame": 0, "fault": 0,
}

// Rooms that exist for tests: any test may import them, nothing else may.
var testOnly = map[string]bool{"internal/simnet": true, "internal/leak": true}

// folder is what one directory of Go files imports, whatever the build tags.
type folder struct {
	path        string // import path
	module      string
	imports     []string
	testImports []string // of its _test.go files
}

// The files are parsed rather than listed with `go list`, which sees one
// operating system and one set of tags at a time and needs every dependency of
// every module.
func TestLayers(t *testing.T) {
	folders, modules := readTree(t)
	for _, v := range violations(folders) {
		t.Error(v)
	}

	rooms := map[string]bool{}
	for _, f := range folders {
		rooms[roomOf(f.path)] = true
	}
	if !rooms[""] || len(rooms) < 2 {
		t.Errorf("the scan found only the rooms %q: it looks in the wrong place", slices.Sorted(maps.Keys(rooms)))
	}
	checkRequirements(t)
	checkWorkspace(t, modules)
}

// violations returns one sentence per import that breaks the house.
func violations(folders []folder) (found []string) {
	for _, f := range folders {
		if _, ok := floorOf(roomOf(f.path)); !ok {
			found = append(found, fmt.Sprintf("%s is in no room of the house", f.path))
			continue
		}
		check := func(to string, inTest bool) {
			if v := violation(f, to, inTest); v != "" {
				found = append(found, v)
			}
		}
		for _, to := range f.imports {
			check(to, false)
		}
		for _, to := range f.testImports {
			check(to, true)
		}
	}
	return found
}

// violation says what is wrong with f importing to, "" if nothing is.
func violation(f folder, to string, inTest bool) string {
	if !isOurs(to) {
		if f.module == modulePath && !isStandard(to) && !strings.HasPrefix(to, "golang.org/x/") {
			return fmt.Sprintf("%s imports %s: the library depends on golang.org/x only, in tests too", f.path, to)
		}
		return ""
	}
	from, room := roomOf(f.path), roomOf(to)
	here, _ := floorOf(from)
	there, known := floorOf(room)
	switch {
	case from == room:
		return ""
	case !known:
		return fmt.Sprintf("%s imports %s, which is in no room of the house", f.path, to)
	case testOnly[room] && inTest:
		return ""
	case testOnly[room]:
		return fmt.Sprintf("%s imports %s outside a test", f.path, to)
	case there > here:
		return fmt.Sprintf("%s imports %s: up, from floor %d to %d", f.path, to, here, there)
	case there == here:
		return fmt.Sprintf("%s imports %s: another room of floor %d", f.path, to, here)
	}
	return ""
}

func isOurs(importPath string) bool {
	return importPath == modulePath || strings.HasPrefix(importPath, modulePath+"/")
}

// Only paths of the standard library have no dot in their first element.
func isStandard(importPath string) bool {
	first, _, _ := strings.Cut(importPath, "/")
	return !strings.Contains(first, ".")
}

// roomOf returns the room of one of our packages: its first folder below the root,
// and for internal, cmd and contrib the second too.
func roomOf(importPath string) string {
	rel := strings.TrimPrefix(strings.TrimPrefix(importPath, modulePath), "/")
	parts := strings.SplitN(rel, "/", 3)
	switch parts[0] {
	case "internal", "cmd", "contrib":
		return strings.Join(parts[:min(2, len(parts))], "/")
	}
	return parts[0]
}

func floorOf(room string) (int, bool) {
	switch {
	case strings.HasPrefix(room, "internal/"):
		return 0, true
	case strings.HasPrefix(room, "contrib/"):
		return 4, true
	}
	floor, ok := floors[room]
	return floor, ok
}

// readTree returns every folder with Go files below the working directory and the
// modules they belong to, import path by directory.
func readTree(t *testing.T) ([]folder, map[string]string) {
	modules := map[string]string{}
	byDir := map[string]*folder{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && isIgnored(d.Name()):
			return filepath.SkipDir
		case d.IsDir():
			if module := moduleLine(filepath.Join(name, "go.mod")); module != "" {
				modules[filepath.ToSlash(name)] = module
			}
			return nil
		case filepath.Ext(name) != ".go" || isIgnored(d.Name()):
			return nil
		}
		dir := filepath.ToSlash(filepath.Dir(name))
		f := byDir[dir]
		if f == nil {
			f = &folder{}
			f.path, f.module = importPathOf(dir, modules)
			byDir[dir] = f
		}
		return f.add(name)
	})
	if err != nil {
		t.Fatal(err)
	}
	var folders []folder
	for _, dir := range slices.Sorted(maps.Keys(byDir)) {
		folders = append(folders, *byDir[dir])
	}
	return folders, modules
}

// isIgnored reports whether the go command would pass over a file or folder.
func isIgnored(name string) bool {
	return name[0] == '.' || name[0] == '_' || name == "testdata" || name == "vendor"
}

func moduleLine(gomod string) string {
	text, _ := os.ReadFile(gomod)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "module" {
			return fields[1]
		}
	}
	return ""
}

// importPathOf finds the nearest module at or above dir.
func importPathOf(dir string, modules map[string]string) (importPath, module string) {
	for at := dir; ; at = path.Dir(at) {
		if module, ok := modules[at]; ok {
			return path.Join(module, strings.TrimPrefix(dir, at)), module
		}
		if at == "." {
			return dir, ""
		}
	}
}

func (f *folder) add(file string) error {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return err
	}
	list := &f.imports
	if strings.HasSuffix(file, "_test.go") {
		list = &f.testImports
	}
	for _, spec := range parsed.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		if !slices.Contains(*list, to) {
			*list = append(*list, to)
		}
	}
	return nil
}

// checkRequirements holds what importers see in the library's go.mod.
func checkRequirements(t *testing.T) {
	text, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		fields := strings.Fields(strings.TrimPrefix(string(line), "require "))
		if len(fields) >= 2 && strings.HasPrefix(fields[1], "v") && !strings.HasPrefix(fields[0], "golang.org/x/") {
			t.Errorf("go.mod requires %s: the library depends on golang.org/x only", fields[0])
		}
	}
}

// checkWorkspace holds that one `go test work` covers every module but tools.
func checkWorkspace(t *testing.T, modules map[string]string) {
	text, err := os.ReadFile("go.work")
	if err != nil {
		return // the library alone, as a module zip has it
	}
	uses := strings.Fields(string(text))
	for dir := range modules {
		if dir != "." {
			dir = "./" + dir
		}
		if in := slices.Contains(uses, dir); in == (dir == "./tools") {
			t.Errorf("module %s: in go.work is %t", dir, in)
		}
	}
}

// A house of made-up imports, each of which breaks one rule.
func TestLayersReportsEveryViolation(t *testing.T) {
	in := func(rel string) string { return path.Join(modulePath, rel) }
	for _, row := range []struct {
		from, to string
		inTest   bool
		want     string // in the report; "" for an arrow that is allowed
	}{
		{"", "frame", false, ""},
		{"", "internal/dns", false, ""},
		{"", "internal/simnet", true, ""},
		{"", "internal/simnet", false, "outside a test"},
		{"serve", "internal/leak", false, "outside a test"},
		{"cmd/holdfast", "internal/leak", false, "outside a test"},
		{"internal/simnet", "internal/leak", false, "outside a test"},
		{"internal/simnet", "internal/leak", true, ""},
		{"internal/dns", "internal/addr", false, "another room of floor 0"},
		{"internal/dns", "internal/addr", true, "another room of floor 0"},
		{"internal/dns", "", false, "up, from floor 0 to 1"},
		{"internal/certs", "serve", true, "up, from floor 0 to 1"},
		{"frame", "fault", false, "another room of floor 0"},
		{"fault", "", false, "up, from floor 0 to 1"},
		{"", "serve", false, "another room of floor 1"},
		{"", "pipeline", false, "up, from floor 1 to 2"},
		{"", "redis", true, "up, from floor 1 to 3"},
		{"serve", "", false, "another room of floor 1"},
		{"serve", "restart", true, "another room of floor 1"},
		{"restart", "proxy", false, "up, from floor 1 to 3"},
		{"pipeline", "", false, ""},
		{"pipeline", "health", false, "another room of floor 2"},
		{"health", "proxy", false, "up, from floor 2 to 3"},
		{"redis", "pipeline", false, ""},
		{"redis", "proxy", false, "another room of floor 3"},
		{"proxy", "bench", false, "up, from floor 3 to 4"},
		{"proxy/relay", "proxy", false, ""},
		{"cmd/holdfast", "proxy", false, ""},
		{"cmd/holdfast/admin", "cmd/holdfast/config", false, ""},
		{"cmd/holdfast", "contrib/etcd", false, "another room of floor 4"},
		{"contrib/etcd", "contrib/nats", false, "another room of floor 4"},
		{"contrib/otel", "", false, ""},
		{"bench", "integrations", false, "another room of floor 4"},
		{"", "attic", false, "no room of the house"},
		{"attic", "frame", false, "no room of the house"},
		{"cmd/other", "", false, "no room of the house"},
	} {
		f := folder{path: in(row.from), module: modulePath}
		list := &f.imports
		if row.inTest {
			list = &f.testImports
		}
		*list = []string{in(row.to)}
		checkReport(t, f, row.want)
	}

	for _, f := range []folder{
		{imports: []string{"github.com/jackc/puddle/v2"}},
		{testImports: []string{"go.uber.org/goleak"}},
	} {
		f.path, f.module = in("frame"), modulePath
		checkReport(t, f, "golang.org/x only")
	}
	checkReport(t, folder{path: modulePath, module: modulePath, imports: []string{"net", "golang.org/x/sys/unix"}}, "")
	checkReport(t, folder{path: in("bench"), module: in("bench"), imports: []string{"github.com/jackc/puddle/v2"}}, "")
}

func checkReport(t *testing.T, f folder, want string) {
	t.Helper()
	got := violations([]folder{f})
	switch {
	case want == "" && len(got) > 0:
		t.Errorf("%+v is allowed, reported: %q", f, got)
	case want != "" && (len(got) != 1 || !strings.Contains(got[0], want)):
		t.Errorf("%+v: reported %q, want one report with %q", f, got, want)
	}
}
