package holdfast_test

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// rowsOfPart1 are the rows the client proves: none of them may be put off.
const rowsOfPart1 = "N1-36 B1-6 B8-15 B17-19 E3-6 E8 E10 R1 R3-10"

var (
	rowLine   = regexp.MustCompile(`(?m)^\| ([A-Z]\d+) \|(.*)\|$`)
	testNamed = regexp.MustCompile("`(?:([a-z][a-z0-9/]*)\\.)?((?:Test|Fuzz|Example)[A-Z]\\w*)`")
	testDecl  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)[A-Z]\w*)\(`)
	partNamed = regexp.MustCompile(`\bpart [2-6]\b`)
)

// docs/acceptance.ids lists the seed feature rows, one a line; docs/acceptance.md
// says what proves each.
func TestAcceptanceRows(t *testing.T) {
	exists := declaredTests(t)
	proofs := map[string]string{}
	for _, m := range rowLine.FindAllStringSubmatch(readText(t, "docs/acceptance.md"), -1) {
		id, cells := m[1], strings.Split(m[2], "|")
		if _, double := proofs[id]; double {
			t.Errorf("%s has two rows", id)
		}
		proofs[id] = cells[len(cells)-1]
	}

	part1 := expand(t, rowsOfPart1)
	ids := strings.Fields(readText(t, "docs/acceptance.ids"))
	for _, id := range ids {
		proof, ok := proofs[id]
		delete(proofs, id)
		named := testNamed.FindAllString(proof, -1)
		switch {
		case !ok:
			t.Errorf("%s has no row", id)
		case len(named) == 0 && part1[id]:
			t.Errorf("%s belongs to part 1 and names no test: %s", id, proof)
		case len(named) == 0 && !partNamed.MatchString(proof):
			t.Errorf("%s names neither a test nor a part: %s", id, proof)
		}
		reportMissing(t, exists, id, proof)
	}
	for id := range proofs {
		t.Errorf("%s is no row of docs/acceptance.ids", id)
	}
}

// The failure model is held to the same: a test it names is there.
func TestAcceptanceOfTheFailureModel(t *testing.T) {
	exists := declaredTests(t)
	for line := range strings.Lines(readText(t, "docs/failure-model.md")) {
		cells := strings.Split(line, "|")
		if len(cells) < 2 {
			continue
		}
		if _, err := strconv.Atoi(strings.TrimSpace(cells[1])); err != nil {
			continue
		}
		proof := cells[len(cells)-2]
		if !testNamed.MatchString(proof) && !strings.Contains(proof, "later part") {
			t.Errorf("fault%s names neither a test nor a later part:%s", cells[1], proof)
		}
		reportMissing(t, exists, "fault"+cells[1], proof)
	}
}

func reportMissing(t *testing.T, exists map[string]bool, row, proof string) {
	t.Helper()
	for _, m := range testNamed.FindAllStringSubmatch(proof, -1) {
		if name := path.Join(m[1], m[2]); !exists[name] {
			t.Errorf("%s: no test %s", row, name)
		}
	}
}

// declaredTests returns every test of the work tree as folder/TestName, those of
// the root package as TestName.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && isIgnored(d.Name()):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(name)
		for _, m := range testDecl.FindAllSubmatch(text, -1) {
			found[path.Join(filepath.ToSlash(filepath.Dir(name)), string(m[1]))] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// expand turns "N1-3 B5" into the set N1, N2, N3, B5.
func expand(t *testing.T, ranges string) map[string]bool {
	t.Helper()
	ids := map[string]bool{}
	for _, r := range strings.Fields(ranges) {
		from, to, isRange := strings.Cut(r[1:], "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || last < first {
			t.Fatalf("range %q", r)
		}
		for n := first; n <= last; n++ {
			ids[r[:1]+strconv.Itoa(n)] = true
		}
	}
	return ids
}

func readText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(text))
}
