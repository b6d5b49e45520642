package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// HTTP asks for a path by HTTP/1.1 and judges the status. It reads the status line, of at
// most 1 KiB, and nothing after it. Over TLS the connection must be TLS already, as that of
// a tls:// endpoint is.
type HTTP struct {
	Path     string // "" means "/"
	Host     string // "" means the host the connection is meant for
	From, To int    // the statuses that are good; 0 means 200 to 299, negative no bound on that side
}

const maxStatusLine = 1024

// Probe is for holdfast.Config.Probe.
func (h HTTP) Probe(ctx context.Context, conn net.Conn) error {
	request, err := h.request(conn)
	if err != nil {
		return err
	}
	return within(ctx, conn, func() error {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		status, err := readStatus(bufio.NewReaderSize(conn, maxStatusLine))
		if err != nil {
			return err
		}
		if from, to := h.good(); status < from || status > to {
			return fmt.Errorf("health: status %d, want %d to %d", status, from, to)
		}
		return nil
	})
}

func (h HTTP) good() (from, to int) {
	from, to = h.From, h.To
	if from == 0 {
		from = 200
	}
	switch {
	case to == 0:
		to = max(299, from) // a From beyond 299 alone means that one
	case to < 0:
		to = 999
	}
	return from, to
}

func (h HTTP) request(conn net.Conn) ([]byte, error) {
	path, host := h.Path, h.Host
	if path == "" {
		path = "/"
	}
	if host == "" {
		host = authority(conn)
	}
	if !isToken(path) || !isToken(host) || path[0] != '/' {
		return nil, fmt.Errorf("health: path %q, host %q: want a path from / on, and no spaces", path, host)
	}
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: holdfast\r\nConnection: close\r\n\r\n", path, host), nil
}

// authority is the host as a URL has it: the port only when it is not the usual one.
func authority(conn net.Conn) string {
	host, port := hostOf(conn)
	usual := "80"
	if _, ok := stateOf(conn); ok {
		usual = "443"
	}
	if port != "" && port != usual {
		return net.JoinHostPort(host, port)
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// isToken reports whether s can stand in a request line or a header without ending it.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// readStatus reads "HTTP/1.1 200 OK".
func readStatus(r *bufio.Reader) (int, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return 0, fmt.Errorf("health: a status line of more than %d bytes: %.40q…", r.Size(), line)
	case err != nil:
		return 0, fmt.Errorf("health: no status line: %w", ended(err))
	}
	text := string(line)
	// HTTP/1.x SP three digits, and then a space or the end of the line.
	if len(text) < 13 || text[:7] != "HTTP/1." || !isDigits(text[7:8]) || text[8] != ' ' || !isDigits(text[9:12]) || !strings.ContainsRune(" \r\n", rune(text[12])) {
		return 0, fmt.Errorf("health: not a status line: %.80q", text)
	}
	return int(text[9]-'0')*100 + int(text[10]-'0')*10 + int(text[11]-'0'), nil
}

func isDigits(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' })
}
