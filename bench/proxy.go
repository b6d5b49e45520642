package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// proxyRow is a comparison of proxies under one load.
type proxyRow struct {
	name    string
	unit    string // "message", "connection" or "GB"
	task    task
	at      placing
	peers   []setting
	cert    string  // "ecdsa" or "rsa"; "" is no TLS
	open    float64 // messages are sent when due, at this part of what the slowest does at most
	collect bool    // ours collects garbage all the time; the bar is p99.9, and connections are held beside
	redis   []string

	cpuBar  float64 // CPU time per unit, ours to the better peer's: at most; 0 is none
	rateBar float64 // units per second: at least
	tailBar float64 // p99.9: at most
}

var (
	small = []setting{haproxyPlain, nginx16}
	large = []setting{haproxyPlain, haproxySplice, nginx16, nginx64}
	two   = []setting{haproxyPlain, nginx16, nginxShared}
)

// proxyRows are the loads. In the first series the proxy has a CPU for itself, and the
// figure is its CPU time; in the second all share two, and it is the rate.
func proxyRows() (rows []proxyRow) {
	const warm, long, short = 100 * time.Millisecond, 400 * time.Millisecond, 300 * time.Millisecond
	echo := func(conns, size int) task {
		return task{Kind: "echo", Conns: conns, Size: size, Warm: warm, For: long}
	}
	churn := task{Kind: "churn", Conns: 32, Size: 100, Warm: warm, For: long}
	for _, conns := range []int{1, 64, 1000} {
		name := fmt.Sprintf("proxy: ping-pong 100 B, %s connections", thousands(conns))
		rows = append(rows,
			proxyRow{name: name, unit: "message", task: echo(conns, 100), at: pinned, peers: small, cpuBar: 1},
			proxyRow{name: name + ", unpinned", unit: "message", task: echo(conns, 100), at: unpinned, peers: two, rateBar: 1})
	}
	for _, part := range []float64{0.5, 0.8} {
		rows = append(rows, proxyRow{name: fmt.Sprintf("proxy: ping-pong 100 B, 64 connections, %.0f %% load", part*100), unit: "message",
			task: echo(64, 100), at: pinned, peers: small, open: part})
	}
	rows = append(rows, proxyRow{name: "proxy: ping-pong 16 KB, 32 connections", unit: "message", task: echo(32, 16<<10), at: pinned, peers: large})
	for _, conns := range []int{1, 8, 64} {
		for _, way := range []string{"down", "up"} {
			rows = append(rows, proxyRow{name: fmt.Sprintf("proxy: bulk %s, %d streams", way, conns), unit: "GB",
				task: task{Kind: way, Conns: conns, Warm: warm, For: short}, at: pinned, peers: large, cpuBar: 0.8})
		}
	}
	rows = append(rows,
		proxyRow{name: "proxy: connect, exchange, close, 32 at once", unit: "connection", task: churn, at: pinned, peers: small, cpuBar: 1.1},
		proxyRow{name: "proxy: connect, exchange, close, 32 at once, unpinned", unit: "connection", task: churn, at: unpinned, peers: two, rateBar: 1},
		proxyRow{name: "proxy: redis-benchmark GET", unit: "message", at: unpinned, peers: two, redis: []string{"-n", "40000"}, rateBar: 1},
		proxyRow{name: "proxy: redis-benchmark GET -P 16", unit: "message", at: unpinned, peers: two, redis: []string{"-n", "400000", "-P", "16"}, rateBar: 1})
	tls := func(name, kind, cert string) proxyRow {
		return proxyRow{name: "proxy: TLS terminated, " + name, unit: "connection", cert: cert, at: pinned, peers: small,
			task: task{Kind: kind, Conns: 16, Size: 100, Warm: warm, For: long}}
	}
	bulk := tls("bulk, 8 streams", "tls down", "ecdsa")
	bulk.unit, bulk.task.Conns, bulk.peers = "GB", 8, []setting{haproxyPlain, nginx16, nginx64}
	rows = append(rows, tls("full handshakes, ECDSA", "tls", "ecdsa"), tls("full handshakes, RSA 2048", "tls", "rsa"),
		tls("resumed", "tls resumed", "ecdsa"), bulk)
	rows = append(rows, udpRows()...)
	return append(rows, proxyRow{name: "proxy: ping-pong 100 B, 64 connections, 50 % load, forced GC", unit: "message", task: echo(64, 100), at: pinned,
		peers: []setting{haproxyPlain}, open: 0.5, collect: true, tailBar: 2})
}

