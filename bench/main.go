// Command bench runs Holdfast and its peers side by side in one process, round by
// round, and reports ratios. A time of one run means nothing on a machine that is
// shared; a ratio within one round does.
//
//	go -C bench run .            prints the table and writes docs/benchmarks.md
//	go -C bench run . -only pool
//	go -C bench run . -only proxy: -quick
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
)

// proxyPrefix begins the names of the proxy's rows, which have a file of their own.
const proxyPrefix = "proxy:"

func main() {
	if kind := os.Getenv(childVar); kind != "" {
		if err := beChild(kind); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 10, "rounds, of which the first is dropped")
	only := flag.String("only", "", "run only the rows whose name contains this")
	quick := flag.Bool("quick", false, "short rounds of the proxy, to see that all works")
	out := flag.String("o", "../docs/benchmarks.md", "file to write the table to; empty writes none")
	flag.Parse()

	var reports []report
	for _, r := range slices.Concat(clientRows(), serverRows(), datagramRows(), redisRows(), pipelineRows()) {
		if !strings.Contains(r.name, *only) {
			continue
		}
		rep, err := r.measure(*rounds)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", r.name, err)
			os.Exit(1)
		}
		fmt.Println(rep)
		reports = append(reports, rep)
	}
	others, err := figures(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	file, beside := *out, *out
	if *only != "" {
		file = ""
	}
	if *quick || *only != "" && *only != proxyPrefix { // not all of its rows, or too short
		file, beside = "", ""
	}
	through, err := proxySuite(*only, *rounds, *quick, beside)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	others = append(others, through...)
	if file != "" {
		if err := write(file, reports, others, *rounds); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
