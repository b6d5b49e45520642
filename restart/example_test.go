package restart_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/holdfast-net/holdfast/restart"
)

// A web server whose process can be replaced while it serves: SIGHUP starts what is
// installed now, and no request is lost. What is for the workers only is in Start.
func Example() {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello\n")
	})}
	cfg := restart.Config{
		Log:      slog.Default(),
		PIDFile:  "/run/app.pid",
		Timeouts: restart.Timeouts{Confirm: 10 * time.Second},
		Start:    func(ctx context.Context) error { return openDatabase(ctx) },
	}
	err := restart.Run(context.Background(), cfg,
		restart.Bind(restart.HTTP(srv), "tcp://:8080", "unix:/run/app.sock?mode=0660"))
	if err != nil {
		log.Fatal(err)
	}
}

func openDatabase(context.Context) error { return nil }

// What is wrong with a configuration is told before anything is bound.
func ExampleRun() {
	err := restart.Run(context.Background(), restart.Config{},
		restart.Bind(restart.HTTP(&http.Server{}), "tls://:443"))
	fmt.Println(err)
	// Output: restart: tls://:443: the server does TLS, so its address is tcp://:443
}

// A deployment asks for the restart, and learns whether it went well.
func ExampleRestart() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := restart.Restart(ctx, restart.AdminPath("app"))
	switch {
	case err != nil:
		log.Fatal(err)
	case !result.OK:
		log.Fatal("rolled back: ", result.Err)
	}
	fmt.Println("generation", result.Generation, "serves")
}