func thousands(n int) string {
	if n >= 1000 {
		return fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	return fmt.Sprint(n)
}

// comparison is a row with what was measured.
type comparison struct {
	row     proxyRow
	Name    string              `json:"name"`
	Rate    float64             `json:"open_loop_rate,omitempty"`
	Dropped int                 `json:"rounds_dropped,omitempty"` // for the machine was not itself
	Rounds  map[string][]result `json:"rounds"`                   // by setting
	order   []setting
}

// asker is a process that does tasks.
type asker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startAsker(kind string, cpu int) (a *asker, first string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	a = &asker{cmd: exec.Command(self)}
	a.cmd.Env = append(os.Environ(), childVar+"="+kind, "GOMAXPROCS=1")
	a.cmd.Stderr = os.Stderr
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	a.out = bufio.NewReader(out)
	if err := startOn(cpu, a.cmd); err != nil {
		return nil, "", err
	}
	if first, err = a.out.ReadString('\n'); err != nil {
		a.stop()
		return nil, "", errors.New(kind + " ended before it began")
	}
	return a, strings.TrimSpace(first), nil
}

func (a *asker) stop() {
	a.in.Close()
	t := time.AfterFunc(5*time.Second, func() { a.cmd.Process.Kill() })
	defer t.Stop()
	a.cmd.Wait()
}

func (a *asker) do(t task) (r result, err error) {
	text, err := json.Marshal(t)
	if err != nil {
		return r, err
	}
	if _, err := a.in.Write(append(text, '\n')); err != nil {
		return r, err
	}
	line, err := a.out.ReadBytes('\n')
	if err != nil {
		return r, fmt.Errorf("the client is gone: %w", err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, err
	}
	if r.Err != "" {
		err = errors.New(r.Err)
	}
	return r, err
}

// bench is what a comparison runs on.
type bench struct {
	hosting
	load    *asker
	proxies []*proxied
	ends    []func()
}

func (b *bench) end() {
	for _, f := range slices.Backward(b.ends) {
		f()
	}
}

// setUp starts backend, clients and proxies.
func setUp(h hosting, cert string, settings ...setting) (b *bench, err error) {
	b = &bench{hosting: h}
	defer func() {
		if err != nil {
			b.end()
		}
	}()
	if cert != "" {
		dir, err := os.MkdirTemp("", "holdfast-bench")
		if err != nil {
			return b, err
		}
		b.ends = append(b.ends, func() { os.RemoveAll(dir) })
		if b.cert, err = writeCert(dir, cert); err != nil {
			return b, err
		}
	}
	backend, addr, err := startAsker("proxy-backend", h.back)
	if err != nil {
		return b, err
	}
	b.backend = addr
	b.ends = append(b.ends, backend.stop)
	if b.load, _, err = startAsker("proxy-load", h.back); err != nil {
		return b, err
	}
	b.ends = append(b.ends, b.load.stop)
	return b, b.startProxies(settings)
}

func (b *bench) startProxies(settings []setting) error {
	for _, s := range settings {
		p, err := s.start(b.hosting)
		if err != nil {
			return err
		}
		b.proxies = append(b.proxies, p)
		b.ends = append(b.ends, p.stop)
	}
	return nil
}

// setUpRedis has a redis-server for backend.
func setUpRedis(at placing, settings []setting) (b *bench, err error) {
	addr, stop, err := redisServer()
	if err != nil {
		return nil, err
	}
	b = &bench{hosting: hosting{placing: at, backend: addr}, ends: []func(){stop}}
	if err := b.startProxies(settings); err != nil {
		b.end()
		return nil, err
	}
	return b, nil
}

// measure runs the proxies in turns, forwards and backwards, and drops the first round.
// Without a proxy the load must be the same in each round, or the round does not count.
func (r proxyRow) measure(rounds int) (c comparison, err error) {
	c = comparison{row: r, Name: r.name, Rounds: map[string][]result{}, order: slices.Concat([]setting{direct, oursPlain}, r.peers)}
	if r.cert != "" {
		c.order = c.order[1:]
	}
	var b *bench
	if r.redis != nil {
		b, err = setUpRedis(r.at, c.order)
	} else {
		b, err = setUp(hosting{placing: r.at, packets: r.task.Kind == "udp"}, r.cert, c.order...)
	}
	if err != nil {
		return c, err
	}
	defer b.end()
	t := r.task
	if r.open > 0 {
		if t.Rate, err = b.rateOf(t, r.open); err != nil {
			return c, err
		}
		c.Rate = t.Rate
	}
	if r.collect {
		end, err := b.collect()
		if err != nil {
			return c, err
		}
		defer end()
	}
	for i := range rounds {
		turn := slices.Clone(b.proxies)
		if i%2 == 1 {
			slices.Reverse(turn)
		}
		for _, p := range turn {
			res, err := b.once(r, p, t)
			if err != nil {
				return c, fmt.Errorf("%s: %w", p.name, err)
			}
			if i > 0 {
				c.Rounds[p.name] = append(c.Rounds[p.name], res)
			}
		}
	}
	for _, p := range b.proxies {
		if !p.alive() {
			return c, fmt.Errorf("%s did not survive", p.name)
		}
	}
	c.dropOdd()
	return c, nil
}

func (b *bench) once(r proxyRow, p *proxied, t task) (result, error) {
	if r.redis != nil {
		return redisBenchmark(p, r.redis)
	}
	t.Addr, t.Pids = p.addr, p.pids()
	return b.load.do(t)
}

// rateOf is a part of what the slowest can do.
func (b *bench) rateOf(t task, part float64) (float64, error) {
	least := 0.0
	for _, p := range b.proxies {
		t.Addr, t.Pids = p.addr, nil
		res, err := b.load.do(t)
		if err != nil {
			return 0, err
		}
		if rate := res.rate(); least == 0 || rate < least {
			least = rate
		}
	}
	return least * part, nil
}

// collect lets ours collect garbage all the time, with connections to look after.
func (b *bench) collect() (end func(), err error) {
	holder, _, err := startAsker("proxy-load", b.back)
	if err != nil {
		return nil, err
	}
	for _, p := range b.proxies {
		if p.of == "direct" {
			continue
		}
		if _, err := holder.do(task{Kind: "hold", Addr: p.addr, Conns: 2000, Bytes: 1}); err != nil {
			holder.stop()
			return nil, err
		}
		if p.of == "ours" {
			fmt.Fprintln(p.in, "gc")
		}
	}
	return holder.stop, nil
}

// redisBenchmark has a client of its own.
func redisBenchmark(p *proxied, args []string) (r result, err error) {
	host, port, _ := strings.Cut(p.addr, ":")
	pids := p.pids()
	cpu := cpuOfAll(pids)
	out, err := exec.Command("redis-benchmark", append([]string{"-h", host, "-p", port, "-t", "get", "--csv"}, args...)...).Output()
	r.CPU = cpuOfAll(pids) - cpu
	if err != nil {
		return r, fmt.Errorf("redis-benchmark: %w", err)
	}
	// "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.ReplaceAll(strings.TrimSpace(line), `"`, ""), ",")
		if len(f) != 8 || f[0] != "GET" {
			continue
		}
		number := func(i int) float64 { v, _ := strconv.ParseFloat(f[i], 64); return v }
		ms := func(i int) time.Duration { return time.Duration(number(i) * float64(time.Millisecond)) }
		r.Units, _ = strconv.ParseFloat(args[1], 64)
		r.Wall = time.Duration(r.Units / number(1) * 1e9)
		r.P50, r.P99, r.Max = ms(4), ms(6), ms(7)
		return r, nil
	}
	return r, errors.New("redis-benchmark said nothing")
}

// dropOdd drops rounds in which the load without a proxy was more than 15 % off.
func (c *comparison) dropOdd() {
	control := c.Rounds[direct.name]
	var rates []float64
	for _, r := range control {
		rates = append(rates, r.rate())
	}
	mid := median(rates)
	var keep []int
	for i, rate := range rates {
		if rate >= 0.85*mid && rate <= 1.15*mid {
			keep = append(keep, i)
		}
	}
	if len(control) == 0 || len(keep) < 2 {
		return
	}
	c.Dropped = len(control) - len(keep)
	for name, all := range c.Rounds {
		var kept []result
		for _, i := range keep {
			kept = append(kept, all[i])
		}
		c.Rounds[name] = kept
	}
}

// series is one value of each round of a setting.
func (c comparison) series(s setting, of func(result) float64) (all []float64) {
	for _, r := range c.Rounds[s.name] {
		all = append(all, of(r))
	}
	return all
}

// best is the setting of the peers that does best by the median.
func (c comparison) best(peers []setting, of func(result) float64, most bool) setting {
	return slices.MinFunc(peers, func(a, b setting) int {
		x, y := median(c.series(a, of)), median(c.series(b, of))
		if most {
			x, y = y, x
		}
		return cmp.Compare(x, y)
	})
}

// ratio is ours to the better peer's, in each round.
func (c comparison) ratio(of func(result) float64, most bool) (ratios []float64, peer setting) {
	peer = c.best(c.row.peers, of, most)
	theirs := c.series(peer, of)
	for i, ours := range c.series(oursPlain, of) {
		ratios = append(ratios, ours/theirs[i])
	}
	return ratios, peer
}

func (c comparison) errors(s setting) (n int, first string) {
	for _, r := range c.Rounds[s.name] {
		n += r.Errors
		first = cmp.Or(first, r.First)
	}
	return n, first
}

func tail(r result) float64 { return float64(r.P999) }

// judged is a median ratio with its quartiles beside a bar, and whether it meets it.
func judged(ratios []float64, bar float64, least bool) (text string, met string) {
	q1, mid, q3 := quartiles(ratios)
	text = fmt.Sprintf("%.2f× (%.2f–%.2f)", mid, q1, q3)
	near := q1
	if least {
		mid, bar, near = -mid, -bar, -q3
	}
	switch {
	case bar == 0:
		return text, ""
	case mid <= bar:
		return text, "met"
	case mid <= bar+0.03*max(bar, -bar) && near <= bar:
		return text, "at par"
	}
	return text, "missed"
}

// figure is the comparison in a line.
func (c comparison) figure() figure {
	f := figure{name: c.Name, verdict: "reported", bar: "–"}
	if n, first := c.errors(oursPlain); n > 0 {
		f.verdict = fmt.Sprintf("failed: %d errors, %s", n, first)
	}
	judge := func(what string, of func(result) float64, most bool, bar float64) string {
		ratios, peer := c.ratio(of, most)
		text, met := judged(ratios, bar, most)
		if bar > 0 {
			sign := "≤"
			if most {
				sign = "≥"
			}
			f.bar = strings.TrimPrefix(fmt.Sprintf("%s, %s %s %.1f×", f.bar, what, sign, bar), "–, ")
			if f.verdict == "reported" || f.verdict == "met" {
				f.verdict = met
			}
		}
		return fmt.Sprintf("%s %s of %s", what, text, peer.name)
	}
	parts := []string{judge("CPU", result.perUnit, false, c.row.cpuBar)}
	if c.row.open == 0 {
		parts = append(parts, judge("rate", result.rate, true, c.row.rateBar))
	} else {
		parts = append(parts, judge("p99.9", tail, false, c.row.tailBar))
	}
	f.peer = strings.Join(parts, ", ")
	f.ours = c.summary(oursPlain)
	return f
}

func (c comparison) summary(s setting) string {
	return fmt.Sprintf("%s CPU, %s", c.cpu(s), c.rate(s))
}

func (c comparison) cpu(s setting) string {
	v := median(c.series(s, result.perUnit))
	if s.of == "direct" {
		return "–"
	}
	if c.row.unit == "GB" {
		return fmt.Sprintf("%.3f s/GB", v)
	}
	return fmt.Sprintf("%.2f µs", v/1000)
}

func (c comparison) rate(s setting) string {
	v := median(c.series(s, result.rate))
	if c.row.unit == "GB" {
		return fmt.Sprintf("%.2f GB/s", v/1e9)
	}
	return fmt.Sprintf("%.1fk/s", v/1000)
}

// proxySuite runs what has only in its name, in a network of its own: other jobs of this
// machine have neither its ports nor its sysctls. It returns what it measured, and the
// same in full.
func proxySuite(only string, rounds int, quick bool, out string) ([]figure, error) {
	if !slices.ContainsFunc(proxyNames(), func(name string) bool { return strings.Contains(name, only) }) {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "holdfast-bench")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVar+"=proxy-suite", "ONLY="+only, "ROUNDS="+strconv.Itoa(rounds), "QUICK="+strconv.FormatBool(quick),
		"FIGURES="+file.Name(), "OUT="+out)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("proxy: %w (it needs a network namespace of its own, so root)", err)
	}
	var all []plainFigure
	if err := json.NewDecoder(file).Decode(&all); err != nil {
		return nil, err
	}
	var figures []figure
	for _, f := range all {
		figures = append(figures, figure{f.Name, f.Ours, f.Peer, f.Bar, f.Verdict})
	}
	return figures, nil
}

