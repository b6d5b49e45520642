package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-net/holdfast"
	"github.com/holdfast-net/holdfast/health"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// checkOptions are those of check and monitor.
type checkOptions struct {
	tls      tlsFlags
	kind     string
	interval time.Duration // of monitor
	timeout  time.Duration
	json     bool
}

const kindsHelp = `KIND is what must go well there:
  connect                         a connection; the default, and TLS where ADDR is tls://
  tls [DAYS]                      a certificate that is valid for so many days yet
  http [PATH [STATUS[-STATUS]]]   GET of the path, and a status of 200 to 299
  redis [master|slave|sentinel]   a PONG
  postgres [USER [DATABASE]]      an answer to the start-up message
  send TEXT expect TEXT …         step by step; sendhex, expecthex and match REGEXP too
  udp send TEXT [expect TEXT]     no refusal, no wrong answer; silence proves nothing`

func (p *program) checkCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check ADDR…",
		Short: "Say once whether services are healthy",
		Long: `Checks every address once, all at the same time, and says which are healthy. A name is
healthy while one of its addresses is.

` + kindsHelp + `

Exit code 6 means that one is down.`,
		Example: `  holdfast check tls://example.net:443 --kind 'http /status'
  holdfast check 10.0.0.1:6379 10.0.0.2:6379 --kind redis --json`,
		Args: someAddresses,
		RunE: func(cmd *cobra.Command, args []string) error { return p.check(cmd.Context(), args, o) },
	}
	o.add(cmd.Flags())
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Second, "limit of a lookup, and of a check")
	cmd.Flags().BoolVarP(&o.json, "json", "j", false, "print one JSON object")
	return cmd
}

func (o *checkOptions) add(flags *pflag.FlagSet) {
	o.tls.add(flags)
	flags.StringVar(&o.kind, "kind", "", "what must go well, such as 'http /status'")
}

// someAddresses is the argument of verbs about services of their own each, other than
// those of a Cluster, which stand for one another.
func someAddresses(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usage(fmt.Errorf("%s: want at least one ADDR", cmd.Name()), cmd.CommandPath()+" tcp://127.0.0.1:7000 tls://example.net:443")
	}
	return nil
}

func (p *program) check(ctx context.Context, args []string, o checkOptions) error {
	m, names, err := o.monitor(args, nil)
	if err != nil {
		return err
	}
	r := newCheckReport(names, m.CheckAll(ctx))
	if o.json {
		err = p.printJSON(r)
	} else {
		_, err = fmt.Fprint(p.out, strings.Join(checkTable(r.Services, p.paintOn(p.out)), "\n")+"\n")
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return &failure{code: exitSignal}
	case !r.OK:
		return &failure{code: exitCheck}
	}
	return nil
}

// monitor makes a Monitor of the arguments, and returns its services in their order.
func (o *checkOptions) monitor(args []string, observe func(string, health.Result)) (*health.Monitor, []string, error) {
	if o.timeout <= 0 || o.interval < 0 {
		return nil, nil, usage(errors.New("--timeout and --interval must be above 0"), "")
	}
	endpoints, addrs, err := o.tls.endpoints(strings.Join(args, ","))
	if err != nil {
		return nil, nil, err
	}
	cfg := holdfast.Config{Check: holdfast.Check{Interval: o.interval, Timeout: o.timeout}}
	// The check's limit is to be the only one.
	cfg.Timeouts = holdfast.Timeouts{Dial: o.timeout, Handshake: o.timeout}
	if cfg.TLS, err = o.tls.config(); err != nil {
		return nil, nil, err
	}
	services := map[string]health.Service{}
	var names []string
	for i, addr := range addrs {
		name := endpoints[i].String()
		if _, double := services[name]; double {
			continue
		}
		names = append(names, name)
		services[name] = health.Service{Addr: addr, Kind: o.kind, Config: cfg}
	}
	m, err := health.New(health.Config{Services: services, Observe: observe})
	if err != nil {
		return nil, nil, usage(err, "--help lists the kinds; a UDP server wants --kind 'udp send TEXT'")
	}
	return m, names, nil
}

