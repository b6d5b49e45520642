package dns

import (
	"bufio"
	"cmp"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// config is what the system's files say.
type config struct {
	servers  []string
	search   []string // absolute, without the root
	ndots    int
	timeout  time.Duration
	attempts int
	hosts    map[string]bool // lower-case names of the hosts file
}

// systemFiles reads resolv.conf and hosts again when they change, looking at most
// every few seconds.
type systemFiles struct {
	resolv, hosts string // paths; "" means the system's

	mu     sync.Mutex // guards the rest; not held while files are read
	last   *config
	stamps [2]stamp
	looked time.Time
}

// stamp tells a file from what it was; that of a missing file is zero.
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
	resolv, hosts := cmp.Or(f.resolv, systemResolv()), cmp.Or(f.hosts, "/etc/hosts")
	now := [2]stamp{stampOf(resolv), stampOf(hosts)} // before they are read: a change between is seen next time
	if last != nil && now == stamps {
		return last
	}
	conf, err := readFiles(resolv, hosts)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		f.last, f.stamps = conf, now
	case f.last != nil:
		return f.last // what is known stays while files run out, say; the stamps do too, so they are read again
	}
	return conf
}

// systemResolv is where the servers stand. macOS has the file too, which says of
// itself that nothing consults it: it knows no VPN.
func systemResolv() string {
	if runtime.GOOS == "darwin" {
		return os.DevNull
	}
	return "/etc/resolv.conf"
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

func readFiles(resolv, hosts string) (*config, error) {
	conf, err := readConfig(resolv)
	names, hostsErr := readHosts(hosts)
	conf.hosts = names
	return conf, errors.Join(err, hostsErr)
}

// readConfig reads a resolv.conf(5). What is missing or nonsense has the defaults
// of that page, but for the server: without one, the system is asked.
func readConfig(path string) (*config, error) {
	c := &config{ndots: 1, timeout: 5 * time.Second, attempts: 2}
	if host, err := os.Hostname(); err == nil {
		_, domain, _ := strings.Cut(host, ".")
		c.searchIn(domain)
	}
	err := eachLine(path, c.line)
	return c, err
}

func (c *config) line(fields []string) {
	switch fields[0] {
	case "nameserver":
		if ip, err := netip.ParseAddr(fields[1]); err == nil && len(c.servers) < 3 {
			c.servers = append(c.servers, net.JoinHostPort(ip.String(), "53"))
		}
	case "domain":
		c.searchIn(fields[1])
	case "search":
		c.searchIn(fields[1:min(len(fields), 33)]...) // 32, as many as Kubernetes allows
	case "options":
		for _, o := range fields[1:] {
			c.option(o)
		}
	}
}

func (c *config) searchIn(domains ...string) {
	c.search = nil
	for _, s := range domains {
		if s = strings.TrimSuffix(s, "."); s != "" {
			c.search = append(c.search, s+".")
		}
	}
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

func readHosts(path string) (map[string]bool, error) {
	names := map[string]bool{}
	err := eachLine(path, func(fields []string) {
		if _, err := netip.ParseAddr(fields[0]); err != nil {
			return
		}
		for _, name := range fields[1:] {
			names[strings.ToLower(strings.TrimSuffix(name, "."))] = true
		}
	})
	return names, err
}

// eachLine gives the fields of every line that has at least two, less comments. A
// file that does not exist has no lines.
func eachLine(path string, f func(fields []string)) error {
	file, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if fields := strings.Fields(line); len(fields) > 1 {
			f(fields)
		}
	}
	return lines.Err()
}

// candidates are the names to ask for in turn: a name with fewer dots than ndots
// is tried in the search list first, an absolute one is the only one.
func (c *config) candidates(host string) []string {
	if strings.HasSuffix(host, ".") {
		return []string{host}
	}
	names := []string{host + "."}
	for _, s := range c.search {
		names = append(names, host+"."+s)
	}
	if strings.Count(host, ".") < c.ndots {
		names = append(names[1:], names[0])
	}
	return names
}
