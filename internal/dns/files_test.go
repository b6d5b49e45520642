package dns

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for _, c := range []struct {
		text, servers, search string
		ndots                 int
		timeout               time.Duration
		attempts              int
	}{
		{"search x", "", "x.", 1, 5 * time.Second, 2},
		{"nameserver 192.0.2.1 # ours\nnameserver 2001:db8::1\nsearch a.test b.test.\n",
			"192.0.2.1:53 [2001:db8::1]:53", "a.test. b.test.", 1, 5 * time.Second, 2},
		{"nameserver fe80::1%eth0\nnameserver dns.example\nnameserver\nsearch x", "[fe80::1%eth0]:53", "x.", 1, 5 * time.Second, 2},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\nsearch x",
			"192.0.2.1:53 192.0.2.2:53 192.0.2.3:53", "x.", 1, 5 * time.Second, 2},
		{"search a b\ndomain c d\n", "", "c.", 1, 5 * time.Second, 2}, // the last counts
		{"domain c\nsearch a . b\n", "", "a. b.", 1, 5 * time.Second, 2},
		{"search .", "", "", 1, 5 * time.Second, 2},
		{"#search x\n;search y\nsearch z", "", "z.", 1, 5 * time.Second, 2},
		{"search x\noptions ndots:5 timeout:3 attempts:4 edns0 rotate", "", "x.", 5, 3 * time.Second, 4},
		{"search x\noptions ndots:99 timeout:0 attempts:99", "", "x.", 15, time.Second, 5},
		{"search x\noptions ndots:0 timeout:99 attempts:0", "", "x.", 0, 30 * time.Second, 1},
		{"search x\noptions ndots:-1 timeout:x attempts: \x00\xff", "", "x.", 1, 5 * time.Second, 2},
		{"search" + strings.Repeat(" x", 40), "", strings.TrimSpace(strings.Repeat("x. ", 32)), 1, 5 * time.Second, 2},
	} {
		write(t, path, c.text)
		got, err := readConfig(path)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
		}
		same(t, "servers of "+c.text, got.servers, strings.Fields(c.servers)...)
		same(t, "search list of "+c.text, got.search, strings.Fields(c.search)...)
		if got.ndots != c.ndots || got.timeout != c.timeout || got.attempts != c.attempts {
			t.Errorf("%q: ndots %d, timeout %v, attempts %d", c.text, got.ndots, got.timeout, got.attempts)
		}
	}
}

// Without a search list there is the host's own domain, without a file nothing is
// wrong.
func TestNoResolvConf(t *testing.T) {
	got, err := readConfig(filepath.Join(t.TempDir(), "missing"))
	if err != nil || len(got.servers) > 0 || got.ndots != 1 || got.attempts != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	host, _ := os.Hostname()
	_, domain, _ := strings.Cut(host, ".")
	if want := strings.TrimSuffix(domain, "."); want == "" && len(got.search) > 0 || want != "" && got.search[0] != want+"." {
		t.Errorf("on %s the search list is %q", host, got.search)
	}
}

func TestHosts(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "hosts"),
		"127.0.0.1 localhost\n192.0.2.1\tDB db.Example. # the old one: old.example\nfe80::1%lo z\nnonsense n\n192.0.2.2\n")
	names, err := readHosts(path)
	for _, want := range []string{"localhost", "db", "db.example", "z"} {
		if !names[want] {
			t.Errorf("%s is missing from %v", want, names)
		}
	}
	if err != nil || len(names) != 4 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		ndots  int
		search string
		host   string
		want   string
	}{
		{1, "", "x", "x."},
		{1, "a. b.", "x", "x.a. x.b. x."},
		{1, "a. b.", "x.y", "x.y. x.y.a. x.y.b."},
		{1, "a. b.", "x.", "x."},
		{1, "a. b.", "x.y.", "x.y."},
		{0, "a.", "x", "x. x.a."},
		{5, "a.", "x.y.z", "x.y.z.a. x.y.z."},
	} {
		conf := &config{ndots: c.ndots, search: strings.Fields(c.search)}
		same(t, c.host, conf.candidates(c.host), strings.Fields(c.want)...)
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	f := &systemFiles{resolv: filepath.Join(dir, "resolv.conf"), hosts: filepath.Join(dir, "hosts")}
	server := func() string { return strings.Join(f.conf().servers, " ") }
	synctest.Test(t, func(t *testing.T) {
		if got := server(); got != "" {
			t.Errorf("without a file: %q", got)
		}
		write(t, f.resolv, "nameserver 192.0.2.1")
		if got := server(); got != "" {
			t.Errorf("at once: %q", got)
		}
		time.Sleep(lookAgain)
		if got := server(); got != "192.0.2.1:53" {
			t.Errorf("after a while: %q", got)
		}
		kept := f.conf()
		time.Sleep(lookAgain)
		if f.conf() != kept {
			t.Error("a file that had not changed was read again")
		}
		write(t, f.hosts, "192.0.2.2 db")
		time.Sleep(lookAgain)
		if got := f.conf(); !got.hosts["db"] || len(got.servers) != 1 {
			t.Errorf("after the hosts changed: %+v", got)
		}
	})
}

// A file that cannot be read for once, as when files run out, changes nothing, and
// is read when it can be.
func TestUnreadableFilesChangeNothing(t *testing.T) {
	dir := t.TempDir()
	f := &systemFiles{resolv: write(t, filepath.Join(dir, "resolv.conf"), "nameserver 192.0.2.1"), hosts: filepath.Join(dir, "hosts")}
	synctest.Test(t, func(t *testing.T) {
		f.conf()
		os.Remove(f.resolv)
		if err := os.Mkdir(f.resolv, 0o700); err != nil { // it can be opened, not read
			t.Fatal(err)
		}
		for range 2 {
			time.Sleep(lookAgain)
			same(t, "servers", f.conf().servers, "192.0.2.1:53")
		}
		os.Remove(f.resolv)
		write(t, f.resolv, "nameserver 192.0.2.77")
		time.Sleep(lookAgain)
		same(t, "servers", f.conf().servers, "192.0.2.77:53")
	})
}

func TestFilesAreReadByMany(t *testing.T) {
	dir := t.TempDir()
	f := &systemFiles{resolv: write(t, filepath.Join(dir, "resolv.conf"), "nameserver 192.0.2.1"), hosts: filepath.Join(dir, "hosts")}
	synctest.Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for range 5 {
					if got := f.conf().servers; len(got) != 1 {
						t.Errorf("servers %q", got)
					}
					time.Sleep(lookAgain)
				}
			})
			os.Chtimes(f.resolv, time.Time{}, time.Unix(int64(i), 0))
		}
		wg.Wait()
	})
}