// checkReport is the object of check --json.
type checkReport struct {
	Schema   string        `json:"schema"`
	OK       bool          `json:"ok"` // every service is healthy
	Services []checkResult `json:"services"`
}

// checkResult is one service, there and in the lines of monitor --json.
type checkResult struct {
	Service   string    `json:"service"`
	Healthy   bool      `json:"healthy"`
	Kind      string    `json:"kind"`
	Layer     string    `json:"layer"` // where the check ended: resolve, connect, tls, answer or silence
	Response  float64   `json:"response_ms,omitempty"`
	CheckedAt time.Time `json:"checked_at"`
	Since     time.Time `json:"since"`
	Rise      int       `json:"rise"` // checks that passed in a row
	Fall      int       `json:"fall"` // that failed
	Addresses int       `json:"addresses"`
	Up        int       `json:"up"`
	CertDays  *int      `json:"cert_days,omitempty"`
	Class     string    `json:"class,omitempty"`
	Error     string    `json:"error,omitempty"`
}

func newCheckReport(names []string, found map[string]health.Result) *checkReport {
	r := &checkReport{Schema: "holdfast/check/v1", OK: true}
	for _, name := range names {
		s := newCheckResult(name, found[name])
		r.OK = r.OK && s.Healthy
		r.Services = append(r.Services, s)
	}
	return r
}

func newCheckResult(name string, r health.Result) checkResult {
	s := checkResult{
		Service: name, Healthy: r.Healthy, Kind: r.Kind, Layer: r.Layer, Response: asMillis(r.Response), CheckedAt: r.Checked, Since: r.Since,
		Rise: r.Rise, Fall: r.Fall, Addresses: r.Addrs, Up: r.Up,
	}
	if !r.Expires.IsZero() {
		days := int(r.Expires.Sub(r.Checked) / (24 * time.Hour))
		s.CertDays = &days
	}
	if r.Err != nil {
		s.Class, s.Error = holdfast.Classify(r.Err).String(), checkError(r.Err)
	}
	return s
}

// checkError is the cause alone: the service and the layer are said beside it.
func checkError(err error) string {
	if e, ok := errors.AsType[*holdfast.Error](err); ok {
		err = e.Err
	}
	return strings.ReplaceAll(strings.TrimPrefix(cause(err), "health: "), "\n", ", ")
}

// checkTable has a line for each service, under one that names the columns.
func checkTable(services []checkResult, on paint) []string {
	width := len("service")
	for _, s := range services {
		width = max(width, len(s.Service))
	}
	lines := []string{on.text(dim, pad("service", width)+padLeft("response", 12)+padLeft("certificate", 13))}
	for _, s := range services {
		lines = append(lines, pad(s.Service, width)+padLeft(ms(s.Response), 12)+padLeft(s.certificate(), 13)+"  "+s.state(on))
	}
	return lines
}

func (s checkResult) certificate() string {
	if s.CertDays == nil {
		return "–"
	}
	return fmt.Sprintf("%d days", *s.CertDays)
}

// state says how it is, at which layer that was found, and why.
func (s checkResult) state(on paint) string {
	word, color := "down", red
	switch {
	case s.Healthy && s.Error != "" || s.Healthy && s.Up < s.Addresses:
		word, color = "up", yellow
	case s.Healthy:
		word, color = "up", green
	}
	text := on.text(color, word) + "  " + s.Layer
	if s.Addresses > 1 {
		text += fmt.Sprintf("  %d/%d addresses", s.Up, s.Addresses)
	}
	if s.Error != "" {
		text += fmt.Sprintf("  %s: %s", s.Class, s.Error)
	}
	return text
}

// downFirst puts what needs attention where a screen shows it.
func downFirst(services []checkResult) {
	slices.SortStableFunc(services, func(a, b checkResult) int {
		switch {
		case a.Healthy == b.Healthy:
			return 0
		case b.Healthy:
			return -1
		}
		return 1
	})
}
