package restart

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

func (c Command) stopSignal() os.Signal {
	if c.Stop == nil {
		return syscall.SIGTERM
	}
	return c.Stop
}

// readiness is Command.Ready, read.
type readiness struct {
	how   string // "notify", "port", "http" or "timer"
	url   string
	after time.Duration
}

func (c Command) readiness() (r readiness, err error) {
	how, value, _ := strings.Cut(c.Ready, "=")
	r.how = how
	switch how {
	case "":
		r.how, r.after = "timer", time.Second
	case "timer":
		r.after, err = time.ParseDuration(value)
		if err != nil || r.after < 0 {
			return r, fmt.Errorf("restart: ready %q: want timer=DURATION", c.Ready)
		}
	case "http":
		u, err := url.Parse(value)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return r, fmt.Errorf("restart: ready %q: want http=URL", c.Ready)
		}
		r.url = value
	case "notify", "port":
		if value != "" {
			return r, fmt.Errorf("restart: ready %q: %s takes no value", c.Ready, how)
		}
	default:
		return r, fmt.Errorf("restart: ready %q: want notify, port, http=URL or timer=DURATION", c.Ready)
	}
	return r, nil
}

// lacks is what a program that is not ready has not done yet.
func (c Command) lacks() string {
	switch r, _ := c.readiness(); r.how {
	case "notify":
		return "no READY=1 came to NOTIFY_SOCKET"
	case "port":
		return "it has not accepted a connection of any of its TCP sockets"
	case "http":
		return "no 2xx came from " + r.url
	}
	return "its timer has not ended"
}

func (c Command) check() error {
	_, err := c.readiness()
	return err
}

// probeEvery is the pause between two looks at a program that is about to be ready.
const probeEvery = 50 * time.Millisecond

// answers reports whether the URL gives a 2xx.
func answers(ctx context.Context, client *http.Client, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode/100 == 2
}
