package main

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"
)

// row is one comparison. Each side does its work n times; set-up happens in
// start, which returns the two sides and an end.
type row struct {
	name, peer  string
	n           int
	bar         float64       // the ratio ours/peer must not pass; 0 when limit holds
	cpuBar      float64       // the same of the CPU time
	limit       time.Duration // the time one unit of ours must not pass
	zeroAllocs  bool
	fewerAllocs bool // than the peer's, or as many
	start       func() (ours, peer side, end func(), err error)
}

// side does n units and returns how many of them failed.
type side func(n int) (failed int)

// sample is one side in one round, per unit.
type sample struct {
	wall, cpu time.Duration
	allocs    float64
	failed    int
}

type report struct {
	row        row
	ours, peer []sample
	ratios     []float64
	cpuRatios  []float64
}

// measure runs the two sides in turns, the order changing with each round, and
// drops the first round.
func (r row) measure(rounds int) (report, error) {
	ours, peer, end, err := r.start()
	if err != nil {
		return report{}, err
	}
	defer end()
	rep := report{row: r}
	for i := range rounds {
		var a, b sample
		if i%2 == 0 {
			a, b = take(ours, r.n), take(peer, r.n)
		} else {
			b, a = take(peer, r.n), take(ours, r.n)
		}
		if i == 0 {
			continue
		}
		rep.ours = append(rep.ours, a)
		rep.peer = append(rep.peer, b)
		if b.wall > 0 {
			rep.ratios = append(rep.ratios, float64(a.wall)/float64(b.wall))
			rep.cpuRatios = append(rep.cpuRatios, float64(a.cpu)/float64(b.cpu))
		}
	}
	return rep, nil
}

func take(s side, n int) sample {
	if s == nil {
		return sample{}
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu := cpuTime()
	start := time.Now()
	failed := s(n)
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	runtime.ReadMemStats(&after)
	unit := time.Duration(n)
	return sample{wall / unit, cpu / unit, float64(after.Mallocs-before.Mallocs) / float64(n), failed}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// quartiles returns the lower quartile, the median and the upper quartile.
func quartiles[T cmp.Ordered](values []T) (q1, median, q3 T) {
	if len(values) == 0 {
		return
	}
	v := slices.Sorted(slices.Values(values))
	return v[len(v)/4], v[len(v)/2], v[len(v)*3/4]
}

func median(values []float64) float64 {
	_, m, _ := quartiles(values)
	return m
}

func wallOf(s []sample) (out []time.Duration) {
	for _, x := range s {
		out = append(out, x.wall)
	}
	return out
}

func cpuOf(s []sample) (out []time.Duration) {
	for _, x := range s {
		out = append(out, x.cpu)
	}
	return out
}

func (r report) failures() (ours, peer int) {
	for i := range r.ours {
		ours += r.ours[i].failed
		peer += r.peer[i].failed
	}
	return ours, peer
}

// allocs is the smallest figure of all rounds: what is above it is the runtime's.
func (r report) allocs() float64 { return allocsOf(r.ours) }

func allocsOf(all []sample) float64 {
	least := all[0].allocs
	for _, s := range all {
		least = min(least, s.allocs)
	}
	return least
}

// verdict holds the medians against the bars: met, at par (at most 3 % short with
// the bar inside the quartiles), or missed.
func (r report) verdict() string {
	q1, ratio, _ := quartiles(r.ratios)
	_, wall, _ := quartiles(wallOf(r.ours))
	ours, _ := r.failures()
	switch {
	case ours > 0:
		return "failed"
	case r.row.zeroAllocs && r.allocs() >= 0.01:
		return "missed: allocates"
	case r.row.fewerAllocs && r.allocs() > allocsOf(r.peer)+0.05:
		return "missed: allocates"
	case r.row.limit > 0 && wall > r.row.limit:
		return "missed"
	case r.row.cpuBar > 0 && median(r.cpuRatios) > r.row.cpuBar:
		return fmt.Sprintf("missed: CPU %.2f×", median(r.cpuRatios))
	case r.row.bar == 0 && r.row.limit == 0 && !r.row.zeroAllocs:
		return "reported"
	case r.row.bar == 0 || ratio <= r.row.bar:
		return "met"
	case ratio <= r.row.bar*1.03 && q1 <= r.row.bar:
		return "at par"
	}
	return "missed"
}

func (r report) bar() string {
	var bars []string
	if r.row.bar > 0 {
		bars = append(bars, fmt.Sprintf("≤ %.2f×", r.row.bar))
	}
	if r.row.cpuBar > 0 {
		bars = append(bars, fmt.Sprintf("CPU ≤ %.2f×", r.row.cpuBar))
	}
	if r.row.fewerAllocs {
		bars = append(bars, "allocs ≤ peer's")
	}
	if r.row.limit > 0 {
		bars = append(bars, "≤ "+r.row.limit.String())
	}
	if r.row.zeroAllocs {
		bars = append(bars, "0 allocs")
	}
	return strings.Join(bars, ", ")
}

// cells are the columns of the table.
func (r report) cells() []string {
	q1, ratio, q3 := quartiles(r.ratios)
	_, ours, _ := quartiles(wallOf(r.ours))
	_, peer, _ := quartiles(wallOf(r.peer))
	_, cpu, _ := quartiles(cpuOf(r.ours))
	_, peerCPU, _ := quartiles(cpuOf(r.peer))
	failed, peerFailed := r.failures()
	versus := []string{r.row.peer, peer.String(), peerCPU.String(), fmt.Sprintf("%.2f× (%.2f–%.2f)", ratio, q1, q3), fmt.Sprintf("%d / %d", failed, peerFailed)}
	if r.row.peer == "" {
		versus = []string{"–", "–", "–", "–", fmt.Sprint(failed)}
	}
	return append([]string{r.row.name, ours.String(), cpu.String(), fmt.Sprintf("%.2f", r.allocs())}, append(versus, r.bar(), r.verdict())...)
}

func (r report) String() string {
	c := r.cells()
	return fmt.Sprintf("%-34s ours %-10s cpu %-10s allocs %-6s %s %s cpu %s ratio %s errors %s  bar %s: %s", c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9], c[10])
}

// write keeps the table with the machine and the versions it was made on.
func write(file string, reports []report, others []figure, rounds int) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\nWritten by `make bench`. Figures are medians of %d rounds, each running both sides in turns; the ratio is\n", rounds-1)
	fmt.Fprintf(&b, "ours to the peer's in the same round, with its quartiles. Times are wall time per unit, CPU is user and system\ntime of the process per unit. An absolute time means nothing on another machine or day; a ratio does.\n\n")
	fmt.Fprintf(&b, "%s, %d CPUs, %s%s.\n\n", runtime.Version(), runtime.NumCPU(), kernel(), versions())
	b.WriteString("| what | ours | CPU | allocs | peer | peer's | CPU | ratio | errors ours / peer | bar | |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range reports {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r.cells(), " | "))
	}
	b.WriteString("\n| what | ours | beside | bar | |\n|---|---|---|---|---|\n")
	for _, f := range others {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", f.name, f.ours, f.peer, f.bar, f.verdict)
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return runtime.GOOS + "/" + runtime.GOARCH + " " + strings.TrimSpace(string(text))
}

func versions() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var out strings.Builder
	for _, d := range info.Deps {
		if peer := []string{"puddle", "rueidis", "go-redis", "redigo"}; slices.ContainsFunc(peer, func(p string) bool { return strings.Contains(d.Path, p) }) {
			fmt.Fprintf(&out, ", %s %s", d.Path, d.Version)
		}
	}
	return out.String()
}
