package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// Redis asks for a PONG, and if there is a Password or a Role for these too. Whatever else
// the server says is a failure: -LOADING, -NOAUTH, -MASTERDOWN.
type Redis struct {
	User, Password string // AUTH is sent if there is a Password; User "" is the default one
	Role           string // "master", "slave" or "sentinel", as ROLE tells; "" means any
}

const maxRedisLine = 512

// Probe is for holdfast.Config.Probe.
func (p Redis) Probe(ctx context.Context, conn net.Conn) error {
	return within(ctx, conn, func() error {
		r := bufio.NewReaderSize(conn, maxRedisLine)
		if p.Password != "" {
			if err := askRedis(conn, r, "+OK", p.auth()...); err != nil {
				return err
			}
		}
		if err := askRedis(conn, r, "+PONG", "PING"); err != nil {
			return err
		}
		if p.Role == "" {
			return nil
		}
		return p.askRole(conn, r)
	})
}

func (p Redis) auth() []string {
	if p.User == "" {
		return []string{"AUTH", p.Password}
	}
	return []string{"AUTH", p.User, p.Password}
}

func askRedis(w io.Writer, r *bufio.Reader, want string, args ...string) error {
	line, err := commandRedis(w, r, args...)
	if err == nil && line != want {
		err = fmt.Errorf("health: %s: the server said %.200q", args[0], line)
	}
	return err
}

// commandRedis sends a command and returns the first line of the answer.
func commandRedis(w io.Writer, r *bufio.Reader, args ...string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return "", err
	}
	return redisLine(r)
}

func redisLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", fmt.Errorf("health: an answer of more than %d bytes: %.40q…", r.Size(), line)
	case err != nil:
		return "", fmt.Errorf("health: no answer: %w", ended(err))
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

// askRole reads as much of ROLE's answer as names the role: an array, and in it first a
// bulk string.
func (p Redis) askRole(w io.Writer, r *bufio.Reader) error {
	line, err := commandRedis(w, r, "ROLE")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "*") {
		return fmt.Errorf("health: ROLE: the server said %.200q", line)
	}
	if line, err = redisLine(r); err != nil {
		return err
	}
	if length, ok := strings.CutPrefix(line, "$"); ok {
		if n, err := strconv.Atoi(length); err != nil || n < 0 || n > 64 {
			return fmt.Errorf("health: ROLE: the server said %.200q", line)
		}
		if line, err = redisLine(r); err != nil {
			return err
		}
	}
	if line != p.Role {
		return fmt.Errorf("health: the server is a %.40q, want %q", line, p.Role)
	}
	return nil
}
