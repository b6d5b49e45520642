package dns

import (
	"bufio"
	"cmp"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// config is what the system's files say.
type config struct {
	servers  []string
	search   []string
	ndots    int
	timeout  time.Duration
	attempts int
	hosts    map[string]bool // lower-case names of the hosts file
}

// systemFiles reads resolv.conf and hosts again when they change, looking at most
// every few seconds.
type systemFiles struct {
	resolv, hosts string // paths; "" means the system's

	mu     sync.Mutex // guards the rest
	last   *config
	stamps [2]stamp
	looked time.Time
}

type stamp struct {
	changed time.Time
	size    int64
}

const lookAgain = 5 * time.Second

// conf returns what the files say. Callers that come together while they are new
// may each read them: that is cheaper than to make one wait for the other's disk.
func (f *systemFiles) conf() *config {
	f.mu.Lock()
	last, stamps := f.last, f.stamps
	fresh := last != nil && time.Since(f.looked) < lookAgain
	if !fresh {
		f.looked = time.Now()
	}
	f.mu.Unlock()
	if fresh {
		return last
	}
	resolv, hosts := cmp.Or(f.resolv, "/etc/resolv.conf"), cmp.Or(f.hosts, "/etc/hosts")
	now := [2]stamp{stampOf(resolv), stampOf(hosts)}
	if last != nil && now == stamps {
		return last
	}
	conf := readConfig(resolv)
	conf.hosts = readHosts(hosts)
	f.mu.Lock()
	f.last, f.stamps = conf, now
	f.mu.Unlock()
	return conf
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

// readConfig reads a resolv.conf(5). What is missing or nonsense has the defaults
// of that page.
func readConfig(path string) *config {
	c := &config{ndots: 1, timeout: 5 * time.Second, attempts: 2}
	eachLine(path, func(fields []string) {
		switch fields[0] {
		case "nameserver":
			if ip, err := netip.ParseAddr(fields[1]); err == nil && len(c.servers) < 3 {
				c.servers = append(c.servers, net.JoinHostPort(ip.String(), "53"))
			}
		case "domain", "search":
			c.search = nil
			for _, s := range fields[1:min(len(fields), 7)] {
				c.search = append(c.search, absolute(s))
			}
		case "options":
			for _, o := range fields[1:] {
				c.option(o)
			}
		}
	})
	return c
}

func (c *config) option(s string) {
	key, value, _ := strings.Cut(s, ":")
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return
	}
	switch key {
	case "ndots":
		c.ndots = min(n, 15)
	case "timeout":
		c.timeout = time.Duration(min(max(n, 1), 30)) * time.Second
	case "attempts":
		c.attempts = min(max(n, 1), 5)
	}
}

func readHosts(path string) map[string]bool {
	names := map[string]bool{}
	eachLine(path, func(fields []string) {
		for _, name := range fields[1:] {
			names[strings.ToLower(strings.TrimSuffix(name, "."))] = true
		}
	})
	return names
}

// eachLine gives the fields of every line that has at least two, less comments.
func eachLine(path string, f func(fields []string)) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		if fields := strings.Fields(line); len(fields) > 1 {
			f(fields)
		}
	}
}

// candidates are the names to ask for in turn: a name with fewer dots than ndots
// is tried in the search list first, an absolute one is the only one.
func (c *config) candidates(host string) []string {
	if strings.HasSuffix(host, ".") {
		return []string{host}
	}
	var searched []string
	for _, s := range c.search {
		if s != "." {
			searched = append(searched, host+"."+s)
		}
	}
	if strings.Count(host, ".") >= c.ndots {
		return append([]string{host + "."}, searched...)
	}
	return append(searched, host+".")
}
