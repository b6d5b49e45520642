// Package health tells whether services work: probes that ask a server something,
// and a Monitor that asks many services again and again.
//
//	m, err := health.New(health.Config{
//		Services: map[string]health.Service{
//			"web":   {Addr: "tls://www.example.net:443", Kind: "http /status"},
//			"cache": {Addr: "10.0.0.5:6379", Kind: "redis master"},
//			"db":    {Addr: "db.internal:5432", Kind: "postgres"},
//			"queue": {Addr: "10.0.0.7:4222"}, // connecting is proof enough
//		},
//		Log: slog.Default(),
//		Observe: func(name string, r health.Result) {
//			if r.Since == r.Checked {
//				notify(name, r.Healthy, r.Err)
//			}
//		},
//	})
//	if err != nil {
//		return err
//	}
//	for name, r := range m.CheckAll(ctx) { // once
//		fmt.Println(name, r.Healthy, r.Response, r.Err)
//	}
//	return m.Run(ctx) // and from now on
//
// # Probes
//
// A probe is a func(ctx, net.Conn) error that asks on a connection and returns why the
// answer is not good. [TLS], [HTTP], [Redis], [Postgres], [Exchange] and [UDP] have one
// each, as a method. It is what holdfast.Config.Probe takes, so the checks of any Cluster
// can use it, and it works on every net.Conn. [ParseProbe] reads the text form.
//
//	cfg := holdfast.Config{Probe: health.HTTP{Path: "/status"}.Probe}
//
// # Services
//
// Each service has a Cluster of its own that makes the checks: holdfast.Check says how
// often, how long, and how many results in a row change a verdict, holdfast.Timeouts and
// Config.TLS how it connects. A name that stands for several addresses is checked at each
// of them, and the service is healthy while one of them is: that is what a Cluster's
// caller sees, who fails over. Result.Addrs and Result.Up tell whether some are down.
//
// # What is promised
//
//   - Services are checked at the same time. One that does not answer delays nobody.
//   - A check ends with its limit, which is absolute: a server that sends a byte now and
//     then gains nothing. At most 4 KiB of what it says are kept.
//   - Checking never fails as a whole: what is wrong with a service is in its Result.
//   - A check that was late because this process was stopped or starved, or that failed
//     because this host ran out of files, ports or memory, is no verdict.
//   - The first check decides. After that a verdict changes when Check.Rise or Check.Fall
//     results in a row speak against it, and each change is logged once.
//
// # Limits
//
// A UDP server that says nothing is not down: see [UDP]. A probe may leave the connection
// amid an answer: only Redis without a Role, and an Exchange that expects all that comes,
// leave one that holdfast.Pool.Ping can go on with. What was learned is not kept: a
// Monitor begins anew with its process.
package health
