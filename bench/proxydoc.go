package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// proxyDoc collects what the proxy benchmarks have shown: a figure each for the common
// table, a table each for docs/benchmarks-proxy.md, and every sample for its JSON.
type proxyDoc struct {
	Machine string         `json:"machine"`
	Loads   [2]float64     `json:"load_average"` // before and after
	Raw     map[string]any `json:"results"`
	figures []figure
	tables  strings.Builder
}

// quietLoad is the load average from which on figures are called noisy.
const quietLoad = 1.5

func newProxyDoc() *proxyDoc {
	d := &proxyDoc{Raw: map[string]any{}}
	d.Machine = fmt.Sprintf("%s, %d CPUs, %s, %s, %s", runtime.Version(), runtime.NumCPU(), kernel(),
		firstLine("haproxy", "-v"), firstLine("nginx", "-v"))
	if d.Loads[0] = loadAverage(); d.Loads[0] > quietLoad {
		fmt.Printf("proxy: noisy: the load average is %.1f, and others share the CPUs\n", d.Loads[0])
	}
	return d
}

func loadAverage() float64 {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	load, _ := strconv.ParseFloat(first, 64)
	return load
}

func firstLine(name string, args ...string) string {
	out, _ := exec.Command(name, args...).CombinedOutput()
	first, _, _ := strings.Cut(string(out), "\n")
	first, _, _ = strings.Cut(first, " - ")
	return strings.TrimSpace(first)
}

func (d *proxyDoc) add(c comparison) {
	f := c.figure()
	fmt.Println(f)
	d.figures = append(d.figures, f)
	d.Raw[c.Name] = c
	fmt.Fprintf(&d.tables, "\n## %s\n\n%s: %s.", strings.TrimPrefix(c.Name, "proxy: "), cmp.Or(f.bar, "–"), f.verdict)
	fmt.Fprintf(&d.tables, " %s", f.peer)
	if c.Dropped > 0 {
		fmt.Fprintf(&d.tables, ". %d rounds did not count: without a proxy they were more than 15 %% off", c.Dropped)
	}
	d.tables.WriteString(".\n\n| | CPU per " + c.row.unit + " | quartiles | rate | p50 | p99 | p99.9 | errors |\n|---|---|---|---|---|---|---|---|\n")
	for _, s := range c.order {
		q1, _, q3 := quartiles(c.series(s, result.perUnit))
		n, _ := c.errors(s)
		middle := func(of func(result) time.Duration) string {
			d := time.Duration(median(c.series(s, func(r result) float64 { return float64(of(r)) })))
			if d == 0 {
				return "–"
			}
			return d.Round(d / 1000).Round(100 * time.Nanosecond).String()
		}
		scale, digits := 1000.0, 2
		if c.row.unit == "GB" {
			scale, digits = 1, 3
		}
		line := fmt.Sprintf("| %s | %s | %.*f–%.*f | %s | %s | %s | %s | %d |", s.name, c.cpu(s), digits, q1/scale, digits, q3/scale, c.rate(s),
			middle(func(r result) time.Duration { return r.P50 }), middle(func(r result) time.Duration { return r.P99 }),
			middle(func(r result) time.Duration { return r.P999 }), n)
		fmt.Println("   ", line)
		d.tables.WriteString(line + "\n")
	}
}

func (d *proxyDoc) addFigures(name string, figures []figure, raw any) {
	d.Raw[name] = raw
	d.figures = append(d.figures, figures...)
	fmt.Fprintf(&d.tables, "\n## %s\n\n| what | ours | beside | bar | |\n|---|---|---|---|---|\n", strings.TrimPrefix(name, "proxy: "))
	for _, f := range figures {
		fmt.Println(f)
		fmt.Fprintf(&d.tables, "| %s | %s | %s | %s | %s |\n", f.name, f.ours, f.peer, f.bar, f.verdict)
	}
}

// write leaves the figures for the parent. With out, the table's file, it writes its own
// beside that.
func (d *proxyDoc) write(figures, out string) error {
	d.Loads[1] = loadAverage()
	plain := []plainFigure{}
	for _, f := range d.figures {
		plain = append(plain, plainFigure{f.name, f.ours, f.peer, f.bar, f.verdict})
	}
	text, err := json.Marshal(plain)
	if err == nil {
		err = os.WriteFile(figures, text, 0o644)
	}
	if err != nil || out == "" {
		return err
	}
	base := strings.TrimSuffix(out, ".md") + "-proxy"
	raw, err := json.MarshalIndent(d, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(base+".json", raw, 0o644); err != nil {
		return err
	}
	noisy := ""
	if max(d.Loads[0], 0) > quietLoad {
		noisy = " Others used the machine when it began: these figures are noisy."
	}
	head := fmt.Sprintf(`# Benchmarks of the proxy

Written by `+"`make bench`"+`, every sample in benchmarks-proxy.json. Ours beside HAProxy and nginx stream, which run in
the same rounds, forwards and backwards, in a network namespace. The proxy under test is alone on one CPU, with one
worker; clients and backend share the other. "Unpinned" is two workers, and everything on both. CPU is user and
system time of all processes of the proxy, to the unit; medians and quartiles of the rounds. Ratios are to the
better setting of the better peer, in the same round. "direct" is without a proxy.

%s. Load average %.1f before, %.1f after.%s
`, d.Machine, d.Loads[0], d.Loads[1], noisy)
	return os.WriteFile(base+".md", []byte(head+d.tables.String()), 0o644)
}