type plainFigure struct{ Name, Ours, Peer, Bar, Verdict string }

// held are the comparisons that are no rounds.
var held = []struct {
	name    string
	measure func(quick bool) ([]figure, any, error)
}{
	{"proxy: idle memory", proxyIdle},
	{"proxy: stalled readers", proxyStalled},
	{"proxy: pause of a restart", proxyPause},
	{"proxy: restarts under load", proxyRestarts},
	{"proxy: restarts under UDP sessions", proxyUDPRestarts},
}

func proxyNames() (names []string) {
	for _, r := range proxyRows() {
		names = append(names, r.name)
	}
	for _, h := range held {
		names = append(names, h.name)
	}
	return names
}

// beProxySuite is main in the network namespace.
func beProxySuite() error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("10000 65000"), 0)
	only, quick := os.Getenv("ONLY"), os.Getenv("QUICK") == "true"
	rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
	if err != nil {
		return err
	}
	doc := newProxyDoc()
	for _, r := range proxyRows() {
		if !strings.Contains(r.name, only) {
			continue
		}
		if quick {
			rounds = 4
			r.task.For /= 3
		}
		c, err := r.measure(rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		doc.add(c)
	}
	for _, h := range held {
		if !strings.Contains(h.name, only) {
			continue
		}
		figures, raw, err := h.measure(quick)
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		doc.addFigures(h.name, figures, raw)
	}
	return doc.write(os.Getenv("FIGURES"), os.Getenv("OUT"))
}
